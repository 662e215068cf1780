package mail

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// Letter is a received envelope of topic [TopicLetter] that was not acknowledged yet.
type Letter struct {
	Cursor   uint64 // counts up in the order of receipt, over all agents
	ID       [16]byte
	From, To shoal.AgentID
	Body     []byte
	Created  time.Time
	Received time.Time
}

// DeadLetter is an envelope posted here that was refused or expired.
type DeadLetter struct {
	ID       [16]byte
	From, To shoal.AgentID
	Topic    string
	Seq      uint64
	Reason   string
	Body     []byte
	Created  time.Time
	Expires  time.Time
	Dead     time.Time // when it was given up
}

// ErrBadCursor says that a cursor was not one that an earlier page returned.
var ErrBadCursor = shoal.NewError(shoal.Invalid, "bad_cursor", "the cursor is malformed", "start from an empty one")

// maxPage bounds a page of letters.
const maxPage = 1000

// inbox is what the letter handler remembers of the tables between transactions. Only
// the writer uses it.
type inbox struct {
	mu    sync.Mutex
	boxes map[key]*box
	last  uint64 // the highest cursor given away, 0 before the first letter
}

// box is one agent's row of mail_box and how many letters wait in it.
type box struct {
	id int64
	quota
}

func (b *inbox) init() { b.boxes = make(map[key]*box) }

// add counts letters in or out; an agent that is not remembered is counted when it is.
func (b *inbox) add(k key, rows int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.boxes[k]; q != nil {
		q.rows, q.bytes = q.rows+rows, q.bytes+bytes
	}
}

func (b *inbox) forget(k key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.boxes, k)
}

// receiveLetter is the handler of [TopicLetter].
func (m *Mailbox) receiveLetter(tx *store.Tx, env shoal.Envelope) error {
	to, _ := m.ids.key(env.To)
	from, _ := m.ids.key(env.From)
	body := env.Body
	if body == nil {
		body = []byte{}
	}
	tx.OnRollback(func() { m.inbox.forget(to) })
	box, cursor, err := m.place(tx, to, len(body))
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO mail_letter (id, box, sender, envelope, created_ms, received_ms, body) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		int64(cursor), box, from[:], env.ID[:], env.Created.UnixMilli(), time.Now().UnixMilli(), body)
	if err != nil {
		return fmt.Errorf("store letter: %w", err)
	}
	m.inbox.add(to, 1, int64(len(body)))
	return nil
}

// place returns where the next letter of an agent goes, or an Exhausted error when the
// agent should read its mail first.
func (m *Mailbox) place(tx *store.Tx, to key, size int) (boxID int64, cursor uint64, err error) {
	b := &m.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == 0 {
		var last int64
		_, err := tx.One(`SELECT max((SELECT coalesce(max(id), 0) FROM mail_letter), (SELECT coalesce(max(acked), 0) FROM mail_box))`, nil, &last)
		if err != nil {
			return 0, 0, fmt.Errorf("read the last cursor: %w", err)
		}
		b.last = uint64(last)
	}
	q := b.boxes[to]
	if q == nil {
		if q, err = openBox(tx, to); err != nil {
			return 0, 0, fmt.Errorf("open letter box: %w", err)
		}
		b.boxes[to] = q
	}
	if q.rows >= m.cfg.MaxInbox || q.bytes+int64(size) > m.cfg.MaxInboxBytes {
		return 0, 0, shoal.NewError(shoal.Exhausted, reasonInboxFull, "the inbox is full", "acknowledge letters")
	}
	b.last++ // not given back on a roll back: cursors may have holes
	return q.id, b.last, nil
}

func openBox(tx *store.Tx, to key) (*box, error) {
	q := &box{}
	found, err := tx.One(`SELECT id FROM mail_box WHERE recipient = ?`, []any{to[:]}, &q.id)
	if err != nil {
		return nil, err
	}
	if !found {
		q.id, err = tx.Insert(`INSERT INTO mail_box (recipient) VALUES (?)`, to[:])
		return q, err
	}
	_, err = tx.One(`SELECT count(*), coalesce(sum(length(body)), 0) FROM mail_letter WHERE box = ?`,
		[]any{q.id}, &q.rows, &q.bytes)
	return q, err
}

// Inbox returns the letters of an agent with a cursor above after, oldest first, at most
// limit (0 means 100, at most 1,000) and about 4 MiB.
func (m *Mailbox) Inbox(ctx context.Context, agent shoal.AgentID, after uint64, limit int) ([]Letter, error) {
	to, ok := m.ids.key(agent)
	if !ok {
		return nil, ErrNotHosted.With("%.80q", string(agent))
	}
	limit, after = pageSize(limit), min(after, noExpiry)
	var letters []Letter
	err := m.db.View(ctx, func(tx *store.Tx) error {
		letters = letters[:0]
		size := 0
		err := tx.Each(`SELECT id, sender, envelope, created_ms, received_ms, body FROM mail_letter
			WHERE box = (SELECT id FROM mail_box WHERE recipient = ?) AND id > ? ORDER BY id LIMIT ?`, []any{to[:], int64(after), limit},
			func(scan func(...any) error) error {
				l := Letter{To: agent}
				var from, id []byte
				var cursor, created, received int64
				if err := scan(&cursor, &from, &id, &created, &received, &l.Body); err != nil {
					return err
				}
				copy(l.ID[:], id)
				l.Cursor, l.From = uint64(cursor), m.agentOf(from)
				l.Created, l.Received = time.UnixMilli(created), time.UnixMilli(received)
				letters = append(letters, l)
				if size += len(l.Body); size >= pageBytes {
					return errEnough
				}
				return nil
			})
		return ended(err)
	})
	if err != nil {
		return nil, fmt.Errorf("read inbox: %w", err)
	}
	return letters, nil
}

// pageBytes bounds a page by its bodies, beside its count.
const pageBytes = 4 << 20

// Ack removes letters of an agent from its inbox. Cursors that are not there any more,
// or are another agent's, are passed over.
func (m *Mailbox) Ack(ctx context.Context, agent shoal.AgentID, cursors []uint64) error {
	to, ok := m.ids.key(agent)
	if !ok {
		return ErrNotHosted.With("%.80q", string(agent))
	}
	err := m.db.Update(ctx, func(tx *store.Tx) error {
		var box int64
		found, err := tx.One(`SELECT id FROM mail_box WHERE recipient = ?`, []any{to[:]}, &box)
		if err != nil || !found {
			return err
		}
		last := uint64(0)
		for _, c := range cursors {
			var size int64
			found, err := tx.One(`DELETE FROM mail_letter WHERE id = ? AND box = ? RETURNING length(body)`,
				[]any{int64(min(c, noExpiry)), box}, &size)
			if err != nil {
				return err
			}
			if found {
				last = max(last, c)
				m.inbox.add(to, -1, -size)
			}
		}
		tx.OnRollback(func() { m.inbox.forget(to) })
		_, err = tx.Exec(`UPDATE mail_box SET acked = max(acked, ?) WHERE id = ?`, int64(last), box)
		return err
	})
	if err != nil {
		return fmt.Errorf("acknowledge letters: %w", err)
	}
	return nil
}

// DeadLetters returns what was refused or expired, newest first, at most limit (0 means
// 100, at most 1,000). after is the next of the page before, or empty; next is empty after
// the last page. It returns [ErrBadCursor]. The newest 10,000 are kept.
func (m *Mailbox) DeadLetters(ctx context.Context, after string, limit int) (dead []DeadLetter, next string, err error) {
	before := int64(noExpiry)
	if after != "" {
		n, err := strconv.ParseInt(after, 10, 64)
		if err != nil || n <= 0 {
			return nil, "", ErrBadCursor.With("%.40q", after)
		}
		before = n
	}
	limit = pageSize(limit)
	var last int64
	err = m.db.View(ctx, func(tx *store.Tx) error {
		dead, next = dead[:0], ""
		size := 0
		err := tx.Each(`SELECT id, envelope, sender, recipient, topic, seq, created_ms, expires_ms, died_ms, reason, body
			FROM mail_dead WHERE id < ? ORDER BY id DESC LIMIT ?`, []any{before, limit},
			func(scan func(...any) error) error {
				var d DeadLetter
				var seq, created, expires, died int64
				var id, from, to []byte
				if err := scan(&last, &id, &from, &to, &d.Topic, &seq, &created, &expires, &died, &d.Reason, &d.Body); err != nil {
					return err
				}
				copy(d.ID[:], id)
				d.From, d.To, d.Seq = m.agentOf(from), m.agentOf(to), uint64(seq)
				d.Created, d.Expires, d.Dead = time.UnixMilli(created), time.UnixMilli(expires), time.UnixMilli(died)
				dead = append(dead, d)
				if size += len(d.Body); size >= pageBytes || len(dead) == limit {
					next = strconv.FormatInt(last, 10)
					return errEnough
				}
				return nil
			})
		return ended(err)
	})
	if err != nil {
		return nil, "", fmt.Errorf("read dead letters: %w", err)
	}
	return dead, next, nil
}

// agentOf returns the agent of a key as the tables hold it.
func (m *Mailbox) agentOf(raw []byte) shoal.AgentID {
	var k key
	copy(k[:], raw)
	return m.ids.agent(k)
}

func pageSize(limit int) int {
	if limit <= 0 {
		return 100
	}
	return min(limit, maxPage)
}
