package mesh

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/shoalmesh/shoal"
)

const (
	dhtStreams        = 512 // inbound, of all peers
	dhtStreamsPerPeer = 6   // inbound
)

// bindTries is how often a pair of free ports is looked for: another process may take
// one between the look and the use.
const bindTries = 8

// open starts the host and its DHT, then opens the listeners. The order matters: a
// connection that came in before identify runs is never identified, neither here nor
// there, and a peer that came in before the handlers are set learns of none.
func (m *Mesh) open() (host.Host, *table, error) {
	want, err := m.cfg.listen()
	if err != nil {
		return nil, nil, err
	}
	for try := 0; ; try++ {
		addrs := want
		if !m.cfg.simulated {
			if addrs, err = choosePorts(want); err != nil {
				return nil, nil, err
			}
		}
		h, d, err := m.start()
		if err != nil {
			return nil, nil, err
		}
		for proto, l := range m.listeners {
			m.serve(h, proto, l)
		}
		if err = listen(h, addrs); err == nil {
			return h, d, nil
		}
		err = errors.Join(err, d.Close(), h.Close())
		if try == bindTries {
			return nil, nil, err
		}
	}
}

// start makes a host that does not listen yet.
func (m *Mesh) start() (host.Host, *table, error) {
	priv, err := crypto.UnmarshalEd25519PrivateKey(m.key.Private())
	if err != nil {
		return nil, nil, fmt.Errorf("node key: %w", err)
	}
	limiter, err := resources(m.cfg.Limits, m.dhtProtocol())
	if err != nil {
		return nil, nil, fmt.Errorf("resource manager: %w", err)
	}
	cut, err := connmgr.NewConnManager(m.cfg.Limits.PeersLow, m.cfg.Limits.PeersHigh,
		connmgr.WithGracePeriod(30*time.Second))
	if err != nil {
		return nil, nil, fmt.Errorf("connection manager: %w", err)
	}
	ps, err := pstoremem.NewPeerstore(pstoremem.WithMaxAddresses(20_000),
		pstoremem.WithMaxAddressesPerPeer(32), pstoremem.WithMaxSignedPeerRecords(2_000))
	if err != nil {
		return nil, nil, fmt.Errorf("peer store: %w", err)
	}
	var d *table
	opts := []libp2p.Option{
		libp2p.Identity(priv),
		libp2p.Peerstore(ps),
		libp2p.NoListenAddrs,
		libp2p.UserAgent("shoal"),
		libp2p.ProtocolVersion(m.version()),
		libp2p.ResourceManager(limiter),
		libp2p.ConnectionManager(cut),
		libp2p.ConnectionGater(gate{}),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		// Without this a second daemon could bind the same TCP port and take half of
		// the first one's connections.
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.Routing(func(h host.Host) (routing.PeerRouting, error) {
			d, err = m.newTable(h)
			return d, err
		}),
	}
	if len(m.cfg.PSK) > 0 {
		opts = append(opts, libp2p.PrivateNetwork(m.cfg.PSK))
	} else {
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	}
	h, err := libp2p.New(append(opts, m.cfg.options...)...)
	if err != nil {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
		return nil, nil, fmt.Errorf("start the libp2p host: %w", err)
	}
	return h, d, nil
}

// version is what the node says in the identify protocol. Peers of another network are
// told by it: this is for order, not for secrecy.
func (m *Mesh) version() string { return "shoal/1/" + m.cfg.Network }

// resources makes the resource manager. Memory is an eighth of the machine's, between
// 128 MiB and 1 GiB, and descriptors half of the process's: libp2p's own scaling.
//
// The DHT reads messages of up to 4 MiB into a buffer of the declared length. It uses one
// stream a peer at a time, so few are allowed, or one peer could claim 4 MiB times
// StreamsPerPeer.
func resources(l Limits, dht protocol.ID) (network.ResourceManager, error) {
	base := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&base)
	n := func(i int) rcmgr.LimitVal { return rcmgr.LimitVal(i) }
	peerLimit := rcmgr.ResourceLimits{
		Conns: n(8), ConnsInbound: n(8), ConnsOutbound: n(8),
		StreamsInbound: n(l.StreamsPerPeer), StreamsOutbound: n(l.StreamsPerPeer), Streams: n(2 * l.StreamsPerPeer),
	}
	ours := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: n(l.Conns), ConnsInbound: n(l.ConnsIn), ConnsOutbound: n(l.Conns),
			StreamsInbound: n(l.StreamsIn), StreamsOutbound: n(2 * l.StreamsIn), Streams: n(3 * l.StreamsIn),
		},
		Transient: rcmgr.ResourceLimits{
			Conns: n(l.ConnsIn), ConnsInbound: n(l.ConnsIn / 2), ConnsOutbound: n(l.ConnsIn / 2),
		},
		PeerDefault: peerLimit,
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{
			dht: {StreamsInbound: n(dhtStreams), StreamsOutbound: n(l.StreamsIn), Streams: n(l.StreamsIn + dhtStreams)},
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			dht: {StreamsInbound: n(dhtStreamsPerPeer), StreamsOutbound: n(l.StreamsPerPeer), Streams: n(l.StreamsPerPeer + dhtStreamsPerPeer)},
		},
		ProtocolPeerDefault: rcmgr.ResourceLimits{StreamsInbound: n(l.StreamsPerPeer), StreamsOutbound: n(l.StreamsPerPeer), Streams: n(2 * l.StreamsPerPeer)},
	}
	perIP := func(bits int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: bits, ConnCount: l.ConnsPerIP}}
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(ours.Build(base.AutoScale())),
		rcmgr.WithMetricsDisabled(), rcmgr.WithLimitPerSubnet(perIP(32), perIP(64)))
}

// gate refuses peers whose key is not Ed25519: NodeID names no other key, and RSA keys
// have been used to burn CPU (CVE-2023-39533).
type gate struct{}

func (gate) InterceptPeerDial(p peer.ID) bool                 { return nodeOf(p) != "" }
func (gate) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool { return !manet.IsIPUnspecified(a) }
func (gate) InterceptAccept(network.ConnMultiaddrs) bool      { return true }
func (gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return nodeOf(p) != ""
}
func (gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// choosePorts replaces ports 0 by free ones, the same number for UDP and TCP of one host
// if possible, and finds out early, with a clear error, that a fixed port is taken: the
// swarm reports only that all listeners failed.
func choosePorts(want []ma.Multiaddr) ([]ma.Multiaddr, error) {
	chosen := make(map[string]int) // by host
	var out []ma.Multiaddr
	for _, a := range want {
		netw, addr, err := manet.DialArgs(a)
		if err != nil {
			return nil, badListen(a.String()).Because(err)
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, badListen(a.String()).Because(err)
		}
		if port != "0" {
			if _, err := probe(netw, addr); err != nil {
				return nil, bindError(a, err)
			}
			out = append(out, a)
			continue
		}
		n := chosen[host]
		if n == 0 {
			if n, err = freePort(netw, host); err != nil {
				return nil, bindError(a, err)
			}
			chosen[host] = n
		}
		b, err := withPort(a, n)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// freePort finds a port that is free for UDP and TCP, at last any that is free for netw.
func freePort(netw, host string) (int, error) {
	other := map[byte]string{'u': "tcp", 't': "udp"}[netw[0]] + netw[3:]
	for range bindTries {
		n, err := probe(netw, net.JoinHostPort(host, "0"))
		if err != nil {
			return 0, err
		}
		if _, err := probe(other, net.JoinHostPort(host, fmt.Sprint(n))); err == nil {
			return n, nil
		}
	}
	return probe(netw, net.JoinHostPort(host, "0"))
}

// probe binds addr for a moment and returns the port.
func probe(netw, addr string) (int, error) {
	if netw[0] == 'u' {
		c, err := net.ListenPacket(netw, addr)
		if err != nil {
			return 0, err
		}
		return c.LocalAddr().(*net.UDPAddr).Port, c.Close()
	}
	l, err := net.Listen(netw, addr)
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// wsaAddrInUse is Windows' word for EADDRINUSE; elsewhere no error has this number.
const wsaAddrInUse = syscall.Errno(10048)

func bindError(a ma.Multiaddr, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return shoal.NewError(shoal.Denied, "port_denied", "listen on "+a.String(),
			"use a port above 1023").Because(err)
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, wsaAddrInUse):
		return ErrPortBusy.With("%s", a).Because(err)
	}
	return shoal.NewError(shoal.Invalid, "bad_listen", "listen on "+a.String(),
		"use an address of this machine").Because(err)
}

// withPort returns a with port n in its udp or tcp part.
func withPort(a ma.Multiaddr, n int) (ma.Multiaddr, error) {
	var out ma.Multiaddr
	for _, c := range a {
		if code := c.Protocol().Code; code == ma.P_UDP || code == ma.P_TCP {
			p, err := ma.NewComponent(c.Protocol().Name, fmt.Sprint(n))
			if err != nil {
				return nil, fmt.Errorf("port %d: %w", n, err)
			}
			c = *p
		}
		out = append(out, c)
	}
	return out, nil
}

// listen opens all listeners; choosePorts found the ports free a moment ago.
func listen(h host.Host, addrs []ma.Multiaddr) error {
	for _, a := range addrs {
		if err := h.Network().Listen(a); err != nil {
			return ErrPortBusy.With("%s", a).Because(err)
		}
	}
	return nil
}

// forgive makes the next dial of p real: after a failure the swarm refuses to dial an
// address for seconds to minutes, and whoever calls us keeps a pace of their own.
func forgive(h host.Host, p peer.ID) {
	if s, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		s.Backoff().Clear(p)
	}
}
