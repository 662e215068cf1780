package mesh

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
)

// pairOf returns two joined nodes, the first with an echo.
func pairOf(b *testing.B, change func(*Config)) (*testNode, *testNode) {
	x, y := start(b, newKey(b), change), start(b, newKey(b), change)
	echo(b, x, echoProto)
	if _, err := y.Join(b.Context(), x.Addrs()); err != nil {
		b.Fatal(err)
	}
	return x, y
}

func quicOnly(c *Config) { c.Listen = c.Listen[:1] }

func roundTrip(b *testing.B, c net.Conn, buf []byte) {
	if _, err := c.Write(buf); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRTT is a 64-byte round trip on an open stream, beside a bare UDP one.
func BenchmarkRTT(b *testing.B) {
	for name, change := range map[string]func(*Config){"quic": quicOnly, "tcp": tcpOnly} {
		b.Run(name, func(b *testing.B) {
			x, y := pairOf(b, change)
			c, err := y.Dial(b.Context(), x.ID(), echoProto)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 64)
			for b.Loop() {
				roundTrip(b, c, buf)
			}
		})
	}
	b.Run("floor=udp", func(b *testing.B) {
		server, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		defer func() { server.Close(); <-done }()
		c, err := net.Dial("udp4", server.LocalAddr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 64)
		for b.Loop() {
			roundTrip(b, c, buf)
		}
	})
}

// BenchmarkNewStream is Dial, a 64-byte round trip and Close, over an open connection.
func BenchmarkNewStream(b *testing.B) {
	for name, change := range map[string]func(*Config){"quic": quicOnly, "tcp": tcpOnly} {
		b.Run(name, func(b *testing.B) {
			x, y := pairOf(b, change)
			buf := make([]byte, 64)
			for b.Loop() {
				c, err := y.Dial(b.Context(), x.ID(), echoProto)
				if err != nil {
					b.Fatal(err)
				}
				roundTrip(b, c, buf)
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewStreamFloor is the same without us: libp2p's stream between the same hosts.
func BenchmarkNewStreamFloor(b *testing.B) {
	x, y := pairOf(b, quicOnly)
	buf := make([]byte, 64)
	for b.Loop() {
		s, err := y.host.NewStream(b.Context(), x.self, echoProto)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkStart is New, Bind and Close; it reports the resident memory of the process
// with one idle node.
func BenchmarkStart(b *testing.B) {
	key := newKey(b)
	var rss float64
	for b.Loop() {
		cfg := Config{Network: "test"}
		cfg.Listen, _ = ListenAddrs("127.0.0.1:0")
		m, err := New(cfg, key, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Bind(); err != nil {
			b.Fatal(err)
		}
		rss = max(rss, residentMB())
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(rss, "rss-MB")
}

// residentMB is this process's resident memory; 0 where /proc does not tell.
func residentMB() float64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb := 0.0
			for _, r := range rest {
				if r >= '0' && r <= '9' {
					kb = kb*10 + float64(r-'0')
				}
			}
			return kb / 1024
		}
	}
	return 0
}

// BenchmarkLookup is a get of a record and a search for providers among three nodes.
func BenchmarkLookup(b *testing.B) {
	x, y := pairOf(b, nil)
	if err := errors.Join(x.PutRecord(b.Context(), card(b, x.key, 1)), x.Provide(b.Context(), "cap")); err != nil {
		b.Fatal(err)
	}
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := y.GetRecord(b.Context(), "card", x.key.Agent()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("providers", func(b *testing.B) {
		for b.Loop() {
			if got, err := y.Providers(b.Context(), "cap", 0); err != nil || len(got) != 1 {
				b.Fatal(got, err)
			}
		}
	})
	b.Run("put", func(b *testing.B) {
		for seq := uint64(2); b.Loop(); seq++ {
			if err := x.PutRecord(b.Context(), card(b, x.key, seq)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFind50 searches among 50 nodes of one process, five of which provide.
func BenchmarkFind50(b *testing.B) {
	var nodes []*testNode
	for i := range 50 {
		n := start(b, newKey(b), quicOnly)
		if i > 0 {
			if _, err := n.Join(b.Context(), nodes[i/3].Addrs()); err != nil {
				b.Fatal(err)
			}
		}
		nodes = append(nodes, n)
	}
	asker := nodes[40]
	asker.knows(b, 15)
	for _, n := range nodes[10:15] {
		if err := errors.Join(n.Provide(b.Context(), "cap"), n.PutRecord(b.Context(), card(b, n.key, 1))); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("providers", func(b *testing.B) {
		for b.Loop() {
			if got, err := asker.Providers(b.Context(), "cap", 0); err != nil || len(got) != 5 {
				b.Fatal(got, err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := asker.GetRecord(b.Context(), "card", nodes[10].key.Agent()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
