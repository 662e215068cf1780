package mail

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// Errors of [Mailbox.Post].
var (
	ErrNotHosted = shoal.NewError(shoal.NotFound, "not_hosted", "the sender is not an agent of this node",
		"list this node's agents with `shoal agent list`")
	ErrBadRecipient = shoal.NewError(shoal.Invalid, "bad_did", "the recipient's id is malformed",
		"an agent id looks like did:key:z6Mk…")
	ErrBadTopic = shoal.NewError(shoal.Invalid, "bad_topic", "the topic is malformed",
		"use 1 to 64 of a-z, 0-9, '.', '_', '-'")
	ErrBodyTooLarge = shoal.NewError(shoal.Invalid, "body_too_large", "the body is above 256 KiB",
		"send a reference, or split it")
	ErrBadTTL     = shoal.NewError(shoal.Invalid, "bad_ttl", "the time to live is negative or too long", "")
	ErrOutboxFull = shoal.NewError(shoal.Exhausted, "outbox_full", "too much mail waits for this recipient",
		"wait until it is back, or until its mail expires")
)

// flowMeta names an outgoing flow; it never changes. One row of mail_flow.
type flowMeta struct {
	id       int64
	from, to key
	topic    string
	epoch    uint64
}

// triple is a flow without its epoch.
type triple struct {
	from, to key
	topic    string
}

// poster is what Post remembers of the tables between transactions: a cache, of which
// any entry may be dropped when no transaction is under way. Only the writer uses it.
type poster struct {
	mu     sync.Mutex
	next   map[triple]*nextSeq
	quotas map[key]*quota
}

type nextSeq struct {
	meta *flowMeta
	seq  uint64 // the last one given away
}

// quota is what waits in the outbox for one recipient.
type quota struct {
	rows  int
	bytes int64
}

const posterCache = 64 << 10 // entries; more are forgotten and read again

func (p *poster) init() {
	p.next, p.quotas = make(map[triple]*nextSeq), make(map[key]*quota)
}

// Post stores an envelope from an agent of this node to any agent, in the caller's
// transaction, and returns its id; delivery begins after the commit. ttl 0 means
// [Config.TTL]. body is at most [shoal.MaxBody] bytes and must not be changed any more.
//
// It returns [ErrNotHosted], [ErrBadRecipient], [ErrBadTopic], [ErrBodyTooLarge],
// [ErrBadTTL] or [ErrOutboxFull]. It does not ask whether the recipient exists: the
// envelope waits for it until it expires.
func (m *Mailbox) Post(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration) ([16]byte, error) {
	return m.post(tx, from, to, topic, body, ttl, nil, false)
}

// PostLazy is [Mailbox.Post] for what nobody waits for: it goes with the next envelope of
// its flow, or alone after [Config.Lazy]. It saves both nodes a commit and a frame each.
func (m *Mailbox) PostLazy(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration) ([16]byte, error) {
	return m.post(tx, from, to, topic, body, ttl, nil, true)
}

// PostWatch is [Mailbox.Post] with a func that hears what becomes of the envelope, from
// the commit on. It hears nothing if the transaction is rolled back.
func (m *Mailbox) PostWatch(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration, watch WatchFunc) (id [16]byte, err error) {
	return m.post(tx, from, to, topic, body, ttl, watch, false)
}

func (m *Mailbox) post(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration, watch WatchFunc, lazy bool) (id [16]byte, err error) {
	fromKey, toKey, err := m.checkPost(from, to, topic, body, &ttl)
	if err != nil {
		return id, err
	}
	now := time.Now()
	it := item{
		id:      m.newID(now),
		created: now.UnixMilli(),
		expires: now.Add(ttl).UnixMilli(),
		body:    body,
	}

	m.poster.mu.Lock()
	defer m.poster.mu.Unlock()
	q, err := m.reserve(tx, toKey, len(body))
	if err != nil {
		return id, err
	}
	name := triple{fromKey, toKey, topic}
	next, err := m.nextSeq(tx, name)
	if err != nil {
		return id, err
	}
	it.seq = next.seq + 1
	if body == nil {
		body = []byte{} // NULL would be a skip
	}
	_, err = tx.Exec(`INSERT INTO mail_outbox (flow, seq, expires_ms, created_ms, envelope, body) VALUES (?, ?, ?, ?, ?, ?)`,
		next.meta.id, int64(it.seq), it.expires, it.created, it.id[:], body)
	if err != nil {
		return id, fmt.Errorf("post to %s: %w", to, err)
	}
	next.seq++
	q.rows, q.bytes = q.rows+1, q.bytes+int64(len(body))
	tx.OnRollback(func() { m.forget(name, toKey, len(body)) })
	meta := next.meta
	tx.AfterCommit(func() {
		m.count.posted.Add(1)
		if watch != nil {
			watch(Stored, "")
		}
		m.enqueue(meta, it, watch, lazy)
	})
	return it.id, nil
}

func (m *Mailbox) checkPost(from, to shoal.AgentID, topic string, body []byte, ttl *time.Duration) (fromKey, toKey key, err error) {
	if *ttl == 0 {
		*ttl = m.cfg.TTL
	}
	fromKey, ok := m.ids.key(from)
	if ok {
		_, ok = m.keys.Key(from)
	}
	if !ok {
		return fromKey, toKey, ErrNotHosted.With("%.80q", string(from))
	}
	if toKey, ok = m.ids.key(to); !ok {
		return fromKey, toKey, ErrBadRecipient.With("%.80q", string(to))
	}
	switch {
	case !goodTopic(topic):
		err = ErrBadTopic.With("%.80q", topic)
	case len(body) > shoal.MaxBody:
		err = ErrBodyTooLarge.With("%d bytes", len(body))
	case *ttl < time.Millisecond || *ttl > m.cfg.MaxTTL:
		err = ErrBadTTL.With("%v, at most %v", *ttl, m.cfg.MaxTTL)
	}
	return fromKey, toKey, err
}

// reserve returns what waits for a recipient, unless one more is too much.
func (m *Mailbox) reserve(tx *store.Tx, to key, size int) (*quota, error) {
	p := &m.poster
	q := p.quotas[to]
	if q == nil {
		if len(p.quotas) >= posterCache {
			clear(p.quotas)
		}
		q = &quota{}
		// length() of a blob reads the row's header, not its overflow pages.
		_, err := tx.One(`SELECT count(o.body), coalesce(sum(length(o.body)), 0)
			FROM mail_flow f JOIN mail_outbox o ON o.flow = f.id WHERE f.recipient = ?`,
			[]any{to[:]}, &q.rows, &q.bytes)
		if err != nil {
			return nil, fmt.Errorf("count mail waiting: %w", err)
		}
		p.quotas[to] = q
	}
	if q.rows >= m.cfg.MaxQueued || q.bytes+int64(size) > m.cfg.MaxQueuedBytes {
		return nil, ErrOutboxFull.With("%d envelopes, %d bytes", q.rows, q.bytes)
	}
	return q, nil
}

// nextSeq returns the counter of a flow in this database's epoch, making its row if
// there is none.
func (m *Mailbox) nextSeq(tx *store.Tx, name triple) (*nextSeq, error) {
	p := &m.poster
	if n := p.next[name]; n != nil {
		return n, nil
	}
	meta := &flowMeta{from: name.from, to: name.to, topic: name.topic, epoch: m.db.Epoch()}
	var acked, last int64
	found, err := tx.One(`SELECT id, acked FROM mail_flow WHERE recipient = ? AND sender = ? AND topic = ? AND epoch = ?`,
		[]any{meta.to[:], meta.from[:], meta.topic, int64(meta.epoch)}, &meta.id, &acked)
	if err == nil && !found {
		meta.id, err = tx.Insert(`INSERT INTO mail_flow (recipient, sender, topic, epoch) VALUES (?, ?, ?, ?)`,
			meta.to[:], meta.from[:], meta.topic, int64(meta.epoch))
	} else if err == nil {
		_, err = tx.One(`SELECT coalesce(max(seq), 0) FROM mail_outbox WHERE flow = ?`, []any{meta.id}, &last)
	}
	if err != nil {
		return nil, fmt.Errorf("open flow: %w", err)
	}
	if len(p.next) >= posterCache {
		clear(p.next)
	}
	n := &nextSeq{meta: meta, seq: uint64(max(acked, last))}
	p.next[name] = n
	return n, nil
}

// forget undoes a Post whose transaction was rolled back. The flow's counter is read
// anew: its row may be gone too.
func (m *Mailbox) forget(name triple, to key, size int) {
	m.poster.mu.Lock()
	defer m.poster.mu.Unlock()
	delete(m.poster.next, name)
	m.poster.release(to, 1, int64(size))
}

// release takes envelopes off a recipient's quota. Negative numbers put them back.
func (p *poster) release(to key, rows int, bytes int64) {
	if q := p.quotas[to]; q != nil {
		q.rows, q.bytes = q.rows-rows, q.bytes-bytes
	}
}

// noExpiry is expires_ms of a skip row.
const noExpiry = math.MaxInt64
