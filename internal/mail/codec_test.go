package mail

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

func seedKey(t testing.TB, n byte) identity.Key {
	k, err := identity.FromSeed(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type oneKey struct{ k identity.Key }

func (o oneKey) Key(id shoal.AgentID) (identity.Key, bool) { return o.k, id == o.k.Agent() }

// bare is a mailbox that can encode and open frames and do nothing else.
func bare(k identity.Key) *Mailbox {
	m := &Mailbox{cfg: Config{Network: "test"}.withDefaults(), keys: oneKey{k}}
	m.inward.init()
	return m
}

func sampleBatch(k identity.Key, to key, sizes ...int) *batch {
	b := &batch{from: key(k.Public())}
	now := time.Now()
	for i, n := range sizes {
		b.picks = append(b.picks, pick{
			meta: &flowMeta{id: 1, from: b.from, to: to, topic: "test.note", epoch: 5},
			item: item{
				seq: uint64(i + 1), id: [16]byte{byte(i)}, created: now.UnixMilli(), expires: now.Add(time.Hour).UnixMilli(),
				body: bytes.Repeat([]byte{byte(i)}, n),
			},
		})
	}
	return b
}

// TestHeaderCodec compares the codec with the generated one, both ways.
func TestHeaderCodec(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for range 1000 {
		h := header{
			version: r.Uint32N(3), id: [16]byte(bytesOf(16)), network: string(bytesOf(r.IntN(3))), topic: "t", epoch: r.Uint64() >> r.IntN(64),
			from: key(bytesOf(32)), to: key(bytesOf(32)), seq: r.Uint64() >> r.IntN(64), skipFrom: r.Uint64() >> r.IntN(64),
			created: int64(r.Uint64()), expires: int64(r.Uint64()), seal: r.Uint32N(2), bodyHash: [32]byte(bytesOf(32)),
		}
		h.network = "net"[:r.IntN(4)]
		gen := &wire.EnvelopeHeader{
			Version: h.version, Id: h.id[:], Network: h.network, From: h.from[:], To: h.to[:], Topic: h.topic, Epoch: h.epoch,
			Seq: h.seq, SkipFrom: h.skipFrom, CreatedMs: h.created, ExpiresMs: h.expires, Seal: h.seal, BodyHash: h.bodyHash[:],
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(gen)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendHeader(nil, &h); !bytes.Equal(got, want) {
			t.Fatalf("encoded %+v\n as %x\nwant %x", h, got, want)
		}
		back, err := parseHeader(want)
		if err != nil || back != h {
			t.Fatalf("parsed %x\n as %+v, %v\nwant %+v", want, back, err, h)
		}
	}
}

func TestFrameAndProofs(t *testing.T) {
	from, to := seedKey(t, 1), seedKey(t, 2)
	m := bare(from)
	for _, n := range []int{1, 2, 3, 7, 64, 100} {
		sizes := make([]int, n)
		for i := range sizes {
			sizes[i] = i
		}
		b := sampleBatch(from, key(to.Public()), sizes...)
		w := frameWriter{m: m}
		frame, ok := w.encode(b)
		if !ok {
			t.Fatal("no key")
		}
		raw, err := readPrefixed(bufio.NewReader(bytes.NewReader(frame)), maxFrame, 0)
		if err != nil {
			t.Fatal(err)
		}
		envs, err := m.openFrame(raw)
		if err != nil || len(envs) != n {
			t.Fatalf("open a frame of %d: %d envelopes, %v", n, len(envs), err)
		}
		for i := range envs {
			p, err := Prove(raw, i)
			if err != nil {
				t.Fatal(err)
			}
			env, err := p.Verify("test", envs[i].body)
			if err != nil || env.From != from.Agent() || env.Seq != uint64(i+1) {
				t.Fatalf("proof %d of %d: %+v, %v", i, n, env, err)
			}
			for name, forge := range map[string]func(p *Proof) (network string, body []byte){
				"network":   func(*Proof) (string, []byte) { return "prod", envs[i].body },
				"body":      func(*Proof) (string, []byte) { return "test", []byte("other") },
				"header":    func(p *Proof) (string, []byte) { p.Header = flip(p.Header); return "test", envs[i].body },
				"signature": func(p *Proof) (string, []byte) { p.Signature = flip(p.Signature); return "test", envs[i].body },
				"root":      func(p *Proof) (string, []byte) { p.Root[3] ^= 1; return "test", envs[i].body },
				"index":     func(p *Proof) (string, []byte) { p.Index += p.Count; return "test", envs[i].body },
				"path": func(p *Proof) (string, []byte) {
					p.Path = append(p.Path[:len(p.Path):len(p.Path)], [32]byte{})
					return "test", envs[i].body
				},
				"count": func(p *Proof) (string, []byte) { p.Count = 1 << 30; return "test", envs[i].body },
			} {
				q := p
				network, body := forge(&q)
				if _, err := q.Verify(network, body); err == nil {
					t.Errorf("proof %d of %d verifies with another %s", i, n, name)
				}
			}
		}
	}
	if _, err := Prove([]byte{1}, 0); err == nil {
		t.Error("proved nonsense")
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// FuzzFrame: no bytes panic the decoder, and what it accepts was signed.
func FuzzFrame(f *testing.F) {
	from, to := seedKey(f, 1), seedKey(f, 2)
	m := bare(from)
	for _, sizes := range [][]int{{0}, {10, 20}, {1, 2, 3, 4, 5, 6, 7}} {
		w := frameWriter{m: m}
		frame, _ := w.encode(sampleBatch(from, key(to.Public()), sizes...))
		f.Add(bytes.Clone(frame))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{3, 0x0a, 1, 0x0b})
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := readPrefixed(bufio.NewReader(bytes.NewReader(data)), maxFrame, 0)
		if err != nil {
			return
		}
		envs, err := m.openFrame(raw)
		if err != nil {
			return
		}
		for i, e := range envs {
			p, err := Prove(raw, i)
			if err != nil {
				t.Fatalf("accepted, but no proof: %v", err)
			}
			if _, err := p.Verify("test", e.body); err != nil {
				t.Fatalf("accepted, but the proof fails: %v", err)
			}
			if e.sender != from.Agent() {
				t.Fatalf("accepted a frame of %s", e.sender)
			}
		}
	})
}

// FuzzAck: no bytes panic the decoder or what acts upon it.
func FuzzAck(f *testing.F) {
	from, to := seedKey(f, 1), seedKey(f, 2)
	seed := func(acks ...*wire.FlowAck) {
		for _, a := range acks {
			a.From, a.To, a.Topic, a.Epoch = from.Public(), to.Public(), "test.note", 5
		}
		raw, err := appendAck(nil, acks)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(&wire.FlowAck{Have: 3})
	seed(&wire.FlowAck{Have: 1<<64 - 1, Gap: true}, &wire.FlowAck{Later: true})
	seed(&wire.FlowAck{Refused: "no", RefusedSeq: 2}, &wire.FlowAck{Refused: "no", RefusedSeq: 1<<64 - 1}, &wire.FlowAck{Have: 2})
	seed(&wire.FlowAck{Refused: reasonNotHere, RefusedSeq: 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := readPrefixed(bufio.NewReader(bytes.NewReader(data)), maxAck, 0)
		if err != nil {
			return
		}
		acks, err := parseAck(raw)
		if err != nil {
			return
		}
		m := ackable(t, from, to)
		p := m.out.peers["peer"]
		m.acked(p, acks)
		m.acked(p, acks)
		checkQueues(t, m)
	})
}

// ackable is a mailbox with five envelopes queued, of which three are in flight.
func ackable(t testing.TB, from, to identity.Key) *Mailbox {
	m := bare(from)
	m.log = discard()
	m.settleKick, m.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	m.out.init()
	m.out.phase = running
	p := newPeer("peer")
	p.state = peerWorking
	m.out.peers["peer"] = p
	meta := &flowMeta{id: 1, from: key(from.Public()), to: key(to.Public()), topic: "test.note", epoch: 5}
	for seq := range uint64(5) {
		m.enqueue(meta, item{seq: seq + 1, expires: noExpiry, body: []byte("body")}, func(State, string) {}, false)
	}
	m.attach(m.out.flows[1].dest, p)
	m.cfg.Window = 3
	var b batch
	m.take(p, &b)
	if len(b.picks) != 3 || p.inflight != 3 {
		t.Fatalf("took %d, %d in flight, want 3", len(b.picks), p.inflight)
	}
	return m
}

// checkQueues checks what must hold of the queues at all times.
func checkQueues(t testing.TB, m *Mailbox) {
	t.Helper()
	inflight, bytes, memory := map[*peer]int{}, map[*peer]int{}, int64(0)
	for _, f := range m.out.flows {
		if f.acked > f.sent || f.sent > f.posted || f.nsent > len(f.queue) {
			t.Errorf("acked %d, sent %d, posted %d; %d of %d in flight", f.acked, f.sent, f.posted, f.nsent, len(f.queue))
		}
		next := f.acked + 1
		for i, it := range f.queue {
			if it.first() > next || it.seq < next {
				t.Errorf("queue[%d] is %d…%d, want %d", i, it.first(), it.seq, next)
			}
			next = it.seq + 1
			memory += int64(len(it.body))
			if i < f.nsent {
				inflight[f.dest.peer]++
				bytes[f.dest.peer] += it.size()
			}
		}
	}
	for p, n := range inflight {
		if p.inflight != n || p.bytes != bytes[p] {
			t.Errorf("peer has %d in flight (%d bytes), its flows %d (%d)", p.inflight, p.bytes, n, bytes[p])
		}
	}
	for _, p := range m.out.peers {
		if inflight[p] == 0 && (p.inflight != 0 || p.bytes != 0) {
			t.Errorf("peer has %d in flight (%d bytes), its flows none", p.inflight, p.bytes)
		}
	}
	if m.out.memory != memory {
		t.Errorf("memory %d, queues hold %d", m.out.memory, memory)
	}
}
