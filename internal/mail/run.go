package mail

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
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

// load finds the flows with mail pending. The index on (flow, seq) makes it one seek for
// each, however long they are.
func (m *Mailbox) load(ctx context.Context) error {
	type row struct {
		meta        *flowMeta
		acked, last uint64
	}
	var rows []row
	var minExpiry, inflows int64
	err := m.db.View(ctx, func(tx *store.Tx) error {
		rows = rows[:0]
		err := tx.Each(`
			WITH RECURSIVE pending(flow) AS (
				SELECT min(flow) FROM mail_outbox
				UNION ALL
				SELECT (SELECT min(flow) FROM mail_outbox WHERE flow > pending.flow) FROM pending WHERE pending.flow IS NOT NULL
			)
			SELECT f.id, f.recipient, f.sender, f.topic, f.epoch, f.acked,
				(SELECT max(seq) FROM mail_outbox WHERE flow = f.id)
			FROM pending JOIN mail_flow f ON f.id = pending.flow ORDER BY f.epoch`, nil,
			func(scan func(...any) error) error {
				var meta flowMeta
				var to, from []byte
				var epoch, acked, last int64
				if err := scan(&meta.id, &to, &from, &meta.topic, &epoch, &acked, &last); err != nil {
					return err
				}
				copy(meta.to[:], to)
				copy(meta.from[:], from)
				meta.epoch = uint64(epoch)
				rows = append(rows, row{&meta, uint64(acked), uint64(last)})
				return nil
			})
		if err != nil {
			return err
		}
		_, err = tx.One(`SELECT coalesce(min(expires_ms), ?) FROM mail_outbox`, []any{int64(noExpiry)}, &minExpiry)
		if err == nil {
			_, err = tx.One(`SELECT count(*) FROM mail_inflow`, nil, &inflows)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}

	m.inward.flows.Store(inflows)
	m.mu.Lock()
	defer m.mu.Unlock()
	o := &m.out
	o.phase = running
	o.nextExpiry = min(o.nextExpiry, minExpiry)
	for _, r := range rows {
		f := m.flow(r.meta, r.acked)
		f.posted = r.last
	}
	// Posts committed while we read: some of them are in the rows, some are not.
	for _, e := range o.early {
		m.track(e.meta, e.seq, e.exp, e.watch)
	}
	o.early = nil
	for _, f := range o.flows {
		m.ready(f)
	}
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
