package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	shoal "github.com/shoalmesh/shoal"
)

var update = flag.Bool("update", false, "rewrite spec/vectors from buildIdentity and buildRecords")

const vectorDir = "../../spec/vectors"

// identityVectors is spec/vectors/identity.json.
type identityVectors struct {
	About      string       `json:"about"`
	Keys       []keyVector  `json:"keys"`
	BadKeys    []badVector  `json:"bad_keys"` // hex
	BadDIDs    []badVector  `json:"bad_dids"`
	BadPeerIDs []badVector  `json:"bad_peer_ids"`
	Cards      []cardVector `json:"cards"`
	Chains     []chain      `json:"chains"`
}

type keyVector struct {
	Seed   string `json:"seed"`
	Public string `json:"public"`
	DID    string `json:"did"`
	PeerID string `json:"peer_id"`
}

type badVector struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// cardVector holds a card as carried; exactly one of DID and Error is set.
type cardVector struct {
	Name    string `json:"name"`
	Card    string `json:"card"`
	Payload string `json:"payload,omitempty"` // the JCS that is signed
	DID     string `json:"did,omitempty"`
	Error   string `json:"error,omitempty"`
}

// chain holds statements as carried.
type chain struct {
	Name       string   `json:"name"`
	Root       string   `json:"root"`
	NowMs      int64    `json:"now_ms"`
	Statements []string `json:"statements"`
	Current    string   `json:"current,omitempty"` // "" with no Error: revoked
	Reason     string   `json:"reason,omitempty"`
	Head       string   `json:"head,omitempty"` // hex
	Error      string   `json:"error,omitempty"`
}

// recordVectors is spec/vectors/records.json. Bytes are hex.
type recordVectors struct {
	About      string            `json:"about"`
	Signatures []signatureVector `json:"signatures"`
	Trees      []treeVector      `json:"trees"`
	Envelopes  []envelopeVector  `json:"envelopes"`
	Receipts   []receiptVector   `json:"receipts"`
	Records    []recordVector    `json:"records"`
}

type signatureVector struct {
	Name      string `json:"name"`
	Public    string `json:"public"`
	Domain    string `json:"domain"`
	Network   string `json:"network"`
	Message   string `json:"message"`
	Input     string `json:"input,omitempty"`
	Signature string `json:"signature"`
	OK        bool   `json:"ok"`
}

type treeVector struct {
	Data   []string   `json:"data"`
	Leaves []string   `json:"leaves"`
	Root   string     `json:"root"`
	Proofs [][]string `json:"proofs"`
}

type envelopeVector struct {
	Name      string   `json:"name"`
	Network   string   `json:"network"`
	From      string   `json:"from"` // DID
	Headers   []string `json:"headers"`
	Bodies    []string `json:"bodies"`
	Root      string   `json:"root"`
	Signature string   `json:"signature"`
}

type receiptVector struct {
	Name           string `json:"name"`
	Network        string `json:"network"`
	Doer           string `json:"doer"`  // DID
	Asker          string `json:"asker"` // DID
	Body           string `json:"body"`
	DoerSignature  string `json:"doer_signature"`
	AskerSignature string `json:"asker_signature"`
}

// recordVector holds wire.Record as carried; without Error the rest is what it says.
type recordVector struct {
	Name        string `json:"name"`
	Network     string `json:"network"` // of the reader
	NowMs       int64  `json:"now_ms"`
	Record      string `json:"record"`
	Error       string `json:"error,omitempty"`
	Kind        string `json:"kind,omitempty"`
	Owner       string `json:"owner,omitempty"` // DID
	Seq         uint64 `json:"seq,omitempty"`
	NotBeforeMs int64  `json:"not_before_ms,omitempty"`
	NotAfterMs  int64  `json:"not_after_ms,omitempty"`
	Value       string `json:"value,omitempty"`
}

func readVectors[T any](t *testing.T, name string) (v T) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(vectorDir, name))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return shoal.AsError(err).Reason
}

// TestVectorsAreFresh fails if the files differ from what the code makes.
func TestVectorsAreFresh(t *testing.T) {
	check := func(name string, built, stored any) {
		if *update {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			e.SetIndent("", " ")
			if err := e.Encode(built); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(vectorDir, name), b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		if !reflect.DeepEqual(built, stored) {
			t.Errorf("spec/vectors/%s is not what the code makes: run go test ./internal/identity -update and read the diff", name)
		}
	}
	ids, recs := buildIdentity(t), buildRecords(t)
	if *update {
		check("identity.json", ids, nil)
		check("records.json", recs, nil)
		return
	}
	check("identity.json", ids, readVectors[identityVectors](t, "identity.json"))
	check("records.json", recs, readVectors[recordVectors](t, "records.json"))
}

func TestVectorsOfIdentifiers(t *testing.T) {
	v := readVectors[identityVectors](t, "identity.json")
	for _, k := range v.Keys {
		key, err := FromSeed(unhex(t, k.Seed))
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(key.Public()) != k.Public || string(key.Agent()) != k.DID || string(key.Node()) != k.PeerID {
			t.Errorf("seed %s: got %x %s %s, want %+v", k.Seed, key.Public(), key.Agent(), key.Node(), k)
		}
		did, err1 := shoal.ParseAgentID(k.DID)
		peer, err2 := shoal.ParseNodeID(k.PeerID)
		if err1 != nil || err2 != nil || did.Node() != peer || peer.Agent() != did {
			t.Errorf("%s and %s are not each other's: %v %v", k.DID, k.PeerID, err1, err2)
		}
	}
	for _, b := range v.BadKeys {
		if err := shoal.CheckKey(unhex(t, b.Value)); reasonOf(err) != "bad_key" {
			t.Errorf("key %s: got %v, want bad_key", b.Name, err)
		}
	}
	for _, b := range v.BadDIDs {
		if _, err := shoal.ParseAgentID(b.Value); reasonOf(err) != "bad_did" {
			t.Errorf("did %s: got %v, want bad_did", b.Name, err)
		}
	}
	for _, b := range v.BadPeerIDs {
		if _, err := shoal.ParseNodeID(b.Value); reasonOf(err) != "bad_peer_id" {
			t.Errorf("peer id %s: got %v, want bad_peer_id", b.Name, err)
		}
	}
}

func TestVectorsOfCards(t *testing.T) {
	for _, c := range readVectors[identityVectors](t, "identity.json").Cards {
		_, id, err := VerifyCard([]byte(c.Card))
		if reasonOf(err) != c.Error || string(id) != c.DID {
			t.Errorf("card %s: got %q, %v; want %q, %q", c.Name, id, err, c.DID, c.Error)
		}
		if c.Error != "" {
			continue
		}
		o, err := parseObject([]byte(c.Card))
		if err != nil {
			t.Fatal(err)
		}
		if payload, err := o.canonical("signatures"); string(payload) != c.Payload || err != nil {
			t.Errorf("card %s: signed %s, %v; want %s", c.Name, payload, err, c.Payload)
		}
	}
}

func TestVectorsOfChains(t *testing.T) {
	for _, c := range readVectors[identityVectors](t, "identity.json").Chains {
		var raws [][]byte
		for _, s := range c.Statements {
			raws = append(raws, []byte(s))
		}
		l, err := VerifyChain(shoal.AgentID(c.Root), raws, time.UnixMilli(c.NowMs))
		if reasonOf(err) != c.Error {
			t.Errorf("chain %s: got %v, want %q", c.Name, err, c.Error)
		}
		if err == nil && (string(l.Current()) != c.Current || l.Reason != c.Reason || hex.EncodeToString(l.Head[:]) != c.Head) {
			t.Errorf("chain %s: got %+v, want %+v", c.Name, l, c)
		}
	}
}

func TestVectorsOfSignatures(t *testing.T) {
	for _, s := range readVectors[recordVectors](t, "records.json").Signatures {
		pub, msg, sig := unhex(t, s.Public), unhex(t, s.Message), unhex(t, s.Signature)
		if err := Verify(pub, Domain(s.Domain), s.Network, msg, sig); (err == nil) != s.OK {
			t.Errorf("signature %s: got %v, want ok %v", s.Name, err, s.OK)
		}
		if input, err := signingInput(Domain(s.Domain), s.Network, msg); s.OK && (hex.EncodeToString(input) != s.Input || err != nil) {
			t.Errorf("signature %s: input %x, %v; want %s", s.Name, input, err, s.Input)
		}
	}
}

func TestVectorsOfTrees(t *testing.T) {
	for _, v := range readVectors[recordVectors](t, "records.json").Trees {
		var leaves [][32]byte
		for i, d := range v.Data {
			leaf := LeafHash(unhex(t, d))
			leaves = append(leaves, leaf)
			if hex.EncodeToString(leaf[:]) != v.Leaves[i] {
				t.Errorf("leaf %d of %d: got %x, want %s", i, len(v.Data), leaf, v.Leaves[i])
			}
		}
		root := TreeRoot(leaves)
		if hex.EncodeToString(root[:]) != v.Root {
			t.Errorf("root of %d: got %x, want %s", len(leaves), root, v.Root)
		}
		for i, proof := range v.Proofs {
			var hashes [][32]byte
			for _, h := range proof {
				hashes = append(hashes, [32]byte(unhex(t, h)))
			}
			if !VerifyProof(root, leaves[i], i, len(leaves), hashes) {
				t.Errorf("proof %d of %d does not verify", i, len(leaves))
			}
		}
	}
}

func TestVectorsOfEnvelopesAndReceipts(t *testing.T) {
	v := readVectors[recordVectors](t, "records.json")
	for _, e := range v.Envelopes {
		var leaves [][32]byte
		for _, h := range e.Headers {
			leaves = append(leaves, LeafHash(unhex(t, h)))
		}
		root := TreeRoot(leaves)
		from := shoal.AgentID(e.From).PublicKey()
		if err := Verify(from, DomainEnvelope, e.Network, root[:], unhex(t, e.Signature)); err != nil || hex.EncodeToString(root[:]) != e.Root {
			t.Errorf("envelopes %s: root %x, %v; want %s", e.Name, root, err, e.Root)
		}
	}
	for _, r := range v.Receipts {
		body := unhex(t, r.Body)
		if err := Verify(shoal.AgentID(r.Doer).PublicKey(), DomainReceipt, r.Network, body, unhex(t, r.DoerSignature)); err != nil {
			t.Errorf("receipt %s, doer: %v", r.Name, err)
		}
		if err := Verify(shoal.AgentID(r.Asker).PublicKey(), DomainReceipt, r.Network, body, unhex(t, r.AskerSignature)); err != nil {
			t.Errorf("receipt %s, asker: %v", r.Name, err)
		}
	}
}

func TestVectorsOfRecords(t *testing.T) {
	for _, v := range readVectors[recordVectors](t, "records.json").Records {
		r, err := OpenRecord(v.Network, unhex(t, v.Record), time.UnixMilli(v.NowMs))
		if reasonOf(err) != v.Error {
			t.Errorf("record %s: got %v, want %q", v.Name, err, v.Error)
		}
		if v.Error != "" {
			continue
		}
		want := shoal.Record{
			Kind: v.Kind, Owner: shoal.AgentID(v.Owner), Seq: v.Seq, Value: append([]byte(nil), unhex(t, v.Value)...),
			NotBefore: time.UnixMilli(v.NotBeforeMs).UTC(), NotAfter: time.UnixMilli(v.NotAfterMs).UTC(),
		}
		if !reflect.DeepEqual(r, want) {
			t.Errorf("record %s: got %+v, want %+v", v.Name, r, want)
		}
	}
}

// TestVectorsInPython runs the checker that shares no line with this package.
func TestVectorsInPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 here")
	}
	out, err := exec.CommandContext(t.Context(), python, filepath.Join(vectorDir, "check.py")).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// TestKeysOfOtherDocuments uses keys of other people's documents: our own code cannot be wrong twice
// in the same way. RFC 8032 §7.1 test 1; the did:key v0.7 test vectors; W3C CCG did:key
// example; the libp2p peer-ids spec's Ed25519 key, its id made with go-libp2p v0.51.
func TestKeysOfOtherDocuments(t *testing.T) {
	for _, c := range []struct{ seed, public, did string }{
		{"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", ""},
		{"0000000000000000000000000000000000000000000000000000000000000000", "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29", "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"},
		{"", "2e6fcce36701dc791488e0d0b1745cc1e33a4c1c9fcc41c63bd343dbbe0970e6", "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"},
		{"7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d", "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e", ""},
	} {
		pub := ed25519.PublicKey(unhex(t, c.public))
		if c.seed != "" {
			if k, err := FromSeed(unhex(t, c.seed)); err != nil || !k.Public().Equal(pub) {
				t.Errorf("seed %s: got %x, %v; want %s", c.seed, k.Public(), err, c.public)
			}
		}
		if got := shoal.AgentIDOf(pub); c.did != "" && string(got) != c.did {
			t.Errorf("key %s: got %s, want %s", c.public, got, c.did)
		}
	}
}
