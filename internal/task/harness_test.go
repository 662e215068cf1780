package task

import (
	"context"
	"errors"
	"log/slog"
	"net"
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

// world is nodes that reach each other by an in-memory post office: envelopes are
// delivered in order, each in a transaction of its receiver, as package mail does.
type world struct {
	t     testing.TB
	mu    sync.Mutex
	nodes map[shoal.AgentID]*testNode
}

func newWorld(t testing.TB) *world { return &world{t: t, nodes: map[shoal.AgentID]*testNode{}} }

// testNode is one node with one agent, its engine and its workers.
type testNode struct {
	*Engine
	w       *world
	key     identity.Key
	db      *store.DB
	workers *fakeWorkers
	box     chan post

	mu   sync.Mutex
	sent []shoal.Envelope
	// drop makes the post office swallow an envelope.
	drop func(shoal.Envelope) bool
}

type post struct{ env shoal.Envelope }

// node starts a node whose agent offers the skills. It stops with the test.
func (w *world) node(seed byte, skills ...shoal.Skill) *testNode {
	w.t.Helper()
	raw := make([]byte, 32)
	raw[0] = seed
	key, err := identity.FromSeed(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	n := &testNode{w: w, key: key, db: storetest.Open(w.t, Schema()), box: make(chan post, 100_000)}
	n.workers = &fakeWorkers{skills: skills, held: map[shoal.TaskKey]bool{}, started: make(chan shoal.Assignment, 100_000), told: make(chan told, 1000)}
	n.Engine, err = New(Config{Network: "test"}, Deps{DB: n.db, Outbox: n, Workers: n.workers, Agents: n, Mesh: n, Keys: n, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	n.workers.engine = n.Engine
	w.mu.Lock()
	w.nodes[key.Agent()] = n
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	wg.Go(func() { n.deliver(ctx) })
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	return n
}

func (n *testNode) Key(a shoal.AgentID) (identity.Key, bool) { return n.key, a == n.key.Agent() }
func (n *testNode) Host(_ context.Context, a shoal.AgentID) (shoal.NodeID, error) {
	return a.Node(), nil
}

func (n *testNode) Choose(_ context.Context, skill string) (shoal.AgentID, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for id, o := range n.w.nodes {
		if _, err := o.workers.Skill(id, skill); err == nil && len(o.workers.skills) > 0 {
			return id, nil
		}
	}
	return "", shoal.NewError(shoal.NotFound, "no_agent", "nobody offers "+skill, "")
}
func (n *testNode) Check(shoal.AgentID, string) error { return nil }

// Dial connects to another node's ServeConn by a pipe that names both ends.
func (n *testNode) Dial(ctx context.Context, node shoal.NodeID, _ string) (net.Conn, error) {
	n.w.mu.Lock()
	to := n.w.nodes[node.Agent()]
	n.w.mu.Unlock()
	if to == nil {
		return nil, errors.New("no such node")
	}
	ours, theirs := net.Pipe()
	go to.ServeConn(context.WithoutCancel(ctx), named{theirs, n.key.Node()})
	return ours, nil
}

type named struct {
	net.Conn
	id shoal.NodeID
}

func (c named) RemoteAddr() net.Addr { return addr(c.id) }

type addr string

func (addr) Network() string  { return "shoal" }
func (a addr) String() string { return string(a) }

// Post implements Outbox.
func (n *testNode) Post(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, _ time.Duration) ([16]byte, error) {
	env := shoal.Envelope{Network: "test", From: from, To: to, Topic: topic, Body: body}
	tx.AfterCommit(func() {
		n.mu.Lock()
		n.sent = append(n.sent, env)
		lost := n.drop != nil && n.drop(env)
		n.mu.Unlock()
		n.w.mu.Lock()
		dest := n.w.nodes[to]
		n.w.mu.Unlock()
		if dest != nil && !lost {
			dest.box <- post{env}
		}
	})
	return [16]byte{}, nil
}

// PostLazy implements Outbox.
func (n *testNode) PostLazy(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration) ([16]byte, error) {
	return n.Post(tx, from, to, topic, body, ttl)
}

func (n *testNode) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-n.box:
			err := n.db.Update(ctx, func(tx *store.Tx) error { return n.Receive(tx, p.env) })
			if err != nil && ctx.Err() == nil {
				n.w.t.Logf("refused at %s: %v", n.agent().Short(), err)
				n.w.mu.Lock()
				from := n.w.nodes[p.env.From]
				n.w.mu.Unlock()
				_ = from.db.Update(ctx, func(tx *store.Tx) error {
					return from.Undelivered(tx, p.env, shoal.AsError(err).Reason)
				})
			}
		}
	}
}

// fakeWorkers is a pool with a fixed number of free slots.
type fakeWorkers struct {
	engine *Engine
	skills []shoal.Skill

	mu      sync.Mutex
	slots   int
	held    map[shoal.TaskKey]bool
	gone    bool // Tell finds nobody
	started chan shoal.Assignment
	told    chan told
}

type told struct {
	key    shoal.TaskKey
	input  *a2a.Message
	cancel string
}

func (f *fakeWorkers) Skill(agent shoal.AgentID, skill string) (shoal.Skill, error) {
	for _, s := range f.skills {
		if s.ID == skill || skill == "" {
			return s, nil
		}
	}
	return shoal.Skill{}, shoal.NewError(shoal.NotFound, "unknown_skill", "no skill "+skill, "")
}

func (f *fakeWorkers) Reserve(key shoal.TaskKey, _ shoal.AgentID, _ string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[key] {
		return true
	}
	if f.slots == 0 {
		return false
	}
	f.slots--
	f.held[key] = true
	return true
}

func (f *fakeWorkers) Start(a shoal.Assignment) { f.started <- a }

func (f *fakeWorkers) Tell(key shoal.TaskKey, _ shoal.AgentID, in *a2a.Message, cancel string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return false
	}
	f.told <- told{key, in, cancel}
	return true
}

func (f *fakeWorkers) Release(key shoal.TaskKey, agent shoal.AgentID) {
	f.mu.Lock()
	had := f.held[key]
	if had {
		delete(f.held, key)
		f.slots++
	}
	f.mu.Unlock()
	if had {
		f.engine.Ready(agent)
	}
}

// attach adds free slots.
func (n *testNode) attach(slots int) {
	n.workers.mu.Lock()
	n.workers.slots += slots
	n.workers.mu.Unlock()
	n.Ready(n.key.Agent())
}

func (n *testNode) agent() shoal.AgentID { return n.key.Agent() }

func text(s string) *a2a.Message { return a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart(s)) }

func artifact(id, s string) *a2a.Artifact {
	return &a2a.Artifact{ID: a2a.ArtifactID(id), Parts: a2a.ContentParts{a2a.NewTextPart(s)}}
}

// report says something about an assignment as its worker.
func (n *testNode) report(t testing.TB, a shoal.Assignment, state a2a.TaskState, arts ...*a2a.Artifact) {
	t.Helper()
	_, err := n.Report(context.Background(), shoal.Report{Key: a.Key, Agent: a.Agent, Attempt: a.Attempt, State: state, Artifacts: arts})
	if err != nil {
		t.Fatalf("report %s: %v", state, err)
	}
}

func (n *testNode) submit(t testing.TB, req Request) Task {
	t.Helper()
	req.From = n.agent()
	if req.Message == nil {
		req.Message = text("hello")
	}
	task, _, err := n.Submit(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func (n *testNode) wait(t testing.TB, id a2a.TaskID) Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	task, err := n.Wait(ctx, Ref{ID: id})
	if err != nil {
		t.Fatalf("wait for %s: %v", id, err)
	}
	return task
}

// countersigned waits until both nodes hold the receipt with both signatures.
func countersigned(t testing.TB, n *testNode, ref Ref) SignedReceipt {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	w, err := n.watcherOf(context.Background(), &ref)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for {
		r, err := n.Receipt(context.Background(), ref)
		if err == nil && r.AskerSignature != nil {
			return r
		}
		select {
		case <-w.wake:
		case <-time.After(time.Until(deadline)):
			t.Fatalf("no countersigned receipt: %+v, %v", r, err)
		}
	}
}
