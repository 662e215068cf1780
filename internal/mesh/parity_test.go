package mesh

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
)

// common is what the packages above may use of a mesh.
type common interface {
	ID() shoal.NodeID
	Network() string
	Bind() error
	Run(context.Context) error
	Close() error
	Addrs() []string
	Join(context.Context, []string) ([]shoal.NodeID, error)
	Listen(string) (net.Listener, error)
	Dial(context.Context, shoal.NodeID, string) (net.Conn, error)
	Peers() []Peer
	Ping(context.Context, shoal.NodeID) (string, time.Duration, error)
	PutRecord(context.Context, []byte) error
	GetRecord(context.Context, string, shoal.AgentID) ([]byte, error)
	Provide(context.Context, string) error
	Providers(context.Context, string, int) ([]shoal.NodeID, error)
}

var (
	_ common = (*Mesh)(nil)
	_ common = (*meshtest.Mesh)(nil)
)

// TestMeshtestBehavesLikeMesh runs one story against both.
func TestMeshtestBehavesLikeMesh(t *testing.T) {
	t.Run("mesh", func(t *testing.T) {
		story(t, func(k identity.Key) common { return start(t, k, nil).Mesh })
	})
	t.Run("meshtest", func(t *testing.T) {
		n := meshtest.New(1)
		story(t, func(k identity.Key) common { return n.Node(k, "test") })
	})
}

func story(t *testing.T, node func(identity.Key) common) {
	ctx := t.Context()
	ka, kb := newKey(t), newKey(t)
	a := node(ka)
	one, two := card(t, ka, 1), card(t, ka, 2)
	wantErr := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s = %v, want %v", what, got, want)
		}
	}
	wantErr("put alone", a.PutRecord(ctx, one), ErrNoPeers)
	wantErr("provide alone", a.Provide(ctx, "cap"), ErrNoPeers)
	_, err := a.GetRecord(ctx, "card", kb.Agent())
	wantErr("get alone", err, ErrNoPeers)
	_, err = a.GetRecord(ctx, "card", ka.Agent())
	wantErr("get of the own record alone", err, nil)

	b := node(kb)
	ids, err := b.Join(ctx, a.Addrs())
	if err != nil || !slices.Equal(ids, []shoal.NodeID{a.ID()}) {
		t.Fatalf("join = %v, %v", ids, err)
	}
	if got, err := b.GetRecord(ctx, "card", ka.Agent()); err != nil || string(got) != string(one) {
		t.Errorf("get after join = %x, %v", got, err)
	}
	wantErr("put", b.PutRecord(ctx, two), nil)
	wantErr("put of an older one", a.PutRecord(ctx, one), ErrRecordOlder)
	wantErr("put of another network's", a.PutRecord(ctx, sign(t, ka, "other", shoal.Record{
		Kind: "card", Owner: ka.Agent(),
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	})), identity.ErrWrongNetwork)
	wantErr("put of nothing", a.PutRecord(ctx, nil), identity.ErrBadRecord)
	if got, err := a.GetRecord(ctx, "card", ka.Agent()); err != nil || string(got) != string(two) {
		t.Errorf("get of the newer one = %x, %v", got, err)
	}
	_, err = a.GetRecord(ctx, "card", newKey(t).Agent())
	wantErr("get of nobody's", err, ErrRecordNotFound)
	if got, err := b.Providers(ctx, "cap", 0); err != nil || !slices.Equal(got, []shoal.NodeID{a.ID()}) {
		t.Errorf("providers = %v, %v", got, err)
	}
	if got, err := a.Providers(ctx, "cap", 0); err != nil || len(got) != 0 {
		t.Errorf("providers asked by the provider = %v, %v", got, err)
	}
	if p := b.Peers(); len(p) != 1 || p[0].ID != a.ID() {
		t.Errorf("peers = %v", p)
	}
	_, err = b.Dial(ctx, b.ID(), echoProto)
	wantErr("dial itself", err, shoal.NewError(shoal.Invalid, "dial_self", "", ""))
	_, err = b.Dial(ctx, a.ID(), "/shoal/none/1.0.0")
	wantErr("dial an unknown protocol", err, ErrProtocol)
	_, err = b.Dial(ctx, newKey(t).Node(), echoProto)
	wantErr("dial a stranger", err, ErrUnreachable)
	_, err = b.Dial(ctx, "x", echoProto)
	wantErr("dial a malformed id", err, shoal.NewError(shoal.Invalid, "bad_peer_id", "", ""))
	l, err := a.Listen(echoProto)
	wantErr("listen", err, nil)
	_, err = a.Listen(echoProto)
	wantErr("listen twice", err, shoal.NewError(shoal.Conflict, "protocol_taken", "", ""))
	wantErr("close of a listener", l.Close(), nil)
	_, err = l.Accept()
	wantErr("accept after close", err, net.ErrClosed)
	wantErr("close", a.Close(), nil)
	_, err = a.Dial(ctx, b.ID(), echoProto)
	wantErr("dial after close", err, ErrClosed)
	_, err = a.Listen(echoProto)
	wantErr("listen after close", err, ErrClosed)
}
