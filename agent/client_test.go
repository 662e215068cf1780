package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func dial(t testing.TB, where string) *Client {
	t.Helper()
	c, err := Dial(where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func record(id string, state a2apb.TaskState, cursor uint64, said string, artifacts ...*a2apb.Artifact) *shoalv1.TaskRecord {
	status := &a2apb.TaskStatus{State: state}
	if said != "" {
		status.Message = textMessage("s", said)
	}
	return &shoalv1.TaskRecord{
		Task: &a2apb.Task{Id: id, ContextId: "ctx", Status: status, Artifacts: artifacts},
		From: asker, To: doer, Attempt: 1, TookMs: 12.5, Cursor: cursor,
	}
}

func statusEvent(cursor uint64, state a2apb.TaskState, said string) *shoalv1.WatchResponse {
	return &shoalv1.WatchResponse{
		Cursor: cursor, At: timestamppb.Now(),
		Event: &shoalv1.WatchResponse_Status{Status: record("", state, 0, said).GetTask().GetStatus()},
	}
}

func chunkEvent(offset int64, text string) *shoalv1.WatchResponse {
	return &shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Chunk{
		Chunk: &shoalv1.TextChunk{ArtifactId: AnswerID, Offset: offset, Text: text},
	}}
}

func artifactEvent(cursor uint64, id, text string) *shoalv1.WatchResponse {
	return &shoalv1.WatchResponse{Cursor: cursor, Event: &shoalv1.WatchResponse_Artifact{Artifact: textArtifact(id, text)}}
}

func finalEvent(rec *shoalv1.TaskRecord) *shoalv1.WatchResponse {
	return &shoalv1.WatchResponse{Cursor: rec.GetCursor(), Event: &shoalv1.WatchResponse_Task{Task: rec}}
}

const (
	working   = a2apb.TaskState_TASK_STATE_WORKING
	completed = a2apb.TaskState_TASK_STATE_COMPLETED
	failed    = a2apb.TaskState_TASK_STATE_FAILED
	asks      = a2apb.TaskState_TASK_STATE_INPUT_REQUIRED
)

func TestSendWaitsForTheAnswer(t *testing.T) {
	d := newDaemon(t)
	var got *shoalv1.SendRequest
	d.send = func(r *shoalv1.SendRequest) (*shoalv1.SendResponse, error) {
		got = r
		return &shoalv1.SendResponse{Task: record("t1", completed, 4, "", textArtifact(AnswerID, "hi"), textArtifact("b", "there"))}, nil
	}
	res, err := dial(t, d.home).As("me").Send(t.Context(), Request{
		To: "bob", Skill: "echo", Text: "hello", Parts: []*a2a.Part{a2a.NewRawPart([]byte{1})}, Key: "k",
		ContextID: "ctx", Timeout: time.Second, TTL: time.Minute, Live: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.ID != "t1" || res.State != a2a.TaskStateCompleted || res.Text != "hi\nthere" || len(res.Artifacts) != 2 ||
		res.TookMS != 12.5 || res.From != asker || res.To != doer || !res.Done() || res.Err() != nil {
		t.Errorf("got %+v", res)
	}
	if got.GetAs() != "me" || got.GetTo() != "bob" || got.GetSkill() != "echo" || got.GetRequestId() != "k" || !got.GetWait() ||
		got.GetTimeoutMs() != 1000 || got.GetTtlMs() != 60_000 || got.GetClass() != shoalv1.TaskClass_TASK_CLASS_LIVE ||
		len(got.GetMessage().GetParts()) != 2 || got.GetMessage().GetParts()[0].GetText() != "hello" || got.GetContextId() != "ctx" {
		t.Errorf("sent %v", got)
	}
}

func TestSendThatFailsIsNoError(t *testing.T) {
	d := newDaemon(t)
	d.send = func(*shoalv1.SendRequest) (*shoalv1.SendResponse, error) {
		rec := record("t1", failed, 4, "no paper")
		rec.Reason = "out_of_paper"
		return &shoalv1.SendResponse{Task: rec}, nil
	}
	res, err := dial(t, d.home).Send(t.Context(), Request{To: "bob", Text: "x"})
	if err != nil || res.State != a2a.TaskStateFailed || res.Text != "no paper" {
		t.Fatalf("got %+v, %v", res, err)
	}
	wantError(t, res.Err(), shoal.Conflict, "out_of_paper")
}

func TestSendStreams(t *testing.T) {
	d := newDaemon(t)
	d.send = func(r *shoalv1.SendRequest) (*shoalv1.SendResponse, error) {
		if r.GetWait() {
			return nil, errors.New("a stream cannot wait in Send")
		}
		return &shoalv1.SendResponse{Task: record("t1", a2apb.TaskState_TASK_STATE_SUBMITTED, 1, "")}, nil
	}
	d.watch = func(_ context.Context, r *shoalv1.WatchRequest, emit func(*shoalv1.WatchResponse) error) error {
		if r.GetId() != "t1" || r.GetAfter() != 0 {
			return fmt.Errorf("watched %v", r)
		}
		return errors.Join(
			emit(statusEvent(2, working, "")),
			emit(chunkEvent(0, "one ")),
			emit(chunkEvent(4, "two ")),
			emit(&shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Heartbeat{Heartbeat: true}}),
			emit(chunkEvent(14, "lost ")), // "three " is missing
			emit(artifactEvent(3, AnswerID, "one two three lost end")),
			emit(finalEvent(record("t1", completed, 4, "", textArtifact(AnswerID, "one two three lost end")))),
		)
	}
	var pieces []string
	res, err := dial(t, d.home).Send(t.Context(), Request{Text: "x", Stream: func(s string) { pieces = append(pieces, s) }})
	if err != nil || res.Text != "one two three lost end" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if got := strings.Join(pieces, "|"); got != "one |two |three lost end" {
		t.Errorf("streamed %q", got)
	}
}

func TestReplyAndASecondQuestion(t *testing.T) {
	d := newDaemon(t)
	d.send = func(*shoalv1.SendRequest) (*shoalv1.SendResponse, error) {
		return &shoalv1.SendResponse{Task: record("t1", asks, 3, "which colour?", textArtifact(AnswerID, "so far"))}, nil
	}
	now := record("t1", asks, 3, "which colour?")
	d.get = func(string) (*shoalv1.TaskRecord, error) { return now, nil }
	var replies []string
	d.reply = func(r *shoalv1.ReplyRequest) error {
		replies = append(replies, r.GetMessage().GetParts()[0].GetText())
		if r.GetRequestId() == "" {
			return errors.New("a reply must be idempotent")
		}
		return nil
	}
	d.watch = func(_ context.Context, r *shoalv1.WatchRequest, emit func(*shoalv1.WatchResponse) error) error {
		if len(replies) == 1 && r.GetAfter() == 3 {
			now = record("t1", asks, 6, "which size?")
			return errors.Join(emit(statusEvent(5, working, "")), emit(statusEvent(6, asks, "which size?")))
		}
		if len(replies) == 2 && r.GetAfter() == 6 {
			return emit(finalEvent(record("t1", completed, 9, "", textArtifact(AnswerID, "blue, large"))))
		}
		return fmt.Errorf("watched %v after %d replies", r, len(replies))
	}
	c := dial(t, d.home)
	res, err := c.Send(t.Context(), Request{To: "bob", Text: "a shirt"})
	if err != nil || res.State != a2a.TaskStateInputRequired || res.Text != "which colour?" || res.Done() {
		t.Fatalf("got %+v, %v", res, err)
	}
	res, err = c.Reply(t.Context(), res.ID, "blue")
	if err != nil || res.State != a2a.TaskStateInputRequired || res.Text != "which size?" {
		t.Fatalf("after the first reply: %+v, %v", res, err)
	}
	res, err = c.Reply(t.Context(), res.ID, "large")
	if err != nil || res.Text != "blue, large" {
		t.Fatalf("after the second reply: %+v, %v", res, err)
	}
}

func TestWatchEndsEarly(t *testing.T) {
	d := newDaemon(t)
	d.watch = func(_ context.Context, r *shoalv1.WatchRequest, emit func(*shoalv1.WatchResponse) error) error {
		switch r.GetId() {
		case "unknown":
			return apiError(shoal.NewError(shoal.NotFound, "unknown_task", "no such task", ""))
		case "broken":
			return emit(finalEvent(&shoalv1.TaskRecord{}))
		}
		return emit(statusEvent(2, working, ""))
	}
	c := dial(t, d.home)
	nothing := func(Event) error { return nil }
	wantError(t, c.Watch(t.Context(), "unknown", 0, nothing), shoal.NotFound, "unknown_task")
	wantError(t, c.Watch(t.Context(), "broken", 0, nothing), shoal.Corrupt, "bad_answer")
	wantError(t, c.Watch(t.Context(), "t1", 0, nothing), shoal.Unavailable, "daemon_unreachable")
	stop := errors.New("stop")
	if err := c.Watch(t.Context(), "t1", 0, func(Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error came back as %v", err)
	}
}

func TestFindAndErrors(t *testing.T) {
	d := newDaemon(t)
	c := dial(t, filepath.Join(d.home, socketName))
	found, err := c.Find(t.Context(), "ocr")
	if err != nil || len(found) != 1 || found[0].DID != doer || found[0].Name != "bob" || !found[0].Local || !found[0].VerifiedAt.IsZero() {
		t.Errorf("got %+v, %v", found, err)
	}
	_, err = c.Find(t.Context(), "OCR")
	wantError(t, err, shoal.Invalid, "bad_capability")
	if hint := shoal.AsError(err).Hint; hint != "use a-z" {
		t.Errorf("hint %q", hint)
	}
	_, err = c.Cancel(t.Context(), "t1") // the fake does not have it
	wantError(t, err, shoal.Unsupported, "unimplemented")

	for _, r := range []Request{
		{Text: "\xff"}, {Parts: []*a2a.Part{nil}}, {Parts: []*a2a.Part{{}}}, {Parts: []*a2a.Part{a2a.NewDataPart(1)}},
	} {
		_, err := c.Send(t.Context(), r)
		wantError(t, err, shoal.Invalid, "bad_message")
	}
	_, err = c.Send(t.Context(), Request{To: "\xff", Text: "x"})
	wantError(t, err, shoal.Invalid, "bad_message")
}

func TestErrorsWithoutDetails(t *testing.T) {
	d := newDaemon(t)
	c := dial(t, d.home)
	for _, w := range []struct {
		err    error
		kind   shoal.Kind
		reason string
	}{
		{connect.NewError(connect.CodeNotFound, errors.New("x")), shoal.NotFound, "not_found"},
		{connect.NewError(connect.CodeResourceExhausted, errors.New("x")), shoal.Invalid, "resource_exhausted"},
		{connect.NewError(connect.CodeUnknown, errors.New("x")), shoal.Internal, "unknown"},
		{errors.New("x"), shoal.Internal, "unknown"},
	} {
		d.get = func(string) (*shoalv1.TaskRecord, error) { return nil, w.err }
		_, err := c.Get(t.Context(), "t1")
		wantError(t, err, w.kind, w.reason)
	}

	hang := make(chan struct{})
	d.get = func(string) (*shoalv1.TaskRecord, error) { <-hang; return nil, errors.New("late") }
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err := c.Get(ctx, "t1")
	if wantError(t, err, shoal.Unavailable, "call_cancelled"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = c.Get(ctx, "t1")
	if wantError(t, err, shoal.Timeout, "deadline"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not context.DeadlineExceeded", err)
	}
	close(hang)

	d.stop()
	_, err = c.Get(t.Context(), "t1")
	wantError(t, err, shoal.Unavailable, "daemon_unreachable")
	d.start()
}

func TestClientFindsTheSocket(t *testing.T) {
	d := newDaemon(t)
	d.get = func(string) (*shoalv1.TaskRecord, error) { return record("t1", completed, 1, "done"), nil }
	home := t.TempDir()
	pointer := filepath.Join(home, pointerName)
	if err := os.WriteFile(pointer, []byte(filepath.Join(d.home, socketName)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{d.home, filepath.Join(d.home, socketName), home} {
		if r, err := dial(t, where).Get(t.Context(), "t1"); err != nil || r.Text != "done" {
			t.Errorf("through %s: %+v, %v", where, r, err)
		}
	}
	for _, content := range []string{"", "relative.sock", "/nowhere/x.sock", strings.Repeat("/x", 5000)} {
		if err := os.WriteFile(pointer, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := dial(t, home).Get(t.Context(), "t1")
		if k := shoal.KindOf(err); k != shoal.Unavailable && k != shoal.Invalid {
			t.Errorf("pointer of %d bytes: %v", len(content), err)
		}
	}
	_, err := Dial(filepath.Join(home, strings.Repeat("x", 200)+".sock"))
	wantError(t, err, shoal.Invalid, "bad_socket")
}

func TestJoiner(t *testing.T) {
	chunk := func(offset int64, text string) Event {
		return Event{Chunk: &shoal.Chunk{ArtifactID: "a", Offset: offset, Text: text}}
	}
	whole := func(text string) Event {
		return Event{Artifact: &a2a.Artifact{ID: "a", Parts: []*a2a.Part{a2a.NewTextPart(text)}}}
	}
	for _, c := range []struct {
		name   string
		events []Event
		want   string
	}{
		{"in order", []Event{chunk(0, "ab"), chunk(2, "cd"), whole("abcd")}, "ab|cd|"},
		{"no chunks", []Event{whole("abcd")}, "abcd"},
		{"gap", []Event{chunk(0, "ab"), chunk(3, "d"), whole("abcd")}, "ab||cd"},
		{"late joiner", []Event{chunk(2, "cd"), whole("abcd")}, "|abcd"},
		{"twice", []Event{chunk(0, "ab"), chunk(0, "ab"), chunk(2, "cd")}, "ab||cd"},
		{"overlap", []Event{chunk(0, "ab"), chunk(1, "bcd")}, "ab|cd"},
		{"longer prefix", []Event{chunk(0, "ab"), chunk(0, "abcd")}, "ab|cd"},
		{"negative", []Event{chunk(-1, "x"), whole("ab")}, "|ab"},
		{"behind the end", []Event{chunk(1<<62, "x"), whole("ab")}, "|ab"},
		{"another attempt", []Event{chunk(0, "ab"), chunk(0, "xyz"), chunk(3, "!"), whole("xyz!")}, "ab|\nxyz|!|"},
		{"other text in the end", []Event{chunk(0, "ab"), whole("xy")}, "ab|\nxy"},
		{"grown artifact", []Event{whole("ab"), whole("abcd")}, "ab|cd"},
		{"two artifacts", []Event{whole("ab"), {Final: &Result{Artifacts: []*a2a.Artifact{
			{ID: "a", Parts: []*a2a.Part{a2a.NewTextPart("ab")}}, {ID: "b", Parts: []*a2a.Part{a2a.NewTextPart("c"), nil}},
		}}}}, "ab|c"},
		{"status", []Event{{Status: &a2a.TaskStatus{}}}, ""},
	} {
		var j joiner
		var got []string
		for _, e := range c.events {
			got = append(got, j.take(e))
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%s: got %q, want %q", c.name, s, c.want)
		}
	}
}

// FuzzJoiner: whatever chunks come, what was given out is the artifact in the end,
// after the last restart.
func FuzzJoiner(f *testing.F) {
	f.Add("hello world", []byte{0, 5, 5, 6, 3, 2})
	f.Add("", []byte{1, 2})
	f.Fuzz(func(t *testing.T, text string, cuts []byte) {
		if strings.Contains(text, "\n") {
			return
		}
		var j joiner
		var got string
		for i := 0; i+1 < len(cuts); i += 2 {
			from := min(int(cuts[i]), len(text))
			to := min(from+int(cuts[i+1]), len(text))
			got += j.take(Event{Chunk: &shoal.Chunk{ArtifactID: "a", Offset: int64(from), Text: text[from:to]}})
		}
		got += j.take(Event{Artifact: &a2a.Artifact{ID: "a", Parts: []*a2a.Part{a2a.NewTextPart(text)}}})
		if got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	})
}
