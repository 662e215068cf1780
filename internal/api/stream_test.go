package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/task"
	"github.com/shoalmesh/shoal/internal/worker"
)

func completed(id string) *shoalv1.ReportRequest {
	return &shoalv1.ReportRequest{
		Session: "sess", TaskId: id, Requester: string(own),
		Status: &a2apb.TaskStatus{State: a2apb.TaskState_TASK_STATE_COMPLETED},
	}
}

// history is a task's events 1…n; Watch emits those after the cursor.
func history(n uint64, final bool) func(context.Context, task.Ref, uint64, func(task.Event) error) error {
	return func(ctx context.Context, _ task.Ref, after uint64, emit func(task.Event) error) error {
		for i := after + 1; i <= n; i++ {
			ev := task.Event{Cursor: i, At: time.Unix(int64(i), 0)}
			switch i % 3 {
			case 0:
				ev.Status = &a2a.TaskStatus{State: a2a.TaskStateWorking}
			case 1:
				ev.Artifact = &a2a.Artifact{ID: "a", Parts: a2a.ContentParts{a2a.NewTextPart(fmt.Sprint(i))}}
			case 2:
				ev.Message = a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("not shown"))
			}
			if err := emit(ev); err != nil {
				return err
			}
			if err := emit(task.Event{Cursor: i, Chunk: &shoal.Chunk{ArtifactID: "a", Offset: int64(i), Text: "x"}}); err != nil {
				return err
			}
		}
		if final {
			end := someTask("t1", a2a.TaskStateCompleted)
			return emit(task.Event{Cursor: n + 1, Final: &end})
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestWatchResumesAtTheCursor(t *testing.T) {
	r := start(t, &fake{watch: history(9, true)}, nil)
	c := r.clients(r.http(true, true))
	read := func(after uint64, limit int) (cursors []uint64, chunks int, ended bool) {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		stream, err := c.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: "t1", After: after}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for len(cursors) < limit && stream.Receive() {
			switch stream.Msg().GetEvent().(type) {
			case *shoalv1.WatchResponse_Chunk:
				chunks++
				if stream.Msg().GetCursor() != 0 {
					t.Errorf("a chunk has cursor %d", stream.Msg().GetCursor())
				}
			default:
				ended = stream.Msg().GetTask() != nil
				cursors = append(cursors, stream.Msg().GetCursor())
			}
		}
		return cursors, chunks, ended
	}
	all, chunks, ended := read(0, 100)
	if want := []uint64{1, 3, 4, 6, 7, 9, 10}; !slices.Equal(all, want) || chunks != 9 || !ended {
		t.Errorf("whole watch: cursors %v with %d chunks, ended %v, want %v with 9", all, chunks, ended, want)
	}
	first, _, _ := read(0, 3)
	rest, _, _ := read(first[2], 100)
	if got := append(first, rest...); !slices.Equal(got, all) {
		t.Errorf("resumed: %v, want %v", got, all)
	}
}

func TestWatchBeatsWhenQuiet(t *testing.T) {
	r := start(t, &fake{watch: history(0, false)}, func(c *Config) { c.Heartbeat = 5 * time.Millisecond })
	stream, err := r.clients(r.http(true, false)).tasks.Watch(testContext(t), connect.NewRequest(&shoalv1.WatchRequest{Id: "t1"}))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !stream.Receive() || !stream.Msg().GetHeartbeat() || stream.Msg().GetCursor() != 0 {
			t.Fatalf("got %v, %v, want a heartbeat", stream.Msg(), stream.Err())
		}
	}
	stream.Close()
}

func TestWatchPassesTheEnginesErrorOn(t *testing.T) {
	f := &fake{watch: func(context.Context, task.Ref, uint64, func(task.Event) error) error { return task.ErrNotFound }}
	r := start(t, f, nil)
	stream, err := r.clients(r.http(false, true)).tasks.Watch(testContext(t), connect.NewRequest(&shoalv1.WatchRequest{Id: "t1"}))
	if err != nil {
		t.Fatal(err)
	}
	if stream.Receive() {
		t.Errorf("got %v", stream.Msg())
	}
	if info := infoOf(t, stream.Err()); info.GetReason() != "unknown_task" || info.GetKind() != "not_found" || info.GetHint() == "" {
		t.Errorf("got %v with %v", stream.Err(), info)
	}
}

func TestSendWaits(t *testing.T) {
	blocked := func(ctx context.Context, _ task.Ref) (task.Task, error) { <-ctx.Done(); return task.Task{}, ctx.Err() }
	failing := func(context.Context, task.Ref) (task.Task, error) { return task.Task{}, task.ErrNotFound }
	for name, c := range map[string]struct {
		wait     func(context.Context, task.Ref) (task.Task, error)
		limit    time.Duration // wait_ms
		deadline time.Duration // of the call
		want     a2a.TaskState
		took     time.Duration
	}{
		"until it ends":          {nil, 0, 0, a2a.TaskStateCompleted, 0},
		"at most wait_ms":        {blocked, time.Minute, 0, a2a.TaskStateWorking, time.Minute},
		"until just before":      {blocked, 0, 30 * time.Second, a2a.TaskStateWorking, 29750 * time.Millisecond},
		"just before, soon":      {blocked, 0, time.Second, a2a.TaskStateWorking, 900 * time.Millisecond},
		"deadline before limit":  {blocked, time.Minute, 30 * time.Second, a2a.TaskStateWorking, 29750 * time.Millisecond},
		"limit before deadline":  {blocked, 10 * time.Second, 30 * time.Second, a2a.TaskStateWorking, 10 * time.Second},
		"ends within the limits": {nil, 10 * time.Second, 30 * time.Second, a2a.TaskStateCompleted, 0},
		"engine's error":         {failing, 0, 0, "", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			if c.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.deadline)
				defer cancel()
			}
			s := &taskService{New(Config{}, services(&fake{wait: c.wait}), discard())}
			begun := time.Now()
			got, err := s.wait(ctx, someTask("t1", a2a.TaskStateSubmitted), c.limit)
			if got.State != c.want && err == nil || (err != nil) != (c.want == "") || time.Since(begun) != c.took {
				t.Errorf("%s: got %v, %v after %v, want %v after %v", name, got.State, err, time.Since(begun), c.want, c.took)
			}
		})
	}
}

func text(s string) *a2apb.Message {
	return &a2apb.Message{Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: s}}}}
}

func TestAttach(t *testing.T) {
	s := newSession()
	f := &fake{attach: func(context.Context, worker.AttachSpec) (Session, error) { return s, nil }}
	r := start(t, f, func(c *Config) { c.Heartbeat = time.Hour })
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream, err := r.clients(r.http(true, true), connect.WithGRPC()).worker.Attach(ctx, connect.NewRequest(&shoalv1.AttachRequest{
		Agent: "alice", Concurrency: 3, HeartbeatMs: 1500, Ephemeral: true, Description: "d",
		Skills: []*shoalv1.Skill{{Id: "ocr", Name: "OCR", Tags: []string{"t"}, Idempotent: true}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	next := func() *shoalv1.AttachResponse {
		t.Helper()
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		return stream.Msg()
	}
	if w := next().GetWelcome(); w.GetSession() != "sess" || w.GetDid() != string(alice) || w.GetName() != "alice" {
		t.Errorf("welcome %v", w)
	}
	spec := f.specs[0]
	if spec.Agent != "alice" || spec.Concurrency != 3 || spec.Heartbeat != 1500*time.Millisecond || !spec.Ephemeral ||
		len(spec.Skills) != 1 || spec.Skills[0].ID != "ocr" || !spec.Skills[0].Idempotent {
		t.Errorf("attached as %+v", spec)
	}
	key := shoal.TaskKey{Requester: bob, ID: "t7"}
	msg := a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("do"), a2a.NewDataPart(map[string]any{"n": 1.0}))
	s.events <- worker.Event{Assignment: &shoal.Assignment{
		Key: key, Agent: alice, Skill: "ocr", Attempt: 2, Class: shoal.Live,
		Message: msg, History: []*a2a.Message{msg}, Deadline: time.Unix(9, 0),
	}}
	s.events <- worker.Event{Input: &worker.Input{Key: key, Message: msg}}
	s.events <- worker.Event{Cancel: &worker.Cancel{Key: key, Reason: "canceled"}}
	a := next().GetAssignment()
	if a.GetTaskId() != "t7" || a.GetRequester() != string(bob) || a.GetAttempt() != 2 || a.GetClass() != shoalv1.TaskClass_TASK_CLASS_LIVE ||
		len(a.GetMessage().GetParts()) != 2 || len(a.GetHistory()) != 1 || a.GetDeadline().GetSeconds() != 9 {
		t.Errorf("assignment %v", a)
	}
	if in := next().GetInput(); in.GetTaskId() != "t7" || in.GetMessage().GetMessageId() != msg.ID {
		t.Errorf("input %v", in)
	}
	if c := next().GetCancel(); c.GetReason() != "canceled" {
		t.Errorf("cancel %v", c)
	}
	cancel()
	stream.Close()
	select {
	case <-s.closed: // the session ends with the stream
	case <-testContext(t).Done():
		t.Error("the session was not closed")
	}
}

func TestAttachBeatsWhenQuiet(t *testing.T) {
	s := newSession()
	f := &fake{attach: func(context.Context, worker.AttachSpec) (Session, error) { return s, nil }}
	r := start(t, f, func(c *Config) { c.Heartbeat = 5 * time.Millisecond })
	stream, err := r.clients(r.http(true, false)).worker.Attach(testContext(t), connect.NewRequest(&shoalv1.AttachRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	beats := 0
	for beats < 2 && stream.Receive() {
		if stream.Msg().GetHeartbeat() {
			beats++
		}
	}
	if beats < 2 {
		t.Errorf("%d heartbeats, then %v", beats, stream.Err())
	}
}

func TestAttachPassesThePoolsErrorOn(t *testing.T) {
	f := &fake{attach: func(context.Context, worker.AttachSpec) (Session, error) {
		return nil, shoal.NewError(shoal.Invalid, "bad_skill", "too many tags", "use fewer")
	}}
	r := start(t, f, nil)
	stream, err := r.clients(r.http(true, true)).worker.Attach(testContext(t), connect.NewRequest(&shoalv1.AttachRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Receive() || infoOf(t, stream.Err()).GetReason() != "bad_skill" {
		t.Errorf("got %v, %v", stream.Msg(), stream.Err())
	}
}

func TestReportStreamKeepsOrder(t *testing.T) {
	const n = 200
	f := &fake{}
	r := start(t, f, nil)
	stream := r.clients(r.http(true, true)).worker.ReportStream(testContext(t))
	for i := range n {
		req := &shoalv1.ReportRequest{
			Session: "sess", TaskId: "t1", Requester: string(own),
			Chunk: &shoalv1.TextChunk{ArtifactId: "a", Offset: int64(i), Text: "x"},
		}
		if i%10 == 9 {
			req = completed(fmt.Sprintf("t%d", i))
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	answers := 0
	for {
		resp, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || resp.GetN() != 9 {
			t.Fatalf("got %v, %v", resp, err)
		}
		answers++
	}
	if err := stream.CloseResponse(); err != nil {
		t.Fatal(err)
	}
	if answers != n/10 || len(f.reports) != n {
		t.Fatalf("%d answers to %d reports, want %d to %d", answers, len(f.reports), n/10, n)
	}
	for i, rep := range f.reports {
		if i%10 == 9 && rep.Key.ID != a2a.TaskID(fmt.Sprintf("t%d", i)) || i%10 != 9 && rep.Chunk.Offset != int64(i) {
			t.Fatalf("report %d arrived as %+v", i, rep)
		}
	}
}

func TestReportOfATaskThatIsNotHeldIsRefused(t *testing.T) {
	r := start(t, &fake{}, nil)
	c := r.clients(r.http(true, true))
	req := completed("t1")
	req.Session = "other"
	_, err := c.worker.Report(testContext(t), connect.NewRequest(req))
	if info := infoOf(t, err); connect.CodeOf(err) != connect.CodePermissionDenied || info.GetReason() != "not_assigned" {
		t.Errorf("report: %v, %v", err, info)
	}
	stream := c.worker.ReportStream(testContext(t))
	if err := stream.Send(req); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Receive()
	if info := infoOf(t, err); info.GetReason() != "not_assigned" {
		t.Errorf("report stream: %v, %v", err, info)
	}
	_ = stream.CloseRequest()
	_ = stream.CloseResponse()
}

func TestPostAnswersEachLetter(t *testing.T) {
	const n = 1000
	f := &fake{}
	r := start(t, f, nil)
	stream := r.clients(r.http(true, true)).mail.Post(testContext(t))
	go func() {
		for i := range n {
			req := &shoalv1.PostRequest{To: string(bob), Body: fmt.Append(nil, i), Tag: uint64(i)}
			switch i % 100 {
			case 7:
				req.To = "nobody"
			case 8:
				req.TtlMs = -1
			case 9:
				req.Body = make([]byte, shoal.MaxBody+1)
			case 10:
				req.As = "nobody"
			}
			if stream.Send(req) != nil {
				return // Receive says why
			}
		}
		_ = stream.CloseRequest()
	}()
	states := map[uint64][]string{}
	for {
		resp, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		states[resp.GetTag()] = append(states[resp.GetTag()], resp.GetState()+resp.GetReason())
		if resp.GetState() != "refused" && resp.GetId() != fmt.Sprint(resp.GetTag()) {
			t.Errorf("tag %d: id %q", resp.GetTag(), resp.GetId())
		}
	}
	if err := stream.CloseResponse(); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(n) {
		want := "stored delivered"
		switch i % 100 {
		case 7, 10:
			want = "refusedunknown_agent"
		case 8:
			want = "refusedbad_duration"
		case 9:
			want = "refusedbody_too_large"
		}
		if got := strings.Join(states[i], " "); got != want {
			t.Errorf("tag %d: got %q, want %q", i, got, want)
		}
	}
	last := -1
	for _, l := range f.letters {
		var i int
		if _, err := fmt.Sscan(string(l.Body), &i); err != nil || i <= last {
			t.Fatalf("letter %d came after %d", i, last)
		}
		last = i
	}
	t.Logf("%d letters in %d transactions", len(f.letters), f.called())
}

func TestPostWaitsForOutcomes(t *testing.T) {
	later := make(chan func(), 10)
	f := &fake{post: func(_ context.Context, letters []Letter) []Posted {
		out := make([]Posted, len(letters))
		for i, l := range letters {
			out[i].ID = "id"
			later <- func() { l.Done("expired", "expired") }
		}
		return out
	}}
	r := start(t, f, nil)
	stream := r.clients(r.http(true, true), connect.WithGRPC()).mail.Post(testContext(t))
	if err := errors.Join(stream.Send(&shoalv1.PostRequest{To: string(bob), Tag: 5}), stream.CloseRequest()); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Receive(); err != nil || resp.GetState() != "stored" {
		t.Fatalf("got %v, %v", resp, err)
	}
	(<-later)()
	if resp, err := stream.Receive(); err != nil || resp.GetState() != "expired" || resp.GetId() != "id" || resp.GetTag() != 5 {
		t.Fatalf("got %v, %v", resp, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("ends with %v", err)
	}
	_ = stream.CloseResponse()
}

func TestPostRefusesWhatItCannotRemember(t *testing.T) {
	p := &postStream{awaiting: maxAwaiting - 1, wake: make(chan struct{}, 1)}
	if err := p.admit(); err != nil {
		t.Errorf("the last place: %v", err)
	}
	if err := p.admit(); shoal.AsError(err).Reason != "too_many_awaiting" {
		t.Errorf("one more: got %v", err)
	}
}

func TestSlowBodyIsCutAndSlowWorkIsNot(t *testing.T) {
	f := &fake{submit: func(ctx context.Context, _ task.Request) (task.Task, bool, error) {
		select {
		case <-time.After(200 * time.Millisecond): // four times what a body may take
			return someTask("t1", a2a.TaskStateSubmitted), true, nil
		case <-ctx.Done():
			return task.Task{}, false, ctx.Err()
		}
	}}
	r := start(t, f, func(c *Config) { c.bodyWait = 50 * time.Millisecond })
	for _, h2 := range []bool{false, true} {
		c := r.clients(r.http(false, h2))
		if _, err := c.tasks.Send(testContext(t), connect.NewRequest(&shoalv1.SendRequest{To: "alice", Message: text("x")})); err != nil {
			t.Errorf("slow work, h2=%v: %v", h2, err)
		}
	}
	begun := time.Now()
	got := raw(t, "tcp", r.addr, []byte("POST /shoal.v1.NodeService/Status HTTP/1.1\r\nHost: "+r.addr+"\r\nAuthorization: Bearer "+secret+
		"\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"))
	if took := time.Since(begun); took > 5*time.Second || strings.Contains(got, "200 OK") {
		t.Errorf("a body that does not come: %q after %v", got, took)
	}
}
