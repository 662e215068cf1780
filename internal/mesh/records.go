package mesh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

const (
	recordSpace = "shoal" // records live at /shoal/<kind>/<did>

	// maxRecord is a value of 8 KiB plus its frame.
	maxRecord = 9 << 10
	// recordAge is how long a node keeps what others stored on it; owners put their
	// records again well before (cards: each hour).
	recordAge = 24 * time.Hour
	// replicaGrace is how long a put waits for further replicas once it has one. The
	// rest goes on in the background: one dead peer in the table must not make each
	// publication as slow as its dial time-out.
	replicaGrace = 2 * time.Second
	// maxProviders bounds what a search for providers collects.
	maxProviders = 1024
)

// table is the DHT and what we need of its parts.
type table struct {
	*dht.IpfsDHT
	store  *bounded
	values *dhtrecords.ValueStore
	ask    *pb.ProtocolMessenger
}

// dhtPrefix keeps the DHTs of networks apart.
func (m *Mesh) dhtPrefix() protocol.ID { return protocol.ID("/shoal/" + m.cfg.Network) }

// dhtProtocol is what the DHT makes of it.
func (m *Mesh) dhtProtocol() protocol.ID { return m.dhtPrefix() + "/kad/1.0.0" }

func (m *Mesh) newTable(h host.Host) (*table, error) {
	store := newBounded(m.self, m.cfg.Limits.RecordBytes)
	check := record.NamespacedValidator{recordSpace: validator{network: m.cfg.Network}}
	d, err := dht.New(h,
		dht.ProtocolPrefix(m.dhtPrefix()),
		dht.Mode(dht.ModeAutoServer),
		dht.Validator(check),
		dht.Datastore(store),
		dht.MaxRecordAge(recordAge),
		dht.ProviderManagerOpts(dhtrecords.ProvideValidity(recordAge)),
	)
	if err != nil {
		return nil, err
	}
	// The DHT's own PutValue does not say whether anybody stored the value, so we do
	// its two steps ourselves: this is its store, seen through the same rules.
	values := dhtrecords.NewValueStore(ours{store}, check, recordAge)
	ask, err := pb.NewProtocolMessenger(d.MessageSender())
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	rt := d.RoutingTable()
	added := rt.PeerAdded // no peer can be known yet, so nobody reads the field now
	rt.PeerAdded = func(p peer.ID) {
		added(p)
		select {
		case m.routed <- struct{}{}:
		default:
		}
	}
	return &table{IpfsDHT: d, store: store, values: values, ask: ask}, nil
}

// validator decides which records this node stores, returns and prefers.
type validator struct{ network string }

// Validate accepts raw under key if the owner that the key names signed it for this
// network and it is within its validity now.
func (v validator) Validate(key string, raw []byte) error {
	_, err := v.open(key, raw)
	return err
}

func (v validator) open(key string, raw []byte) (shoal.Record, error) {
	kind, owner, err := splitKey(key)
	if err != nil {
		return shoal.Record{}, err
	}
	if len(raw) > maxRecord {
		return shoal.Record{}, shoal.NewError(shoal.Invalid, "record_too_large", "the record is too large", "at most 8 KiB")
	}
	rec, err := identity.OpenRecord(v.network, raw, time.Now())
	if err != nil {
		return shoal.Record{}, err
	}
	if rec.Kind != kind || rec.Owner != owner {
		return shoal.Record{}, shoal.NewError(shoal.Denied, "record_wrong_key",
			"the record belongs under another key", "only the owner of a key can write it")
	}
	return rec, nil
}

// Select returns the index of the record with the highest sequence; of two with the same
// the one with the smaller SHA-256, so that all nodes agree. Equal bytes keep the first.
func (v validator) Select(key string, raws [][]byte) (int, error) {
	best, found := 0, false
	var bestSeq uint64
	for i, raw := range raws {
		rec, err := v.open(key, raw)
		if err != nil {
			continue
		}
		if !found || rec.Seq > bestSeq || rec.Seq == bestSeq && smaller(raw, raws[best]) {
			best, bestSeq, found = i, rec.Seq, true
		}
	}
	if !found {
		return 0, ErrRecordNotFound
	}
	return best, nil
}

func smaller(a, b []byte) bool {
	x, y := sha256.Sum256(a), sha256.Sum256(b)
	return bytes.Compare(x[:], y[:]) < 0
}

func recordKey(kind string, owner shoal.AgentID) string {
	return "/" + recordSpace + "/" + kind + "/" + string(owner)
}

// splitKey is the inverse of recordKey; it accepts exactly what recordKey makes.
func splitKey(key string) (kind string, owner shoal.AgentID, err error) {
	bad := shoal.NewError(shoal.Invalid, "bad_record_key", "the record's key is malformed", "")
	rest, ok := strings.CutPrefix(key, "/"+recordSpace+"/")
	if !ok {
		return "", "", bad
	}
	kind, did, ok := strings.Cut(rest, "/")
	if !ok || kind == "" || len(kind) > 32 {
		return "", "", bad
	}
	owner, err = shoal.ParseAgentID(did)
	if err != nil {
		return "", "", bad.Because(err)
	}
	return kind, owner, nil
}

// PutRecord stores a signed record (identity.SignRecord) on the nodes nearest to its key
// and on this one. It returns nil when at least one other node stored it; those that are
// slow get it in the background. Without peers it keeps the record here, where a first
// peer can ask for it, and returns [ErrNoPeers]: put it again when a peer appears.
// It returns identity.OpenRecord's errors for a record that is not valid, [ErrRecordOlder]
// if this node knows a newer one, and [shoal.Unavailable] with reason no_replica if all
// peers that were asked refused or failed.
func (m *Mesh) PutRecord(ctx context.Context, raw []byte) error {
	_, d, err := m.live()
	if err != nil {
		return err
	}
	rec, err := identity.OpenRecord(m.cfg.Network, raw, time.Now())
	if err != nil {
		return err
	}
	key := recordKey(rec.Kind, rec.Owner)
	wire := record.MakePutRecord(key, raw)
	if err := d.values.Put(ctx, key, wire); errors.Is(err, dhtrecords.ErrOldRecord) {
		return ErrRecordOlder.Because(err)
	} else if err != nil {
		return err
	}
	return m.replicate(ctx, d, key, func(ctx context.Context, p peer.ID) error {
		return d.ask.PutValue(ctx, p, wire)
	})
}

// replicate calls put for each of the nodes nearest to key, at the same time.
func (m *Mesh) replicate(ctx context.Context, d *table, key string, put func(context.Context, peer.ID) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.LookupTimeout)
	defer cancel()
	if err := m.settle(ctx, d); err != nil {
		return err
	}
	near, err := d.GetClosestPeers(ctx, key)
	switch {
	case len(near) == 0 && ctx.Err() != nil:
		return timedOut(ctx, "find the nearest nodes")
	case len(near) == 0:
		return ErrNoPeers.Because(err)
	}
	results := make(chan error, len(near))
	started := m.background(func() {
		// Late replicas outlive the call, not their own time-out.
		late, stop := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.LookupTimeout)
		defer stop()
		var puts sync.WaitGroup
		for _, p := range near {
			puts.Go(func() { results <- put(late, p) })
		}
		puts.Wait()
	})
	if !started {
		return ErrClosed
	}
	return m.collect(ctx, results, len(near))
}

// collect waits for n results, but not longer than replicaGrace after the first success.
func (m *Mesh) collect(ctx context.Context, results <-chan error, n int) error {
	var grace <-chan time.Time
	var stored int
	var last error
	for range n {
		select {
		case err := <-results:
			if err != nil {
				last = err
				continue
			}
			if stored++; stored == 1 {
				t := time.NewTimer(replicaGrace)
				defer t.Stop()
				grace = t.C
			}
		case <-grace:
			return nil
		case <-ctx.Done():
			if stored > 0 {
				return nil
			}
			return timedOut(ctx, "store")
		}
	}
	if stored == 0 {
		return shoal.NewError(shoal.Unavailable, "no_replica", "no peer stored it",
			"try again; check this machine's clock").Because(last)
	}
	return nil
}

// settle returns nil when the routing table has a peer. Right after a connection it waits
// for that; without any connection it returns ErrNoPeers at once.
func (m *Mesh) settle(ctx context.Context, d *table) error {
	if d.RoutingTable().Size() > 0 {
		return nil
	}
	if len(d.Host().Network().Peers()) == 0 {
		return ErrNoPeers
	}
	t := time.NewTimer(m.cfg.SettleTimeout)
	defer t.Stop()
	for d.RoutingTable().Size() == 0 {
		select {
		case <-m.routed:
		case <-t.C:
			return ErrNoPeers.With("the connected peers do not serve the DHT")
		case <-ctx.Done():
			return timedOut(ctx, "wait for peers")
		}
	}
	m.wakeNext()
	return nil
}

// wakeNext passes the token on to another caller that waits in settle.
func (m *Mesh) wakeNext() {
	select {
	case m.routed <- struct{}{}:
	default:
	}
}

func timedOut(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return shoal.NewError(shoal.Timeout, "lookup_timeout", what+": the DHT took too long", "try again").Because(ctx.Err())
}

// GetRecord returns the valid record of owner with the highest sequence that this node or
// any of the nodes nearest to its key holds, as signed bytes for identity.OpenRecord. All
// of them are asked: a count of equal answers proves nothing where one node may hold a
// newer record. If time runs out, the best so far is returned.
// It returns [ErrRecordNotFound]; [ErrNoPeers] if it is not here and there is nobody to
// ask; or [shoal.Timeout] with reason lookup_timeout.
func (m *Mesh) GetRecord(ctx context.Context, kind string, owner shoal.AgentID) ([]byte, error) {
	_, d, err := m.live()
	if err != nil {
		return nil, err
	}
	key := recordKey(kind, owner)
	if _, _, err := splitKey(key); err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, m.cfg.LookupTimeout)
	defer cancel()
	lonely := m.settle(asking, d)
	answers, err := d.SearchValue(asking, key, dht.Quorum(0)) // 0: all of them
	if err != nil {
		return nil, err
	}
	var best []byte
	for raw := range answers { // each is better than the one before
		best = raw
	}
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err()
	case best != nil:
		return best, nil
	case lonely != nil:
		return nil, lonely
	case asking.Err() != nil:
		return nil, timedOut(asking, "get")
	}
	return nil, ErrRecordNotFound
}

// Provide announces this node as a provider of key, such as "a2a:v1:cap:ocr". Announce
// again within a day. Anyone can announce anything: ask a provider for proof. Errors are
// PutRecord's.
func (m *Mesh) Provide(ctx context.Context, key string) error {
	_, d, err := m.live()
	if err != nil {
		return err
	}
	hash := providerKey(key).Hash()
	if err := d.ProviderStore().AddProvider(ctx, hash, peer.AddrInfo{ID: m.self}); err != nil {
		return err
	}
	return m.replicate(ctx, d, string(hash), func(ctx context.Context, p peer.ID) error {
		return d.ask.PutProviderAddrs(ctx, p, hash, peer.AddrInfo{ID: m.self, Addrs: d.FilteredAddrs()})
	})
}

// Providers returns up to limit nodes, 0 for all, that announced key; never this one.
// The whole neighbourhood of the key is asked before the list is cut, so that one node
// cannot fill it. It returns an empty list if there is none, and [ErrNoPeers] if nothing
// is known here and there is nobody to ask.
func (m *Mesh) Providers(ctx context.Context, key string, limit int) ([]shoal.NodeID, error) {
	_, d, err := m.live()
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, m.cfg.LookupTimeout)
	defer cancel()
	lonely := m.settle(asking, d)
	seen := make(map[shoal.NodeID]bool)
	var out []shoal.NodeID
	for ai := range d.FindProvidersAsync(asking, providerKey(key), 0) {
		id := nodeOf(ai.ID)
		if id == "" || id == m.id || seen[id] {
			continue
		}
		seen[id] = true
		if out = append(out, id); len(out) == maxProviders {
			cancel()
		}
	}
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err()
	case len(out) == 0 && lonely != nil:
		return nil, lonely
	case len(out) == 0 && asking.Err() != nil:
		return nil, timedOut(asking, "find providers")
	case limit > 0 && len(out) > limit:
		out = out[:limit]
	}
	return out, nil
}

// providerKey is the DHT key of key: a CID (raw) of its SHA-256.
func providerKey(key string) cid.Cid {
	sum := sha256.Sum256([]byte(key))
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		panic(err) // a SHA-256 always encodes
	}
	return cid.NewCidV1(cid.Raw, mh)
}
