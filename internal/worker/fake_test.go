package worker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine does what the task engine does to the pool, and notes what it hears.
type engine struct {
	pool *Pool
	fail error // returned by report, if not nil

	mu      sync.Mutex
	reports []shoal.Report
	lost    []shoal.TaskKey
	ready   []shoal.AgentID
}

func (e *engine) report(_ context.Context, r shoal.Report) (uint64, error) {
	if e.fail != nil {
		return 0, e.fail
	}
	e.mu.Lock()
	e.reports = append(e.reports, r)
	n := uint64(len(e.reports))
	e.mu.Unlock()
	if r.Chunk != nil {
		return 0, nil
	}
	if r.State.Terminal() || interrupts(r.State) {
		e.pool.Release(r.Key, r.Agent)
	}
	return n, nil
}

func (e *engine) onLost(keys []shoal.TaskKey, _ shoal.AgentID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost = append(e.lost, keys...)
}

func (e *engine) onReady(id shoal.AgentID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready = append(e.ready, id)
}

func (e *engine) takeLost() []shoal.TaskKey {
	e.mu.Lock()
	defer e.mu.Unlock()
	lost := e.lost
	e.lost = nil
	return lost
}

func (e *engine) takeReady() []shoal.AgentID {
	e.mu.Lock()
	defer e.mu.Unlock()
	ready := e.ready
	e.ready = nil
	return ready
}

// cards is a directory that notes what it is told.
type cards struct {
	mu        sync.Mutex
	published []shoal.AgentSpec
	withdrawn []shoal.AgentID
	fail      error
}

func (c *cards) Publish(_ context.Context, spec shoal.AgentSpec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.published = append(c.published, spec)
	return nil
}

func (c *cards) Withdraw(_ context.Context, id shoal.AgentID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.withdrawn = append(c.withdrawn, id)
	return nil
}

func (c *cards) refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

func (c *cards) counts() (published, withdrawn int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.published), len(c.withdrawn)
}

// ring keeps keys in memory.
type ring struct {
	node identity.Key
	mu   sync.Mutex
	keys map[shoal.AgentID]identity.Key
}

func newRing(t testing.TB) *ring {
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return &ring{node: k, keys: map[shoal.AgentID]identity.Key{}}
}

func (r *ring) Node() identity.Key { return r.node }

func (r *ring) Key(id shoal.AgentID) (identity.Key, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.keys[id]
	return k, ok
}

func (r *ring) NewAgent() (identity.Key, error) {
	k, err := identity.Generate()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[k.Agent()] = k
	return k, err
}

func (r *ring) Remove(id shoal.AgentID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.keys[id]; !ok {
		return fmt.Errorf("no key of %s", id)
	}
	delete(r.keys, id)
	return nil
}

func (r *ring) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.keys)
}

// world is a pool with fakes around it.
type world struct {
	*Pool
	engine *engine
	cards  *cards
	ring   *ring
	db     *store.DB
	t      testing.TB
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{cards: &cards{}, ring: newRing(t), db: storetest.Open(t, Schema()), t: t}
	w.reopen()
	return w
}

// reopen makes a new pool over the same database, as a restart does.
func (w *world) reopen() {
	w.t.Helper()
	w.engine = &engine{}
	p, err := New(Config{Report: w.engine.report, Ready: w.engine.onReady, Lost: w.engine.onLost},
		w.db, w.cards, w.ring, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	w.Pool, w.engine.pool = p, p
}

func (w *world) attach(spec AttachSpec) *Session {
	w.t.Helper()
	s, err := w.Attach(w.t.Context(), spec)
	if err != nil {
		w.t.Fatalf("attach %+v: %v", spec, err)
	}
	return s
}

// run starts the pool and returns what stops it and waits.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return func() {
		w.t.Helper()
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}
}

func skills(ids ...string) []shoal.Skill {
	var out []shoal.Skill
	for _, id := range ids {
		out = append(out, shoal.Skill{ID: id})
	}
	return out
}

func key(id string) shoal.TaskKey {
	return shoal.TaskKey{Requester: "did:key:asker", ID: a2a.TaskID(id)}
}

// start takes a task to a worker as the engine does.
func (w *world) start(id string, agent shoal.AgentID, skill string, attempt int) bool {
	if !w.Reserve(key(id), agent, skill) {
		return false
	}
	w.Start(shoal.Assignment{Key: key(id), Agent: agent, Skill: skill, Attempt: attempt})
	return true
}

func (w *world) next(s *Session) Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	e, err := s.Next(ctx)
	if err != nil {
		w.t.Fatalf("Next: %v", err)
	}
	return e
}

func (w *world) assigned(s *Session, id string) {
	w.t.Helper()
	e := w.next(s)
	if e.Assignment == nil || e.Assignment.Key != key(id) {
		w.t.Fatalf("got event %+v, want the assignment of %s", e, id)
	}
}

func (w *world) say(s *Session, id string, state a2a.TaskState) error {
	_, err := w.Report(w.t.Context(), s.ID(), shoal.Report{Key: key(id), State: state})
	return err
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func wantError(t testing.TB, err error, kind shoal.Kind, reason string) {
	t.Helper()
	e := shoal.AsError(err)
	if e == nil || e.Kind != kind || e.Reason != reason {
		t.Errorf("got error %v (%+v), want %v %s", err, e, kind, reason)
	}
}

func (w *world) mustExec(query string) {
	w.t.Helper()
	w.must(w.db.Update(w.t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(query)
		return err
	}))
}
