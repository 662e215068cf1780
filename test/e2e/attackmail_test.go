//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

// letter is an envelope before it is sealed.
type letter struct {
	h    *wire.EnvelopeHeader
	body []byte
}

func newLetter(from identity.Key, to string, seq uint64, topic string, body []byte) *letter {
	now := time.Now()
	hash := sha256.Sum256(body)
	id := sha256.Sum256([]byte(fmt.Sprint(from.Agent(), seq, now.UnixNano())))
	return &letter{body: body, h: &wire.EnvelopeHeader{
		Version: 1, Id: id[:16], Network: network, From: from.Public(), To: shoal.AgentID(to).PublicKey(), Topic: topic,
		Epoch: 7, Seq: seq, CreatedMs: now.UnixMilli(), ExpiresMs: now.Add(time.Hour).UnixMilli(), BodyHash: hash[:],
	}}
}

func (l *letter) sealed(t *testing.T) *wire.SealedEnvelope {
	return &wire.SealedEnvelope{Header: raw(t, l.h), Body: l.body}
}

// mailMutation is the one thing that is wrong with an otherwise good frame.
type mailMutation struct {
	name   string
	before func(l *letter)                                  // signed with the rest
	after  func(t *testing.T, f *wire.MailFrame, l *letter) // behind the signature's back
	bytes  func(raw []byte) []byte                          // of the frame, length in front
	sign   func(t *testing.T, l *letter) *wire.MailFrame    // instead of the sender's signature
}

// reheader changes a header after it was signed.
func reheader(change func(h *wire.EnvelopeHeader)) func(*testing.T, *wire.MailFrame, *letter) {
	return func(t *testing.T, f *wire.MailFrame, l *letter) {
		h := proto.Clone(l.h).(*wire.EnvelopeHeader)
		change(h)
		f.Envelopes[0].Header = raw(t, h)
	}
}

func mailMutations(victim, host *daemon, sender identity.Key, other string) []mailMutation {
	day := (24 * time.Hour).Milliseconds()
	shift := func(ms int64) func(*letter) {
		return func(l *letter) { l.h.CreatedMs += ms; l.h.ExpiresMs += ms }
	}
	return []mailMutation{
		{name: "body with one bit changed", after: func(_ *testing.T, f *wire.MailFrame, _ *letter) { f.Envelopes[0].Body[0] ^= 1 }},
		{name: "body taken away", after: func(_ *testing.T, f *wire.MailFrame, _ *letter) { f.Envelopes[0].Body = nil }},
		{name: "body and its hash exchanged after signing", after: func(t *testing.T, f *wire.MailFrame, l *letter) {
			f.Envelopes[0].Body = []byte(strings.ToUpper(string(l.body)))
			hash := sha256.Sum256(f.Envelopes[0].Body)
			reheader(func(h *wire.EnvelopeHeader) { h.BodyHash = hash[:] })(t, f, l)
		}},
		{name: "signature with one bit changed", after: func(_ *testing.T, f *wire.MailFrame, _ *letter) { f.Signature[9] ^= 1 }},
		{name: "signature left out", after: func(_ *testing.T, f *wire.MailFrame, _ *letter) { f.Signature = nil }},
		{name: "signature of another domain", sign: func(t *testing.T, l *letter) *wire.MailFrame {
			e := l.sealed(t)
			root := identity.TreeRoot([][32]byte{identity.LeafHash(e.GetHeader())})
			return &wire.MailFrame{Envelopes: []*wire.SealedEnvelope{e}, Signature: sender.Sign(identity.DomainReceipt, network, root[:])}
		}},
		{name: "signature for another network", sign: func(t *testing.T, l *letter) *wire.MailFrame {
			return seal(t, sender, "other", l.sealed(t))
		}},
		{name: "in the victim's name", before: func(l *letter) { l.h.From = shoal.AgentID(victim.ready.DID).PublicKey() }},
		{name: "in the name of the receiver itself", before: func(l *letter) { l.h.From = shoal.AgentID(host.ready.DID).PublicKey() }},
		{name: "readdressed after signing", after: reheader(func(h *wire.EnvelopeHeader) { h.To = shoal.AgentID(other).PublicKey() })},
		{name: "another topic after signing", after: reheader(func(h *wire.EnvelopeHeader) { h.Topic = "shoal.task" })},
		{name: "renumbered after signing", after: reheader(func(h *wire.EnvelopeHeader) { h.Seq++ })},
		{name: "made longer-lived after signing", after: reheader(func(h *wire.EnvelopeHeader) { h.ExpiresMs += day })},
		{name: "of another network", before: func(l *letter) { l.h.Network = "other" }},
		{name: "of no network", before: func(l *letter) { l.h.Network = "" }},
		{name: "expired", before: shift(-2 * day)},
		{name: "from the future", before: shift(day)},
		{name: "expires before it was made", before: func(l *letter) { l.h.ExpiresMs = l.h.CreatedMs - 1 }},
		{name: "lives for a year", before: func(l *letter) { l.h.ExpiresMs = l.h.CreatedMs + 365*day }},
		{name: "for an agent that is not here", before: func(l *letter) { l.h.To = sender.Public() }},
		// Another topic is another flow, which begins with 1.
		{name: "on a topic nobody reads", before: func(l *letter) { l.h.Topic, l.h.Seq = "shoal.nothing", 1 }},
		{name: "on a malformed topic", before: func(l *letter) { l.h.Topic = "Shoal Letter" }},
		{name: "a letter as a task", before: func(l *letter) { l.h.Topic, l.h.Seq = "shoal.task", 1 }},
		{name: "version 2", before: func(l *letter) { l.h.Version = 2 }},
		{name: "an unknown seal", before: func(l *letter) { l.h.Seal = 9 }},
		{name: "seq 0", before: func(l *letter) { l.h.Seq = 0 }},
		{name: "epoch 0", before: func(l *letter) { l.h.Epoch = 0 }},
		{name: "an older epoch", before: func(l *letter) { l.h.Epoch-- }},
		{name: "a number far ahead", before: func(l *letter) { l.h.Seq += 1 << 40 }},
		{name: "a skip with a body", before: func(l *letter) { l.h.SkipFrom = l.h.Seq }},
		{name: "a short id", before: func(l *letter) { l.h.Id = l.h.Id[:15] }},
		{name: "a sender's key of 31 bytes", before: func(l *letter) { l.h.From = l.h.From[:31] }},
		{name: "a sender's key that nobody can own", before: func(l *letter) { l.h.From = append(make([]byte, 31), 0x80) }},
		{name: "a second envelope of another sender", sign: func(t *testing.T, l *letter) *wire.MailFrame {
			second := newLetter(sender, other, l.h.GetSeq()+1, l.h.GetTopic(), l.body)
			second.h.From = shoal.AgentID(victim.ready.DID).PublicKey()
			return seal(t, sender, network, l.sealed(t), second.sealed(t))
		}},
		{name: "a FlowAck where a frame belongs", bytes: func(b []byte) []byte {
			ack, _ := proto.Marshal(&wire.MailAck{Flows: []*wire.FlowAck{{From: sender.Public(), Have: 9}}})
			return append(binary.AppendUvarint(nil, uint64(len(ack))), ack...)
		}},
		{name: "no bytes where a frame belongs", bytes: func([]byte) []byte { return []byte{0} }},
		{name: "cut off in the middle", bytes: func(b []byte) []byte { return b[:len(b)/2] }},
		{name: "a declared length of 1 MiB and 1", bytes: func(b []byte) []byte { return relength(b, 1<<20+1) }},
		{name: "a declared length of 4 GiB", bytes: func(b []byte) []byte { return relength(b, 1<<32) }},
		{name: "a declared length of 2^64-1", bytes: func(b []byte) []byte { return relength(b, 1<<64-1) }},
		{name: "a length of eleven bytes", bytes: func(b []byte) []byte { return append(bytes.Repeat([]byte{0xff}, 11), b...) }},
		{name: "a group where a field belongs", bytes: func([]byte) []byte { return []byte{2, 0x0b, 0x0c} }},
	}
}

// relength puts another length in front of a frame.
func relength(b []byte, n uint64) []byte {
	_, prefix := binary.Uvarint(b)
	return append(binary.AppendUvarint(nil, n), b[prefix:]...)
}

var mailRefusal = regexp.MustCompile(`mail stream refused.*(?:mail frame: (?P<a>\w+)|err="?([^"]*))`)

// why tells how a frame was refused: by an answer, or by the end of the stream.
func why(d *daemon, mark int, acks []*wire.FlowAck, seq uint64) (reason string, accepted bool) {
	for _, a := range acks {
		switch {
		case a.GetRefused() != "" && (a.GetRefusedSeq() == seq || a.GetLater()):
			return a.GetRefused(), false
		case a.GetGap():
			return "gap", false
		}
	}
	for _, a := range acks {
		if a.GetHave() >= seq && seq > 0 {
			return "", true
		}
	}
	within(2*time.Second, func() bool {
		m := mailRefusal.FindStringSubmatch(d.log.since(mark))
		if m == nil {
			return false
		}
		if reason = m[1]; reason == "" {
			reason = strings.TrimSpace(m[2])
			if strings.Contains(reason, "above the limit") {
				reason = "too_long"
			}
		}
		return true
	})
	if reason == "" {
		reason = "closed without a word"
	}
	return reason, false
}

// inbox returns the bodies of the letters that the node's own agent holds.
func inbox(t *testing.T, d *daemon) map[string]int {
	t.Helper()
	got := map[string]int{}
	for after := uint64(0); ; {
		resp, err := d.mail.Inbox(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.InboxRequest{After: after, PageSize: 1000}))
		if err != nil {
			t.Fatalf("inbox of %s: %v", d.name, err)
		}
		for _, l := range resp.Msg.GetLetters() {
			got[string(l.GetBody())]++
			after = l.GetCursor()
		}
		if len(resp.Msg.GetLetters()) == 0 {
			return got
		}
	}
}

// victims are two honest daemons: B hosts the victim agent, A asks it.
func victims(t *testing.T) (a, b *daemon, victim *worker) {
	t.Helper()
	a, b = startDaemon(t, "asker", "--log-level", "debug"), startDaemon(t, "doer", "--log-level", "debug")
	a.join(b)
	victim = attach(t, b, agent.Config{Name: "victim", Skills: skills("work"), Concurrency: 4}, func(ctx context.Context, task *agent.Task, w *agent.Writer) error {
		if strings.HasPrefix(task.Text(), "slow") {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return echo(ctx, task, w)
	})
	stillWorks(t, a, b, victim)
	return a, b, victim
}

// stillWorks checks that A finds the victim, on B, and that it does A's work.
func stillWorks(t *testing.T, a, b *daemon, victim *worker) {
	t.Helper()
	eventually(t, 20*time.Second, "the asker finds the victim where it is", func() bool {
		resp, err := a.agents.Find(ctxFor(t, 15*time.Second), connect.NewRequest(&shoalv1.FindRequest{Capability: "work", Fresh: true}))
		return err == nil && len(resp.Msg.GetAgents()) == 1 && resp.Msg.GetAgents()[0].GetDid() == victim.did && resp.Msg.GetAgents()[0].GetNode() == b.ready.PeerID
	})
	resp, err := a.agents.Resolve(ctxFor(t, 15*time.Second), connect.NewRequest(&shoalv1.ResolveRequest{Agent: victim.did, Fresh: true}))
	if err != nil || resp.Msg.GetAgent().GetNode() != b.ready.PeerID {
		t.Errorf("the asker resolves the victim to %v, %v", resp, err)
	}
	roundTrip(t, a, victim.did, "work", "still there?")
}

// TestForgedMailIsRefused sends frames that each differ from an accepted one in one
// thing, and replays the accepted ones: at once, by another node, and after a restart.
func TestForgedMailIsRefused(t *testing.T) {
	a, b, victim := victims(t)
	r, second := newRogue(t, a, b), newRogue(t, a, b)
	forged, replayed := newTally("forged mail"), newTally("replayed mail")

	var controls [][]byte
	for i, m := range mailMutations(a, b, identity.Key{}, victim.did) {
		sender := newKey(t)
		m = mailMutations(a, b, sender, victim.did)[i]
		good := newLetter(sender, b.ready.DID, 1, "shoal.letter", fmt.Appendf(nil, "control %d", i))
		control := frame(t, seal(t, sender, network, good.sealed(t)))
		if reason, ok := why(b, b.log.mark(), r.tell(b, control), 1); !ok {
			t.Errorf("%s: the control is refused: %s", m.name, reason)
			continue
		}
		forged.controls++
		controls = append(controls, control)

		l := newLetter(sender, b.ready.DID, 2, "shoal.letter", fmt.Appendf(nil, "mutant %d", i))
		mark := b.log.mark()
		reason, accepted := why(b, mark, r.tell(b, mutate(t, m, sender, l)), max(1, l.h.GetSeq()))
		forged.note(t, m.name, reason, accepted)
	}
	holds := func(when string) {
		t.Helper()
		got := inbox(t, b)
		for body, n := range got {
			if !strings.HasPrefix(body, "control ") || n != 1 {
				t.Errorf("%s, the inbox holds %q %d times", when, body, n)
				forged.accepted++
			}
		}
		if len(got) != len(controls) {
			t.Errorf("%s, the inbox holds %d letters, want the %d controls", when, len(got), len(controls))
		}
	}
	holds("after the forgeries")

	// Duplicates are acknowledged, so that their sender can stop, and change nothing.
	replay := func(how string, from *rogue) {
		before := len(inbox(t, b))
		replayed.controls += before
		for i, c := range controls {
			from.tell(b, c)
			if i%8 == 0 { // to somebody else: it is not for them
				reason, accepted := why(a, a.log.mark(), from.tell(a, c), 1)
				replayed.note(t, how+", to another node", reason, accepted)
			}
		}
		grown := len(inbox(t, b)) - before
		replayed.tried += len(controls)
		replayed.accepted += grown
		replayed.reasons["duplicate"] += len(controls) - grown
		holds(how)
	}
	replay("replayed by their sender", r)
	replay("replayed by another node", second)
	b.kill()
	b.start()
	replay("replayed after a restart", second)

	forged.print(t)
	replayed.print(t)
	stillWorks(t, a, b, victim)
}

func mutate(t *testing.T, m mailMutation, sender identity.Key, l *letter) []byte {
	t.Helper()
	if m.before != nil {
		m.before(l)
	}
	var f *wire.MailFrame
	if m.sign != nil {
		f = m.sign(t, l)
	} else {
		f = seal(t, sender, network, l.sealed(t))
	}
	if m.after != nil {
		f = proto.Clone(f).(*wire.MailFrame)
		m.after(t, f, l)
	}
	out := frame(t, f)
	if m.bytes != nil {
		out = m.bytes(out)
	}
	return out
}

// TestCapturedMailIsOfNoUse has an honest node send a task to the rogue, which then has a
// frame with a true signature of the victim's, and uses it elsewhere.
func TestCapturedMailIsOfNoUse(t *testing.T) {
	a, b, victim := victims(t)
	r := newRogue(t, a, b)
	serveCards(t, r, func(*wire.CardRequest) [][]byte { return [][]byte{ownCard(t, r, b, victim.did)} })
	captured := captureFrame(t, r, a)
	count := newTally("captured mail")
	count.controls++ // it is true: its signature holds
	var f wire.MailFrame
	if err := proto.Unmarshal(captured, &f); err != nil {
		t.Fatal(err)
	}
	var h wire.EnvelopeHeader
	if err := proto.Unmarshal(f.GetEnvelopes()[0].GetHeader(), &h); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h.GetFrom(), shoal.AgentID(a.ready.DID).PublicKey()) || h.GetTopic() != "shoal.task" {
		t.Fatalf("captured mail of %x on %q", h.GetFrom(), h.GetTopic())
	}
	root := identity.TreeRoot([][32]byte{identity.LeafHash(f.GetEnvelopes()[0].GetHeader())})
	if err := identity.Verify(h.GetFrom(), identity.DomainEnvelope, network, root[:], f.GetSignature()); err != nil {
		t.Fatalf("the captured frame is not true: %v", err)
	}
	retarget := func(to string) *wire.MailFrame {
		g := proto.Clone(&f).(*wire.MailFrame)
		h := proto.Clone(&h).(*wire.EnvelopeHeader)
		h.To = shoal.AgentID(to).PublicKey()
		g.Envelopes[0].Header = raw(t, h)
		return g
	}
	resign := retarget(victim.did)
	root = identity.TreeRoot([][32]byte{identity.LeafHash(resign.GetEnvelopes()[0].GetHeader())})
	resign.Signature = r.key.Sign(identity.DomainEnvelope, network, root[:])
	tasksBefore := doingTasks(t, b)
	for _, c := range []struct {
		name string
		to   *daemon
		f    *wire.MailFrame
	}{
		{"as it is, to another node", b, &f},
		{"as it is, back to its sender", a, &f},
		{"readdressed to the victim", b, retarget(victim.did)},
		{"readdressed to the victim's node", b, retarget(b.ready.DID)},
		{"readdressed and signed by the rogue", b, resign},
	} {
		reason, accepted := why(c.to, c.to.log.mark(), r.tell(c.to, frame(t, c.f)), h.GetSeq())
		count.note(t, c.name, reason, accepted)
	}
	if got := doingTasks(t, b); got != tasksBefore {
		t.Errorf("the victim has %d tasks, had %d", got, tasksBefore)
	}
	count.print(t)
	stillWorks(t, a, b, victim)
}

// captureFrame lets d send a task to the rogue's own agent and returns the frame.
func captureFrame(t *testing.T, r *rogue, d *daemon) []byte {
	t.Helper()
	l, err := r.Listen(mailProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = d.tasks.Send(ctxFor(t, 15*time.Second), connect.NewRequest(&shoalv1.SendRequest{To: string(r.key.Agent()), Message: textMessage("a secret"), Skill: "any"}))
	if err != nil {
		t.Fatalf("send a task to the rogue: %v", err)
	}
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
		var f wire.MailFrame
		in := newByteReader(conn)
		if (protodelim.UnmarshalOptions{MaxSize: 1 << 20}).UnmarshalFrom(in, &f) == nil {
			b, _ := proto.Marshal(&f)
			got <- b
		}
	}()
	select {
	case b := <-got:
		if b != nil {
			return b
		}
	case <-time.After(25 * time.Second):
	}
	t.Fatal("no mail arrives at the rogue")
	return nil
}

// byteReader reads a stream byte by byte, for lengths.
type byteReader struct{ io.Reader }

func newByteReader(r io.Reader) byteReader { return byteReader{r} }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r.Reader, b[:])
	return b[0], err
}

func doingTasks(t *testing.T, d *daemon) int {
	t.Helper()
	resp, err := d.tasks.List(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.TaskServiceListRequest{Role: shoalv1.TaskRole_TASK_ROLE_DOING, PageSize: 100}))
	if err != nil {
		t.Fatal(err)
	}
	return len(resp.Msg.GetTasks())
}

// TestStrangersDoNotTouchTasks sends well-signed task mail about a task that is not the
// rogue's: each differs from mail about its own task, which is accepted, in the task.
func TestStrangersDoNotTouchTasks(t *testing.T) {
	a, b, victim := victims(t)
	r := newRogue(t, a, b)
	count := newTally("mail about others' tasks")
	sent, err := a.tasks.Send(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.SendRequest{To: victim.did, Skill: "work", Message: textMessage("slow")}))
	if err != nil {
		t.Fatal(err)
	}
	theirs := sent.Msg.GetTask().GetTask().GetId()
	eventually(t, 20*time.Second, "the victim works", func() bool {
		rec, err := getTask(a, theirs, "", shoalv1.TaskRole_TASK_ROLE_ASKED)
		return err == nil && stateOf(rec) == a2apb.TaskState_TASK_STATE_WORKING
	})
	toRogue, err := a.tasks.Send(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.SendRequest{To: string(r.key.Agent()), Skill: "any", Message: textMessage("for the rogue")}))
	if err != nil {
		t.Fatal(err)
	}
	mine, own := toRogue.Msg.GetTask().GetTask().GetId(), "rogues-own-task"
	status := func(s a2apb.TaskState) []byte { return raw(t, &a2apb.TaskStatus{State: s}) }
	event := func(s a2apb.TaskState) *wire.TaskMail {
		return &wire.TaskMail{Body: &wire.TaskMail_Event{Event: &wire.TaskEvent{N: 1, Attempt: 1, Status: status(s)}}}
	}
	offer := &wire.TaskMail{TaskId: own, Body: &wire.TaskMail_Offer{Offer: &wire.TaskOffer{
		Skill: "work", ContextId: "c", TimeoutMs: 60_000,
		Message: raw(t, &a2apb.Message{MessageId: "m", Role: a2apb.Role_ROLE_USER, Parts: textMessage("slow").GetParts()}),
	}}}
	seqs := map[string]uint64{}
	send := func(d *daemon, to string, m *wire.TaskMail) (string, bool) {
		seqs[to]++
		l := newLetter(r.key, to, seqs[to], "shoal.task", raw(t, m))
		return why(d, d.log.mark(), r.tell(d, frame(t, seal(t, r.key, network, l.sealed(t)))), l.h.GetSeq())
	}
	about := func(m *wire.TaskMail, id string) *wire.TaskMail {
		m = proto.Clone(m).(*wire.TaskMail)
		m.TaskId = id
		return m
	}
	if reason, ok := send(b, victim.did, offer); !ok {
		t.Fatalf("the rogue's own offer is refused: %s", reason)
	}
	count.controls++
	for _, c := range []struct {
		name      string
		d         *daemon
		to, owned string
		m         *wire.TaskMail
	}{
		{"an event: WORKING", a, a.ready.DID, mine, event(a2apb.TaskState_TASK_STATE_WORKING)},
		{"an event: INPUT_REQUIRED", a, a.ready.DID, "", event(a2apb.TaskState_TASK_STATE_INPUT_REQUIRED)},
		{"an event: COMPLETED", a, a.ready.DID, "", event(a2apb.TaskState_TASK_STATE_COMPLETED)},
		{"a countersigned receipt", b, victim.did, "", &wire.TaskMail{Body: &wire.TaskMail_Countersigned{Countersigned: &wire.Countersigned{Receipt: []byte("x")}}}},
		{"an input", b, victim.did, "", &wire.TaskMail{Body: &wire.TaskMail_Input{Input: &wire.TaskInput{Message: offer.GetOffer().GetMessage()}}}},
		{"a cancel", b, victim.did, own, &wire.TaskMail{Body: &wire.TaskMail_Cancel{Cancel: &wire.TaskCancel{Reason: "because"}}}},
	} {
		if c.owned != "" {
			if reason, ok := send(c.d, c.to, about(c.m, c.owned)); !ok {
				t.Errorf("%s about the rogue's own task is refused: %s", c.name, reason)
			}
			count.controls++
		}
		reason, accepted := send(c.d, c.to, about(c.m, theirs))
		count.note(t, c.name, reason, accepted)
	}
	for _, side := range []struct {
		d    *daemon
		role shoalv1.TaskRole
	}{{a, shoalv1.TaskRole_TASK_ROLE_ASKED}, {b, shoalv1.TaskRole_TASK_ROLE_DOING}} {
		rec, err := getTask(side.d, theirs, a.ready.DID, side.role)
		if err != nil || stateOf(rec) != a2apb.TaskState_TASK_STATE_WORKING {
			t.Errorf("at %s the victim's task is %v, %v; want WORKING", side.d.name, stateOf(rec), err)
		}
	}
	count.print(t)
	stillWorks(t, a, b, victim)
}
