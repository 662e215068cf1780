package api

import (
	"context"
	"encoding/hex"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/task"
)

// taskService serves TaskService.
type taskService struct{ *Server }

func (s *taskService) Send(ctx context.Context, req *connect.Request[shoalv1.SendRequest]) (*connect.Response[shoalv1.SendResponse], error) {
	order, wait, err := s.decodeSend(req.Msg)
	if err != nil {
		return nil, err
	}
	t, created, err := s.svc.Tasks.Submit(ctx, order)
	if err != nil {
		return nil, err
	}
	if req.Msg.GetWait() {
		if t, err = s.wait(ctx, t, wait); err != nil {
			return nil, err
		}
	}
	rec, err := encodeTask(t)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.SendResponse{Task: rec, Created: created}), nil
}

func (s *taskService) decodeSend(m *shoalv1.SendRequest) (order task.Request, wait time.Duration, err error) {
	fail := func(err error) (task.Request, time.Duration, error) { return task.Request{}, 0, err }
	if order.From, err = s.hosted("as", m.GetAs()); err != nil {
		return fail(err)
	}
	if m.GetTo() == "" && m.GetSkill() == "" {
		return fail(missing("to or skill", "say who is to do it, or what is to be done"))
	}
	if m.GetTo() != "" {
		if order.To, err = s.anyAgent("to", m.GetTo()); err != nil {
			return fail(err)
		}
	}
	if m.GetSkill() != "" {
		if order.Skill, err = shoal.ParseCapability(m.GetSkill()); err != nil {
			return fail(err)
		}
	}
	for _, f := range []struct{ name, value string }{{"request_id", m.GetRequestId()}, {"context_id", m.GetContextId()}} {
		if err := checkID(f.name, f.value); err != nil {
			return fail(err)
		}
	}
	order.IdempotencyKey, order.ContextID = m.GetRequestId(), m.GetContextId()
	if order.Timeout, err = millis("timeout_ms", m.GetTimeoutMs(), maxDuration); err != nil {
		return fail(err)
	}
	if order.TTL, err = millis("ttl_ms", m.GetTtlMs(), maxDuration); err != nil {
		return fail(err)
	}
	if wait, err = millis("wait_ms", m.GetWaitMs(), maxDuration); err != nil {
		return fail(err)
	}
	if order.Class, err = classOf(m.GetClass()); err != nil {
		return fail(err)
	}
	order.Message, err = decodeMessage("message", m.GetMessage(), a2apb.Role_ROLE_USER)
	return order, wait, err
}

// wait returns the task once it is terminal or interrupted, and as it is when the time
// is up or the daemon stops: the task is on disk, so the caller must learn its id.
func (s *taskService) wait(ctx context.Context, t task.Task, limit time.Duration) (task.Task, error) {
	if t.Terminal() || t.Interrupted() {
		return t, nil
	}
	wctx, done := s.untilStop(ctx)
	defer done()
	if deadline, ok := ctx.Deadline(); ok {
		// The answer must be back before the caller gives up.
		left := time.Until(deadline)
		left -= min(left/10, 250*time.Millisecond)
		if limit == 0 || left < limit {
			limit = max(left, 1)
		}
	}
	if limit > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(wctx, limit)
		defer cancel()
	}
	ref := task.Ref{ID: t.Key.ID, Requester: t.Key.Requester, Role: task.Asked}
	now, err := s.svc.Tasks.Wait(wctx, ref)
	switch {
	case err == nil:
		return now, nil
	case ctx.Err() != nil:
		return t, ctx.Err()
	case wctx.Err() == nil:
		return t, err
	}
	return s.svc.Tasks.Get(ctx, ref)
}

func (s *taskService) Get(ctx context.Context, req *connect.Request[shoalv1.GetRequest]) (*connect.Response[shoalv1.GetResponse], error) {
	ref, err := s.ref(req.Msg.GetId(), req.Msg.GetRequester(), req.Msg.GetRole())
	if err != nil {
		return nil, err
	}
	t, err := s.svc.Tasks.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	rec, err := encodeTask(t)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.GetResponse{Task: rec}), nil
}

func (s *taskService) List(ctx context.Context, req *connect.Request[shoalv1.TaskServiceListRequest]) (*connect.Response[shoalv1.TaskServiceListResponse], error) {
	f := task.Filter{ContextID: req.Msg.GetContextId(), PageToken: req.Msg.GetPageToken()}
	var err error
	if f.State, err = stateOf(req.Msg.GetState()); err != nil {
		return nil, err
	}
	if f.Role, err = roleOf(req.Msg.GetRole()); err != nil {
		return nil, err
	}
	if err := checkID("context_id", f.ContextID); err != nil {
		return nil, err
	}
	if err := checkPageToken(f.PageToken); err != nil {
		return nil, err
	}
	if f.PageSize, err = pageSize(req.Msg.GetPageSize(), 50, 100); err != nil {
		return nil, err
	}
	tasks, next, err := s.svc.Tasks.List(ctx, f)
	if err != nil {
		return nil, err
	}
	resp := &shoalv1.TaskServiceListResponse{NextPageToken: next}
	for _, t := range tasks {
		rec, err := encodeTask(t)
		if err != nil {
			return nil, err
		}
		resp.Tasks = append(resp.Tasks, rec)
	}
	return connect.NewResponse(resp), nil
}

// Watch sends a heartbeat whenever the task was quiet for a while, so that the client
// can tell a quiet task from a dead connection.
func (s *taskService) Watch(ctx context.Context, req *connect.Request[shoalv1.WatchRequest], stream *connect.ServerStream[shoalv1.WatchResponse]) error {
	ref, err := s.ref(req.Msg.GetId(), req.Msg.GetRequester(), req.Msg.GetRole())
	if err != nil {
		return err
	}
	ctx, done := s.untilStop(ctx)
	defer done()

	out := newSender(stream)
	if err := out.open(); err != nil {
		return err
	}
	var beats sync.WaitGroup
	defer beats.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beats.Go(func() {
		out.beat(ctx, s.cfg.Heartbeat, func() *shoalv1.WatchResponse {
			return &shoalv1.WatchResponse{Event: &shoalv1.WatchResponse_Heartbeat{Heartbeat: true}}
		})
		cancel()
	})
	err = s.svc.Tasks.Watch(ctx, ref, req.Msg.GetAfter(), func(ev task.Event) error {
		pb, err := encodeEvent(ev)
		if err != nil || pb == nil {
			return err
		}
		return out.send(pb)
	})
	return s.endOf(err)
}

// encodeEvent returns nil for an event that Watch does not show: a message of the asker
// is in the task's history, and the next event moves the cursor past it.
func encodeEvent(ev task.Event) (*shoalv1.WatchResponse, error) {
	out := &shoalv1.WatchResponse{Cursor: ev.Cursor, At: stamp(ev.At)}
	switch {
	case ev.Status != nil:
		pb, err := encodeStatus(ev.Status)
		out.Event = &shoalv1.WatchResponse_Status{Status: pb}
		return out, err
	case ev.Artifact != nil:
		pb, err := encodeArtifact(ev.Artifact)
		out.Event = &shoalv1.WatchResponse_Artifact{Artifact: pb}
		return out, err
	case ev.Chunk != nil:
		out.Cursor = 0 // chunks have none: a watch cannot resume behind one
		out.Event = &shoalv1.WatchResponse_Chunk{Chunk: &shoalv1.TextChunk{
			ArtifactId: ev.Chunk.ArtifactID, Offset: ev.Chunk.Offset, Text: ev.Chunk.Text,
		}}
		return out, nil
	case ev.Final != nil:
		rec, err := encodeTask(*ev.Final)
		out.Event = &shoalv1.WatchResponse_Task{Task: rec}
		return out, err
	}
	return nil, nil
}

func (s *taskService) Cancel(ctx context.Context, req *connect.Request[shoalv1.CancelRequest]) (*connect.Response[shoalv1.CancelResponse], error) {
	ref, err := s.ref(req.Msg.GetId(), "", shoalv1.TaskRole_TASK_ROLE_ASKED)
	if err != nil {
		return nil, err
	}
	t, err := s.svc.Steps.Cancel(ctx, ref)
	if err != nil {
		return nil, err
	}
	rec, err := encodeTask(t)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.CancelResponse{Task: rec}), nil
}

func (s *taskService) Reply(ctx context.Context, req *connect.Request[shoalv1.ReplyRequest]) (*connect.Response[shoalv1.ReplyResponse], error) {
	ref, err := s.ref(req.Msg.GetId(), "", shoalv1.TaskRole_TASK_ROLE_ASKED)
	if err != nil {
		return nil, err
	}
	if err := checkID("request_id", req.Msg.GetRequestId()); err != nil {
		return nil, err
	}
	msg, err := decodeMessage("message", req.Msg.GetMessage(), a2apb.Role_ROLE_USER)
	if err != nil {
		return nil, err
	}
	t, err := s.svc.Steps.Reply(ctx, ref, msg, req.Msg.GetRequestId())
	if err != nil {
		return nil, err
	}
	rec, err := encodeTask(t)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ReplyResponse{Task: rec}), nil
}

func (s *taskService) Receipt(ctx context.Context, req *connect.Request[shoalv1.ReceiptRequest]) (*connect.Response[shoalv1.ReceiptResponse], error) {
	ref, err := s.ref(req.Msg.GetId(), req.Msg.GetRequester(), req.Msg.GetRole())
	if err != nil {
		return nil, err
	}
	r, err := s.svc.Steps.Receipt(ctx, ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ReceiptResponse{Receipt: &shoalv1.Receipt{
		Body: r.Body, DoerSignature: r.DoerSignature, AskerSignature: r.AskerSignature,
		Network: r.Network, TaskId: string(r.Key.ID), From: string(r.Key.Requester), To: string(r.Doer), Skill: r.Skill,
		InputSha256: hex.EncodeToString(r.InputHash[:]), OutputSha256: hex.EncodeToString(r.OutputHash[:]),
		State: encodeState(r.State), Attempt: count(r.Attempt), Class: encodeClass(r.Class),
		SubmittedAt: stamp(r.Submitted), StartedAt: stamp(r.Started), FinishedAt: stamp(r.Finished),
		PriceMicro: int64(r.Price), InputMatches: r.InputMatches, OutputMatches: r.OutputMatches,
	}}), nil
}
