package worker

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

// Event is what a worker is told: one of the pointers is set. It is not to be changed.
type Event struct {
	Assignment *shoal.Assignment
	Input      *Input
	Cancel     *Cancel
}

// Input is the asker's answer to an interrupted task.
type Input struct {
	Key     shoal.TaskKey
	Message *a2a.Message
}

// Cancel says that the work on a task is no longer wanted.
type Cancel struct {
	Key    shoal.TaskKey
	Reason string
}

// Session is one attached worker, from [Pool.Attach] until [Session.Close] or until it
// is lost. One goroutine calls Next; everything else is safe for concurrent use.
type Session struct {
	pool   *Pool
	id     string
	spec   shoal.AgentSpec // of the agent, when attached
	offers map[string]bool // skill ids; nil = all that the agent offers
	slots  int

	heartbeat time.Duration
	seen      atomic.Int64 // unix ns of the last sign of life
	silence   *time.Timer  // nil without heartbeat

	// Guarded by pool.mu.
	used int                     // slots taken
	held map[shoal.TaskKey]*hold // tasks bound to it, with those that wait for an answer

	mu    sync.Mutex
	queue []Event
	err   error         // why it ended
	wake  chan struct{} // capacity 1: queue or err changed
}

// open makes the session. The caller holds admin.
func (p *Pool) open(id shoal.AgentID, spec AttachSpec) (*Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, errStopping
	}
	if len(p.sessions) >= maxSessions {
		return nil, shoal.NewError(shoal.Exhausted, "too_many_workers", "too many workers are attached", "attach fewer, with a higher concurrency")
	}
	a := p.agents[id]
	s := &Session{
		pool: p, id: rand.Text(), spec: a.Spec, slots: spec.Concurrency,
		held: make(map[shoal.TaskKey]*hold), wake: make(chan struct{}, 1), heartbeat: spec.Heartbeat,
	}
	if len(spec.Skills) > 0 {
		s.offers = make(map[string]bool, len(spec.Skills))
		for _, k := range spec.Skills {
			s.offers[k.ID] = true
		}
	}
	p.sessions[s.id] = s
	a.sessions = append(a.sessions, s)
	s.alive()
	if s.heartbeat > 0 {
		s.silence = time.AfterFunc(s.patience(), s.checkSilence)
	}
	return s, nil
}

// ID returns the session's secret: whoever knows it may report for the worker.
func (s *Session) ID() string { return s.id }

// Agent returns the agent as it was when the session attached.
func (s *Session) Agent() shoal.AgentSpec { return s.spec }

// Next waits for the next event. It returns ctx's error, or a [*shoal.Error] that says
// why the session ended; then no more events come.
func (s *Session) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if s.err != nil {
			defer s.mu.Unlock()
			return Event{}, s.err
		}
		if len(s.queue) > 0 {
			e := s.queue[0]
			s.queue[0] = Event{}
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return e, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return Event{}, ctx.Err()
		case <-s.wake:
		}
	}
}

// Close ends the session: the worker is gone. The tasks that it holds are lost. Closing
// twice is no error.
func (s *Session) Close() { s.pool.close(s, errClosed) }

// backlog is how many events may wait unread: an assignment, an answer and a cancel for
// each task it holds, and some of tasks that ended. The caller holds pool.mu.
func (s *Session) backlog() int { return 3*len(s.held) + 64 }

// push queues an event without waiting; it returns false if the worker is too far behind.
func (s *Session) push(e Event, backlog int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return true // the events of an ended session go nowhere; its tasks are lost already
	}
	if len(s.queue) >= backlog {
		return false
	}
	s.queue = append(s.queue, e)
	s.signal()
	return true
}

func (s *Session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end makes Next return err.
func (s *Session) end(err error) {
	if s.silence != nil {
		s.silence.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err, s.queue = err, nil
		s.signal()
	}
}

// close takes the session out of the pool and reports what it held as lost.
func (p *Pool) close(s *Session, why error) {
	p.mu.Lock()
	if p.sessions[s.id] != s {
		p.mu.Unlock()
		return
	}
	delete(p.sessions, s.id)
	id := s.spec.ID
	var left bool
	if a := p.agents[id]; a != nil {
		a.sessions = slices.DeleteFunc(a.sessions, func(o *Session) bool { return o == s })
		if len(a.sessions) == 0 {
			a.leftAt = time.Now()
			left = a.Ephemeral
		}
	}
	lost := p.orphan(s)
	p.mu.Unlock()

	s.end(why)
	if left {
		p.poke()
	}
	if len(lost) > 0 {
		p.cfg.Lost(lost, id)
	}
}

// alive notes a sign of life.
func (s *Session) alive() {
	if s.heartbeat > 0 {
		s.seen.Store(time.Now().UnixNano())
	}
}

// patience is how long a session may be silent: its promise and half again, so that one
// late packet is no loss.
func (s *Session) patience() time.Duration { return s.heartbeat + s.heartbeat/2 }

// checkSilence runs when the worker may have been silent for too long.
func (s *Session) checkSilence() {
	s.pool.mu.Lock() // open has set the timer
	silence := s.silence
	s.pool.mu.Unlock()
	quiet := time.Since(time.Unix(0, s.seen.Load()))
	if rest := s.patience() - quiet; rest > 0 {
		silence.Reset(rest)
		return
	}
	s.pool.log.Warn("worker lost: no heartbeat", "agent", s.spec.ID, "quiet", quiet)
	s.pool.close(s, errSilent)
}

// Heartbeat is a worker's sign of life. It returns [ErrNoSession] once the session has
// ended.
func (p *Pool) Heartbeat(session string) error {
	p.mu.Lock()
	s := p.sessions[session]
	p.mu.Unlock()
	if s == nil {
		return ErrNoSession
	}
	s.alive()
	return nil
}
