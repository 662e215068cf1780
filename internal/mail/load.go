package mail

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoalmesh/shoal/internal/store"
)

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

const (
	loadRows  = 512
	loadBytes = 1 << 20
)

// loadFlow reads what f is to send next from the outbox. What is not there any more, it
// replaces by skips.
func (m *Mailbox) loadFlow(ctx context.Context, p *peer, f *flow) error {
	m.mu.Lock()
	after, upto := f.sent, f.posted
	m.mu.Unlock()
	items, err := m.readOutbox(ctx, f.meta.id, after, upto)

	m.mu.Lock()
	defer m.mu.Unlock()
	f.loading = false
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	if f.dest.peer == p && f.sent == after && f.nsent == len(f.queue) {
		for _, it := range items {
			m.out.memory += int64(len(it.body))
		}
		f.queue = append(f.queue, items...)
	}
	m.ready(f)
	return nil
}

var errEnough = errors.New("enough rows")

// ended makes nothing of errEnough, which a func of Each returned to end it.
func ended(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (m *Mailbox) readOutbox(ctx context.Context, flow int64, after, upto uint64) ([]item, error) {
	var items []item
	var last uint64
	now := time.Now()
	skip := func(to uint64) {
		if n := len(items); n > 0 && items[n-1].skipFrom > 0 {
			items[n-1].seq = to
		} else {
			items = append(items, item{
				seq: to, skipFrom: last + 1, id: m.newID(now),
				created: now.UnixMilli(), expires: now.Add(m.cfg.TTL).UnixMilli(),
			})
		}
		last = to
	}
	enough := false
	err := m.db.View(ctx, func(tx *store.Tx) error {
		items, last, enough = items[:0], after, false
		rows, bytes := 0, 0
		err := tx.Each(`SELECT seq, expires_ms, created_ms, envelope, body FROM mail_outbox
			WHERE flow = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?`,
			[]any{flow, int64(after), int64(upto), loadRows},
			func(scan func(...any) error) error {
				var it item
				var seq int64
				var id []byte
				if err := scan(&seq, &it.expires, &it.created, &id, &it.body); err != nil {
					return err
				}
				it.seq = uint64(seq)
				copy(it.id[:], id)
				if it.seq > last+1 {
					skip(it.seq - 1)
				}
				if it.expires == noExpiry {
					skip(it.seq)
				} else {
					items = append(items, it)
					last = it.seq
				}
				rows, bytes = rows+1, bytes+len(it.body)
				if rows == loadRows || bytes >= loadBytes {
					enough = true
					return errEnough
				}
				return nil
			})
		return ended(err)
	})
	if err == nil && !enough && last < upto {
		skip(upto)
	}
	return items, err
}
