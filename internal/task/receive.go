package task

import (
	"errors"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// Receive applies an envelope of topic [Topic]. Package mail calls it in the transaction
// that also remembers the envelope, with the signature checked and To hosted here. An
// error of a kind other than Internal, Unavailable and Exhausted refuses it for good.
func (e *Engine) Receive(tx *store.Tx, env shoal.Envelope) error {
	var m wire.TaskMail
	if err := proto.Unmarshal(env.Body, &m); err != nil {
		return shoal.NewError(shoal.Invalid, "bad_body", "the task envelope cannot be decoded", "").Because(err)
	}
	id := a2a.TaskID(m.GetTaskId())
	if !validID(id) {
		return shoal.NewError(shoal.Invalid, "bad_task_id", "the task id is empty or too long", "use 1 to 128 bytes")
	}
	asked := shoal.TaskKey{Requester: env.To, ID: id}   // we are the asker
	doing := shoal.TaskKey{Requester: env.From, ID: id} // we are the doer
	switch body := m.GetBody().(type) {
	case *wire.TaskMail_Offer:
		return e.receiveOffer(tx, env, doing, body.Offer)
	case *wire.TaskMail_Input:
		return e.receiveInput(tx, env, doing, body.Input)
	case *wire.TaskMail_Cancel:
		return e.receiveCancel(tx, env, doing)
	case *wire.TaskMail_Event:
		return e.receiveEvent(tx, env, asked, body.Event)
	case *wire.TaskMail_Countersigned:
		return e.receiveCountersigned(tx, env, doing, body.Countersigned.GetReceipt())
	}
	return shoal.NewError(shoal.Unsupported, "unknown_body", "the task envelope has an unknown body", "the sender may run a newer version")
}

// stepRow applies c to the row of a role after checking that the other party is who it
// has to be: doer for both roles, since the key names the requester.
func (e *Engine) stepRow(tx *store.Tx, role Role, key shoal.TaskKey, doer shoal.AgentID, c change) error {
	r, err := loadRow(tx, role, key)
	if err != nil {
		return err
	}
	if r.doer != doer {
		// Whether the task exists is not the sender's business (security.md S5).
		return ErrNotFound.With("%s", clip(string(key.ID)))
	}
	return e.apply(tx, &r, c)
}

// ignoreEnded drops the error of a message that crossed the end of its task.
func ignoreEnded(err error) error {
	if errors.Is(err, ErrTerminal) {
		return nil
	}
	return err
}

// receiveOffer stores a task to do and starts it if a worker is free: a task that need
// not wait costs the doer one commit before its work begins.
func (e *Engine) receiveOffer(tx *store.Tx, env shoal.Envelope, key shoal.TaskKey, o *wire.TaskOffer) error {
	if _, err := loadRow(tx, Doing, key); err == nil {
		return nil // the same offer on another way
	} else if !isNotFound(err) {
		return err
	}
	r, err := e.newDoing(key, env.To, o)
	if err != nil {
		return err
	}
	waiting := e.queue.waiting(env.To)
	if waiting {
		var n int
		if _, err := tx.One(`SELECT COUNT(*) FROM tasks WHERE doer = ? AND queued = 1`, []any{string(env.To)}, &n); err != nil {
			return err
		}
		if n >= maxQueued {
			// For good, so that the asker learns it: a queue this long is not a moment's.
			return shoal.NewError(shoal.Denied, ErrTooMany.Reason, ErrTooMany.Msg, ErrTooMany.Hint)
		}
	}
	if err := insertSubmitted(tx, &r, "", nil); err != nil {
		return err
	}
	e.traceHop(tx, "task.receive", &r, r.created)
	if !waiting {
		started, err := e.tryStart(tx, &r)
		if err != nil || started {
			return err
		}
	}
	agent := r.doer
	tx.AfterCommit(func() { e.queue.add(agent) })
	return nil
}

// newDoing checks an offer and makes its row.
func (e *Engine) newDoing(key shoal.TaskKey, doer shoal.AgentID, o *wire.TaskOffer) (row, error) {
	if _, err := decodeMessage(o.GetMessage()); err != nil {
		return row{}, err
	}
	if len(o.GetContextId()) > maxKey || len(o.GetSkill()) > maxKey || len(o.GetTrace()) > maxKey {
		return row{}, shoal.NewError(shoal.Invalid, "bad_offer", "a field of the offer is too long", "")
	}
	skill, err := e.Workers.Skill(doer, o.GetSkill())
	if err != nil {
		return row{}, err
	}
	timeout := time.Duration(o.GetTimeoutMs()) * time.Millisecond
	switch {
	case o.GetTimeoutMs() < 0:
		return row{}, shoal.NewError(shoal.Invalid, "bad_timeout", "the offer's timeout is negative", "use a positive duration")
	case timeout == 0:
		timeout = e.cfg.DefaultTimeout
	case timeout > e.cfg.MaxTimeout || o.GetTimeoutMs() > e.cfg.MaxTimeout.Milliseconds():
		timeout = e.cfg.MaxTimeout
	}
	now := time.Now().UnixMilli()
	class := shoal.Durable
	if o.GetClass() == uint32(shoal.Live) {
		class = shoal.Live
	}
	return row{
		machine: machine{role: Doing, state: a2a.TaskStateSubmitted, queued: true},
		key:     key, doer: doer, contextID: o.GetContextId(), skill: skill.ID, class: class, trace: o.GetTrace(),
		created: now, updated: now, timeout: timeout.Milliseconds(), message: o.GetMessage(),
	}, nil
}

// tryStart reserves a worker and takes the step to WORKING, all of which comes true only
// with the commit: the input is released after it.
func (e *Engine) tryStart(tx *store.Tx, r *row) (bool, error) {
	key, agent := r.key, r.doer
	if !e.Workers.Reserve(key, agent, r.skill) {
		return false, nil
	}
	tx.OnRollback(func() { e.Workers.Release(key, agent) })
	return true, e.apply(tx, r, change{in: input{kind: inStart}})
}

func (e *Engine) receiveInput(tx *store.Tx, env shoal.Envelope, key shoal.TaskKey, in *wire.TaskInput) error {
	if _, err := decodeMessage(in.GetMessage()); err != nil {
		return err
	}
	return ignoreEnded(e.stepRow(tx, Doing, key, env.To, change{in: input{kind: inReply}, message: in.GetMessage()}))
}

func (e *Engine) receiveCancel(tx *store.Tx, env shoal.Envelope, key shoal.TaskKey) error {
	if lt := e.live.doing(key); lt != nil {
		tx.AfterCommit(func() { e.Workers.Tell(key, env.To, nil, ReasonCanceled) })
		return nil
	}
	return ignoreEnded(e.stepRow(tx, Doing, key, env.To, change{in: input{kind: inCancel}}))
}

// receiveEvent applies what the doer says to the asker's row.
func (e *Engine) receiveEvent(tx *store.Tx, env shoal.Envelope, key shoal.TaskKey, ev *wire.TaskEvent) error {
	r, err := loadRow(tx, Asked, key)
	if isNotFound(err) && e.live.has(key) {
		// The stream of a live task is just handing over to mail: its row is on the way.
		return shoal.NewError(shoal.Unavailable, "task_pending", "the task is being stored", "")
	}
	if err != nil {
		return err
	}
	if r.doer != env.From {
		return ErrNotParty
	}
	if ev.GetN() <= r.peerN {
		return nil
	}
	c, err := eventChange(ev)
	if err != nil {
		return err
	}
	if err := e.apply(tx, &r, c); err != nil {
		return ignoreEnded(err)
	}
	if r.state.Terminal() {
		e.traceHop(tx, "task.done", &r, r.created)
	}
	return nil
}

// eventChange checks a doer's event and turns it into a step.
func eventChange(ev *wire.TaskEvent) (change, error) {
	c := change{
		in: input{kind: inEvent}, artifacts: ev.GetArtifacts(), receipt: ev.GetReceipt(),
		reason: clip(ev.GetReason()), peerN: ev.GetN(), attempt: ev.GetAttempt(),
	}
	for _, raw := range ev.GetArtifacts() {
		if _, err := decodeArtifact(raw); err != nil {
			return change{}, err
		}
	}
	if ev.GetStatus() != nil {
		s, err := decodeStatus(ev.GetStatus())
		if err != nil {
			return change{}, err
		}
		c.status, c.in.state = ev.GetStatus(), s.state
	}
	if ev.GetN() == 0 || c.status == nil && len(c.artifacts) == 0 {
		return change{}, shoal.NewError(shoal.Invalid, "bad_event", "the event says nothing", "")
	}
	return c, nil
}

// Undelivered ends a task whose offer expired (reason "expired") or was refused for
// reason. Package mail calls it in the transaction that makes the envelope a dead letter.
func (e *Engine) Undelivered(tx *store.Tx, env shoal.Envelope, reason string) error {
	var m wire.TaskMail
	if proto.Unmarshal(env.Body, &m) != nil || m.GetOffer() == nil {
		return nil // other envelopes of a task change nothing by not arriving
	}
	key := shoal.TaskKey{Requester: env.From, ID: a2a.TaskID(m.GetTaskId())}
	err := e.stepRow(tx, Asked, key, env.To, change{in: input{kind: inUndelivered, reason: reason}})
	if errors.Is(err, ErrIllegal) || errors.Is(err, ErrTerminal) || isNotFound(err) {
		return nil // it arrived after all, on another way
	}
	return err
}

// traceHop makes a span from the row's birth to now, child of the asker's submit span.
func (e *Engine) traceHop(tx *store.Tx, name string, r *row, fromTime int64) {
	ctx, key, skill := contextOf(r.trace), r.key, r.skill
	tx.AfterCommit(func() {
		_, span := e.cfg.Tracer.Start(ctx, name, trace.WithTimestamp(fromMS(fromTime)))
		span.SetAttributes(taskAttrs(key, skill)...)
		span.End()
	})
}
