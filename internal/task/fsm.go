package task

import (
	"github.com/a2aproject/a2a-go/v2/a2a"
)

// machine is all that the rules know of a task. It is a value: step returns a new one.
type machine struct {
	role      Role
	state     a2a.TaskState
	attempt   int  // how often a worker was handed it
	queued    bool // Doing: waits for a worker's slot
	held      bool // Doing: a worker session holds it
	canceling bool // a cancel is on its way to the doer, or to the worker
	reason    string
}

// inputKind is what can happen to a task.
type inputKind uint8

const (
	inStart       inputKind = iota // Doing: a slot was reserved
	inReport                       // Doing: the worker says state ("" = artifacts only)
	inLost                         // Doing: the worker is gone
	inUnseen                       // Doing: the worker was gone before it could see the reply
	inDeadline                     // Doing: time is up
	inCancel                       // Asked: the user cancels. Doing: the asker's cancel arrived
	inReply                        // Asked: the user replies. Doing: the reply arrived
	inEvent                        // Asked: the doer says state ("" = artifacts only)
	inUndelivered                  // Asked: the offer expired, or was refused for reason
	inUnknown                      // live task, either role: a crash or a cut stream
)

type input struct {
	kind       inputKind
	state      a2a.TaskState
	idempotent bool   // inLost: the skill may be run again
	reason     string // inUndelivered: the receiver's reason code, "" = expired
}

// effects is what the shell must do after a step, in the order of the constants.
type effects uint16

const (
	doRecord      effects = 1 << iota // append the step to the event log
	doTell                            // post the event to the other party
	doSign                            // make and sign the receipt (with doTell: sends it along)
	doCountersign                     // verify, countersign, post back
	doAssign                          // hand the task to the reserved worker
	doQueue                           // dispatch when a worker is free
	doPassInput                       // give the reply to the worker that holds it
	doPassCancel                      // tell the worker to stop
	doRelease                         // the worker's slot is free
	doAskCancel                       // post the cancel to the doer
	doSendInput                       // post the reply to the doer
	doGrace                           // Doing: cancel it for good if the worker stays silent
)

// step applies one input. It has no clock, no randomness and no I/O, so
// testdata/*.txt can show whole lives of tasks. An error leaves the machine as it was;
// the transitions are those of spec/task-states.md §2.
func step(m machine, in input) (machine, effects, error) {
	if m.state.Terminal() {
		return m, 0, ErrTerminal
	}
	switch in.kind {
	case inStart:
		return start(m)
	case inReport:
		return report(m, in.state)
	case inLost:
		return lost(m, in.idempotent)
	case inUnseen:
		if m.role != Doing || !m.held || m.state != a2a.TaskStateWorking {
			return m, 0, ErrIllegal
		}
		m.held, m.queued = false, true
		return m, doQueue, nil
	case inDeadline:
		return timeUp(m)
	case inCancel:
		return cancel(m)
	case inReply:
		return reply(m)
	case inEvent:
		return heard(m, in.state)
	case inUndelivered:
		return undelivered(m, in.reason)
	case inUnknown:
		m.reason = ReasonOutcomeUnknown
		return end(m, a2a.TaskStateFailed)
	}
	return m, 0, ErrIllegal
}

func start(m machine) (machine, effects, error) {
	if m.role != Doing || !m.queued {
		return m, 0, ErrIllegal
	}
	m.state, m.queued, m.held = a2a.TaskStateWorking, false, true
	m.attempt++
	return m, doRecord | doTell | doAssign, nil
}

func report(m machine, to a2a.TaskState) (machine, effects, error) {
	if m.role != Doing || !m.held {
		return m, 0, ErrIllegal
	}
	switch {
	case to == a2a.TaskStateUnspecified || to == a2a.TaskStateWorking:
		if m.state != a2a.TaskStateWorking {
			return m, 0, ErrIllegal
		}
		return m, doRecord | doTell, nil
	case interrupted(to):
		if m.state != a2a.TaskStateWorking || m.canceling {
			return m, 0, ErrIllegal
		}
		m.state = to
		return m, doRecord | doTell | doRelease, nil
	case to.Terminal():
		return end(m, to)
	}
	return m, 0, ErrIllegal
}

func lost(m machine, idempotent bool) (machine, effects, error) {
	if m.role != Doing || !m.held {
		return m, 0, ErrIllegal
	}
	m.held = false
	switch {
	case interrupted(m.state):
		// Nothing was in the middle: the reply will be handed to another worker.
		return m, 0, nil
	case m.canceling:
		m.reason = ReasonCanceled
		return end(m, a2a.TaskStateCanceled)
	case idempotent:
		m.queued = true
		return m, doQueue, nil
	}
	m.reason = ReasonWorkerLost
	return end(m, a2a.TaskStateFailed)
}

func timeUp(m machine) (machine, effects, error) {
	if m.role != Doing {
		return m, 0, ErrIllegal
	}
	held := m.held
	to := a2a.TaskStateFailed
	m.reason = ReasonDeadline
	if m.canceling {
		to, m.reason = a2a.TaskStateCanceled, ReasonCanceled
	}
	m, eff, err := end(m, to)
	if held {
		eff |= doPassCancel
	}
	return m, eff, err
}

func cancel(m machine) (machine, effects, error) {
	if m.role == Asked {
		if m.canceling {
			return m, 0, nil // asked already; a retry changes nothing
		}
		m.canceling = true
		return m, doAskCancel, nil
	}
	if m.state == a2a.TaskStateWorking && m.held {
		m.canceling = true
		return m, doPassCancel | doGrace, nil
	}
	held := m.held
	m.reason = ReasonCanceled
	m, eff, err := end(m, a2a.TaskStateCanceled)
	if held {
		eff |= doPassCancel
	}
	return m, eff, err
}

func reply(m machine) (machine, effects, error) {
	if !interrupted(m.state) {
		return m, 0, ErrNotInterrupted
	}
	m.state = a2a.TaskStateWorking
	if m.role == Asked {
		return m, doRecord | doSendInput, nil
	}
	if m.held {
		return m, doRecord | doTell | doPassInput, nil
	}
	m.queued = true
	return m, doRecord | doTell | doQueue, nil
}

func heard(m machine, to a2a.TaskState) (machine, effects, error) {
	if m.role != Asked || to == a2a.TaskStateSubmitted {
		return m, 0, ErrIllegal
	}
	switch {
	case to == a2a.TaskStateUnspecified:
		return m, doRecord, nil
	case to == a2a.TaskStateWorking || interrupted(to):
		m.state = to
		return m, doRecord, nil
	case to.Terminal():
		m.state = to
		return m, doRecord | doCountersign, nil
	}
	return m, 0, ErrIllegal
}

func undelivered(m machine, reason string) (machine, effects, error) {
	if m.role != Asked || m.state != a2a.TaskStateSubmitted {
		return m, 0, ErrIllegal
	}
	switch {
	case m.canceling:
		m.state, m.reason = a2a.TaskStateCanceled, ReasonCanceled
	case reason == "" || reason == "expired":
		m.state, m.reason = a2a.TaskStateFailed, ReasonUndeliverable
	default:
		m.state, m.reason = a2a.TaskStateRejected, reason
	}
	return m, doRecord, nil
}

// end moves a task to a terminal state; the doer then owes a receipt.
func end(m machine, to a2a.TaskState) (machine, effects, error) {
	m.state = to
	eff := doRecord
	if m.role == Doing {
		eff |= doTell | doSign | doRelease
	}
	m.queued, m.held = false, false
	return m, eff, nil
}
