package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/gowebpki/jcs"
	"github.com/mr-tron/base58"
	shoal "github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const testNetwork = "test"

// testNow is the moment at which the controls are valid.
var testNow = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// testCard is the card that controls are made of: unknown to no A2A reader, with
// numbers, nesting, and characters that JSON writers escape differently.
func testCard() *a2a.AgentCard {
	return &a2a.AgentCard{
		Name: "bob", Description: "reads <b>scans</b> & écrit \u2028 \U0001F41F", Version: "1.0.0",
		SupportedInterfaces: []*a2a.AgentInterface{
			a2a.NewAgentInterface("libp2p:/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "SHOAL"),
		},
		DefaultInputModes: []string{"text/plain"}, DefaultOutputModes: []string{"text/plain"},
		Capabilities: a2a.AgentCapabilities{Streaming: true, Extensions: []a2a.AgentExtension{{
			URI: "https://shoal.example/ext/v1", Params: map[string]any{"seq": 7, "price": 0.25, "Z": []any{true, nil}, "a": "x"},
		}}},
		Skills: []a2a.AgentSkill{{ID: "ocr", Name: "OCR", Description: "reads scans", Tags: []string{"ocr"}}},
	}
}

// forgeCard signs any payload under any protected header, which SignCard would not.
func forgeCard(t testing.TB, k Key, card, header string) string {
	t.Helper()
	payload, err := jcs.Transform([]byte(card))
	if err != nil {
		t.Fatal(err)
	}
	protected := encodeBase64([]byte(header))
	sig := encodeBase64(k.signRaw(jwsInput(protected, payload)))
	return withSignatures(card, `[{"protected":"`+protected+`","signature":"`+sig+`"}]`)
}

func withSignatures(card, list string) string {
	return strings.TrimSuffix(card, "}") + `,"signatures":` + list + "}"
}

func header(k Key) string { return `{"alg":"EdDSA","kid":"` + string(k.Agent()) + `","typ":"JOSE"}` }

// unsignedCard is testCard in canonical form.
func unsignedCard(t testing.TB) string {
	t.Helper()
	text, err := json.Marshal(testCard())
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jcs.Transform(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(payload)
}

// body returns the record body that controls are made of.
func testBody(k Key) *wire.RecordBody {
	return &wire.RecordBody{
		Version: 1, Network: testNetwork, Kind: "card", Owner: k.Public(), Seq: 7,
		NotBeforeMs: testNow.Add(-time.Hour).UnixMilli(), NotAfterMs: testNow.Add(time.Hour).UnixMilli(),
		Value: []byte("value"),
	}
}

// forgeRecord signs any body with any key.
func forgeRecord(t testing.TB, k Key, b *wire.RecordBody) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return appendRecord(raw, k.Sign(DomainRecord, b.GetNetwork(), raw))
}

func buildIdentity(t *testing.T) (v identityVectors) {
	v.About = "Vectors of spec/records.md §1, §7, §8. Made by: go test ./internal/identity -update"
	for _, seed := range []byte{0, 1, 2, 3, 0xff} {
		k := testKey(t, seed)
		v.Keys = append(v.Keys, keyVector{
			Seed: hex.EncodeToString(k.private.Seed()), Public: hex.EncodeToString(k.Public()),
			DID: string(k.Agent()), PeerID: string(k.Node()),
		})
	}
	v.BadKeys = badKeys()
	v.BadDIDs, v.BadPeerIDs = badIDs(t)
	for _, c := range cardCases(t) {
		cv := cardVector{Name: c.name, Card: c.card, Error: c.want}
		if c.want == "" {
			o, err := parseObject([]byte(c.card))
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			payload, err := o.canonical("signatures")
			if err != nil {
				t.Fatal(err)
			}
			cv.Payload, cv.DID = string(payload), string(c.signer)
		}
		v.Cards = append(v.Cards, cv)
	}
	v.Chains = chainCases(t)
	return v
}

// badKeys returns the points of small order in every encoding, and encodings that are
// not canonical.
func badKeys() []badVector {
	y := func(lowest ...byte) []byte { return append(lowest, make([]byte, 32-len(lowest))...) }
	high := func(lowest, highest byte) []byte {
		b := append([]byte{lowest}, slices.Repeat([]byte{0xff}, 31)...)
		b[31] = highest
		return b
	}
	order8a, _ := hex.DecodeString("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
	order8b, _ := hex.DecodeString("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
	signed := func(b []byte) []byte {
		b = slices.Clone(b)
		b[31] |= 0x80
		return b
	}
	var bad []badVector
	add := func(name string, b []byte) { bad = append(bad, badVector{name, hex.EncodeToString(b)}) }
	add("order 4", y(0))
	add("order 4, other sign", signed(y(0)))
	add("order 1", y(1))
	add("order 1, sign bit set", signed(y(1)))
	add("order 8, a", order8a)
	add("order 8, a, other sign", signed(order8a))
	add("order 8, b", order8b)
	add("order 8, b, other sign", signed(order8b))
	add("order 2", high(0xec, 0x7f))
	add("order 2, sign bit set", high(0xec, 0xff))
	for i := range byte(19) {
		add(fmt.Sprintf("y = p + %d", i), high(0xed+i, 0x7f))
		add(fmt.Sprintf("y = p + %d, sign bit set", i), high(0xed+i, 0xff))
	}
	add("31 bytes", make([]byte, 31))
	add("33 bytes", append(make([]byte, 32), 9))
	add("empty", nil)
	return bad
}

func buildRecords(t *testing.T) (v recordVectors) {
	v.About = "Vectors of spec/records.md §2 to §6; bytes are hex. Made by: go test ./internal/identity -update"
	v.Signatures = signatureCases(t)
	v.Trees = treeCases()
	v.Envelopes = []envelopeVector{envelopeCase(t, "one envelope", 1), envelopeCase(t, "three in one frame", 3)}
	v.Receipts = []receiptVector{receiptCase(t)}
	for _, c := range recordCases(t) {
		rv := recordVector{
			Name: c.name, Network: c.network, NowMs: c.now.UnixMilli(), Record: hex.EncodeToString(c.raw), Error: c.want,
		}
		if c.want == "" {
			r, err := OpenRecord(c.network, c.raw, c.now)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			rv.Kind, rv.Owner, rv.Seq, rv.Value = r.Kind, string(r.Owner), r.Seq, hex.EncodeToString(r.Value)
			rv.NotBeforeMs, rv.NotAfterMs = r.NotBefore.UnixMilli(), r.NotAfter.UnixMilli()
		}
		v.Records = append(v.Records, rv)
	}
	return v
}

func treeCases() (trees []treeVector) {
	for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 8, 13} {
		var v treeVector
		var leaves [][32]byte
		for i := range n {
			data := slices.Repeat([]byte{byte(i)}, i)
			leaf := LeafHash(data)
			leaves = append(leaves, leaf)
			v.Data = append(v.Data, hex.EncodeToString(data))
			v.Leaves = append(v.Leaves, hex.EncodeToString(leaf[:]))
		}
		root := TreeRoot(leaves)
		v.Root = hex.EncodeToString(root[:])
		for i := range n {
			proof := []string{}
			for _, h := range TreeProof(leaves, i) {
				proof = append(proof, hex.EncodeToString(h[:]))
			}
			v.Proofs = append(v.Proofs, proof)
		}
		trees = append(trees, v)
	}
	return trees
}

func envelopeCase(t *testing.T, name string, n int) envelopeVector {
	from, to := testKey(t, 1), testKey(t, 2)
	v := envelopeVector{Name: name, Network: testNetwork, From: string(from.Agent())}
	var leaves [][32]byte
	for i := range n {
		body := []byte{'b', byte('0' + i)}
		hash := sha256.Sum256(body)
		id := slices.Repeat([]byte{byte(i + 1)}, 16)
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&wire.EnvelopeHeader{
			Version: 1, Id: id, Network: testNetwork, From: from.Public(), To: to.Public(), Topic: "shoal.letter",
			Epoch: 1 << 40, Seq: uint64(i + 1), CreatedMs: testNow.UnixMilli(),
			ExpiresMs: testNow.Add(time.Hour).UnixMilli(), BodyHash: hash[:],
		})
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, LeafHash(raw))
		v.Headers, v.Bodies = append(v.Headers, hex.EncodeToString(raw)), append(v.Bodies, hex.EncodeToString(body))
	}
	root := TreeRoot(leaves)
	v.Root = hex.EncodeToString(root[:])
	v.Signature = hex.EncodeToString(from.Sign(DomainEnvelope, testNetwork, root[:]))
	return v
}

func receiptCase(t *testing.T) receiptVector {
	doer, asker := testKey(t, 1), testKey(t, 2)
	in, out := sha256.Sum256([]byte("message")), sha256.Sum256([]byte("artifact"))
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&wire.ReceiptBody{
		Version: 1, Network: testNetwork, Requester: asker.Public(), Doer: doer.Public(), TaskId: "task-1", Skill: "ocr",
		InputHash: in[:], OutputHash: out[:], State: 3, Attempt: 1,
		SubmittedMs: testNow.UnixMilli(), StartedMs: testNow.UnixMilli() + 5, FinishedMs: testNow.UnixMilli() + 900,
	})
	if err != nil {
		t.Fatal(err)
	}
	return receiptVector{
		Name: "completed", Network: testNetwork, Doer: string(doer.Agent()), Asker: string(asker.Agent()),
		Body:           hex.EncodeToString(body),
		DoerSignature:  hex.EncodeToString(doer.Sign(DomainReceipt, testNetwork, body)),
		AskerSignature: hex.EncodeToString(asker.Sign(DomainReceipt, testNetwork, body)),
	}
}

// plusOrder returns sig with S + L for S: the same signature to who does not look.
func plusOrder(sig []byte) []byte {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(sig[32:])
	slices.Reverse(s)
	b := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(b)
	return append(slices.Clone(sig[:32]), b...)
}

func signatureCases(t *testing.T) (cases []signatureVector) {
	k := testKey(t, 1)
	add := func(name string, pub []byte, d Domain, network string, msg, sig []byte, ok bool) {
		v := signatureVector{
			Name: name, Public: hex.EncodeToString(pub), Domain: string(d), Network: network,
			Message: hex.EncodeToString(msg), Signature: hex.EncodeToString(sig), OK: ok,
		}
		if ok {
			input, err := signingInput(d, network, msg)
			if err != nil {
				t.Fatal(err)
			}
			v.Input = hex.EncodeToString(input)
		}
		cases = append(cases, v)
	}
	msg := []byte("msg")
	for _, d := range domains {
		add("control: "+string(d), k.Public(), d, testNetwork, msg, k.Sign(d, testNetwork, msg), true)
	}
	sig := k.Sign(DomainRecord, testNetwork, msg)
	add("control: empty network and message", k.Public(), DomainRecord, "", nil, k.Sign(DomainRecord, "", nil), true)
	add("another domain", k.Public(), DomainReceipt, testNetwork, msg, sig, false)
	add("another network", k.Public(), DomainRecord, "tesu", msg, sig, false)
	add("another message", k.Public(), DomainRecord, testNetwork, []byte("msh"), sig, false)
	add("another key", testKey(t, 2).Public(), DomainRecord, testNetwork, msg, sig, false)
	add("a byte moved from the message to the network", k.Public(), DomainRecord, testNetwork+"m", msg[1:], sig, false)
	add("a byte moved from the network to the domain", k.Public(), DomainRecord+"t", testNetwork[1:], msg, sig, false)
	add("signed without the prefix", k.Public(), DomainRecord, testNetwork, msg, k.signRaw(msg), false)
	add("S + L", k.Public(), DomainRecord, testNetwork, msg, plusOrder(sig), false)
	add("63 bytes", k.Public(), DomainRecord, testNetwork, msg, sig[:63], false)
	add("65 bytes", k.Public(), DomainRecord, testNetwork, msg, append(slices.Clone(sig), 0), false)
	add("empty signature", k.Public(), DomainRecord, testNetwork, msg, nil, false)
	add("31-byte key", k.Public()[:31], DomainRecord, testNetwork, msg, sig, false)

	// R = the identity and S = 0 fit any message under a key of order 1.
	zero := append([]byte{1}, make([]byte, 63)...)
	for _, bad := range badKeys() {
		if pub, _ := hex.DecodeString(bad.Value); len(pub) == 32 {
			add("key "+bad.Name, pub, DomainRecord, testNetwork, msg, zero, false)
		}
	}
	return cases
}

var domains = []Domain{DomainEnvelope, DomainReceipt, DomainRecord, DomainRotation, DomainRevocation}

type recordCase struct {
	name, network string
	now           time.Time
	raw           []byte
	want          string
}

// recordCases returns accepted controls and, for each refusal, one change to a control.
func recordCases(t testing.TB) (cases []recordCase) {
	k := testKey(t, 1)
	add := func(name string, raw []byte, want string) {
		cases = append(cases, recordCase{name, testNetwork, testNow, raw, want})
	}
	at := func(name string, now time.Time, want string) {
		cases = append(cases, recordCase{name, testNetwork, now, forgeRecord(t, k, testBody(k)), want})
	}
	change := func(name, want string, f func(*wire.RecordBody)) {
		b := testBody(k)
		f(b)
		add(name, forgeRecord(t, k, b), want)
	}

	control := forgeRecord(t, k, testBody(k))
	add("control", control, "")
	change("control: empty value", "", func(b *wire.RecordBody) { b.Value = nil })
	change("control: longest kind", "", func(b *wire.RecordBody) { b.Kind = strings.Repeat("k", 32) })
	at("control: two minutes early", testNow.Add(-time.Hour-2*time.Minute), "")
	at("control: two minutes late", testNow.Add(time.Hour+2*time.Minute), "")
	change("control: unknown field in the body", "", func(b *wire.RecordBody) {
		b.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 5))
	})

	at("early by more than two minutes", testNow.Add(-time.Hour-2*time.Minute-time.Millisecond), "not_yet_valid")
	at("late by more than two minutes", testNow.Add(time.Hour+2*time.Minute+time.Millisecond), "expired")
	change("version 0", "bad_record", func(b *wire.RecordBody) { b.Version = 0 })
	change("version 2", "bad_record", func(b *wire.RecordBody) { b.Version = 2 })
	change("another network, well signed there", "wrong_network", func(b *wire.RecordBody) { b.Network = "other" })
	change("kind is empty", "bad_record", func(b *wire.RecordBody) { b.Kind = "" })
	change("kind has 33 bytes", "bad_record", func(b *wire.RecordBody) { b.Kind = strings.Repeat("k", 33) })
	change("kind has a slash", "bad_record", func(b *wire.RecordBody) { b.Kind = "card/x" })
	change("kind has a capital", "bad_record", func(b *wire.RecordBody) { b.Kind = "Card" })
	change("owner is another key", "bad_signature", func(b *wire.RecordBody) { b.Owner = testKey(t, 2).Public() })
	change("owner has 31 bytes", "bad_record", func(b *wire.RecordBody) { b.Owner = b.Owner[:31] })
	change("owner is of small order", "bad_record", func(b *wire.RecordBody) { b.Owner = make([]byte, 32) })
	change("ends as it begins", "bad_record", func(b *wire.RecordBody) { b.NotAfterMs = b.NotBeforeMs })
	change("ends before it begins", "bad_record", func(b *wire.RecordBody) { b.NotAfterMs, b.NotBeforeMs = b.NotBeforeMs, b.NotAfterMs })
	change("valid for more than a year", "bad_record", func(b *wire.RecordBody) { b.NotAfterMs = b.NotBeforeMs + 366*24*3600*1000 + 1 })
	change("valid for ever", "bad_record", func(b *wire.RecordBody) { b.NotAfterMs = 1<<63 - 1 })
	change("begins before 1970", "bad_record", func(b *wire.RecordBody) { b.NotBeforeMs = -1 })
	change("begins just before 1970", "bad_record", func(b *wire.RecordBody) { b.NotBeforeMs, b.NotAfterMs = -1, 3600_000 })
	change("begins so early that the sum overflows", "bad_record", func(b *wire.RecordBody) { b.NotBeforeMs, b.NotAfterMs = -1<<63, 1<<63-1 })
	change("over 9 KiB in all", "bad_record", func(b *wire.RecordBody) {
		b.Value = make([]byte, MaxRecordValue)
		b.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), make([]byte, 1000)))
	})
	change("value over 8 KiB", "bad_record", func(b *wire.RecordBody) { b.Value = make([]byte, MaxRecordValue+1) })

	var outer wire.Record
	if err := proto.Unmarshal(control, &outer); err != nil {
		t.Fatal(err)
	}
	body, sig := outer.GetBody(), outer.GetSignature()
	for _, d := range domains {
		if d != DomainRecord {
			add("signed in domain "+string(d), appendRecord(body, k.Sign(d, testNetwork, body)), "bad_signature")
		}
	}
	add("signed for another network", appendRecord(body, k.Sign(DomainRecord, "other", body)), "bad_signature")
	add("S + L", appendRecord(body, plusOrder(sig)), "bad_signature")
	add("signature is missing", appendRecord(body, nil), "bad_signature")
	add("signature is cut", appendRecord(body, sig[:63]), "bad_signature")
	add("a byte after it", append(slices.Clone(control), 0), "bad_record")
	add("an unknown field outside", protowire.AppendVarint(protowire.AppendTag(slices.Clone(control), 9, protowire.VarintType), 1), "bad_record")
	add("the signature twice", protowire.AppendBytes(protowire.AppendTag(slices.Clone(control), 2, protowire.BytesType), sig), "bad_record")
	swapped := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), sig)
	add("signature before body", protowire.AppendBytes(protowire.AppendTag(swapped, 1, protowire.BytesType), body), "bad_record")
	add("a long length", append([]byte{0x0a, byte(len(body)) | 0x80, byte(len(body)>>7) | 0x80, 0}, control[len(control)-len(body)-2-len(sig):]...), "bad_record")
	add("a huge length", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, "bad_record")
	add("cut short", control[:len(control)-1], "bad_record")
	add("empty", nil, "bad_record")
	return cases
}

// chainCases returns accepted chains and, for each refusal, one change to one of them.
func chainCases(t testing.TB) (cases []chain) {
	a, b, c, thief := testKey(t, 1), testKey(t, 2), testKey(t, 3), testKey(t, 4)
	at := func(n int) time.Time { return testNow.Add(time.Duration(n-10) * time.Hour) }
	must := func(raw []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	apply := func(l Lineage, raw string) Lineage {
		t.Helper()
		l, err := l.Apply([]byte(raw), testNow)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l0 := NewLineage(a.Agent())
	ab := must(l0.Rotate(a, b, at(1)))
	l1 := apply(l0, ab)
	bc := must(l1.Rotate(b, c, at(2)))
	l2 := apply(l1, bc)
	end := must(l2.Revoke(c, "compromised", at(3)))
	aEnd := must(l0.Revoke(a, "retired", at(1)))

	good := func(name string, statements ...string) {
		l := l0
		for _, s := range statements {
			l = apply(l, s)
		}
		cases = append(cases, chain{
			Name: name, Root: string(a.Agent()), NowMs: testNow.UnixMilli(), Statements: append([]string{}, statements...),
			Current: string(l.Current()), Reason: l.Reason, Head: hex.EncodeToString(l.Head[:]),
		})
	}
	bad := func(name, want string, statements ...string) {
		cases = append(cases, chain{
			Name: name, Root: string(a.Agent()), NowMs: testNow.UnixMilli(), Statements: statements, Error: want,
		})
	}
	// resign changes one statement's members and signs again with the keys given.
	resign := func(raw string, f func(map[string]any), signer, prover Key) string {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal([]byte(raw), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "signature")
		delete(m, "proof")
		f(m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		msg, err := jcs.Transform(text)
		if err != nil {
			t.Fatal(err)
		}
		typ, _ := m["type"].(string)
		m["signature"] = encodeBase64(signer.Sign(Domain(typ), "", msg))
		if prover.private != nil {
			m["proof"] = encodeBase64(prover.Sign(Domain(typ), "", msg))
		}
		if text, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	same := func(map[string]any) {}
	set := func(name string, value any) func(map[string]any) { return func(m map[string]any) { m[name] = value } }
	without := func(name string) func(map[string]any) { return func(m map[string]any) { delete(m, name) } }

	good("no statement")
	good("one rotation", ab)
	good("two rotations", ab, bc)
	good("two rotations and a revocation", ab, bc, end)
	good("revoked at once", aEnd)
	good("members in another order", `{ "type":`+strings.SplitN(ab, `"type":`, 2)[1][:len(`"shoal/rotation/v1"`)]+","+strings.Replace(ab[1:], `,"type":"shoal/rotation/v1"`, "", 1))
	good("an unknown member, signed", resign(ab, set("note", "hello"), a, b))

	bad("the first is missing", "bad_statement", bc)
	bad("in the wrong order", "bad_statement", bc, ab)
	bad("the same twice", "bad_statement", ab, ab)
	bad("something after a revocation", "bad_statement", aEnd, ab)
	bad("a thief signs for the old key", "bad_signature", resign(ab, same, thief, b))
	bad("nobody proves the new key", "bad_signature", resign(ab, same, a, thief))
	bad("the proof is missing", "bad_statement", resign(ab, same, a, Key{}))
	bad("signatures are swapped", "bad_signature", resign(ab, same, b, a))
	bad("a rotated key rotates again", "bad_statement", ab, resign(bc, set("old", string(a.Agent())), a, c))
	bad("a rotated key revokes", "bad_statement", ab, bc, resign(end, set("key", string(b.Agent())), b, Key{}))
	bad("a key comes back", "bad_statement", ab, resign(bc, set("new", string(a.Agent())), b, a))
	bad("to itself", "bad_statement", resign(ab, set("new", string(a.Agent())), a, a))
	bad("about another root", "bad_statement", resign(ab, set("root", string(c.Agent())), a, b))
	bad("a number too high", "bad_statement", resign(ab, set("seq", 2), a, b))
	bad("number 0", "bad_statement", resign(ab, set("seq", 0), a, b))
	bad("prev of another statement", "bad_statement", ab, resign(bc, set("prev", encodeBase64(make([]byte, 32))), b, c))
	bad("prev in the first", "bad_statement", resign(ab, set("prev", encodeBase64(make([]byte, 32))), a, b))
	bad("older than the one before", "bad_statement", ab, resign(bc, set("at_ms", at(1).UnixMilli()-1), b, c))
	bad("from the future", "bad_statement", resign(ab, set("at_ms", testNow.UnixMilli()+120_001), a, b))
	bad("new is not a DID", "bad_statement", resign(ab, set("new", "did:web:example.org"), a, b))
	bad("another type", "bad_statement", resign(ab, set("type", "shoal/record/v1"), a, b))
	bad("a rotation called revocation", "bad_statement", resign(ab, set("type", "shoal/revocation/v1"), a, b))
	bad("a rotation with a key to revoke", "bad_statement", resign(ab, set("key", string(a.Agent())), a, b))
	bad("a revocation with a proof", "bad_statement", resign(aEnd, same, a, b))
	bad("a revocation with a successor", "bad_statement", resign(aEnd, set("new", string(b.Agent())), a, Key{}))
	bad("a reason with a space", "bad_statement", resign(aEnd, set("reason", "the dog"), a, Key{}))
	bad("a null member", "bad_statement", resign(ab, set("at_ms", nil), a, b))
	bad("a number in a string", "bad_statement", resign(ab, set("seq", "1"), a, b))
	for _, name := range []string{"type", "root", "seq", "prev", "at_ms", "old", "new"} {
		bad("without "+name, "bad_statement", resign(ab, without(name), a, b))
	}
	bad("changed after signing", "bad_signature", strings.Replace(ab, `"at_ms":1`, `"at_ms":`, 1))
	bad("a member twice", "bad_statement", strings.Replace(ab, `"seq":1`, `"seq":1,"seq":1`, 1))
	bad("a member twice but for case", "bad_statement", strings.Replace(ab, `"seq":1`, `"seq":1,"Seq":1`, 1))
	bad("another after it", "bad_statement", ab+ab)
	return cases
}

type cardCase struct {
	name, card string
	signer     shoal.AgentID
	want       string
}

// cardCases returns accepted controls and, for each refusal, one change to a control.
func cardCases(t testing.TB) (cases []cardCase) {
	k, other := testKey(t, 1), testKey(t, 2)
	card := unsignedCard(t)
	good := func(name, raw string) { cases = append(cases, cardCase{name, raw, k.Agent(), ""}) }
	bad := func(name, raw, want string) { cases = append(cases, cardCase{name, raw, "", want}) }
	// once replaces exactly one place, or the case would test nothing.
	once := func(s, old, new string) string {
		t.Helper()
		if strings.Count(s, old) != 1 {
			t.Fatalf("%q is %d times in %s", old, strings.Count(s, old), s)
		}
		return strings.Replace(s, old, new, 1)
	}
	signed, err := SignCard(testCard(), k)
	if err != nil {
		t.Fatal(err)
	}
	control := forgeCard(t, k, card, header(k))
	sigs := control[strings.Index(control, `,"signatures":[`)+len(`,"signatures":[`) : len(control)-2]
	foreign := `{"protected":"` + encodeBase64([]byte(`{"alg":"ES256","kid":"https://example.org/key","typ":"JOSE"}`)) + `","signature":"AAAA"}`

	good("as SignCard makes it", string(signed))
	good("control", control)
	good("members in another order", `{"signatures":[`+sigs+`],`+card[1:])
	good("with white space", strings.ReplaceAll(control, `":`, "\" :\n\t"))
	good("name written with an escape", once(control, `"name":"bob"`, `"n\u0061me":"bo\u0062"`))
	good("emoji as a surrogate pair", once(control, "\U0001F41F", `\ud83d\udc1f`))
	good("a number spelled otherwise", once(control, `0.25`, `25e-2`))
	good("an unknown member, signed", forgeCard(t, k, once(card, `"name":"bob"`, `"future":{"x":[1,2]},"name":"bob"`), header(k)))
	good("a header of other order and members", forgeCard(t, k, card, `{"typ":"JOSE","jku":"https://evil.example/keys","jwk":{"kty":"OKP"},"kid":"`+string(k.Agent())+`","alg":"EdDSA"}`))
	good("an unprotected header", once(control, `[{"protected"`, `[{"header":{"kid":"`+string(other.Agent())+`"},"protected"`))
	good("an organisation's signature beside it", once(control, `"signatures":[`, `"signatures":[`+foreign+`,`))
	good("256 members", forgeCard(t, k, once(card, `"seq":7`, `"seq":7`+manyMembers(252)), header(k)))
	good("32 levels", forgeCard(t, k, once(card, `[true,null]`, strings.Repeat("[", 27)+strings.Repeat("]", 27)), header(k)))
	good("the largest exact integer", forgeCard(t, k, once(card, `"seq":7`, `"seq":9007199254740991`), header(k)))

	bad("a copy under another's DID", forgeCard(t, other, card, header(k)), "bad_signature")
	bad("the DID swapped in the header", once(control, encodeBase64([]byte(header(k))), encodeBase64([]byte(header(other)))), "bad_signature")
	bad("name changed", once(control, `"bob"`, `"eve"`), "bad_signature")
	bad("a field stripped", once(control, `"version":"1.0.0"`, `"x":0`), "bad_signature")
	bad("a field added", once(control, `"name":"bob"`, `"iconUrl":"x","name":"bob"`), "bad_signature")
	bad("an unknown field added", once(control, `"name":"bob"`, `"x":1,"name":"bob"`), "bad_signature")
	bad("order of a list changed", once(control, `[true,null]`, `[null,true]`), "bad_signature")
	bad("a number changed", once(control, `0.25`, `0.250001`), "bad_signature")
	bad("a member twice", once(control, `"name":"bob"`, `"name":"eve","name":"bob"`), "bad_card")
	bad("a member twice by an escape", once(control, `"name":"bob"`, `"n\u0061me":"eve","name":"bob"`), "bad_card")
	bad("a member twice but for case", once(control, `"name":"bob"`, `"Name":"eve","name":"bob"`), "bad_card")
	bad("a member twice inside", once(control, `"seq":7`, `"seq":8,"seq":7`), "bad_card")
	bad("signatures twice", once(control, `"signatures":[`, `"signatures":[],"signatures":[`), "bad_card")
	bad("no signatures", card, "bad_card")
	bad("an empty list of signatures", withSignatures(card, `[]`), "bad_card")
	bad("signatures is null", withSignatures(card, `null`), "bad_card")
	bad("Signatures with a capital", once(control, `"signatures"`, `"Signatures"`), "bad_card")
	bad("a signature's member with a capital", once(control, `"signature":`, `"Signature":`), "bad_card")
	bad("an unknown member in a signature", once(control, `[{"protected"`, `[{"x":1,"protected"`), "bad_card")
	bad("five signatures", withSignatures(card, `[`+strings.Repeat(foreign+`,`, 4)+sigs+`]`), "bad_card")
	bad("two signatures by a did:key", withSignatures(card, `[`+sigs+`,`+sigs+`]`), "bad_card")
	bad("only an organisation's signature", withSignatures(card, `[`+foreign+`]`), "bad_card")
	bad("signature of 65 bytes", once(control, `"}]}`, `A"}]}`), "bad_signature")
	bad("signature is padded", once(control, `"}]}`, `=="}]}`), "bad_card")
	bad("signature with a line break", once(control, `"signature":"`, `"signature":"\n`), "bad_card")
	bad("a byte order mark", "\ufeff"+control, "bad_card")
	bad("something after it", control+"{}", "bad_card")
	bad("half a surrogate pair", forgeRaw(k, card, once(card, "bob", `bob\ud83d`), header(k)), "bad_card")
	bad("an integer beyond 2^53", forgeCard(t, k, once(card, `"seq":7`, `"seq":9007199254740993`), header(k)), "bad_card")
	bad("a number beyond a double", once(control, `0.25`, `1e999`), "bad_card")
	bad("33 levels", forgeCard(t, k, once(card, `[true,null]`, strings.Repeat("[", 28)+strings.Repeat("]", 28)), header(k)), "bad_card")
	bad("over 8 KiB", forgeCard(t, k, once(card, "bob", strings.Repeat("b", MaxCard)), header(k)), "bad_card")
	bad("257 members", forgeCard(t, k, once(card, `"seq":7`, `"seq":7`+manyMembers(254)), header(k)), "bad_card")
	bad("a null interface", forgeCard(t, k, once(card, `"supportedInterfaces":[`, `"supportedInterfaces":[null,`), header(k)), "bad_card")
	bad("a list", "["+control+"]", "bad_card")

	for _, h := range []struct{ name, header string }{
		{"alg none", once(header(k), "EdDSA", "none")},
		{"alg Ed25519ph", once(header(k), "EdDSA", "Ed25519ph")},
		{"alg eddsa", once(header(k), "EdDSA", "eddsa")},
		{"alg HS256", once(header(k), "EdDSA", "HS256")},
		{"alg missing", once(header(k), `"alg":"EdDSA",`, "")},
		{"typ JWT", once(header(k), "JOSE", "JWT")},
		{"typ missing", once(header(k), `,"typ":"JOSE"`, "")},
		{"crit", once(header(k), `"alg"`, `"crit":["b64"],"b64":false,"alg"`)},
		{"crit empty", once(header(k), `"alg"`, `"crit":[],"alg"`)},
		{"kid missing", once(header(k), `"kid":"`+string(k.Agent())+`",`, "")},
		{"kid with a fragment", once(header(k), `","typ"`, `#`+strings.TrimPrefix(string(k.Agent()), "did:key:")+`","typ"`)},
		{"kid of small order", once(header(k), string(k.Agent()), string(shoal.AgentIDOf(make([]byte, 32))))},
		{"kid twice", once(header(k), `"typ"`, `"kid":"`+string(other.Agent())+`","typ"`)},
		{"kid of another key type", once(header(k), string(k.Agent()), "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme")},
		{"half a surrogate pair in the header", once(header(k), `"alg"`, `"x":"\ud83d","alg"`)},
		{"the other half in the header", once(header(k), `"alg"`, `"x":"\udc1f","alg"`)},
		{"two first halves in the header", once(header(k), `"alg"`, `"x":"\ud83d\ud83d","alg"`)},
		{"header is a list", "[" + header(k) + "]"},
		{"header is empty", ""},
		{"header is null", "null"},
	} {
		bad(h.name, forgeCard(t, k, card, h.header), "bad_card")
	}
	return cases
}

// manyMembers returns n more members.
func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":0`, i)
	}
	return b.String()
}

// forgeRaw signs what jcs.Transform would refuse to canonicalise: the signature is of
// the control's card.
func forgeRaw(k Key, signed, shown, header string) string {
	protected := encodeBase64([]byte(header))
	sig := encodeBase64(k.signRaw(jwsInput(protected, []byte(signed))))
	return withSignatures(shown, `[{"protected":"`+protected+`","signature":"`+sig+`"}]`)
}

// badIDs returns identifiers that are one change away from that of key 1.
func badIDs(t testing.TB) (dids, peers []badVector) {
	k := testKey(t, 1)
	did, peer := string(k.Agent()), string(k.Node())
	add := func(name, didValue, peerValue string) {
		if didValue != "" {
			dids = append(dids, badVector{name, didValue})
		}
		if peerValue != "" {
			peers = append(peers, badVector{name, peerValue})
		}
	}
	enc := func(prefix string, key []byte) string { return base58.Encode(append(unhex(t, prefix), key...)) }
	const didPrefix, peerPrefix = "ed01", "002408011220"
	both := func(name string, key []byte) {
		add(name, "did:key:z"+enc(didPrefix, key), enc(peerPrefix, key))
	}

	dids, peers = append(dids, badVector{"empty", ""}), append(peers, badVector{"empty", ""})
	add("space before", " "+did, " "+peer)
	add("space after", did+" ", peer+" ")
	add("line break after", did+"\n", peer+"\n")
	add("a zero byte before (1 in base58)", "did:key:z1"+did[9:], "1"+peer)
	add("a letter that base58 lacks", did[:20]+"0"+did[21:], peer[:20]+"l"+peer[21:])
	add("a letter fewer", did[:len(did)-1], peer[:len(peer)-1])
	add("a letter more", did+"2", peer+"2")
	add("fragment", did+"#"+did[8:], "")
	add("query", did+"?x=1", "")
	add("method key in capitals", "did:KEY:"+did[8:], "")
	add("scheme in capitals", "DID:key:"+did[8:], "")
	add("without multibase", "did:key:"+did[9:], "")
	add("multibase f (hex)", "did:key:fed01"+hex.EncodeToString(k.Public()), "")
	add("did:web", "did:web:example.org", "")
	add("a peer id as a DID", peer, did)
	add("a peer id after did:key", "did:key:"+peer, "")
	add("multicodec of X25519", "did:key:z"+enc("ec01", k.Public()), "")
	add("multicodec of secp256k1", "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", "")
	add("multicodec varint of three bytes", "did:key:z"+enc("ed8100", k.Public()), "")
	add("sha-256 multihash", "", enc("122024080112", k.Public()))
	add("protobuf says RSA", "", enc("002408001220", k.Public()))
	add("protobuf says secp256k1", "", enc("002408021220", k.Public()))
	add("CID form", "", "bafzaajaiaejcb"+peer[:20])
	both("31 bytes", k.Public()[:31])
	both("33 bytes", append(slices.Clone(k.Public()), 0))
	both("no key", nil)
	for _, bad := range badKeys()[:12] {
		both("key "+bad.Name, unhex(t, bad.Value))
	}
	return dids, peers
}
