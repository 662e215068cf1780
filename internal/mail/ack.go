package mail

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// Reasons that mail itself gives.
const (
	reasonExpired      = "expired"
	reasonNotHere      = "not_here"  // the recipient is not hosted by this node
	reasonOldEpoch     = "old_epoch" // the sender's database is older than one seen before
	reasonUnknownTopic = "unknown_topic"
	reasonBadTimes     = "bad_times"      // it lives longer than the receiver believes
	reasonClock        = "clock_differs"  // with later: it was made in the future
	reasonInboxFull    = "inbox_full"     // with later
	reasonTooManyFlows = "too_many_flows" // with later
)

const maxReason = 64 // bytes

// parseAck parses a MailAck and checks its shape.
func parseAck(raw []byte) ([]*wire.FlowAck, error) {
	var ack wire.MailAck
	if err := proto.Unmarshal(raw, &ack); err != nil {
		return nil, bad("malformed", "%v", err)
	}
	for _, fa := range ack.GetFlows() {
		switch {
		case len(fa.GetFrom()) != keySize, len(fa.GetTo()) != keySize:
			return nil, bad("malformed", "key of %d or %d bytes", len(fa.GetFrom()), len(fa.GetTo()))
		case len(fa.GetRefused()) > maxReason:
			return nil, bad("malformed", "reason of %d bytes", len(fa.GetRefused()))
		}
	}
	return ack.GetFlows(), nil
}

// heard is a watch to be called once Mailbox.mu is free.
type heard struct {
	fn     WatchFunc
	state  State
	reason string
}

// acked takes in what a receiver says. An answer counts only for flows whose recipient
// we look for on that node: nobody else can acknowledge another's mail.
func (m *Mailbox) acked(p *peer, acks []*wire.FlowAck) {
	var calls []heard
	m.mu.Lock()
	p.answered = time.Now()
	// Refusals first: an ack that covers a refused envelope must not count it as delivered.
	for _, fa := range acks {
		if f := m.ackedFlow(p, fa); f != nil && fa.GetRefused() != "" && !fa.GetLater() {
			m.refused(f, fa)
		}
	}
	for _, fa := range acks {
		f := m.ackedFlow(p, fa)
		if f == nil {
			continue
		}
		calls = m.advance(f, fa.GetHave(), calls)
		switch {
		case fa.GetLater():
			m.pause(f, fa.GetRefused())
		case fa.GetGap():
			m.goBack(f, fa.GetHave())
		}
	}
	p.notify()
	m.mu.Unlock()
	for _, c := range calls {
		c.fn(c.state, c.reason)
	}
}

func (m *Mailbox) ackedFlow(p *peer, fa *wire.FlowAck) *flow {
	f := m.out.names[flowName{triple{key(fa.GetFrom()), key(fa.GetTo()), fa.GetTopic()}, fa.GetEpoch()}]
	if f == nil || f.dest.peer != p {
		return nil
	}
	return f
}

// refused notes one envelope that its receiver will never take.
func (m *Mailbox) refused(f *flow, fa *wire.FlowAck) {
	seq := fa.GetRefusedSeq()
	if seq <= f.acked || seq > f.posted {
		return
	}
	if fa.GetRefused() == reasonNotHere {
		m.misrouted(f.dest)
		return
	}
	if f.refusals == nil {
		f.refusals = make(map[uint64]string)
	}
	f.refusals[seq] = fa.GetRefused()
}

// misrouted looks for another node: this one does not host the recipient.
func (m *Mailbox) misrouted(d *dest) {
	if d.peer == nil {
		return
	}
	m.detach(d)
	d.failures++
	d.moved = true
	if !d.busy {
		m.routeLater(d)
	}
}

// advance moves the flow's ack forward over what is durable at the receiver, and over
// what it refused without keeping a count (it may know nothing else of the flow).
func (m *Mailbox) advance(f *flow, have uint64, calls []heard) []heard {
	acked := max(f.acked, min(have, f.posted))
	for f.refusals[acked+1] != "" {
		acked++
	}
	if have > f.posted && !f.warned {
		f.warned = true
		m.log.Error("a receiver has mail that this database never sent: was an old copy of it put back without `shoal restore`?",
			"agent", m.ids.agent(f.meta.to), "topic", f.meta.topic, "have", have, "posted", f.posted)
	}
	if acked == f.acked || f.dest.peer == nil {
		return calls
	}
	if len(f.watch) > 0 {
		for seq := f.acked + 1; seq <= acked; seq++ {
			if w := f.watch[seq]; w != nil && f.refusals[seq] == "" {
				calls = append(calls, heard{w, Delivered, ""})
				delete(f.watch, seq)
			}
		}
	}
	n := acked - f.acked
	f.acked = acked
	m.shift(f)
	p := f.dest.peer
	p.failures, f.dest.failures, f.retries, f.rewound = 0, 0, 0, 0
	m.settleLater(f, n)
	if !f.pending() && f.then != nil {
		f.then.after = nil
		m.ready(f.then)
		f.then = nil
	}
	return calls
}

// shift takes what is acked off the queue.
func (m *Mailbox) shift(f *flow) {
	p := f.dest.peer
	i := 0
	for ; i < len(f.queue) && f.queue[i].seq <= f.acked; i++ {
		it := &f.queue[i]
		if it.skipFrom == 0 && f.refusals[it.seq] == "" {
			m.count.acked.Add(1)
		}
		if it.skipFrom == 0 {
			f.freedRows++
			f.freedBytes += int64(len(it.body))
		}
		m.out.memory -= int64(len(it.body))
		if i < f.nsent {
			p.inflight--
			p.bytes -= it.size()
		}
	}
	clear(f.queue[:i])
	f.queue = f.queue[i:]
	if f.nsent = max(0, f.nsent-i); f.nsent == 0 {
		// It may be ahead of what this process sent: acks of its previous life.
		f.unsure = f.unsure || f.sent < f.acked
		f.sent = max(f.sent, f.acked)
	}
	if len(f.queue) > 0 && f.queue[0].first() > f.acked+1 {
		m.drop(f) // cannot be; the table knows better
	}
}

// pause stops a flow whose receiver cannot take more now.
func (m *Mailbox) pause(f *flow, reason string) {
	m.rewind(f)
	f.rewound = f.acked + 1 // gap answers to what was in flight are to be ignored
	if f.paused {
		return
	}
	f.retries++
	f.paused = true
	m.log.Debug("receiver asks to wait", "agent", m.ids.agent(f.meta.to), "topic", f.meta.topic, "reason", reason)
	m.later(m.backoff(f.retries), func() {
		f.paused = false
		if m.out.flows[f.meta.id] == f {
			m.ready(f)
		}
	})
}

// goBack sends again from have+1, which the receiver waits for.
func (m *Mailbox) goBack(f *flow, have uint64) {
	if f.paused || f.rewound == have+1 || have >= f.sent {
		return // answered already; one gap makes many answers, of which the first counts
	}
	f.rewound = have + 1
	if have < f.acked {
		m.log.Warn("a receiver lost mail that it had acknowledged", "agent", m.ids.agent(f.meta.to),
			"topic", f.meta.topic, "have", have, "acked", f.acked)
		m.drop(f)
		f.acked, f.sent = have, have
	} else {
		m.rewind(f)
	}
	m.ready(f)
}
