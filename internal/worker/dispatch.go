package worker

import (
	"context"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

// stage is how far the binding of a task to a session is.
type stage uint8

const (
	reserved stage = iota // a slot is taken; the engine's commit is not known yet
	running               // the worker has the assignment, and a slot
	parked                // the worker asked back: bound, but no slot is taken
)

// hold binds a task to the session that does it.
type hold struct {
	key       shoal.TaskKey
	session   *Session // nil once it ended: only while reserved
	stage     stage
	attempt   int
	asking    *question // on its way to the engine
	cancelled bool      // the worker was told to stop
}

// question is a report that interrupts a task.
type question struct {
	released bool // the engine took the slot back meanwhile: for the question, or the end
}

// Reserve takes a slot for a task: of the attached worker that offers the skill and has
// most slots free, of several the one attached first. It returns false if there is
// none. It is idempotent for a task that is not released.
func (p *Pool) Reserve(key shoal.TaskKey, agent shoal.AgentID, skill string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.held[key]
	if h != nil && h.session != nil {
		if h.stage != parked {
			return h.session.spec.ID == agent
		}
		p.forget(h) // a new attempt: whoever asked back is not answered any more
	}
	s := p.pick(agent, skill)
	if s == nil {
		return false
	}
	s.used++
	h = &hold{key: key, session: s}
	p.held[key], s.held[key] = h, h
	return true
}

func (p *Pool) pick(agent shoal.AgentID, skill string) (best *Session) {
	a := p.agents[agent]
	if a == nil {
		return nil
	}
	for _, s := range a.sessions {
		if s.offers != nil && !s.offers[skill] || len(s.held) >= maxHeld {
			continue
		}
		if free := s.slots - s.used; free > 0 && (best == nil || free > best.slots-best.used) {
			best = s
		}
	}
	return best
}

// Start hands a reserved task to its worker. If the worker has left meanwhile, the task
// is lost.
func (p *Pool) Start(a shoal.Assignment) {
	p.mu.Lock()
	h := p.held[a.Key]
	if h == nil || h.session == nil {
		delete(p.held, a.Key)
		p.mu.Unlock()
		p.cfg.Lost([]shoal.TaskKey{a.Key}, a.Agent)
		return
	}
	h.stage, h.attempt = running, a.Attempt
	s, backlog := h.session, h.session.backlog()
	p.mu.Unlock()
	p.send(s, Event{Assignment: &a}, backlog)
}

// Tell passes the asker's answer, or (with a nil input) that the task was cancelled and
// why, to the worker that holds the task. It returns false if nobody does. An answer
// takes a slot again, even if none is free.
func (p *Pool) Tell(key shoal.TaskKey, agent shoal.AgentID, input *a2a.Message, cancel string) bool {
	p.mu.Lock()
	h := p.held[key]
	if h == nil || h.session == nil || h.stage == reserved || h.session.spec.ID != agent {
		p.mu.Unlock()
		return false
	}
	e := Event{Input: &Input{Key: key, Message: input}}
	if input == nil {
		// Once is enough: an asker must not fill the worker's queue with cancels.
		if h.cancelled {
			p.mu.Unlock()
			return true
		}
		h.cancelled = true
		e = Event{Cancel: &Cancel{Key: key, Reason: cancel}}
	} else if h.stage == parked {
		h.stage, h.asking = running, nil // an answer settles the question
		h.session.used++
	}
	s, backlog := h.session, h.session.backlog()
	p.mu.Unlock()
	p.send(s, e, backlog)
	return true
}

// send queues an event. A worker that is too far behind is lost, with this task.
func (p *Pool) send(s *Session, e Event, backlog int) {
	if !s.push(e, backlog) {
		p.log.Warn("worker lost: it does not read", "agent", s.spec.ID)
		p.close(s, errSlow)
	}
}

// Release gives a task's slot back: the task has ended, or its start was rolled back, or
// its worker asked back. In the last case the task stays bound to the worker.
func (p *Pool) Release(key shoal.TaskKey, agent shoal.AgentID) {
	p.mu.Lock()
	h := p.held[key]
	if h == nil || h.session != nil && h.session.spec.ID != agent {
		p.mu.Unlock()
		return
	}
	rolledBack := h.stage == reserved
	freed := p.release(h)
	if freed && rolledBack {
		if len(p.rolled) == 0 {
			p.rolledAt = time.Now().Add(rollbackWait)
		}
		p.rolled[agent] = true
	}
	p.mu.Unlock()
	switch {
	case freed && rolledBack:
		p.poke()
	case freed:
		p.cfg.Ready(agent)
	}
}

// release tells whether a slot became free. The caller holds mu.
func (p *Pool) release(h *hold) (freed bool) {
	s := h.session
	if s != nil && h.stage != parked {
		s.used--
		freed = s.used < s.slots
	}
	if s != nil && h.asking != nil {
		h.stage, h.asking.released = parked, true
		return freed
	}
	p.forget(h)
	return freed
}

func (p *Pool) forget(h *hold) {
	delete(p.held, h.key)
	if h.session != nil {
		delete(h.session.held, h.key)
	}
}

// orphan unbinds all tasks of a session that ended and returns those to be reported
// lost. Of a task that is only reserved the engine hears in Start, if its commit
// succeeds; telling it twice could hit the next attempt. The caller holds mu.
func (p *Pool) orphan(s *Session) (lost []shoal.TaskKey) {
	for key, h := range s.held {
		h.session = nil
		if h.stage != reserved {
			delete(p.held, key)
			lost = append(lost, key)
		}
	}
	s.held, s.used = nil, 0
	return lost
}

// Report passes a worker's report to the engine, with the agent and attempt filled in.
// A report without a requester means the task of that id that the session holds. A
// chunk for a task that the session does not hold (any more) is dropped without an
// error, since chunks may be lost. Else it returns [ErrNotAssigned], [ErrNoSession] and
// the engine's errors. n is the number of the durable event, 0 for a chunk.
func (p *Pool) Report(ctx context.Context, session string, r shoal.Report) (n uint64, err error) {
	p.mu.Lock()
	s := p.sessions[session]
	if s == nil {
		p.mu.Unlock()
		return 0, ErrNoSession
	}
	h := s.find(r.Key)
	if h == nil || h.stage == reserved {
		p.mu.Unlock()
		s.alive()
		if r.Chunk != nil {
			return 0, nil
		}
		return 0, ErrNotAssigned.With("task %s", clip(string(r.Key.ID)))
	}
	r.Key, r.Agent, r.Attempt = h.key, s.spec.ID, h.attempt
	var asked *question
	if r.Chunk == nil && h.asking == nil && interrupts(r.State) {
		asked = new(question)
		h.asking = asked
	}
	p.mu.Unlock()

	s.alive()
	n, err = p.cfg.Report(ctx, r)
	if asked != nil {
		p.settle(h, asked, err)
	}
	if r.Chunk != nil && err != nil {
		p.log.Debug("chunk dropped", "task", r.Key.ID, "err", err)
		return 0, nil
	}
	return n, err
}

// settle notes what became of a question. If the engine refused it and took the slot
// back all the same, the task has ended.
func (p *Pool) settle(h *hold, asked *question, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.asking != asked {
		return // answered already
	}
	h.asking = nil
	if err != nil && asked.released && p.held[h.key] == h {
		p.forget(h)
	}
}

func interrupts(s a2a.TaskState) bool {
	return s == a2a.TaskStateInputRequired || s == a2a.TaskStateAuthRequired
}

// find returns the session's task of that key, or of that id if no requester is given
// and it is the only one. The caller holds pool.mu.
func (s *Session) find(key shoal.TaskKey) (found *hold) {
	if key.Requester != "" {
		return s.held[key]
	}
	for k, h := range s.held {
		if k.ID == key.ID {
			if found != nil {
				return nil
			}
			found = h
		}
	}
	return found
}
