package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"
	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

const (
	// drainTime is how long handlers may take to end after Run's ctx did, before the
	// session closes under them.
	drainTime = 5 * time.Second

	// reportTimeout bounds one report: the daemon answers when it is on disk.
	reportTimeout = 30 * time.Second

	maxInputs = 4 // answers waiting for a handler that has not asked yet
)

// runner is what the sessions of one Run share.
type runner struct {
	cfg      Config
	handler  HandlerFunc
	client   *Client
	slots    chan struct{} // one element for each running handler
	handlers sync.WaitGroup
}

// session is one attachment: from Attach until the stream ends.
type session struct {
	*runner
	id     string
	alive  context.Context // the session's life, which tasks outlive
	node   *Client         // asks as this agent
	chunks *chunker

	mu    sync.Mutex
	tasks map[shoal.TaskKey]*Task
	idle  chan struct{} // not nil once draining; closed when the last task has ended
}

// session attaches and serves until the connection or ctx ends. It tells whether it got
// as far as the welcome.
func (r *runner) session(ctx context.Context) (attached bool, err error) {
	// The stream outlives ctx, so that handlers can report after it ended.
	streamCtx, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	stop := context.AfterFunc(ctx, func() { cut(errStopping) })
	defer stop()

	stream, err := r.client.workers.Attach(streamCtx, connect.NewRequest(r.attachRequest()))
	if err != nil {
		return false, asError(streamCtx, err)
	}
	defer func() { _ = stream.Close() }() // its error says no more than Receive did
	defer cut(errLost)                    // before Close, which would read to the end

	if !stream.Receive() {
		return false, r.streamError(streamCtx, stream.Err())
	}
	welcome := stream.Msg().GetWelcome()
	if welcome == nil {
		return false, badAnswer(errors.New("the first event is not a welcome"))
	}
	s := &session{
		runner: r, id: welcome.GetSession(), alive: streamCtx, node: r.client.As(welcome.GetDid()),
		chunks: newChunker(r.client.workers, welcome.GetSession()), tasks: make(map[shoal.TaskKey]*Task),
	}
	if !stop() { // from here on the end of ctx means to drain
		return true, errStopping
	}
	r.cfg.OnReady(welcome.GetDid())
	return true, s.run(ctx, stream, cut)
}

// run does what a session consists of, until its stream ends. After ctx it ends the
// stream itself, with cut, once the handlers have reported.
func (s *session) run(ctx context.Context, stream *connect.ServerStreamForClient[shoalv1.AttachResponse], cut context.CancelCauseFunc) error {
	g, gctx := errgroup.WithContext(s.alive)
	g.Go(func() error { return s.chunks.run(gctx) })
	g.Go(func() error { return s.heartbeat(gctx) })
	g.Go(func() error {
		select {
		case <-gctx.Done():
			cut(errLost)
		case <-ctx.Done():
			s.drain(gctx)
			cut(errStopping)
		}
		return nil
	})
	g.Go(func() error {
		for stream.Receive() {
			s.event(stream.Msg())
		}
		err := s.streamError(s.alive, stream.Err())
		s.end(err)
		return err
	})
	return g.Wait()
}

func (r *runner) attachRequest() *shoalv1.AttachRequest {
	return &shoalv1.AttachRequest{
		Agent: r.cfg.Name, Description: r.cfg.Description, Skills: pbSkills(r.cfg.Skills),
		Concurrency: uint32(r.cfg.Concurrency),
		HeartbeatMs: uint32(r.cfg.Heartbeat.Milliseconds()),
		Ephemeral:   r.cfg.Ephemeral,
	}
}

func (r *runner) streamError(ctx context.Context, err error) error {
	if err == nil {
		return errLost
	}
	return asError(ctx, err)
}

// heartbeat keeps the promise of Config.Heartbeat.
func (s *session) heartbeat(ctx context.Context) error {
	if s.cfg.Heartbeat == 0 {
		return nil
	}
	tick := time.NewTicker(s.cfg.Heartbeat / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, err := s.client.workers.Heartbeat(ctx, connect.NewRequest(&shoalv1.HeartbeatRequest{Session: s.id}))
		if err = asError(ctx, err); err != nil && lasting(err) {
			return err // the session is gone
		}
	}
}

func (s *session) event(m *shoalv1.AttachResponse) {
	switch x := m.GetEvent().(type) {
	case *shoalv1.AttachResponse_Assignment:
		s.assign(x.Assignment)
	case *shoalv1.AttachResponse_Input:
		msg, err := pbconv.FromProtoMessage(x.Input.GetMessage())
		t := s.task(keyOf(x.Input))
		if err != nil || msg == nil || t == nil {
			s.cfg.Log.Warn("input dropped", "task", x.Input.GetTaskId(), "err", err)
			return
		}
		select {
		case t.inputs <- msg:
		default:
			t.cancel(errCanceled.With("more answers came than were asked for"))
		}
	case *shoalv1.AttachResponse_Cancel:
		if t := s.task(keyOf(x.Cancel)); t != nil {
			t.cancel(errCanceled.With("%s", x.Cancel.GetReason()))
		}
	}
}

func keyOf(m interface {
	GetTaskId() string
	GetRequester() string
},
) shoal.TaskKey {
	return shoal.TaskKey{Requester: shoal.AgentID(m.GetRequester()), ID: a2a.TaskID(m.GetTaskId())}
}

func (s *session) task(key shoal.TaskKey) *Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[key]
}

// assign starts a handler, unless the session is draining: then the assignment stays
// unanswered, and the daemon hands it over when the session closes.
func (s *session) assign(a *shoalv1.Assignment) {
	ctx, cancel := context.WithCancelCause(context.Background())
	t := newTask(s, a, cancel)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle != nil || s.tasks[t.key] != nil {
		cancel(nil)
		return
	}
	s.tasks[t.key] = t
	s.handlers.Go(func() {
		defer s.forget(t)
		defer cancel(nil)
		s.serve(ctx, t, a)
	})
}

func (s *session) forget(t *Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, t.key)
	if s.idle != nil && len(s.tasks) == 0 {
		close(s.idle)
	}
}

// serve runs the handler for one assignment and reports what became of it.
func (s *session) serve(ctx context.Context, t *Task, a *shoalv1.Assignment) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		s.finish(ctx, t, context.Cause(ctx))
		return
	}
	defer func() { <-s.slots }()
	err := t.decode(a)
	if err == nil {
		err = s.call(ctx, t)
	}
	s.finish(ctx, t, err)
}

// call runs the handler; a panic comes back as an error.
func (s *session) call(ctx context.Context, t *Task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("handler panicked", "task", t.ID, "panic", p, "stack", string(debug.Stack()))
			err = shoal.NewError(shoal.Internal, "handler_panic", fmt.Sprintf("the handler panicked: %v", p), "")
		}
	}()
	return s.handler(ctx, t, t.writer)
}

// finish reports the terminal state, if there is anyone to report to.
func (s *session) finish(ctx context.Context, t *Task, err error) {
	cause := context.Cause(ctx)
	answer := t.writer.close()
	switch {
	case errors.Is(cause, errLost), err != nil && errors.Is(cause, errStopping):
		return // the daemon knows that the session is gone, or will
	case err == nil:
		err = s.deliver(t, report{state: a2a.TaskStateCompleted, artifacts: answer})
		if err != nil && shoal.KindOf(err) == shoal.Invalid {
			// Too large, or not encodable: the asker must hear of it.
			s.cfg.Log.Warn("answer refused", "task", t.ID, "err", err)
			err = s.deliver(t, report{state: a2a.TaskStateFailed, err: err})
		}
	case errors.Is(cause, errCanceled):
		err = s.deliver(t, report{state: a2a.TaskStateCanceled, err: cause})
	default:
		state := a2a.TaskStateFailed
		if rejected := (*rejection)(nil); errors.As(err, &rejected) {
			state = a2a.TaskStateRejected
		}
		err = s.deliver(t, report{state: state, err: err})
	}
	if err != nil {
		s.cfg.Log.Warn("report refused", "task", t.ID, "err", err)
	}
}

// deliver reports a terminal state, again and again while the daemon cannot take it
// (its disk is full) but keeps the session.
func (s *session) deliver(t *Task, r report) error {
	for delay := firstRetry; ; delay = min(2*delay, maxRetry) {
		err := s.report(t, r)
		if err == nil || lasting(err) || !pause(s.alive, delay) {
			return err
		}
		s.cfg.Log.Warn("report not taken; trying again", "task", t.ID, "err", err)
	}
}

// drain tells the handlers to end and waits for them.
func (s *session) drain(ctx context.Context) {
	s.mu.Lock()
	idle := make(chan struct{})
	s.idle = idle
	if len(s.tasks) == 0 {
		close(idle)
	}
	for _, t := range s.tasks {
		t.cancel(errStopping)
	}
	s.mu.Unlock()

	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// end tells the handlers that their session is gone.
func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		t.cancel(errLost.Because(err))
	}
}
