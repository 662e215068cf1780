// Package worker keeps the programs that do the work of this node's agents: who is
// attached, what each offers, which task each holds.
//
// It promises that a session never holds more tasks than its concurrency (an answer
// that comes back to an interrupted task may exceed it by that task), that each task
// held by a session that ends is given to [Config.Lost] exactly once, and that a worker
// which does not read or does not show a sign of life loses its session instead of
// holding anybody up. It does not decide what happens to a lost task, and keeps no
// task on disk: the engine does both. What it keeps is the table of hosted agents.
//
// The API attaches sessions and passes their reports; the task engine reserves, starts,
// tells and releases, inside and just after its transactions. Those methods look only
// at memory and never wait. [Config.Ready] and [Config.Lost] are called directly, by
// whichever goroutine made a slot free or ended a session, after all locks are
// released; they must return at once and may call back into the Pool. Only a slot that
// a rollback gave back is announced later, from [Pool.Run].
package worker

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
)

// Limits, all on what local programs may ask for.
const (
	maxConcurrency = 1024
	maxSessions    = 4096
	maxAgents      = 4096
	maxHeld        = 4096 // tasks of one session, with those that wait for an answer
)

// Config holds the callbacks into the engine and what may be tuned.
type Config struct {
	// Report takes a worker's report about a task that it holds.
	Report func(ctx context.Context, r shoal.Report) (uint64, error)
	// Ready hears that a slot of agent became free.
	Ready func(agent shoal.AgentID)
	// Lost hears that the worker which held these tasks is gone.
	Lost func(keys []shoal.TaskKey, agent shoal.AgentID)

	// Linger is how long an ephemeral agent's card stays after its last worker left, so
	// that a worker which reconnects does not make the card flap. Default 3s.
	Linger time.Duration
}

func (c Config) withDefaults() Config {
	if c.Report == nil {
		c.Report = func(context.Context, shoal.Report) (uint64, error) { return 0, errStopping }
	}
	if c.Ready == nil {
		c.Ready = func(shoal.AgentID) {}
	}
	if c.Lost == nil {
		c.Lost = func([]shoal.TaskKey, shoal.AgentID) {}
	}
	if c.Linger == 0 {
		c.Linger = 3 * time.Second
	}
	return c
}

// Directory signs and publishes the cards of hosted agents.
type Directory interface {
	// Publish makes the agent's card say this; it does not wait for the mesh.
	Publish(ctx context.Context, spec shoal.AgentSpec) error
	// Withdraw takes the card back.
	Withdraw(ctx context.Context, id shoal.AgentID) error
}

// Keys are the private keys of this node and its agents.
type Keys interface {
	Node() identity.Key
	Key(id shoal.AgentID) (identity.Key, bool)
	NewAgent() (identity.Key, error)
	Remove(id shoal.AgentID) error
}

// Pool is the hosted agents and their attached workers. Its methods are safe for
// concurrent use.
type Pool struct {
	cfg  Config
	db   *store.DB
	dir  Directory
	keys Keys
	log  *slog.Logger

	own   shoal.AgentID // the node's own agent
	admin chan struct{} // capacity 1: one change to the table of agents at a time
	wake  chan struct{} // capacity 1: Run has something to look at

	mu       sync.Mutex
	agents   map[shoal.AgentID]*agent
	names    map[string]shoal.AgentID
	sessions map[string]*Session
	held     map[shoal.TaskKey]*hold
	rolled   map[shoal.AgentID]bool // a start was rolled back; Ready is due at rolledAt
	rolledAt time.Time
	stopped  bool
}

// New loads the table of agents; nothing runs until [Pool.Run], but sessions may attach
// before it.
func New(cfg Config, db *store.DB, dir Directory, keys Keys, log *slog.Logger) (*Pool, error) {
	p := &Pool{
		cfg: cfg.withDefaults(), db: db, dir: dir, keys: keys, log: log,
		own:   keys.Node().Agent(),
		admin: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		agents:   make(map[shoal.AgentID]*agent),
		names:    make(map[string]shoal.AgentID),
		sessions: make(map[string]*Session),
		held:     make(map[shoal.TaskKey]*hold),
		rolled:   make(map[shoal.AgentID]bool),
	}
	if err := p.load(context.Background()); err != nil {
		return nil, err
	}
	return p, nil
}

// Run withdraws the cards of ephemeral agents that have nobody left. When ctx ends it
// closes all sessions and returns nil; the tasks that they held are not reported lost,
// since the engine settles them at the next start.
func (p *Pool) Run(ctx context.Context) error {
	defer p.stop()
	timer := time.NewTimer(p.cfg.Linger) // for those left over from the last run
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
		next := sooner(p.withdrawLeft(ctx, time.Now()), p.retryRolled(time.Now()))
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// sooner returns the lesser of two waits, where 0 means never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// rollbackWait is how long a slot whose start was rolled back rests before the engine
// hears that it is free: at once, the two would spin while the disk is full.
const rollbackWait = time.Second

// retryRolled says Ready for slots that came back by a rollback.
func (p *Pool) retryRolled(now time.Time) (next time.Duration) {
	p.mu.Lock()
	if len(p.rolled) == 0 {
		p.mu.Unlock()
		return 0
	}
	if wait := p.rolledAt.Sub(now); wait > 0 {
		p.mu.Unlock()
		return wait
	}
	agents := slices.Sorted(maps.Keys(p.rolled))
	clear(p.rolled)
	p.mu.Unlock()
	for _, id := range agents {
		p.cfg.Ready(id)
	}
	return 0
}

func (p *Pool) stop() {
	p.mu.Lock()
	p.stopped = true
	p.held = make(map[shoal.TaskKey]*hold)
	for _, s := range p.sessions {
		s.end(errStopping)
	}
	clear(p.sessions)
	for _, a := range p.agents {
		a.sessions = nil
	}
	p.mu.Unlock()
}

// withdrawLeft takes back the cards of ephemeral agents that have had no worker for
// Linger, and returns when to look again, 0 for not before something happens.
func (p *Pool) withdrawLeft(ctx context.Context, now time.Time) (next time.Duration) {
	var due []shoal.AgentID
	p.mu.Lock()
	for id, a := range p.agents {
		if !a.Ephemeral || !a.Published || len(a.sessions) > 0 {
			continue
		}
		wait := a.leftAt.Add(p.cfg.Linger).Sub(now)
		if wait <= 0 {
			due = append(due, id)
		} else {
			next = sooner(next, wait)
		}
	}
	p.mu.Unlock()

	for _, id := range due {
		if err := p.withdraw(ctx, id); err != nil && ctx.Err() == nil {
			p.log.Warn("card not withdrawn; will be tried again", "agent", id, "err", err)
			next = sooner(next, retryWithdraw)
		}
	}
	return next
}

// retryWithdraw is the wait after the disk refused to store a withdrawal.
const retryWithdraw = 30 * time.Second

// withdraw takes one card back unless a worker came meanwhile.
func (p *Pool) withdraw(ctx context.Context, id shoal.AgentID) error {
	if err := p.lockAdmin(ctx); err != nil {
		return err
	}
	defer p.unlockAdmin()
	p.mu.Lock()
	a := p.agents[id]
	gone := a == nil || len(a.sessions) > 0
	p.mu.Unlock()
	if gone {
		return nil
	}
	if err := p.dir.Withdraw(ctx, id); err != nil && shoal.KindOf(err) != shoal.NotFound {
		return err
	}
	return p.save(ctx, id, func(r *record) { r.Published = false })
}

func (p *Pool) lockAdmin(ctx context.Context) error {
	select {
	case p.admin <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Pool) unlockAdmin() { <-p.admin }

// Errors that callers test for.
var (
	ErrNotAssigned = shoal.NewError(shoal.Denied, "not_assigned", "the session does not hold this task",
		"the task has ended, or was handed to another worker")
	ErrNoSession = shoal.NewError(shoal.NotFound, "unknown_session", "no such session",
		"attach again; a session ends with its stream")
	ErrUnknownAgent = shoal.NewError(shoal.NotFound, "unknown_agent", "no such agent is hosted here",
		"see `shoal agent list`")

	errStopping = shoal.NewError(shoal.Unavailable, "daemon_stopping", "the daemon is stopping",
		"attach again when it is back")
	errSilent = shoal.NewError(shoal.Timeout, "heartbeat_missed", "the worker showed no sign of life",
		"call Heartbeat more often, or ask for a longer heartbeat_ms")
	errSlow = shoal.NewError(shoal.Exhausted, "worker_too_slow", "the worker does not read its events",
		"read the stream at all times; do the work elsewhere")
	errClosed  = shoal.NewError(shoal.Conflict, "session_closed", "the session is closed", "attach again")
	errRemoved = shoal.NewError(shoal.NotFound, "agent_removed", "the agent was removed", "")
)
