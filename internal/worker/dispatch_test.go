package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

func TestReserveTakesTheFreestThenTheOldest(t *testing.T) {
	w := newWorld(t)
	old := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Concurrency: 2})
	young := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Concurrency: 2})
	big := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr", "sum"), Concurrency: 3})
	bob := old.Agent().ID

	names := map[*Session]string{old: "old", young: "young", big: "big"}
	var got []string
	for i := range 8 {
		id := fmt.Sprint("t", i)
		if !w.Reserve(key(id), bob, "ocr") {
			got = append(got, "none")
			continue
		}
		got = append(got, names[w.held[key(id)].session])
	}
	want := []string{"big", "old", "young", "big", "old", "young", "big", "none"}
	if !slices.Equal(got, want) {
		t.Errorf("sessions chosen: got %v, want %v", got, want)
	}
	w.Release(key("t0"), bob)
	if w.Reserve(key("x"), bob, "translate") || !w.Reserve(key("x"), bob, "sum") {
		t.Error("a task must go to a session that offers its skill, and only there")
	}
	if w.Reserve(key("y"), "did:key:nobody", "ocr") {
		t.Error("reserved for an agent that is not hosted")
	}
}

func TestReserveIsIdempotent(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	for range 3 {
		if !w.Reserve(key("a"), bob, "ocr") {
			t.Fatal("a task that holds a slot must be reserved again")
		}
	}
	if w.Reserve(key("b"), bob, "ocr") {
		t.Fatal("one slot held two tasks")
	}
	w.Start(shoal.Assignment{Key: key("a"), Agent: bob, Attempt: 1})
	w.assigned(s, "a")
	w.must(w.say(s, "a", a2a.TaskStateCompleted))
	if !w.Reserve(key("b"), bob, "ocr") {
		t.Fatal("the slot of an ended task is not free")
	}
}

func TestSameTaskForAnotherAgentIsNotReserved(t *testing.T) {
	w := newWorld(t)
	bob := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	eve := w.attach(AttachSpec{Agent: "eve", Skills: skills("ocr")})
	if !w.Reserve(key("a"), bob.Agent().ID, "ocr") || w.Reserve(key("a"), eve.Agent().ID, "ocr") {
		t.Error("a task of one agent was reserved for another")
	}
	w.Release(key("a"), eve.Agent().ID)
	if w.Reserve(key("b"), bob.Agent().ID, "ocr") {
		t.Error("a slot was released by another agent's name")
	}
}

func TestLostSessionGivesEachTaskBackOnce(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Concurrency: 3})
	bob := s.Agent().ID
	w.start("running", bob, "ocr", 1)
	w.start("parked", bob, "ocr", 1)
	w.must(w.say(s, "parked", a2a.TaskStateInputRequired))
	w.Reserve(key("committed"), bob, "ocr")
	w.Reserve(key("rolled back"), bob, "ocr")
	s.Close()
	s.Close()

	lost := w.engine.takeLost()
	slices.SortFunc(lost, func(a, b shoal.TaskKey) int { return len(a.ID) - len(b.ID) })
	if want := []shoal.TaskKey{key("parked"), key("running")}; !slices.Equal(lost, want) {
		t.Errorf("lost with the session: got %v, want %v", lost, want)
	}
	w.Start(shoal.Assignment{Key: key("committed"), Agent: bob, Attempt: 1})
	w.Release(key("rolled back"), bob)
	if lost, want := w.engine.takeLost(), []shoal.TaskKey{key("committed")}; !slices.Equal(lost, want) {
		t.Errorf("lost at start: got %v, want %v", lost, want)
	}
	if w.Tell(key("parked"), bob, a2a.NewMessage(a2a.MessageRoleUser), "") {
		t.Error("an answer was taken for a session that is gone")
	}
	if len(w.held) != 0 {
		t.Errorf("%d tasks are still bound", len(w.held))
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("Next of a closed session: %v", err)
	}
}

func TestOrphanedReservationMovesToAnotherSession(t *testing.T) {
	w := newWorld(t)
	gone := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := gone.Agent().ID
	w.Reserve(key("a"), bob, "ocr")
	gone.Close()
	here := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	if !w.start("a", bob, "ocr", 1) {
		t.Fatal("not reserved again")
	}
	w.assigned(here, "a")
	if lost := w.engine.takeLost(); len(lost) > 0 {
		t.Errorf("lost %v although it was never started", lost)
	}
}

func TestReportsThatComeTooLateAreRefused(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Concurrency: 2})
	other := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.start("a", bob, "ocr", 7)
	w.assigned(s, "a")
	w.Reserve(key("b"), bob, "ocr")

	report := func(session string, r shoal.Report) error {
		_, err := w.Report(t.Context(), session, r)
		return err
	}
	done := shoal.Report{Key: key("a"), State: a2a.TaskStateCompleted}
	chunk := shoal.Report{Key: key("a"), Chunk: &shoal.Chunk{Text: "x"}}
	wantError(t, report("", done), shoal.NotFound, "unknown_session")
	wantError(t, report("nonsense", chunk), shoal.NotFound, "unknown_session")
	wantError(t, report(other.ID(), done), shoal.Denied, "not_assigned")
	wantError(t, report(s.ID(), shoal.Report{Key: key("b"), State: a2a.TaskStateCompleted}), shoal.Denied, "not_assigned")
	wantError(t, report(s.ID(), shoal.Report{Key: key("c"), State: a2a.TaskStateCompleted}), shoal.Denied, "not_assigned")
	wantError(t, report(s.ID(), shoal.Report{State: a2a.TaskStateCompleted}), shoal.Denied, "not_assigned")
	w.must(report(other.ID(), chunk)) // dropped
	if len(w.engine.reports) != 0 {
		t.Fatalf("the engine got %+v", w.engine.reports)
	}

	w.must(report(s.ID(), shoal.Report{Key: shoal.TaskKey{ID: "a"}, Agent: "forged", Attempt: 99, State: a2a.TaskStateWorking}))
	w.must(report(s.ID(), done))
	wantError(t, report(s.ID(), done), shoal.Denied, "not_assigned")
	w.must(report(s.ID(), chunk)) // late: dropped
	for _, r := range w.engine.reports {
		if r.Key != key("a") || r.Agent != bob || r.Attempt != 7 {
			t.Errorf("the engine got %+v, want the key, agent and attempt of the assignment", r)
		}
	}
	if len(w.engine.reports) != 2 {
		t.Errorf("the engine got %d reports, want 2", len(w.engine.reports))
	}

	s.Close()
	wantError(t, report(s.ID(), done), shoal.NotFound, "unknown_session")
}

func TestChunkErrorsStayInside(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	w.start("a", s.Agent().ID, "ocr", 1)
	w.engine.fail = errors.New("broken")
	if _, err := w.Report(t.Context(), s.ID(), shoal.Report{Key: key("a"), Chunk: &shoal.Chunk{Text: "x"}}); err != nil {
		t.Errorf("chunk: %v", err)
	}
	if err := w.say(s, "a", a2a.TaskStateCompleted); err == nil {
		t.Error("the engine's error was lost")
	}
}

func TestAskingBackFreesTheSlotAndKeepsTheTask(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.start("a", bob, "ocr", 1)
	w.assigned(s, "a")
	w.engine.takeReady()
	w.must(w.say(s, "a", a2a.TaskStateInputRequired))
	if got := w.engine.takeReady(); !slices.Equal(got, []shoal.AgentID{bob}) {
		t.Errorf("Ready after asking back: got %v", got)
	}
	if !w.start("b", bob, "ocr", 1) {
		t.Fatal("the slot is not free while the worker waits for an answer")
	}
	w.assigned(s, "b")

	answer := a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("blue"))
	if !w.Tell(key("a"), bob, answer, "") {
		t.Fatal("the answer was not taken")
	}
	if e := w.next(s); e.Input == nil || e.Input.Key != key("a") || e.Input.Message != answer {
		t.Fatalf("got %+v, want the answer", e)
	}
	w.must(w.say(s, "b", a2a.TaskStateCompleted))
	if w.Reserve(key("c"), bob, "ocr") {
		t.Error("the resumed task holds no slot")
	}
	w.must(w.say(s, "a", a2a.TaskStateCompleted))
	if !w.Reserve(key("c"), bob, "ocr") {
		t.Error("the slot of the resumed task is not free after its end")
	}
}

func TestRefusedQuestionOfAnEndedTaskLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.start("a", bob, "ocr", 1)
	// The deadline passes while the question is on its way to the engine.
	w.cfg.Report = func(context.Context, shoal.Report) (uint64, error) {
		w.Release(key("a"), bob)
		return 0, errors.New("the task has ended")
	}
	if err := w.say(s, "a", a2a.TaskStateInputRequired); err == nil {
		t.Fatal("the refusal was lost")
	}
	if len(w.held) != 0 || len(s.held) != 0 || s.used != 0 {
		t.Errorf("left over: %d tasks, %d slots", len(w.held), s.used)
	}
}

func TestEndOfAParkedTaskForgetsIt(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	w.start("a", bob, "ocr", 1)
	w.must(w.say(s, "a", a2a.TaskStateAuthRequired))
	w.Release(key("a"), bob) // cancelled, or too late
	if len(w.held) != 0 || s.used != 0 {
		t.Errorf("left over: %d tasks, %d slots", len(w.held), s.used)
	}
	s.Close()
	if lost := w.engine.takeLost(); len(lost) > 0 {
		t.Errorf("lost %v, which had ended", lost)
	}
}

func TestCancelIsToldOnce(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	if w.Tell(key("a"), bob, nil, "asked") {
		t.Error("told of a task that nobody holds")
	}
	w.Reserve(key("a"), bob, "ocr")
	if w.Tell(key("a"), bob, nil, "asked") {
		t.Error("told of a task before its assignment")
	}
	w.start("a", bob, "ocr", 1)
	w.assigned(s, "a")
	for range 1000 {
		if !w.Tell(key("a"), bob, nil, "asked") {
			t.Fatal("not told")
		}
	}
	if e := w.next(s); e.Cancel == nil || *e.Cancel != (Cancel{key("a"), "asked"}) {
		t.Errorf("got %+v, want the cancel", e)
	}
	if n := unread(s); n != 0 {
		t.Errorf("%d more events after the cancel", n)
	}
}

func TestWorkerThatDoesNotReadIsLost(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	n := 0
	for ; n < 1000 && w.start(fmt.Sprint("t", n), bob, "ocr", 1); n++ {
		if _, attached := w.sessions[s.ID()]; !attached {
			break
		}
		w.Release(key(fmt.Sprint("t", n)), bob) // the deadline, each time
	}
	if n < 60 || n > 100 {
		t.Errorf("lost after %d unread events, want about 64", n)
	}
	if lost := w.engine.takeLost(); len(lost) != 1 || lost[0] != key(fmt.Sprint("t", n)) {
		t.Errorf("lost %v, want the last one", lost)
	}
	_, err := s.Next(t.Context())
	wantError(t, err, shoal.Exhausted, "worker_too_slow")
}

func TestManyAnswersAtOnceAreNoOverflow(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	bob := s.Agent().ID
	const n = 500
	for i := range n {
		id := fmt.Sprint("t", i)
		w.start(id, bob, "ocr", 1)
		w.assigned(s, id)
		w.must(w.say(s, id, a2a.TaskStateInputRequired))
	}
	for i := range n {
		if !w.Tell(key(fmt.Sprint("t", i)), bob, a2a.NewMessage(a2a.MessageRoleUser), "") {
			t.Fatalf("answer %d was not taken", i)
		}
	}
	for range n {
		if w.next(s).Input == nil {
			t.Fatal("an answer is missing")
		}
	}
}

func TestSilentWorkerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Heartbeat: time.Second})
		quiet := w.attach(AttachSpec{Agent: "eve", Skills: skills("ocr")})
		w.start("a", s.Agent().ID, "ocr", 1)
		w.assigned(s, "a")
		for range 10 {
			time.Sleep(time.Second)
			w.must(w.Heartbeat(s.ID()))
			time.Sleep(time.Second)
			w.must(w.say(s, "a", a2a.TaskStateWorking))
		}
		begin := time.Now()
		_, err := s.Next(t.Context())
		wantError(t, err, shoal.Timeout, "heartbeat_missed")
		if d := time.Since(begin); d != 1500*time.Millisecond {
			t.Errorf("lost after %v of silence, want 1.5s", d)
		}
		synctest.Wait()
		if lost := w.engine.takeLost(); !slices.Equal(lost, []shoal.TaskKey{key("a")}) {
			t.Errorf("lost %v, want a", lost)
		}
		wantError(t, w.Heartbeat(s.ID()), shoal.NotFound, "unknown_session")
		time.Sleep(24 * time.Hour)
		w.must(w.Heartbeat(quiet.ID())) // it promised nothing
		w.db.Close()
	})
}

func TestRolledBackSlotIsAnnouncedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.run()
		s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr"), Concurrency: 2})
		bob := s.Agent().ID
		w.engine.takeReady()
		w.Reserve(key("a"), bob, "ocr")
		w.Release(key("a"), bob)
		time.Sleep(rollbackWait - time.Millisecond)
		if got := w.engine.takeReady(); len(got) != 0 {
			t.Errorf("announced at once: %v", got)
		}
		time.Sleep(2 * time.Millisecond)
		if got := w.engine.takeReady(); !slices.Equal(got, []shoal.AgentID{bob}) {
			t.Errorf("Ready: got %v, want bob once", got)
		}
		stop()
		w.db.Close()
	})
}

func TestStopEndsSessionsWithoutLosingTasks(t *testing.T) {
	w := newWorld(t)
	s := w.attach(AttachSpec{Agent: "bob", Skills: skills("ocr")})
	w.start("a", s.Agent().ID, "ocr", 1)
	w.run()()
	_, err := s.Next(t.Context())
	wantError(t, err, shoal.Unavailable, "daemon_stopping")
	s.Close()
	if lost := w.engine.takeLost(); len(lost) != 0 {
		t.Errorf("lost %v; the next start settles that", lost)
	}
	_, err = w.Attach(t.Context(), AttachSpec{Agent: "bob"})
	wantError(t, err, shoal.Unavailable, "daemon_stopping")
}

// TestRandomOperations drives the pool like an engine and workers that make every kind
// of mistake, and checks after each step what must always hold.
func TestRandomOperations(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	var sessions []*Session
	live := map[shoal.TaskKey]int{} // started and not ended → attempt
	bob, _ := w.Lookup("")
	n := 0
	attach := func() {
		sessions = append(sessions, w.attach(AttachSpec{Skills: skills("ocr"), Concurrency: 1 + rng.IntN(4)}))
	}
	attach()
	var ids []string
	for step := range 20_000 {
		id := fmt.Sprint("t", n)
		if len(ids) > 0 && rng.IntN(3) > 0 {
			id = ids[rng.IntN(len(ids))]
		}
		var s *Session
		if len(sessions) > 0 {
			s = sessions[rng.IntN(len(sessions))]
		}
		switch op := rng.IntN(12); {
		case op < 4:
			if live[key(id)] == 0 && w.Reserve(key(id), bob, "ocr") {
				if rng.IntN(5) == 0 {
					w.Release(key(id), bob)
					break
				}
				if rng.IntN(20) == 0 && s != nil {
					s.Close()
					sessions = slices.DeleteFunc(sessions, func(o *Session) bool { return o == s })
				}
				live[key(id)] = step + 1
				ids = append(ids, id)
				n++
				w.Start(shoal.Assignment{Key: key(id), Agent: bob, Attempt: step + 1})
			}
		case op < 7 && s != nil:
			state := []a2a.TaskState{
				a2a.TaskStateCompleted, a2a.TaskStateInputRequired, a2a.TaskStateWorking,
			}[rng.IntN(3)]
			h := w.held[key(id)]
			holds := h != nil && h.session == s && h.stage != reserved
			err := w.say(s, id, state)
			if (err == nil) != holds {
				t.Fatalf("step %d: report on %s by a session that holds it: %v; error %v", step, id, holds, err)
			}
			if err == nil && state.Terminal() {
				delete(live, key(id))
			}
		case op == 7:
			w.Tell(key(id), bob, a2a.NewMessage(a2a.MessageRoleUser), "")
		case op == 8:
			w.Tell(key(id), bob, nil, "asked")
		case op == 9 && s != nil:
			for unread(s) > 0 {
				w.next(s)
			}
		case op == 10 && rng.IntN(10) == 0 && s != nil:
			s.Close()
			sessions = slices.DeleteFunc(sessions, func(o *Session) bool { return o == s })
		case op == 11 && len(sessions) < 5:
			attach()
		}
		for _, k := range w.engine.takeLost() {
			if live[k] == 0 {
				t.Fatalf("step %d: %v was lost, but was not running (or lost twice)", step, k)
			}
			delete(live, k)
		}
		sessions = slices.DeleteFunc(sessions, func(o *Session) bool { return w.sessions[o.id] != o })
		checkPool(t, w, step, live)
	}
}

func checkPool(t *testing.T, w *world, step int, live map[shoal.TaskKey]int) {
	t.Helper()
	bound := 0
	for _, s := range w.sessions {
		used := 0
		for k, h := range s.held {
			if w.held[k] != h || h.session != s {
				t.Fatalf("step %d: %v is bound to another session", step, k)
			}
			if h.stage != parked {
				used++
			}
			if h.stage == running && h.attempt != live[k] {
				t.Fatalf("step %d: %v runs as attempt %d, want %d", step, k, h.attempt, live[k])
			}
			if live[k] == 0 {
				t.Fatalf("step %d: %v is held but has ended", step, k)
			}
		}
		if used != s.used {
			t.Fatalf("step %d: %d slots counted, %d tasks hold one", step, s.used, used)
		}
		bound += len(s.held)
	}
	if bound != len(w.held) {
		t.Fatalf("step %d: %d tasks in the pool, %d in sessions", step, len(w.held), bound)
	}
	for k := range live {
		if w.held[k] == nil {
			t.Fatalf("step %d: %v runs, but nobody holds it and it was not lost", step, k)
		}
	}
}

// TestConcurrencyIsNeverExceeded counts, at the worker, what it was given and has not
// answered, while many goroutines dispatch and sessions come and go.
func TestConcurrencyIsNeverExceeded(t *testing.T) {
	w := newWorld(t)
	bob, _ := w.Lookup("")
	const workers, slots, tasks = 4, 3, 2000
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done sync.Map
	serve := func(life int) {
		s, err := w.Attach(ctx, AttachSpec{Skills: skills("ocr"), Concurrency: slots})
		if err != nil {
			return
		}
		defer s.Close()
		var open []shoal.TaskKey
		for range life {
			e, err := s.Next(ctx)
			if err != nil {
				return
			}
			if open = append(open, e.Assignment.Key); len(open) > slots {
				t.Errorf("a worker of %d slots was given %d tasks", slots, len(open))
			}
			if len(open) == slots || rand.IntN(2) == 0 {
				_, err := w.Report(ctx, s.ID(), shoal.Report{Key: open[0], State: a2a.TaskStateCompleted})
				if err != nil {
					t.Errorf("report: %v", err)
				}
				done.Store(open[0], true)
				open = open[1:]
			}
			if unread(s) == 0 { // nothing may be left half done: nobody else will come
				for _, k := range open {
					w.Report(ctx, s.ID(), shoal.Report{Key: k, State: a2a.TaskStateCompleted})
					done.Store(k, true)
				}
				open = nil
			}
		}
	}
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				serve(1 + rand.IntN(200))
			}
		})
	}
	var dispatchers sync.WaitGroup
	for d := range 4 {
		dispatchers.Go(func() {
			for i := range tasks / 4 {
				id := fmt.Sprintf("t%d-%d", d, i)
				for attempt := 1; ; attempt++ {
					if !w.start(id, bob, "ocr", attempt) {
						if ctx.Err() != nil {
							return
						}
						time.Sleep(10 * time.Microsecond)
						continue
					}
					break
				}
			}
		})
	}
	dispatchers.Wait()
	cancel()
	wg.Wait()
	finished := 0
	done.Range(func(any, any) bool { finished++; return true })
	lost := map[shoal.TaskKey]int{}
	for _, k := range w.engine.takeLost() {
		if lost[k]++; lost[k] > 1 {
			t.Errorf("%v lost twice", k)
		}
	}
	if finished+len(lost) != tasks || len(w.held) != 0 {
		t.Errorf("%d finished and %d lost of %d; %d still held", finished, len(lost), tasks, len(w.held))
	}
	t.Logf("%d finished, %d lost with their worker", finished, len(lost))
}

func unread(s *Session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}
