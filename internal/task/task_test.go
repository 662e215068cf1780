package task

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

var echo = shoal.Skill{ID: "echo"}

func pair(t testing.TB, skills ...shoal.Skill) (asker, doer *testNode) {
	w := newWorld(t)
	return w.node(1), w.node(2, skills...)
}

func TestStraightLine(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	sent := asker.submit(t, Request{To: doer.agent(), Skill: "echo", Message: text("ping")})
	if sent.State != a2a.TaskStateSubmitted {
		t.Fatalf("state after submit: %s", sent.State)
	}
	a := <-doer.workers.started
	if got := a.Message.Parts[0].Text(); got != "ping" || a.Attempt != 1 || a.Key != sent.Key {
		t.Fatalf("assignment: %q attempt %d key %v", got, a.Attempt, a.Key)
	}
	doer.report(t, a, a2a.TaskStateCompleted, artifact("answer", "pong"))
	done := asker.wait(t, sent.Key.ID)
	if done.State != a2a.TaskStateCompleted || len(done.Artifacts) != 1 || done.Artifacts[0].Parts[0].Text() != "pong" {
		t.Fatalf("asker's task: %s %v", done.State, done.Artifacts)
	}
	ours := countersigned(t, asker, Ref{ID: sent.Key.ID, Role: Asked})
	theirs := countersigned(t, doer, Ref{ID: sent.Key.ID, Role: Doing})
	for _, r := range []SignedReceipt{ours, theirs} {
		if !r.InputMatches || !r.OutputMatches || r.State != a2a.TaskStateCompleted || r.Doer != doer.agent() || r.Key != sent.Key {
			t.Errorf("receipt: %+v", r)
		}
		if err := identity.Verify(doer.key.Public(), identity.DomainReceipt, "test", r.Body, r.DoerSignature); err != nil {
			t.Error("doer's signature:", err)
		}
		if err := identity.Verify(asker.key.Public(), identity.DomainReceipt, "test", r.Body, r.AskerSignature); err != nil {
			t.Error("asker's signature:", err)
		}
	}
	if !bytes.Equal(ours.Body, theirs.Body) {
		t.Error("the two sides hold different receipts")
	}
}

func TestDoerChoosesTheSkill(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent()}).Key.ID
	doer.report(t, <-doer.workers.started, a2a.TaskStateCompleted)
	asker.wait(t, id)
	for _, n := range []*testNode{asker, doer} {
		if got, err := n.Get(context.Background(), Ref{ID: id}); got.Skill != "echo" || err != nil {
			t.Errorf("skill %q, %v", got.Skill, err)
		}
	}
	if r := countersigned(t, asker, Ref{ID: id, Role: Asked}); r.Skill != "echo" {
		t.Errorf("receipt for skill %q", r.Skill)
	}
}

func TestTaskWaitsForAWorker(t *testing.T) {
	asker, doer := pair(t, echo)
	var ids []a2a.TaskID
	for range 200 {
		ids = append(ids, asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID)
	}
	doer.attach(1)
	for i := range ids {
		a := <-doer.workers.started
		if a.Key.ID != ids[i] {
			t.Fatalf("task %d started out of order: %s", i, a.Key.ID)
		}
		doer.report(t, a, a2a.TaskStateCompleted)
	}
	for _, id := range ids {
		if got := asker.wait(t, id); got.State != a2a.TaskStateCompleted {
			t.Fatalf("%s: %s", id, got.State)
		}
	}
}

func TestInputRequiredRoundTrip(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	a := <-doer.workers.started
	_, err := doer.Report(context.Background(), shoal.Report{
		Key: a.Key, Agent: a.Agent, Attempt: 1,
		State: a2a.TaskStateInputRequired, Message: a2a.NewMessage(a2a.MessageRoleAgent, a2a.NewTextPart("which size?")),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := asker.wait(t, id)
	if got.State != a2a.TaskStateInputRequired || got.StatusMessage.Parts[0].Text() != "which size?" {
		t.Fatalf("%s %v", got.State, got.StatusMessage)
	}
	for range 2 { // the second is a retry
		if got, err = asker.Reply(context.Background(), Ref{ID: id}, text("42"), "r1"); err != nil || got.State != a2a.TaskStateWorking {
			t.Fatalf("reply: %v %v", got.State, err)
		}
	}
	if in := <-doer.workers.told; in.input == nil || in.input.Parts[0].Text() != "42" {
		t.Fatalf("worker was told %+v", in)
	}
	doer.report(t, a, a2a.TaskStateCompleted, artifact("x", "done"))
	got = asker.wait(t, id)
	var turns []string
	for _, m := range got.History {
		turns = append(turns, m.Parts[0].Text())
	}
	if want := "hello|which size?|42"; strings.Join(turns, "|") != want || got.State != a2a.TaskStateCompleted {
		t.Fatalf("history %q, want %q; %s", turns, want, got.State)
	}
	if len(doer.workers.told) != 0 {
		t.Error("the retried reply reached the worker twice")
	}
	if _, err := asker.Reply(context.Background(), Ref{ID: id}, text("late"), ""); !errors.Is(err, ErrTerminal) {
		t.Errorf("reply to an ended task: %v", err)
	}
}

// A worker that vanished while the task waited for input loses nothing: the next one
// gets the conversation.
func TestReplyAfterWorkerLossStartsNextAttempt(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	a := <-doer.workers.started
	doer.report(t, a, a2a.TaskStateInputRequired)
	asker.wait(t, id)
	doer.workers.mu.Lock()
	doer.workers.gone = true
	doer.workers.mu.Unlock()
	doer.Lost([]shoal.TaskKey{a.Key}, a.Agent)
	if _, err := asker.Reply(context.Background(), Ref{ID: id}, text("more"), ""); err != nil {
		t.Fatal(err)
	}
	b := <-doer.workers.started
	if b.Attempt != 2 || b.Message.Parts[0].Text() != "more" || len(b.History) != 1 || b.History[0].Parts[0].Text() != "hello" {
		t.Fatalf("second attempt: %+v", b)
	}
	doer.report(t, b, a2a.TaskStateCompleted)
	if got := asker.wait(t, id); got.State != a2a.TaskStateCompleted || got.Attempt != 2 {
		t.Fatalf("%s attempt %d", got.State, got.Attempt)
	}
}

func TestLostWorker(t *testing.T) {
	for _, tc := range []struct {
		name       string
		idempotent bool
		want       a2a.TaskState
		reason     string
	}{
		{"fails the task", false, a2a.TaskStateFailed, ReasonWorkerLost},
		{"hands an idempotent task over", true, a2a.TaskStateCompleted, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asker, doer := pair(t, shoal.Skill{ID: "echo", Idempotent: tc.idempotent})
			doer.attach(1)
			id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
			a := <-doer.workers.started
			doer.workers.Release(a.Key, a.Agent)
			doer.Lost([]shoal.TaskKey{a.Key}, a.Agent)
			if tc.idempotent {
				b := <-doer.workers.started
				if b.Attempt != 2 {
					t.Fatalf("attempt %d, want 2", b.Attempt)
				}
				if _, err := doer.Report(context.Background(), shoal.Report{Key: a.Key, Agent: a.Agent, Attempt: 1, State: a2a.TaskStateCompleted}); !errors.Is(err, ErrIllegal) {
					t.Errorf("late report of attempt 1: %v", err)
				}
				doer.report(t, b, a2a.TaskStateCompleted)
			}
			if got := asker.wait(t, id); got.State != tc.want || got.Reason != tc.reason {
				t.Fatalf("%s %q, want %s %q", got.State, got.Reason, tc.want, tc.reason)
			}
		})
	}
}

func TestCancelReachesTheWorker(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	a := <-doer.workers.started
	for range 2 {
		if _, err := asker.Cancel(context.Background(), Ref{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if c := <-doer.workers.told; c.cancel == "" {
		t.Fatalf("worker was told %+v", c)
	}
	doer.report(t, a, a2a.TaskStateCanceled)
	if got := asker.wait(t, id); got.State != a2a.TaskStateCanceled {
		t.Fatal(got.State)
	}
	if _, err := asker.Cancel(context.Background(), Ref{ID: id}); !errors.Is(err, ErrTerminal) {
		t.Errorf("cancel of an ended task: %v", err)
	}
}

func TestCancelOfWaitingTaskEndsIt(t *testing.T) {
	asker, doer := pair(t, echo)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	if _, err := asker.Cancel(context.Background(), Ref{ID: id}); err != nil {
		t.Fatal(err)
	}
	if got := asker.wait(t, id); got.State != a2a.TaskStateCanceled {
		t.Fatal(got.State)
	}
	doer.attach(1)
	other := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	if a := <-doer.workers.started; a.Key.ID != other {
		t.Fatalf("the cancelled task was started")
	}
}

func TestRefusedOfferIsRejectedWithItsReason(t *testing.T) {
	asker, doer := pair(t, echo)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "nope"}).Key.ID
	if got := asker.wait(t, id); got.State != a2a.TaskStateRejected || got.Reason != "unknown_skill" {
		t.Fatalf("%s %q", got.State, got.Reason)
	}
}

// A worker's reason code is for the asker's scripts: it travels beside the state, in both
// classes. What is no code stays in the message.
func TestWorkersReasonReachesTheAsker(t *testing.T) {
	for code, want := range map[string]string{
		"not_today": "not_today", "": "", "Not Today": "", "x\n": "", strings.Repeat("x", 65): "",
	} {
		for _, class := range []shoal.Class{shoal.Durable, shoal.Live} {
			asker, doer := pair(t, echo)
			doer.attach(1)
			go func() {
				a := <-doer.workers.started
				m := a2a.NewMessage(a2a.MessageRoleAgent, a2a.NewTextPart("no"))
				m.SetMeta("reason", code)
				_, err := doer.Report(context.Background(), shoal.Report{Key: a.Key, Agent: a.Agent, Attempt: 1, State: a2a.TaskStateRejected, Message: m})
				if err != nil {
					t.Error(err)
				}
			}()
			got := asker.submit(t, Request{To: doer.agent(), Skill: "echo", Class: class})
			if class == shoal.Durable {
				got = asker.wait(t, got.Key.ID)
			}
			if got.State != a2a.TaskStateRejected || got.Reason != want {
				t.Errorf("%v: code %.10q arrives as %s %q, want %q", class, code, got.State, got.Reason, want)
			}
		}
	}
}

func TestDeadlineEndsTheTask(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo", Timeout: 30 * time.Millisecond}).Key.ID
	<-doer.workers.started
	if got := asker.wait(t, id); got.State != a2a.TaskStateFailed || got.Reason != ReasonDeadline {
		t.Fatalf("%s %q", got.State, got.Reason)
	}
	if c := <-doer.workers.told; c.cancel == "" {
		t.Error("the worker was not told")
	}
}

func TestIdempotencyKey(t *testing.T) {
	asker, doer := pair(t, echo)
	req := Request{From: asker.agent(), To: doer.agent(), Skill: "echo", Message: text("x"), IdempotencyKey: "k"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, ids := 0, map[a2a.TaskID]bool{}
	for range 50 {
		wg.Go(func() {
			task, created, err := asker.Submit(context.Background(), req)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			ids[task.Key.ID] = true
			if created {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 || len(ids) != 1 {
		t.Fatalf("50 submits with one key made %d tasks, %d ids", made, len(ids))
	}
	req.Message = text("y")
	if _, _, err := asker.Submit(context.Background(), req); !errors.Is(err, ErrKeyReused) {
		t.Errorf("other content under the key: %v", err)
	}
}

func TestLiveTask(t *testing.T) {
	asker, doer := pair(t, echo)
	req := Request{From: asker.agent(), To: doer.agent(), Skill: "echo", Message: text("ping"), Class: shoal.Live}
	if _, _, err := asker.Submit(context.Background(), req); !errors.Is(err, ErrBusy) {
		t.Fatalf("without a worker: %v", err)
	}
	doer.attach(1)
	var wg sync.WaitGroup
	wg.Go(func() {
		a := <-doer.workers.started
		doer.report(t, a, a2a.TaskStateCompleted, artifact("answer", "pong"))
	})
	got, created, err := asker.Submit(context.Background(), req)
	wg.Wait()
	if err != nil || !created || got.State != a2a.TaskStateCompleted || got.Artifacts[0].Parts[0].Text() != "pong" {
		t.Fatalf("%+v %v %v", got, created, err)
	}
	asker.live.wg.Wait()
	doer.live.wg.Wait()
	ours := countersigned(t, asker, Ref{ID: got.Key.ID, Role: Asked})
	theirs := countersigned(t, doer, Ref{ID: got.Key.ID, Role: Doing})
	if !ours.InputMatches || !ours.OutputMatches || !theirs.OutputMatches || ours.Class != shoal.Live {
		t.Errorf("receipts: %+v %+v", ours, theirs)
	}
}

func TestLiveTaskThatAsksBackGoesOnDurably(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	var a shoal.Assignment
	var wg sync.WaitGroup
	wg.Go(func() {
		a = <-doer.workers.started
		doer.report(t, a, a2a.TaskStateInputRequired)
	})
	got, _, err := asker.Submit(context.Background(), Request{From: asker.agent(), To: doer.agent(), Skill: "echo", Message: text("ping"), Class: shoal.Live})
	wg.Wait()
	if err != nil || got.State != a2a.TaskStateInputRequired {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := asker.Reply(context.Background(), Ref{ID: got.Key.ID}, text("go on"), ""); err != nil {
		t.Fatal(err)
	}
	if in := <-doer.workers.told; in.input == nil {
		t.Fatalf("told %+v", in)
	}
	doer.report(t, a, a2a.TaskStateCompleted, artifact("answer", "pong"))
	if got := asker.wait(t, got.Key.ID); got.State != a2a.TaskStateCompleted || len(got.Artifacts) != 1 {
		t.Fatalf("%s %v", got.State, got.Artifacts)
	}
	if r := countersigned(t, asker, Ref{ID: got.Key.ID, Role: Asked}); !r.OutputMatches {
		t.Errorf("receipt: %+v", r)
	}
}

func TestWatchStreamsChunksAndEvents(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	id := asker.submit(t, Request{To: doer.agent(), Skill: "echo"}).Key.ID
	a := <-doer.workers.started

	seen := make(chan Event, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := asker.Watch(context.Background(), Ref{ID: id}, 0, func(ev Event) error { seen <- ev; return nil })
		if err != nil {
			t.Error(err)
		}
		close(seen)
	})
	var off int64
	for _, s := range []string{"one ", "two ", "three"} {
		c := shoal.Chunk{ArtifactID: "answer", Offset: off, Text: s}
		off += int64(len(s))
		if _, err := doer.Report(context.Background(), shoal.Report{Key: a.Key, Agent: a.Agent, Attempt: 1, Chunk: &c}); err != nil {
			t.Fatal(err)
		}
	}
	var chunks string
	var cursor uint64
	for chunks != "one two three" {
		ev := <-seen
		if ev.Chunk != nil {
			chunks += ev.Chunk.Text
		} else if ev.Cursor < cursor {
			t.Errorf("cursor went back from %d to %d", cursor, ev.Cursor)
		}
		cursor = max(cursor, ev.Cursor)
	}
	doer.report(t, a, a2a.TaskStateCompleted, artifact("answer", "one two three"))
	var final *Task
	var states []a2a.TaskState
	for ev := range seen {
		if ev.Status != nil {
			states = append(states, ev.Status.State)
		}
		if ev.Final != nil {
			final = ev.Final
		}
	}
	wg.Wait()
	if final == nil || final.State != a2a.TaskStateCompleted || states[len(states)-1] != a2a.TaskStateCompleted {
		t.Fatalf("final %+v states %v", final, states)
	}
	// Resuming at the end brings just the final event; beyond it is an error.
	n := 0
	err := asker.Watch(context.Background(), Ref{ID: id}, final.Cursor, func(Event) error { n++; return nil })
	if err != nil || n != 1 {
		t.Errorf("resumed watch: %d events, %v", n, err)
	}
	if err := asker.Watch(context.Background(), Ref{ID: id}, final.Cursor+1, func(Event) error { return nil }); shoal.AsError(err).Reason != "bad_cursor" {
		t.Errorf("cursor beyond the end: %v", err)
	}
}
