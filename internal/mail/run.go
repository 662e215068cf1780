package mail

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
)

// Run delivers what is in the outbox and what is posted from now on, until ctx ends; it
// returns after all that it started has ended. Call it once.
func (m *Mailbox) Run(ctx context.Context) error {
	if err := m.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { m.settle(ctx) })
	m.dispatch(ctx, &wg)
	m.mu.Lock()
	m.out.phase = stopped
	m.mu.Unlock()
	wg.Wait()
	return nil
}

// dispatch starts what is due until ctx ends.
func (m *Mailbox) dispatch(ctx context.Context, wg *sync.WaitGroup) {
	sleep := time.NewTimer(time.Hour)
	defer sleep.Stop()
	for {
		m.mu.Lock()
		o := &m.out
		now := time.Now()
		for len(o.timers) > 0 && !o.timers[0].at.After(now) {
			heap.Pop(&o.timers).(timer).do()
		}
		m.startGate(ctx, wg, &o.start)
		m.startGate(ctx, wg, &o.restart)
		m.routeGate(ctx, wg, &o.route)
		m.routeGate(ctx, wg, &o.reroute)
		wait := time.Hour
		if len(o.timers) > 0 {
			wait = time.Until(o.timers[0].at)
		}
		m.mu.Unlock()

		sleep.Reset(wait)
		select {
		case <-m.wake:
		case <-sleep.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *Mailbox) startGate(ctx context.Context, wg *sync.WaitGroup, g *gate[*peer]) {
	for p, ok := g.next(); ok; p, ok = g.next() {
		leave := m.leaveOnce(&g.busy)
		wg.Go(func() { m.work(ctx, p, leave) })
	}
}

func (m *Mailbox) routeGate(ctx context.Context, wg *sync.WaitGroup, g *gate[*dest]) {
	for d, ok := g.next(); ok; d, ok = g.next() {
		leave := m.leaveOnce(&g.busy)
		wg.Go(func() {
			defer leave()
			m.findHost(ctx, d)
		})
	}
}

// leaveOnce returns a func that makes room in a gate. It calls itself after gatePatience:
// hundreds of dials that hang must not keep a live node waiting for their timeouts. So a
// gate limits how many are begun in that time, and DialTimeout how many there are.
func (m *Mailbox) leaveOnce(busy *int) func() {
	var once sync.Once
	leave := func() {
		once.Do(func() {
			m.mu.Lock()
			*busy--
			m.mu.Unlock()
			poke(m.wake)
		})
	}
	slow := time.AfterFunc(gatePatience, leave)
	return func() {
		slow.Stop()
		leave()
	}
}

// findHost asks on which node d lives and attaches it there.
func (m *Mailbox) findHost(ctx context.Context, d *dest) {
	m.mu.Lock()
	moved := d.moved
	d.moved = false
	m.mu.Unlock()

	id := m.ids.agent(d.to)
	_, here := m.keys.Key(id)
	var node shoal.NodeID
	var err error
	if !here {
		node, err = m.askRouter(ctx, id, moved)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	d.busy = false
	if ctx.Err() != nil {
		return
	}
	switch {
	case here:
		m.attach(d, m.out.local)
	case err == nil:
		p := m.out.peers[node]
		if p == nil {
			p = newPeer(node)
			m.out.peers[node] = p
		}
		m.attach(d, p)
	default:
		d.failures++
		m.log.Debug("no route to agent", "agent", id, "err", err, "failures", d.failures)
		m.routeLater(d)
	}
}

func (m *Mailbox) askRouter(ctx context.Context, id shoal.AgentID, moved bool) (shoal.NodeID, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	if r, ok := m.router.(interface {
		Refresh(context.Context, shoal.AgentID) (int, error)
	}); ok && moved {
		if _, err := r.Refresh(ctx, id); err != nil {
			m.log.Debug("refresh card", "agent", id, "err", err)
		}
	}
	node, err := m.router.Host(ctx, id)
	if err == nil && node == "" {
		err = shoal.NewError(shoal.NotFound, "unknown_agent", "no node hosts the agent", "")
	}
	return node, err
}

// routeLater tries to find d's node again after a pause, which PeerUp may end.
func (m *Mailbox) routeLater(d *dest) {
	d.busy, d.waiting = true, true
	m.later(m.backoff(d.failures), func() { m.routeNow(d) })
}

func (m *Mailbox) routeNow(d *dest) {
	if !d.waiting {
		return
	}
	d.waiting, d.busy = false, false
	switch {
	case d.peer != nil || m.out.dests[d.to] != d:
	case d.pending():
		m.routeSoon(d)
	default:
		m.forgetDest(d)
	}
}

func (m *Mailbox) attach(d *dest, p *peer) {
	d.peer = p
	p.dests[d] = struct{}{}
	p.failures = max(p.failures, d.failures)
	for f := range d.flows {
		f.ready = false
		m.ready(f)
	}
	m.startSoon(p) // even with nothing ready: the worker tidies up
}

// PeerUp tells that a node can be reached, such as after it connected to us: what waits
// for it is tried at once, and so is what waits for a route. It does not block.
func (m *Mailbox) PeerUp(node shoal.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.out.peers[node]; p != nil {
		p.again = p.state == peerWorking && p.failures > 0
		p.failures = min(p.failures, 1)
		m.retryPeer(p)
	}
	for _, d := range m.out.dests {
		if d.waiting {
			d.failures = 1
			m.routeNow(d)
		}
	}
}

// retryPeer ends a peer's pause: each recipient is looked up again, as it may have moved.
func (m *Mailbox) retryPeer(p *peer) {
	if p.state != peerWaiting {
		return
	}
	p.state = peerIdle
	if m.out.peers[p.id] == p {
		delete(m.out.peers, p.id)
	}
	for d := range p.dests {
		m.detach(d)
		d.failures = p.failures
		if d.pending() {
			m.routeSoon(d)
		} else {
			m.forgetDest(d)
		}
	}
}
