package worker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal"
)

func TestAttachMakesAnAgentOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids, sessions := map[shoal.AgentID]bool{}, map[string]bool{}
	for range 8 {
		wg.Go(func() {
			s, err := w.Attach(t.Context(), AttachSpec{Agent: "bob", Description: "reads", Skills: skills("ocr")})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[s.Agent().ID], sessions[s.ID()] = true, true
		})
	}
	wg.Wait()
	if len(ids) != 1 || len(sessions) != 8 || w.ring.count() != 1 {
		t.Errorf("%d agents, %d sessions, %d keys; want 1, 8, 1", len(ids), len(sessions), w.ring.count())
	}
	if n, _ := w.cards.counts(); n != 1 {
		t.Errorf("published %d times, want once", n)
	}
	for id := range sessions {
		if len(id) < 26 {
			t.Errorf("session id %q has less than 128 bits", id)
		}
	}
}

func TestAgentsSurviveARestart(t *testing.T) {
	w := newWorld(t)
	spec := AttachSpec{Agent: "bob", Description: "reads", Skills: []shoal.Skill{
		{ID: "ocr", Name: "OCR", Tags: []string{"pdf"}, Examples: []string{"read this"}, Idempotent: true}, {ID: "sum", Tags: []string{}},
	}}
	before := w.attach(spec).Agent()
	w.attach(AttachSpec{Skills: skills("own")})
	w.reopen()
	got, err := w.Lookup("bob")
	if err != nil || got != before.ID {
		t.Fatalf("after the restart bob is %v, %v; want %v", got, err, before.ID)
	}
	infos := w.Agents()
	if len(infos) != 2 || !reflect.DeepEqual(infos[0].Spec, before) || infos[1].Spec.Name != OwnName {
		t.Errorf("agents: got %+v, want bob and node", infos)
	}
	w.attach(spec)
	w.attach(AttachSpec{Agent: string(before.ID)})
	if n, _ := w.cards.counts(); n != 2 {
		t.Errorf("published %d times, want 2: nothing has changed since", n)
	}
}

func TestDamagedRecordIsNamed(t *testing.T) {
	w := newWorld(t)
	w.attach(AttachSpec{Agent: "bob"})
	w.mustExec(`UPDATE worker_agents SET record = x'7b'`)
	_, err := New(Config{}, w.db, w.cards, w.ring, w.log)
	wantError(t, err, shoal.Corrupt, "db_corrupt")
}

func TestCardFollowsWhatWorkersOffer(t *testing.T) {
	w := newWorld(t)
	offers := func() string {
		var ids []string
		last := w.cards.published[len(w.cards.published)-1]
		for _, s := range last.Skills {
			ids = append(ids, s.ID)
		}
		return fmt.Sprint(len(w.cards.published), " ", strings.Join(ids, " "))
	}
	check := func(what, want string) {
		t.Helper()
		if got := offers(); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	a := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr", "sum")})
	check("first worker", "1 ocr sum")
	b := w.attach(AttachSpec{Agent: "bob", Skills: skills("translate", "sum")})
	check("another worker adds", "2 ocr sum translate")
	w.attach(AttachSpec{Agent: "bob"}).Close()
	check("a worker that offers all changes nothing", "2 ocr sum translate")
	a.Close()
	check("a worker that leaves changes nothing", "2 ocr sum translate")
	w.attach(AttachSpec{Agent: "bob", Skills: []shoal.Skill{{ID: "a2a:v1:cap:sum", Idempotent: true}}})
	check("what nobody offers goes with the next attach", "3 sum translate")
	if s, _ := w.Skill(b.Agent().ID, "sum"); !s.Idempotent {
		t.Error("the newest worker's word about a skill counts")
	}
	w.attach(AttachSpec{Agent: "bob", Description: "does sums"})
	check("a new description is published", "4 sum translate")
}

func TestRefusedCardLeavesNoAgent(t *testing.T) {
	w := newWorld(t)
	w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	w.cards.fail = shoal.NewError(shoal.Invalid, "card_too_large", "too large", "")
	_, err := w.Attach(t.Context(), AttachSpec{Agent: "eve", Skills: skills("ocr")})
	wantError(t, err, shoal.Invalid, "card_too_large")
	_, err = w.Attach(t.Context(), AttachSpec{Agent: "bob", Skills: skills("other")})
	wantError(t, err, shoal.Invalid, "card_too_large")
	for range 2 {
		_, err = w.Lookup("eve")
		wantError(t, err, shoal.NotFound, "unknown_agent")
		bob, _ := w.Lookup("bob")
		if _, err := w.Skill(bob, "ocr"); err != nil {
			t.Errorf("bob lost the skill that stands on its card: %v", err)
		}
		if w.ring.count() != 1 {
			t.Errorf("%d keys, want bob's", w.ring.count())
		}
		w.reopen()
	}
	w.cards.fail = nil
	w.attach(AttachSpec{Agent: "bob", Skills: skills("other")})
}

func TestEphemeralCardGoesWithTheLastWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.run()
		spec := AttachSpec{Agent: "bob", Skills: skills("ocr"), Ephemeral: true}
		a, b := w.attach(spec), w.attach(spec)
		a.Close()
		time.Sleep(time.Hour)
		b.Close()
		time.Sleep(2 * time.Second)
		c := w.attach(spec) // a reconnect
		time.Sleep(time.Hour)
		if p, n := w.cards.counts(); p != 1 || n != 0 {
			t.Errorf("published %d, withdrawn %d while workers were there; want 1, 0", p, n)
		}
		c.Close()
		time.Sleep(3*time.Second + time.Millisecond)
		if p, n := w.cards.counts(); p != 1 || n != 1 {
			t.Errorf("published %d, withdrawn %d after the last left; want 1, 1", p, n)
		}
		d := w.attach(spec)
		time.Sleep(time.Hour)
		if p, n := w.cards.counts(); p != 2 || n != 1 {
			t.Errorf("published %d, withdrawn %d after the next came; want 2, 1", p, n)
		}
		stop()
		_ = d

		// After a restart nobody comes back.
		w.reopen()
		stop = w.run()
		w.cards.refuse(errors.New("disk full"))
		time.Sleep(time.Minute)
		w.cards.refuse(nil)
		time.Sleep(time.Minute)
		if _, n := w.cards.counts(); n != 2 {
			t.Errorf("withdrawn %d after the restart, want 2", n)
		}
		stop()
		w.db.Close()
	})
}

func TestRemoveForgetsAgentAndKey(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.start("a", bob, "ocr", 1)
	own, _ := w.Lookup("")
	wantError(t, w.Remove(t.Context(), own), shoal.Conflict, "own_agent")
	wantError(t, w.Remove(t.Context(), "did:key:nobody"), shoal.NotFound, "unknown_agent")
	w.must(w.Remove(t.Context(), bob))
	wantError(t, w.Remove(t.Context(), bob), shoal.NotFound, "unknown_agent")
	_, err := s.Next(t.Context())
	wantError(t, err, shoal.NotFound, "agent_removed")
	if lost := w.engine.takeLost(); len(lost) != 1 {
		t.Errorf("lost %v, want the task", lost)
	}
	if w.ring.count() != 0 || len(w.cards.withdrawn) != 1 {
		t.Errorf("%d keys and %d withdrawals, want 0 and 1", w.ring.count(), len(w.cards.withdrawn))
	}
	w.reopen()
	if len(w.Agents()) != 1 {
		t.Errorf("after the restart: %+v", w.Agents())
	}
}

func TestLookupSuggestsTheNearest(t *testing.T) {
	w := newWorld(t)
	bob := w.attach(AttachSpec{Agent: "translator", Skills: skills("translate", "summarize")}).Agent().ID
	for in, want := range map[string]string{
		"transltor": "translator", "Translator": "translator", "nod": "node",
	} {
		_, err := w.Lookup(in)
		wantError(t, err, shoal.NotFound, "unknown_agent")
		if hint := shoal.AsError(err).Hint; !strings.Contains(hint, want) {
			t.Errorf("hint for %q: %q lacks %q", in, hint, want)
		}
	}
	for _, in := range []string{"x", strings.Repeat("y", 10_000), "did:key:z6Mk", "\x00"} {
		_, err := w.Lookup(in)
		wantError(t, err, shoal.NotFound, "unknown_agent")
		if len(err.Error()) > 300 {
			t.Errorf("the error of a name of %d bytes has %d", len(in), len(err.Error()))
		}
	}
	for skill, want := range map[string]string{"sumarize": "summarize", "zzz": "translate, summarize"} {
		_, err := w.Skill(bob, skill)
		wantError(t, err, shoal.NotFound, "unknown_skill")
		if hint := shoal.AsError(err).Hint; !strings.Contains(hint, want) {
			t.Errorf("hint for skill %q: %q lacks %q", skill, hint, want)
		}
	}
	if s, err := w.Skill(bob, ""); err != nil || s.ID != "translate" {
		t.Errorf("the first skill: got %v, %v", s.ID, err)
	}
	if s, err := w.Skill(bob, "a2a:v1:cap:summarize"); err != nil || s.ID != "summarize" {
		t.Errorf("with prefix: got %v, %v", s.ID, err)
	}
	own, _ := w.Lookup("")
	_, err := w.Skill(own, "")
	wantError(t, err, shoal.NotFound, "unknown_skill")
	_, err = w.Skill("did:key:nobody", "")
	wantError(t, err, shoal.NotFound, "unknown_agent")
}

func TestBadAttachIsRefused(t *testing.T) {
	good := func() AttachSpec {
		return AttachSpec{
			Agent: "bob the 2nd.x-y_z", Description: "a\nb\tc ä", Concurrency: 1024, Heartbeat: time.Hour,
			Skills: []shoal.Skill{{ID: "ocr", Name: "N", Description: "D", Tags: []string{"t"}, Examples: []string{"e"}}},
		}
	}
	var many []shoal.Skill
	for i := range 33 {
		many = append(many, shoal.Skill{ID: fmt.Sprint("s", i)})
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	cases := []struct {
		name   string
		change func(*AttachSpec)
		kind   shoal.Kind
		reason string
	}{
		{"name with capital", func(s *AttachSpec) { s.Agent = "Bob" }, shoal.Invalid, "bad_name"},
		{"name of 65", func(s *AttachSpec) { s.Agent = long(65) }, shoal.Invalid, "bad_name"},
		{"name of 1 MiB", func(s *AttachSpec) { s.Agent = long(1 << 20) }, shoal.Invalid, "bad_name"},
		{"name with space in front", func(s *AttachSpec) { s.Agent = " bob" }, shoal.Invalid, "bad_name"},
		{"name with space behind", func(s *AttachSpec) { s.Agent = "bob " }, shoal.Invalid, "bad_name"},
		{"name with newline", func(s *AttachSpec) { s.Agent = "bo\nb" }, shoal.Invalid, "bad_name"},
		{"name with slash", func(s *AttachSpec) { s.Agent = "../bob" }, shoal.Invalid, "bad_name"},
		{"name not ASCII", func(s *AttachSpec) { s.Agent = "bøb" }, shoal.Invalid, "bad_name"},
		{"DID of nobody", func(s *AttachSpec) { s.Agent = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK" }, shoal.NotFound, "unknown_agent"},
		{"half a DID", func(s *AttachSpec) { s.Agent = "did:" }, shoal.NotFound, "unknown_agent"},
		{"concurrency 1025", func(s *AttachSpec) { s.Concurrency = 1025 }, shoal.Invalid, "bad_concurrency"},
		{"concurrency -1", func(s *AttachSpec) { s.Concurrency = -1 }, shoal.Invalid, "bad_concurrency"},
		{"heartbeat 99ms", func(s *AttachSpec) { s.Heartbeat = 99 * time.Millisecond }, shoal.Invalid, "bad_heartbeat"},
		{"heartbeat 2h", func(s *AttachSpec) { s.Heartbeat = 2 * time.Hour }, shoal.Invalid, "bad_heartbeat"},
		{"heartbeat negative", func(s *AttachSpec) { s.Heartbeat = -time.Second }, shoal.Invalid, "bad_heartbeat"},
		{"33 skills", func(s *AttachSpec) { s.Skills = many }, shoal.Invalid, "too_many_skills"},
		{"skill twice", func(s *AttachSpec) { s.Skills = skills("ocr", "a2a:v1:cap:ocr") }, shoal.Invalid, "duplicate_skill"},
		{"skill without id", func(s *AttachSpec) { s.Skills[0].ID = "" }, shoal.Invalid, "bad_capability"},
		{"skill with capital", func(s *AttachSpec) { s.Skills[0].ID = "OCR" }, shoal.Invalid, "bad_capability"},
		{"skill of 65", func(s *AttachSpec) { s.Skills[0].ID = long(65) }, shoal.Invalid, "bad_capability"},
		{"skill name of 65", func(s *AttachSpec) { s.Skills[0].Name = long(65) }, shoal.Invalid, "text_too_long"},
		{"skill description of 1025", func(s *AttachSpec) { s.Skills[0].Description = long(1025) }, shoal.Invalid, "text_too_long"},
		{"17 tags", func(s *AttachSpec) { s.Skills[0].Tags = make([]string, 17) }, shoal.Invalid, "bad_skill"},
		{"17 examples", func(s *AttachSpec) { s.Skills[0].Examples = make([]string, 17) }, shoal.Invalid, "bad_skill"},
		{"tag of 65", func(s *AttachSpec) { s.Skills[0].Tags[0] = long(65) }, shoal.Invalid, "text_too_long"},
		{"example of 257", func(s *AttachSpec) { s.Skills[0].Examples[0] = long(257) }, shoal.Invalid, "text_too_long"},
		{"escape in tag", func(s *AttachSpec) { s.Skills[0].Tags[0] = "\x1b[2J" }, shoal.Invalid, "bad_text"},
		{"description of 1025", func(s *AttachSpec) { s.Description = long(1025) }, shoal.Invalid, "text_too_long"},
		{"description not UTF-8", func(s *AttachSpec) { s.Description = "\xff" }, shoal.Invalid, "bad_text"},
		{"description with bidi override", func(s *AttachSpec) { s.Description = "a\u202eb" }, shoal.Invalid, "bad_text"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := good().check(); err != nil {
				t.Fatalf("control: %v", err)
			}
			w := newWorld(t)
			spec := good()
			c.change(&spec)
			_, err := w.Attach(t.Context(), spec)
			wantError(t, err, c.kind, c.reason)
			if len(w.Agents()) != 1 || w.ring.count() != 0 {
				t.Error("a refused attach left an agent behind")
			}
		})
	}
	t.Logf("%d bad specs, each one mutation of a good one: accepted 0", len(cases))
}

func TestAttachStopsWaitingWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.must(w.lockAdmin(t.Context()))
	defer w.unlockAdmin()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Attach(ctx, AttachSpec{Agent: "bob"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func BenchmarkTaskThroughPool(b *testing.B) {
	w := newWorld(b)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.cfg.Report = func(_ context.Context, r shoal.Report) (uint64, error) {
		w.Release(r.Key, r.Agent)
		return 1, nil
	}
	b.ReportAllocs()
	for b.Loop() {
		w.start("a", bob, "ocr", 1)
		if _, err := s.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := w.say(s, "a", "TASK_STATE_COMPLETED"); err != nil {
			b.Fatal(err)
		}
	}
}
