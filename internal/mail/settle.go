package mail

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

const (
	settleDelay = 100 * time.Millisecond // acked rows may wait this long to be deleted
	settleRows  = 2048                   // and so many of them; also the rows of one transaction
	settleTries = time.Second            // pause after a transaction that failed
	sweepRows   = 1024
	buryRows    = 64 // dead letters of one transaction
	maxDead     = 10_000
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

// buried is an envelope that was moved to the dead letters.
type buried struct {
	seq    uint64
	reason string
	bytes  int
	found  bool
}

// bury copies an envelope of the outbox to the dead letters and tells its service. The
// caller removes the row.
func (m *Mailbox) bury(tx *store.Tx, meta *flowMeta, seq uint64, reason string) (buried, error) {
	b := buried{seq: seq, reason: reason}
	var id, body []byte
	var created, expires int64
	found, err := tx.One(`SELECT envelope, created_ms, expires_ms, body FROM mail_outbox WHERE flow = ? AND seq = ?`,
		[]any{meta.id, int64(seq)}, &id, &created, &expires, &body)
	if err != nil || !found || expires == noExpiry {
		return b, err
	}
	if body == nil {
		body = []byte{} // NULL would be a skip
	}
	b.found, b.bytes = true, len(body)
	row, err := tx.Insert(`INSERT INTO mail_dead (envelope, sender, recipient, topic, seq, created_ms, expires_ms, died_ms, reason, body)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, meta.from[:], meta.to[:], meta.topic, int64(seq), created, expires, time.Now().UnixMilli(), reason, body)
	if err != nil {
		return b, fmt.Errorf("store dead letter: %w", err)
	}
	if _, err := tx.Exec(`DELETE FROM mail_dead WHERE id <= ?`, row-maxDead); err != nil {
		return b, fmt.Errorf("prune dead letters: %w", err)
	}
	tell := m.cfg.Undelivered[meta.topic]
	if tell == nil {
		return b, nil
	}
	env := shoal.Envelope{
		Network: m.cfg.Network, From: m.ids.agent(meta.from), To: m.ids.agent(meta.to), Topic: meta.topic,
		Epoch: meta.epoch, Seq: seq, Created: time.UnixMilli(created), Expires: time.UnixMilli(expires), Body: body,
	}
	copy(env.ID[:], id)
	if err := tell(tx, env, reason); err != nil {
		return b, fmt.Errorf("tell %s of an undelivered envelope: %w", meta.topic, err)
	}
	return b, nil
}

// sweep buries what expired. Its number goes to a skip: the last row of a flow stays as
// one, because the next number is counted from it; others go, and the sender skips what
// is missing.
func (m *Mailbox) sweep(ctx context.Context) error {
	m.mu.Lock()
	m.out.nextExpiry = math.MaxInt64
	m.mu.Unlock()
	again, err := m.sweepOnce(ctx)

	next := int64(math.MaxInt64)
	switch {
	case err != nil:
		next = time.Now().Add(settleTries).UnixMilli()
	case again > 0:
		next = time.Now().Add(again).UnixMilli()
	default:
		err = m.db.View(ctx, func(tx *store.Tx) error {
			_, err := tx.One(`SELECT coalesce(min(expires_ms), ?) FROM mail_outbox`, []any{int64(noExpiry)}, &next)
			return err
		})
	}
	m.mu.Lock()
	m.out.nextExpiry = min(m.out.nextExpiry, next)
	m.mu.Unlock()
	return err
}

type expiredRow struct {
	f   *flow
	seq uint64
}

// sweepOnce buries some expired envelopes; again > 0 asks for another sweep after it.
func (m *Mailbox) sweepOnce(ctx context.Context) (again time.Duration, err error) {
	type row struct {
		flow int64
		seq  uint64
	}
	var rows []row
	err = m.db.View(ctx, func(tx *store.Tx) error {
		rows = rows[:0]
		return tx.Each(`SELECT flow, seq FROM mail_outbox WHERE expires_ms <= ? ORDER BY flow, seq LIMIT ?`,
			[]any{time.Now().UnixMilli(), sweepRows},
			func(scan func(...any) error) error {
				var r row
				var seq int64
				err := scan(&r.flow, &seq)
				r.seq = uint64(seq)
				rows = append(rows, r)
				return err
			})
	})
	if err != nil {
		return 0, fmt.Errorf("find expired mail: %w", err)
	}

	var dead []expiredRow
	m.mu.Lock()
	for _, r := range rows {
		f := m.out.flows[r.flow]
		switch {
		case f == nil: // drained: its rows are about to be deleted
		case r.seq <= f.sent || r.seq <= f.settled:
			// In flight, or acked: an ack may be on its way. If none comes, the
			// stream ends and takes it back.
			again = 5 * time.Second
		default:
			m.expire(f) // not to be taken while we bury it
			dead = append(dead, expiredRow{f, r.seq})
		}
	}
	m.mu.Unlock()
	if len(rows) == sweepRows && len(dead) > 0 {
		again = time.Millisecond
	}
	for len(dead) > 0 {
		n := min(buryRows, len(dead))
		if err := m.buryExpired(ctx, dead[:n]); err != nil {
			return again, err // its flows wait until it works
		}
		dead = dead[n:]
	}
	m.revive()
	return again, nil
}

// expire stops a flow until the sweep after this has buried what expired of it.
func (m *Mailbox) expire(f *flow) {
	if !f.expiring {
		f.expiring = true
		m.out.expiring = append(m.out.expiring, f)
	}
}

// revive lets flows be sent from again; what they have in memory is out of date.
func (m *Mailbox) revive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.out.expiring {
		for i := f.nsent; i < len(f.queue); i++ {
			m.out.memory -= int64(len(f.queue[i].body))
		}
		f.queue = f.queue[:f.nsent:f.nsent]
		f.expiring = false
		if m.out.flows[f.meta.id] == f {
			m.ready(f)
		}
	}
	m.out.expiring = nil
}

func (m *Mailbox) buryExpired(ctx context.Context, rows []expiredRow) error {
	done := make([]buried, 0, len(rows))
	err := m.db.Update(ctx, func(tx *store.Tx) error {
		done = done[:0]
		for _, r := range rows {
			b, err := m.bury(tx, r.f.meta, r.seq, reasonExpired)
			if err == nil {
				err = skipRow(tx, r.f.meta.id, r.seq)
			}
			if err != nil {
				return err
			}
			if b.found {
				m.release(tx, r.f.meta.to, 1, int64(b.bytes))
			}
			done = append(done, b)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bury expired mail: %w", err)
	}
	var calls []heard
	m.mu.Lock()
	for i, r := range rows {
		if w := r.f.watch[r.seq]; w != nil {
			delete(r.f.watch, r.seq)
			calls = append(calls, heard{w, Expired, reasonExpired})
		}
		if done[i].found {
			m.count.expired.Add(1)
		}
	}
	m.mu.Unlock()
	for _, c := range calls {
		c.fn(c.state, c.reason)
	}
	return nil
}

// skipRow makes a row a skip, or removes it if a later one keeps the flow's count.
func skipRow(tx *store.Tx, flow int64, seq uint64) error {
	var last int64
	if _, err := tx.One(`SELECT coalesce(max(seq), 0) FROM mail_outbox WHERE flow = ?`, []any{flow}, &last); err != nil {
		return fmt.Errorf("find the flow's end: %w", err)
	}
	if uint64(last) == seq {
		_, err := tx.Exec(`UPDATE mail_outbox SET body = NULL, expires_ms = ? WHERE flow = ? AND seq = ?`,
			int64(noExpiry), flow, int64(seq))
		if err != nil {
			return fmt.Errorf("skip expired envelope: %w", err)
		}
	} else if _, err := tx.Exec(`DELETE FROM mail_outbox WHERE flow = ? AND seq = ?`, flow, int64(seq)); err != nil {
		return fmt.Errorf("delete expired envelope: %w", err)
	}
	_, err := tx.Exec(`DELETE FROM mail_outbox WHERE flow = ? AND seq < ? AND expires_ms = ?`, flow, last, int64(noExpiry))
	if err != nil {
		return fmt.Errorf("delete skips: %w", err)
	}
	return nil
}
