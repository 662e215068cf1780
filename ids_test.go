package shoal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/quick"
)

// knownKeys are from other people's documents (see internal/identity): the did:key test
// vectors, the W3C CCG example, the libp2p peer-ids spec; peer ids by go-libp2p v0.51.
var knownKeys = []struct{ public, did, peer string }{
	{
		"3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
		"did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp",
		"12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
	},
	{
		"2e6fcce36701dc791488e0d0b1745cc1e33a4c1c9fcc41c63bd343dbbe0970e6",
		"did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
		"",
	},
	{
		"b3ed2b08330f004ad6c0b01ff88dfa2309fcf95c5223f24023e56f61baa42e00",
		"did:key:z6MkrZcmxs1SHQsMisDRF94jd8ZvF4U7m4SFJgdDWjJaYHFD",
		"12D3KooWMviu7kLi8meP2Ft9CArEYq6kupEuNsGNaG5K4SVTX1Bm",
	},
}

func TestIDsOfKnownKeys(t *testing.T) {
	for _, k := range knownKeys {
		pub, err := hex.DecodeString(k.public)
		if err != nil {
			t.Fatal(err)
		}
		if got := AgentIDOf(pub); string(got) != k.did {
			t.Errorf("AgentIDOf(%s) = %s, want %s", k.public, got, k.did)
		}
		if got := NodeIDOf(pub); k.peer != "" && string(got) != k.peer {
			t.Errorf("NodeIDOf(%s) = %s, want %s", k.public, got, k.peer)
		}
		if got := AgentID(k.did).PublicKey(); !bytes.Equal(got, pub) {
			t.Errorf("%s has key %x, want %s", k.did, got, k.public)
		}
	}
}

// TestIDsGoBothWays: agent and node of one key are functions of each other.
func TestIDsGoBothWays(t *testing.T) {
	for range 200 {
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		agent, err1 := ParseAgentID(string(AgentIDOf(pub)))
		node, err2 := ParseNodeID(string(NodeIDOf(pub)))
		if err1 != nil || err2 != nil {
			t.Fatalf("key %x: %v, %v", pub, err1, err2)
		}
		if agent.Node() != node || node.Agent() != agent || !agent.PublicKey().Equal(pub) || !node.PublicKey().Equal(pub) {
			t.Fatalf("key %x became %s and %s", pub, agent, node)
		}
	}
}

func TestMalformedIDsAreRefused(t *testing.T) {
	did, peer := knownKeys[0].did, knownKeys[0].peer
	n := 0
	for _, s := range []string{
		"", " ", "did:key:", "did:key:z", "did:key:z1", did + "\n", " " + did, did + "#" + did[8:], did + "?a=b", did + "/x",
		did[:len(did)-1], did + "1", "DID:key:" + did[8:], "did:key:Z" + did[9:], "did:key:" + did[9:], "did:web:example.org",
		did[:30] + "0" + did[31:], did[:30] + "\x00" + did[31:], did[:30] + "é" + did[31:],
		"did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", // secp256k1
		"did:key:z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc",  // X25519
		string(AgentIDOf(make([]byte, 31))), string(AgentIDOf(make([]byte, 33))), string(AgentIDOf(nil)),
		peer, strings.Repeat("z", 1<<20), "did:key:z" + strings.Repeat("1", 1<<20),
	} {
		n++
		id, err := ParseAgentID(s)
		if id != "" || AsError(err).Reason != "bad_did" || AsError(err).Kind != Invalid {
			t.Errorf("ParseAgentID(%.90q) = %q, %v; want bad_did", s, id, err)
		}
		if len(err.Error()) > 400 {
			t.Errorf("the error about %d bytes has %d", len(s), len(err.Error()))
		}
		if a := AgentID(s); a.PublicKey() != nil || a.Node() != "" {
			t.Errorf("%.90q has a key", s)
		}
	}
	for _, s := range []string{
		"", "1", peer + " ", "1" + peer, peer[:len(peer)-1], peer + "1", "l" + peer[1:], did,
		"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", // RSA
		string(NodeIDOf(make([]byte, 31))), string(NodeIDOf(nil)), strings.Repeat("1", 1<<20),
	} {
		n++
		id, err := ParseNodeID(s)
		if id != "" || AsError(err).Reason != "bad_peer_id" {
			t.Errorf("ParseNodeID(%.90q) = %q, %v; want bad_peer_id", s, id, err)
		}
		if p := NodeID(s); p.PublicKey() != nil || p.Agent() != "" {
			t.Errorf("%.90q has a key", s)
		}
	}
	t.Logf("accepted 0 of %d", n)
}

// TestWeakKeysAreRefused: points of small order, in each encoding, and y beyond p.
func TestWeakKeysAreRefused(t *testing.T) {
	n := 0
	refuse := func(pub ed25519.PublicKey) {
		t.Helper()
		n++
		if err := CheckKey(pub); AsError(err).Reason != "bad_key" {
			t.Errorf("CheckKey(%x) = %v, want bad_key", pub, err)
		}
		if _, err := ParseAgentID(string(AgentIDOf(pub))); AsError(err).Reason != "bad_did" {
			t.Errorf("ParseAgentID of %x = %v, want bad_did", pub, err)
		}
		if _, err := ParseNodeID(string(NodeIDOf(pub))); AsError(err).Reason != "bad_peer_id" {
			t.Errorf("ParseNodeID of %x = %v, want bad_peer_id", pub, err)
		}
	}
	for _, y := range smallOrder {
		for _, sign := range []byte{0, 0x80} {
			pub := bytes.Clone(y[:])
			pub[31] |= sign
			refuse(pub)
		}
	}
	for low := 0xed; low <= 0xff; low++ {
		for _, high := range []byte{0x7f, 0xff} {
			pub := bytes.Repeat([]byte{0xff}, 32)
			pub[0], pub[31] = byte(low), high
			refuse(pub)
		}
	}
	refuse(nil)
	refuse(make([]byte, 31))
	refuse(make([]byte, 64))
	t.Logf("accepted 0 of %d", n)

	// The neighbours of what is refused are not.
	for _, pub := range [][]byte{
		append([]byte{2}, make([]byte, 31)...),
		append(append([]byte{0xeb}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f),
		append(append([]byte{0xff, 0xfe}, bytes.Repeat([]byte{0xff}, 29)...), 0x7f),
	} {
		if err := CheckKey(pub); err != nil {
			t.Errorf("CheckKey(%x) = %v", pub, err)
		}
	}
}

// TestSmallOrderPointsAreWhatTheyAre: R = identity, S = 0 is a signature of some message
// under each point of small order, and the standard library takes it.
func TestSmallOrderPointsAreWhatTheyAre(t *testing.T) {
	sig := append([]byte{1}, make([]byte, 63)...)
	for _, y := range smallOrder {
		accepted := 0
		for i := range 200 {
			if ed25519.Verify(y[:], []byte{byte(i)}, sig) {
				accepted++
			}
		}
		if accepted == 0 {
			t.Errorf("%x does not behave like a point of small order", y)
		}
	}
}

func TestShortIsForPeopleOnly(t *testing.T) {
	id := AgentID(knownKeys[0].did)
	if got, want := id.Short(), "dX3mDooWp"[1:]; got != want {
		t.Errorf("Short() = %q, want %q", got, want)
	}
	if got := NodeID(knownKeys[0].peer).Short(); got != "4kx6nXTN" {
		t.Errorf("Short() = %q", got)
	}
	if got := AgentID("abc").Short(); got != "abc" {
		t.Errorf("Short() of a short string = %q", got)
	}
	if _, err := ParseAgentID(id.Short()); err == nil {
		t.Error("a short form was accepted as an id")
	}
}

// TestOneKeyHasOneName: no other string decodes to the same key.
func TestOneKeyHasOneName(t *testing.T) {
	did := knownKeys[0].did
	one := func(i uint8, c byte) bool {
		b := []byte(did)
		b[int(i)%len(b)] = c
		id, err := ParseAgentID(string(b))
		return err != nil || string(id) == did || !id.PublicKey().Equal(AgentID(did).PublicKey())
	}
	if err := quick.Check(one, &quick.Config{MaxCount: 5000}); err != nil {
		t.Error(err)
	}
}

func FuzzParseAgentID(f *testing.F) {
	for _, k := range knownKeys {
		f.Add(k.did)
		f.Add(k.peer)
	}
	f.Add("did:key:z" + strings.Repeat("1", 46))
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseAgentID(s); err == nil {
			if AgentIDOf(id.PublicKey()) != id || id.Node().Agent() != id || CheckKey(id.PublicKey()) != nil {
				t.Errorf("%q is not canonical", s)
			}
		} else if !errors.Is(err, NewError(Invalid, "bad_did", "", "")) {
			t.Errorf("%q: %v", s, err)
		}
		if id, err := ParseNodeID(s); err == nil && NodeIDOf(id.PublicKey()) != id {
			t.Errorf("%q is not canonical", s)
		}
	})
}

func BenchmarkParseAgentID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAgentID(knownKeys[0].did); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAgentIDOf(b *testing.B) {
	pub := AgentID(knownKeys[0].did).PublicKey()
	b.ReportAllocs()
	for b.Loop() {
		AgentIDOf(pub)
	}
}
