package mail_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mail"
)

// draft is a frame before it is signed, built with the generated code rather than with
// mail's own codec, so that the two check each other.
type draft struct {
	heads   []*wire.EnvelopeHeader
	bodies  [][]byte
	signer  identity.Key
	network string          // of the signature
	domain  identity.Domain // of the signature
	after   func(*wire.MailFrame)
	raw     func([]byte) []byte // the frame with its length prefix
}

func newDraft(from identity.Key, to shoal.AgentID, seqs ...uint64) *draft {
	d := &draft{signer: from, network: "test", domain: identity.DomainEnvelope}
	now := time.Now()
	for _, seq := range seqs {
		body := fmt.Appendf(nil, "body %d", seq)
		sum := sha256.Sum256(body)
		d.bodies = append(d.bodies, body)
		d.heads = append(d.heads, &wire.EnvelopeHeader{
			Version: 1, Id: slices.Repeat([]byte{7}, 16), Network: "test", From: from.Public(), To: to.PublicKey(),
			Topic: topic, Epoch: 5, Seq: seq, CreatedMs: now.UnixMilli(), ExpiresMs: now.Add(time.Hour).UnixMilli(), BodyHash: sum[:],
		})
	}
	return d
}

func (d *draft) frame(t testing.TB) []byte {
	t.Helper()
	f := &wire.MailFrame{}
	var leaves [][32]byte
	for i, h := range d.heads {
		head, err := proto.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		f.Envelopes = append(f.Envelopes, &wire.SealedEnvelope{Header: head, Body: d.bodies[i]})
		leaves = append(leaves, identity.LeafHash(head))
	}
	root := identity.TreeRoot(leaves)
	f.Signature = d.signer.Sign(d.domain, d.network, root[:])
	if d.after != nil {
		d.after(f)
	}
	body, err := proto.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	raw := prefixed(body)
	if d.raw != nil {
		raw = d.raw(raw)
	}
	return raw
}

func prefixed(body []byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// redeclare gives a frame another length prefix, and junk at its end.
func redeclare(raw []byte, n uint64, junk ...byte) []byte {
	_, k := binary.Uvarint(raw)
	if n == 0 {
		n = uint64(len(raw) - k + len(junk))
	}
	return append(append(binary.AppendUvarint(nil, n), raw[k:]...), junk...)
}

// oneWay is a stream whose writing end can be closed alone, as a libp2p stream's can.
type oneWay struct {
	net.Conn // nil: unused methods panic
	r        io.Reader
	w        io.WriteCloser
	close    func()
}

func (c *oneWay) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *oneWay) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c *oneWay) Close() error                     { c.close(); return nil }
func (c *oneWay) RemoteAddr() net.Addr             { return peerAddr("anybody") }
func (c *oneWay) SetReadDeadline(time.Time) error  { return nil }
func (c *oneWay) SetWriteDeadline(time.Time) error { return nil }

// deliver writes raw on a stream of its own, closes it, and returns what x answered.
func (x *node) deliver(raw []byte) []*wire.FlowAck {
	x.t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		x.box.ServeConn(context.Background(), &oneWay{r: inR, w: outW, close: func() { inR.Close(); outW.Close() }})
	})
	wg.Go(func() {
		inW.Write(raw)
		inW.Close()
	})
	var acks []*wire.FlowAck
	r := bufio.NewReader(outR)
	for {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			break
		}
		buf := make([]byte, n)
		if _, err := io.ReadFull(r, buf); err != nil {
			x.t.Fatal(err)
		}
		var ack wire.MailAck
		if err := proto.Unmarshal(buf, &ack); err != nil {
			x.t.Fatal(err)
		}
		acks = append(acks, ack.GetFlows()...)
	}
	wg.Wait()
	return acks
}

// reasons says why x refused what it was given since before.
func reasons(before, after map[string]uint64, acks []*wire.FlowAck) []string {
	got := map[string]bool{}
	for r, n := range after {
		if n > before[r] {
			got[r] = true
		}
	}
	for _, a := range acks {
		if a.GetRefused() != "" {
			got[a.GetRefused()] = true
		}
	}
	return slices.Sorted(maps.Keys(got))
}

// TestForgedFrames gives a node frames that each differ from an accepted one in a single
// thing. None may be applied, and each is refused for the reason it deserves.
func TestForgedFrames(t *testing.T) {
	w := newNet()
	cfg := noted()
	b := w.node(t, 1, cfg).up()
	other := testKey(t, 2) // not hosted by b
	third := testKey(t, 3)
	for _, c := range []struct {
		name   string
		forge  func(d *draft)
		reason string
	}{
		{"signature by somebody else", func(d *draft) { d.signer = third }, "bad_signature"},
		{"signature for another network", func(d *draft) { d.network = "prod" }, "bad_signature"},
		{"signature of another domain", func(d *draft) { d.domain = identity.DomainReceipt }, "bad_signature"},
		{"signature truncated", func(d *draft) { d.after = func(f *wire.MailFrame) { f.Signature = f.Signature[:63] } }, "bad_signature"},
		{"signature missing", func(d *draft) { d.after = func(f *wire.MailFrame) { f.Signature = nil } }, "bad_signature"},
		{"signature longer", func(d *draft) { d.after = func(f *wire.MailFrame) { f.Signature = append(f.Signature, 0) } }, "bad_signature"},
		{"signature of zeros", func(d *draft) { d.after = func(f *wire.MailFrame) { clear(f.Signature) } }, "bad_signature"},
		{"body altered", func(d *draft) { d.bodies[0] = []byte("body 3") }, "wrong_body"},
		{"body missing", func(d *draft) { d.bodies[0] = nil }, "wrong_body"},
		{"body of the neighbour", func(d *draft) { d.bodies[0], d.bodies[1] = d.bodies[1], d.bodies[0] }, "wrong_body"},
		{"an envelope left out", func(d *draft) { d.after = func(f *wire.MailFrame) { f.Envelopes = f.Envelopes[:1] } }, "bad_signature"},
		{"an envelope twice", func(d *draft) {
			d.after = func(f *wire.MailFrame) { f.Envelopes = append(f.Envelopes, f.Envelopes[0]) }
		}, "bad_signature"},
		{"envelopes swapped", func(d *draft) {
			d.after = func(f *wire.MailFrame) { slices.Reverse(f.Envelopes) }
		}, "bad_signature"},
		{"header re-encoded with one more field", func(d *draft) {
			d.after = func(f *wire.MailFrame) { f.Envelopes[0].Header = append(f.Envelopes[0].Header, 0xa0, 0x06, 1) }
		}, "bad_signature"},
		{"another recipient, signed", func(d *draft) { d.heads[0].To = other.Public() }, "not_here"},
		{"another network, signed", func(d *draft) { d.heads[0].Network, d.network = "prod", "prod" }, "wrong_network"},
		{"no network, signed", func(d *draft) { d.heads[0].Network, d.network = "", "" }, "wrong_network"},
		{"two senders in a frame", func(d *draft) { d.heads[1].From = third.Public() }, "malformed"},
		{"sender is nobody", func(d *draft) { d.heads[0].From = make([]byte, 32) }, "malformed"},
		{"sender of small order", func(d *draft) {
			d.heads[0].From, d.heads[1].From = append([]byte{1}, make([]byte, 31)...), append([]byte{1}, make([]byte, 31)...)
		}, "bad_signature"},
		{"sender cut", func(d *draft) { d.heads[0].From = d.heads[0].From[:31] }, "malformed"},
		{"recipient cut", func(d *draft) { d.heads[0].To = d.heads[0].To[:31] }, "malformed"},
		{"id cut", func(d *draft) { d.heads[0].Id = d.heads[0].Id[:15] }, "malformed"},
		{"body hash cut", func(d *draft) { d.heads[0].BodyHash = d.heads[0].BodyHash[:31] }, "malformed"},
		{"version 0", func(d *draft) { d.heads[0].Version = 0 }, "wrong_version"},
		{"version 2", func(d *draft) { d.heads[0].Version = 2 }, "wrong_version"},
		{"unknown seal", func(d *draft) { d.heads[0].Seal = 1 }, "wrong_version"},
		{"expired", func(d *draft) { d.heads[0].CreatedMs -= 7200e3; d.heads[0].ExpiresMs -= 7200e3 }, "expired"},
		{"from the future", func(d *draft) { d.heads[0].CreatedMs += 300e3; d.heads[0].ExpiresMs += 300e3 }, "clock_differs"},
		{"lives too long", func(d *draft) { d.heads[0].ExpiresMs += 40 * 86400e3 }, "bad_times"},
		{"expires before it is made", func(d *draft) { d.heads[0].ExpiresMs = d.heads[0].CreatedMs }, "malformed"},
		{"made before 1970", func(d *draft) { d.heads[0].CreatedMs = -1 }, "malformed"},
		{"unknown topic", func(d *draft) { d.heads[0].Topic, d.heads[0].Seq = "test.deaf", 1 }, "unknown_topic"},
		{"topic in upper case", func(d *draft) { d.heads[0].Topic = "Test.note" }, "malformed"},
		{"topic too long", func(d *draft) { d.heads[0].Topic = string(slices.Repeat([]byte("a"), 65)) }, "malformed"},
		{"seq 0", func(d *draft) { d.heads[0].Seq = 0 }, "malformed"},
		{"epoch 0", func(d *draft) { d.heads[0].Epoch = 0 }, "malformed"},
		{"epoch of the past", func(d *draft) { d.heads[0].Epoch--; d.heads[1].Epoch-- }, "old_epoch"},
		{"skip backwards", func(d *draft) { d.heads[0].SkipFrom = 9 }, "malformed"},
		{"skip with a body", func(d *draft) { d.heads[0].SkipFrom = 2 }, "malformed"},
		{"header too long", func(d *draft) {
			d.after = func(f *wire.MailFrame) {
				f.Envelopes[0].Header = append(f.Envelopes[0].Header, slices.Repeat([]byte{0xa0, 0x06, 1}, 200)...)
			}
		}, "malformed"},
		{"body too long", func(d *draft) { d.bodies[0] = make([]byte, shoal.MaxBody+1) }, "malformed"},
		{"no envelopes", func(d *draft) { d.after = func(f *wire.MailFrame) { f.Envelopes = nil } }, "malformed"},
		{"too many envelopes", func(d *draft) {
			d.after = func(f *wire.MailFrame) { f.Envelopes = slices.Repeat(f.Envelopes[:1], 1025) }
		}, "malformed"},
		{"trailing junk", func(d *draft) {
			d.raw = func(raw []byte) []byte { return redeclare(raw, 0, 0xff) }
		}, "malformed"},
		{"a group", func(d *draft) {
			d.raw = func(raw []byte) []byte { return redeclare(raw, 0, 0x1b) }
		}, "malformed"},
		{"cut short", func(d *draft) { d.raw = func(raw []byte) []byte { return raw[:len(raw)-1] } }, ""},
		{"declares 1 GiB", func(d *draft) {
			d.raw = func(raw []byte) []byte { return redeclare(raw, 1<<30) }
		}, "too_long"},
		{"declares 2^64-1 bytes", func(d *draft) {
			d.raw = func(raw []byte) []byte { return redeclare(raw, 1<<64-1) }
		}, "too_long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sender := testKey(t, 1000+int(nameHash(c.name)))
			control := newDraft(sender, b.agent(), 1)
			acks := b.deliver(control.frame(t))
			if len(acks) != 1 || acks[0].GetHave() != 1 || acks[0].GetRefused() != "" {
				t.Fatalf("control was answered %v", acks)
			}
			twin := newDraft(sender, b.agent(), 2, 3)
			c.forge(twin)
			before, applied := b.stats().Dropped, len(b.applied())
			acks = b.deliver(twin.frame(t))
			var follows []string // a neighbour that is in order is applied
			if c.reason == "expired" || c.reason == "bad_times" {
				follows = []string{"body 3"}
			}
			if got := b.applied()[applied:]; !slices.Equal(got, follows) {
				t.Errorf("applied %v, want %v", got, follows)
			}
			got := reasons(before, b.stats().Dropped, acks)
			want := []string{c.reason}
			if c.reason == "" {
				want = nil
			}
			if !slices.Equal(got, want) {
				t.Errorf("refused for %v, want %v (acks %v)", got, want, acks)
			}
		})
	}
	for _, reason := range slices.Sorted(maps.Keys(b.stats().Dropped)) {
		t.Logf("%-16s %d", reason, b.stats().Dropped[reason])
	}
}

func nameHash(s string) uint16 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint16(sum[:])
}

// TestFlippedBits flips each bit of an accepted frame in turn.
func TestFlippedBits(t *testing.T) {
	w := newNet()
	b := w.node(t, 1, noted()).up()
	sender := testKey(t, 2)
	raw := newDraft(sender, b.agent(), 1).frame(t)
	n := 0
	for i := range raw {
		for bit := range 8 {
			forged := slices.Clone(raw)
			forged[i] ^= 1 << bit
			if acks := b.deliver(forged); len(acks) > 0 {
				t.Errorf("byte %d bit %d: answered %v", i, bit, acks)
			}
			n++
		}
	}
	if got := b.applied(); len(got) != 0 {
		t.Errorf("applied %d of %d forged frames", len(got), n)
	}
	if acks := b.deliver(raw); len(acks) != 1 || acks[0].GetHave() != 1 {
		t.Errorf("the frame itself: %v", acks)
	}
	t.Logf("accepted 0 of %d; refused %v", n, b.stats().Dropped)
}

// TestReplays gives an accepted frame again: to the same node, after a restart, and to
// another node.
func TestReplays(t *testing.T) {
	w := newNet()
	a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
	raw := newDraft(testKey(t, 3), a.agent(), 1, 2, 3).frame(t)
	for range 100 {
		if acks := a.deliver(raw); len(acks) != 1 || acks[0].GetHave() != 3 {
			t.Fatalf("answered %v", acks)
		}
	}
	a.down()
	a.up()
	if acks := a.deliver(raw); len(acks) != 1 || acks[0].GetHave() != 3 {
		t.Errorf("after a restart: %v", acks)
	}
	for _, ack := range b.deliver(raw) {
		if ack.GetRefused() != "not_here" {
			t.Errorf("another node: %v", ack)
		}
	}
	if n := len(a.applied()) + len(b.applied()); n != 3 {
		t.Errorf("applied %d times, want 3", n)
	}
	// A gap is told, and nothing of it applied.
	acks := a.deliver(newDraft(testKey(t, 3), a.agent(), 5, 6).frame(t))
	if len(acks) != 1 || !acks[0].GetGap() || acks[0].GetHave() != 3 {
		t.Errorf("gap: %v", acks)
	}
}

// TestForeignAcks: a node that we dial for one agent cannot acknowledge or refuse mail
// for another.
func TestForeignAcks(t *testing.T) {
	w := newNet()
	a, b := w.node(t, 1, quick(noted())).up(), w.node(t, 2, noted()).up()
	c := w.node(t, 3, noted()).up()
	w.kill(b.key.Node(), true)
	victim := a.post(b.agent(), topic, "for b", 0)
	w.mu.Lock()
	w.wrap = func(conn net.Conn) net.Conn {
		return &liar{Conn: conn, from: a.key.Public(), to: b.key.Public(), epoch: a.db.Epoch()}
	}
	w.mu.Unlock()
	a.want(a.post(c.agent(), topic, "for c", 0), mail.Delivered, "")
	select {
	case got := <-victim:
		t.Errorf("c ended b's mail as %v", got)
	default:
	}
	w.mu.Lock()
	w.wrap = nil
	w.mu.Unlock()
	w.kill(b.key.Node(), false)
	a.box.PeerUp(b.key.Node())
	a.want(victim, mail.Delivered, "")
	if got := b.applied(); !slices.Equal(got, []string{"for b"}) {
		t.Errorf("b applied %v", got)
	}
}

// liar puts acks of its own in front of what the other side answers.
type liar struct {
	net.Conn
	from, to []byte
	epoch    uint64
	left     []byte
	said     bool
}

func (l *liar) Read(p []byte) (int, error) {
	if !l.said {
		l.said = true
		body, _ := proto.Marshal(&wire.MailAck{Flows: []*wire.FlowAck{
			{From: l.from, To: l.to, Topic: topic, Epoch: l.epoch, Refused: "lie", RefusedSeq: 1},
			{From: l.from, To: l.to, Topic: topic, Epoch: l.epoch, Have: 1},
		}})
		l.left = prefixed(body)
	}
	if len(l.left) > 0 {
		n := copy(p, l.left)
		l.left = l.left[n:]
		return n, nil
	}
	return l.Conn.Read(p)
}
