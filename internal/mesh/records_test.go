package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	record "github.com/libp2p/go-libp2p-record"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

// card returns k's signed card record of the test network, valid for an hour.
func card(t testing.TB, k identity.Key, seq uint64) []byte {
	t.Helper()
	return sign(t, k, "test", shoal.Record{
		Kind: "card", Owner: k.Agent(), Seq: seq, Value: fmt.Appendf(nil, "card %d", seq),
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	})
}

func sign(t testing.TB, k identity.Key, network string, r shoal.Record) []byte {
	t.Helper()
	raw, err := identity.SignRecord(k, network, r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// mesh3 returns three nodes, the second and third joined to the first.
func mesh3(t *testing.T) [3]*testNode {
	t.Helper()
	var n [3]*testNode
	for i := range n {
		n[i] = start(t, newKey(t), nil)
		if i > 0 {
			if _, err := n[i].Join(t.Context(), n[0].Addrs()); err != nil {
				t.Fatal(err)
			}
		}
	}
	n[0].knows(t, 2)
	return n
}

// knows waits until n's routing table has as many peers: a node that joined is told to
// others only then, and Join waits for the other direction only.
func (n *testNode) knows(t testing.TB, peers int) {
	t.Helper()
	deadline := time.After(n.patience)
	for n.dht.RoutingTable().Size() < peers {
		select {
		case <-n.routed:
		case <-deadline:
			t.Fatalf("%d peers in the routing table, want %d", n.dht.RoutingTable().Size(), peers)
		}
	}
}

func TestRecordReachesAllAndTheNewestWins(t *testing.T) {
	n := mesh3(t)
	ctx := t.Context()
	alice := newKey(t)
	if _, err := n[1].GetRecord(ctx, "card", alice.Agent()); !errors.Is(err, ErrRecordNotFound) {
		t.Errorf("get before put = %v, want record_not_found", err)
	}
	for seq := range uint64(3) {
		raw := card(t, alice, seq+1)
		if err := n[seq].PutRecord(ctx, raw); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			got, err := n[i].GetRecord(ctx, "card", alice.Agent())
			if err != nil || string(got) != string(raw) {
				t.Errorf("node %d after seq %d: %x, %v, want the newest", i, seq+1, got, err)
			}
		}
	}
	for i := range n {
		if err := n[i].PutRecord(ctx, card(t, alice, 2)); !errors.Is(err, ErrRecordOlder) {
			t.Errorf("put of an older record at node %d = %v, want record_older", i, err)
		}
	}
	late := start(t, newKey(t), nil)
	if _, err := late.Join(ctx, n[2].Addrs()); err != nil {
		t.Fatal(err)
	}
	if got, err := late.GetRecord(ctx, "card", alice.Agent()); err != nil || string(got) != string(mustGet(t, n[0], alice)) {
		t.Errorf("late joiner: %x, %v, want the newest", got, err)
	}
}

func mustGet(t *testing.T, n *testNode, k identity.Key) []byte {
	t.Helper()
	raw, err := n.GetRecord(t.Context(), "card", k.Agent())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestNewestRecordOnOneNodeIsFound puts an old record on all and a newer one on a single
// node, the last that would be asked if counting equal answers were enough.
func TestNewestRecordOnOneNodeIsFound(t *testing.T) {
	n := mesh3(t)
	alice := newKey(t)
	if err := n[0].PutRecord(t.Context(), card(t, alice, 1)); err != nil {
		t.Fatal(err)
	}
	newest, key := card(t, alice, 2), recordKey("card", alice.Agent())
	if err := n[2].dht.values.Put(t.Context(), key, record.MakePutRecord(key, newest)); err != nil {
		t.Fatal(err)
	}
	if got := mustGet(t, n[1], alice); string(got) != string(newest) {
		t.Error("got an older record than one node holds")
	}
}

// forgeries returns records for alice's key, each one mutation away from an accepted one.
func forgeries(t *testing.T, alice, mallory identity.Key) map[string][]byte {
	t.Helper()
	control := shoal.Record{
		Kind: "card", Owner: alice.Agent(), Seq: 9, Value: []byte("control"),
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	with := func(change func(*shoal.Record)) shoal.Record { r := control; change(&r); return r }
	good := sign(t, alice, "test", control)
	if err := (validator{"test"}).Validate(recordKey("card", alice.Agent()), good); err != nil {
		t.Fatalf("control refused: %v", err)
	}
	out := map[string][]byte{
		"expired":       sign(t, alice, "test", with(func(r *shoal.Record) { r.NotAfter = time.Now().Add(-time.Hour) })),
		"not yet valid": sign(t, alice, "test", with(func(r *shoal.Record) { r.NotBefore = time.Now().Add(30 * time.Minute) })),
		"other network": sign(t, alice, "other", control),
		"other kind":    sign(t, alice, "test", with(func(r *shoal.Record) { r.Kind = "name" })),
		"other DID":     sign(t, mallory, "test", with(func(r *shoal.Record) { r.Owner = mallory.Agent() })),
		"cut off":       good[:len(good)-1],
		"byte added":    append(slices.Clone(good), 0),
		"empty":         {},
		"huge length":   protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), 1<<62),
	}
	resign := func(k identity.Key, change func(*wire.RecordBody)) []byte {
		var rec wire.Record
		var body wire.RecordBody
		if err := errors.Join(proto.Unmarshal(good, &rec), proto.Unmarshal(rec.Body, &body)); err != nil {
			t.Fatal(err)
		}
		change(&body)
		rec.Body, _ = proto.Marshal(&body)
		rec.Signature = k.Sign(identity.DomainRecord, "test", rec.Body)
		raw, _ := proto.Marshal(&rec)
		return raw
	}
	out["signed by another"] = resign(mallory, func(*wire.RecordBody) {})
	out["version 2"] = resign(alice, func(b *wire.RecordBody) { b.Version = 2 })
	out["value too large"] = resign(alice, func(b *wire.RecordBody) { b.Value = make([]byte, 8<<10+1) })
	out["owner too short"] = resign(alice, func(b *wire.RecordBody) { b.Owner = b.Owner[:31] })
	out["valid for ever"] = resign(alice, func(b *wire.RecordBody) { b.NotAfterMs = 1 << 60 })
	wrongDomain := resign(alice, func(*wire.RecordBody) {})
	var rec wire.Record
	_ = proto.Unmarshal(wrongDomain, &rec)
	rec.Signature = alice.Sign(identity.DomainEnvelope, "test", rec.Body)
	out["signed as an envelope"], _ = proto.Marshal(&rec)
	rec.Signature = ed25519.Sign(alice.Private(), rec.Body)
	out["signed without a domain"], _ = proto.Marshal(&rec)
	for i := range good { // one bit of each byte
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		out[fmt.Sprint("bit of byte ", i)] = bad
	}
	return out
}

// TestForgedRecordsAreNowhere lets a third node write forged newer records under a
// victim's key: by put to each node, and by serving them from its own store.
func TestForgedRecordsAreNowhere(t *testing.T) {
	n := mesh3(t)
	ctx := t.Context()
	alice, mallory := n[0], n[2]
	real, key := card(t, alice.key, 5), recordKey("card", alice.key.Agent())
	if err := alice.PutRecord(ctx, real); err != nil {
		t.Fatal(err)
	}
	anything := record.NamespacedValidator{recordSpace: permissive{}}
	liar := dhtrecords.NewValueStore(ours{mallory.dht.store}, anything, recordAge)

	fakes := forgeries(t, alice.key, mallory.key)
	stored, served, local := 0, 0, 0
	for name, raw := range fakes {
		wire := record.MakePutRecord(key, raw)
		for _, victim := range n[:2] {
			if err := mallory.dht.ask.PutValue(ctx, victim.self, wire); err == nil {
				stored++
				t.Errorf("%s: stored by a peer", name)
			}
		}
		if mallory.PutRecord(ctx, raw) == nil && name != "other DID" && name != "other kind" {
			local++
			t.Errorf("%s: accepted by PutRecord", name)
		}
		if err := liar.Put(ctx, key, wire); err != nil {
			t.Fatal(err)
		}
		for _, victim := range n[:2] {
			if got, err := victim.GetRecord(ctx, "card", alice.key.Agent()); err != nil || string(got) != string(real) {
				served++
				t.Errorf("%s: victim got %x, %v", name, got, err)
			}
		}
	}
	t.Logf("accepted %d of %d put to peers, %d of %d put locally, %d of %d served by a liar",
		stored, 2*len(fakes), local, len(fakes), served, 2*len(fakes))
}

// permissive is the validator of a node that lies.
type permissive struct{}

func (permissive) Validate(string, []byte) error        { return nil }
func (permissive) Select(string, [][]byte) (int, error) { return 0, nil }

func TestValidatorKeys(t *testing.T) {
	k := newKey(t)
	raw := card(t, k, 1)
	good := recordKey("card", k.Agent())
	v := validator{"test"}
	if err := v.Validate(good, raw); err != nil {
		t.Fatalf("control refused: %v", err)
	}
	for _, key := range []string{
		"", "/", "/shoal", "/shoal/card", "/shoal/card/", "/shoal//" + string(k.Agent()), "/pk/card/" + string(k.Agent()),
		good + "/", good + "#x", "/" + good, "/shoal/name/" + string(k.Agent()), recordKey("card", newKey(t).Agent()),
		"/shoal/card/" + string(k.Node()), "shoal/card/" + string(k.Agent()),
	} {
		if err := v.Validate(key, raw); err == nil {
			t.Errorf("accepted under key %q", key)
		}
	}
}

func TestSelectIsTheSameInAnyOrder(t *testing.T) {
	k := newKey(t)
	key, v := recordKey("card", k.Agent()), validator{"test"}
	twin := sign(t, k, "test", shoal.Record{
		Kind: "card", Owner: k.Agent(), Seq: 3, Value: []byte("twin"),
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	})
	all := [][]byte{card(t, k, 1), card(t, k, 3), twin, []byte("junk"), card(t, k, 2)}
	want := all[1]
	if smaller(twin, want) {
		want = twin
	}
	for range len(all) {
		all = append(all[1:], all[0])
		i, err := v.Select(key, all)
		if err != nil || string(all[i]) != string(want) {
			t.Errorf("Select = %d, %v", i, err)
		}
		reversed := slices.Clone(all)
		slices.Reverse(reversed)
		if i, err = v.Select(key, reversed); err != nil || string(reversed[i]) != string(want) {
			t.Errorf("Select reversed = %d, %v", i, err)
		}
	}
	if _, err := v.Select(key, [][]byte{[]byte("junk")}); err == nil {
		t.Error("Select accepted only junk")
	}
	if i, err := v.Select(key, [][]byte{want, want}); i != 0 || err != nil {
		t.Errorf("Select of equals = %d, %v, want the first", i, err)
	}
}

func TestAloneAndRightAfterJoin(t *testing.T) {
	a := start(t, newKey(t), nil)
	ctx := t.Context()
	raw := card(t, a.key, 1)
	if err := a.PutRecord(ctx, raw); !errors.Is(err, ErrNoPeers) {
		t.Errorf("put alone = %v, want no_peers", err)
	}
	if err := a.Provide(ctx, "cap"); !errors.Is(err, ErrNoPeers) {
		t.Errorf("provide alone = %v, want no_peers", err)
	}
	if _, err := a.Providers(ctx, "cap", 0); !errors.Is(err, ErrNoPeers) {
		t.Errorf("providers alone = %v, want no_peers", err)
	}
	if got, err := a.GetRecord(ctx, "card", a.key.Agent()); err != nil || string(got) != string(raw) {
		t.Errorf("get of the own record alone = %x, %v", got, err)
	}
	if _, err := a.GetRecord(ctx, "card", newKey(t).Agent()); !errors.Is(err, ErrNoPeers) {
		t.Errorf("get alone = %v, want no_peers", err)
	}
	// What was put while alone can be asked for the moment somebody comes.
	b := start(t, newKey(t), nil)
	if _, err := b.Join(ctx, a.Addrs()); err != nil {
		t.Fatal(err)
	}
	if got, err := b.GetRecord(ctx, "card", a.key.Agent()); err != nil || string(got) != string(raw) {
		t.Errorf("get right after join = %x, %v", got, err)
	}
	if got, err := b.Providers(ctx, "cap", 0); err != nil || !slices.Equal(got, []shoal.NodeID{a.ID()}) {
		t.Errorf("providers right after join = %v, %v", got, err)
	}
	if err := b.PutRecord(ctx, card(t, b.key, 1)); err != nil {
		t.Errorf("put right after join: %v", err)
	}
	// The other side, too: in OnPeer's wake.
	a.want(t, "up "+string(b.ID()))
	if err := a.PutRecord(ctx, raw); err != nil {
		t.Errorf("put when the first peer came: %v", err)
	}
}

func TestProvidersAreFoundByALateJoiner(t *testing.T) {
	n := mesh3(t)
	ctx := t.Context()
	for _, p := range n[:2] {
		if err := p.Provide(ctx, "a2a:v1:cap:ocr"); err != nil {
			t.Fatal(err)
		}
	}
	want := []shoal.NodeID{n[0].ID(), n[1].ID()}
	slices.Sort(want)
	late := start(t, newKey(t), nil)
	if _, err := late.Join(ctx, n[2].Addrs()); err != nil {
		t.Fatal(err)
	}
	got, err := late.Providers(ctx, "a2a:v1:cap:ocr", 0)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("late joiner found %v, %v, want %v", got, err, want)
	}
	if got, err = late.Providers(ctx, "a2a:v1:cap:ocr", 1); err != nil || len(got) != 1 {
		t.Errorf("limit 1 gave %v, %v", got, err)
	}
	if got, err = n[0].Providers(ctx, "a2a:v1:cap:ocr", 0); err != nil || !slices.Equal(got, []shoal.NodeID{n[1].ID()}) {
		t.Errorf("a provider found %v, %v, want only the other", got, err)
	}
	if got, err = late.Providers(ctx, "a2a:v1:cap:none", 0); err != nil || len(got) != 0 {
		t.Errorf("nobody's capability gave %v, %v, want none", got, err)
	}
}

func TestLookupsEndWithTheirContext(t *testing.T) {
	n := mesh3(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := n[0].GetRecord(ctx, "card", n[1].key.Agent())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("get = %v, want canceled", err)
	}
	if _, err = n[0].Providers(ctx, "cap", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("providers = %v, want canceled", err)
	}
	if err = n[0].PutRecord(ctx, card(t, n[0].key, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("put = %v, want canceled", err)
	}
}

// TestHugeDeclaredLengths opens all the DHT streams that a peer may, and promises on each
// more than it sends.
func TestHugeDeclaredLengths(t *testing.T) {
	a, b := start(t, newKey(t), nil), start(t, newKey(t), nil)
	if _, err := b.Join(t.Context(), a.Addrs()); err != nil {
		t.Fatal(err)
	}
	raw := card(t, a.key, 1)
	if err := a.PutRecord(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	refused := 0
	for i := range 64 {
		c, err := b.Dial(t.Context(), a.ID(), string(b.dhtProtocol()))
		if err != nil {
			refused++
			continue
		}
		defer c.Close()
		promise := uint64(4<<20 - 1)
		if i%2 == 0 {
			promise = 1 << (20 + i%40)
		}
		if _, err := c.Write(protowire.AppendVarint(nil, promise)); err != nil {
			refused++
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			refused++
		}
	}
	runtime.ReadMemStats(&after)
	grown := (after.TotalAlloc - before.TotalAlloc) >> 20
	if grown > 64 {
		t.Errorf("%d MiB allocated for promises", grown)
	}
	if refused == 0 {
		t.Error("no stream was refused")
	}
	t.Logf("%d of 64 streams refused, %d MiB allocated on both sides", refused, grown)
	// Whoever is honest is served.
	c := start(t, newKey(t), nil)
	if _, err := c.Join(t.Context(), a.Addrs()); err != nil {
		t.Fatal(err)
	}
	if got := mustGet(t, c, a.key); string(got) != string(raw) {
		t.Error("an honest peer does not get the record")
	}
}
