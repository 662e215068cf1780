// Package mesh reaches other nodes: it joins a network, keeps connections alive, opens
// streams by protocol and node, and keeps signed records and providers in a DHT.
//
// It promises that a connection's RemoteAddr is the authenticated [shoal.NodeID] of the
// other side, that every record it returns was signed by the owner named in its key for
// this network and is within its validity, and that everything learned from the network
// is bounded in memory. It does not know what a card, an envelope or a task is, it does
// not remember sequence numbers across restarts (package directory pins them), and it
// does not hide who talks to whom.
//
// It is the only importer of libp2p, and no libp2p type is in its exported names. Package
// node calls it; layer-2 packages declare the methods that they use and are handed a
// [*Mesh] or, in tests, one of package meshtest.
//
// Private addresses: a node dials any address that it learns, loopback and private ranges
// included, because meshes on one machine or one LAN are the normal case. A peer can so
// make us open a QUIC or TCP connection to a private address, which fails at the
// handshake unless the node with the named key answers there.
package mesh

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// Errors that callers test for. Others are described at the methods.
var (
	// ErrNoPeers says that the node knows no peer to ask.
	ErrNoPeers = shoal.NewError(shoal.Unavailable, "no_peers", "no peer is connected",
		"join a node: `shoal up --join LINK`")
	// ErrRecordNotFound says that no reachable peer holds a valid record of that key.
	ErrRecordNotFound = shoal.NewError(shoal.NotFound, "record_not_found", "no valid record found", "")
	// ErrRecordOlder says that a record with a higher sequence is known.
	ErrRecordOlder = shoal.NewError(shoal.Conflict, "record_older", "a newer record is known",
		"sign it with a higher sequence")
	// ErrUnreachable says that a node cannot be reached now.
	ErrUnreachable = shoal.NewError(shoal.Unavailable, "peer_unreachable", "the node cannot be reached",
		"is it running? `shoal ping` shows the path")
	// ErrProtocol says that the node does not speak the protocol asked for.
	ErrProtocol = shoal.NewError(shoal.Unsupported, "protocol_unsupported",
		"the node does not speak this protocol", "it may run another version")
	// ErrWrongNetwork says that a peer or link belongs to another network.
	ErrWrongNetwork = shoal.NewError(shoal.Invalid, "wrong_network", "it belongs to another network",
		"start the node with --network NAME")
	// ErrPortBusy says that a listen address is in use.
	ErrPortBusy = shoal.NewError(shoal.Conflict, "port_busy", "the port is in use",
		"choose another port, or port 0 for any free one")
	// ErrClosed says that the mesh is not bound yet, or closed.
	ErrClosed = shoal.NewError(shoal.Unavailable, "mesh_closed", "the mesh is not running", "")
)

// Mesh is this node's part of a network. All methods are safe for concurrent use.
type Mesh struct {
	cfg  Config
	key  identity.Key
	id   shoal.NodeID
	self peer.ID
	log  *slog.Logger

	remember chan peer.AddrInfo // to Run: keep this peer connected
	routed   chan struct{}      // holds a token after a peer entered the routing table

	mu        sync.Mutex
	host      host.Host // nil before Bind
	dht       *table
	listeners map[string]*listener
	closed    bool
	work      sync.WaitGroup // short background work: late replicas, closing streams
}

// New returns a mesh node that is not on the network yet: it does no I/O and starts
// nothing. key becomes the node's identity on the wire.
// It returns [shoal.Invalid] errors for each mistake in cfg.
func New(cfg Config, key identity.Key, log *slog.Logger) (*Mesh, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	id := key.Node()
	self, err := peerOf(id)
	if err != nil {
		return nil, err
	}
	return &Mesh{
		cfg: cfg, key: key, id: id, self: self, log: log,
		remember:  make(chan peer.AddrInfo, maxRemembered),
		routed:    make(chan struct{}, 1),
		listeners: make(map[string]*listener),
	}, nil
}

// ID returns the node's id.
func (m *Mesh) ID() shoal.NodeID { return m.id }

// Network returns the name of the network that the node belongs to.
func (m *Mesh) Network() string { return m.cfg.Network }

// Bind opens the listeners; from now on peers can connect, so handlers should be
// registered with [Mesh.Listen] before. A port 0 is the same number for UDP and TCP if
// one is free for both. It returns [ErrPortBusy], or [shoal.Denied] with reason
// port_denied. Calling it again does nothing.
func (m *Mesh) Bind() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.host != nil {
		return nil
	}
	h, d, err := m.open()
	if err != nil {
		return err
	}
	m.host, m.dht = h, d
	return nil
}

// BindTo is Bind on other addresses than Config.Listen says, for a caller that was told
// [ErrPortBusy] and is content with another port.
func (m *Mesh) BindTo(listen []string) error {
	m.mu.Lock()
	m.cfg.Listen = listen
	m.mu.Unlock()
	return m.Bind()
}

// Run keeps the node on its network until ctx ends: it connects to the bootstrap peers
// and to all that were joined, again and again with growing pauses, and reports peers to
// Config.OnPeer. It calls Bind if that was not done, and Close when it ends.
func (m *Mesh) Run(ctx context.Context) error {
	if err := m.Bind(); err != nil {
		return err
	}
	err := m.watch(ctx)
	return errors.Join(err, m.Close())
}

// Close leaves the network: streams and listeners end, and all goroutines are waited
// for. Run calls it; it is for whoever called Bind without Run.
func (m *Mesh) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		m.work.Wait()
		return nil
	}
	m.closed = true
	h, d := m.host, m.dht
	ls := m.listeners
	m.listeners = nil
	m.mu.Unlock()

	for _, l := range ls {
		l.stop()
	}
	var errs []error
	if h != nil {
		errs = append(errs, d.Close(), h.Close())
	}
	m.work.Wait()
	return errors.Join(errs...)
}

// Addrs returns the full multiaddrs ("/ip4/…/udp/4420/quic-v1/p2p/12D3…") under which the
// node listens, public ones first, loopback last; none before Bind.
func (m *Mesh) Addrs() []string {
	h, _, err := m.live()
	if err != nil {
		return nil
	}
	addrs, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		m.log.Debug("interface addresses", "err", err)
	}
	addrs = ma.Unique(append(addrs, h.Addrs()...))
	slices.SortStableFunc(addrs, func(a, b ma.Multiaddr) int { return reach(a) - reach(b) })
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String()+"/p2p/"+string(m.id))
	}
	return out
}

// Invite returns what another node needs to join through this one.
func (m *Mesh) Invite() Invite {
	addrs := m.Addrs()
	return Invite{Network: m.cfg.Network, Addrs: addrs[:min(len(addrs), maxInviteAddrs)]}
}

// live returns the host and the DHT between Bind and Close.
func (m *Mesh) live() (host.Host, *table, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host == nil || m.closed {
		return nil, nil, ErrClosed
	}
	return m.host, m.dht, nil
}

// background runs f unless the mesh is closed; Close waits for it, so f must be bounded.
func (m *Mesh) background(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Go(f)
	return true
}

// peerOf returns id as libp2p writes it.
func peerOf(id shoal.NodeID) (peer.ID, error) {
	if _, err := shoal.ParseNodeID(string(id)); err != nil {
		return "", err
	}
	return peer.Decode(string(id))
}

// nodeOf is the inverse of peerOf; "" for a key that is not Ed25519.
func nodeOf(p peer.ID) shoal.NodeID {
	id, err := shoal.ParseNodeID(p.String())
	if err != nil {
		return ""
	}
	return id
}
