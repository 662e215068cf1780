package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
)

const (
	// maxBody leaves room for the rest of wire.TaskMail in an envelope.
	maxBody = shoal.MaxBody - 8<<10
	// maxQueued bounds the tasks that wait for one hosted agent.
	maxQueued = 10_000
	// cancelGrace is how long a worker has to answer a cancel before the engine does.
	cancelGrace = 10 * time.Second
	// maxKey bounds an idempotency key.
	maxKey = 128
)

// Config holds what an operator may change.
type Config struct {
	// Network is the mesh's name; it is part of every receipt.
	Network string
	// DefaultTimeout is how long work may take when the asker names no time. Default 10 min.
	DefaultTimeout time.Duration
	// MaxTimeout caps what an asker may name, so that a slot is not held for ever. Default 24 h.
	MaxTimeout time.Duration
	// Tracer makes a span for each hop of a task. Default: none.
	Tracer trace.Tracer
}

func (c Config) withDefaults() Config {
	if c.DefaultTimeout == 0 {
		c.DefaultTimeout = 10 * time.Minute
	}
	if c.MaxTimeout == 0 {
		c.MaxTimeout = 24 * time.Hour
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	return c
}

// Outbox posts envelopes in a transaction (package mail).
type Outbox interface {
	Post(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration) ([16]byte, error)
	// PostLazy is Post for what nobody waits for: it may wait a moment for company.
	PostLazy(tx *store.Tx, from, to shoal.AgentID, topic string, body []byte, ttl time.Duration) ([16]byte, error)
}

// Workers are the programs attached to hosted agents (package worker). No method blocks
// or calls back into the engine before it returned.
type Workers interface {
	// Skill returns the agent's skill, its first for "", or unknown_agent, unknown_skill.
	Skill(agent shoal.AgentID, skill string) (shoal.Skill, error)
	// Reserve holds a slot for key; it is idempotent.
	Reserve(key shoal.TaskKey, agent shoal.AgentID, skill string) bool
	// Start hands the task to the worker whose slot was reserved.
	Start(a shoal.Assignment)
	// Tell passes input, or a cancel with its reason; false if nobody holds the task.
	Tell(key shoal.TaskKey, agent shoal.AgentID, input *a2a.Message, cancel string) bool
	// Release gives the slot back.
	Release(key shoal.TaskKey, agent shoal.AgentID)
}

// Agents answers questions about agents anywhere (package directory).
type Agents interface {
	// Host returns the node that hosts the agent.
	Host(ctx context.Context, agent shoal.AgentID) (shoal.NodeID, error)
	// Choose returns the agent that should do a task of that skill.
	Choose(ctx context.Context, skill string) (shoal.AgentID, error)
	// Check returns unknown_skill if the agent's card is known and lacks the skill. It
	// does not wait for the network.
	Check(agent shoal.AgentID, skill string) error
}

// Dialer opens streams to other nodes (package mesh).
type Dialer interface {
	Dial(ctx context.Context, node shoal.NodeID, proto string) (net.Conn, error)
}

// Keys are the private keys of hosted agents (package identity).
type Keys interface {
	Key(agent shoal.AgentID) (identity.Key, bool)
}

// Deps are the neighbours that node hands in.
type Deps struct {
	DB      *store.DB
	Outbox  Outbox
	Workers Workers
	Agents  Agents
	Mesh    Dialer
	Keys    Keys
	Log     *slog.Logger
}

// Engine runs tasks. Its methods are safe for concurrent use.
type Engine struct {
	cfg Config
	Deps
	hub     *hub
	timers  *timers
	queue   *queue
	live    *liveTasks
	lastRun int64 // rows up to here are of earlier runs: Run settles those that are open
}

// New returns an engine. It reads where the tasks of the last run end, for mail may bring
// new ones before [Engine.Run] has settled the old, and starts nothing.
func New(cfg Config, d Deps) (*Engine, error) {
	e := &Engine{cfg: cfg.withDefaults(), Deps: d, hub: newHub(), timers: newTimers(), queue: newQueue(), live: newLiveTasks()}
	err := d.DB.View(context.Background(), func(tx *store.Tx) error {
		_, err := tx.One(`SELECT COALESCE(MAX(row), 0) FROM tasks`, nil, &e.lastRun)
		return err
	})
	return e, err
}

// Submit stores a task and posts its offer in one transaction; it does not wait for the
// other side. The task starts in SUBMITTED. A request with an IdempotencyKey that was
// used before by the same agent returns the task made then, and created = false;
// [ErrKeyReused] if that was another request. A live task is run to its first terminal
// or interrupted state before Submit returns.
func (e *Engine) Submit(ctx context.Context, req Request) (t Task, created bool, err error) {
	ctx, span := e.cfg.Tracer.Start(ctx, "task.submit", trace.WithSpanKind(trace.SpanKindProducer))
	defer func() { endSpan(span, err) }()

	r, body, err := e.prepare(ctx, &req)
	if err != nil {
		return Task{}, false, err
	}
	hash, err := requestHash(req.To, req.Skill, body)
	if err != nil {
		return Task{}, false, err
	}
	if req.Class == shoal.Live {
		return e.submitLive(ctx, req, r, hash)
	}

	err = e.DB.Update(ctx, func(tx *store.Tx) error {
		fresh := r // Update may run this again
		if known, found, err := e.known(tx, req, hash); err != nil || found {
			t, created = known, false
			return err
		}
		if err := insertSubmitted(tx, &fresh, req.IdempotencyKey, hash); err != nil {
			return err
		}
		if _, err := e.Outbox.Post(tx, req.From, req.To, Topic, e.offer(ctx, &fresh), req.TTL); err != nil {
			return err
		}
		created = true
		t, err = fresh.view()
		return err
	})
	if err != nil {
		return Task{}, false, fmt.Errorf("submit task to %s: %w", req.To, err)
	}
	return t, created, nil
}

// prepare checks a request, fills in what it leaves open and returns its row.
func (e *Engine) prepare(ctx context.Context, req *Request) (row, []byte, error) {
	if _, ok := e.Keys.Key(req.From); !ok {
		return row{}, nil, shoal.NewError(shoal.NotFound, "unknown_agent", "no agent "+clip(string(req.From))+" is hosted here",
			"see `shoal agent list`")
	}
	if err := checkRequest(req); err != nil {
		return row{}, nil, err
	}
	if req.To == "" {
		to, err := e.Agents.Choose(ctx, req.Skill)
		if err != nil {
			return row{}, nil, err
		}
		req.To = to
	}
	if err := e.Agents.Check(req.To, req.Skill); err != nil {
		return row{}, nil, err
	}
	if req.Timeout == 0 {
		req.Timeout = e.cfg.DefaultTimeout
	}
	if req.ContextID == "" {
		req.ContextID = newID()
	}
	id := a2a.TaskID(newID())
	msg := *req.Message
	msg.Role, msg.TaskID, msg.ContextID = a2a.MessageRoleUser, id, req.ContextID
	if msg.ID == "" {
		msg.ID = newID()
	}
	body, err := encodeMessage(&msg)
	if err != nil {
		return row{}, nil, err
	}
	if len(body) > maxBody {
		return row{}, nil, tooLarge("message", len(body))
	}
	now := time.Now().UnixMilli()
	r := row{
		machine: machine{role: Asked, state: a2a.TaskStateSubmitted},
		key:     shoal.TaskKey{Requester: req.From, ID: id}, doer: req.To, contextID: req.ContextID,
		skill: req.Skill, class: req.Class, trace: traceparent(ctx), created: now, updated: now,
		timeout: req.Timeout.Milliseconds(), delivery: deliveryQueued, message: body,
	}
	return r, body, nil
}

func checkRequest(req *Request) error {
	switch {
	case req.Message == nil || len(req.Message.Parts) == 0:
		return ErrBadMessage
	case req.To == "" && req.Skill == "":
		return shoal.NewError(shoal.Invalid, "no_receiver", "neither an agent nor a skill is named", "give `to`, `skill` or both")
	case len(req.IdempotencyKey) > maxKey || !utf8.ValidString(req.IdempotencyKey):
		return shoal.NewError(shoal.Invalid, "bad_key", "the idempotency key is too long or not UTF-8", "use at most 128 bytes")
	case len(req.ContextID) > maxKey || !utf8.ValidString(req.ContextID):
		return shoal.NewError(shoal.Invalid, "bad_context", "the context id is too long or not UTF-8", "use at most 128 bytes")
	case req.Timeout < 0 || req.TTL < 0:
		return shoal.NewError(shoal.Invalid, "deadline_passed", "a deadline or TTL lies in the past", "use a positive duration such as 10m")
	}
	if req.Skill != "" {
		name, err := shoal.ParseCapability(req.Skill)
		if err != nil {
			return err
		}
		req.Skill = name
	}
	if req.To != "" {
		if _, err := shoal.ParseAgentID(string(req.To)); err != nil {
			return err
		}
	}
	return nil
}

// known returns the task that an idempotency key made before.
func (e *Engine) known(tx *store.Tx, req Request, hash []byte) (Task, bool, error) {
	if req.IdempotencyKey == "" {
		return Task{}, false, nil
	}
	var id string
	var before []byte
	found, err := tx.One(`SELECT id, request_hash FROM tasks WHERE requester = ? AND idem = ?`,
		[]any{string(req.From), req.IdempotencyKey}, &id, &before)
	if err != nil || !found {
		return Task{}, false, err
	}
	if string(before) != string(hash) {
		return Task{}, false, ErrKeyReused
	}
	r, err := loadRow(tx, Asked, shoal.TaskKey{Requester: req.From, ID: a2a.TaskID(id)})
	if err != nil {
		return Task{}, false, err
	}
	t, err := e.full(tx, &r)
	return t, true, err
}

// insertSubmitted stores a new task with the event of its birth.
func insertSubmitted(tx *store.Tx, r *row, idem string, requestHash []byte) error {
	st, err := encodeStatus(a2a.TaskStateSubmitted, nil, fromMS(r.created))
	if err != nil {
		return err
	}
	body, err := deterministic.Marshal(&wire.TaskEvent{N: 1, Status: st})
	if err != nil {
		return err
	}
	r.status, r.n = st, 1
	if err := insertRow(tx, r, idem, requestHash); err != nil {
		return err
	}
	r.n = 0
	return addEvent(tx, r, eventStep, body, r.created)
}

// offer is the mail that brings a new task to its doer.
func (e *Engine) offer(ctx context.Context, r *row) []byte {
	return encodeMail(&wire.TaskMail{TaskId: string(r.key.ID), Body: &wire.TaskMail_Offer{Offer: offerOf(r)}})
}

func offerOf(r *row) *wire.TaskOffer {
	return &wire.TaskOffer{
		ContextId: r.contextID, Skill: r.skill, Message: r.message, TimeoutMs: r.timeout,
		Class: uint32(r.class), Trace: r.trace,
	}
}

// Get returns a task with its history and artifacts, or [ErrNotFound].
func (e *Engine) Get(ctx context.Context, ref Ref) (t Task, err error) {
	err = e.DB.View(ctx, func(tx *store.Tx) error {
		r, err := findRow(tx, ref)
		if err != nil {
			return err
		}
		t, err = e.full(tx, &r)
		return err
	})
	return t, err
}

// full folds the event log into history and artifacts.
func (e *Engine) full(tx *store.Tx, r *row) (Task, error) {
	t, err := r.view()
	if err != nil {
		return Task{}, err
	}
	f, err := foldEvents(tx, r)
	if err != nil {
		return Task{}, err
	}
	if t.History, err = f.history(r); err != nil {
		return Task{}, err
	}
	for _, raw := range f.artifacts {
		a, err := decodeArtifact(raw)
		if err != nil {
			return Task{}, err
		}
		t.Artifacts = append(t.Artifacts, a)
	}
	return t, nil
}

// Cancel asks the doer to stop and returns the task as it is now; the doer decides, and
// a worker that finished in the meantime wins. Cancelling again while that is under way
// changes nothing; a task that has ended is [ErrTerminal].
func (e *Engine) Cancel(ctx context.Context, ref Ref) (Task, error) {
	return e.userStep(ctx, ref, change{in: input{kind: inCancel}})
}

// Reply answers a task in INPUT_REQUIRED or AUTH_REQUIRED, else [ErrNotInterrupted]. A
// second Reply with the same requestID returns the task without effect.
func (e *Engine) Reply(ctx context.Context, ref Ref, msg *a2a.Message, requestID string) (Task, error) {
	if msg == nil || len(msg.Parts) == 0 {
		return Task{}, ErrBadMessage
	}
	if len(requestID) > maxKey || !utf8.ValidString(requestID) {
		return Task{}, shoal.NewError(shoal.Invalid, "bad_key", "the request id is too long or not UTF-8", "use at most 128 bytes")
	}
	ref.Role = Asked
	t, err := e.Get(ctx, ref)
	if err != nil {
		return Task{}, err
	}
	m := *msg
	m.Role, m.TaskID, m.ContextID = a2a.MessageRoleUser, t.Key.ID, t.ContextID
	if requestID != "" {
		m.ID = requestID
		for _, h := range t.History {
			if h.ID == requestID {
				return t, nil
			}
		}
	} else if m.ID == "" {
		m.ID = newID()
	}
	raw, err := encodeMessage(&m)
	if err != nil {
		return Task{}, err
	}
	if len(raw) > maxBody {
		return Task{}, tooLarge("message", len(raw))
	}
	return e.userStep(ctx, ref, change{in: input{kind: inReply}, message: raw})
}

// userStep applies what the asking user wants to the asker's row.
func (e *Engine) userStep(ctx context.Context, ref Ref, c change) (t Task, err error) {
	ref.Role = Asked
	err = e.DB.Update(ctx, func(tx *store.Tx) error {
		r, err := findRow(tx, ref)
		if err != nil {
			return err
		}
		if err := e.apply(tx, &r, c); err != nil {
			return err
		}
		t, err = r.view()
		return err
	})
	return t, err
}

// Open returns how many tasks of either role have not ended.
func (e *Engine) Open(ctx context.Context) (n int, err error) {
	err = e.DB.View(ctx, func(tx *store.Tx) error {
		_, err := tx.One(`SELECT COUNT(*) FROM tasks WHERE state IN (1, 2, 6, 8)`, nil, &n)
		return err
	})
	return n, err
}

func tooLarge(what string, n int) error {
	return shoal.NewError(shoal.Invalid, "message_too_large",
		fmt.Sprintf("the %s has %d bytes, the limit is %d", what, n, maxBody), "send large content as files by reference")
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
