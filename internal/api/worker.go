package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/worker"
)

// workerService serves WorkerService.
type workerService struct{ *Server }

func (s *workerService) Attach(ctx context.Context, req *connect.Request[shoalv1.AttachRequest], stream *connect.ServerStream[shoalv1.AttachResponse]) error {
	ctx, done := s.untilStop(ctx)
	defer done()

	session, err := s.svc.Workers.Attach(ctx, decodeAttach(req.Msg))
	if err != nil {
		return s.endOf(err)
	}
	defer session.Close()

	out := newSender(stream)
	agent := session.Agent()
	welcome := &shoalv1.Welcome{Session: session.ID(), Did: string(agent.ID), Name: agent.Name}
	if err := out.send(&shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Welcome{Welcome: welcome}}); err != nil {
		return err
	}
	var beats sync.WaitGroup
	defer beats.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beats.Go(func() {
		out.beat(ctx, s.cfg.Heartbeat, func() *shoalv1.AttachResponse {
			return &shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Heartbeat{Heartbeat: true}}
		})
		cancel()
	})
	for {
		ev, err := session.Next(ctx)
		if err != nil {
			return s.endOf(err)
		}
		pb, err := encodeWorkerEvent(ev)
		if err != nil {
			return err
		}
		if err := out.send(pb); err != nil {
			return err
		}
	}
}

// decodeAttach only converts: package worker checks every field, since it keeps them.
func decodeAttach(m *shoalv1.AttachRequest) worker.AttachSpec {
	spec := worker.AttachSpec{
		Agent: m.GetAgent(), Description: m.GetDescription(), Ephemeral: m.GetEphemeral(),
		Concurrency: int(min(m.GetConcurrency(), 1<<20)), Heartbeat: time.Duration(m.GetHeartbeatMs()) * time.Millisecond,
	}
	for _, sk := range m.GetSkills() {
		spec.Skills = append(spec.Skills, shoal.Skill{
			ID: sk.GetId(), Name: sk.GetName(), Description: sk.GetDescription(),
			Tags: sk.GetTags(), Examples: sk.GetExamples(), Idempotent: sk.GetIdempotent(),
		})
	}
	return spec
}

func encodeWorkerEvent(ev worker.Event) (*shoalv1.AttachResponse, error) {
	out := &shoalv1.AttachResponse{}
	switch {
	case ev.Assignment != nil:
		pb, err := encodeAssignment(ev.Assignment)
		out.Event = &shoalv1.AttachResponse_Assignment{Assignment: pb}
		return out, err
	case ev.Input != nil:
		msg, err := encodeMessage(ev.Input.Message)
		out.Event = &shoalv1.AttachResponse_Input{Input: &shoalv1.InputEvent{
			TaskId: string(ev.Input.Key.ID), Requester: string(ev.Input.Key.Requester), Message: msg,
		}}
		return out, err
	case ev.Cancel != nil:
		out.Event = &shoalv1.AttachResponse_Cancel{Cancel: &shoalv1.CancelEvent{
			TaskId: string(ev.Cancel.Key.ID), Requester: string(ev.Cancel.Key.Requester), Reason: ev.Cancel.Reason,
		}}
		return out, nil
	}
	return nil, shoal.NewError(shoal.Internal, "internal", "a worker event without content", "")
}

func encodeAssignment(a *shoal.Assignment) (*shoalv1.Assignment, error) {
	msg, err := encodeMessage(a.Message)
	if err != nil {
		return nil, err
	}
	history, err := encodeMessages(a.History)
	if err != nil {
		return nil, err
	}
	return &shoalv1.Assignment{
		TaskId: string(a.Key.ID), Requester: string(a.Key.Requester), ContextId: a.ContextID, Skill: a.Skill,
		Attempt: count(a.Attempt), Class: encodeClass(a.Class), Message: msg, History: history, Deadline: stamp(a.Deadline),
	}, nil
}

func (s *workerService) Report(ctx context.Context, req *connect.Request[shoalv1.ReportRequest]) (*connect.Response[shoalv1.ReportResponse], error) {
	n, err := s.report(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ReportResponse{N: n}), nil
}

// ReportStream ends with the first report that is refused: those behind it were made by
// a worker that did not know.
func (s *workerService) ReportStream(ctx context.Context, stream *connect.BidiStream[shoalv1.ReportRequest, shoalv1.ReportResponse]) error {
	ctx, done := s.untilStop(ctx)
	defer done()
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.endOf(err)
		}
		n, err := s.report(ctx, req)
		if err != nil {
			return s.endOf(err)
		}
		if n == 0 {
			continue
		}
		if err := stream.Send(&shoalv1.ReportResponse{N: n}); err != nil {
			return err
		}
	}
}

func (s *workerService) report(ctx context.Context, m *shoalv1.ReportRequest) (uint64, error) {
	if err := checkSession(m.GetSession()); err != nil {
		return 0, err
	}
	r, err := s.decodeReport(m)
	if err != nil {
		return 0, err
	}
	return s.svc.Workers.Report(ctx, m.GetSession(), r)
}

func (s *workerService) decodeReport(m *shoalv1.ReportRequest) (r shoal.Report, err error) {
	ref, err := s.ref(m.GetTaskId(), m.GetRequester(), 0)
	if err != nil {
		return r, err
	}
	r.Key = shoal.TaskKey{Requester: ref.Requester, ID: ref.ID}
	if m.GetChunk() != nil {
		if m.GetStatus() != nil || len(m.GetArtifacts()) > 0 {
			return r, invalid("bad_report", "send the chunk alone", "a chunk comes with a status or artifacts")
		}
		r.Chunk, err = decodeChunk(m.GetChunk())
		return r, err
	}
	if m.GetStatus() == nil && len(m.GetArtifacts()) == 0 {
		return r, invalid("bad_report", "give a status, artifacts or a chunk", "the report is empty")
	}
	if r.Artifacts, err = decodeArtifacts(m.GetArtifacts()); err != nil || m.GetStatus() == nil {
		return r, err
	}
	r.State, r.Message, err = decodeStatus(m.GetStatus())
	return r, err
}

func decodeArtifacts(pbs []*a2apb.Artifact) ([]*a2a.Artifact, error) {
	if len(pbs) > maxArtifacts {
		return nil, invalid("too_many", fmt.Sprintf("at most %d are allowed", maxArtifacts), "the report has %d artifacts", len(pbs))
	}
	var out []*a2a.Artifact
	for i, pb := range pbs {
		a, err := decodeArtifact(fmt.Sprintf("artifacts[%d]", i), pb)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func decodeStatus(pb *a2apb.TaskStatus) (a2a.TaskState, *a2a.Message, error) {
	state, err := stateOf(pb.GetState())
	if err != nil {
		return "", nil, err
	}
	if state == a2a.TaskStateUnspecified || state == a2a.TaskStateSubmitted {
		return "", nil, invalid("bad_state", "report WORKING, INPUT_REQUIRED, AUTH_REQUIRED, COMPLETED, FAILED, CANCELED or REJECTED",
			"a worker does not report %s", state)
	}
	if pb.GetMessage() == nil {
		return state, nil, nil
	}
	msg, err := decodeMessage("status.message", pb.GetMessage(), a2apb.Role_ROLE_AGENT)
	return state, msg, err
}

func decodeChunk(pb *shoalv1.TextChunk) (*shoal.Chunk, error) {
	c := &shoal.Chunk{ArtifactID: pb.GetArtifactId(), Offset: pb.GetOffset(), Text: pb.GetText()}
	if c.ArtifactID == "" {
		return nil, missing("chunk.artifact_id", "give the id of the artifact that will hold the whole text")
	}
	if err := checkID("chunk.artifact_id", c.ArtifactID); err != nil {
		return nil, err
	}
	if c.Offset < 0 {
		return nil, invalid("bad_offset", "count the bytes before the piece", "chunk.offset is %d", c.Offset)
	}
	return c, checkLen("chunk.text", c.Text, maxChunk)
}

func checkSession(session string) error {
	if session == "" {
		return missing("session", "send the session that Attach welcomed you with")
	}
	return checkID("session", session)
}

func (s *workerService) Heartbeat(_ context.Context, req *connect.Request[shoalv1.HeartbeatRequest]) (*connect.Response[shoalv1.HeartbeatResponse], error) {
	if err := checkSession(req.Msg.GetSession()); err != nil {
		return nil, err
	}
	if err := s.svc.Workers.Heartbeat(req.Msg.GetSession()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.HeartbeatResponse{}), nil
}
