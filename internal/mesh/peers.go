package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/shoalmesh/shoal"
)

// Peer is a connected node of this network. It is an alias of a plain struct so that
// package meshtest has the identical type without linking libp2p.
type Peer = struct {
	ID        shoal.NodeID
	Addr      string        // the multiaddr it is connected through
	Direction string        // "in" or "out"
	Path      string        // "quic", "tcp", "ws" or "relay"
	RTT       time.Duration // smoothed; 0 before the first measurement
}

// pingSamples is how many round trips a ping takes; the shortest counts, for the first
// one also opens the stream.
const pingSamples = 3

// Join connects to the nodes that addrs name, invite links or multiaddrs with /p2p/, and
// remembers those that answered: Run keeps them connected. It returns the nodes reached.
// It fails only if none was reached: with [ErrWrongNetwork], [shoal.Unavailable] with
// reason join_failed, or [shoal.Invalid] for an address that is malformed (then nothing
// was tried).
func (m *Mesh) Join(ctx context.Context, addrs []string) ([]shoal.NodeID, error) {
	h, d, err := m.live()
	if err != nil {
		return nil, err
	}
	targets, err := m.cfg.peers(addrs)
	if err != nil {
		return nil, err
	}
	if len(targets) == 0 {
		return nil, shoal.NewError(shoal.Invalid, "no_address", "nothing to join", "give an invite link or a multiaddr")
	}
	failed := make([]error, len(targets))
	done := make(chan struct{}, len(targets))
	for i, ai := range targets {
		if !m.background(func() { failed[i] = m.connect(ctx, h, ai); done <- struct{}{} }) {
			return nil, ErrClosed
		}
	}
	for range targets {
		<-done
	}
	var ids []shoal.NodeID
	for i, ai := range targets {
		if failed[i] != nil {
			continue
		}
		ids = append(ids, nodeOf(ai.ID))
		select {
		case m.remember <- ai:
		default: // Run is not there to take it; 64 are enough
		}
	}
	if len(ids) == 0 {
		return nil, joinError(failed)
	}
	if err := m.settle(ctx, d); err != nil {
		m.log.Debug("joined, but the routing table is empty", "err", err)
	}
	d.RefreshRoutingTable()
	return ids, nil
}

func joinError(failed []error) error {
	for _, err := range failed {
		if errors.Is(err, ErrWrongNetwork) {
			return err
		}
	}
	return shoal.NewError(shoal.Unavailable, "join_failed", "no node of the link answered",
		"is the inviting node up, and its port reachable from here?").Because(errors.Join(failed...))
}

// connect connects to ai and waits until it has identified itself as of our network.
func (m *Mesh) connect(ctx context.Context, h host.Host, ai peer.AddrInfo) error {
	if ai.ID == m.self {
		return shoal.NewError(shoal.Invalid, "join_self", "this is the node's own address", "use another node's link")
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	forgive(h, ai.ID)
	if err := h.Connect(ctx, ai); err != nil {
		return fmt.Errorf("connect to %s: %w", ai.ID, err)
	}
	switch version := versionOf(h, ai.ID); version {
	case m.version():
		return nil
	case "":
		return fmt.Errorf("connect to %s: %w", ai.ID, errors.New("it did not identify itself"))
	default:
		_ = h.Network().ClosePeer(ai.ID)
		return ErrWrongNetwork.With("%s is not of %q", ai.ID, m.cfg.Network)
	}
}

// versionOf returns what p said it is; "" before it was identified.
func versionOf(h host.Host, p peer.ID) string {
	v, err := h.Peerstore().Get(p, "ProtocolVersion")
	if err != nil {
		return ""
	}
	s, _ := v.(string)
	return s
}

// peers turns invite links and multiaddrs into one target for each node.
func (c Config) peers(targets []string) ([]peer.AddrInfo, error) {
	var all []ma.Multiaddr
	for _, t := range targets {
		inv, err := ParseTarget(t)
		if err != nil {
			return nil, err
		}
		if inv.Network != "" && inv.Network != c.Network {
			return nil, ErrWrongNetwork.With("the link is for %q, this node is of %q", inv.Network, c.Network)
		}
		for _, s := range inv.Addrs {
			a, err := ma.NewMultiaddr(s)
			if err != nil {
				return nil, badAddr(s).Because(err)
			}
			all = append(all, a)
		}
	}
	infos, err := peer.AddrInfosFromP2pAddrs(all...)
	if err != nil {
		return nil, badAddr("").Because(err)
	}
	slices.SortFunc(infos, func(a, b peer.AddrInfo) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if len(infos) > maxRemembered {
		return nil, shoal.NewError(shoal.Invalid, "too_many_peers", fmt.Sprintf("%d nodes to join", len(infos)), "at most 64")
	}
	return infos, nil
}

// Peers returns the connected nodes of this network, ordered by id.
func (m *Mesh) Peers() []Peer {
	h, _, err := m.live()
	if err != nil {
		return nil
	}
	var out []Peer
	for _, p := range h.Network().Peers() {
		if versionOf(h, p) != m.version() {
			continue
		}
		conns := h.Network().ConnsToPeer(p)
		if len(conns) == 0 {
			continue
		}
		c := conns[0]
		dir := "out"
		if c.Stat().Direction == network.DirInbound {
			dir = "in"
		}
		out = append(out, Peer{
			ID: nodeOf(p), Addr: c.RemoteMultiaddr().String(), Direction: dir,
			Path: pathOf(c.RemoteMultiaddr()), RTT: h.Peerstore().LatencyEWMA(p),
		})
	}
	slices.SortFunc(out, func(a, b Peer) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// Ping returns how the node is reached ("quic", "tcp", "ws" or "relay") and the shortest
// of a few round trips. Errors are Dial's.
func (m *Mesh) Ping(ctx context.Context, id shoal.NodeID) (path string, rtt time.Duration, err error) {
	p, err := peerOf(id)
	if err != nil {
		return "", 0, err
	}
	if p == m.self {
		return "", 0, shoal.NewError(shoal.Invalid, "dial_self", "a node cannot dial itself", "")
	}
	h, _, err := m.live()
	if err != nil {
		return "", 0, err
	}
	pinging, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	if err := m.approach(pinging, h, p); err != nil {
		return "", 0, m.dialError(ctx, pinging, id, ping.ID, err)
	}
	results := ping.Ping(pinging, h, p)
	for range pingSamples {
		r, ok := <-results
		if !ok || r.Error != nil {
			if r.Error == nil {
				r.Error = pinging.Err()
			}
			err = m.dialError(ctx, pinging, id, ping.ID, r.Error)
			break
		}
		if rtt == 0 || r.RTT < rtt {
			rtt = r.RTT
		}
	}
	cancel()
	for range results { // until its goroutine has ended
	}
	if err != nil {
		return "", 0, err
	}
	if conns := h.Network().ConnsToPeer(p); len(conns) > 0 {
		path = pathOf(conns[0].RemoteMultiaddr())
	}
	return path, rtt, nil
}

// pathOf names the way that an address takes.
func pathOf(a ma.Multiaddr) string {
	path := ""
	ma.ForEach(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_CIRCUIT:
			path = "relay"
		case ma.P_WS, ma.P_WSS:
			path = "ws"
		case ma.P_QUIC_V1:
			path = "quic"
		case ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT, ma.P_WEBRTC:
			path = "other"
			return false
		case ma.P_TCP:
			path = "tcp"
		}
		return path != "relay"
	})
	return path
}

// reach orders addresses by how far they carry: public, private, loopback.
func reach(a ma.Multiaddr) int {
	switch {
	case manet.IsPublicAddr(a):
		return 0
	case manet.IsIPLoopback(a):
		return 2
	}
	return 1
}
