package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func echo(_ context.Context, t *Task, w *Writer) error {
	_, err := w.WriteString(t.Text())
	return err
}

func TestEcho(t *testing.T) {
	d := newDaemon(t)
	ready := make(chan string, 1)
	r := d.run(Config{
		Name: "bob", Description: "echoes", Concurrency: 3, Ephemeral: true, OnReady: func(did string) { ready <- did },
		Skills: []shoal.Skill{{ID: "echo", Name: "E", Tags: []string{"t"}, Examples: []string{"e"}, Idempotent: true}},
	}, echo)
	a := recv(t, d.attached, "the agent")
	if did := recv(t, ready, "OnReady"); did != doer {
		t.Errorf("OnReady got %q", did)
	}
	req := a.req
	if req.GetAgent() != "bob" || req.GetDescription() != "echoes" || req.GetConcurrency() != 3 || !req.GetEphemeral() ||
		len(req.GetSkills()) != 1 || !req.GetSkills()[0].GetIdempotent() || req.GetSkills()[0].GetTags()[0] != "t" {
		t.Errorf("attached with %v", req)
	}
	a.events <- &shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Heartbeat{Heartbeat: true}}
	a.events <- assign("t1", "hello")
	rep := wantReport(t, d, "t1", a2a.TaskStateCompleted, "hello")
	if rep.GetSession() != a.id || rep.GetArtifacts()[0].GetArtifactId() != AnswerID {
		t.Errorf("reported %v", rep)
	}
	if err := r.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	recv(t, a.gone, "the session to end")
}

func TestHandlerSeesTheTask(t *testing.T) {
	d := newDaemon(t)
	got := make(chan *Task, 1)
	d.run(Config{}, func(_ context.Context, t *Task, _ *Writer) error { got <- t; return nil })
	a := recv(t, d.attached, "the agent")
	e := assign("t1", "one")
	as := e.GetAssignment()
	value, _ := pbTask(a2a.Task{History: []*a2a.Message{{
		ID: "x", Role: a2a.MessageRoleUser,
		Parts: []*a2a.Part{a2a.NewTextPart("two"), a2a.NewDataPart(map[string]any{"n": 1.0})},
	}}})
	as.Message.Parts = append(as.Message.Parts, value.History[0].Parts...)
	as.History = []*a2apb.Message{textMessage("h", "before")}
	as.Attempt, as.Class = 3, shoalv1.TaskClass_TASK_CLASS_LIVE
	a.events <- e
	task := recv(t, got, "the task")
	if task.ID != "t1" || task.From != asker || task.ContextID != "ctx" || task.Skill != "echo" || task.Attempt != 3 ||
		!task.Live || task.Text() != "one\ntwo" || fmt.Sprint(task.Data()) != "map[n:1]" ||
		len(task.History) != 1 || messageText(task.History[0]) != "before" || task.Node.as != doer {
		t.Errorf("got %+v, text %q, data %v", task, task.Text(), task.Data())
	}
	rep := recv(t, d.reports, "the report")
	if stateOf(rep) != a2a.TaskStateCompleted || len(rep.GetArtifacts()) != 0 {
		t.Errorf("a silent handler reported %v", rep)
	}
}

func TestOutcomeOfAHandler(t *testing.T) {
	cases := []struct {
		name   string
		h      func() error
		state  a2a.TaskState
		text   string
		reason string
	}{
		{"error", func() error { return errors.New("no paper") }, a2a.TaskStateFailed, "no paper", ""},
		{"our error", func() error { return shoal.NewError(shoal.Timeout, "slow", "too slow", "") }, a2a.TaskStateFailed, "too slow", "slow"},
		{"rejection", func() error { return fmt.Errorf("sorry: %w", Reject("not_mine", "no")) }, a2a.TaskStateRejected, "sorry: no", "not_mine"},
		{"panic", func() error { panic("boom") }, a2a.TaskStateFailed, "the handler panicked: boom", "handler_panic"},
		{"nil map", func() error { var m map[string]int; m["a"] = 1; return nil }, a2a.TaskStateFailed, "the handler panicked: assignment to entry in nil map", "handler_panic"},
		{"bytes", func() error { return errors.New("a\xffb") }, a2a.TaskStateFailed, "a\uFFFDb", ""},
	}
	d := newDaemon(t)
	d.run(Config{}, func(_ context.Context, t *Task, w *Writer) error {
		w.WriteString("half an answer")
		var i int
		fmt.Sscan(t.Text(), &i)
		return cases[i].h()
	})
	a := recv(t, d.attached, "the agent")
	for i, c := range cases {
		id := fmt.Sprint("t", i)
		a.events <- assign(id, fmt.Sprint(i))
		rep := wantReport(t, d, id, c.state, c.text)
		if got := rep.GetStatus().GetMessage().GetMetadata().AsMap()[reasonKey]; got != c.reason && (got != nil || c.reason != "") {
			t.Errorf("%s: reason %v, want %q", c.name, got, c.reason)
		}
		if len(rep.GetArtifacts()) != 0 {
			t.Errorf("%s: half an answer was reported as an artifact", c.name)
		}
	}
}

func TestMalformedAssignmentFails(t *testing.T) {
	d := newDaemon(t)
	d.run(Config{}, echo)
	a := recv(t, d.attached, "the agent")
	for i, change := range []func(*shoalv1.Assignment){
		func(as *shoalv1.Assignment) { as.Message = nil },
		func(as *shoalv1.Assignment) { as.Message.MessageId = "" },
		func(as *shoalv1.Assignment) { as.Message.Parts[0].Content = nil },
		func(as *shoalv1.Assignment) { as.History = []*a2apb.Message{{}} },
	} {
		id := fmt.Sprint("t", i)
		e := assign(id, "x")
		change(e.GetAssignment())
		a.events <- e
		rep := recv(t, d.reports, "the report")
		if rep.GetTaskId() != id || stateOf(rep) != a2a.TaskStateFailed {
			t.Errorf("case %d: %v", i, rep)
		}
	}
	a.events <- answered("nobody", "x")
	a.events <- cancelled("nobody")
	a.events <- &shoalv1.AttachResponse{}
	a.events <- assign("good", "x")
	wantReport(t, d, "good", a2a.TaskStateCompleted, "x")
}

func TestStreamedTextIsWholeAndInOrder(t *testing.T) {
	d := newDaemon(t)
	const words = 2000
	var want strings.Builder
	for i := range words {
		fmt.Fprintf(&want, "wörd%d ", i)
	}
	half := make(chan struct{})
	d.run(Config{Concurrency: 2}, func(_ context.Context, task *Task, w *Writer) error {
		for i, c := range []byte(want.String()) { // byte by byte: characters are split
			if _, err := w.Write([]byte{c}); err != nil {
				return err
			}
			if i == want.Len()/2 {
				<-half
			}
		}
		return nil
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "")
	a.events <- assign("t2", "")
	got := map[string]string{}
	n := 0
	for len(got["t1"]) < want.Len()/2-3 || len(got["t2"]) < want.Len()/2-3 {
		c := recv(t, d.chunks, "a chunk")
		id := c.GetTaskId()
		if c.GetChunk().GetOffset() != int64(len(got[id])) || c.GetSession() != a.id || c.GetChunk().GetArtifactId() != AnswerID {
			t.Fatalf("chunk %v after %d bytes", c, len(got[id]))
		}
		got[id] += c.GetChunk().GetText()
		n++
	}
	close(half)
	for range 2 {
		rep := recv(t, d.reports, "the report")
		if text := rep.GetArtifacts()[0].GetParts()[0].GetText(); text != want.String() {
			t.Errorf("the artifact has %d bytes, want %d", len(text), want.Len())
		}
		if !strings.HasPrefix(want.String(), got[rep.GetTaskId()]) {
			t.Error("the chunks are not a prefix of the artifact")
		}
	}
	t.Logf("%d single-byte writes travelled in %d chunks", want.Len(), n)
}

func TestWriteRefusesTooMuchAndTooLate(t *testing.T) {
	d := newDaemon(t)
	kept := make(chan *Writer, 1)
	d.run(Config{}, func(_ context.Context, _ *Task, w *Writer) error {
		kept <- w
		if _, err := w.Write(make([]byte, maxAnswer)); err != nil {
			return err
		}
		_, err := w.Write([]byte{0})
		return err
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "")
	rep := recv(t, d.reports, "the report")
	if stateOf(rep) != a2a.TaskStateFailed || rep.GetStatus().GetMessage().GetMetadata().AsMap()[reasonKey] != "answer_too_large" {
		t.Errorf("reported %v", rep.GetStatus())
	}
	w := <-kept
	_, err := w.WriteString("late")
	wantError(t, err, shoal.Conflict, "task_finished")
	wantError(t, w.Status("late"), shoal.Conflict, "task_finished")
	wantError(t, w.Artifact("x", a2a.NewTextPart("late")), shoal.Conflict, "task_finished")
	_, err = w.Ask(t.Context(), "late?")
	wantError(t, err, shoal.Conflict, "task_finished")
}

func TestBytesThatAreNoTextAreReplaced(t *testing.T) {
	d := newDaemon(t)
	d.run(Config{}, func(_ context.Context, _ *Task, w *Writer) error {
		w.Write([]byte("a\xffb\xc3")) // ends in half a character
		w.Write([]byte("\xb6c\xe2\x82"))
		return nil
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "")
	wantReport(t, d, "t1", a2a.TaskStateCompleted, "a\uFFFDböc\uFFFD")
}

func TestStatusAndArtifacts(t *testing.T) {
	d := newDaemon(t)
	d.run(Config{}, func(_ context.Context, _ *Task, w *Writer) error {
		for _, name := range []string{"", AnswerID} {
			wantError(t, w.Artifact(name, a2a.NewTextPart("x")), shoal.Invalid, "bad_artifact")
		}
		for _, part := range []*a2a.Part{nil, {}, a2a.NewDataPart([]any{1}), a2a.NewTextPart("\xff")} {
			wantError(t, w.Artifact("bad", part), shoal.Invalid, "bad_message")
		}
		return errors.Join(w.Status("half way"), w.Artifact("table", a2a.NewDataPart(map[string]any{"a": "b"}), a2a.NewRawPart([]byte{1})))
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "")
	wantReport(t, d, "t1", a2a.TaskStateWorking, "half way")
	rep := recv(t, d.reports, "the artifact")
	if rep.GetStatus() != nil || len(rep.GetArtifacts()) != 1 || rep.GetArtifacts()[0].GetName() != "table" || len(rep.GetArtifacts()[0].GetParts()) != 2 {
		t.Errorf("got %v", rep)
	}
	wantReport(t, d, "t1", a2a.TaskStateCompleted, "")
}

func TestAskWaitsWithoutHoldingAPlace(t *testing.T) {
	d := newDaemon(t)
	var active, most atomic.Int32
	d.run(Config{Concurrency: 1}, func(ctx context.Context, task *Task, w *Writer) error {
		n := active.Add(1)
		most.Store(max(most.Load(), n))
		if task.Text() == "echo" {
			active.Add(-1)
			return echo(ctx, task, w)
		}
		w.WriteString("let me see: ")
		active.Add(-1)
		m, err := w.Ask(ctx, "which colour?")
		if err != nil {
			return err
		}
		n = active.Add(1)
		most.Store(max(most.Load(), n))
		defer active.Add(-1)
		w.WriteString(messageText(m))
		return nil
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("asks", "")
	rep := wantReport(t, d, "asks", a2a.TaskStateInputRequired, "which colour?")
	if len(rep.GetArtifacts()) != 1 || rep.GetArtifacts()[0].GetParts()[0].GetText() != "let me see: " {
		t.Errorf("what was written before the question is not durable: %v", rep)
	}
	a.events <- assign("other", "echo")
	wantReport(t, d, "other", a2a.TaskStateCompleted, "echo")
	a.events <- answered("asks", "blue")
	wantReport(t, d, "asks", a2a.TaskStateCompleted, "let me see: blue")
	if most.Load() > 1 {
		t.Errorf("%d handlers ran at once with concurrency 1", most.Load())
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	d := newDaemon(t)
	started := make(chan struct{}, 1)
	d.run(Config{Concurrency: 4}, func(ctx context.Context, task *Task, w *Writer) error {
		started <- struct{}{}
		if task.Text() == "asks" {
			_, err := w.Ask(ctx, "?")
			return err
		}
		<-ctx.Done()
		wantError(t, context.Cause(ctx), shoal.Conflict, "task_canceled")
		if task.Text() == "finishes" {
			return nil
		}
		return ctx.Err()
	})
	a := recv(t, d.attached, "the agent")
	for _, c := range []struct {
		how   string
		state a2a.TaskState
		text  string
	}{
		{"gives up", a2a.TaskStateCanceled, "the task was cancelled: asked"},
		{"finishes", a2a.TaskStateCompleted, ""},
		{"asks", a2a.TaskStateCanceled, "the task was cancelled: asked"},
	} {
		a.events <- assign(c.how, c.how)
		recv(t, started, "the handler")
		if c.how == "asks" {
			wantReport(t, d, c.how, a2a.TaskStateInputRequired, "?")
		}
		a.events <- cancelled(c.how)
		a.events <- cancelled(c.how)
		wantReport(t, d, c.how, c.state, c.text)
	}
}

func TestConcurrencyHoldsAcrossReconnects(t *testing.T) {
	d := newDaemon(t)
	var active atomic.Int32
	release := make(chan struct{})
	r := d.run(Config{Concurrency: 1}, func(_ context.Context, task *Task, w *Writer) error {
		if n := active.Add(1); n > 1 {
			t.Errorf("%d handlers at once", n)
		}
		defer active.Add(-1)
		if task.Text() == "stubborn" {
			<-release // ignores its context
		}
		w.WriteString("done")
		return nil
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "stubborn")
	for active.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(a.events) // the daemon ends the session
	b := recv(t, d.attached, "the agent to come back")
	b.events <- assign("t2", "quick")
	close(release)
	wantReport(t, d, "t2", a2a.TaskStateCompleted, "done")
	r.end()
	if len(d.reports) > 0 {
		t.Errorf("reported for a lost session: %v", <-d.reports)
	}
}

func TestAgentComesBackAfterARestart(t *testing.T) {
	d := newDaemon(t)
	lost, started := make(chan error, 1), make(chan struct{}, 1)
	d.run(Config{}, func(ctx context.Context, task *Task, w *Writer) error {
		if task.Text() == "wait" {
			started <- struct{}{}
			<-ctx.Done()
			lost <- context.Cause(ctx)
			return ctx.Err()
		}
		return echo(ctx, task, w)
	})
	for range 3 {
		a := recv(t, d.attached, "the agent")
		a.events <- assign("before", "x")
		wantReport(t, d, "before", a2a.TaskStateCompleted, "x")
		a.events <- assign("wait", "wait")
		recv(t, started, "the handler")
		d.stop()
		wantError(t, recv(t, lost, "the handler to hear"), shoal.Unavailable, "session_lost")
		d.start()
	}
	recv(t, d.attached, "the agent")
	if len(d.reports) > 0 {
		t.Errorf("reported for a lost session: %v", <-d.reports)
	}
}

func TestRunWaitsForADaemonThatComesLater(t *testing.T) {
	d := newDaemon(t)
	d.stop()
	d.run(Config{}, echo)
	d.start()
	recv(t, d.attached, "the agent")
}

func TestRunEndsWhenTheDaemonRefuses(t *testing.T) {
	d := newDaemon(t)
	d.refuseAttach = apiError(shoal.NewError(shoal.Invalid, "bad_name", "agent name is malformed", "use a-z"))
	r := d.run(Config{}, echo)
	recv(t, r.done, "Run to return")
	wantError(t, r.err, shoal.Invalid, "bad_name")
	if e := shoal.AsError(r.err); e.Hint != "use a-z" || e.Msg != "agent name is malformed" {
		t.Errorf("got %+v", e)
	}
}

func TestRunChecksItsConfig(t *testing.T) {
	for _, c := range []struct {
		cfg    Config
		reason string
	}{
		{Config{Concurrency: -1}, "bad_concurrency"},
		{Config{Concurrency: 1025}, "bad_concurrency"},
		{Config{Heartbeat: time.Millisecond}, "bad_heartbeat"},
		{Config{Heartbeat: -time.Second}, "bad_heartbeat"},
		{Config{Skills: []shoal.Skill{{ID: "OCR"}}}, "bad_capability"},
		{Config{Skills: []shoal.Skill{{}}}, "bad_capability"},
		{Config{Socket: "/" + strings.Repeat("x", 200) + ".sock"}, "bad_socket"},
	} {
		wantError(t, Run(t.Context(), c.cfg, echo), shoal.Invalid, c.reason)
	}
}

func TestShutdownLetsHandlersFinish(t *testing.T) {
	d := newDaemon(t)
	started := make(chan struct{}, 2)
	r := d.run(Config{Concurrency: 2}, func(ctx context.Context, task *Task, w *Writer) error {
		started <- struct{}{}
		<-ctx.Done()
		if task.Text() == "finish" {
			return echo(ctx, task, w)
		}
		return ctx.Err()
	})
	a := recv(t, d.attached, "the agent")
	a.events <- assign("t1", "finish")
	a.events <- assign("t2", "give up")
	recv(t, started, "a handler")
	recv(t, started, "a handler")
	if err := r.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	wantReport(t, d, "t1", a2a.TaskStateCompleted, "finish")
	if len(d.reports) > 0 {
		t.Errorf("what was given up is the daemon's to settle; got %v", <-d.reports)
	}
	recv(t, a.gone, "the session to end")
}

func TestReportIsTriedAgainWhileTheDaemonCannotTakeIt(t *testing.T) {
	d := newDaemon(t)
	var mu sync.Mutex
	refusals := map[string]error{
		"full":  apiError(shoal.NewError(shoal.Exhausted, "disk_full", "no space", "")),
		"large": apiError(shoal.NewError(shoal.Invalid, "message_too_large", "too large", "")),
	}
	d.refuseReport = func(r *shoalv1.ReportRequest) error {
		mu.Lock()
		defer mu.Unlock()
		err := refusals[r.GetTaskId()]
		delete(refusals, r.GetTaskId())
		return err
	}
	d.run(Config{}, echo)
	a := recv(t, d.attached, "the agent")
	a.events <- assign("full", "x")
	wantReport(t, d, "full", a2a.TaskStateCompleted, "x")
	a.events <- assign("large", "x")
	wantReport(t, d, "large", a2a.TaskStateFailed, "too large")
}

func TestHeartbeat(t *testing.T) {
	d := newDaemon(t)
	d.run(Config{Heartbeat: minHeartbeat}, echo)
	a := recv(t, d.attached, "the agent")
	if a.req.GetHeartbeatMs() != 100 {
		t.Errorf("promised %d ms", a.req.GetHeartbeatMs())
	}
	for range 3 {
		if s := recv(t, d.beats, "a heartbeat"); s != a.id {
			t.Errorf("heartbeat of session %q", s)
		}
	}
}

func TestAgentThatWasRemovedDoesNotComeBack(t *testing.T) {
	d := newDaemon(t)
	d.refuseAttach = apiError(shoal.NewError(shoal.NotFound, "agent_removed", "the agent was removed", ""))
	r := d.run(Config{}, echo)
	recv(t, r.done, "Run to return")
	wantError(t, r.err, shoal.NotFound, "agent_removed")
}
