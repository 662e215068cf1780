package mesh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"math/rand/v2"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// entryCost is what an entry weighs beside its key and value: two map slots, the
	// struct and slice headers.
	entryCost = 160
	// evictSample is how many entries are looked at to find one to evict.
	evictSample = 8
)

// bounded is the DHT's store: in memory, and never larger than its limit, whatever peers
// put. When it is full, what lies far from this node in the key space goes first, for
// others are responsible for it; of a few entries picked at random the farthest, so that
// an attacker cannot aim. Entries of this node itself do not count and stay.
//
// Keys are grouped by their first two parts ("/providers/KEY", "/shoal/KEY"): a question
// for the providers of one key must not look at all entries.
type bounded struct {
	limit  int64
	home   [sha256.Size]byte
	suffix string // the last part of the key of this node's own provider entries

	mu     sync.Mutex
	used   int64
	groups map[string]map[ds.Key]*entry
	keys   []ds.Key // those that may be evicted, in no order
}

type entry struct {
	value []byte
	slot  int // its place in keys; -1 if it is this node's own
}

// b32 is how the DHT writes binary keys in its store.
var b32 = base32.StdEncoding.WithPadding(base32.NoPadding)

func newBounded(self peer.ID, limit int64) *bounded {
	return &bounded{
		limit:  limit,
		home:   sha256.Sum256([]byte(self)),
		suffix: "/" + b32.EncodeToString([]byte(self)),
		groups: make(map[string]map[ds.Key]*entry),
	}
}

func groupOf(key string) string {
	if i := strings.IndexByte(key[1:], '/'); i >= 0 {
		if j := strings.IndexByte(key[i+2:], '/'); j >= 0 {
			return key[:i+2+j]
		}
	}
	return key
}

// distance is how far the record of a store key lies from this node: XOR of the SHA-256
// of the DHT key, which is the second part in base32, with that of the peer ID.
func (s *bounded) distance(key ds.Key) [sha256.Size]byte {
	group := groupOf(key.String())
	raw, err := b32.DecodeString(group[strings.LastIndexByte(group, '/')+1:])
	if err != nil {
		raw = []byte(group)
	}
	d := sha256.Sum256(raw)
	for i := range d {
		d[i] ^= s.home[i]
	}
	return d
}

// Put stores an entry of another node, or of this one if its key says so.
func (s *bounded) Put(_ context.Context, key ds.Key, value []byte) error {
	s.put(key, value, strings.HasSuffix(key.String(), s.suffix))
	return nil
}

func (s *bounded) put(key ds.Key, value []byte, own bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	group := groupOf(key.String())
	if old := s.groups[group][key]; old != nil {
		own = own || old.slot < 0
		s.remove(key)
	}
	if s.groups[group] == nil {
		s.groups[group] = make(map[ds.Key]*entry)
	}
	e := &entry{value: bytes.Clone(value), slot: -1}
	s.groups[group][key] = e
	if own {
		return
	}
	e.slot = len(s.keys)
	s.keys = append(s.keys, key)
	s.used += cost(key, value)
	for s.used > s.limit {
		s.evict()
	}
}

func cost(key ds.Key, value []byte) int64 {
	return int64(2*len(key.String()) + len(value) + entryCost)
}

// evict removes the farthest of a few.
func (s *bounded) evict() {
	var worst ds.Key
	var far [sha256.Size]byte
	for i := range evictSample {
		k := s.keys[rand.IntN(len(s.keys))]
		if d := s.distance(k); i == 0 || bytes.Compare(d[:], far[:]) > 0 {
			worst, far = k, d
		}
	}
	s.remove(worst)
}

func (s *bounded) remove(key ds.Key) {
	group := groupOf(key.String())
	e := s.groups[group][key]
	if e == nil {
		return
	}
	if e.slot >= 0 { // the last key takes its place
		last := len(s.keys) - 1
		moved := s.keys[last]
		s.keys[e.slot] = moved
		s.groups[groupOf(moved.String())][moved].slot = e.slot
		s.keys = s.keys[:last]
		s.used -= cost(key, e.value)
	}
	delete(s.groups[group], key)
	if len(s.groups[group]) == 0 {
		delete(s.groups, group)
	}
}

// Delete removes an entry; none is no error.
func (s *bounded) Delete(_ context.Context, key ds.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
	return nil
}

// Get returns a copy of the value of key.
func (s *bounded) Get(_ context.Context, key ds.Key) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.groups[groupOf(key.String())][key]
	if e == nil {
		return nil, ds.ErrNotFound
	}
	return bytes.Clone(e.value), nil
}

// Has says whether there is an entry.
func (s *bounded) Has(ctx context.Context, key ds.Key) (bool, error) {
	return ds.GetBackedHas(ctx, s, key)
}

// GetSize returns the length of the value of key.
func (s *bounded) GetSize(ctx context.Context, key ds.Key) (int, error) {
	return ds.GetBackedSize(ctx, s, key)
}

// Query returns a snapshot of what matches q.
func (s *bounded) Query(_ context.Context, q dsq.Query) (dsq.Results, error) {
	var out []dsq.Entry
	s.mu.Lock()
	collect := func(group map[ds.Key]*entry) {
		for k, e := range group {
			out = append(out, dsq.Entry{Key: k.String(), Value: bytes.Clone(e.value), Size: len(e.value)})
		}
	}
	prefix := ds.NewKey(q.Prefix).String()
	if strings.Count(prefix, "/") >= 2 {
		collect(s.groups[groupOf(prefix)])
	} else {
		for _, group := range s.groups {
			collect(group)
		}
	}
	s.mu.Unlock()
	return dsq.NaiveQueryApply(q, dsq.ResultsWithEntries(q, out)), nil
}

// Batch returns a batch that is applied entry by entry.
func (s *bounded) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }

// Sync does nothing.
func (s *bounded) Sync(context.Context, ds.Key) error { return nil }

// Close does nothing.
func (s *bounded) Close() error { return nil }

// ours is the same store for this node's own records, which are not evicted.
type ours struct{ *bounded }

func (o ours) Put(_ context.Context, key ds.Key, value []byte) error {
	o.put(key, value, true)
	return nil
}
