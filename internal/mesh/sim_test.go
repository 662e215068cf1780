package mesh

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"

	"github.com/shoalmesh/shoal/internal/identity"
)

// simLatency is one way.
const simLatency = 25 * time.Millisecond

// simulate runs f in a synctest bubble with a simulated QUIC network: real hosts, fake
// time. Every node has an address of its own; cut says whether packets between two of
// them are dropped now.
func simulate(t *testing.T, f func(t *testing.T, s *simulation)) {
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, down: make(map[string]bool)}
		s.net = &simnet.Simnet{LatencyFunc: func(p *simnet.Packet) time.Duration {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down[ipOf(p.To)] || s.down[ipOf(p.From)] {
				return 100 * time.Hour // as good as lost
			}
			return simLatency
		}}
		s.net.Start()
		defer s.net.Close()
		f(t, s)
		for _, n := range s.nodes {
			n.stop()
		}
	})
}

type simulation struct {
	t     *testing.T
	net   *simnet.Simnet
	nodes []*testNode

	mu   sync.Mutex
	down map[string]bool
}

func ipOf(a net.Addr) string { return a.(*net.UDPAddr).IP.String() }

// node starts a node on its own address.
func (s *simulation) node(key identity.Key, change func(*Config)) *testNode {
	ip := simnet.IntToPublicIPv4(len(s.nodes))
	n := start(s.t, key, func(c *Config) {
		c.simulated = true
		c.Listen = []string{fmt.Sprintf("/ip4/%s/udp/4420/quic-v1", ip)}
		link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
		c.options = []libp2p.Option{
			simlibp2p.QUICSimnet(s.net, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}),
			libp2p.DisableIdentifyAddressDiscovery(), // it stalls synctest
		}
		if change != nil {
			change(c)
		}
	})
	n.patience = 10 * time.Minute // fake time costs nothing
	s.nodes = append(s.nodes, n)
	return n
}

// unplug drops all packets of n, silently, or lets them through again.
func (s *simulation) unplug(n *testNode, off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.nodes {
		if o == n {
			s.down[simnet.IntToPublicIPv4(i).String()] = off
		}
	}
}

func TestSimPingTakesTheLinksTime(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		a, b := s.node(newKey(t), nil), s.node(newKey(t), nil)
		if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
			t.Fatal(err)
		}
		path, rtt, err := b.Ping(t.Context(), a.ID())
		if path != "quic" || err != nil || rtt < 2*simLatency || rtt > 2*simLatency+5*time.Millisecond {
			t.Errorf("Ping = %s, %v, %v, want about %v", path, rtt, err, 2*simLatency)
		}
	})
}

func TestSimPauseGrowsAndPeerComesBack(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		a := s.node(newKey(t), nil)
		b := s.node(newKey(t), func(c *Config) { c.Bootstrap = a.Addrs() })
		b.want(t, "up "+string(a.ID()))
		s.unplug(a, true)
		gone := time.Now()
		b.want(t, "down "+string(a.ID()))
		t.Logf("silence noticed after %v", time.Since(gone))
		time.Sleep(time.Hour)
		s.unplug(a, false)
		back := time.Now()
		b.want(t, "up "+string(a.ID()))
		took := time.Since(back)
		if took > 2*time.Minute {
			t.Errorf("back after %v, want at most the longest pause", took)
		}
		t.Logf("back after %v", took)
	})
}

func TestSimRecordsSpreadOver12Nodes(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		var nodes []*testNode
		for i := range 12 {
			n := s.node(newKey(t), nil)
			if i > 0 {
				if _, err := n.Join(t.Context(), nodes[i/2].Addrs()); err != nil {
					t.Fatal(err)
				}
			}
			nodes = append(nodes, n)
		}
		alice := nodes[3].key
		begin := time.Now()
		if err := nodes[3].PutRecord(t.Context(), card(t, alice, 1)); err != nil {
			t.Fatal(err)
		}
		put := time.Since(begin)
		if err := nodes[3].Provide(t.Context(), "a2a:v1:cap:ocr"); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		for i, n := range nodes {
			if _, err := n.GetRecord(t.Context(), "card", alice.Agent()); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
			got, err := n.Providers(t.Context(), "a2a:v1:cap:ocr", 0)
			if i != 3 && (err != nil || len(got) != 1 || got[0] != nodes[3].ID()) {
				t.Errorf("node %d found %v, %v", i, got, err)
			}
		}
		t.Logf("put %v, get and find %v each (one way %v)", put, time.Since(begin)/24, simLatency)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := nodes[11].Ping(ctx, nodes[7].ID()); err != nil {
			t.Errorf("ping of a node known through the DHT: %v", err)
		}
	})
}

func TestSimStrangerIsTurnedAway(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		a := s.node(newKey(t), nil)
		b := s.node(newKey(t), func(c *Config) { c.Network = "other" })
		info := peer.AddrInfo{ID: a.self, Addrs: a.host.Addrs()}
		if err := b.host.Connect(t.Context(), info); err != nil { // as a node that does not look
			t.Fatal(err)
		}
		time.Sleep(strangerGrace / 2)
		if n := len(a.host.Network().Peers()); n != 1 {
			t.Errorf("%d peers in the time of grace, want 1", n)
		}
		if n := len(a.Peers()); n != 0 {
			t.Errorf("%d peers of this network, want none", n)
		}
		time.Sleep(strangerGrace)
		if n := len(a.host.Network().Peers()); n != 0 {
			t.Errorf("%d peers after it, want none", n)
		}
	})
}
