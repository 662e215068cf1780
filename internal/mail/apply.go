package mail

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// verdict is what was found about one envelope of a batch outside the transaction that
// takes it in: a handler failed on it, or it is not for us.
type verdict struct {
	reason string
	act    action
}

type action uint8

const (
	unjudged action = iota
	refuse          // for good; its number counts as received
	turnAway        // for good, without a row for its flow
	tryLater        // not now, and nothing after it in its flow
)

// inflow is the receiving end of a flow, as the transaction under way has it.
type inflow struct {
	triple
	id      int64 // 0: no row yet
	epoch   uint64
	have    uint64
	dirty   bool
	gap     bool
	later   bool
	why     string
	refused []refusal
}

type refusal struct {
	seq    uint64
	reason string
	old    bool // in the table already, or without a row
}

// keepRefusals is how many numbers back a flow remembers what it refused: more than a
// sender may have in flight.
const keepRefusals = 4096

// rerun is how many envelopes a transaction that failed may have to apply once more. If
// more came before the failing one, they are committed first.
const rerun = 16

// errStop ends a transaction whose handler failed, so that the store rolls it back.
var errStop = errors.New("a handler failed")

// told says, for each flow of a stream, up to where its refusals were told there.
type told map[flowName]uint64

// maxTold bounds a told. Beyond, it is emptied, and some refusals are told once more.
const maxTold = 4096

// batchRun takes in one batch of envelopes.
type batchRun struct {
	m        *Mailbox
	told     told
	envs     []inbound
	verdicts []verdict
	careful  bool // a handler failed: look whether the next that fails wrote anything

	// Of the transaction under way:
	flows   map[triple]*inflow
	order   []*inflow // as first met; an older epoch of one before its newer
	failed  int       // the envelope whose handler failed, -1 if none
	applied int
	dups    int
	opened  int64 // rows of new flows
}

// apply takes in envelopes, in order, and returns what to answer. Everything it says is
// on disk when it returns. As a rule it is one transaction. An envelope whose handler
// wrote something and then failed costs another, which is the first without it: what the
// handler wrote is rolled back with everything else, so that it leaves no trace.
func (m *Mailbox) apply(ctx context.Context, told told, envs []inbound) []*wire.FlowAck {
	run := &batchRun{m: m, told: told, envs: envs, verdicts: make([]verdict, len(envs))}
	acks := run.prejudge()
	from, to := 0, len(envs)
	for from < len(envs) {
		err := m.db.Update(ctx, func(tx *store.Tx) error { return run.take(tx, from, to) })
		switch {
		case err == nil:
			acks = run.commit(acks)
			from, to = to, len(envs)
		case !errors.Is(err, errStop):
			// The disk is full, or we are stopping: nothing was taken in.
			if ctx.Err() == nil {
				m.log.Error("store received mail", "err", err)
			}
			return run.postpone(acks, from, shoal.AsError(err).Reason)
		case run.applied > rerun:
			to = run.failed // what came before is good: keep it
		}
	}
	return acks
}

// prejudge finds what needs no table to be refused, and answers what must not even get a
// row: a stranger must not fill our disk with flows that we do not want.
func (run *batchRun) prejudge() (acks []*wire.FlowAck) {
	m := run.m
	now := time.Now().UnixMilli()
	skew := m.cfg.ClockSkew.Milliseconds()
	for i := range run.envs {
		e, v := &run.envs[i], &run.verdicts[i]
		if reason := m.unwanted(e); reason != "" {
			*v = verdict{reason, turnAway}
			m.inward.drop(reason)
			acks = append(acks, e.answer(&wire.FlowAck{Refused: reason, RefusedSeq: e.seq}))
			continue
		}
		switch {
		case e.skipFrom > 0: // says nothing that could be late
		case e.created > now+skew:
			*v = verdict{reasonClock, tryLater}
			m.log.Warn("clock differs: mail from the future", "agent", e.sender,
				"by", time.Duration(e.created-now)*time.Millisecond)
		case e.expires-e.created > m.cfg.MaxTTL.Milliseconds():
			*v = verdict{reasonBadTimes, refuse}
		case e.expires < now-skew:
			*v = verdict{reasonExpired, refuse}
		case m.handlers[e.topic] == nil:
			*v = verdict{reasonUnknownTopic, refuse}
		}
	}
	return acks
}

// unwanted returns why e is turned away at the door, "" if it is not.
func (m *Mailbox) unwanted(e *inbound) string {
	if _, ok := m.keys.Key(e.recipient); !ok {
		return reasonNotHere
	}
	if m.cfg.Admit == nil {
		return ""
	}
	if _, local := m.keys.Key(e.sender); local {
		return ""
	}
	if err := m.cfg.Admit(e.sender, e.recipient, e.topic); err != nil {
		return clip(shoal.AsError(err).Reason)
	}
	return ""
}

// answer fills in which flow fa is about.
func (e *inbound) answer(fa *wire.FlowAck) *wire.FlowAck {
	fa.From, fa.To, fa.Topic, fa.Epoch = e.from[:], e.to[:], e.topic, e.epoch
	return fa
}

// take takes in the envelopes from…to-1 in tx.
func (run *batchRun) take(tx *store.Tx, from, to int) error {
	run.flows, run.order = make(map[triple]*inflow), run.order[:0]
	run.failed, run.applied, run.dups, run.opened = -1, 0, 0, 0
	for i := from; i < to; i++ {
		e, v := &run.envs[i], run.verdicts[i]
		if v.act == turnAway {
			continue
		}
		f, err := run.inflow(tx, e)
		if err == nil && f != nil {
			err = run.one(tx, f, i)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range run.order {
		if err := run.save(tx, f); err != nil {
			return err
		}
	}
	return nil
}

// inflow returns the flow of e at the epoch of e; nil if e is of an older one.
func (run *batchRun) inflow(tx *store.Tx, e *inbound) (*inflow, error) {
	name := triple{e.from, e.to, e.topic}
	f := run.flows[name]
	if f == nil {
		f = &inflow{triple: name}
		var epoch, have int64
		found, err := tx.One(`SELECT id, epoch, have FROM mail_inflow WHERE recipient = ? AND sender = ? AND topic = ?`,
			[]any{e.to[:], e.from[:], e.topic}, &f.id, &epoch, &have)
		if err != nil {
			return nil, fmt.Errorf("read flow: %w", err)
		}
		if f.epoch, f.have = uint64(epoch), uint64(have); !found {
			f.epoch = e.epoch
		}
		if err := run.retell(tx, f); err != nil {
			return nil, err
		}
		run.flows[name] = f
		run.order = append(run.order, f)
	}
	switch {
	case e.epoch < f.epoch:
		old := &inflow{triple: name, epoch: e.epoch, refused: []refusal{{e.seq, reasonOldEpoch, true}}}
		run.order = append(run.order, old)
		return nil, nil
	case e.epoch > f.epoch:
		// The sender's database was restored: it counts anew. What was received in the
		// old epoch is answered once more.
		past := *f
		past.dirty = false
		run.order = append(run.order, &past)
		*f = inflow{triple: name, id: f.id, epoch: e.epoch}
	}
	return f, nil
}

// one takes in envelope i.
func (run *batchRun) one(tx *store.Tx, f *inflow, i int) error {
	e, v := &run.envs[i], run.verdicts[i]
	switch {
	case f.later:
		return nil // not before what it follows
	case e.seq <= f.have:
		run.dups++
		return nil
	case e.first() > f.have+1:
		f.gap = true
		return nil
	case e.skipFrom > 0:
		f.have, f.dirty = e.seq, true
		return nil
	case f.id == 0 && !f.dirty && run.full():
		f.later, f.why = true, reasonTooManyFlows
		return nil
	case v.act == tryLater:
		f.later, f.why = true, v.reason
		return nil
	case v.act == refuse:
		f.refused = append(f.refused, refusal{seq: e.seq, reason: v.reason})
		f.have, f.dirty = e.seq, true
		return nil
	}
	before, err := run.changes(tx)
	if err != nil {
		return err
	}
	if err := run.m.handlers[e.topic](tx, e.envelope()); err != nil {
		run.m.log.Debug("handler refuses mail", "topic", e.topic, "agent", e.sender, "err", err)
		return run.refuse(tx, f, i, judge(err), before)
	}
	run.applied++
	f.have, f.dirty = e.seq, true
	return nil
}

// refuse acts on a handler's error. If the handler is known to have written nothing, the
// transaction goes on; else it is rolled back, and with it those of others that share
// its commit. From then on the batch watches what its handlers write: a sender of many
// envelopes that are refused costs us one roll back, not one for each.
func (run *batchRun) refuse(tx *store.Tx, f *inflow, i int, v verdict, before int64) error {
	if run.careful {
		after, err := run.changes(tx)
		if err != nil {
			return err
		}
		if after == before {
			run.verdicts[i] = v
			return run.one(tx, f, i)
		}
	}
	run.careful = true
	run.failed, run.verdicts[i] = i, v
	return errStop
}

// changes counts what this connection ever wrote; 0 as long as no handler failed.
func (run *batchRun) changes(tx *store.Tx) (n int64, err error) {
	if run.careful {
		_, err = tx.One(`SELECT total_changes()`, nil, &n)
	}
	return n, err
}

// judge says what a handler's error means for the envelope.
func judge(err error) verdict {
	e := shoal.AsError(err)
	switch e.Kind {
	case shoal.Invalid, shoal.Denied, shoal.NotFound, shoal.Conflict, shoal.Unsupported:
		return verdict{clip(e.Reason), refuse}
	}
	return verdict{clip(e.Reason), tryLater}
}

// clip keeps a reason within what an ack may carry, and never empty.
func clip(reason string) string {
	if reason == "" {
		return "refused"
	}
	return reason[:min(len(reason), maxReason)]
}

// full reports whether there is no room for one more flow.
func (run *batchRun) full() bool {
	return run.m.inward.flows.Load()+run.opened >= int64(run.m.cfg.MaxFlows)
}

// retell adds what was refused of a flow and not told on this stream: it was refused on
// another one, whose acks may be lost, and the answer acknowledges all up to have.
func (run *batchRun) retell(tx *store.Tx, f *inflow) error {
	told := run.told[flowName{f.triple, f.epoch}]
	if f.id == 0 || f.have <= told {
		return nil
	}
	err := tx.Each(`SELECT seq, reason FROM mail_refused WHERE inflow = ? AND epoch = ? AND seq > ?`,
		[]any{f.id, int64(f.epoch), int64(told)}, func(scan func(...any) error) error {
			r := refusal{old: true}
			var seq int64
			err := scan(&seq, &r.reason)
			r.seq = uint64(seq)
			f.refused = append(f.refused, r)
			return err
		})
	if err != nil {
		return fmt.Errorf("read refusals: %w", err)
	}
	return nil
}

// save writes how far a flow came and what it refused.
func (run *batchRun) save(tx *store.Tx, f *inflow) (err error) {
	if !f.dirty {
		return nil
	}
	now := time.Now().UnixMilli()
	if f.id == 0 {
		f.id, err = tx.Insert(`INSERT INTO mail_inflow (recipient, sender, topic, epoch, have, touched_ms) VALUES (?, ?, ?, ?, ?, ?)`,
			f.to[:], f.from[:], f.topic, int64(f.epoch), int64(f.have), now)
		run.opened++
	} else {
		_, err = tx.Exec(`UPDATE mail_inflow SET epoch = ?, have = ?, touched_ms = ? WHERE id = ?`,
			int64(f.epoch), int64(f.have), now, f.id)
	}
	if err != nil {
		return fmt.Errorf("save flow: %w", err)
	}
	pruned := true
	for _, r := range f.refused {
		if r.old {
			continue
		}
		pruned = false
		if _, err := tx.Exec(`INSERT OR REPLACE INTO mail_refused (inflow, epoch, seq, reason) VALUES (?, ?, ?, ?)`,
			f.id, int64(f.epoch), int64(r.seq), r.reason); err != nil {
			return fmt.Errorf("save refusal: %w", err)
		}
	}
	if pruned {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM mail_refused WHERE inflow = ? AND (epoch < ? OR epoch = ? AND seq < ?)`,
		f.id, int64(f.epoch), int64(f.epoch), int64(f.have)-keepRefusals); err != nil {
		return fmt.Errorf("prune refusals: %w", err)
	}
	return nil
}

// commit takes note of a transaction that is on disk, and adds its answers.
func (run *batchRun) commit(acks []*wire.FlowAck) []*wire.FlowAck {
	c := &run.m.count
	c.applied.Add(uint64(run.applied))
	c.duplicates.Add(uint64(run.dups))
	run.m.inward.flows.Add(run.opened)
	if len(run.told) >= maxTold {
		clear(run.told)
	}
	for _, f := range run.order {
		run.told[flowName{f.triple, f.epoch}] = f.have
		// An ack that covers a refused envelope must not come before its refusal, so
		// each refusal acks no further than itself.
		for _, r := range f.refused {
			run.m.inward.drop(r.reason)
			acks = append(acks, f.ack(min(f.have, r.seq), func(fa *wire.FlowAck) {
				fa.Refused, fa.RefusedSeq = r.reason, r.seq
			}))
		}
		if f.have == 0 && len(f.refused) > 0 && !f.gap && !f.later {
			continue // an old epoch: nothing more to say
		}
		acks = append(acks, f.ack(f.have, func(fa *wire.FlowAck) {
			fa.Gap, fa.Later, fa.Refused = f.gap && !f.later, f.later, f.why
		}))
	}
	return acks
}

func (f *inflow) ack(have uint64, fill func(*wire.FlowAck)) *wire.FlowAck {
	fa := &wire.FlowAck{From: f.from[:], To: f.to[:], Topic: f.topic, Epoch: f.epoch, Have: have}
	fill(fa)
	return fa
}

// postpone answers that nothing of the envelopes after from was taken in.
func (run *batchRun) postpone(acks []*wire.FlowAck, from int, reason string) []*wire.FlowAck {
	seen := make(map[flowName]bool)
	for i := from; i < len(run.envs); i++ {
		e := &run.envs[i]
		name := flowName{triple{e.from, e.to, e.topic}, e.epoch}
		if run.verdicts[i].act != turnAway && !seen[name] {
			seen[name] = true
			acks = append(acks, e.answer(&wire.FlowAck{Later: true, Refused: clip(reason)}))
		}
	}
	return acks
}

func (e *inbound) first() uint64 {
	if e.skipFrom > 0 {
		return e.skipFrom
	}
	return e.seq
}

func (e *inbound) envelope() shoal.Envelope {
	return shoal.Envelope{
		ID: e.id, Network: e.network, From: e.sender, To: e.recipient, Topic: e.topic,
		Epoch: e.epoch, Seq: e.seq, SkipFrom: e.skipFrom,
		Created: time.UnixMilli(e.created), Expires: time.UnixMilli(e.expires), Body: e.body,
	}
}
