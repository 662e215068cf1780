package meshtest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

const proto = "/shoal/echo/1.0.0"

func newKey(t testing.TB) identity.Key {
	t.Helper()
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// echo serves proto until the node stops.
func echo(t *testing.T, m *Mesh) {
	t.Helper()
	l, err := m.Listen(proto)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { m.Close() })
}

func TestEchoTakesThereAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Node(newKey(t), "test"), n.Node(newKey(t), "test")
		echo(t, b)
		n.SetLatency(20 * time.Millisecond)
		start := time.Now()
		c, err := a.Dial(t.Context(), b.ID(), proto)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != string(b.ID()) {
			t.Errorf("remote = %s, want %s", got, b.ID())
		}
		io.WriteString(c, "hello")
		c.(interface{ CloseWrite() error }).CloseWrite()
		got, err := io.ReadAll(c)
		if string(got) != "hello" || err != nil {
			t.Errorf("echo = %q, %v, want hello", got, err)
		}
		if took := time.Since(start); took != 80*time.Millisecond {
			t.Errorf("took %v, want 80ms: two there and back", took)
		}
		c.Close()
		synctest.Wait()
		if n := n.Conns(); n != 0 {
			t.Errorf("%d connections left open", n)
		}
	})
}

func TestDeadlinesAndBrokenConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Node(newKey(t), "test"), n.Node(newKey(t), "test")
		echo(t, b)
		c, err := a.Dial(t.Context(), b.ID(), proto)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		_, err = c.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read after the deadline = %v, want a time-out", err)
		}
		c.SetReadDeadline(time.Time{})
		io.WriteString(c, "x")
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("read with the deadline cleared = %d, %v, want 1", n, err)
		}
		n.Partition(a.ID(), b.ID())
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after a partition = %v, want a reset", err)
		}
		if _, err := a.Dial(t.Context(), b.ID(), proto); !errors.Is(err, errUnreachable) {
			t.Errorf("dial over a partition = %v, want unreachable", err)
		}
		n.Heal()
		if _, _, err := a.Ping(t.Context(), b.ID()); err != nil {
			t.Errorf("ping after heal: %v", err)
		}
		if _, err := a.Dial(t.Context(), b.ID(), "/shoal/none/1.0.0"); !errors.Is(err, errProtocol) {
			t.Errorf("dial of a protocol nobody serves = %v", err)
		}
	})
}

func TestWriterBlocksWhenNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Node(newKey(t), "test"), n.Node(newKey(t), "test")
		l, err := b.Listen(proto)
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.Dial(t.Context(), b.ID(), proto)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := l.Accept()
		c.SetWriteDeadline(time.Now().Add(time.Second))
		sent, err := c.Write(make([]byte, window+1))
		if sent != window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write without a reader = %d, %v, want %d and a time-out", sent, err, window)
		}
		s.Close()
		c.SetWriteDeadline(time.Time{})
		if _, err := c.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed reader = %v, want a broken pipe", err)
		}
	})
}

// record signs a card of k.
func record(t testing.TB, k identity.Key, network string, seq uint64, life time.Duration) []byte {
	t.Helper()
	now := time.Now()
	raw, err := identity.SignRecord(k, network, shoal.Record{
		Kind: "card", Owner: k.Agent(), Seq: seq, NotBefore: now, NotAfter: now.Add(life), Value: []byte{byte(seq)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRecordsHighestSequenceWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		ka := newKey(t)
		a := n.Node(ka, "test")
		ctx := t.Context()
		one, two := record(t, ka, "test", 1, time.Hour), record(t, ka, "test", 2, time.Hour)
		if err := a.PutRecord(ctx, one); !errors.Is(err, errNoPeers) {
			t.Errorf("put alone = %v, want no_peers", err)
		}
		b, other := n.Node(newKey(t), "test"), n.Node(newKey(t), "other")
		if got, err := b.GetRecord(ctx, "card", ka.Agent()); err != nil || string(got) != string(one) {
			t.Errorf("a first peer finds what was put before: %x, %v", got, err)
		}
		if err := a.PutRecord(ctx, two); err != nil {
			t.Error(err)
		}
		if err := b.PutRecord(ctx, one); !errors.Is(err, errOlder) {
			t.Errorf("put of an old record = %v, want record_older", err)
		}
		late := n.Node(newKey(t), "test")
		if got, err := late.GetRecord(ctx, "card", ka.Agent()); err != nil || string(got) != string(two) {
			t.Errorf("late joiner got %x, %v, want the second", got, err)
		}
		if _, err := other.GetRecord(ctx, "card", ka.Agent()); !errors.Is(err, errNoPeers) {
			t.Errorf("another network's node got %v, want no_peers", err)
		}
		if err := other.PutRecord(ctx, two); !errors.Is(err, identity.ErrWrongNetwork) {
			t.Errorf("put into another network = %v, want wrong_network", err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := late.GetRecord(ctx, "card", ka.Agent()); !errors.Is(err, errNotFound) {
			t.Errorf("get of an expired record = %v, want not found", err)
		}
	})
}

func TestProvidersAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		ka, ctx := newKey(t), t.Context()
		a, b := n.Node(ka, "test"), n.Node(newKey(t), "test")
		if err := a.Provide(ctx, "cap"); err != nil {
			t.Fatal(err)
		}
		if got, _ := a.Providers(ctx, "cap", 0); len(got) != 0 {
			t.Errorf("a node finds itself: %v", got)
		}
		n.Stop(a.ID())
		late := n.Node(newKey(t), "test")
		got, err := late.Providers(ctx, "cap", 0)
		if err != nil || !slices.Equal(got, []shoal.NodeID{ka.Node()}) {
			t.Errorf("late joiner got %v, %v, want the stopped node: others remember it", got, err)
		}
		if err := a.Provide(ctx, "cap"); err == nil {
			t.Error("a stopped node provides")
		}
		again := n.Node(ka, "test")
		if _, _, err := b.Ping(ctx, again.ID()); err != nil {
			t.Errorf("ping after a restart: %v", err)
		}
	})
}

func TestOnPeerFollowsReachability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a := n.Node(newKey(t), "test")
		var mu sync.Mutex
		var events []bool
		a.OnPeer = func(_ shoal.NodeID, up bool) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, up)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		b := n.Node(newKey(t), "test")
		synctest.Wait()
		n.Partition(a.ID(), b.ID())
		synctest.Wait()
		n.Heal()
		synctest.Wait()
		n.Stop(b.ID())
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(events, []bool{true, false, true, false}) {
			t.Errorf("events = %v, want up down up down", events)
		}
	})
}

func TestLossIsSeeded(t *testing.T) {
	keys := []identity.Key{newKey(t), newKey(t)}
	run := func(seed uint64) (lost []int) {
		n := New(seed)
		a, b := n.Node(keys[0], "test"), n.Node(keys[1], "test")
		n.SetLoss(0.3)
		for i := range 100 {
			if _, _, err := a.Ping(context.Background(), b.ID()); err != nil {
				lost = append(lost, i)
			}
		}
		return lost
	}
	one, again, two := run(1), run(1), run(2)
	if !slices.Equal(one, again) {
		t.Errorf("seed 1 lost %v, then %v", one, again)
	}
	if slices.Equal(one, two) {
		t.Error("seeds 1 and 2 lose the same")
	}
	if len(one) < 10 || len(one) > 60 {
		t.Errorf("%d of 100 lost, want about 30", len(one))
	}
}
