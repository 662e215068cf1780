package agent

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// Request is a piece of work for another agent.
type Request struct {
	To    string // DID, or the name of an agent on the same node; "" = any that offers Skill
	Skill string // with To: one of its skills, "" = its first
	Text  string // becomes the first part
	Parts []*a2a.Part

	// Key makes the request idempotent: the same key gives the same task, so a call
	// that broke off can be made again. "" = a new task each time.
	Key string

	ContextID string        // groups tasks of one conversation; "" = a new one
	Timeout   time.Duration // for the work, once it has started; 0 = 10 min
	TTL       time.Duration // for the delivery; 0 = 7 days
	Live      bool          // no commit before the answer: faster, and lost with a crash

	// Stream, if not nil, gets the answer's text as it comes, from the goroutine that
	// called Send.
	Stream func(text string)
}

func (r Request) message() *a2a.Message {
	parts := make([]*a2a.Part, 0, len(r.Parts)+1)
	if r.Text != "" {
		parts = append(parts, a2a.NewTextPart(r.Text))
	}
	return a2a.NewMessage(a2a.MessageRoleUser, append(parts, r.Parts...)...)
}

// Send delegates work and waits until it has ended or the doer asks something back
// (State is INPUT_REQUIRED; answer with [Client.Reply]). A task that ended FAILED or
// REJECTED is not an error of Send; see [Result.Err]. If ctx ends first, the task goes
// on; find it again by its Key.
func (c *Client) Send(ctx context.Context, r Request) (*Result, error) {
	msg, err := pbMessage(r.message())
	if err != nil {
		return nil, err
	}
	req := &shoalv1.SendRequest{
		As: c.as, To: r.To, Skill: r.Skill, Message: msg, RequestId: r.Key, ContextId: r.ContextID,
		TimeoutMs: r.Timeout.Milliseconds(), TtlMs: r.TTL.Milliseconds(),
		Wait: r.Stream == nil,
	}
	if r.Live {
		req.Class = shoalv1.TaskClass_TASK_CLASS_LIVE
	}
	resp, err := c.tasks.Send(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, asError(ctx, err)
	}
	res, err := newResult(resp.Msg.GetTask())
	if err != nil {
		return nil, err
	}
	if r.Stream == nil && (res.Done() || interrupted(res.State)) {
		return res, nil
	}
	return c.follow(ctx, res.ID, 0, r.Stream)
}

// Reply answers a task that waits for input, and then waits as [Client.Send] does.
func (c *Client) Reply(ctx context.Context, id, text string, parts ...*a2a.Part) (*Result, error) {
	return c.ReplyStream(ctx, id, nil, text, parts...)
}

// ReplyStream is [Client.Reply] with the answer's text as it comes. The text that was
// made before the question comes again, if there was any.
func (c *Client) ReplyStream(ctx context.Context, id string, stream func(string), text string, parts ...*a2a.Part) (*Result, error) {
	msg, err := pbMessage(Request{Text: text, Parts: parts}.message())
	if err != nil {
		return nil, err
	}
	// The cursor from before the reply: a doer that asks again at once is not missed.
	before, err := c.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	_, err = c.tasks.Reply(ctx, connect.NewRequest(&shoalv1.ReplyRequest{
		Id: id, Message: msg, RequestId: msg.GetMessageId(),
	}))
	if err != nil {
		return nil, asError(ctx, err)
	}
	return c.follow(ctx, id, before.cursor, stream)
}

// follow watches a task until it ends or is interrupted.
func (c *Client) follow(ctx context.Context, id string, after uint64, stream func(string)) (*Result, error) {
	var join joiner
	var final *Result
	err := c.Watch(ctx, id, after, func(e Event) error {
		if text := join.take(e); text != "" && stream != nil {
			stream(text)
		}
		switch {
		case e.Final != nil:
			final = e.Final
		case e.Status != nil && interrupted(e.Status.State):
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	if final != nil {
		return final, nil
	}
	res, err := c.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, asError(ctx, err)
	}
	return res, nil
}

// errEnough ends a watch from inside.
var errEnough = shoal.NewError(shoal.Internal, "enough", "seen enough", "")

// Event is something that happened to a task: one of the pointers is set.
type Event struct {
	Cursor   uint64 // 0 for a chunk
	At       time.Time
	Status   *a2a.TaskStatus
	Artifact *a2a.Artifact // whole; replaces an earlier one with the same id
	Chunk    *shoal.Chunk  // may be missing: the artifact that follows has all
	Final    *Result       // the last event
}

// Watch calls fn with the events of a task after a cursor (0 = from the start) and then
// with those that come. It returns nil after the final event, or the error of fn.
func (c *Client) Watch(ctx context.Context, id string, after uint64, fn func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: id, After: after}))
	if err != nil {
		return asError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // its error says no more than Receive did
	for stream.Receive() {
		e, err := newEvent(stream.Msg())
		if err != nil {
			return err
		}
		if e == (Event{}) {
			continue // a heartbeat, or something of a newer version
		}
		if err := fn(e); err != nil {
			cancel() // Close would read to the end of the stream otherwise
			return err
		}
		if e.Final != nil {
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		return asError(ctx, err)
	}
	return errUnreachable.With("the watch of task %s ended early", id)
}

func newEvent(m *shoalv1.WatchResponse) (e Event, err error) {
	switch x := m.GetEvent().(type) {
	case *shoalv1.WatchResponse_Status:
		status, err := fromStatus(x.Status)
		if err != nil {
			return e, err
		}
		e.Status = &status
	case *shoalv1.WatchResponse_Artifact:
		artifacts, err := fromArtifacts([]*a2apb.Artifact{x.Artifact})
		if err != nil {
			return e, err
		}
		e.Artifact = artifacts[0]
	case *shoalv1.WatchResponse_Chunk:
		e.Chunk = &shoal.Chunk{
			ArtifactID: x.Chunk.GetArtifactId(), Offset: x.Chunk.GetOffset(), Text: x.Chunk.GetText(),
		}
	case *shoalv1.WatchResponse_Task:
		if e.Final, err = newResult(x.Task); err != nil {
			return e, err
		}
	default:
		return e, nil
	}
	e.Cursor, e.At = m.GetCursor(), fromTime(m.GetAt())
	return e, nil
}
