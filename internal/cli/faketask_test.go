package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// fakeTask is a task whose events are all known from the start.
type fakeTask struct {
	id     string
	text   string
	events []*shoalv1.WatchResponse
}

const (
	working   = a2apb.TaskState_TASK_STATE_WORKING
	completed = a2apb.TaskState_TASK_STATE_COMPLETED
	failed    = a2apb.TaskState_TASK_STATE_FAILED
	canceled  = a2apb.TaskState_TASK_STATE_CANCELED
	rejected  = a2apb.TaskState_TASK_STATE_REJECTED
	asks      = a2apb.TaskState_TASK_STATE_INPUT_REQUIRED
	submitted = a2apb.TaskState_TASK_STATE_SUBMITTED
)

func agentSays(text string) *a2apb.Message {
	return &a2apb.Message{Role: a2apb.Role_ROLE_AGENT, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: text}}}}
}

func statusEvent(s a2apb.TaskState, text string) *shoalv1.WatchResponse {
	st := &a2apb.TaskStatus{State: s, Timestamp: fakeTime}
	if text != "" {
		st.Message = agentSays(text)
	}
	return &shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Status{Status: st}}
}

func chunkEvent(offset int64, text string) *shoalv1.WatchResponse {
	return &shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Chunk{Chunk: &shoalv1.TextChunk{ArtifactId: "answer", Offset: offset, Text: text}}}
}

func artifactEvent(text string, more ...*a2apb.Part) *shoalv1.WatchResponse {
	parts := append([]*a2apb.Part{{Content: &a2apb.Part_Text{Text: text}}}, more...)
	return &shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Artifact{Artifact: &a2apb.Artifact{ArtifactId: "answer", Name: "answer", Parts: parts}}}
}

// script is what a task does, by the first word of its text.
func script(text string) []*shoalv1.WatchResponse {
	word, _, _ := strings.Cut(text, " ")
	start := []*shoalv1.WatchResponse{statusEvent(submitted, ""), statusEvent(working, "")}
	switch word {
	case "fail":
		return append(start, statusEvent(failed, "the ink ran out"))
	case "reject":
		return append(start[:1], statusEvent(rejected, "not today"))
	case "canceled":
		return append(start, statusEvent(canceled, ""))
	case "ask":
		return append(start, statusEvent(asks, "Which size\x1b[2J?"))
	case "slow":
		return start
	case "stream": // pieces, one repeated, one lost
		return append(start, chunkEvent(0, "Roses "), chunkEvent(0, "Roses are "), chunkEvent(14, "lost"), artifactEvent("Roses are red, lost too"), statusEvent(completed, ""))
	case "torn": // a second attempt writes another text
		return append(start, chunkEvent(0, "Roses"), chunkEvent(0, "Tulips"), artifactEvent("Tulips are red"), statusEvent(completed, ""))
	case "evil":
		return append(start, statusEvent(working, "\u202eprogress"), chunkEvent(0, "a\x1b"), chunkEvent(2, "[31m\u009b"), artifactEvent("a\x1b[31m\u009b\u202eb\r\nc"), statusEvent(completed, ""))
	case "parts":
		return append(start, artifactEvent("text", &a2apb.Part{Content: &a2apb.Part_Raw{Raw: []byte("12345")}, Filename: "a\x07.bin", MediaType: "application/x"},
			&a2apb.Part{Content: &a2apb.Part_Url{Url: "https://x.example/\x1b"}}), statusEvent(completed, ""))
	default:
		return append(start, chunkEvent(0, "Roses are "), artifactEvent("Roses are red"), statusEvent(completed, ""))
	}
}

func (f *fakeAPI) record(t *fakeTask) *shoalv1.TaskRecord {
	r := &shoalv1.TaskRecord{
		Task: &a2apb.Task{Id: t.id, ContextId: "ctx-1", Status: &a2apb.TaskStatus{State: submitted}, History: []*a2apb.Message{
			{Role: a2apb.Role_ROLE_USER, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: t.text}}}},
		}},
		From: string(didOf(nodeKey)), To: string(didOf(poetKey)), Skill: "poem", Role: shoalv1.TaskRole_TASK_ROLE_ASKED,
		Class: shoalv1.TaskClass_TASK_CLASS_DURABLE, Attempt: 1, CreatedAt: fakeTime, UpdatedAt: fakeTime, Delivery: "delivered",
	}
	for _, ev := range t.events {
		if ev.GetCursor() > 0 {
			r.Cursor = ev.GetCursor()
		}
		if s := ev.GetStatus(); s != nil {
			r.Task.Status = s
		}
		if a := ev.GetArtifact(); a != nil {
			r.Task.Artifacts = []*a2apb.Artifact{a}
		}
	}
	switch r.GetTask().GetStatus().GetState() {
	case failed:
		r.Reason = "out_of_ink"
	case rejected:
		r.Reason = "closed"
	}
	if terminal(r.GetTask().GetStatus().GetState()) {
		r.TookMs = 1229
	}
	return r
}

func (f fakeTasks) Send(ctx context.Context, r *connect.Request[shoalv1.SendRequest]) (*connect.Response[shoalv1.SendResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = r.Msg
	text := partsText(r.Msg.GetMessage().GetParts())
	if kind, found := strings.CutPrefix(text, "kind:"); found {
		return nil, apiErr(shoal.ParseKind(kind), "fake_"+kind, "it is "+kind+" \x1b[31m", "do something")
	}
	switch r.Msg.GetTo() {
	case "", "poet", string(didOf(poetKey)):
	default:
		return nil, apiErr(shoal.NotFound, "unknown_agent", "agent "+r.Msg.GetTo()+" is not known", "did you mean poet?")
	}
	if id := f.keys[r.Msg.GetRequestId()]; id != "" {
		return ok(&shoalv1.SendResponse{Task: f.record(f.tasks[id])})
	}
	t := f.add(text)
	f.keys[r.Msg.GetRequestId()] = t.id
	delete(f.keys, "")
	rec := f.record(t)
	if !r.Msg.GetWait() {
		rec.Task.Status = &a2apb.TaskStatus{State: submitted}
		rec.Task.Artifacts, rec.TookMs, rec.Reason, rec.Delivery = nil, 0, "", "queued"
	} else if !settled(rec.GetTask().GetStatus().GetState()) {
		wait := time.NewTimer(time.Duration(r.Msg.GetWaitMs()) * time.Millisecond)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
	}
	return ok(&shoalv1.SendResponse{Task: rec, Created: true})
}

// add makes the task of a text; f.mu is held.
func (f *fakeAPI) add(text string) *fakeTask {
	t := &fakeTask{id: fmt.Sprintf("task-%d", len(f.tasks)+1), text: text, events: script(text)}
	for i, ev := range t.events {
		if ev.GetChunk() == nil {
			ev.Cursor = uint64(i + 1)
			ev.At = timestamppb.New(fakeTime.AsTime().Add(time.Duration(i) * time.Second))
		}
	}
	f.tasks[t.id] = t
	return t
}

// task returns a known task's copy.
func (f *fakeAPI) task(id string) (*fakeTask, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tasks[id]
	if t == nil {
		return nil, apiErr(shoal.NotFound, "unknown_task", "task "+id+" is not known", "see `shoal task list`")
	}
	c := *t
	return &c, nil
}

func (f fakeTasks) Get(_ context.Context, r *connect.Request[shoalv1.GetRequest]) (*connect.Response[shoalv1.GetResponse], error) {
	t, err := f.task(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return ok(&shoalv1.GetResponse{Task: f.record(t)})
}

// List pages by two, so that reading on is seen.
func (f fakeTasks) List(_ context.Context, r *connect.Request[shoalv1.TaskServiceListRequest]) (*connect.Response[shoalv1.TaskServiceListResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &shoalv1.TaskServiceListResponse{}
	first := 1
	if r.Msg.GetPageToken() != "" {
		fmt.Sscan(r.Msg.GetPageToken(), &first)
	}
	for i := first; i <= len(f.tasks); i++ {
		rec := f.record(f.tasks[fmt.Sprintf("task-%d", i)])
		if s := r.Msg.GetState(); s != 0 && s != rec.GetTask().GetStatus().GetState() {
			continue
		}
		if len(resp.GetTasks()) == min(2, int(r.Msg.GetPageSize())) {
			resp.NextPageToken = fmt.Sprint(i)
			break
		}
		resp.Tasks = append(resp.Tasks, rec)
	}
	return ok(resp)
}

func (f fakeTasks) Watch(ctx context.Context, r *connect.Request[shoalv1.WatchRequest], s *connect.ServerStream[shoalv1.WatchResponse]) error {
	t, err := f.task(r.Msg.GetId())
	if err != nil {
		return err
	}
	for _, ev := range t.events {
		if ev.GetCursor() > 0 && ev.GetCursor() <= r.Msg.GetAfter() || ev.GetChunk() != nil && r.Msg.GetAfter() > 3 {
			continue
		}
		if err := s.Send(ev); err != nil {
			return err
		}
	}
	if err := s.Send(&shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Heartbeat{Heartbeat: true}}); err != nil {
		return err
	}
	rec := f.record(t)
	if !terminal(rec.GetTask().GetStatus().GetState()) {
		if strings.HasSuffix(t.text, "broken") {
			return nil // the stream ends too early
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Send(&shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Task{Task: rec}})
}

func (f fakeTasks) Cancel(_ context.Context, r *connect.Request[shoalv1.CancelRequest]) (*connect.Response[shoalv1.CancelResponse], error) {
	t, err := f.task(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	rec := f.record(t)
	if terminal(rec.GetTask().GetStatus().GetState()) {
		return nil, apiErr(shoal.Conflict, "task_ended", "task "+t.id+" has ended", "")
	}
	rec.Task.Status = &a2apb.TaskStatus{State: canceled}
	return ok(&shoalv1.CancelResponse{Task: rec})
}

func (f fakeTasks) Reply(_ context.Context, r *connect.Request[shoalv1.ReplyRequest]) (*connect.Response[shoalv1.ReplyResponse], error) {
	t, err := f.task(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	rec := f.record(t)
	if rec.GetTask().GetStatus().GetState() != asks {
		return nil, apiErr(shoal.Conflict, "not_waiting", "task "+t.id+" is not waiting for an answer", "see `shoal task get "+t.id+"`")
	}
	rec.Task.Status = &a2apb.TaskStatus{State: working}
	return ok(&shoalv1.ReplyResponse{Task: rec})
}

func (f fakeTasks) Receipt(_ context.Context, r *connect.Request[shoalv1.ReceiptRequest]) (*connect.Response[shoalv1.ReceiptResponse], error) {
	t, err := f.task(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	rec := f.record(t)
	if !terminal(rec.GetTask().GetStatus().GetState()) {
		return nil, apiErr(shoal.Conflict, "no_receipt_yet", "task "+t.id+" has not ended", "")
	}
	receipt := signedReceipt(t.id, t.text != "half")
	if t.text == "altered" {
		receipt.PriceMicro = 1
	}
	if t.text == "mismatch" {
		receipt.OutputMatches = false
	}
	return ok(&shoalv1.ReceiptResponse{Receipt: receipt})
}
