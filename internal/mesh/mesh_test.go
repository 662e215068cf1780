package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		fmt.Fprintln(os.Stderr, child(spec))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// testNode is a running mesh and what it said about its peers.
type testNode struct {
	*Mesh
	key    identity.Key
	events chan string // "up ID" and "down ID"
	stop   func()

	patience time.Duration // of want
}

// start runs a node on loopback until the test ends; change may adapt its Config.
func start(t testing.TB, key identity.Key, change func(*Config)) *testNode {
	t.Helper()
	n := &testNode{key: key, events: make(chan string, 256), patience: 10 * time.Second}
	cfg := Config{
		Network: "test",
		OnPeer: func(id shoal.NodeID, up bool) {
			word := "down "
			if up {
				word = "up "
			}
			n.events <- word + string(id)
		},
	}
	cfg.Listen, _ = ListenAddrs("127.0.0.1:0")
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg, key, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Bind(); err != nil {
		t.Fatal(err)
	}
	n.Mesh = m
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	n.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(n.stop)
	return n
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func newKey(t testing.TB) identity.Key {
	t.Helper()
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// want waits for an event.
func (n *testNode) want(t testing.TB, event string) {
	t.Helper()
	deadline := time.After(n.patience)
	for {
		select {
		case e := <-n.events:
			if e == event {
				return
			}
		case <-deadline:
			t.Fatalf("no event %q", event)
		}
	}
}

// echo serves a protocol that sends back what it reads.
func echo(t testing.TB, n *testNode, proto string) {
	t.Helper()
	l, err := n.Listen(proto)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("accept: %v", err)
				}
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); n.stop(); wg.Wait() })
}

// say sends text and returns what comes back.
func say(ctx context.Context, n *testNode, to shoal.NodeID, proto, text string) (string, error) {
	c, err := n.Dial(ctx, to, proto)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if got := c.RemoteAddr().String(); got != string(to) {
		return "", fmt.Errorf("remote is %s, want %s", got, to)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // reading at the same time: neither side buffers all of a long text
		_, _ = io.WriteString(c, text)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	})
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestJoinByInviteAndEcho(t *testing.T) {
	a, b := start(t, newKey(t), nil), start(t, newKey(t), nil)
	echo(t, a, "/shoal/echo/1.0.0")
	echo(t, b, "/shoal/echo/1.0.0")
	ids, err := b.Join(t.Context(), []string{a.Invite().String()})
	if err != nil || len(ids) != 1 || ids[0] != a.ID() {
		t.Fatalf("Join = %v, %v, want %s", ids, err, a.ID())
	}
	a.want(t, "up "+string(b.ID()))
	b.want(t, "up "+string(a.ID()))
	for _, pair := range [][2]*testNode{{a, b}, {b, a}} {
		got, err := say(t.Context(), pair[0], pair[1].ID(), "/shoal/echo/1.0.0", "hello")
		if got != "hello" || err != nil {
			t.Errorf("echo = %q, %v, want hello", got, err)
		}
		path, rtt, err := pair[0].Ping(t.Context(), pair[1].ID())
		if path == "" || rtt <= 0 || err != nil {
			t.Errorf("Ping = %q, %v, %v", path, rtt, err)
		}
	}
}
