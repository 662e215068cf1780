package mail_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

// netw is a mesh in memory or on loopback TCP: nodes by id, agents by host.
type netw struct {
	tcp bool

	mu       sync.Mutex
	nodes    map[shoal.NodeID]*node
	hosts    map[shoal.AgentID]shoal.NodeID
	dead     map[shoal.NodeID]bool
	hang     bool                    // dialling a dead node takes all the time it is given
	wrap     func(net.Conn) net.Conn // of the dialling side
	patience time.Duration           // of want; long in a synctest bubble
}

func newNet() *netw {
	return &netw{nodes: map[shoal.NodeID]*node{}, hosts: map[shoal.AgentID]shoal.NodeID{}, dead: map[shoal.NodeID]bool{}, patience: 10 * time.Second}
}

// bubbleNet is a net for a synctest bubble, where waiting costs nothing.
func bubbleNet() *netw {
	w := newNet()
	w.patience = 2 * time.Hour
	return w
}

// node is a running mailbox over a database in dir. It is its own Carrier, Router and Keys.
type node struct {
	t    testing.TB
	net  *netw
	key  identity.Key
	keys map[shoal.AgentID]identity.Key
	dir  string
	cfg  mail.Config

	db   *store.DB
	box  *mail.Mailbox
	stop func()
	ctx  context.Context

	conns sync.WaitGroup // being served
}

func testKey(t testing.TB, n int) identity.Key {
	seed := make([]byte, 32)
	seed[0], seed[1] = byte(n), byte(n>>8)
	k, err := identity.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *netw) node(t testing.TB, n int, cfg mail.Config) *node {
	t.Helper()
	k := testKey(t, n)
	if cfg.Network == "" {
		cfg.Network = "test"
	}
	x := &node{t: t, net: w, key: k, keys: map[shoal.AgentID]identity.Key{}, dir: t.TempDir() + "/home", cfg: cfg}
	x.host(k)
	w.mu.Lock()
	w.nodes[k.Node()] = x
	w.mu.Unlock()
	return x
}

func (x *node) host(k identity.Key) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.keys[k.Agent()] = k
	x.net.hosts[k.Agent()] = x.key.Node()
}

func (x *node) agent() shoal.AgentID { return x.key.Agent() }

// open opens the database and makes a mailbox, without running it.
func (x *node) open() *node {
	x.t.Helper()
	db, err := store.Open(store.Config{Dir: x.dir}, []store.Schema{mail.Schema(), testSchema}, slog.New(slog.DiscardHandler))
	if err != nil {
		x.t.Fatal(err)
	}
	box, err := mail.New(x.cfg, db, x, x, x, slog.New(slog.DiscardHandler))
	if err != nil {
		x.t.Fatal(err)
	}
	x.net.mu.Lock()
	x.db, x.box = db, box
	x.net.mu.Unlock()
	return x
}

// up opens and runs the node until down or the end of the test.
func (x *node) up() *node {
	x.t.Helper()
	x.open()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.box.Run(ctx) }()
	x.net.mu.Lock()
	x.ctx = ctx
	x.net.mu.Unlock()
	var once sync.Once
	x.stop = func() {
		once.Do(func() {
			x.net.mu.Lock()
			x.ctx = nil
			x.net.mu.Unlock()
			cancel()
			if err := <-done; err != nil {
				x.t.Errorf("Run: %v", err)
			}
		})
	}
	x.t.Cleanup(x.down)
	return x
}

// down stops the node and closes its database.
func (x *node) down() {
	if x.db == nil {
		return
	}
	x.stop()
	x.conns.Wait()
	if err := x.db.Close(); err != nil {
		x.t.Errorf("close: %v", err)
	}
	x.db = nil
}

var errDead = errors.New("node is dead")

// Dial implements mail.Carrier.
func (x *node) Dial(ctx context.Context, id shoal.NodeID, proto string) (net.Conn, error) {
	w := x.net
	w.mu.Lock()
	to, dead, wrap, hang := w.nodes[id], w.dead[id], w.wrap, w.hang
	var serve context.Context
	var box *mail.Mailbox
	if to != nil {
		serve, box = to.ctx, to.box
	}
	if serve != nil && !dead {
		to.conns.Add(1)
	}
	w.mu.Unlock()
	if serve == nil || dead {
		if hang {
			<-ctx.Done()
		}
		return nil, errDead
	}
	near, far := w.pipe(x.t)
	go func() {
		defer to.conns.Done()
		box.ServeConn(serve, named{far, string(x.key.Node())})
	}()
	if wrap != nil {
		near = wrap(near)
	}
	return named{near, string(id)}, nil
}

func (w *netw) pipe(t testing.TB) (near, far net.Conn) {
	if !w.tcp {
		return net.Pipe()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// Host implements mail.Router.
func (x *node) Host(_ context.Context, id shoal.AgentID) (shoal.NodeID, error) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	if n, ok := x.net.hosts[id]; ok {
		return n, nil
	}
	return "", shoal.NewError(shoal.NotFound, "unknown_agent", "no card", "")
}

// Key implements mail.Keys.
func (x *node) Key(id shoal.AgentID) (identity.Key, bool) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	k, ok := x.keys[id]
	return k, ok
}

type named struct {
	net.Conn
	peer string
}

type peerAddr string

func (a peerAddr) Network() string { return "mesh" }
func (a peerAddr) String() string  { return string(a) }

func (n named) RemoteAddr() net.Addr { return peerAddr(n.peer) }

// testSchema is where tests' handlers write what they applied.
var testSchema = store.Schema{Package: "mailtest", Steps: []string{
	`CREATE TABLE applied (id INTEGER PRIMARY KEY, sender TEXT NOT NULL, topic TEXT NOT NULL, body BLOB NOT NULL) STRICT;`,
}}

// apply is a handler that records the envelope.
func apply(tx *store.Tx, env shoal.Envelope) error {
	_, err := tx.Exec(`INSERT INTO applied (sender, topic, body) VALUES (?, ?, ?)`, string(env.From), env.Topic, env.Body)
	return err
}

// applied returns the bodies that apply recorded, in order.
func (x *node) applied() []string {
	x.t.Helper()
	var out []string
	err := x.db.View(context.Background(), func(tx *store.Tx) error {
		out = nil
		return tx.Each(`SELECT body FROM applied ORDER BY id`, nil, func(scan func(...any) error) error {
			var b []byte
			err := scan(&b)
			out = append(out, string(b))
			return err
		})
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return out
}

// post posts one envelope in a transaction of its own and returns a channel of its final
// state.
func (x *node) post(to shoal.AgentID, topic, body string, ttl time.Duration) <-chan outcome {
	x.t.Helper()
	return x.postAs(x.agent(), to, topic, body, ttl)
}

type outcome struct {
	state  mail.State
	reason string
}

func (x *node) postAs(from, to shoal.AgentID, topic, body string, ttl time.Duration) <-chan outcome {
	x.t.Helper()
	final := make(chan outcome, 4)
	err := x.db.Update(context.Background(), func(tx *store.Tx) error {
		_, err := x.box.PostWatch(tx, from, to, topic, []byte(body), ttl, func(s mail.State, reason string) {
			if s != mail.Stored {
				final <- outcome{s, reason}
			}
		})
		return err
	})
	if err != nil {
		x.t.Fatalf("post: %v", err)
	}
	return final
}

func (x *node) want(final <-chan outcome, state mail.State, reason string) {
	x.t.Helper()
	select {
	case got := <-final:
		if (got != outcome{state, reason}) {
			x.t.Errorf("envelope ended as %v, want %s %q", got, state, reason)
		}
	case <-time.After(x.net.patience):
		x.t.Fatalf("no final state in %v, want %s", x.net.patience, state)
	}
}
