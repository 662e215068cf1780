// Package meshtest is a mesh in memory: the methods of package mesh without sockets, for
// tests of the packages above it and for simulations.
//
// It promises the semantics that those packages build on: connections carry the NodeID of
// the other side, records are validated by package identity and the highest sequence
// wins, providers are found by late joiners, errors have mesh's kinds and reasons. Time
// passes only through package time, so it works in a testing/synctest bubble (make the
// [Net] inside it). It does not model bandwidth, Kademlia's routing or NAT.
//
// All nodes of one network are connected to each other unless they are partitioned. A
// connection is in order and reliable until it breaks.
package meshtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// replicas is how many nodes keep a record: Kademlia's k.
const replicas = 20

// The errors of package mesh, equal to them under errors.Is.
var (
	errNoPeers     = shoal.NewError(shoal.Unavailable, "no_peers", "no peer is connected", "")
	errNotFound    = shoal.NewError(shoal.NotFound, "record_not_found", "no valid record found", "")
	errOlder       = shoal.NewError(shoal.Conflict, "record_older", "a newer record is known", "")
	errUnreachable = shoal.NewError(shoal.Unavailable, "peer_unreachable", "the node cannot be reached", "")
	errProtocol    = shoal.NewError(shoal.Unsupported, "protocol_unsupported", "the node does not speak this protocol", "")
	errNoReplica   = shoal.NewError(shoal.Unavailable, "no_replica", "no peer stored it", "")
	errTaken       = shoal.NewError(shoal.Conflict, "protocol_taken", "the protocol has a listener already", "")
	errClosed      = shoal.NewError(shoal.Unavailable, "mesh_closed", "the mesh is not running", "")
	errSelf        = shoal.NewError(shoal.Invalid, "dial_self", "a node cannot dial itself", "")
)

// Net is a network of nodes in memory. Safe for concurrent use.
type Net struct {
	mu      sync.Mutex
	rand    *rand.Rand
	latency time.Duration
	loss    float64
	nodes   map[shoal.NodeID]*Mesh
	cut     map[[2]shoal.NodeID]bool
	links   map[*link]bool
	changed chan struct{} // closed and replaced when reachability changes
}

// New returns an empty network without latency and loss. All chance comes from seed; the
// order of concurrent callers is the scheduler's.
func New(seed uint64) *Net {
	return &Net{
		rand:    rand.New(rand.NewPCG(seed, 0x5c0a1)),
		nodes:   make(map[shoal.NodeID]*Mesh),
		cut:     make(map[[2]shoal.NodeID]bool),
		links:   make(map[*link]bool),
		changed: make(chan struct{}),
	}
}

// Node adds a running node. A key that was stopped may come back: with nothing of what
// its DHT part stored, as after a restart. It panics if the node is running.
func (n *Net) Node(key identity.Key, network string) *Mesh {
	m := &Mesh{
		net: n, id: key.Node(), network: network,
		listeners: make(map[string]*listener),
		records:   make(map[string][]byte),
		providers: make(map[string]map[shoal.NodeID]bool),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[m.id] != nil {
		panic("meshtest: node " + string(m.id) + " is running")
	}
	n.nodes[m.id] = m
	n.change()
	return m
}

// SetLatency sets how long a byte takes one way; a new connection and a question to the
// DHT take there and back.
func (n *Net) SetLatency(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = d
}

// SetLoss sets the probability with which each of these fails: a Dial, a Ping, a Write
// (the connection breaks), a replica's store and a replica's answer.
func (n *Net) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// Partition cuts a and b off from each other until [Net.Heal]; their connections break.
func (n *Net) Partition(a, b shoal.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[pair(a, b)] = true
	n.breakLinks(func(l *link) bool { return pair(l.ends[0].local, l.ends[1].local) == pair(a, b) })
	n.change()
}

// Isolate cuts a off from all nodes that run now.
func (n *Net) Isolate(a shoal.NodeID) {
	n.mu.Lock()
	var others []shoal.NodeID
	for id := range n.nodes {
		if id != a {
			others = append(others, id)
		}
	}
	n.mu.Unlock()
	slices.Sort(others)
	for _, b := range others {
		n.Partition(a, b)
	}
}

// Heal undoes all partitions.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.change()
}

// Stop ends a node as a crash does: its connections break, its listeners end, what it
// stored for others is gone. Stopping a node that does not run does nothing.
func (n *Net) Stop(id shoal.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.nodes[id]
	if m == nil {
		return
	}
	delete(n.nodes, id)
	for _, l := range m.listeners {
		l.stop()
	}
	clear(m.listeners)
	n.breakLinks(func(l *link) bool { return l.ends[0].local == id || l.ends[1].local == id })
	n.change()
}

// Conns returns how many connections are open, for tests of leaks.
func (n *Net) Conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.links)
}

func pair(a, b shoal.NodeID) [2]shoal.NodeID {
	return [2]shoal.NodeID{min(a, b), max(a, b)}
}

// The rest of the methods need n.mu.

func (n *Net) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Net) breakLinks(match func(*link) bool) {
	for l := range n.links {
		if match(l) {
			l.sever()
			delete(n.links, l)
		}
	}
}

func (n *Net) lost() bool { return n.loss > 0 && n.rand.Float64() < n.loss }

// reach returns the running nodes that m is connected to, ordered by id.
func (n *Net) reach(m *Mesh) []*Mesh {
	if n.nodes[m.id] != m {
		return nil
	}
	var out []*Mesh
	for _, o := range n.nodes {
		if o != m && o.network == m.network && !n.cut[pair(m.id, o.id)] {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *Mesh) int { return cmp.Compare(a.id, b.id) })
	return out
}

// nearest returns those of reach that are responsible for key.
func (n *Net) nearest(m *Mesh, key string) []*Mesh {
	all := n.reach(m)
	if len(all) <= replicas {
		return all
	}
	target := sha256.Sum256([]byte(key))
	distance := func(m *Mesh) []byte {
		d := sha256.Sum256([]byte(m.id))
		for i := range d {
			d[i] ^= target[i]
		}
		return d[:]
	}
	slices.SortFunc(all, func(a, b *Mesh) int { return bytes.Compare(distance(a), distance(b)) })
	return all[:replicas]
}

// wait lets trips times the latency pass.
func (n *Net) wait(ctx context.Context, trips int) error {
	n.mu.Lock()
	d := time.Duration(trips) * n.latency
	n.mu.Unlock()
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
