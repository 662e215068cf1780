package mail

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

var (
	errIdle       = errors.New("no mail for a while")
	errAckTimeout = errors.New("no ack in time")
)

// work serves one node until it has no mail any more or cannot be reached. connected is
// to be called once it is known whether it can.
func (m *Mailbox) work(ctx context.Context, p *peer, connected func()) {
	defer connected()
	var err error
	if p == m.out.local {
		connected()
		err = m.serveLocal(ctx, p)
	} else {
		err = m.session(ctx, p, connected)
	}
	if ctx.Err() != nil || errors.Is(err, errIdle) {
		return
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.log.Debug("mail stream ended", "node", p.id, "err", err, "failures", p.failures)
	for d := range p.dests {
		for f := range d.flows {
			m.drop(f)
		}
	}
	p.failures++
	p.state = peerWaiting
	if p.again {
		p.again = false
		m.retryPeer(p)
		return
	}
	m.later(m.backoff(p.failures), func() { m.retryPeer(p) })
}

// endIfIdle ends p's worker if nothing is pending: then nothing is left of it in memory.
func (m *Mailbox) endIfIdle(p *peer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := range p.dests {
		if d.pending() {
			return false
		}
	}
	p.state = peerIdle
	if m.out.peers[p.id] == p {
		delete(m.out.peers, p.id)
	}
	for d := range p.dests {
		m.forgetDest(d)
	}
	return true
}

// session opens a stream to p and sends until something fails or there is no more.
func (m *Mailbox) session(ctx context.Context, p *peer, connected func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := m.dial(ctx, p.id)
	connected()
	if err != nil {
		return err
	}
	m.count.streams.Add(1)
	defer m.count.streams.Add(^uint64(0))
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(done)
		cancel(fmt.Errorf("read acks: %w", m.readAcks(conn, p)))
	}()
	err = m.sendAll(ctx, conn, p)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	stop()
	conn.Close()
	<-done
	return err
}

func (m *Mailbox) dial(ctx context.Context, node shoal.NodeID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	m.count.dials.Add(1)
	conn, err := m.carrier.Dial(ctx, node, Protocol)
	if err != nil {
		m.count.dialsFailed.Add(1)
		return nil, fmt.Errorf("dial %s: %w", node, err)
	}
	return conn, nil
}

// sendAll writes frames as long as there are any, waiting for more and for the window.
func (m *Mailbox) sendAll(ctx context.Context, conn net.Conn, p *peer) error {
	w := frameWriter{m: m}
	return m.pump(ctx, p, func(b *batch) error {
		frame, ok := w.encode(b)
		if !ok {
			m.hold(p, b)
			return nil
		}
		if err := conn.SetWriteDeadline(time.Now().Add(m.cfg.AckTimeout)); err != nil {
			return fmt.Errorf("write frame: %w", err)
		}
		if _, err := conn.Write(frame); err != nil {
			return fmt.Errorf("write frame: %w", err)
		}
		m.count.sentFrames.Add(1)
		m.count.sentEnvelopes.Add(uint64(len(b.picks)))
		return nil
	})
}

// hold puts a batch back whose sender's key is not here (any more): its mail waits for
// the key, or expires.
func (m *Mailbox) hold(p *peer, b *batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range b.picks {
		if f := m.out.flows[b.picks[i].meta.id]; f != nil && f.dest.peer == p && !f.paused {
			m.pause(f, "key_missing")
		}
	}
}

// pump takes what is ready for p and hands it to send, batch by batch, until p is idle.
func (m *Mailbox) pump(ctx context.Context, p *peer, send func(*batch) error) error {
	wait := time.NewTimer(m.cfg.IdleTimeout)
	defer wait.Stop()
	var b batch
	used := time.Now()
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		answered := m.take(p, &b)
		switch {
		case b.load != nil:
			if err := m.loadFlow(ctx, p, b.load); err != nil {
				return err
			}
			continue
		case len(b.picks) > 0:
			if err := send(&b); err != nil {
				return err
			}
			used = time.Now()
			continue
		}

		deadline := used.Add(m.cfg.IdleTimeout)
		if !answered.IsZero() {
			deadline = answered.Add(m.cfg.AckTimeout)
		}
		wait.Reset(time.Until(deadline))
		select {
		case <-p.wake:
		case <-ctx.Done():
		case now := <-wait.C:
			if !answered.IsZero() {
				return errAckTimeout
			}
			if m.endIfIdle(p) {
				return errIdle
			}
			used = now
		}
	}
}

// batch is what take found: envelopes of one sender for one frame, or a flow whose next
// envelopes must be read from the outbox, or nothing.
type batch struct {
	from  key
	picks []pick
	load  *flow
}

type pick struct {
	meta *flowMeta
	item item
}

// frameSlack is what a frame has besides its envelopes, at most.
const frameSlack = 1 << 10

// take fills b with what is to be sent next and marks it as sent. With nothing to send,
// it returns since when an ack is awaited, zero if none is.
func (m *Mailbox) take(p *peer, b *batch) (answered time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.picks, b.load = b.picks[:0], nil
	now := time.Now()
	size := frameSlack
	turn := 0
	for len(p.ready) > 0 && len(b.picks) < maxEnvelopes {
		f := p.ready[0]
		switch {
		case len(b.picks) > 0 && f.meta.from != b.from:
			return time.Time{}
		case f.sent >= f.posted || f.paused || f.expiring || f.loading:
			m.unready(p, f)
			continue
		case f.nsent == len(f.queue):
			if len(b.picks) == 0 {
				m.unready(p, f)
				f.loading, b.load = true, f
			}
			return time.Time{}
		case turn >= flowTurn && len(p.ready) > 1:
			p.ready = append(p.ready[1:], f)
			turn = 0
			continue
		}
		it := f.queue[f.nsent]
		if it.expires <= now.UnixMilli() {
			m.unready(p, f)
			m.expire(f)
			m.out.nextExpiry = 0
			poke(m.settleKick)
			continue
		}
		n := it.size()
		full := p.inflight >= m.cfg.Window || p.inflight > 0 && p.bytes+n > m.cfg.WindowBytes
		if full || size+n > maxFrame {
			break
		}
		if p.inflight == 0 {
			p.answered = now
		}
		b.from = f.meta.from
		b.picks = append(b.picks, pick{f.meta, it})
		size += n
		turn++
		f.nsent++
		f.sent = it.seq
		p.inflight++
		p.bytes += n
	}
	if len(b.picks) == 0 && p.inflight > 0 {
		return p.answered
	}
	return time.Time{}
}

// unready takes f, the first, off p's list.
func (m *Mailbox) unready(p *peer, f *flow) {
	f.ready = false
	p.ready[0] = nil
	p.ready = p.ready[1:]
}

// frameWriter encodes and signs frames, reusing its memory.
type frameWriter struct {
	m      *Mailbox
	buf    []byte
	heads  []byte
	leaves [][32]byte
}

// encode returns the frame of b with its length prefix, valid until the next call; false
// if the sender's key is not here.
func (w *frameWriter) encode(b *batch) ([]byte, bool) {
	k, ok := w.m.keys.Key(w.m.ids.agent(b.from))
	if !ok {
		return nil, false
	}
	w.buf, w.leaves = beginFrame(w.buf[:0]), w.leaves[:0]
	for i := range b.picks {
		h := w.m.header(b.picks[i].meta, &b.picks[i].item)
		w.heads = appendHeader(w.heads[:0], &h)
		w.leaves = append(w.leaves, identity.LeafHash(w.heads))
		w.buf = appendEnvelope(w.buf, w.heads, b.picks[i].item.body)
	}
	root := identity.TreeRoot(w.leaves)
	w.m.count.signed.Add(1)
	frame := endFrame(w.buf, k.Sign(identity.DomainEnvelope, w.m.cfg.Network, root[:]))
	w.buf = frame // what the next call may overwrite
	return frame, true
}

func (m *Mailbox) header(meta *flowMeta, it *item) header {
	return header{
		version: envelopeVersion, id: it.id, network: m.cfg.Network, from: meta.from, to: meta.to,
		topic: meta.topic, epoch: meta.epoch, seq: it.seq, skipFrom: it.skipFrom,
		created: it.created, expires: it.expires, seal: sealNone, bodyHash: sha256.Sum256(it.body),
	}
}

// readAcks reads acks from p until the stream ends.
func (m *Mailbox) readAcks(conn net.Conn, p *peer) error {
	r := bufio.NewReaderSize(conn, 16<<10)
	for {
		raw, err := readPrefixed(r, maxAck, 0)
		if err != nil {
			return err
		}
		acks, err := parseAck(raw)
		if err != nil {
			return err
		}
		m.acked(p, acks)
	}
}
