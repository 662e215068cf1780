package meshtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// Mesh is one node; its methods are those of mesh.Mesh, see there. Where they differ is
// said here.
type Mesh struct {
	// OnPeer is mesh.Config.OnPeer; set it before Run.
	OnPeer func(id shoal.NodeID, up bool)

	net     *Net
	id      shoal.NodeID
	network string

	// Guarded by net.mu.
	listeners map[string]*listener
	records   map[string][]byte
	providers map[string]map[shoal.NodeID]bool
}

// Peer is identical to mesh.Peer, which is an alias of the same struct.
type Peer = struct {
	ID        shoal.NodeID
	Addr      string
	Direction string
	Path      string
	RTT       time.Duration
}

// path is how every node here is reached.
const path = "memory"

// ID returns the node's id.
func (m *Mesh) ID() shoal.NodeID { return m.id }

// Network returns the name of the node's network.
func (m *Mesh) Network() string { return m.network }

// Bind does nothing: a node runs from the start.
func (m *Mesh) Bind() error { return nil }

// Addrs returns one address, good for Join.
func (m *Mesh) Addrs() []string { return []string{"/memory/" + string(m.id)} }

// Close stops the node.
func (m *Mesh) Close() error {
	m.net.mu.Lock()
	running := m.net.nodes[m.id] == m
	m.net.mu.Unlock()
	if running {
		m.net.Stop(m.id)
	}
	return nil
}

// Run reports peers to OnPeer until ctx ends or the node stops, then closes the node.
func (m *Mesh) Run(ctx context.Context) error {
	up := make(map[shoal.NodeID]bool)
	for {
		m.net.mu.Lock()
		changed := m.net.changed
		alive := m.net.nodes[m.id] == m
		now := m.net.reach(m)
		m.net.mu.Unlock()
		m.report(up, now)
		if !alive {
			return nil
		}
		select {
		case <-ctx.Done():
			m.report(up, nil)
			return m.Close()
		case <-changed:
		}
	}
}

// report tells OnPeer what differs between up and now.
func (m *Mesh) report(up map[shoal.NodeID]bool, now []*Mesh) {
	tell := func(id shoal.NodeID, is bool) {
		if m.OnPeer != nil {
			m.OnPeer(id, is)
		}
	}
	var gone []shoal.NodeID
	for id := range up {
		if !slices.ContainsFunc(now, func(o *Mesh) bool { return o.id == id }) {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	for _, id := range gone {
		delete(up, id)
		tell(id, false)
	}
	for _, o := range now {
		if !up[o.id] {
			up[o.id] = true
			tell(o.id, true)
		}
	}
}

// Join checks that the nodes of addrs (from Addrs) can be reached; connected they are.
func (m *Mesh) Join(ctx context.Context, addrs []string) ([]shoal.NodeID, error) {
	var ids []shoal.NodeID
	for _, a := range addrs {
		id := shoal.NodeID(a[min(len(a), len("/memory/")):])
		if _, _, err := m.Ping(ctx, id); err == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, shoal.NewError(shoal.Unavailable, "join_failed", "no node answered", "")
	}
	return ids, nil
}

// Peers returns the nodes that can be reached, ordered by id.
func (m *Mesh) Peers() []Peer {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	var out []Peer
	for _, o := range m.net.reach(m) {
		out = append(out, Peer{ID: o.id, Addr: "/memory/" + string(o.id), Direction: "out", Path: path, RTT: 2 * m.net.latency})
	}
	return out
}

// Ping takes there and back; the path is "memory".
func (m *Mesh) Ping(ctx context.Context, id shoal.NodeID) (string, time.Duration, error) {
	before := time.Now()
	if _, err := m.contact(ctx, id); err != nil {
		return "", 0, err
	}
	return path, time.Since(before), nil
}

// contact takes there and back, and returns the node if it can be reached.
func (m *Mesh) contact(ctx context.Context, id shoal.NodeID) (*Mesh, error) {
	if _, err := shoal.ParseNodeID(string(id)); err != nil {
		return nil, err
	}
	if id == m.id {
		return nil, errSelf
	}
	if err := m.net.wait(ctx, 2); err != nil {
		return nil, fmt.Errorf("dial %s: %w", id, err)
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if m.net.nodes[m.id] != m {
		return nil, errClosed
	}
	for _, o := range m.net.reach(m) {
		if o.id == id && !m.net.lost() {
			return o, nil
		}
	}
	return nil, errUnreachable.With("%s", id)
}

// Listen returns the listener of a protocol.
func (m *Mesh) Listen(proto string) (net.Listener, error) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	switch {
	case m.net.nodes[m.id] != m:
		return nil, errClosed
	case m.listeners[proto] != nil:
		return nil, errTaken
	}
	l := &listener{mesh: m, proto: proto, conns: make(chan net.Conn, acceptBacklog), done: make(chan struct{})}
	m.listeners[proto] = l
	return l, nil
}

// Dial opens a connection to a node's listener.
func (m *Mesh) Dial(ctx context.Context, id shoal.NodeID, proto string) (net.Conn, error) {
	o, err := m.contact(ctx, id)
	if err != nil {
		return nil, err
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	l := o.listeners[proto]
	if l == nil {
		return nil, errProtocol.With("%s on %s", proto, id)
	}
	k := newLink(m.net, m.id, o.id)
	select {
	case l.conns <- k.ends[1]:
	default:
		return nil, errUnreachable.With("%s accepts no more", id)
	}
	m.net.links[k] = true
	return k.ends[0], nil
}

func recordKey(kind string, owner shoal.AgentID) string {
	return "/shoal/" + kind + "/" + string(owner)
}

// PutRecord stores a signed record on the nodes responsible for it.
func (m *Mesh) PutRecord(ctx context.Context, raw []byte) error {
	rec, err := identity.OpenRecord(m.network, raw, time.Now())
	if err != nil {
		return err
	}
	if err := m.net.wait(ctx, 2); err != nil {
		return err
	}
	key := recordKey(rec.Kind, rec.Owner)
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if !m.store(key, raw) {
		return errOlder
	}
	return m.each(key, func(o *Mesh) bool { return o.store(key, raw) })
}

// each calls put on the nodes responsible for key, except lost ones.
func (m *Mesh) each(key string, put func(*Mesh) bool) error {
	near := m.net.nearest(m, key)
	if len(near) == 0 {
		return errNoPeers
	}
	stored := 0
	for _, o := range near {
		if !m.net.lost() && put(o) {
			stored++
		}
	}
	if stored == 0 {
		return errNoReplica
	}
	return nil
}

// store keeps raw unless something better is there, by the rules of mesh's validator.
func (m *Mesh) store(key string, raw []byte) bool {
	if m.better(key, m.records[key], raw) {
		m.records[key] = bytes.Clone(raw)
		return true
	}
	return bytes.Equal(m.records[key], raw)
}

// better says whether raw is valid for key and replaces old.
func (m *Mesh) better(key string, old, raw []byte) bool {
	rec, err := identity.OpenRecord(m.network, raw, time.Now())
	if err != nil || recordKey(rec.Kind, rec.Owner) != key {
		return false
	}
	have, err := identity.OpenRecord(m.network, old, time.Now())
	if err != nil {
		return true
	}
	x, y := sha256.Sum256(raw), sha256.Sum256(old)
	return cmp.Or(cmp.Compare(rec.Seq, have.Seq), -bytes.Compare(x[:], y[:])) > 0
}

// GetRecord returns the valid record with the highest sequence among those responsible.
func (m *Mesh) GetRecord(ctx context.Context, kind string, owner shoal.AgentID) ([]byte, error) {
	if err := m.net.wait(ctx, 2); err != nil {
		return nil, err
	}
	key := recordKey(kind, owner)
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if m.net.nodes[m.id] != m {
		return nil, errClosed
	}
	var best []byte
	if raw := m.records[key]; m.better(key, nil, raw) {
		best = raw
	}
	near := m.net.nearest(m, key)
	for _, o := range near {
		if raw := o.records[key]; raw != nil && !m.net.lost() && m.better(key, best, raw) {
			best = raw
		}
	}
	switch {
	case best != nil:
		return bytes.Clone(best), nil
	case len(near) == 0:
		return nil, errNoPeers
	}
	return nil, errNotFound
}

// Provide announces this node as a provider of key.
func (m *Mesh) Provide(ctx context.Context, key string) error {
	if err := m.net.wait(ctx, 2); err != nil {
		return err
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	add := func(o *Mesh) bool {
		if o.providers[key] == nil {
			o.providers[key] = make(map[shoal.NodeID]bool)
		}
		o.providers[key][m.id] = true
		return true
	}
	add(m)
	return m.each(key, add)
}

// Providers returns the nodes that announced key, ordered by id, never this one.
func (m *Mesh) Providers(ctx context.Context, key string, limit int) ([]shoal.NodeID, error) {
	if err := m.net.wait(ctx, 2); err != nil {
		return nil, err
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if m.net.nodes[m.id] != m {
		return nil, errClosed
	}
	near := m.net.nearest(m, key)
	found := make(map[shoal.NodeID]bool)
	for _, o := range append([]*Mesh{m}, near...) {
		if o != m && m.net.lost() {
			continue
		}
		for id := range o.providers[key] {
			found[id] = true
		}
	}
	delete(found, m.id)
	var out []shoal.NodeID
	for id := range found {
		out = append(out, id)
	}
	slices.Sort(out)
	switch {
	case len(out) == 0 && len(near) == 0:
		return nil, errNoPeers
	case limit > 0 && len(out) > limit:
		out = out[:limit]
	}
	return out, nil
}
