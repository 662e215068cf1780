package task

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

const (
	liveHeartbeat = 15 * time.Second // both sides give up after three silent ones
	liveSilence   = 3 * liveHeartbeat
	liveFrame     = shoal.MaxBody + 64<<10 // bytes of one frame
	liveOpen      = 10 * time.Second       // for the first frame of a stream
	liveSoon      = 20 * time.Millisecond  // a live task that takes longer gets its row before its answer
	commitTime    = 30 * time.Second       // for the commit after an answer
)

var unmarshalLive = protodelim.UnmarshalOptions{MaxSize: liveFrame}

// liveTasks holds what live tasks have in memory instead of on disk.
type liveTasks struct {
	wg sync.WaitGroup // commits after answers; Run waits for them

	mu    sync.Mutex
	doer  map[shoal.TaskKey]*liveTask
	asker map[shoal.TaskKey]struct{}
}

func newLiveTasks() *liveTasks {
	return &liveTasks{doer: map[shoal.TaskKey]*liveTask{}, asker: map[shoal.TaskKey]struct{}{}}
}

func (l *liveTasks) doing(key shoal.TaskKey) *liveTask {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.doer[key]
}

// has reports whether key is a live task that this node asked for and has not stored.
func (l *liveTasks) has(key shoal.TaskKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.asker[key]
	return ok
}

func (l *liveTasks) addAsker(key shoal.TaskKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asker[key] = struct{}{}
}

func (l *liveTasks) dropAsker(key shoal.TaskKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.asker, key)
}

// addDoer registers a live task, false if the key is in use.
func (l *liveTasks) addDoer(lt *liveTask) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.doer[lt.row.key] != nil {
		return false
	}
	l.doer[lt.row.key] = lt
	return true
}

func (l *liveTasks) dropDoer(key shoal.TaskKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.doer, key)
}

// submitLive runs a live task up to its first terminal or interrupted state. Nothing is
// on disk before the answer but, if the disk was faster, the row that a restart will
// turn into FAILED outcome_unknown.
func (e *Engine) submitLive(ctx context.Context, req Request, r row, hash []byte) (Task, bool, error) {
	if req.IdempotencyKey != "" {
		var t Task
		var found bool
		err := e.DB.View(ctx, func(tx *store.Tx) (err error) {
			t, found, err = e.known(tx, req, hash)
			return err
		})
		if err != nil || found {
			return t, false, err
		}
	}
	r.delivery = deliveryNone
	conn, err := e.dialLive(ctx, r.doer)
	if err != nil {
		return Task{}, false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	e.live.addAsker(r.key)
	first := &wire.LiveRequest{
		Network: e.cfg.Network, Requester: r.key.Requester.PublicKey(), Doer: r.doer.PublicKey(),
		TaskId: string(r.key.ID), Offer: offerOf(&r),
	}
	if err := writeLive(conn, first); err != nil {
		e.live.dropAsker(r.key)
		return Task{}, false, unreachable(r.doer, err)
	}
	answered := make(chan struct{})
	e.later(func(ctx context.Context) error {
		if req.IdempotencyKey == "" && soon(answered) {
			return nil // the row comes with the answer: one commit instead of two
		}
		return e.insertLive(ctx, r, req.IdempotencyKey, hash)
	})

	evs, refused, err := readLive(conn)
	close(answered)
	if refused != nil {
		e.live.dropAsker(r.key)
		e.later(func(ctx context.Context) error {
			return e.endLive(ctx, r, req.IdempotencyKey, hash, nil, refused.Reason)
		})
		return Task{}, false, refused
	}
	return e.answerLive(ctx, req, r, hash, evs, err)
}

// soon reports whether done is closed within a moment.
func soon(done <-chan struct{}) bool {
	timer := time.NewTimer(liveSoon)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// answerLive turns what the stream brought into the caller's answer and stores it: after
// the answer if the task ended, before it if it goes on by mail.
func (e *Engine) answerLive(ctx context.Context, req Request, r row, hash []byte, evs []*wire.TaskEvent, cut error) (Task, bool, error) {
	reason := ""
	if cut != nil {
		reason = ReasonOutcomeUnknown
	}
	t, err := liveView(r, evs, reason)
	if err != nil {
		reason = "bad_event"
		t, _ = liveView(r, nil, reason)
		evs = nil
	}
	commit := func(ctx context.Context) error {
		defer e.live.dropAsker(r.key)
		return e.endLive(ctx, r, req.IdempotencyKey, hash, evs, reason)
	}
	if t.Terminal() {
		e.later(commit)
		return t, true, nil
	}
	if err := commit(context.WithoutCancel(ctx)); err != nil {
		return Task{}, false, err
	}
	t, err = e.Get(ctx, Ref{ID: r.key.ID, Requester: r.key.Requester, Role: Asked})
	return t, true, err
}

// later runs a commit that nobody waits for; Run waits for it before it returns.
func (e *Engine) later(commit func(context.Context) error) {
	e.live.wg.Go(func() {
		// The caller has its answer: the commit must not end with the caller's context.
		ctx, cancel := context.WithTimeout(context.Background(), commitTime)
		defer cancel()
		if err := commit(ctx); err != nil {
			e.Log.Warn("live task not stored", "err", err)
		}
	})
}

// insertLive stores the row of a live task that has just been asked for.
func (e *Engine) insertLive(ctx context.Context, r row, idem string, hash []byte) error {
	return e.DB.Update(ctx, func(tx *store.Tx) error {
		if _, err := loadRow(tx, Asked, r.key); !isNotFound(err) {
			return err // the end was faster
		}
		fresh := r
		return insertSubmitted(tx, &fresh, idem, hash)
	})
}

// endLive applies all events of a live task in one transaction, and reason if it ended
// without its doer's word.
func (e *Engine) endLive(ctx context.Context, r row, idem string, hash []byte, evs []*wire.TaskEvent, reason string) error {
	return e.DB.Update(ctx, func(tx *store.Tx) error {
		fresh, err := loadRow(tx, Asked, r.key)
		if isNotFound(err) {
			fresh = r
			err = insertSubmitted(tx, &fresh, idem, hash)
		}
		if err != nil {
			return err
		}
		for _, ev := range evs {
			c, err := eventChange(ev)
			if err != nil {
				return err
			}
			if err := e.apply(tx, &fresh, c); err != nil {
				return err
			}
		}
		if reason == "" {
			return nil
		}
		c := change{in: input{kind: inUnknown}, reason: reason}
		if reason != ReasonOutcomeUnknown {
			c.in = input{kind: inUndelivered, reason: reason}
		}
		return e.apply(tx, &fresh, c)
	})
}

// liveView is the task as the stream told it.
func liveView(r row, evs []*wire.TaskEvent, reason string) (Task, error) {
	t, err := r.view()
	if err != nil {
		return Task{}, err
	}
	first, err := decodeMessage(r.message)
	if err != nil {
		return Task{}, err
	}
	t.History = []*a2a.Message{first}
	var f folded
	place := map[string]int{}
	for _, ev := range evs {
		f.addArtifacts(place, ev.GetArtifacts())
		t.Attempt, t.Reason = int(ev.GetAttempt()), clip(ev.GetReason())
		if ev.GetStatus() == nil {
			continue
		}
		s, err := decodeStatus(ev.GetStatus())
		if err != nil {
			return Task{}, err
		}
		t.State, t.StatusMessage, t.StatusAt, t.Updated = s.state, s.msg, s.at, now()
	}
	for _, raw := range f.artifacts {
		a, err := decodeArtifact(raw)
		if err != nil {
			return Task{}, err
		}
		t.Artifacts = append(t.Artifacts, a)
	}
	if reason != "" {
		t.State, t.Reason, t.Updated = a2a.TaskStateFailed, reason, now()
	}
	return t, nil
}

// dialLive opens a live stream to the agent's host; an agent of this node is reached
// through a pipe, by the same code.
func (e *Engine) dialLive(ctx context.Context, doer shoal.AgentID) (net.Conn, error) {
	if _, ok := e.Keys.Key(doer); ok {
		ours, theirs := net.Pipe()
		e.live.wg.Go(func() { e.serveLive(context.WithoutCancel(ctx), theirs, "") })
		return ours, nil
	}
	host, err := e.Agents.Host(ctx, doer)
	if err != nil {
		return nil, err
	}
	conn, err := e.Mesh.Dial(ctx, host, Protocol)
	if err != nil {
		return nil, unreachable(doer, err)
	}
	return conn, nil
}

func unreachable(agent shoal.AgentID, err error) error {
	return shoal.NewError(shoal.Unavailable, "agent_unreachable", "agent "+string(agent)+" cannot be reached",
		"send it with --durable to have it delivered later").Because(err)
}

// readLive reads events up to the first terminal or interrupted state. refused is the
// doer's own error; err says that the stream was cut.
func readLive(conn net.Conn) (evs []*wire.TaskEvent, refused *shoal.Error, err error) {
	in := bufio.NewReader(conn)
	for {
		if err := conn.SetReadDeadline(now().Add(liveSilence)); err != nil {
			return evs, nil, err
		}
		var ev wire.LiveEvent
		if err := unmarshalLive.UnmarshalFrom(in, &ev); err != nil {
			return evs, nil, err
		}
		if ev.GetError() != "" {
			return evs, liveError(ev.GetError()), nil
		}
		if ev.GetEvent() == nil {
			continue
		}
		if len(evs) >= 10_000 {
			return evs, nil, errors.New("more than 10000 events")
		}
		evs = append(evs, ev.GetEvent())
		if raw := ev.GetEvent().GetStatus(); raw != nil {
			s, err := decodeStatus(raw)
			if err != nil {
				return evs, nil, err
			}
			if s.state.Terminal() || interrupted(s.state) {
				return evs, nil, nil
			}
		}
	}
}

// liveError is the asker's view of a reason code that a doer sent.
func liveError(reason string) *shoal.Error {
	if reason == ErrBusy.Reason {
		return ErrBusy
	}
	return shoal.NewError(shoal.Denied, clip(reason), "the agent refused the live task", "")
}

func writeLive(conn net.Conn, m proto.Message) error {
	if err := conn.SetWriteDeadline(now().Add(liveOpen)); err != nil {
		return err
	}
	out := bufio.NewWriter(conn)
	if _, err := protodelim.MarshalTo(out, m); err != nil {
		return err
	}
	return out.Flush()
}
