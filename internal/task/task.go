// Package task is the engine that takes a task from "please" to a countersigned
// receipt. Both parties run it: on the asking node a row of role [Asked], on the doing
// node a row of role [Doing], kept in step by envelopes.
//
// It promises that a durable task that was acknowledged survives any crash on either
// side, is started at most once unless its skill is idempotent, reaches exactly one
// terminal state, and that only its two parties can move it. Live tasks trade the disk
// for speed (docs/design/0004-two-classes.md).
//
// The rules are a pure function ([step] in fsm.go); this package's other files store,
// send and wake. It does not know how envelopes travel (mail), who does the work
// (worker) or where agents are (directory): those are handed in by node as small
// interfaces. The API calls it; mail and worker call back into it.
package task

import (
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

// Topic is the mail topic of task envelopes; their bodies are wire.TaskMail.
const Topic = "shoal.task"

// Protocol is the libp2p protocol of live tasks and chunk streams (spec/wire.md §6).
const Protocol = "/shoal/live/1.0.0"

// Errors that callers test for. Each may carry more detail in its message.
var (
	ErrNotFound = shoal.NewError(shoal.NotFound, "unknown_task", "no such task",
		"see `shoal task list`")
	ErrTerminal = shoal.NewError(shoal.Conflict, "task_terminal", "the task has ended",
		"see `shoal task get ID` for its outcome")
	ErrNotInterrupted = shoal.NewError(shoal.Conflict, "not_interrupted", "the task is not waiting for a reply",
		"only a task in INPUT_REQUIRED or AUTH_REQUIRED takes one")
	ErrKeyReused = shoal.NewError(shoal.Conflict, "key_reused", "this idempotency key was used for another request",
		"use a new key for a new request")
	ErrIllegal = shoal.NewError(shoal.Conflict, "illegal_transition", "the task cannot take this step",
		"see spec/task-states.md §2")
	ErrNotParty  = shoal.NewError(shoal.Denied, "not_party", "the sender is no party to the task", "")
	ErrNoReceipt = shoal.NewError(shoal.NotFound, "no_receipt", "the task has no receipt yet",
		"a receipt exists once the doer has ended the task")
	ErrBadMessage = shoal.NewError(shoal.Invalid, "bad_message", "the message is malformed",
		"a message needs at least one part")
	ErrBusy = shoal.NewError(shoal.Exhausted, "busy", "no worker is free for a live task",
		"try again, or send it with --durable to queue it")
	ErrTooMany = shoal.NewError(shoal.Exhausted, "queue_full", "the agent has too many tasks waiting",
		"try again later or ask another agent")
)

// Reason codes of tasks that ended FAILED, REJECTED or CANCELED without the worker's word.
const (
	ReasonWorkerLost     = "worker_lost"
	ReasonDeadline       = "deadline_exceeded"
	ReasonOutcomeUnknown = "outcome_unknown"
	ReasonUndeliverable  = "undeliverable"
	ReasonCanceled       = "canceled"
)

// Role says which side of a task a row is.
type Role uint8

// The two roles.
const (
	Asked Role = 1 // an agent of this node asked for it
	Doing Role = 2 // an agent of this node does it
)

// Task is one task as this node holds it. Tasks from [Engine.List] have no History and
// no Artifacts. The caller owns the value but must not change what its pointers reach.
type Task struct {
	Key           shoal.TaskKey
	Role          Role
	Doer          shoal.AgentID
	ContextID     string
	Skill         string
	Class         shoal.Class
	State         a2a.TaskState
	StatusMessage *a2a.Message
	StatusAt      time.Time
	Attempt       int
	Reason        string // why, if it ended without or against the worker's word
	Created       time.Time
	Updated       time.Time
	Delivery      string // asked durable tasks: "queued", "delivered" or "undeliverable"
	Cursor        uint64 // of the last event
	History       []*a2a.Message
	Artifacts     []*a2a.Artifact
}

// Terminal reports whether the task has ended.
func (t Task) Terminal() bool { return t.State.Terminal() }

// Interrupted reports whether the task waits for the asker.
func (t Task) Interrupted() bool { return interrupted(t.State) }

// A2A returns the task in A2A's shape.
func (t Task) A2A() *a2a.Task {
	at := t.StatusAt
	return &a2a.Task{
		ID: t.Key.ID, ContextID: t.ContextID, History: t.History, Artifacts: t.Artifacts,
		Status: a2a.TaskStatus{State: t.State, Message: t.StatusMessage, Timestamp: &at},
	}
}

// Ref names a task in a call. The zero Requester is anybody; the zero Role means Asked,
// and Doing if there is no such row.
type Ref struct {
	ID        a2a.TaskID
	Requester shoal.AgentID
	Role      Role
}

// Request is what [Engine.Submit] takes.
type Request struct {
	From           shoal.AgentID // a hosted agent
	To             shoal.AgentID // "" lets the engine choose among those that offer Skill
	Skill          string        // "" is the doer's first skill
	Message        *a2a.Message  // at least one part; not retained
	IdempotencyKey string        // at most 128 bytes
	ContextID      string        // "" makes a new one
	Timeout        time.Duration // for the work, from WORKING; 0 = Config.DefaultTimeout
	TTL            time.Duration // for the delivery; 0 = mail's default
	Class          shoal.Class
}

// Event is one thing that happened to a task. Exactly one of the pointers is set.
// Cursor is the place after the event: a watch that resumes there misses nothing.
// Chunks do not move it.
type Event struct {
	Cursor   uint64
	At       time.Time
	Status   *a2a.TaskStatus
	Artifact *a2a.Artifact
	Message  *a2a.Message // what the asker said: the first message, then replies
	Chunk    *shoal.Chunk
	Final    *Task // the last event of a watch
}

// Filter selects tasks in [Engine.List]; zero fields select all.
type Filter struct {
	State     a2a.TaskState
	Role      Role
	ContextID string
	PageSize  int // 1…100, 0 = 50
	PageToken string
}

// SignedReceipt is a receipt with what was signed and how it fits what this node holds.
type SignedReceipt struct {
	shoal.Receipt
	Body           []byte // wire.ReceiptBody as signed
	DoerSignature  []byte
	AskerSignature []byte // nil until the asker countersigned
	InputMatches   bool
	OutputMatches  bool
}

func interrupted(s a2a.TaskState) bool {
	return s == a2a.TaskStateInputRequired || s == a2a.TaskStateAuthRequired
}
