package identity

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	shoal "github.com/shoalmesh/shoal"
)

// attempts counts forgeries; each is one change to a control that is accepted.
type attempts struct {
	t        *testing.T
	accepted int
	of       int
	reasons  map[string]int
}

func attack(t *testing.T) *attempts {
	a := &attempts{t: t, reasons: map[string]int{}}
	t.Cleanup(func() { t.Logf("accepted %d of %d, refused as %v", a.accepted, a.of, a.reasons) })
	return a
}

func (a *attempts) add(err error, format string, args ...any) {
	a.t.Helper()
	a.of++
	if err == nil {
		a.accepted++
		a.t.Errorf("accepted: "+format, args...)
		return
	}
	a.reasons[reasonOf(err)]++
}

// flips calls f with every step-th single-bit change of raw, which f must not keep.
// A step that is odd meets each place in a byte alike.
func flips(raw []byte, step int, f func(bit int, forged []byte)) {
	b := slices.Clone(raw)
	for bit := 0; bit < 8*len(b); bit += step {
		b[bit/8] ^= 1 << (bit % 8)
		f(bit, b)
		b[bit/8] ^= 1 << (bit % 8)
	}
}

func TestForgedCardsAreRefused(t *testing.T) {
	a := attack(t)
	controls := 0
	for _, c := range cardCases(t) {
		_, id, err := VerifyCard([]byte(c.card))
		if c.want != "" {
			a.add(err, "%s", c.name)
			continue
		}
		controls++
		if err != nil || id != c.signer {
			t.Errorf("control %s: got %q, %v", c.name, id, err)
		}
	}
	t.Logf("controls accepted: %d", controls)
}

func TestCardWithAFlippedBitIsRefused(t *testing.T) {
	raw, err := SignCard(testCard(), testKey(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	a := attack(t)
	flips(raw, 5, func(bit int, forged []byte) {
		_, _, err := VerifyCard(forged)
		a.add(err, "bit %d: %s", bit, forged)
	})
}

func TestCardCutAnywhereIsRefused(t *testing.T) {
	raw, err := SignCard(testCard(), testKey(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	a := attack(t)
	for n := range raw {
		_, _, err := VerifyCard(raw[:n])
		a.add(err, "%d bytes", n)
	}
}

// TestCardInAnyOrderVerifies: order of members is nobody's to rely on.
func TestCardInAnyOrderVerifies(t *testing.T) {
	raw, err := SignCard(testCard(), testKey(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseObject(raw)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(o))
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		var members []string
		for _, name := range names {
			members = append(members, `"`+name+`": `+string(o[name]))
		}
		shuffled := "{" + strings.Join(members, ",\n") + "}"
		if _, _, err := VerifyCard([]byte(shuffled)); err != nil {
			t.Fatalf("order %v: %v", names, err)
		}
	}
}

// TestCardOfAnotherKeyIsNeverTheVictims: whoever signs a copy, it is not the victim's.
func TestCardOfAnotherKeyIsNeverTheVictims(t *testing.T) {
	victim := testKey(t, 1)
	card := unsignedCard(t)
	control := forgeCard(t, victim, card, header(victim))
	if _, id, err := VerifyCard([]byte(control)); err != nil || id != victim.Agent() {
		t.Fatalf("control: %q, %v", id, err)
	}
	a := attack(t)
	for range 50 {
		thief, err := Generate()
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = VerifyCard([]byte(forgeCard(t, thief, card, header(victim))))
		a.add(err, "signed by %s in the victim's name", thief)
		_, _, err = VerifyCard([]byte(strings.Replace(control, encodeBase64([]byte(header(victim))), encodeBase64([]byte(header(thief))), 1)))
		a.add(err, "the victim's signature under %s", thief)

		own := forgeCard(t, thief, card, header(thief))
		if _, id, err := VerifyCard([]byte(own)); err != nil || id != thief.Agent() {
			t.Errorf("a card of the thief's own: %q, %v", id, err)
		}
	}
}

// TestCardMeansWhatWasSigned: what the caller gets is decoded from what was verified.
func TestCardMeansWhatWasSigned(t *testing.T) {
	k := testKey(t, 1)
	raw := forgeCard(t, k, unsignedCard(t), header(k))
	respelled := strings.Replace(raw, `0.25`, `2.5E-1`, 1)
	one, _, err1 := VerifyCard([]byte(raw))
	two, _, err2 := VerifyCard([]byte(respelled))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	a, _ := json.Marshal(one)
	b, _ := json.Marshal(two)
	if !bytes.Equal(a, b) || respelled == raw {
		t.Errorf("two spellings of one card: %s and %s", a, b)
	}
}

func TestSignCardLeavesTheCardAlone(t *testing.T) {
	card := testCard()
	before, _ := json.Marshal(card)
	raw, err := SignCard(card, testKey(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(card); !bytes.Equal(before, after) {
		t.Errorf("card became %s", after)
	}
	signed, _, err := VerifyCard(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := SignCard(signed, testKey(t, 1))
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("signed again: %s, %v; want %s", again, err, raw)
	}
}

func TestSignCardRefusesWhatPeersWould(t *testing.T) {
	long, null, inexact := testCard(), testCard(), testCard()
	long.Description = strings.Repeat("x", MaxCard)
	null.SupportedInterfaces = append(null.SupportedInterfaces, nil)
	inexact.Capabilities.Extensions[0].Params["seq"] = uint64(1<<53 + 1)
	unmarshalable := testCard()
	unmarshalable.Capabilities.Extensions[0].Params["f"] = func() {}
	a := attack(t)
	_, err := SignCard(long, testKey(t, 1))
	a.add(err, "over 8 KiB")
	_, err = SignCard(null, testKey(t, 1))
	a.add(err, "a null interface")
	_, err = SignCard(inexact, testKey(t, 1))
	a.add(err, "an inexact integer")
	_, err = SignCard(unmarshalable, testKey(t, 1))
	a.add(err, "a func in params")
}

func TestCardThatIsNotUTF8IsRefused(t *testing.T) {
	k := testKey(t, 1)
	control := forgeCard(t, k, unsignedCard(t), header(k))
	if _, _, err := VerifyCard([]byte(strings.Replace(control, "bob", "bo\xff", 1))); reasonOf(err) != "bad_card" {
		t.Errorf("got %v, want bad_card", err)
	}
}

func TestForgedRecordsAreRefused(t *testing.T) {
	a := attack(t)
	controls := 0
	for _, c := range recordCases(t) {
		_, err := OpenRecord(c.network, c.raw, c.now)
		if c.want != "" {
			a.add(err, "%s", c.name)
		} else if controls++; err != nil {
			t.Errorf("control %s: %v", c.name, err)
		}
	}
	t.Logf("controls accepted: %d", controls)
}

func TestRecordWithAFlippedBitIsRefused(t *testing.T) {
	a := attack(t)
	flips(forgeRecord(t, testKey(t, 1), testBody(testKey(t, 1))), 1, func(bit int, forged []byte) {
		_, err := OpenRecord(testNetwork, forged, testNow)
		a.add(err, "bit %d", bit)
	})
}

func TestRecordReplayedToAnotherNetworkIsRefused(t *testing.T) {
	k := testKey(t, 1)
	raw := forgeRecord(t, k, testBody(k))
	a := attack(t)
	for _, network := range []string{"", "tes", "test ", "Test", "testt", "test\x00", "other", strings.Repeat("t", 255)} {
		_, err := OpenRecord(network, raw, testNow)
		a.add(err, "network %q", network)
		// The thief also writes the network's name into the body, which changes it.
		b := testBody(k)
		b.Network = network
		body := forgeRecord(t, k, b)
		forged := append(slices.Clone(body[:len(body)-64]), raw[len(raw)-64:]...)
		_, err = OpenRecord(network, forged, testNow)
		a.add(err, "rewritten for network %q", network)
	}
}

func TestSignRecordSignsForItsOwnerOnly(t *testing.T) {
	k, other := testKey(t, 1), testKey(t, 2)
	r := shoal.Record{
		Kind: "card", Owner: k.Agent(), Seq: 1<<64 - 1, NotBefore: testNow, NotAfter: testNow.Add(time.Hour), Value: []byte("v"),
	}
	raw, err := SignRecord(k, testNetwork, r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenRecord(testNetwork, raw, testNow)
	if err != nil || got.Seq != r.Seq || !got.NotAfter.Equal(r.NotAfter) || string(got.Value) != "v" || got.Owner != k.Agent() {
		t.Errorf("got %+v, %v; want %+v", got, err, r)
	}
	if _, err := SignRecord(other, testNetwork, r); reasonOf(err) != "bad_record" {
		t.Errorf("signed with another key: %v", err)
	}
	r.Value = make([]byte, MaxRecordValue)
	if raw, err = SignRecord(k, testNetwork, r); err != nil {
		t.Fatal(err)
	}
	if _, err = OpenRecord(testNetwork, raw, testNow); err != nil {
		t.Errorf("the longest value: %v", err)
	}
	r.Value = make([]byte, MaxRecordValue+1)
	if _, err := SignRecord(k, testNetwork, r); reasonOf(err) != "bad_record" {
		t.Errorf("too long a value: %v", err)
	}
}

// TestSignatureOfOneDomainPassesInNoOther tries each signature in every other domain
// and network, and as a JWS and a signature without any prefix.
func TestSignatureOfOneDomainPassesInNoOther(t *testing.T) {
	k := testKey(t, 1)
	networks := []string{"", "test", "main"}
	messages := [][]byte{[]byte("msg"), []byte(unsignedCard(t))}
	a := attack(t)
	for _, msg := range messages {
		for _, d := range domains {
			for _, network := range networks {
				sig := k.Sign(d, network, msg)
				if err := Verify(k.Public(), d, network, msg, sig); err != nil {
					t.Fatalf("control %s %s: %v", d, network, err)
				}
				for _, d2 := range domains {
					for _, n2 := range networks {
						if d2 != d || n2 != network {
							a.add(Verify(k.Public(), d2, n2, msg, sig), "%s %s as %s %s", d, network, d2, n2)
						}
					}
				}
				a.add(verifyInput(k.Public(), msg, sig), "%s as a plain signature", d)
				a.add(verifyInput(k.Public(), jwsInput(encodeBase64([]byte(header(k))), msg), sig), "%s as a card", d)
			}
		}
		for _, d := range domains {
			a.add(Verify(k.Public(), d, "test", msg, k.signRaw(jwsInput(encodeBase64([]byte(header(k))), msg))), "a card as %s", d)
		}
	}
}

func TestSignatureWithAFlippedBitIsRefused(t *testing.T) {
	k := testKey(t, 1)
	sig, msg := k.Sign(DomainRecord, testNetwork, []byte("msg")), []byte("msg")
	a := attack(t)
	flips(sig, 1, func(bit int, forged []byte) {
		a.add(Verify(k.Public(), DomainRecord, testNetwork, msg, forged), "bit %d of the signature", bit)
	})
	flips(k.Public(), 1, func(bit int, forged []byte) {
		a.add(Verify(forged, DomainRecord, testNetwork, msg, sig), "bit %d of the key", bit)
	})
	a.add(Verify(k.Public(), Domain(strings.Repeat("d", 256)), testNetwork, msg, sig), "a long domain")
	a.add(Verify(nil, DomainRecord, testNetwork, msg, sig), "no key")
	a.add(Verify(k.Public(), DomainRecord, testNetwork, msg, nil), "no signature")
}

func TestForgedChainsAreRefused(t *testing.T) {
	a := attack(t)
	controls := 0
	for _, c := range chainCases(t) {
		var raws [][]byte
		for _, s := range c.Statements {
			raws = append(raws, []byte(s))
		}
		_, err := VerifyChain(shoal.AgentID(c.Root), raws, testNow)
		if c.Error != "" {
			a.add(err, "%s", c.Name)
		} else if controls++; err != nil {
			t.Errorf("control %s: %v", c.Name, err)
		}
	}
	t.Logf("controls accepted: %d", controls)
}

func TestStatementWithAFlippedBitIsRefused(t *testing.T) {
	k, next := testKey(t, 1), testKey(t, 2)
	l := NewLineage(k.Agent())
	rotation, err1 := l.Rotate(k, next, testNow)
	revocation, err2 := l.Revoke(k, "compromised", testNow)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	a := attack(t)
	for _, raw := range [][]byte{rotation, revocation} {
		flips(raw, 7, func(bit int, forged []byte) {
			_, err := l.Apply(forged, testNow)
			a.add(err, "bit %d: %s", bit, forged)
		})
	}
}

func TestLineageRefusesToMakeWhatPeersRefuse(t *testing.T) {
	k, next, other := testKey(t, 1), testKey(t, 2), testKey(t, 3)
	l := NewLineage(k.Agent())
	a := attack(t)
	_, err := l.Rotate(other, next, testNow)
	a.add(err, "another's key")
	_, err = l.Rotate(k, k, testNow)
	a.add(err, "to itself")
	_, err = l.Revoke(other, "retired", testNow)
	a.add(err, "another's key")
	_, err = l.Revoke(k, "", testNow)
	a.add(err, "no reason")
	_, err = l.Revoke(k, strings.Repeat("x", maxReason+1), testNow)
	a.add(err, "a long reason")

	for i := range byte(maxChain) {
		raw, err := l.Rotate(k, testKey(t, 100+i), testNow)
		if err != nil {
			t.Fatal(err)
		}
		if l, err = l.Apply(raw, testNow); err != nil {
			t.Fatal(err)
		}
		k = testKey(t, 100+i)
	}
	_, err = l.Rotate(k, other, testNow)
	a.add(err, "statement %d", maxChain+1)
}

// TestLengthsDoNotWrapAround: a domain of 256 bytes has no length byte.
func TestLengthsDoNotWrapAround(t *testing.T) {
	k := testKey(t, 1)
	long := strings.Repeat("d", 256)
	forged := k.signRaw([]byte(signingPrefix + "\x00" + long + "\x04test" + "msg"))
	a := attack(t)
	a.add(Verify(k.Public(), Domain(long), "test", []byte("msg"), forged), "a domain of 256 bytes")
	forged = k.signRaw([]byte(signingPrefix + "\x01d\x00" + long + "msg"))
	a.add(Verify(k.Public(), "d", long, []byte("msg"), forged), "a network of 256 bytes")

	defer func() {
		if recover() == nil {
			t.Error("Sign does not stop at a domain of 256 bytes")
		}
	}()
	k.Sign(Domain(long), "test", nil)
}
