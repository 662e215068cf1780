package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/shoalmesh/shoal"
)

// acceptBacklog is how many streams of one protocol wait for Accept. More are reset: the
// other side sees an error at once rather than silence.
const acceptBacklog = 128

// Listen returns the listener of a protocol such as "/shoal/mail/1.0.0". Its connections
// are streams: RemoteAddr().String() is the peer's NodeID, authenticated. It may be
// called before Bind. It returns [shoal.Conflict] with reason protocol_taken if there is
// one already. Close ends it; the accepted connections live on.
func (m *Mesh) Listen(proto string) (net.Listener, error) {
	if len(proto) < 2 || len(proto) > 128 || proto[0] != '/' {
		return nil, shoal.NewError(shoal.Invalid, "bad_protocol",
			fmt.Sprintf("protocol %q is malformed", clip(proto)), "it looks like /shoal/NAME/1.0.0")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if m.listeners[proto] != nil {
		return nil, shoal.NewError(shoal.Conflict, "protocol_taken", "protocol "+proto+" has a listener already", "")
	}
	l := &listener{
		mesh: m, proto: proto,
		streams: make(chan network.Stream, acceptBacklog),
		done:    make(chan struct{}),
	}
	m.listeners[proto] = l
	if m.host != nil {
		m.serve(m.host, proto, l)
	}
	return l, nil
}

// serve routes the streams of proto to l.
func (m *Mesh) serve(h host.Host, proto string, l *listener) {
	h.SetStreamHandler(protocol.ID(proto), l.take)
}

// listener is a net.Listener of one protocol's streams.
type listener struct {
	mesh    *Mesh
	proto   string
	streams chan network.Stream
	done    chan struct{}
	once    sync.Once
}

func (l *listener) take(s network.Stream) {
	if !l.mesh.sameNetwork(s.Conn().RemotePeer()) {
		_ = s.Reset()
		return
	}
	select {
	case <-l.done:
	case l.streams <- s:
		select {
		case <-l.done: // Close may have emptied the queue before s came in
			l.drain()
		default:
		}
		return
	default:
	}
	_ = s.Reset()
}

// sameNetwork says no if p has identified itself as of another network. What it says
// before it has identified itself is heard: protocols name the network themselves.
func (m *Mesh) sameNetwork(p peer.ID) bool {
	h, _, err := m.live()
	if err != nil {
		return false
	}
	v := versionOf(h, p)
	return v == "" || v == m.version()
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case <-l.done:
		return nil, net.ErrClosed
	case s := <-l.streams:
		return &conn{Stream: s, mesh: l.mesh}, nil
	}
}

func (l *listener) Close() error {
	l.mesh.mu.Lock()
	h := l.mesh.host
	mine := l.mesh.listeners[l.proto] == l
	if mine {
		delete(l.mesh.listeners, l.proto)
	}
	l.mesh.mu.Unlock()
	if mine && h != nil {
		h.RemoveStreamHandler(protocol.ID(l.proto))
	}
	l.stop()
	return nil
}

func (l *listener) stop() {
	l.once.Do(func() { close(l.done) })
	l.drain()
}

func (l *listener) drain() {
	for {
		select {
		case s := <-l.streams:
			_ = s.Reset()
		default:
			return
		}
	}
}

func (l *listener) Addr() net.Addr { return addr(l.mesh.id) }

// addr is a NodeID as a net.Addr.
type addr shoal.NodeID

func (addr) Network() string  { return "libp2p" }
func (a addr) String() string { return string(a) }

// Dial opens a stream to a node, connecting first if need be; its addresses are looked up
// in the DHT if they are not known or do not answer. It takes at most Config.DialTimeout.
// The caller must Close the connection, also after it read to the end: a stream that is
// left open counts against the peer's limit for ever. CloseWrite ends one direction.
// It returns [ErrUnreachable], [ErrProtocol], [shoal.Exhausted] with reason stream_limit,
// [shoal.Timeout] with reason dial_timeout, or [shoal.Invalid] for a bad id or our own.
//
// When the peer is known to speak proto, Dial does not wait for it to answer: a refusal
// then comes from the first Read, as the same errors.
func (m *Mesh) Dial(ctx context.Context, id shoal.NodeID, proto string) (net.Conn, error) {
	p, err := peerOf(id)
	if err != nil {
		return nil, err
	}
	if p == m.self {
		return nil, shoal.NewError(shoal.Invalid, "dial_self", "a node cannot dial itself", "")
	}
	h, _, err := m.live()
	if err != nil {
		return nil, err
	}
	dialing, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	if err := m.approach(dialing, h, p); err != nil {
		return nil, m.dialError(ctx, dialing, id, proto, err)
	}
	s, err := h.NewStream(network.WithNoDial(dialing, "just connected"), p, protocol.ID(proto))
	if err != nil {
		return nil, m.dialError(ctx, dialing, id, proto, err)
	}
	return &conn{Stream: s, mesh: m}, nil
}

// approach connects to p with the addresses that are known, then with those that the DHT
// knows. It tries twice: a search that begins at p's stale address marks p as unreachable
// before others tell where it is now, and drops it from the routing table; the second
// search begins without it.
func (m *Mesh) approach(ctx context.Context, h host.Host, p peer.ID) (err error) {
	for range 2 {
		if h.Network().Connectedness(p) == network.Connected {
			return nil
		}
		forgive(h, p)
		if err = h.Connect(ctx, peer.AddrInfo{ID: p}); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// dialError says what err of a dial means to the caller.
func (m *Mesh) dialError(caller, dialing context.Context, id shoal.NodeID, proto string, err error) error {
	switch {
	case errors.Is(caller.Err(), context.Canceled):
		return fmt.Errorf("dial %s: %w", id, caller.Err())
	case protocolRefused(err):
		return ErrProtocol.With("%s on %s", proto, id).Because(err)
	case errors.Is(err, network.ErrResourceLimitExceeded):
		return shoal.NewError(shoal.Exhausted, "stream_limit", "too many streams with "+string(id),
			"close connections after use").Because(err)
	case dialing.Err() != nil:
		return shoal.NewError(shoal.Timeout, "dial_timeout", "dial "+string(id)+" took too long",
			ErrUnreachable.Hint).Because(err)
	}
	return ErrUnreachable.With("%s", id).Because(err)
}

// protocolRefused says whether err is the other side's word that it does not speak the
// protocol: an answer, or a reset with the code for it, depending on which came first.
func protocolRefused(err error) bool {
	var refused multistream.ErrNotSupported[protocol.ID]
	var reset *network.StreamError
	return errors.As(err, &refused) ||
		errors.As(err, &reset) && reset.Remote && reset.ErrorCode == network.StreamProtocolNegotiationFailed
}

// conn is a stream as a net.Conn.
type conn struct {
	network.Stream
	mesh  *Mesh
	heard atomic.Bool // the other side has confirmed the protocol
}

func (c *conn) LocalAddr() net.Addr  { return addr(c.mesh.id) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.Conn().RemotePeer().String()) }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	if n > 0 {
		c.heard.Store(true)
		return n, err
	}
	if protocolRefused(err) {
		return 0, ErrProtocol.With("%s on %s", c.Protocol(), c.RemoteAddr()).Because(err)
	}
	return n, err
}

// Close ends both directions; what was written is still delivered. Before the other side
// has confirmed the protocol, libp2p's Close waits for it, up to ten seconds: that happens
// in the background, so nobody waits for a dead peer.
func (c *conn) Close() error {
	if c.heard.Load() || c.Stat().Direction == network.DirInbound {
		return c.finish()
	}
	if !c.mesh.background(func() { _ = c.finish() }) {
		return c.Reset()
	}
	return nil
}

// finish closes the stream, or resets it where that is not possible: either way it no
// longer counts against the peer's limit.
func (c *conn) finish() error {
	if err := c.Stream.Close(); err != nil {
		_ = c.Reset()
		return err
	}
	return nil
}
