package mail

import (
	"container/heap"
	"math"
	"time"

	"github.com/shoalmesh/shoal"
)

// outgoing is everything about delivery: a graph of flows, the recipients they go to and
// the nodes that host those, and what is to be done next. Mailbox.mu guards all of it.
type outgoing struct {
	phase  phase
	early  []early
	flows  map[int64]*flow
	names  map[flowName]*flow
	dests  map[key]*dest
	peers  map[shoal.NodeID]*peer
	local  *peer
	memory int64 // bytes of bodies in queues
	timers timers

	// What the dispatcher starts. What failed before waits in a gate of its own, so
	// that a thousand dead peers do not stand in the way of a fresh one.
	route, reroute gate[*dest]
	start, restart gate[*peer]

	dirty      []*flow // to be settled
	unsettled  int     // envelopes acked whose rows are still there
	expiring   []*flow // wait for a sweep
	nextExpiry int64   // unix ms; no row expires before
}

// phase says what a committed post does: before Run has read the outbox, it is only
// remembered, because Run will find its row or has found it already.
type phase uint8

const (
	stopped phase = iota
	running
)

// early is a post committed before Run had read the outbox.
type early struct {
	meta  *flowMeta
	seq   uint64
	exp   int64
	watch WatchFunc
}

const (
	gateFresh = 256 // nodes dialled and agents looked up at a time, first attempts
	gateRetry = 32  // and later ones
	// gatePatience is how long an attempt counts as one of these.
	gatePatience = 250 * time.Millisecond
	flowQueue    = 4096
	flowTurn     = 256 // envelopes of one flow in a row, while others wait
)

func (o *outgoing) init() {
	o.flows = make(map[int64]*flow)
	o.names = make(map[flowName]*flow)
	o.dests = make(map[key]*dest)
	o.peers = make(map[shoal.NodeID]*peer)
	o.local = newPeer("")
	o.route.limit, o.start.limit = gateFresh, gateFresh
	o.reroute.limit, o.restart.limit = gateRetry, gateRetry
	o.nextExpiry = math.MaxInt64
}

// item is an envelope on its way, or a skip of the numbers skipFrom…seq.
type item struct {
	seq, skipFrom    uint64
	id               [16]byte
	created, expires int64 // unix ms
	body             []byte
}

func (it *item) first() uint64 {
	if it.skipFrom > 0 {
		return it.skipFrom
	}
	return it.seq
}

// size is what the item adds to a frame, at most.
func (it *item) size() int { return len(it.body) + maxHeader }

// flowName is how others name a flow.
type flowName struct {
	triple
	epoch uint64
}

// flow is an outgoing flow with mail pending, or whose node has a worker. acked ≤ sent ≤
// posted. queue holds consecutive envelopes from acked+1 on, as many as are in memory;
// its first nsent are in flight and end at sent.
type flow struct {
	meta *flowMeta
	dest *dest

	posted, sent, acked uint64
	queue               []item
	nsent               int

	ready    bool // in its peer's list
	loading  bool // being read from the outbox
	paused   bool // its receiver asked for a pause; a timer ends it
	expiring bool // its next envelope expired and is not yet buried
	retries  int
	rewound  uint64 // have+1 of the gap answer that was acted upon

	lazy  bool  // a timer will make it ready
	after *flow // must be drained first: the same triple in an older epoch
	then  *flow // waits for this one

	watch map[uint64]WatchFunc

	dirty      bool
	settled    uint64            // rows up to here are gone
	refusals   map[uint64]string // told by the receiver, not yet settled
	freedRows  int               // acked and not settled, for the quota
	freedBytes int64
	unsure     bool // freedRows is a guess: count in the table

	warned bool // of a receiver that is ahead of us
}

// pending reports whether anything is not acknowledged.
func (f *flow) pending() bool { return f.acked < f.posted }

// last is the number of the last envelope in the queue.
func (f *flow) last() uint64 {
	if n := len(f.queue); n > 0 {
		return f.queue[n-1].seq
	}
	return f.sent
}

// dest is a recipient. Without a peer it is idle, being routed, or waits for a timer.
type dest struct {
	to       key
	flows    map[*flow]struct{}
	peer     *peer
	busy     bool // in a route gate, or waiting for a timer to get there
	waiting  bool // waiting for that timer
	moved    bool // its host said not_here: ask the router anew
	failures int
}

func (d *dest) pending() bool {
	for f := range d.flows {
		if f.pending() {
			return true
		}
	}
	return false
}

// peer is a node with mail pending or a worker. The local peer has the id "".
type peer struct {
	id       shoal.NodeID
	state    peerState
	dests    map[*dest]struct{}
	ready    []*flow       // with something to send, first come first served
	wake     chan struct{} // capacity 1
	inflight int
	bytes    int // in flight
	failures int
	again    bool      // it came up while being dialled
	answered time.Time // the last ack, or when the first envelope in flight was sent
}

type peerState uint8

const (
	peerIdle    peerState = iota
	peerWorking           // has a worker, or stands in a gate to get one
	peerWaiting           // failed; a timer ends it
)

func newPeer(id shoal.NodeID) *peer {
	return &peer{id: id, dests: make(map[*dest]struct{}), wake: make(chan struct{}, 1)}
}

func (p *peer) notify() { poke(p.wake) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// gate starts at most limit things at a time, in order.
type gate[T any] struct {
	limit, busy int
	queue       []T
}

func (g *gate[T]) push(x T) { g.queue = append(g.queue, x) }

func (g *gate[T]) next() (x T, ok bool) {
	if len(g.queue) == 0 || g.busy >= g.limit {
		return x, false
	}
	x = g.queue[0]
	g.queue = g.queue[1:]
	g.busy++
	return x, true
}

// timers is a heap of what is to be done later, under Mailbox.mu.
type timers []timer

type timer struct {
	at time.Time
	do func()
}

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	return last
}

// later arranges for do to be called under Mailbox.mu after d.
func (m *Mailbox) later(d time.Duration, do func()) {
	heap.Push(&m.out.timers, timer{time.Now().Add(d), do})
	poke(m.wake)
}

// backoff is exponential with full jitter, so that those who failed together do not
// come back together. n is the number of failures, at least 1.
func (m *Mailbox) backoff(n int) time.Duration {
	top := m.cfg.RetryMax
	if shifted := m.cfg.RetryMin << min(n-1, 40); n <= 40 && shifted > 0 && shifted < top {
		top = shifted
	}
	floor := min(m.cfg.RetryMin/8, top) // a lucky draw is not a busy loop
	return floor + time.Duration(m.cfg.Rand()%uint64(top-floor+1))
}

// enqueue hands a committed envelope to delivery. It is called in the order of commits
// and does not block.
func (m *Mailbox) enqueue(meta *flowMeta, it item, watch WatchFunc, lazy bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := &m.out
	if o.phase == stopped {
		o.early = append(o.early, early{meta, it.seq, it.expires, watch})
		return
	}
	f := m.track(meta, it.seq, it.expires, watch)
	// In memory only if it goes on where the queue ends, and somebody reads the queue.
	p := f.dest.peer
	fits := o.memory+int64(len(it.body)) <= m.cfg.Memory && len(f.queue) < flowQueue
	if it.seq == f.last()+1 && fits && (p == nil || p.state != peerWaiting) && f.dest.failures == 0 {
		o.memory += int64(len(it.body))
		f.queue = append(f.queue, it)
	}
	if !lazy {
		m.ready(f)
		return
	}
	if !f.lazy {
		f.lazy = true
		m.later(m.cfg.Lazy, func() { f.lazy = false; m.ready(f) })
	}
}

// track notes that an envelope with this number is in the outbox.
func (m *Mailbox) track(meta *flowMeta, seq uint64, expires int64, watch WatchFunc) *flow {
	o := &m.out
	f := m.flow(meta, seq-1)
	f.posted = max(f.posted, seq)
	if watch != nil {
		if f.watch == nil {
			f.watch = make(map[uint64]WatchFunc)
		}
		f.watch[seq] = watch
	}
	if expires < o.nextExpiry {
		o.nextExpiry = expires
		poke(m.settleKick)
	}
	return f
}

// flow returns the flow that meta names. A new one has everything up to acked behind it:
// a flow with pending rows is always in memory, so one that is not has none.
func (m *Mailbox) flow(meta *flowMeta, acked uint64) *flow {
	o := &m.out
	if f := o.flows[meta.id]; f != nil {
		return f
	}
	d := o.dests[meta.to]
	if d == nil {
		d = &dest{to: meta.to, flows: make(map[*flow]struct{})}
		o.dests[meta.to] = d
	}
	f := &flow{meta: meta, dest: d, posted: acked, sent: acked, acked: acked, settled: acked}
	// A restored database has two epochs of one triple until the older one is drained.
	for other := range d.flows {
		if other.meta.from == meta.from && other.meta.topic == meta.topic && other.meta.epoch < meta.epoch &&
			(f.after == nil || other.meta.epoch > f.after.meta.epoch) && other.pending() {
			f.after = other
		}
	}
	if f.after != nil {
		f.after.then = f
	}
	d.flows[f] = struct{}{}
	o.flows[meta.id] = f
	o.names[f.name()] = f
	return f
}

func (f *flow) name() flowName {
	return flowName{triple{f.meta.from, f.meta.to, f.meta.topic}, f.meta.epoch}
}

// ready puts a flow that has something to send where a worker finds it, and sees to it
// that there is going to be a worker.
func (m *Mailbox) ready(f *flow) {
	if f.ready || f.loading || f.paused || f.expiring || f.after != nil || f.sent >= f.posted {
		return
	}
	d := f.dest
	if d.peer == nil {
		m.routeSoon(d)
		return
	}
	f.ready = true
	d.peer.ready = append(d.peer.ready, f)
	d.peer.notify()
	m.startSoon(d.peer)
}

func (m *Mailbox) routeSoon(d *dest) {
	if d.busy || m.out.phase == stopped {
		return
	}
	d.busy = true
	if d.failures == 0 {
		m.out.route.push(d)
	} else {
		m.out.reroute.push(d)
	}
	poke(m.wake)
}

func (m *Mailbox) startSoon(p *peer) {
	if p.state != peerIdle || m.out.phase == stopped {
		return
	}
	p.state = peerWorking
	if p.failures == 0 {
		m.out.start.push(p)
	} else {
		m.out.restart.push(p)
	}
	poke(m.wake)
}

// rewind takes back what is in flight: everything after acked is to be sent (again).
func (m *Mailbox) rewind(f *flow) {
	if p := f.dest.peer; p != nil {
		for i := range f.queue[:f.nsent] {
			p.inflight--
			p.bytes -= f.queue[i].size()
		}
	}
	f.nsent, f.sent = 0, f.acked
}

// drop forgets the queue; what is in it is read from the outbox when its turn comes.
func (m *Mailbox) drop(f *flow) {
	m.rewind(f)
	for i := range f.queue {
		m.out.memory -= int64(len(f.queue[i].body))
	}
	f.queue = nil
}

// detach takes a recipient from its node, with everything in flight taken back.
func (m *Mailbox) detach(d *dest) {
	p := d.peer
	for f := range d.flows {
		m.drop(f)
		f.ready = false
	}
	if p == nil {
		return
	}
	live := p.ready[:0]
	for _, f := range p.ready {
		if f.dest != d {
			live = append(live, f)
		}
	}
	clear(p.ready[len(live):])
	p.ready = live
	delete(p.dests, d)
	d.peer = nil
}

// forgetDest removes a recipient that nothing waits for.
func (m *Mailbox) forgetDest(d *dest) {
	m.detach(d)
	for f := range d.flows {
		delete(m.out.flows, f.meta.id)
		delete(m.out.names, f.name())
	}
	delete(m.out.dests, d.to)
}
