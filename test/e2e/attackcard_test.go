//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gowebpki/jcs"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

// serveCards answers card requests with what answer says, until the test ends.
func serveCards(t *testing.T, r *rogue, answer func(*wire.CardRequest) [][]byte) {
	t.Helper()
	serveRawCards(t, r, func(req *wire.CardRequest) []byte { return frame(t, &wire.CardResponse{Cards: answer(req)}) })
}

func serveRawCards(t *testing.T, r *rogue, answer func(*wire.CardRequest) []byte) {
	t.Helper()
	l, err := r.Listen(cardProtocol)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			var req wire.CardRequest
			if protodelim.UnmarshalFrom(newByteReader(conn), &req) == nil {
				_, _ = conn.Write(answer(&req))
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// cardOf fetches an agent's signed card from its host, as any node may.
func cardOf(t *testing.T, r *rogue, host *daemon, did string) []byte {
	t.Helper()
	conn := r.dial(host, cardProtocol)
	defer conn.Close()
	if _, err := conn.Write(frame(t, &wire.CardRequest{Did: did})); err != nil {
		t.Fatal(err)
	}
	var resp wire.CardResponse
	if err := protodelim.UnmarshalFrom(newByteReader(conn), &resp); err != nil || len(resp.GetCards()) != 1 {
		t.Fatalf("%d cards of %s, %v; want 1", len(resp.GetCards()), did, err)
	}
	return resp.GetCards()[0]
}

// draft is a card before it is signed.
type draft struct {
	card   map[string]any
	header map[string]any // of the signature
	key    identity.Key
}

func (d *draft) params() map[string]any {
	ext := d.card["capabilities"].(map[string]any)["extensions"].([]any)[0].(map[string]any)
	return ext["params"].(map[string]any)
}

// draftFrom makes a card of key's agent, hosted by r, that offers one capability, in the
// form of a real one.
func draftFrom(t *testing.T, model []byte, r *rogue, key identity.Key, capability string) *draft {
	t.Helper()
	d := &draft{key: key, header: map[string]any{"alg": "EdDSA", "kid": string(key.Agent()), "typ": "JOSE"}}
	if err := json.Unmarshal(model, &d.card); err != nil {
		t.Fatal(err)
	}
	delete(d.card, "signatures")
	d.card["name"] = "rogue"
	skill := d.card["skills"].([]any)[0].(map[string]any)
	skill["id"] = capability
	d.card["skills"] = []any{skill}
	d.card["supportedInterfaces"].([]any)[0].(map[string]any)["url"] = "libp2p:/p2p/" + string(r.ID())
	p := d.params()
	p["node"], p["seq"] = string(r.ID()), 5
	p["not_before"], p["not_after"] = stamp(-time.Minute), stamp(time.Hour)
	delete(p, "skills")
	return d
}

func stamp(in time.Duration) string { return time.Now().Add(in).UTC().Format(time.RFC3339) }

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sign signs the draft as it is, however wrong: EdDSA over its JCS.
func (d *draft) sign(t *testing.T) []byte {
	t.Helper()
	canonical := func(v any) []byte {
		text, err := json.Marshal(v)
		if err == nil {
			text, err = jcs.Transform(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	head, err := json.Marshal(d.header)
	if err != nil {
		t.Fatal(err)
	}
	protected := b64(head)
	sig := ed25519.Sign(d.key.Private(), []byte(protected+"."+b64(canonical(d.card))))
	signed := map[string]any{"signatures": []any{map[string]any{"protected": protected, "signature": b64(sig)}}}
	for k, v := range d.card {
		signed[k] = v
	}
	return canonical(signed)
}

// ownCard is a true card of the rogue's own agent.
func ownCard(t *testing.T, r *rogue, model *daemon, did string) []byte {
	t.Helper()
	return draftFrom(t, cardOf(t, r, model, did), r, r.key, "any").sign(t)
}

// cardMutation is the one thing that is wrong with an otherwise good card.
type cardMutation struct {
	name   string
	before func(d *draft)
	after  func(raw []byte) []byte
	frame  func(cards []byte) []byte // of the whole answer, length in front
}

func cardMutations(victim string, host *daemon, old []byte) []cardMutation {
	return []cardMutation{
		{name: "in the victim's name", before: func(d *draft) { d.header["kid"] = victim }},
		{name: "in the victim's name, a far higher seq", before: func(d *draft) { d.header["kid"] = victim; d.params()["seq"] = 1 << 50 }},
		{name: "a capability added after signing", after: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"description":"for a test"`), []byte(`"description":"FOR A TEST"`), 1)
		}},
		{name: "the seq raised after signing", after: func(b []byte) []byte { return bytes.Replace(b, []byte(`"seq":5`), []byte(`"seq":6`), 1) }},
		{name: "a member added after signing", after: func(b []byte) []byte { return append([]byte(`{"a":1,`), b[1:]...) }},
		{name: "a member twice", after: func(b []byte) []byte { return append([]byte(`{"name":"rogue",`), b[1:]...) }},
		{name: "the signature taken away", after: func(b []byte) []byte {
			return regexp.MustCompile(`"signatures":\[[^]]*\]`).ReplaceAll(b, []byte(`"signatures":[]`))
		}},
		{name: "alg none", before: func(d *draft) { d.header["alg"] = "none" }},
		{name: "a critical header", before: func(d *draft) { d.header["crit"] = []string{"b64"}; d.header["b64"] = false }},
		{name: "a key that is no did", before: func(d *draft) { d.header["kid"] = "rogue" }},
		{name: "the right key beside another kid", before: func(d *draft) {
			d.header["kid"] = victim
			d.header["jwk"] = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": b64(d.key.Public())}
		}},
		{name: "of another network", before: func(d *draft) { d.params()["network"] = "other" }},
		{name: "expired", before: func(d *draft) {
			d.params()["not_before"], d.params()["not_after"] = stamp(-3*time.Hour), stamp(-2*time.Hour)
		}},
		{name: "not valid yet", before: func(d *draft) {
			d.params()["not_before"], d.params()["not_after"] = stamp(2*time.Hour), stamp(3*time.Hour)
		}},
		{name: "valid for a year", before: func(d *draft) { d.params()["not_after"] = stamp(365 * 24 * time.Hour) }},
		{name: "seq 0", before: func(d *draft) { d.params()["seq"] = 0 }},
		{name: "a seq that JSON cannot hold", before: func(d *draft) { d.params()["seq"] = json.Number("9007199254740993") }},
		{name: "an interface on another node", before: func(d *draft) { d.params()["node"] = host.ready.PeerID }},
		{name: "no node", before: func(d *draft) { delete(d.params(), "node") }},
		{name: "a name with a control character", before: func(d *draft) { d.card["name"] = "rogue\x1b[2J" }},
		{name: "more than 8 KiB", before: func(d *draft) { d.card["description"] = strings.Repeat("x", 9<<10) }},
		{name: "nested too deep", before: func(d *draft) {
			d.card["x"] = json.RawMessage(strings.Repeat("[", 100) + strings.Repeat("]", 100))
		}},
		{name: "cut off", after: func(b []byte) []byte { return b[:len(b)-2] }},
		{name: "the victim's true card of yesterday", after: func([]byte) []byte { return old }},
		{name: "forty of them in one answer", frame: func(b []byte) []byte {
			var resp wire.CardResponse
			for range 40 {
				resp.Cards = append(resp.Cards, b)
			}
			out, _ := proto.Marshal(&resp)
			return relength(append([]byte{0}, out...), uint64(len(out)))
		}},
		{name: "a declared length of 2^40", frame: func(b []byte) []byte { return relength(append([]byte{0}, b...), 1<<40) }},
		{name: "a task where cards belong", frame: func([]byte) []byte { return []byte{2, 0x08, 0x01} }},
	}
}

var cardRefusal = regexp.MustCompile(`(?:card refused|node does not answer for its cards).*err="?([^"\n]*)`)

// wrapped is what a refusal has in front of its reason.
var wrapped = regexp.MustCompile(`^(verify card|ask \w+ for cards): `)

// TestForgedCardsAreRefused has a connected node answer searches with cards that each
// differ from an accepted one in one thing.
func TestForgedCardsAreRefused(t *testing.T) {
	a, b, victim := victims(t)
	r := newRogue(t, a, b)
	old := cardOf(t, r, b, victim.did)
	if _, said, code := cli(t, b.home, "card", "refresh", "victim"); code != 0 {
		t.Fatalf("card refresh exits %d: %s", code, said)
	}
	model := cardOf(t, r, b, victim.did)
	if bytes.Equal(old, model) {
		t.Fatal("the refreshed card is the old one")
	}
	stillWorks(t, a, b, victim)

	var answer atomic.Pointer[[]byte]
	serveRawCards(t, r, func(*wire.CardRequest) []byte { return *answer.Load() })
	none := frame(t, &wire.CardResponse{})
	answer.Store(&none)
	count := newTally("forged cards")
	for i, m := range cardMutations(victim.did, b, old) {
		key, capability := newKey(t), fmt.Sprintf("cap-%d", i)
		d := draftFrom(t, model, r, key, capability)
		control := frame(t, &wire.CardResponse{Cards: [][]byte{d.sign(t)}})
		if m.before != nil {
			m.before(d)
		}
		card := d.sign(t)
		if m.after != nil {
			was := card
			if card = m.after(card); bytes.Equal(was, card) {
				t.Errorf("%s: the mutation changes nothing", m.name)
			}
		}
		forged := frame(t, &wire.CardResponse{Cards: [][]byte{card}})
		if m.frame != nil {
			forged = m.frame(card)
		}
		mark := a.log.mark()
		answer.Store(&forged)
		found := findDIDs(t, a, capability)
		reason := ""
		if len(found) == 0 {
			if reason = saidWhy(a, mark, cardRefusal); reason == "" {
				reason = "no offer of it" // such as the victim's old card: nothing new to say
			}
			reason, _, _ = strings.Cut(wrapped.ReplaceAllString(reason, ""), ":")
		}
		count.note(t, m.name, reason, len(found) > 0)

		answer.Store(&control)
		if found := findDIDs(t, a, capability); !slices.Equal(found, []string{string(key.Agent())}) {
			t.Errorf("%s: the control is not accepted: found %q", m.name, found)
			continue
		}
		count.controls++
		answer.Store(&none)
	}
	count.print(t)
	stillWorks(t, a, b, victim)
	a.kill()
	a.start()
	stillWorks(t, a, b, victim)
}

func findDIDs(t *testing.T, d *daemon, capability string) (dids []string) {
	t.Helper()
	resp, err := d.agents.Find(ctxFor(t, 20*time.Second), connect.NewRequest(&shoalv1.FindRequest{Capability: capability, Fresh: true}))
	if err != nil {
		t.Fatalf("find %s: %v", capability, err)
	}
	for _, a := range resp.Msg.GetAgents() {
		dids = append(dids, a.GetDid())
	}
	return dids
}

// dhtWriter puts whatever it likes into other nodes' part of the DHT.
type dhtWriter struct{ ask *pb.ProtocolMessenger }

type anything struct{}

func (anything) Validate(string, []byte) error        { return nil }
func (anything) Select(string, [][]byte) (int, error) { return 0, nil }

func newDHTWriter(t *testing.T, daemons ...*daemon) *dhtWriter {
	t.Helper()
	priv, err := crypto.UnmarshalEd25519PrivateKey(newKey(t).Private())
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(priv), libp2p.NoListenAddrs, libp2p.ProtocolVersion("shoal/1/"+network))
	if err != nil {
		t.Fatal(err)
	}
	d, err := dht.New(h, dht.ProtocolPrefix(protocol.ID("/shoal/"+network)), dht.Mode(dht.ModeClient),
		dht.Validator(record.NamespacedValidator{"shoal": anything{}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); h.Close() })
	for _, v := range daemons {
		info, err := peer.AddrInfoFromString(v.ready.Addrs[0])
		if err == nil {
			err = h.Connect(ctxFor(t, 15*time.Second), *info)
		}
		if err != nil {
			t.Fatalf("connect to %s: %v", v.name, err)
		}
	}
	ask, err := pb.NewProtocolMessenger(d.MessageSender())
	if err != nil {
		t.Fatal(err)
	}
	return &dhtWriter{ask}
}

// put writes a record to one node and reports what that node then has under the key.
func (w *dhtWriter) put(t *testing.T, d *daemon, key string, raw []byte) (err error, has []byte) {
	t.Helper()
	p, perr := peer.Decode(d.ready.PeerID)
	if perr != nil {
		t.Fatal(perr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = w.ask.PutValue(ctx, p, record.MakePutRecord(key, raw))
	if rec, _, gerr := w.ask.GetValue(ctx, p, key); gerr == nil && rec != nil {
		has = rec.GetValue()
	}
	return err, has
}

// TestForgedRecordsAreRefused writes into the honest nodes' part of the DHT: newer
// records under the victim's DID, and others that differ from an accepted one in one
// thing.
func TestForgedRecordsAreRefused(t *testing.T) {
	a, b, victim := victims(t)
	w, r := newDHTWriter(t, a, b), newRogue(t, a, b)
	card := ownCard(t, r, b, victim.did)
	victimKey := "/shoal/card/" + victim.did
	count := newTally("forged records")
	now := time.Now()
	value := func(k identity.Key, change func(*wire.RecordBody)) []byte {
		body := &wire.RecordBody{
			Version: 1, Network: network, Kind: "card", Owner: k.Public(), Seq: 1 << 40,
			NotBeforeMs: now.Add(-time.Minute).UnixMilli(), NotAfterMs: now.Add(time.Hour).UnixMilli(), Value: card,
		}
		if change != nil {
			change(body)
		}
		text := raw(t, body)
		signedFor := body.GetNetwork()
		return raw(t, &wire.Record{Body: text, Signature: k.Sign(identity.DomainRecord, signedFor, text)})
	}
	mutations := []struct {
		name  string
		under func(own string) string // the key; nil: the signer's own
		make  func(k identity.Key) []byte
		kind  bool // the record is true, but of another kind than its key
	}{
		{"the victim's DID as owner, signed by the rogue", func(string) string { return victimKey }, func(k identity.Key) []byte {
			return value(k, func(b *wire.RecordBody) { b.Owner = shoal.AgentID(victim.did).PublicKey() })
		}, false},
		{"the rogue's own record under the victim's key", func(string) string { return victimKey }, func(k identity.Key) []byte { return value(k, nil) }, false},
		{"another kind under the same key", nil, func(k identity.Key) []byte { return value(k, func(b *wire.RecordBody) { b.Kind = "name" }) }, true},
		{"one bit changed", nil, func(k identity.Key) []byte { v := value(k, nil); v[len(v)/2] ^= 1; return v }, false},
		{"of another network", nil, func(k identity.Key) []byte { return value(k, func(b *wire.RecordBody) { b.Network = "other" }) }, false},
		{"expired", nil, func(k identity.Key) []byte {
			return value(k, func(b *wire.RecordBody) { b.NotBeforeMs -= 10 * 3600_000; b.NotAfterMs -= 10 * 3600_000 })
		}, false},
		{"not valid yet", nil, func(k identity.Key) []byte {
			return value(k, func(b *wire.RecordBody) { b.NotBeforeMs += 10 * 3600_000; b.NotAfterMs += 10 * 3600_000 })
		}, false},
		{"version 2", nil, func(k identity.Key) []byte { return value(k, func(b *wire.RecordBody) { b.Version = 2 }) }, false},
		{"a value of 10 KiB", nil, func(k identity.Key) []byte {
			return value(k, func(b *wire.RecordBody) { b.Value = make([]byte, 10<<10) })
		}, false},
		{"bytes behind the record", nil, func(k identity.Key) []byte { return append(value(k, nil), 0x1a, 0) }, false},
		{"signed as an envelope", nil, func(k identity.Key) []byte {
			var rec wire.Record
			_ = proto.Unmarshal(value(k, nil), &rec)
			rec.Signature = k.Sign(identity.DomainEnvelope, network, rec.GetBody())
			return raw(t, &rec)
		}, false},
		{"under a key that is no DID", func(string) string { return "/shoal/card/victim" }, func(k identity.Key) []byte { return value(k, nil) }, false},
		{"under a key of another space", func(own string) string { return strings.Replace(own, "/shoal/", "/pk/", 1) }, func(k identity.Key) []byte { return value(k, nil) }, false},
	}
	for _, m := range mutations {
		for _, d := range []*daemon{a, b} {
			k := newKey(t)
			own := "/shoal/card/" + string(k.Agent())
			key := own
			if m.under != nil {
				key = m.under(own)
			}
			forged := m.make(k)
			err, has := w.put(t, d, key, forged)
			// A DHT refuses by closing the stream; the rule that the node applies says why.
			reason := "kept"
			if _, rule := identity.OpenRecord(network, forged, time.Now()); rule != nil {
				reason = shoal.AsError(rule).Reason
			} else if m.under != nil || m.kind {
				reason = "wrong_key"
			}
			if err == nil {
				reason += " (without an error)"
			}
			count.note(t, m.name+", to the "+d.name, reason, bytes.Equal(has, forged))

			control := value(k, nil)
			if err, has := w.put(t, d, own, control); err != nil || !bytes.Equal(has, control) {
				t.Errorf("%s: the control is not accepted by the %s: %v", m.name, d.name, err)
				continue
			}
			count.controls++
			older := value(k, func(b *wire.RecordBody) { b.Seq-- })
			err, has = w.put(t, d, own, older)
			if bytes.Equal(has, older) {
				t.Errorf("the %s took an older record for a newer one (%v)", d.name, err)
			}
		}
	}
	count.print(t)
	stillWorks(t, a, b, victim)

	// Somebody who comes later asks the same DHT.
	c := startDaemon(t, "latecomer")
	c.join(a)
	eventually(t, 20*time.Second, "a latecomer resolves the victim to its true node", func() bool {
		resp, err := c.agents.Resolve(ctxFor(t, 15*time.Second), connect.NewRequest(&shoalv1.ResolveRequest{Agent: victim.did, Fresh: true}))
		return err == nil && resp.Msg.GetAgent().GetNode() == b.ready.PeerID
	})
}
