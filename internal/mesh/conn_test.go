package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
)

const echoProto = "/shoal/echo/1.0.0"

func TestDialByIDThroughTheDHT(t *testing.T) {
	n := mesh3(t)
	echo(t, n[2], echoProto)
	if got := len(n[1].host.Network().ConnsToPeer(n[2].self)); got > 0 {
		t.Log("already connected: the DHT was faster than the test")
	}
	got, err := say(t.Context(), n[1], n[2].ID(), echoProto, "found you")
	if err != nil || got != "found you" {
		t.Fatalf("echo = %q, %v", got, err)
	}
	n[1].host.Network().ClosePeer(n[2].self)
	n[1].host.Peerstore().ClearAddrs(n[2].self) // now only the DHT knows where
	got, err = say(t.Context(), n[1], n[2].ID(), echoProto, "again")
	if err != nil || got != "again" {
		t.Fatalf("echo after forgetting the address = %q, %v", got, err)
	}
}

func tcpOnly(c *Config) { c.Listen = c.Listen[1:] }

func TestBigEchoOverEachTransport(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"quic": func(c *Config) { c.Listen = c.Listen[:1] },
		"tcp":  tcpOnly,
		"psk": func(c *Config) { // QUIC is asked for, and left out
			c.PSK = bytes.Repeat([]byte{7}, 32)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, newKey(t), change), start(t, newKey(t), change)
			echo(t, a, echoProto)
			if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
				t.Fatal(err)
			}
			path, _, err := b.Ping(t.Context(), a.ID())
			want := strings.ReplaceAll(name, "psk", "tcp")
			if path != want || err != nil {
				t.Errorf("path = %q, %v, want %q", path, err, want)
			}
			data := make([]byte, 3<<20)
			rand.Read(data)
			got, err := say(t.Context(), b, a.ID(), echoProto, string(data))
			if err != nil || got != string(data) {
				t.Errorf("%d bytes came back of %d, %v", len(got), len(data), err)
			}
		})
	}
}

func TestPrivateNetworkKeepsOthersOut(t *testing.T) {
	psk := func(b byte) func(*Config) {
		return func(c *Config) { tcpOnly(c); c.PSK = bytes.Repeat([]byte{b}, 32); c.DialTimeout = time.Second }
	}
	a, b, open := start(t, newKey(t), psk(1)), start(t, newKey(t), psk(2)), start(t, newKey(t), tcpOnly)
	for _, from := range []*testNode{b, open} {
		if ids, err := from.Join(t.Context(), a.Addrs()); err == nil {
			t.Errorf("joined %v without the key", ids)
		}
	}
	if p := a.Peers(); len(p) != 0 {
		t.Errorf("peers = %v, want none", p)
	}
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	a, b := start(t, newKey(t), nil), start(t, newKey(t), nil)
	l, err := a.Listen(echoProto)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Dial(t.Context(), a.ID(), "/shoal/none/1.0.0"); !errors.Is(err, ErrProtocol) {
		t.Errorf("dial = %v, want protocol_unsupported", err)
	}
	// A protocol that was there when the peer was identified: the refusal comes late.
	l.Close()
	got, err := say(t.Context(), b, a.ID(), echoProto, "x")
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("echo over a closed listener = %q, %v, want protocol_unsupported", got, err)
	}
}

func TestBadDials(t *testing.T) {
	a := start(t, newKey(t), nil)
	stranger := newKey(t).Node()
	for name, c := range map[string]struct {
		id   shoal.NodeID
		kind shoal.Kind
	}{
		"self":     {a.ID(), shoal.Invalid},
		"empty":    {"", shoal.Invalid},
		"rsa":      {"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", shoal.Invalid},
		"stranger": {stranger, shoal.Unavailable},
	} {
		if _, err := a.Dial(t.Context(), c.id, echoProto); shoal.KindOf(err) != c.kind {
			t.Errorf("dial %s = %v, want kind %v", name, err, c.kind)
		}
		if _, _, err := a.Ping(t.Context(), c.id); shoal.KindOf(err) != c.kind {
			t.Errorf("ping %s = %v, want kind %v", name, err, c.kind)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Dial(ctx, stranger, echoProto); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a dead context = %v, want canceled", err)
	}
	for _, proto := range []string{"", "/", "echo", "/" + strings.Repeat("x", 200)} {
		if _, err := a.Listen(proto); shoal.KindOf(err) != shoal.Invalid {
			t.Errorf("Listen(%q) = %v, want invalid", proto, err)
		}
	}
	if _, err := a.Listen(echoProto); err != nil {
		t.Error(err)
	}
	if _, err := a.Listen(echoProto); shoal.KindOf(err) != shoal.Conflict {
		t.Errorf("second Listen = %v, want conflict", err)
	}
}

func TestDialTimesOutWhenNobodyAnswers(t *testing.T) {
	sink, err := net.ListenPacket("udp4", "127.0.0.1:0") // takes packets, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	a := start(t, newKey(t), func(c *Config) { c.DialTimeout = 300 * time.Millisecond })
	port := sink.LocalAddr().(*net.UDPAddr).Port
	addr := fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1/p2p/%s", port, newKey(t).Node())
	begin := time.Now()
	_, err = a.Join(t.Context(), []string{addr})
	if shoal.KindOf(err) != shoal.Unavailable || shoal.AsError(err).Reason != "join_failed" {
		t.Errorf("join = %v, want join_failed", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v, want about 300ms", took)
	}
}

// TestStreamsAreNotLeaked opens ten times more streams than the limit, one after the
// other, closed in each way that callers use.
func TestStreamsAreNotLeaked(t *testing.T) {
	limit := func(c *Config) { c.Limits.StreamsPerPeer = 16 }
	a, b := start(t, newKey(t), limit), start(t, newKey(t), limit)
	echo(t, a, echoProto)
	if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
		t.Fatal(err)
	}
	for i := range 160 {
		c, err := b.Dial(t.Context(), a.ID(), echoProto)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		switch i % 4 {
		case 0: // the polite way
			io.WriteString(c, "x")
			c.(interface{ CloseWrite() error }).CloseWrite()
			io.ReadAll(c)
		case 1: // reads a part
			io.WriteString(c, "xyz")
			io.ReadFull(c, make([]byte, 1))
		case 2: // never reads; the close happens in the background, so wait for its end
			io.WriteString(c, "x")
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			io.ReadFull(c, make([]byte, 1))
		case 3: // a read that times out
			c.SetReadDeadline(time.Now())
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read past the deadline = %v, want a time-out", err)
			}
			c.SetReadDeadline(time.Time{})
			io.WriteString(c, "x")
			io.ReadFull(c, make([]byte, 1))
		}
		if err := c.Close(); err != nil {
			t.Errorf("close %d: %v", i, err)
		}
	}
	var open []net.Conn
	for {
		c, err := b.Dial(t.Context(), a.ID(), echoProto)
		if err != nil {
			if shoal.AsError(err).Reason != "stream_limit" {
				t.Errorf("dial beyond the limit = %v, want stream_limit", err)
			}
			break
		}
		open = append(open, c)
		if len(open) > 64 {
			t.Fatal("no limit")
		}
	}
	if len(open) < 8 {
		t.Errorf("only %d streams fit after closing all", len(open))
	}
	for _, c := range open {
		c.Close()
	}
}

func TestHTTPRunsOverTheMesh(t *testing.T) {
	a, b := start(t, newKey(t), nil), start(t, newKey(t), nil)
	l, err := a.Listen("/shoal/http/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s said %s", r.RemoteAddr, body)
	})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	defer wg.Wait()
	defer srv.Close()
	if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return b.Dial(ctx, a.ID(), "/shoal/http/1.0.0")
	}}
	defer tr.CloseIdleConnections()
	for range 3 { // kept alive
		resp, err := (&http.Client{Transport: tr}).Post("http://peer/", "text/plain", strings.NewReader("hi"))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := string(b.ID()) + " said hi"; string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestClosedMeshRefuses(t *testing.T) {
	m, err := New(Config{Listen: []string{}}, newKey(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	other := newKey(t)
	check := func(when string) {
		_, err := m.Dial(t.Context(), other.Node(), echoProto)
		_, err2 := m.GetRecord(t.Context(), "card", other.Agent())
		_, err3 := m.Providers(t.Context(), "cap", 0)
		_, err4 := m.Join(t.Context(), nil)
		_, _, err5 := m.Ping(t.Context(), other.Node())
		for i, err := range []error{err, err2, err3, err4, err5, m.PutRecord(t.Context(), nil), m.Provide(t.Context(), "cap")} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: call %d = %v, want mesh_closed", when, i, err)
			}
		}
		if len(m.Peers())+len(m.Addrs()) > 0 {
			t.Errorf("%s: it has peers or addresses", when)
		}
	}
	check("before Bind")
	l, err := m.Listen(echoProto)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Bind(), m.Bind(), m.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	check("after Close")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept = %v, want closed", err)
	}
	if err := m.Bind(); !errors.Is(err, ErrClosed) {
		t.Errorf("Bind after Close = %v, want mesh_closed", err)
	}
	if _, err := m.Listen("/x/1"); !errors.Is(err, ErrClosed) {
		t.Errorf("Listen after Close = %v, want mesh_closed", err)
	}
	_ = l.Close()
}
