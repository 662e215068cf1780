package directory

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/store/storetest"
)

const testNet = "test"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testKey returns the same key for the same name.
func testKey(t testing.TB, name string) identity.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	k, err := identity.FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keyMap is Keys for tests.
type keyMap struct {
	mu   sync.Mutex
	keys map[shoal.AgentID]identity.Key
}

func (k *keyMap) Key(id shoal.AgentID) (identity.Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[id]
	return key, ok
}

func (k *keyMap) add(key identity.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[key.Agent()] = key
}

// node is one node of a test's mesh.
type node struct {
	t    testing.TB
	net  *meshtest.Net
	key  identity.Key
	keys *keyMap
	db   *store.DB
	cfg  Config
	via  func(Mesh) Mesh // what the directory sees of the mesh; nil: all

	mesh *meshtest.Mesh
	dir  *Directory
	stop func()
}

// newNode starts a node with a database of its own.
func newNode(t testing.TB, net *meshtest.Net, name string, change ...func(*Config)) *node {
	t.Helper()
	key := testKey(t, name)
	n := &node{
		t: t, net: net, key: key, db: storetest.Open(t, Schema()),
		keys: &keyMap{keys: map[shoal.AgentID]identity.Key{key.Agent(): key}},
		cfg:  Config{Network: testNet, Node: key.Node(), Rand: func() float64 { return 0 }},
	}
	for _, c := range change {
		c(&n.cfg)
	}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

// start runs the node as package node would.
func (n *node) start() {
	n.t.Helper()
	n.mesh = n.net.Node(n.key, testNet)
	var mesh Mesh = n.mesh
	if n.via != nil {
		mesh = n.via(mesh)
	}
	dir, err := New(n.cfg, n.db, mesh, n.keys, slog.New(slog.DiscardHandler))
	if err != nil {
		n.t.Fatal(err)
	}
	n.dir = dir
	n.mesh.OnPeer = func(id shoal.NodeID, up bool) {
		if up {
			dir.PeerUp(id)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	l := listen(n.t, n.mesh)
	wg.Go(func() { serve(ctx, l, dir.ServeConn) })
	wg.Go(func() { _ = n.mesh.Run(ctx) })
	wg.Go(func() {
		if err := dir.Run(ctx); !errors.Is(err, context.Canceled) {
			n.t.Errorf("Run ended with %v", err)
		}
	})
	n.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// restart stops the node and starts it with the same keys and database.
func (n *node) restart() {
	n.stop()
	synctest.Wait() // all have seen it go
	n.start()
	settleDown()
}

func listen(t testing.TB, m *meshtest.Mesh) net.Listener {
	t.Helper()
	l, err := m.Listen(Protocol)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve hands each connection for cards to handle until ctx ends.
func serve(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn)) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { handle(ctx, conn) })
	}
}

// agent creates an agent on the node and publishes it with these skills.
func (n *node) agent(name string, skills ...string) shoal.AgentID {
	n.t.Helper()
	key := testKey(n.t, "agent "+name)
	n.keys.add(key)
	if err := n.dir.Publish(n.t.Context(), spec(key.Agent(), name, skills...)); err != nil {
		n.t.Fatalf("publish %s: %v", name, err)
	}
	return key.Agent()
}

func spec(id shoal.AgentID, name string, skills ...string) shoal.AgentSpec {
	s := shoal.AgentSpec{ID: id, Name: name, Description: "The agent " + name + "."}
	for _, k := range skills {
		s.Skills = append(s.Skills, shoal.Skill{
			ID: k, Name: strings.ToUpper(k), Description: "does " + k, Tags: []string{"tag-" + k},
		})
	}
	return s
}

// find returns the names that the node finds for a capability.
func (n *node) find(capability string, fresh bool) []string {
	n.t.Helper()
	return n.query(Query{Capability: capability, Fresh: fresh})
}

func (n *node) query(q Query) []string {
	n.t.Helper()
	cards, err := n.dir.Find(n.t.Context(), q)
	if err != nil {
		n.t.Fatalf("find %+v: %v", q, err)
	}
	now := time.Now()
	names := []string{}
	for _, c := range cards {
		if !c.alive(now) {
			n.t.Errorf("find returns %s, which is not to be shown", c.Name)
		}
		names = append(names, c.Name)
	}
	return names
}

// settleDown gives the nodes of a bubble time to publish.
func settleDown() {
	time.Sleep(20 * time.Second)
	synctest.Wait()
}

func wantNames(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantErr(t testing.TB, what string, got error, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// signCard returns a control card of key, changed before it is signed.
func signCard(t testing.TB, key identity.Key, now time.Time, change func(*params), skills ...string) []byte {
	t.Helper()
	now = now.UTC().Truncate(time.Second)
	p := params{
		Seq: uint64(now.UnixMilli()), NotBefore: now, NotAfter: now.Add(time.Hour),
		Node: key.Node(), Network: testNet,
	}
	if change != nil {
		change(&p)
	}
	raw, err := identity.SignCard(newCard(spec(key.Agent(), "control", skills...), p), key)
	if err != nil {
		t.Fatalf("sign card: %v", err)
	}
	return raw
}

func nodeName(i int) string { return fmt.Sprintf("node-%02d", i) }

// noDHT is a mesh whose DHT does not work.
type noDHT struct{ Mesh }

var errNoDHT = shoal.NewError(shoal.Unavailable, "no_peers", "no peer is connected", "")

func (noDHT) PutRecord(context.Context, []byte) error { return errNoDHT }
func (noDHT) Provide(context.Context, string) error   { return errNoDHT }
func (noDHT) GetRecord(context.Context, string, shoal.AgentID) ([]byte, error) {
	return nil, errNoDHT
}

func (noDHT) Providers(context.Context, string, int) ([]shoal.NodeID, error) {
	return nil, errNoDHT
}

// fakeRecord is a mesh that has this record for everybody.
type fakeRecord struct {
	noDHT
	raw []byte
}

func (f fakeRecord) GetRecord(context.Context, string, shoal.AgentID) ([]byte, error) {
	return f.raw, nil
}

// slowRecords is a mesh whose DHT takes a second to find a record.
type slowRecords struct{ Mesh }

func (s slowRecords) GetRecord(ctx context.Context, kind string, owner shoal.AgentID) ([]byte, error) {
	select {
	case <-time.After(time.Second):
		return s.Mesh.GetRecord(ctx, kind, owner)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dragging is a mesh whose look-ups find what they find at once but do not end.
type dragging struct{ Mesh }

func (d dragging) GetRecord(ctx context.Context, kind string, owner shoal.AgentID) ([]byte, error) {
	raw, err := d.Mesh.GetRecord(ctx, kind, owner)
	<-ctx.Done()
	return raw, err
}

func (d dragging) Providers(ctx context.Context, key string, limit int) ([]shoal.NodeID, error) {
	nodes, err := d.Mesh.Providers(ctx, key, limit)
	<-ctx.Done()
	return nodes, err
}

// rerun restarts the node with another view of the mesh.
func (n *node) rerun(via func(Mesh) Mesh) {
	n.via = via
	n.restart()
}
