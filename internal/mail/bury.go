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
	sweepRows = 1024
	buryRows  = 64 // dead letters of one transaction
	maxDead   = 10_000
)

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
