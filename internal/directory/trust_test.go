package directory

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
)

// putRecord puts a card into the DHT as it comes, from that node.
func putRecord(t testing.TB, from *node, key identity.Key, card []byte, seq uint64) {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	raw, err := identity.SignRecord(key, testNet, shoal.Record{
		Kind: kindCard, Owner: key.Agent(), Seq: seq, NotBefore: now, NotAfter: now.Add(time.Hour), Value: card,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := from.mesh.PutRecord(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
}

// liar starts a node that provides a capability and answers as it is told to.
func liar(t testing.TB, n *meshtest.Net, name, capability string, answer func(context.Context, net.Conn)) *meshtest.Mesh {
	t.Helper()
	m := n.Node(testKey(t, name), testNet)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	l := listen(t, m)
	wg.Go(func() { serve(ctx, l, answer) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	synctest.Wait()
	if err := m.Provide(t.Context(), shoal.CapabilityPrefix+capability); err != nil {
		t.Fatal(err)
	}
	return m
}

// serving answers every request with these cards.
func serving(cards ...[]byte) func(context.Context, net.Conn) {
	return func(_ context.Context, c net.Conn) {
		defer c.Close()
		var req wire.CardRequest
		if readFrame(c, maxRequest, &req) == nil {
			_ = writeFrame(c, &wire.CardResponse{Cards: cards})
		}
	}
}

// forgery is a single change of an accepted card, and the reason to refuse it.
type forgery struct {
	name   string
	raw    []byte
	reason string
}

// forgeries returns changes of control, the card of victim, who is hosted by the node
// with the same key. The last ones are good cards that come too late.
func forgeries(t testing.TB, victim, other identity.Key, control []byte, now time.Time) []forgery {
	sign := func(change func(*params)) []byte { return signCard(t, victim, now, change, "ocr") }
	swap := func(old, new string) []byte {
		if !bytes.Contains(control, []byte(old)) {
			t.Fatalf("control has no %q", old)
		}
		return bytes.Replace(control, []byte(old), []byte(new), 1)
	}
	out := []forgery{
		{"expired", sign(func(p *params) {
			p.NotBefore, p.NotAfter = now.Add(-2*time.Hour), now.Add(-Tolerance-time.Second)
		}), "card_expired"},
		{"not yet valid", sign(func(p *params) {
			p.NotBefore, p.NotAfter = now.Add(Tolerance+2*time.Second), now.Add(time.Hour)
		}), "card_not_yet_valid"},
		{"valid too long", sign(func(p *params) { p.NotAfter = p.NotBefore.Add(MaxLife + time.Second) }), "bad_card"},
		{"ends before it begins", sign(func(p *params) { p.NotAfter = p.NotBefore.Add(-time.Second) }), "bad_card"},
		{"other network", sign(func(p *params) { p.Network = "other" }), "card_wrong_network"},
		{"no network", sign(func(p *params) { p.Network = "" }), "card_wrong_network"},
		{"sequence number 0", sign(func(p *params) { p.Seq = 0 }), "bad_card"},
		{"no node", sign(func(p *params) { p.Node = "" }), "bad_card"},
		{"junk node", sign(func(p *params) { p.Node = "12D3KooW" }), "bad_card"},
		{"other agent", signCard(t, other, now, nil, "ocr"), "card_wrong_agent"},
		{"name changed", swap(`"name":"control"`, `"name":"contro1"`), "bad_signature"},
		{"skill changed", swap(`"id":"ocr"`, `"id":"pay"`), "bad_signature"},
		{"node swapped", bytes.ReplaceAll(control, []byte(victim.Node()), []byte(other.Node())), "bad_signature"},
		{"sequence number raised", swap(`"seq":9`, `"seq":99`), "bad_signature"},
		{"member added", swap(`"version":`, `"verified":true,"version":`), "bad_signature"},
		{"optional member removed", swap(`,"streaming":true`, ``), "bad_signature"},
		{"did swapped", swapDID(t, control, victim, other), "bad_signature"},
		{"unsigned", swap(`"signatures":[`, `"signatures":[],"x":[`), "bad_card"},
		{"duplicate key", swap(`{`, `{"name":"evil",`), "bad_card"},
		{"truncated", control[:len(control)-2], "bad_card"},
		{"trailing bytes", append(bytes.Clone(control), "{}"...), "bad_card"},
		{"padded over 8 KiB", append(bytes.Clone(control), bytes.Repeat([]byte(" "), MaxCard)...), "bad_card"},
		{"empty", []byte{}, "bad_card"},
		{"deeply nested", []byte(strings.Repeat("[", 4000)), "bad_card"},
	}
	// Every byte of the signature matters.
	at := bytes.Index(control, []byte(`"signature":"`)) + len(`"signature":"`)
	for i := range 20 {
		raw := bytes.Clone(control)
		raw[at+4*i] = map[bool]byte{true: 'B', false: 'A'}[raw[at+4*i] == 'A']
		out = append(out, forgery{fmt.Sprintf("signature byte %d", 4*i), raw, "bad_signature"})
	}
	out = append(out, changedCards(t, victim, now)...)
	return append(out,
		forgery{"replayed: lower sequence number", sign(func(p *params) { p.Seq-- }), "card_stale"},
		forgery{"same sequence number, other content", sign(func(p *params) { p.NotAfter = p.NotAfter.Add(-time.Minute) }), "card_conflict"})
}

// changedCards are signed by the right key, but break a rule on what a card holds.
func changedCards(t testing.TB, key identity.Key, now time.Time) []forgery {
	now = now.UTC().Truncate(time.Second)
	p := params{Seq: uint64(now.UnixMilli()) + 1, NotBefore: now, NotAfter: now.Add(time.Hour), Node: key.Node(), Network: testNet}
	param := func(name string, to any) func(*a2a.AgentCard) {
		return func(c *a2a.AgentCard) {
			if to == nil {
				delete(c.Capabilities.Extensions[0].Params, name)
				return
			}
			c.Capabilities.Extensions[0].Params[name] = to
		}
	}
	var out []forgery
	for _, f := range []struct {
		name   string
		change func(*a2a.AgentCard)
	}{
		{"no extension", func(c *a2a.AgentCard) { c.Capabilities.Extensions = nil }},
		{"extension twice", func(c *a2a.AgentCard) {
			c.Capabilities.Extensions = append(c.Capabilities.Extensions, c.Capabilities.Extensions[0])
		}},
		{"extension of another version", func(c *a2a.AgentCard) { c.Capabilities.Extensions[0].URI = ExtensionURI + ".1" }},
		{"seq is missing", param("seq", nil)},
		{"seq is text", param("seq", "12")},
		{"seq is negative", param("seq", -1)},
		{"seq is a fraction", param("seq", 1.5)},
		{"not_before is missing", param("not_before", nil)},
		{"not_after is missing", param("not_after", nil)},
		{"not_after is a number", param("not_after", 1700000000)},
		{"not_after is no date", param("not_after", "tomorrow")},
		{"network is a list", param("network", []string{testNet})},
		{"skills is a list", param("skills", []string{"ocr"})},
		{"withdrawn, with skills", param("withdrawn", true)},
		{"no interface", func(c *a2a.AgentCard) { c.SupportedInterfaces = []*a2a.AgentInterface{} }},
		{"two interfaces", func(c *a2a.AgentCard) {
			c.SupportedInterfaces = append(c.SupportedInterfaces, c.SupportedInterfaces[0])
		}},
		{"interface of another node", func(c *a2a.AgentCard) {
			c.SupportedInterfaces[0].URL = urlPrefix + string(testKey(t, "other").Node())
		}},
		{"interface with another binding", func(c *a2a.AgentCard) { c.SupportedInterfaces[0].ProtocolBinding = "JSONRPC" }},
		{"no name", func(c *a2a.AgentCard) { c.Name = "" }},
		{"name too long", func(c *a2a.AgentCard) { c.Name = strings.Repeat("n", maxName+1) }},
		{"name with a control character", func(c *a2a.AgentCard) { c.Name = "a\x1b[2Jb" }},
		{"skill id is not a capability", func(c *a2a.AgentCard) { c.Skills[0].ID = "OCR please" }},
		{"skill id with the prefix", func(c *a2a.AgentCard) { c.Skills[0].ID = shoal.CapabilityPrefix + "ocr" }},
		{"skill twice", func(c *a2a.AgentCard) { c.Skills = append(c.Skills, c.Skills[0]) }},
		{"too many skills", func(c *a2a.AgentCard) {
			for i := range maxSkills {
				c.Skills = append(c.Skills, a2a.AgentSkill{ID: fmt.Sprint("s", i), Tags: []string{}})
			}
		}},
	} {
		card := newCard(spec(key.Agent(), "control", "ocr"), p)
		f.change(card)
		raw, err := identity.SignCard(card, key)
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		out = append(out, forgery{f.name, raw, "bad_card"})
	}
	return out
}

// swapDID puts other's key id in the signature's header, so that the card would be other's.
func swapDID(t testing.TB, control []byte, victim, other identity.Key) []byte {
	t.Helper()
	raw := signCard(t, other, time.Now(), nil, "ocr")
	header := func(b []byte) string {
		s := string(b)
		i := strings.Index(s, `"protected":"`) + len(`"protected":"`)
		return s[i : i+strings.IndexByte(s[i:], '"')]
	}
	return bytes.Replace(control, []byte(header(control)), []byte(header(raw)), 1)
}

func TestForgedCardsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		victim, other := testKey(t, "victim"), testKey(t, "other")
		now := time.Now()
		control := signCard(t, victim, now, nil, "ocr")
		asker := newNode(t, net, "asker")
		if c, err := asker.dir.accept(t.Context(), control, victim.Node(), victim.Agent()); err != nil || c.Name != "control" {
			t.Fatalf("the control is refused: %v", err)
		}
		n, accepted := 0, 0
		reasons := map[string]int{}
		for _, f := range forgeries(t, victim, other, control, now) {
			_, err := asker.dir.accept(t.Context(), f.raw, victim.Node(), victim.Agent())
			n++
			if err == nil {
				accepted++
				t.Errorf("%s: accepted", f.name)
				continue
			}
			got := shoal.AsError(err).Reason
			if reasons[got]++; got != f.reason {
				t.Errorf("%s: refused with %s (%v), want %s", f.name, got, err, f.reason)
			}
			if c, ok := asker.dir.Knows(victim.Agent()); !ok || !bytes.Equal(c.Raw, control) {
				t.Errorf("%s: the control is not what is known any more", f.name)
			}
		}
		t.Logf("accepted %d of %d forged cards; refused by reason: %v", accepted, n, reasons)
	})
}

// As above, but nothing is known before, and the cards come over the mesh from a node
// that provides the capability.
func TestForgedCardsAreNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		victim, other := testKey(t, "victim"), testKey(t, "other")
		now := time.Now()
		control := signCard(t, victim, now, nil, "ocr")
		asker := newNode(t, net, "asker")
		n, found := 0, 0
		for _, f := range forgeries(t, victim, other, control, now) {
			switch f.reason {
			case "card_stale", "card_conflict", "card_wrong_agent":
				continue // good cards, to who knows and asks nothing else
			}
			m := liar(t, net, "victim", "ocr", serving(f.raw))
			n++
			if got := asker.find("ocr", true); len(got) != 0 {
				found++
				t.Errorf("%s: found %v", f.name, got)
			}
			if c, err := asker.dir.Resolve(t.Context(), victim.Agent(), true); err == nil {
				found++
				t.Errorf("%s: resolved %v", f.name, c)
			}
			m.Close()
		}
		liar(t, net, "victim", "ocr", serving(control))
		wantNames(t, "the control", asker.find("ocr", true), "control")
		t.Logf("found %d of %d forged cards", found, n)
	})
}

func TestThirdNodeChangesNothingForAnyone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		a, b, evil := newNode(t, net, "a"), newNode(t, net, "b"), newNode(t, net, "evil")
		id := a.agent("echo", "echo")
		settleDown()
		genuine, _ := a.dir.Knows(id)
		victim, evilKey := testKey(t, "agent echo"), testKey(t, "evil")
		future := genuine.Seq + 1000

		// Cards with a higher number under the victim's name, signed by another key.
		own := signCard(t, evilKey, time.Now(), func(p *params) { p.Seq = future }, "echo")
		altered := bytes.Replace(genuine.Raw, fmt.Appendf(nil, `"seq":%d`, genuine.Seq), fmt.Appendf(nil, `"seq":%d`, future), 1)
		named := swapDID(t, own, evilKey, victim)

		refused := 0
		for what, card := range map[string][]byte{"own": own, "altered": altered, "named": named} {
			rec, err := identity.SignRecord(evilKey, testNet, shoal.Record{
				Kind: kindCard, Owner: evilKey.Agent(), Seq: future,
				NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), Value: card,
			})
			if err != nil {
				t.Fatal(err)
			}
			// The record's owner is replaced by the victim.
			rec = bytes.ReplaceAll(rec, evilKey.Public(), victim.Public())
			if err := evil.mesh.PutRecord(t.Context(), rec); err != nil {
				refused++
			} else {
				t.Errorf("%s: the mesh took the record", what)
			}
		}
		evil.stop()
		liar(t, net, "evil", "echo", serving(altered, named))
		for _, fresh := range []bool{false, true} {
			c, err := b.dir.Resolve(t.Context(), id, fresh)
			if err != nil || !bytes.Equal(c.Raw, genuine.Raw) {
				t.Errorf("resolve: %v %v", c.Seq, err)
			}
			wantNames(t, "find", b.find("echo", fresh), "echo")
		}
		t.Logf("%d of 3 records refused", refused)
	})
}

func TestOlderCardIsNeverAcceptedAfterANewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		asker := newNode(t, net, "asker", func(c *Config) { c.MaxKnown = 2 })
		key := testKey(t, "victim")
		now := time.Now()
		old := signCard(t, key, now, func(p *params) { p.Seq-- }, "ocr")
		good := signCard(t, key, now, nil, "ocr")
		try := func(what string, raw []byte, want error) {
			t.Helper()
			_, err := asker.dir.accept(t.Context(), raw, key.Node(), "")
			wantErr(t, what, err, want)
		}
		try("first", old, nil)
		try("newer", good, nil)
		try("replayed", old, ErrStale)
		synctest.Wait()
		asker.restart()
		try("replayed after a restart", old, ErrStale)
		for i := range 4 { // pushes it out of memory
			k := testKey(t, fmt.Sprint("crowd ", i))
			if _, err := asker.dir.accept(t.Context(), signCard(t, k, now, nil, "ocr"), k.Node(), ""); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := asker.dir.Knows(key.Agent()); ok {
			t.Fatal("not forgotten; the test tests nothing")
		}
		try("replayed when forgotten", old, ErrStale)
		try("the newest, again", good, nil)

		// Two cards with one number: the first stays.
		twin := signCard(t, key, now, func(p *params) { p.NotAfter = p.NotAfter.Add(-time.Minute) }, "pay")
		try("twin", twin, ErrConflict)
		time.Sleep(30 * time.Hour) // pins go, the cards have expired anyhow
		try("replayed when expired", old, ErrExpired)
	})
}

func TestLyingNodesNeitherBreakNorDelayFind(t *testing.T) {
	huge := append(binary.AppendUvarint(nil, 1<<62), 'x')
	declared := append(binary.AppendUvarint(nil, maxAnswer), "few"...)
	tooMany := make([][]byte, askCards+1)
	liars := map[string]func(context.Context, net.Conn){
		"huge length": func(_ context.Context, c net.Conn) { _, _ = c.Write(huge); c.Close() },
		"more declared than sent": func(_ context.Context, c net.Conn) {
			_, _ = c.Write(declared)
			c.Close()
		},
		"junk":      func(_ context.Context, c net.Conn) { _, _ = c.Write([]byte("\x05HTTP/1.1 200 OK")); c.Close() },
		"hang up":   func(_ context.Context, c net.Conn) { c.Close() },
		"silence":   func(ctx context.Context, c net.Conn) { <-ctx.Done(); c.Close() },
		"junk card": serving([]byte("{}"), []byte("null"), nil),
		"too many":  serving(tooMany...),
		"big cards": serving(bytes.Repeat([]byte("["), 7000), bytes.Repeat([]byte("{"), 9000)),
		"drip": func(ctx context.Context, c net.Conn) {
			defer c.Close()
			body, _ := proto.Marshal(&wire.CardResponse{Cards: [][]byte{make([]byte, 1000)}})
			for _, b := range append(binary.AppendUvarint(nil, uint64(len(body))), body...) {
				select {
				case <-time.After(500 * time.Millisecond):
				case <-ctx.Done():
					return
				}
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
		},
	}
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		a, b := newNode(t, net, "a"), newNode(t, net, "b")
		a.agent("echo", "echo")
		settleDown()
		for name, answer := range liars {
			liar(t, net, "liar "+name, "echo", answer)
		}
		for i := range 30 {
			liar(t, net, fmt.Sprint("silent ", i), "echo", liars["silence"])
		}
		start := time.Now()
		wantNames(t, "find among liars", b.find("echo", true), "echo")
		took := time.Since(start)
		if limit := b.dir.cfg.NodeTimeout + 100*time.Millisecond; took > limit {
			t.Errorf("find took %s, at most %s", took, limit)
		}
		t.Logf("find among %d liars took %s", len(liars)+30, took)
	})
}

// A node that serves a card naming another host does not speak for that host.
func TestCardFromThirdNodeIsCheckedWithItsHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		a, b := newNode(t, net, "a"), newNode(t, net, "b")
		a.rerun(func(m Mesh) Mesh { return noDHT{m} }) // only the replayer is found in the DHT
		id := a.agent("echo", "echo")
		old, _ := a.dir.Knows(id)
		time.Sleep(time.Minute)
		if err := a.dir.Publish(t.Context(), spec(id, "echo", "other")); err != nil {
			t.Fatal(err)
		}
		// The replayed card is genuine, and older than what b has never seen.
		liar(t, net, "replayer", "echo", serving(old.Raw))
		wantNames(t, "the skill that was dropped", b.find("echo", true))
		wantNames(t, "the skill that is there", b.find("other", true), "echo")
	})
}

func TestRecordOfAnotherKindOrOwnerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newNode(t, meshtest.New(1), "b")
		key, other := testKey(t, "victim"), testKey(t, "other")
		now := time.Now()
		card := signCard(t, key, now, nil, "ocr")
		record := func(k identity.Key, change func(*shoal.Record)) []byte {
			r := shoal.Record{Kind: kindCard, Owner: k.Agent(), Seq: 1, NotBefore: now, NotAfter: now.Add(time.Hour), Value: card}
			change(&r)
			raw, err := identity.SignRecord(k, testNet, r)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		n := 0
		for name, raw := range map[string][]byte{
			"kind":    record(key, func(r *shoal.Record) { r.Kind = "name" }),
			"owner":   record(other, func(*shoal.Record) {}),
			"value":   record(key, func(r *shoal.Record) { r.Value = signCard(t, other, now, nil, "ocr") }),
			"expired": record(key, func(r *shoal.Record) { r.NotBefore, r.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }),
			"junk":    []byte("junk"),
			"nothing": nil,
		} {
			b.rerun(func(m Mesh) Mesh { return fakeRecord{noDHT{m}, raw} })
			n++
			if c, err := b.dir.Resolve(t.Context(), key.Agent(), false); !errors.Is(err, ErrNotVerified) {
				t.Errorf("%s: got %v, %v", name, c.Agent, err)
			}
		}
		t.Logf("accepted 0 of %d records", n)
		good := record(key, func(*shoal.Record) {})
		b.rerun(func(m Mesh) Mesh { return fakeRecord{noDHT{m}, good} })
		if _, err := b.dir.Resolve(t.Context(), key.Agent(), false); err != nil {
			t.Errorf("the control: %v", err)
		}
	})
}

func TestFrameIsBoundedBeforeItIsRead(t *testing.T) {
	body := bytes.Repeat([]byte("x"), maxRequest+1)
	for name, r := range map[string]io.Reader{
		"declared": iotest.TimeoutReader(bytes.NewReader(binary.AppendUvarint(nil, 1<<40))),
		"one more": bytes.NewReader(append(binary.AppendUvarint(nil, uint64(len(body))), body...)),
	} {
		if err := readFrame(r, maxRequest, &wire.CardRequest{}); !errors.Is(err, errBadFrame) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	short := append(binary.AppendUvarint(nil, 100), "short"...)
	if err := readFrame(bytes.NewReader(short), maxRequest, &wire.CardRequest{}); !errors.Is(err, io.EOF) {
		t.Errorf("short frame: %v", err)
	}
}

func TestResolveSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		b := newNode(t, net, "b")
		key := testKey(t, "victim")
		_, err := b.dir.Resolve(t.Context(), key.Agent(), false)
		wantErr(t, "alone", err, ErrUnknownAgent)
		m := liar(t, net, "victim", "ocr", serving([]byte(`{"name":"evil"}`)))
		_, err = b.dir.Resolve(t.Context(), key.Agent(), false)
		wantErr(t, "only lies", err, ErrNotVerified)
		m.Close()
		late := signCard(t, key, time.Now(), func(p *params) {
			p.NotBefore, p.NotAfter = time.Now().Add(23*time.Hour), time.Now().Add(24*time.Hour)
		}, "ocr")
		liar(t, net, "victim", "ocr", serving(late))
		_, err = b.dir.Resolve(t.Context(), key.Agent(), false)
		wantErr(t, "host's clock ahead", err, ErrNotYetValid)
		if err != nil && !strings.Contains(err.Error(), "clock differs by 23h") {
			t.Errorf("the error does not say by how much the clock differs: %v", err)
		}
		_, err = b.dir.Resolve(t.Context(), "did:web:example.org", false)
		if shoal.AsError(err).Reason != "bad_did" {
			t.Errorf("did:web: %v", err)
		}
	})
}
