// Package directory knows who is on the mesh: it signs and publishes the cards of the
// agents hosted here, and finds, verifies and remembers the cards of all others.
//
// It promises that a card it returns was signed by the agent it names, is valid now
// for this network, and is the newest that this node has ever seen of that agent. It
// does not promise that the agent is reachable, nor that no newer card exists, and it
// takes no view on whether what a card says about its agent is true.
//
// Callers are api (find, resolve), mail (Host) and node, which hands it the mesh and
// serves [Directory.ServeConn]. It calls store, identity and the mesh it is given.
// The rules that every implementation must follow are in spec/card.md.
package directory

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
)

// Protocol is the id of the stream protocol that [Directory.ServeConn] answers.
const Protocol = "/shoal/card/1.0.0"

// Mesh is what the directory needs of the network.
type Mesh interface {
	// Dial opens a stream to a node.
	Dial(ctx context.Context, node shoal.NodeID, proto string) (net.Conn, error)
	// PutRecord stores a signed record in the DHT.
	PutRecord(ctx context.Context, raw []byte) error
	// GetRecord returns the newest signed record of that kind and owner.
	GetRecord(ctx context.Context, kind string, owner shoal.AgentID) ([]byte, error)
	// Provide says in the DHT that this node has something under key.
	Provide(ctx context.Context, key string) error
	// Providers returns nodes that said so, at most limit.
	Providers(ctx context.Context, key string, limit int) ([]shoal.NodeID, error)
}

// Keys are the keys of the agents hosted here.
type Keys interface {
	Key(id shoal.AgentID) (identity.Key, bool)
}

// Config says which network the directory serves and how eager it is.
type Config struct {
	// Network is the mesh's name; cards of another one are refused. Required.
	Network string
	// Node is the node that hosts the local agents. Required.
	Node shoal.NodeID
	// TTL is how long a card is valid after it was signed, at most 24h (spec/card.md
	// §3). Shorter makes a lost key or a dead node forgotten sooner, but needs more
	// refreshes. Default 24h.
	TTL time.Duration
	// Refresh is how often the cards are signed and published again; at most half of
	// TTL, so that one failed round loses nothing. Default 1h.
	Refresh time.Duration
	// NodeTimeout is how long one other node may take to answer for its cards. A slow
	// or silent node delays a find by at most this. Default 2s.
	NodeTimeout time.Duration
	// LookupTimeout is how long one DHT look-up may take. Default 4s.
	LookupTimeout time.Duration
	// CacheFor is how long an answer to a find is given again as it is. Default 30s.
	CacheFor time.Duration
	// WarmFor is how long an older answer is still given at once while the mesh is
	// asked again behind it. Longer is faster, but a new agent is missed once more.
	// Default 2m.
	WarmFor time.Duration
	// MaxKnown is how many cards of others are kept in memory. Default 10,000.
	MaxKnown int
	// Rand returns a number in [0, 1) for the jitter of retries. Default math/rand/v2.
	Rand func() float64
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.TTL, MaxLife)
	set(&c.Refresh, min(time.Hour, c.TTL/2))
	set(&c.NodeTimeout, 2*time.Second)
	set(&c.LookupTimeout, 4*time.Second)
	set(&c.CacheFor, 30*time.Second)
	set(&c.WarmFor, 2*time.Minute)
	if c.MaxKnown == 0 {
		c.MaxKnown = 10_000
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	return c
}

func (c Config) validate() error {
	bad := func(msg, hint string) error {
		return shoal.NewError(shoal.Invalid, "bad_config", msg, hint)
	}
	switch {
	case c.Network == "":
		return bad("directory needs the network's name", "set network")
	case c.Node == "":
		return bad("directory needs the node's id", "")
	case c.TTL < time.Minute || c.TTL > MaxLife:
		return bad("card ttl "+c.TTL.String()+" is out of range", "use 1m to 24h")
	case c.Refresh < time.Second || c.Refresh > c.TTL/2:
		return bad("card refresh "+c.Refresh.String()+" is out of range", "use 1s to half of the ttl")
	case c.NodeTimeout < 0 || c.LookupTimeout < 0 || c.CacheFor < 0 || c.WarmFor < 0 || c.MaxKnown < 0:
		return bad("directory times and counts are never negative", "")
	}
	return nil
}

// Directory is the node's view of who is on the mesh. Safe for concurrent use.
type Directory struct {
	cfg  Config
	db   *store.DB
	mesh Mesh
	keys Keys
	log  *slog.Logger

	known *registry
	finds *findCache

	publishing chan struct{} // wakes Run to look at the due times; capacity 1
	flushing   chan struct{} // wakes Run to write newly known cards; capacity 1
	warming    chan string   // capabilities and agents to be asked for again behind an answer

	signMu sync.Mutex // one signing at a time, so sequence numbers only grow

	mu    sync.Mutex
	local map[shoal.AgentID]*hosted
	peers *peerSet
}

// New returns a directory that knows the hosted agents kept in db. It does no network
// I/O and starts nothing: cards are published once [Directory.Run] runs.
func New(cfg Config, db *store.DB, mesh Mesh, keys Keys, log *slog.Logger) (*Directory, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	d := &Directory{
		cfg: cfg, db: db, mesh: mesh, keys: keys, log: log,
		known:      newRegistry(cfg.MaxKnown),
		finds:      newFindCache(),
		publishing: make(chan struct{}, 1),
		flushing:   make(chan struct{}, 1),
		warming:    make(chan string, maxWarming),
		local:      map[shoal.AgentID]*hosted{},
		peers:      newPeerSet(),
	}
	if err := d.loadHosted(context.Background()); err != nil {
		return nil, err
	}
	return d, nil
}

// Run publishes the cards of the hosted agents, keeps them fresh, and writes down the
// cards of others as they become known, until ctx ends. It returns ctx's error, or
// the database's if that fails for good.
func (d *Directory) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.runPublisher(ctx) })
	g.Go(func() error { return d.runKeeper(ctx) })
	for range warmers {
		g.Go(func() error { return d.runWarmer(ctx) })
	}
	return g.Wait()
}

// PeerUp notes that a node has just become connected. It publishes what could not be
// published before, does not block and does no I/O itself.
func (d *Directory) PeerUp(id shoal.NodeID) {
	now := wallNow()
	d.mu.Lock()
	d.peers.add(id)
	for _, h := range d.local {
		h.peerUp(now)
	}
	d.mu.Unlock()
	wake(d.publishing)
}

// Stats are counts for health and metrics.
type Stats struct {
	Hosted    int // agents of this node, without withdrawn ones
	Published int // of these, on the mesh as far as we know
	Known     int // cards of other nodes' agents in memory
}

// Stats returns the counts of now.
func (d *Directory) Stats() Stats {
	s := Stats{Known: d.known.len()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.local {
		if h.card.withdrawn {
			continue
		}
		s.Hosted++
		if h.peers > 0 {
			s.Published++
		}
	}
	return s
}

// wallNow is the time without the monotonic clock, which stands still while a laptop
// sleeps: what is due by the calendar is due when it wakes.
func wallNow() time.Time { return time.Now().Round(0) }

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it will look anyway
	}
}
