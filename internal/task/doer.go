package task

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// Report takes what a worker says about its assignment. Artifacts and a new state are
// durable when it returns, in one step; n is the number of that event. A chunk is passed
// on to those who watch now, and n is 0. Package worker has checked that the caller
// holds the task. It returns [ErrIllegal] or [ErrTerminal] for a report that comes too
// late, and [ErrBadMessage].
func (e *Engine) Report(ctx context.Context, rep shoal.Report) (n uint64, err error) {
	if rep.Chunk != nil {
		e.hub.chunk(rep.Key, *rep.Chunk)
		return 0, nil
	}
	c, err := reportChange(rep)
	if err != nil {
		return 0, err
	}
	if lt := e.live.doing(rep.Key); lt != nil {
		return e.reportLive(ctx, lt, c)
	}
	err = e.DB.Update(ctx, func(tx *store.Tx) error {
		r, err := loadRow(tx, Doing, rep.Key)
		if err != nil {
			return err
		}
		if r.doer != rep.Agent || r.attempt != rep.Attempt {
			return ErrIllegal.With("attempt %d is over", rep.Attempt)
		}
		if err := e.apply(tx, &r, c); err != nil {
			return err
		}
		if r.state.Terminal() {
			e.traceHop(tx, "task.work", &r, r.started)
		}
		n = r.n
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("report on task %s: %w", rep.Key.ID, err)
	}
	return n, nil
}

func reportChange(rep shoal.Report) (change, error) {
	c := change{in: input{kind: inReport, state: rep.State}}
	size := 0
	for _, a := range rep.Artifacts {
		if a == nil || a.ID == "" || len(a.Parts) == 0 {
			return change{}, ErrBadMessage.With("an artifact needs an id and at least one part")
		}
		raw, err := encodeArtifact(a)
		if err != nil {
			return change{}, err
		}
		size += len(raw)
		c.artifacts = append(c.artifacts, raw)
	}
	if rep.State == a2a.TaskStateUnspecified && len(c.artifacts) == 0 {
		return change{}, shoal.NewError(shoal.Invalid, "empty_report", "the report says nothing",
			"set a status, an artifact or a chunk")
	}
	if rep.State == a2a.TaskStateSubmitted {
		return change{}, ErrIllegal.With("a worker cannot report SUBMITTED")
	}
	if rep.State != a2a.TaskStateUnspecified {
		raw, err := encodeStatus(rep.State, rep.Message, now())
		if err != nil {
			return change{}, err
		}
		size += len(raw)
		c.status = raw
	}
	if rep.State == a2a.TaskStateFailed || rep.State == a2a.TaskStateRejected {
		c.reason = reasonOf(rep.Message)
	}
	if size > maxBody {
		return change{}, tooLarge("report", size)
	}
	return c, nil
}

// maxReason bounds the reason code that a worker gives.
const maxReason = 64

// reasonOf returns the reason code that a worker put into its message's metadata (as
// package agent does), "" if there is none or it is no code: it ends up in scripts.
func reasonOf(m *a2a.Message) string {
	if m == nil {
		return ""
	}
	code, _ := m.Metadata["reason"].(string)
	if len(code) > maxReason {
		return ""
	}
	for _, c := range code {
		if c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return ""
		}
	}
	return code
}

// Ready says that a slot of agent became free, or a worker attached: what waits for it
// is started. It returns at once.
func (e *Engine) Ready(agent shoal.AgentID) { e.queue.poke(agent) }

// Lost says that the worker which held these tasks is gone. It returns at once.
func (e *Engine) Lost(keys []shoal.TaskKey, agent shoal.AgentID) { e.queue.lost(keys, agent, inLost) }

// queue tells the dispatcher what to look at: agents with waiting tasks and tasks whose
// worker was lost. The truth is in the database; this is only a hint where to look.
type queue struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	agents map[shoal.AgentID]bool // agents with waiting tasks → look now
	gone   []lostTask
}

type lostTask struct {
	key   shoal.TaskKey
	agent shoal.AgentID
	how   inputKind // inLost or inUnseen
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), agents: map[shoal.AgentID]bool{}}
}

func (q *queue) waiting(agent shoal.AgentID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.agents[agent]
	return ok
}

// add remembers that agent has a waiting task, and looks once: a slot may have become
// free between the try and the commit.
func (q *queue) add(agent shoal.AgentID) {
	q.mu.Lock()
	q.agents[agent] = true
	q.mu.Unlock()
	q.signal()
}

func (q *queue) poke(agent shoal.AgentID) {
	q.mu.Lock()
	_, ok := q.agents[agent]
	if ok {
		q.agents[agent] = true
	}
	q.mu.Unlock()
	if ok {
		q.signal()
	}
}

func (q *queue) lost(keys []shoal.TaskKey, agent shoal.AgentID, how inputKind) {
	q.mu.Lock()
	for _, k := range keys {
		q.gone = append(q.gone, lostTask{k, agent, how})
	}
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what to look at now. Agents stay known as waiting until [queue.empty].
func (q *queue) take() (agents []shoal.AgentID, gone []lostTask) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for a, look := range q.agents {
		if look {
			agents = append(agents, a)
			q.agents[a] = false
		}
	}
	gone, q.gone = q.gone, nil
	return agents, gone
}

// empty forgets an agent that has nothing waiting, unless somebody looked again.
func (q *queue) empty(agent shoal.AgentID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.agents[agent] {
		delete(q.agents, agent)
	}
}

// dispatch starts waiting tasks and settles those of lost workers until ctx ends.
func (e *Engine) dispatch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.queue.wake:
		}
		agents, gone := e.queue.take()
		for _, g := range gone {
			e.settleLost(ctx, g)
		}
		for _, a := range agents {
			e.startWaiting(ctx, a)
		}
	}
}

// startWaiting hands waiting tasks of one agent to workers, oldest first, until no slot
// is free or none waits.
func (e *Engine) startWaiting(ctx context.Context, agent shoal.AgentID) {
	const batch = 64
	for {
		started, tried := 0, 0
		err := e.DB.Update(ctx, func(tx *store.Tx) error {
			started, tried = 0, 0
			keys, err := waitingKeys(tx, agent, batch)
			if err != nil {
				return err
			}
			full := map[string]bool{} // skills without a slot: a slot that comes now is for the oldest
			for _, w := range keys {
				tried++
				if full[w.skill] {
					continue
				}
				r, err := loadRow(tx, Doing, w.key)
				if err != nil {
					return err
				}
				ok, err := e.tryStart(tx, &r)
				if err != nil {
					return err
				}
				full[r.skill] = !ok
				if ok {
					started++
				}
			}
			if len(keys) == 0 {
				tx.AfterCommit(func() { e.queue.empty(agent) })
			}
			return nil
		})
		if err != nil {
			if ctx.Err() == nil {
				e.Log.Warn("waiting tasks not started; will be tried again", "agent", agent, "err", err)
			}
			return
		}
		if started == 0 || tried < batch && started == tried {
			if tried > 0 && started == tried {
				e.queue.poke(agent) // maybe the last ones: look once more to forget the agent
			}
			return
		}
	}
}

// waiting is a task that waits for a slot.
type waiting struct {
	key   shoal.TaskKey
	skill string
}

func waitingKeys(tx *store.Tx, agent shoal.AgentID, limit int) ([]waiting, error) {
	var keys []waiting
	err := tx.Each(`SELECT requester, id, skill FROM tasks WHERE doer = ? AND queued = 1 ORDER BY row LIMIT ?`,
		[]any{string(agent), limit}, func(scan func(...any) error) error {
			var w waiting
			if err := scan((*string)(&w.key.Requester), (*string)(&w.key.ID), &w.skill); err != nil {
				return err
			}
			keys = append(keys, w)
			return nil
		})
	return keys, err
}

// settleLost applies the rule for a lost worker: FAILED worker_lost, or handed over with
// the next attempt if the skill is idempotent.
func (e *Engine) settleLost(ctx context.Context, g lostTask) {
	if lt := e.live.doing(g.key); lt != nil {
		e.loseLive(ctx, lt)
		return
	}
	skills := func(skill string) bool {
		s, err := e.Workers.Skill(g.agent, skill)
		return err == nil && s.Idempotent
	}
	err := e.DB.Update(ctx, func(tx *store.Tx) error {
		r, err := loadRow(tx, Doing, g.key)
		if err != nil {
			return err
		}
		return e.apply(tx, &r, change{in: input{kind: g.how, idempotent: skills(r.skill)}})
	})
	if err == nil || errors.Is(err, ErrTerminal) || errors.Is(err, ErrIllegal) || isNotFound(err) {
		return
	}
	if ctx.Err() == nil {
		e.Log.Warn("lost worker's task not settled; will be tried again", "task", g.key.ID, "err", err)
		e.queue.retry(g)
	}
}

// retry puts a lost task back without waking the dispatcher: the next event will.
func (q *queue) retry(g lostTask) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = append(q.gone, g)
}
