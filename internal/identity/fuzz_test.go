package identity

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/gowebpki/jcs"
	shoal "github.com/shoalmesh/shoal"
)

// FuzzVerifyCard: whatever is accepted was signed by a key that the corpus has, and
// says what the control says. Nothing panics.
func FuzzVerifyCard(f *testing.F) {
	accepted := map[string]bool{}
	for _, c := range cardCases(f) {
		f.Add([]byte(c.card))
		if c.want == "" {
			card, _, err := VerifyCard([]byte(c.card))
			if err != nil {
				f.Fatal(err)
			}
			accepted[string(mustJSON(f, unsigned(card)))] = true
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		card, id, err := VerifyCard(raw)
		if err != nil {
			if r := reasonOf(err); r != "bad_card" && r != "bad_signature" || id != "" || card != nil {
				t.Errorf("got %v %q, %v", card, id, err)
			}
			return
		}
		if !accepted[string(mustJSON(t, unsigned(card)))] {
			t.Errorf("a card that nobody signed is accepted for %s: %s", id, raw)
		}
	})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unsigned returns a copy of card without its signatures.
func unsigned(card *a2a.AgentCard) *a2a.AgentCard {
	c := *card
	c.Signatures = nil
	return &c
}

// FuzzOpenRecord: only the controls' bytes are accepted.
func FuzzOpenRecord(f *testing.F) {
	controls := map[string]bool{}
	for _, c := range recordCases(f) {
		f.Add(c.raw)
		if _, err := OpenRecord(testNetwork, c.raw, testNow); err == nil {
			controls[string(c.raw)] = true
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := OpenRecord(testNetwork, raw, testNow); err == nil && !controls[string(raw)] {
			t.Errorf("accepted %x as %+v", raw, r)
		}
	})
}

// FuzzStatement: only what the control says is accepted, in whatever spelling.
func FuzzStatement(f *testing.F) {
	heads := map[[32]byte]bool{}
	root := NewLineage(testKey(f, 1).Agent())
	for _, c := range chainCases(f) {
		for _, s := range c.Statements {
			f.Add([]byte(s))
			if l, err := root.Apply([]byte(s), testNow); err == nil {
				heads[l.Head] = true
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if l, err := root.Apply(raw, testNow); err == nil && !heads[l.Head] {
			t.Errorf("accepted %s", raw)
		}
	})
}

// FuzzKeyFile: a key file is accepted in one spelling only.
func FuzzKeyFile(f *testing.F) {
	text := formatKey(testKey(f, 1))
	f.Add(text)
	f.Add(formatKey(testKey(f, 2)))
	f.Add([]byte(keyMagic))
	f.Add(text[:len(text)-1])
	f.Add(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := parseKey(text); err == nil && !bytes.Equal(formatKey(k), text) {
			t.Errorf("accepted %q", text)
		}
	})
}

// FuzzStrictJSON: what is accepted is what encoding/json reads, and its canonical form
// means the same and does not change again.
func FuzzStrictJSON(f *testing.F) {
	for _, c := range cardCases(f) {
		f.Add([]byte(c.card))
	}
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":-0}`, `{"a":1e-7,"b":1e21}`, `{"\ud800":1}`, `{"a":"\ud83d\ude00"}`, `{"\\ud800":1}`,
		`{"a":"\\","b":"\\\""}`, `{"a":{"a":1},"b":[{"a":1},{"a":2}]}`, `{"a":1,"A":2}`, `[1]`, `"x"`, `{"a":9007199254740992}`,
		`{"€":"\u0000","\r":1,"1":2,"😀":3,"דּ":4}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > MaxCard {
			return
		}
		o, err := parseObject(raw)
		if err != nil {
			return
		}
		once, err := o.canonical()
		if err != nil {
			return // such as a number that rounds to infinity
		}
		twice, err := jcs.Transform(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("canonical form of %q changes: %q, then %q, %v", raw, once, twice, err)
		}
		var before, after any
		if err1, err2 := json.Unmarshal(raw, &before), json.Unmarshal(once, &after); err1 != nil || err2 != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q became %q: %v, %v", raw, once, err1, err2)
		}
		if _, err := parseObject(once); err != nil {
			t.Errorf("canonical form %q is refused: %v", once, err)
		}
	})
}

// FuzzVerify: no input but the control's verifies, and none panics.
func FuzzVerify(f *testing.F) {
	k := testKey(f, 1)
	msg := []byte("msg")
	f.Add([]byte(k.Public()), string(DomainRecord), testNetwork, msg, k.Sign(DomainRecord, testNetwork, msg))
	f.Add([]byte(nil), "", "", []byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, pub []byte, domain, network string, msg, sig []byte) {
		err := Verify(pub, Domain(domain), network, msg, sig)
		control := domain == string(DomainRecord) && network == testNetwork && string(msg) == "msg" && bytes.Equal(pub, k.Public())
		if err == nil && !control {
			t.Errorf("accepted key %x, %q, %q, %q, %x", pub, domain, network, msg, sig)
		}
	})
}

// FuzzChainRoot: a root is a string from anywhere.
func FuzzChainRoot(f *testing.F) {
	f.Add("", []byte("{}"))
	f.Add("did:key:z6Mk", []byte(`{"type":"shoal/rotation/v1"}`))
	f.Fuzz(func(t *testing.T, root string, raw []byte) {
		if l, err := VerifyChain(shoal.AgentID(root), [][]byte{raw}, testNow); err == nil {
			t.Errorf("accepted %s about %q as %+v", raw, root, l)
		}
	})
}
