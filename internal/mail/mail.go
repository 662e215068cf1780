// Package mail delivers envelopes from agent to agent at least once, across restarts and
// long absences, and hands each to its receiver once in effect.
//
// It promises:
//   - an envelope is on disk here when the transaction that posted it commits, and on
//     disk at the receiver, with whatever its handler wrote, before it is acknowledged;
//   - order within a flow, the triple (from, to, topic), not across flows;
//   - each envelope ends as applied, refused or expired, and its sender learns which
//     ([UndeliveredFunc], [WatchFunc], dead letters);
//   - a dead, slow or hostile peer delays nobody else's mail, and costs bounded memory.
//
// It does not read bodies and does not know what a task is. Services post through
// [Mailbox.Post] in their own transaction; a [Carrier] reaches other nodes, a [Router]
// says on which node an agent lives. The wire format is spec/wire.md §3.
//
// How it works. Post writes a row to the outbox and, after the commit, hands the
// envelope to a queue in memory. One worker for each node that has mail pending keeps
// one stream to it, on which frames of envelopes go out and cumulative acks come back.
// The tables are the truth and the queues a cache: what does not fit in memory, and
// everything after a restart, is read back from the outbox in order.
package mail

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
)

// Protocol is the protocol id of mail streams.
const Protocol = "/shoal/mail/1.0.0"

// TopicLetter is the topic of letters, which package mail keeps in the inbox itself.
const TopicLetter = "shoal.letter"

// Handler applies a received envelope in the transaction that marks it as received.
// nil means applied. An [*shoal.Error] of kind Invalid, Denied, NotFound, Conflict or
// Unsupported refuses it for good with the error's reason; any other error means "try
// later" and holds up the rest of its flow. Whatever a failing handler wrote is rolled
// back; it is cheaper, for everybody, to check before writing. It may run several times
// for one envelope, of which one commits, so it acts on nothing but tx; it may post.
// env.Body is the handler's to keep.
type Handler func(tx *store.Tx, env shoal.Envelope) error

// UndeliveredFunc learns that an envelope posted here will never be applied: its
// recipient refused it, or it expired. It runs in the transaction that moves it to the
// dead letters; an error is logged and the move tried again.
type UndeliveredFunc func(tx *store.Tx, env shoal.Envelope, reason string) error

// State is what a [WatchFunc] learns about a posted envelope.
type State string

// The states of a posted envelope. All but Stored are final.
const (
	Stored    State = "stored"    // on disk here
	Delivered State = "delivered" // on disk, and applied, at the receiver
	Refused   State = "refused"   // refused for good, reason says why
	Expired   State = "expired"   // not delivered within its time to live
)

// WatchFunc hears what becomes of an envelope: Stored, then one final state. It is
// called from mail's own goroutines and must not block. A restart ends the watch.
type WatchFunc func(state State, reason string)

// Carrier reaches other nodes. The connection's peer is the node asked for.
type Carrier interface {
	Dial(ctx context.Context, node shoal.NodeID, proto string) (net.Conn, error)
}

// Router knows on which node an agent is hosted. If it also has the method
// Refresh(context.Context, shoal.AgentID) (int, error), that is called first when a node
// answered that it does not host the agent (any more).
type Router interface {
	Host(ctx context.Context, id shoal.AgentID) (shoal.NodeID, error)
}

// Keys holds the keys of the agents hosted here.
type Keys interface {
	Key(id shoal.AgentID) (identity.Key, bool)
}

// Config tunes a [Mailbox]. The zero value of each field means its default.
type Config struct {
	// Network is the mesh this node belongs to; envelopes of another are refused.
	Network string

	// Handlers by topic. TopicLetter has one of its own.
	Handlers map[string]Handler
	// Undelivered by topic; a topic without one has only the dead letter.
	Undelivered map[string]UndeliveredFunc

	// Admit decides about an envelope of an agent not hosted here before anything is
	// stored for it; a [*shoal.Error] refuses it with its reason. nil admits all.
	Admit func(from, to shoal.AgentID, topic string) error

	// TTL of an envelope posted with ttl 0. Default 7 days.
	TTL time.Duration
	// MaxTTL bounds what Post takes and what is believed of others. Default 30 days.
	MaxTTL time.Duration
	// ClockSkew is how far another node's clock may be off. Default 2 min.
	ClockSkew time.Duration

	// MaxQueued and MaxQueuedBytes bound what waits for one recipient; Post returns
	// an Exhausted error with reason outbox_full beyond. Default 10,000 and 100 MiB.
	MaxQueued      int
	MaxQueuedBytes int64
	// MaxInbox and MaxInboxBytes bound the letters of one agent that were not
	// acknowledged; senders keep theirs and try later. Default 100,000 and 256 MiB.
	MaxInbox      int
	MaxInboxBytes int64
	// MaxFlows bounds the flows that others may open to us, of which a row is kept for
	// MaxTTL after the last envelope. Default 200,000.
	MaxFlows int

	// Window and WindowBytes bound what is sent to one node and not acknowledged. More
	// hides a longer round trip and costs memory on both sides. Default 1,024 and 4 MiB.
	Window      int
	WindowBytes int
	// Memory bounds the bodies that wait in memory, in bytes; the rest is read from the
	// outbox when its turn comes. It also bounds what is received and not yet applied.
	// Default 64 MiB.
	Memory int64

	// RetryMin and RetryMax bound the exponential back-off, with full jitter, towards a
	// node that fails. Default 1 s and 1 h.
	RetryMin, RetryMax time.Duration
	// DialTimeout bounds finding and dialling a node. Default 10 s.
	DialTimeout time.Duration
	// AckTimeout is how long sent mail waits for any ack before the stream is given up.
	// Shorter recovers faster but repeats mail on slow disks. Default 30 s.
	AckTimeout time.Duration
	// Lazy is how long an envelope of [Mailbox.PostLazy] waits for company. Longer saves
	// more commits under light load. Default 20 ms.
	Lazy time.Duration
	// IdleTimeout ends a worker and its stream without mail. Default 2 min.
	IdleTimeout time.Duration

	// Rand is the source of jitter and of the random part of ids. Default
	// math/rand/v2's, which is a ChaCha8 seeded by the system.
	Rand func() uint64
}

func (c Config) withDefaults() Config {
	setDefault(&c.TTL, 7*24*time.Hour)
	setDefault(&c.MaxTTL, 30*24*time.Hour)
	setDefault(&c.ClockSkew, 2*time.Minute)
	setDefault(&c.MaxQueued, 10_000)
	setDefault(&c.MaxQueuedBytes, 100<<20)
	setDefault(&c.MaxInbox, 100_000)
	setDefault(&c.MaxInboxBytes, 256<<20)
	setDefault(&c.MaxFlows, 200_000)
	setDefault(&c.Window, 1024)
	setDefault(&c.WindowBytes, 4<<20)
	setDefault(&c.Memory, 64<<20)
	setDefault(&c.RetryMin, time.Second)
	setDefault(&c.RetryMax, time.Hour)
	setDefault(&c.DialTimeout, 10*time.Second)
	setDefault(&c.AckTimeout, 30*time.Second)
	setDefault(&c.Lazy, 20*time.Millisecond)
	setDefault(&c.IdleTimeout, 2*time.Minute)
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) validate() error {
	switch {
	case c.Network == "" || len(c.Network) > maxNetwork:
		return shoal.NewError(shoal.Invalid, "bad_network", "mail: the network's name has 1 to 64 bytes", "")
	case c.TTL < 0 || c.MaxTTL < c.TTL:
		return shoal.NewError(shoal.Invalid, "bad_config", "mail: TTL is above MaxTTL", "")
	case c.WindowBytes < maxFrame:
		return shoal.NewError(shoal.Invalid, "bad_config", "mail: WindowBytes is below 1 MiB", "")
	case c.RetryMin < 0 || c.RetryMax < c.RetryMin:
		return shoal.NewError(shoal.Invalid, "bad_config", "mail: RetryMin is above RetryMax", "")
	}
	return nil
}

// Mailbox is the post office of a node. Its methods are safe for concurrent use.
type Mailbox struct {
	cfg      Config
	db       *store.DB
	carrier  Carrier
	router   Router
	keys     Keys
	log      *slog.Logger
	handlers map[string]Handler

	ids    idCache
	poster poster  // what Post knows of the tables
	inbox  inbox   // what the letter handler knows of the tables
	inward inwards // receiving streams

	mu  sync.Mutex
	out outgoing // queues, workers, timers: everything about delivery

	settleKick chan struct{} // capacity 1: there are acks or refusals to settle
	wake       chan struct{} // capacity 1: the dispatcher has work

	count counters
}

type counters struct {
	posted, acked, refused, expired  atomic.Uint64
	received, applied, duplicates    atomic.Uint64
	sentFrames, sentEnvelopes        atomic.Uint64
	signed, verified, receivedFrames atomic.Uint64
	dials, dialsFailed, streams      atomic.Uint64
}

// New returns a mailbox over db, whose schemas must include [Schema]. It starts nothing;
// posting works at once, delivery begins with [Mailbox.Run].
func New(cfg Config, db *store.DB, carrier Carrier, router Router, keys Keys, log *slog.Logger) (*Mailbox, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m := &Mailbox{
		cfg: cfg, db: db, carrier: carrier, router: router, keys: keys, log: log,
		handlers:   make(map[string]Handler, len(cfg.Handlers)+1),
		settleKick: make(chan struct{}, 1),
		wake:       make(chan struct{}, 1),
	}
	m.handlers[TopicLetter] = m.receiveLetter
	for topic, h := range cfg.Handlers {
		if !goodTopic(topic) {
			return nil, shoal.NewError(shoal.Invalid, "bad_topic", "mail: topic \""+topic+"\" is malformed", "")
		}
		m.handlers[topic] = h
	}
	m.poster.init()
	m.inbox.init()
	m.inward.init()
	m.inward.budget = semaphore.NewWeighted(cfg.Memory)
	m.out.init()
	return m, nil
}

// Stats is a snapshot of what a mailbox holds and did since it was made.
type Stats struct {
	Outbox      int // envelopes that wait, skips included
	DeadLetters int
	Letters     int // in the inbox, of all agents

	Posted, Acked, Refused, Expired uint64 // envelopes posted here

	SentFrames, SentEnvelopes uint64 // SentEnvelopes counts each sending
	Signatures, Verified      uint64 // made and checked; one a frame
	Dials, DialsFailed        uint64

	ReceivedFrames, Received uint64            // frames accepted, envelopes in them
	Applied, Duplicates      uint64            // envelopes whose handler committed; seen before
	Dropped                  map[string]uint64 // frames and envelopes refused, by reason
	Streams                  int64             // open now, towards others
}

// Stats counts. It reads two indexes from end to end, so it is for people, not for loops.
func (m *Mailbox) Stats(ctx context.Context) (Stats, error) {
	c := &m.count
	s := Stats{
		Posted: c.posted.Load(), Acked: c.acked.Load(), Refused: c.refused.Load(), Expired: c.expired.Load(),
		SentFrames: c.sentFrames.Load(), SentEnvelopes: c.sentEnvelopes.Load(),
		Signatures: c.signed.Load(), Verified: c.verified.Load(),
		Dials: c.dials.Load(), DialsFailed: c.dialsFailed.Load(),
		ReceivedFrames: c.receivedFrames.Load(), Received: c.received.Load(),
		Applied: c.applied.Load(), Duplicates: c.duplicates.Load(),
		Dropped: m.inward.reasons(), Streams: int64(c.streams.Load()),
	}
	err := m.db.View(ctx, func(tx *store.Tx) error {
		// Dead letters have consecutive ids: only the oldest are ever removed.
		_, err := tx.One(`SELECT (SELECT count(*) FROM mail_outbox),
			(SELECT coalesce(max(id) - min(id) + 1, 0) FROM mail_dead),
			(SELECT count(*) FROM mail_letter)`, nil, &s.Outbox, &s.DeadLetters, &s.Letters)
		return err
	})
	return s, err
}

// newID returns a UUIDv7 (RFC 9562 §5.7).
func (m *Mailbox) newID(now time.Time) (id [16]byte) {
	ms := uint64(now.UnixMilli())
	a, b := m.cfg.Rand(), m.cfg.Rand()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	for i := range 8 {
		id[8+i] = byte(b >> (8 * i))
	}
	id[6], id[7] = byte(a)&0x0f|0x70, byte(a>>8)
	id[8] = id[8]&0x3f | 0x80
	return id
}

// idCache remembers the two spellings of the agents in use: base58 both ways costs more
// than a hash of a body. It is emptied when full; entries cost 200 bytes.
type idCache struct {
	mu    sync.RWMutex
	byKey map[key]shoal.AgentID
	byID  map[shoal.AgentID]key
}

const idCacheSize = 16 << 10

// agent returns the id whose key is k.
func (c *idCache) agent(k key) shoal.AgentID {
	c.mu.RLock()
	id, ok := c.byKey[k]
	c.mu.RUnlock()
	if !ok {
		id = shoal.AgentIDOf(k[:])
		c.put(id, k)
	}
	return id
}

// key returns the key of id, false when it is malformed.
func (c *idCache) key(id shoal.AgentID) (key, bool) {
	c.mu.RLock()
	k, ok := c.byID[id]
	c.mu.RUnlock()
	if ok {
		return k, true
	}
	pub := id.PublicKey()
	if len(pub) != keySize {
		return key{}, false
	}
	c.put(id, key(pub))
	return key(pub), true
}

func (c *idCache) put(id shoal.AgentID, k key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil || len(c.byKey) >= idCacheSize {
		c.byKey, c.byID = make(map[key]shoal.AgentID), make(map[shoal.AgentID]key)
	}
	c.byKey[k], c.byID[id] = id, k
}
