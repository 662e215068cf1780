package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
	"github.com/shoalmesh/shoal/internal/store/storetest"
)

func TestPublishRefusesBadAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, meshtest.New(1), "a")
		n.agent("taken", "ocr")
		id := n.key.Agent()
		with := func(change func(*shoal.AgentSpec)) shoal.AgentSpec {
			s := spec(id, "good", "ocr")
			change(&s)
			return s
		}
		for _, c := range []struct {
			name, reason string
			spec         shoal.AgentSpec
		}{
			{"no id", "bad_agent", with(func(s *shoal.AgentSpec) { s.ID = "" })},
			{"junk id", "bad_agent", with(func(s *shoal.AgentSpec) { s.ID = "did:key:z6MkJunk" })},
			{"no key of it", "unknown_agent", with(func(s *shoal.AgentSpec) { s.ID = testKey(t, "stranger").Agent() })},
			{"no name", "bad_agent", with(func(s *shoal.AgentSpec) { s.Name = "" })},
			{"long name", "bad_agent", with(func(s *shoal.AgentSpec) { s.Name = strings.Repeat("n", 65) })},
			{"name with newline", "bad_agent", with(func(s *shoal.AgentSpec) { s.Name = "a\nb" })},
			{"name taken", "name_taken", with(func(s *shoal.AgentSpec) { s.Name = "taken" })},
			{"not UTF-8", "bad_agent", with(func(s *shoal.AgentSpec) { s.Description = "\xff\xfe" })},
			{"tag not UTF-8", "bad_agent", with(func(s *shoal.AgentSpec) { s.Skills[0].Tags = []string{"\xff"} })},
			{"zero byte", "bad_agent", with(func(s *shoal.AgentSpec) { s.Skills[0].Examples = []string{"a\x00b"} })},
			{"bad skill", "bad_agent", with(func(s *shoal.AgentSpec) { s.Skills[0].ID = "OCR!" })},
			{"no skill id", "bad_agent", with(func(s *shoal.AgentSpec) { s.Skills[0].ID = "" })},
			{"skill twice, once with prefix", "bad_agent", with(func(s *shoal.AgentSpec) {
				s.Skills = append(s.Skills, shoal.Skill{ID: "a2a:v1:cap:ocr"})
			})},
			{"too many skills", "bad_agent", with(func(s *shoal.AgentSpec) {
				for i := range maxSkills {
					s.Skills = append(s.Skills, shoal.Skill{ID: fmt.Sprint("s", i)})
				}
			})},
		} {
			err := n.dir.Publish(t.Context(), c.spec)
			if got := shoal.AsError(err); err == nil || got.Reason != c.reason {
				t.Errorf("%s: got %v, want reason %s", c.name, err, c.reason)
			}
		}
		big := with(func(s *shoal.AgentSpec) { s.Description = strings.Repeat("word ", 2000) })
		if err := n.dir.Publish(t.Context(), big); shoal.AsError(err).Reason != "card_too_large" {
			t.Errorf("big card: got %v, want reason card_too_large", err)
		}
		if got := len(n.dir.Local()); got != 1 {
			t.Errorf("%d agents are hosted after refusals, want 1", got)
		}
		// The gaps are filled, the name may be changed and used again.
		if err := n.dir.Publish(t.Context(), shoal.AgentSpec{ID: id, Name: "min", Skills: []shoal.Skill{{ID: "a2a:v1:cap:x", Idempotent: true}}}); err != nil {
			t.Fatal(err)
		}
		c, _ := n.dir.Knows(id)
		if len(c.Skills) != 1 || c.Skills[0].ID != "x" || c.Skills[0].Name != "x" || !c.Skills[0].Idempotent {
			t.Errorf("skills: %+v", c.Skills)
		}
		if err := n.dir.Publish(t.Context(), spec(id, "renamed")); err != nil {
			t.Error(err)
		}
		n.agent("min", "ocr")
	})
}

func TestFindRefusesBadQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, meshtest.New(1), "a")
		for _, q := range []Query{
			{}, {Text: "  "}, {Capability: "OCR"}, {Capability: shoal.CapabilityPrefix}, {Capability: strings.Repeat("a", 65)}, {Capability: "a/b"},
		} {
			if _, err := n.dir.Find(t.Context(), q); shoal.KindOf(err) != shoal.Invalid {
				t.Errorf("find %+v: got %v, want an invalid error", q, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := n.dir.Find(ctx, Query{Capability: "ocr"}); !errors.Is(err, context.Canceled) {
			t.Errorf("find with an ended context: %v", err)
		}
		if _, err := n.dir.Resolve(ctx, testKey(t, "x").Agent(), false); !errors.Is(err, context.Canceled) {
			t.Errorf("resolve with an ended context: %v", err)
		}
		if _, err := n.dir.Refresh(t.Context(), testKey(t, "x").Agent()); !errors.Is(err, ErrNotHosted) {
			t.Errorf("refresh a stranger: %v", err)
		}
	})
}

func TestBadConfigIsRefused(t *testing.T) {
	db := storetest.Open(t, Schema())
	good := Config{Network: testNet, Node: testKey(t, "a").Node()}
	for name, change := range map[string]func(*Config){
		"no network":           func(c *Config) { c.Network = "" },
		"no node":              func(c *Config) { c.Node = "" },
		"ttl beyond 24h":       func(c *Config) { c.TTL = 25 * time.Hour },
		"ttl too short":        func(c *Config) { c.TTL = time.Second },
		"refresh above ttl/2":  func(c *Config) { c.TTL, c.Refresh = time.Hour, 40*time.Minute },
		"negative node time":   func(c *Config) { c.NodeTimeout = -1 },
		"negative cache count": func(c *Config) { c.MaxKnown = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c, db, nil, nil, slog.Default()); shoal.AsError(err).Reason != "bad_config" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := New(good, db, nil, nil, slog.Default()); err != nil {
		t.Error(err)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"ocr", "translate", "transcribe", "summarise", "Echo", "echo-2", "pay"}
	for word, want := range map[string][]string{
		"ocr":       {"ocr"},
		"orc":       {"ocr"},
		"OCR":       {"ocr"},
		"translat":  {"translate"},
		"tarnslate": {"translate"},
		"trans":     {"transcribe", "translate"},
		"ehco":      {"Echo"},
		"summarize": {"summarise"},
		"zebra":     nil,
		"":          nil,
		"x":         nil,
	} {
		if got := Nearest(names, word); !slices.Equal(got, want) {
			t.Errorf("nearest to %q: got %v, want %v", word, got, want)
		}
	}
	if got := Nearest([]string{"aaa", "aab", "aac", "aad", "aaa"}, "aaa"); !slices.Equal(got, []string{"aaa", "aab", "aac"}) {
		t.Errorf("got %v", got)
	}
	if got := Nearest([]string{strings.Repeat("a", 1<<20)}, strings.Repeat("a", 1<<20)); got != nil {
		t.Error("huge words are compared")
	}
}

func TestOnceSharesAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFindCache()
		var asked, done atomic.Int32
		ask := func() error {
			asked.Add(1)
			time.Sleep(time.Second)
			return ErrUnknownAgent
		}
		for range 10 {
			go func() {
				if err := f.once(t.Context(), "x", ask); !errors.Is(err, ErrUnknownAgent) {
					t.Errorf("got %v", err)
				}
				done.Add(1)
			}()
			synctest.Wait()
		}
		time.Sleep(2 * time.Second)
		if asked.Load() != 1 || done.Load() != 10 {
			t.Errorf("asked %d times for %d answers, want 1 for 10", asked.Load(), done.Load())
		}

		// The one who asks gives up; another asks in its place.
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_ = f.once(ctx, "y", func() error { <-ctx.Done(); return ctx.Err() })
		}()
		synctest.Wait()
		again := make(chan error, 1)
		go func() { again <- f.once(t.Context(), "y", func() error { return nil }) }()
		synctest.Wait()
		cancel()
		if err := <-again; err != nil {
			t.Errorf("the second got %v", err)
		}
	})
}

func TestRegistryIsBounded(t *testing.T) {
	const most = 50
	r := newRegistry(most)
	now := time.Now()
	keep := testKey(t, "keep")
	add := func(name string, seq uint64) {
		key := testKey(t, name)
		raw := signCard(t, key, now, func(p *params) { p.Seq = seq }, "ocr", "only-"+strings.ReplaceAll(name, " ", "-"))
		c, err := openCard(raw, testNet, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.adopt(&c, digestOf(raw), key.Node(), false); err != nil {
			t.Fatal(err)
		}
	}
	add("keep", 1)
	for i := range 3 * most {
		add(fmt.Sprint("n ", i), 1)
		add(fmt.Sprint("n ", i), 2)
		r.get(keep.Agent()) // used all the time
	}
	if _, _, ok := r.get(keep.Agent()); !ok {
		t.Error("the card in use was thrown out")
	}
	size := 0
	for _, e := range r.agents {
		size += len(e.card.Raw)
	}
	if len(r.agents) != most || len(r.digests) != most || r.recent.Len() != most ||
		len(r.skills) != most+1 || len(r.skills["ocr"]) != most || r.bytes != size {
		t.Errorf("%d agents, %d digests, %d in order, %d skills, %d with ocr, %d of %d bytes", len(r.agents),
			len(r.digests), r.recent.Len(), len(r.skills), len(r.skills["ocr"]), r.bytes, size)
	}
	r.sweep(now.Add(2 * time.Hour))
	if len(r.agents)+len(r.skills)+r.bytes != 0 {
		t.Errorf("after all expired: %d agents, %d skills, %d bytes", len(r.agents), len(r.skills), r.bytes)
	}
}
