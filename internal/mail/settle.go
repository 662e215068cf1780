package mail

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/shoalmesh/shoal/internal/store"
)

const (
	settleDelay = 100 * time.Millisecond // acked rows may wait this long to be deleted
	settleRows  = 2048                   // and so many of them; also the rows of one transaction
	settleTries = time.Second            // pause after a transaction that failed
	pruneEvery  = time.Hour
)

// settleLater has n more acked rows of f deleted, at once if there are refusals to tell of.
func (m *Mailbox) settleLater(f *flow, n uint64) {
	o := &m.out
	if !f.dirty {
		f.dirty = true
		o.dirty = append(o.dirty, f)
	}
	o.unsettled += int(min(n, settleRows))
	if len(o.dirty) == 1 || o.unsettled >= settleRows || len(f.refusals) > 0 {
		poke(m.settleKick)
	}
}

// settle runs beside delivery: it deletes acked rows in batches, moves what was refused
// or expired to the dead letters, and tells those who posted it.
func (m *Mailbox) settle(ctx context.Context) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	var first time.Time   // when the oldest unsettled ack came
	var pauseTo time.Time // after an error
	pruned := time.Now()
	for {
		select {
		case <-m.settleKick:
		case <-wait.C:
		case <-ctx.Done():
			// What is acked need not be sent again after the restart: worth a moment.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_ = m.settleAcks(last) // if not, it is sent again and acked again
			return
		}
		now := time.Now()
		if now.Before(pauseTo) {
			wait.Reset(pauseTo.Sub(now))
			continue
		}
		dirty, due, sweep := m.toSettle(now)
		if dirty && first.IsZero() {
			first = now
		}
		var err error
		if dirty && (due || now.Sub(first) >= settleDelay) {
			first = time.Time{}
			err = m.settleAcks(ctx)
		}
		if sweep && err == nil {
			err = m.sweep(ctx)
		}
		if now.Sub(pruned) >= pruneEvery && err == nil {
			pruned = now
			err = m.pruneInflows(ctx, now)
		}
		if err != nil && ctx.Err() == nil {
			m.log.Error("settle mail", "err", err)
			pauseTo = now.Add(settleTries)
		}
		wait.Reset(m.settleWait(now))
	}
}

// pruneInflows forgets the flows of senders that were silent for so long that all they
// may have sent has expired. If such a one comes back, it is asked to skip what it has
// behind it, and goes on.
func (m *Mailbox) pruneInflows(ctx context.Context, now time.Time) error {
	before := now.Add(-m.cfg.MaxTTL - 2*m.cfg.ClockSkew).UnixMilli()
	var n int64
	err := m.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM mail_refused WHERE inflow IN (SELECT id FROM mail_inflow WHERE touched_ms < ?)`, before)
		if err == nil {
			n, err = tx.Exec(`DELETE FROM mail_inflow WHERE touched_ms < ?`, before)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("prune flows: %w", err)
	}
	m.inward.flows.Add(-n)
	return nil
}

// toSettle reports whether there are acked rows, whether they cannot wait, and whether
// something expired.
func (m *Mailbox) toSettle(now time.Time) (dirty, due, sweep bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := &m.out
	due = o.unsettled >= settleRows
	for _, f := range o.dirty {
		due = due || len(f.refusals) > 0
	}
	return len(o.dirty) > 0, due, o.nextExpiry <= now.UnixMilli()
}

// settleWait is how long until there is something to do without a kick.
func (m *Mailbox) settleWait(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait := time.Hour
	if next := m.out.nextExpiry; next != math.MaxInt64 {
		wait = min(wait, max(time.UnixMilli(next).Sub(now), 0))
	}
	if len(m.out.dirty) > 0 {
		wait = min(wait, settleDelay)
	}
	return wait
}

// settling is one flow's share of a transaction.
type settling struct {
	f        *flow
	from, to uint64
	refusals map[uint64]string
	rows     int
	bytes    int64
	unsure   bool
	buried   []buried
}

// settleAcks deletes the rows of everything acked. Flows with refusals have a
// transaction of their own, so that one UndeliveredFunc's error stops no other.
func (m *Mailbox) settleAcks(ctx context.Context) error {
	m.mu.Lock()
	dirty := m.out.dirty
	m.out.dirty, m.out.unsettled = nil, 0
	var plain []*settling
	var refused []*settling
	for _, f := range dirty {
		f.dirty = false
		s := &settling{f: f, from: f.settled + 1, to: f.acked, rows: f.freedRows, bytes: f.freedBytes, unsure: f.unsure}
		f.freedRows, f.freedBytes, f.unsure = 0, 0, false
		if s.to < s.from {
			continue
		}
		for seq, reason := range f.refusals {
			if seq <= s.to {
				if s.refusals == nil {
					s.refusals = make(map[uint64]string)
				}
				s.refusals[seq] = reason
			}
		}
		if s.refusals == nil {
			plain = append(plain, s)
		} else {
			refused = append(refused, s)
		}
	}
	m.mu.Unlock()

	err := m.settleFlows(ctx, plain)
	for _, s := range refused {
		if e := m.settleFlows(ctx, []*settling{s}); e != nil {
			err = e
		}
	}
	return err
}

// settleFlows settles the flows given in as many transactions as their rows need.
func (m *Mailbox) settleFlows(ctx context.Context, all []*settling) error {
	for len(all) > 0 {
		n, rows := 0, uint64(0)
		for n < len(all) && (n == 0 || rows < settleRows) {
			rows += all[n].to - all[n].from + 1
			n++
		}
		part := all[:n]
		all = all[n:]
		err := m.db.Update(ctx, func(tx *store.Tx) error {
			for _, s := range part {
				if err := m.settleOne(tx, s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			m.unsettle(part)
			m.unsettle(all)
			return err
		}
		m.settledAll(part)
	}
	return nil
}

func (m *Mailbox) settleOne(tx *store.Tx, s *settling) error {
	meta := s.f.meta
	s.buried = s.buried[:0]
	rows, bytes := s.rows, s.bytes
	if s.unsure {
		_, err := tx.One(`SELECT count(body), coalesce(sum(length(body)), 0) FROM mail_outbox WHERE flow = ? AND seq BETWEEN ? AND ?`,
			[]any{meta.id, int64(s.from), int64(s.to)}, &rows, &bytes)
		if err != nil {
			return fmt.Errorf("count acked mail: %w", err)
		}
	}
	for seq, reason := range s.refusals {
		b, err := m.bury(tx, meta, seq, reason)
		if err != nil {
			return err
		}
		s.buried = append(s.buried, b)
	}
	if _, err := tx.Exec(`DELETE FROM mail_outbox WHERE flow = ? AND seq BETWEEN ? AND ?`,
		meta.id, int64(s.from), int64(s.to)); err != nil {
		return fmt.Errorf("delete acked mail: %w", err)
	}
	if _, err := tx.Exec(`UPDATE mail_flow SET acked = max(acked, ?) WHERE id = ?`, int64(s.to), meta.id); err != nil {
		return fmt.Errorf("note acked mail: %w", err)
	}
	m.release(tx, meta.to, rows, bytes)
	return nil
}

// release takes envelopes off a quota in tx.
func (m *Mailbox) release(tx *store.Tx, to key, rows int, bytes int64) {
	m.poster.mu.Lock()
	m.poster.release(to, rows, bytes)
	m.poster.mu.Unlock()
	tx.OnRollback(func() {
		m.poster.mu.Lock()
		m.poster.release(to, -rows, -bytes)
		m.poster.mu.Unlock()
	})
}

// settledAll takes note of what a transaction settled, and calls the watches.
func (m *Mailbox) settledAll(part []*settling) {
	var calls []heard
	m.mu.Lock()
	for _, s := range part {
		s.f.settled = max(s.f.settled, s.to)
		for _, b := range s.buried {
			delete(s.f.refusals, b.seq)
			m.count.refused.Add(1)
			if w := s.f.watch[b.seq]; w != nil {
				delete(s.f.watch, b.seq)
				calls = append(calls, heard{w, Refused, b.reason})
			}
		}
	}
	m.mu.Unlock()
	for _, c := range calls {
		c.fn(c.state, c.reason)
	}
}

// unsettle puts flows back whose transaction failed.
func (m *Mailbox) unsettle(part []*settling) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range part {
		s.f.freedRows += s.rows
		s.f.freedBytes += s.bytes
		s.f.unsure = s.f.unsure || s.unsure
		if !s.f.dirty {
			s.f.dirty = true
			m.out.dirty = append(m.out.dirty, s.f)
		}
	}
}
