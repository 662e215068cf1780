package task

import (
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// change is an input to a task's machine with the bytes that came along.
type change struct {
	in        input
	status    []byte   // as the worker or the doer said it; nil: made from the new state
	artifacts [][]byte // whole artifacts
	message   []byte   // of a reply
	reason    string   // Asked: the doer's reason code
	receipt   []byte   // Asked: the doer's receipt
	peerN     uint64   // Asked: the doer's event number
	attempt   uint32   // Asked: the doer's attempt
}

// apply takes one step of a task inside tx: rows, log, envelopes now; workers and
// watchers after the commit. It may run again, so it touches nothing but tx and r.
func (e *Engine) apply(tx *store.Tx, r *row, c change) error {
	next, eff, err := step(r.machine, c.in)
	if err != nil {
		return err
	}
	before := r.state
	r.machine = next
	now := time.Now().UnixMilli()
	r.updated = now
	if r.role == Asked && c.peerN > 0 {
		r.peerN, r.delivery, r.attempt = c.peerN, deliveryDone, int(c.attempt)
	}
	if c.reason != "" {
		r.reason = c.reason
	}
	if r.role == Asked && c.in.kind == inUndelivered {
		r.delivery = deliveryFailed
	}
	if c.in.kind == inStart {
		r.deadline = now + r.timeout
		if r.started == 0 {
			r.started = now
		}
	}
	if eff&doGrace != 0 {
		r.deadline = now + cancelGrace.Milliseconds()
	}
	if eff&doRecord != 0 {
		if err := e.record(tx, r, c, eff, before, now); err != nil {
			return err
		}
	}
	if err := e.postEffects(tx, r, c, eff); err != nil {
		return err
	}
	if err := saveRow(tx, r); err != nil {
		return err
	}
	return e.afterCommit(tx, r, c, eff)
}

// record appends the step to the log, with the receipt when it ends the task, and
// posts it to the other side.
func (e *Engine) record(tx *store.Tx, r *row, c change, eff effects, before a2a.TaskState, now int64) error {
	if c.message != nil {
		if err := addEvent(tx, r, eventMessage, c.message, now); err != nil {
			return err
		}
	}
	ev := &wire.TaskEvent{N: r.n + 1, Artifacts: c.artifacts, Reason: r.reason, Attempt: uint32(r.attempt)}
	r.artifacts += len(c.artifacts)
	ev.Status = c.status
	if ev.Status == nil && (r.state != before || c.in.kind == inStart) {
		st, err := encodeStatus(r.state, nil, fromMS(now))
		if err != nil {
			return err
		}
		ev.Status = st
	}
	if ev.Status != nil {
		r.status = ev.Status
	}
	if eff&doSign != 0 {
		signed, err := e.signReceipt(tx, r, ev, now)
		if err != nil {
			return err
		}
		r.receipt, ev.Receipt = signed, signed
	}
	if eff&doCountersign != 0 {
		if err := e.countersign(tx, r, ev, c.receipt); err != nil {
			return err
		}
	}
	body, err := deterministic.Marshal(ev)
	if err != nil {
		return err
	}
	if err := addEvent(tx, r, eventStep, body, now); err != nil {
		return err
	}
	if eff&doTell == 0 || r.key.Requester == "" {
		return nil
	}
	m := &wire.TaskMail{TaskId: string(r.key.ID), Body: &wire.TaskMail_Event{Event: ev}}
	if c.in.kind == inStart {
		// That it started interests a person; the outcome of a quick task can go with it.
		_, err := e.Outbox.PostLazy(tx, r.doer, r.key.Requester, Topic, encodeMail(m), 0)
		return err
	}
	return e.post(tx, r.doer, r.key.Requester, m)
}

// postEffects sends what the asker says to the doer.
func (e *Engine) postEffects(tx *store.Tx, r *row, c change, eff effects) error {
	if eff&doAskCancel != 0 {
		err := e.post(tx, r.key.Requester, r.doer, &wire.TaskMail{
			TaskId: string(r.key.ID),
			Body:   &wire.TaskMail_Cancel{Cancel: &wire.TaskCancel{Reason: "asked"}},
		})
		if err != nil {
			return err
		}
	}
	if eff&doSendInput != 0 {
		return e.post(tx, r.key.Requester, r.doer, &wire.TaskMail{
			TaskId: string(r.key.ID),
			Body:   &wire.TaskMail_Input{Input: &wire.TaskInput{Message: c.message}},
		})
	}
	return nil
}

func (e *Engine) post(tx *store.Tx, from, to shoal.AgentID, m *wire.TaskMail) error {
	_, err := e.Outbox.Post(tx, from, to, Topic, encodeMail(m), 0)
	return err
}

// afterCommit registers what may happen only once the step is on disk.
func (e *Engine) afterCommit(tx *store.Tx, r *row, c change, eff effects) error {
	key, agent := r.key, r.doer
	if eff&doAssign != 0 {
		a, err := e.assignment(tx, r)
		if err != nil {
			return err
		}
		tx.AfterCommit(func() { e.Workers.Start(a) })
	}
	if eff&doPassInput != 0 {
		msg, err := decodeMessage(c.message)
		if err != nil {
			return err
		}
		tx.AfterCommit(func() {
			if !e.Workers.Tell(key, agent, msg, "") {
				e.queue.lost([]shoal.TaskKey{key}, agent, inUnseen)
			}
		})
	}
	if eff&doPassCancel != 0 {
		tx.AfterCommit(func() { e.Workers.Tell(key, agent, nil, ReasonCanceled) })
	}
	if eff&doRelease != 0 {
		terminal := r.state.Terminal()
		tx.AfterCommit(func() {
			e.Workers.Release(key, agent)
			if terminal {
				e.hub.forgetChunks(key)
			}
		})
	}
	if eff&doQueue != 0 {
		tx.AfterCommit(func() { e.queue.add(agent) })
	}
	if r.role == Doing {
		deadline := r.deadline
		if r.state.Terminal() || interrupted(r.state) || r.queued {
			deadline = 0
		}
		tx.AfterCommit(func() { e.timers.set(key, deadline) })
	}
	role, settled := r.role, r.state.Terminal() || interrupted(r.state)
	tx.AfterCommit(func() { e.hub.wake(role, key, settled) })
	return nil
}

// assignment builds what the worker gets: the message and the turns before it.
func (e *Engine) assignment(tx *store.Tx, r *row) (shoal.Assignment, error) {
	msg, err := decodeMessage(r.message)
	if err != nil {
		return shoal.Assignment{}, err
	}
	a := shoal.Assignment{
		Key: r.key, Agent: r.doer, ContextID: r.contextID, Skill: r.skill, Attempt: r.attempt, Class: r.class,
		Message: msg, Deadline: fromMS(r.deadline),
	}
	if r.attempt == 1 {
		return a, nil // nothing can have been said before
	}
	f, err := foldEvents(tx, r)
	if err != nil {
		return shoal.Assignment{}, err
	}
	turns, err := f.history(r)
	if err != nil {
		return shoal.Assignment{}, err
	}
	// The newest message of the asker is the one to answer, the rest is history.
	for i := len(turns) - 1; i >= 0; i-- {
		if turns[i].Role == a2a.MessageRoleUser {
			a.Message, a.History = turns[i], turns[:i]
			break
		}
	}
	return a, nil
}

// folded is what a task's log adds up to.
type folded struct {
	artifacts [][]byte // newest version of each, in order of first appearance
	turns     []turn
}

// turn is one message of the conversation.
type turn struct {
	raw    []byte // message or, when status is set, TaskStatus
	status bool
}

// foldEvents reads the whole log of a task.
func foldEvents(tx *store.Tx, r *row) (folded, error) {
	var f folded
	place := map[string]int{}
	events, err := eventsAfter(tx, r.row, 0, -1)
	if err != nil {
		return f, err
	}
	for _, l := range events {
		if l.kind == eventMessage {
			f.turns = append(f.turns, turn{raw: l.body})
			continue
		}
		var ev wire.TaskEvent
		if err := proto.Unmarshal(l.body, &ev); err != nil {
			return f, shoal.NewError(shoal.Corrupt, "event_corrupt", "event of task "+string(r.key.ID)+" is damaged", "restore a backup").Because(err)
		}
		f.addArtifacts(place, ev.GetArtifacts())
		if ev.GetStatus() != nil {
			f.turns = append(f.turns, turn{raw: ev.GetStatus(), status: true})
		}
	}
	return f, nil
}

func (f *folded) addArtifacts(place map[string]int, raws [][]byte) {
	for _, raw := range raws {
		id := artifactID(raw)
		if i, seen := place[id]; seen {
			f.artifacts[i] = raw
			continue
		}
		place[id] = len(f.artifacts)
		f.artifacts = append(f.artifacts, raw)
	}
}

// history returns the messages of both sides, oldest first; the message of the current
// status is not part of it (A2A 1.0 §3.7).
func (f *folded) history(r *row) ([]*a2a.Message, error) {
	first, err := decodeMessage(r.message)
	if err != nil {
		return nil, err
	}
	out := []*a2a.Message{first}
	for i, t := range f.turns {
		if !t.status {
			m, err := decodeMessage(t.raw)
			if err != nil {
				return nil, err
			}
			out = append(out, m)
			continue
		}
		if i == len(f.turns)-1 {
			break
		}
		s, err := decodeStatus(t.raw)
		if err != nil {
			return nil, err
		}
		if s.msg != nil {
			out = append(out, s.msg)
		}
	}
	return out, nil
}
