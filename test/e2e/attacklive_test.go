//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// TestForgedLiveRequestsAreRefused opens live streams that each differ from an accepted
// one in one thing, most of all in whose name.
func TestForgedLiveRequestsAreRefused(t *testing.T) {
	a, b, victim := victims(t)
	r := newRogue(t, a, b)
	count := newTally("forged live requests")
	sent, err := a.tasks.Send(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.SendRequest{To: victim.did, Skill: "work", Message: textMessage("slow")}))
	if err != nil {
		t.Fatal(err)
	}
	theirs := sent.Msg.GetTask().GetTask().GetId()
	stranger := newKey(t)
	n := 0
	request := func() *wire.LiveRequest {
		n++
		return &wire.LiveRequest{
			Network: network, Requester: r.key.Public(), Doer: shoal.AgentID(victim.did).PublicKey(), TaskId: fmt.Sprint("live-", n),
			Offer: &wire.TaskOffer{
				Skill: "work", ContextId: "c", TimeoutMs: 5000, Class: 1,
				Message: raw(t, &a2apb.Message{MessageId: "m", Role: a2apb.Role_ROLE_USER, Parts: textMessage("live").GetParts()}),
			},
		}
	}
	for _, m := range []struct {
		name   string
		change func(*wire.LiveRequest)
		bytes  func([]byte) []byte
	}{
		{name: "in the asker's name", change: func(q *wire.LiveRequest) { q.Requester = shoal.AgentID(a.ready.DID).PublicKey() }},
		{name: "in the victim's name", change: func(q *wire.LiveRequest) { q.Requester = shoal.AgentID(victim.did).PublicKey() }},
		{name: "in the name of the receiving node", change: func(q *wire.LiveRequest) { q.Requester = shoal.AgentID(b.ready.DID).PublicKey() }},
		{name: "in an unknown agent's name", change: func(q *wire.LiveRequest) { q.Requester = stranger.Public() }},
		{name: "in nobody's name", change: func(q *wire.LiveRequest) { q.Requester = nil }},
		{name: "listening to another's task", change: func(q *wire.LiveRequest) {
			q.Requester, q.TaskId, q.Offer = shoal.AgentID(a.ready.DID).PublicKey(), theirs, nil
		}},
		{name: "listening to another's task as its own", change: func(q *wire.LiveRequest) { q.TaskId, q.Offer = theirs, nil }},
		{name: "of another network", change: func(q *wire.LiveRequest) { q.Network = "other" }},
		{name: "for an agent that is not here", change: func(q *wire.LiveRequest) { q.Doer = stranger.Public() }},
		{name: "for a key of 31 bytes", change: func(q *wire.LiveRequest) { q.Doer = q.Doer[:31] }},
		{name: "for an unknown skill", change: func(q *wire.LiveRequest) { q.Offer.Skill = "rule-the-world" }},
		{name: "without a task id", change: func(q *wire.LiveRequest) { q.TaskId = "" }},
		{name: "with a message that is none", change: func(q *wire.LiveRequest) { q.Offer.Message = []byte{0xff} }},
		{name: "without a message", change: func(q *wire.LiveRequest) { q.Offer.Message = nil }},
		{name: "with a negative time-out", change: func(q *wire.LiveRequest) { q.Offer.TimeoutMs = -1 }},
		{name: "a declared length of 2^40", bytes: func(b []byte) []byte { return relength(b, 1<<40) }},
		{name: "cut off", bytes: func(b []byte) []byte { return b[:len(b)/2] }},
		{name: "mail where a request belongs", bytes: func([]byte) []byte {
			f, _ := proto.Marshal(&wire.MailFrame{Signature: make([]byte, 64)})
			return append(binary.AppendUvarint(nil, uint64(len(f))), f...)
		}},
	} {
		if reason, ok := askLive(t, r, b, frame(t, request())); !ok {
			t.Errorf("%s: the control is refused: %s", m.name, reason)
			continue
		}
		count.controls++
		q := request()
		if m.change != nil {
			m.change(q)
		}
		out := frame(t, q)
		if m.bytes != nil {
			out = m.bytes(out)
		}
		reason, accepted := askLive(t, r, b, out)
		count.note(t, m.name, reason, accepted)
	}
	rec, err := getTask(a, theirs, "", shoalv1.TaskRole_TASK_ROLE_ASKED)
	if err != nil || stateOf(rec) != a2apb.TaskState_TASK_STATE_WORKING {
		t.Errorf("the victim's task is %v, %v; want WORKING", stateOf(rec), err)
	}
	count.print(t)
	stillWorks(t, a, b, victim)
}

// askLive writes a request and tells whether anything but a refusal came back.
func askLive(t *testing.T, r *rogue, d *daemon, out []byte) (reason string, accepted bool) {
	t.Helper()
	conn := r.dial(d, liveProtocol)
	defer conn.Close()
	if _, err := conn.Write(out); err != nil {
		return "closed without a word", false
	}
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	if len(out) == 0 {
		return "", false
	}
	in := newByteReader(conn)
	for {
		var ev wire.LiveEvent
		if err := (protodelim.UnmarshalOptions{MaxSize: 1 << 20}).UnmarshalFrom(in, &ev); err != nil {
			return "closed without a word", accepted
		}
		switch {
		case ev.GetError() != "":
			return ev.GetError(), false
		case ev.GetEvent() != nil || ev.GetChunk() != nil:
			accepted = true
		}
	}
}
