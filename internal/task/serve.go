package task

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// liveTask is a live task at its doer.
type liveTask struct {
	out  chan *wire.LiveEvent // to the stream; closed never, drained by serveLive
	done chan struct{}        // closed when the task left memory

	mu    sync.Mutex
	row   row
	log   []logged       // to be stored
	f     folded         // artifacts so far
	place map[string]int // of artifacts by id
	gone  bool           // ended, or handed over to the durable path
}

// ServeConn answers one stream of [Protocol]: a live task, or the chunks of a running
// one. It returns when the stream ends; the caller closes nothing.
func (e *Engine) ServeConn(ctx context.Context, conn net.Conn) {
	e.serveLive(ctx, conn, shoal.NodeID(conn.RemoteAddr().String()))
}

// serveLive is ServeConn for a known peer; "" is this node itself.
func (e *Engine) serveLive(ctx context.Context, conn net.Conn, peer shoal.NodeID) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if conn.SetReadDeadline(now().Add(liveOpen)) != nil {
		return
	}
	in := bufio.NewReader(conn)
	var req wire.LiveRequest
	if err := unmarshalLive.UnmarshalFrom(in, &req); err != nil {
		e.Log.Debug("live request unreadable", "peer", peer, "err", err)
		return
	}
	if conn.SetReadDeadline(time.Time{}) != nil {
		return
	}
	key, err := e.checkLive(ctx, &req, peer)
	if err == nil && req.GetOffer() != nil {
		err = e.runLive(ctx, conn, in, key, &req)
	} else if err == nil {
		err = e.streamChunks(ctx, conn, in, key)
	}
	if err != nil {
		e.Log.Debug("live stream refused", "peer", peer, "err", err)
		_ = writeLive(conn, &wire.LiveEvent{Error: shoal.AsError(err).Reason}) // best effort: the peer may be gone
	}
}

// checkLive checks who asks: the peer must host the requester.
func (e *Engine) checkLive(ctx context.Context, req *wire.LiveRequest, peer shoal.NodeID) (shoal.TaskKey, error) {
	if req.GetNetwork() != e.cfg.Network {
		return shoal.TaskKey{}, shoal.NewError(shoal.Denied, "other_network", "the stream belongs to another network", "")
	}
	if len(req.GetRequester()) != 32 || len(req.GetDoer()) != 32 || !validID(taskID(req.GetTaskId())) {
		return shoal.TaskKey{}, shoal.NewError(shoal.Invalid, "bad_live_request", "the live request is malformed", "")
	}
	requester := shoal.AgentIDOf(req.GetRequester())
	key := shoal.TaskKey{Requester: requester, ID: taskID(req.GetTaskId())}
	if peer == "" || requester.Node() == peer {
		return key, nil
	}
	host, err := e.Agents.Host(ctx, requester)
	if err != nil || host != peer {
		return shoal.TaskKey{}, ErrNotParty.Because(err)
	}
	return key, nil
}

// runLive does a live task while its stream is open.
func (e *Engine) runLive(ctx context.Context, conn net.Conn, in *bufio.Reader, key shoal.TaskKey, req *wire.LiveRequest) error {
	doer := shoal.AgentIDOf(req.GetDoer())
	if _, ok := e.Keys.Key(doer); !ok {
		return shoal.NewError(shoal.NotFound, "unknown_agent", "the agent is not hosted here", "")
	}
	req.Offer.Class = uint32(shoal.Live)
	r, err := e.newDoing(key, doer, req.GetOffer())
	if err != nil {
		return err
	}
	lt, err := e.startLive(r)
	if err != nil {
		return err
	}
	// The asker says nothing more on this stream: a read that ends means it is gone.
	left := make(chan struct{})
	go func() { defer close(left); _, _ = in.ReadByte() }()
	defer func() { conn.Close(); <-left }()

	beat := time.NewTicker(liveHeartbeat)
	defer beat.Stop()
	for {
		var ev *wire.LiveEvent
		select {
		case ev = <-lt.out:
		case <-beat.C:
			ev = &wire.LiveEvent{Heartbeat: true}
		case <-left:
			e.abandon(lt)
			return nil
		case <-ctx.Done():
			return nil
		}
		if err := writeLive(conn, ev); err != nil {
			e.abandon(lt)
			return nil
		}
		select {
		case <-lt.done:
			if len(lt.out) == 0 {
				return nil
			}
		default:
		}
	}
}

// abandon tells the worker that nobody waits for a live task any more. An asker that has
// its answer, or goes on by mail, may leave.
func (e *Engine) abandon(lt *liveTask) {
	lt.mu.Lock()
	gone, key, doer := lt.gone, lt.row.key, lt.row.doer
	lt.mu.Unlock()
	if !gone {
		e.Workers.Tell(key, doer, nil, "asker_gone")
	}
}

// startLive reserves a worker and hands the task over, all in memory.
func (e *Engine) startLive(r row) (*liveTask, error) {
	if !e.Workers.Reserve(r.key, r.doer, r.skill) {
		return nil, ErrBusy
	}
	// One event a report; a worker that reports faster than the asker reads waits.
	lt := &liveTask{row: r, out: make(chan *wire.LiveEvent, 16), done: make(chan struct{}), place: map[string]int{}}
	if !e.live.addDoer(lt) {
		e.Workers.Release(r.key, r.doer)
		return nil, shoal.NewError(shoal.Conflict, "task_exists", "a task with this id is running", "")
	}
	lt.mu.Lock()
	defer lt.mu.Unlock()
	st, err := encodeStatus(a2a.TaskStateSubmitted, nil, fromMS(r.created))
	if err == nil {
		err = lt.append(&wire.TaskEvent{Status: st}, r.created)
	}
	if err == nil {
		lt.row.machine, _, err = step(lt.row.machine, input{kind: inStart})
	}
	if err != nil {
		e.live.dropDoer(r.key)
		e.Workers.Release(r.key, r.doer)
		return nil, err
	}
	lt.row.started = now().UnixMilli()
	lt.row.deadline = lt.row.started + r.timeout
	msg, err := decodeMessage(r.message)
	if err != nil {
		return nil, err
	}
	e.timers.set(r.key, lt.row.deadline)
	e.Workers.Start(shoal.Assignment{
		Key: r.key, Agent: r.doer, ContextID: r.contextID, Skill: r.skill, Attempt: 1, Class: shoal.Live,
		Message: msg, Deadline: fromMS(lt.row.deadline),
	})
	return lt, nil
}

// append adds an event to the log in memory. It must be called with mu held.
func (lt *liveTask) append(ev *wire.TaskEvent, at int64) error {
	lt.row.n++
	ev.N, ev.Attempt, ev.Reason = lt.row.n, uint32(lt.row.attempt), lt.row.reason
	lt.row.artifacts += len(ev.GetArtifacts())
	lt.f.addArtifacts(lt.place, ev.GetArtifacts())
	if ev.GetStatus() != nil {
		lt.row.status = ev.GetStatus()
	}
	body, err := deterministic.Marshal(ev)
	if err != nil {
		return err
	}
	lt.log = append(lt.log, logged{n: lt.row.n, at: at, kind: eventStep, body: body})
	return nil
}

// reportLive is Report for a live task: the answer first, the disk after it.
func (e *Engine) reportLive(ctx context.Context, lt *liveTask, c change) (uint64, error) {
	ev, n, err := e.stepLive(lt, c)
	if err != nil {
		return 0, err
	}
	if interrupted(c.in.state) {
		// From here on the task goes by mail: it must be on disk before the asker hears.
		if err := e.storeLive(ctx, lt); err != nil {
			return 0, err
		}
	}
	gone := e.leaveLive(lt)
	lt.send(ctx, ev)
	if gone {
		e.settleLive(lt)
	}
	return n, nil
}

// stepLive takes the step in memory.
func (e *Engine) stepLive(lt *liveTask, c change) (*wire.LiveEvent, uint64, error) {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	if lt.gone {
		return nil, 0, ErrTerminal
	}
	next, eff, err := step(lt.row.machine, c.in)
	if err != nil {
		return nil, 0, err
	}
	lt.row.machine = next
	if c.reason != "" {
		lt.row.reason = c.reason
	}
	at := now().UnixMilli()
	lt.row.updated = at
	ev := &wire.TaskEvent{Status: c.status, Artifacts: c.artifacts}
	if ev.Status == nil && next.state.Terminal() {
		if ev.Status, err = encodeStatus(next.state, nil, fromMS(at)); err != nil {
			return nil, 0, err
		}
	}
	if eff&doSign != 0 {
		signed, err := e.signLive(lt, ev, at)
		if err != nil {
			return nil, 0, err
		}
		lt.row.receipt, ev.Receipt = signed, signed
	}
	if err := lt.append(ev, at); err != nil {
		return nil, 0, err
	}
	lt.gone = next.state.Terminal() || interrupted(next.state)
	return &wire.LiveEvent{Event: ev}, lt.row.n, nil
}

// send hands an event to the stream; if nobody reads any more, it stays in the log.
func (lt *liveTask) send(ctx context.Context, ev *wire.LiveEvent) {
	select {
	case lt.out <- ev:
	case <-ctx.Done():
	case <-time.After(liveSilence):
	}
}

// leaveLive takes a task that ended, or went over to mail, out of memory. It comes before
// the asker hears of it: what the asker says next is about the row on disk.
func (e *Engine) leaveLive(lt *liveTask) (gone bool) {
	lt.mu.Lock()
	gone, key, agent := lt.gone, lt.row.key, lt.row.doer
	lt.mu.Unlock()
	if gone {
		e.timers.set(key, 0)
		e.live.dropDoer(key)
		e.Workers.Release(key, agent)
		e.hub.forgetChunks(key)
	}
	return gone
}

// settleLive lets the stream end, and stores a task that ended.
func (e *Engine) settleLive(lt *liveTask) {
	lt.mu.Lock()
	state := lt.row.state
	lt.mu.Unlock()
	close(lt.done)
	if state.Terminal() {
		e.later(func(ctx context.Context) error { return e.storeLive(ctx, lt) })
	}
}

// storeLive writes row and log of a live task as they stand.
func (e *Engine) storeLive(ctx context.Context, lt *liveTask) error {
	lt.mu.Lock()
	r, log := lt.row, lt.log
	lt.mu.Unlock()
	return e.DB.Update(ctx, func(tx *store.Tx) error {
		fresh := r
		if err := insertRow(tx, &fresh, "", nil); err != nil {
			return err
		}
		fresh.n = 0
		for _, l := range log {
			if err := addEvent(tx, &fresh, l.kind, l.body, l.at); err != nil {
				return err
			}
		}
		e.traceHop(tx, "task.work", &fresh, fresh.started)
		key := fresh.key
		tx.AfterCommit(func() { e.hub.wake(Doing, key, true) })
		return nil
	})
}

// loseLive and expireLive end a live task without its worker's word. It is never retried.
func (e *Engine) loseLive(ctx context.Context, lt *liveTask) {
	e.forceLive(ctx, lt, input{kind: inLost})
}

func (e *Engine) expireLive(ctx context.Context, lt *liveTask) {
	e.Workers.Tell(lt.row.key, lt.row.doer, nil, ReasonDeadline)
	e.forceLive(ctx, lt, input{kind: inDeadline})
}

func (e *Engine) forceLive(ctx context.Context, lt *liveTask, in input) {
	ev, _, err := e.stepLive(lt, change{in: in})
	if err != nil {
		return // it has just ended by itself
	}
	e.leaveLive(lt)
	lt.send(ctx, ev)
	e.settleLive(lt)
}

// streamChunks writes the chunks of a running task until it ends or the reader leaves.
func (e *Engine) streamChunks(ctx context.Context, conn net.Conn, in *bufio.Reader, key shoal.TaskKey) error {
	w := e.hub.watch(Doing, key, false)
	defer w.close()
	left := make(chan struct{})
	go func() { defer close(left); _, _ = in.ReadByte() }()
	defer func() { conn.Close(); <-left }()

	beat := time.NewTicker(liveHeartbeat)
	defer beat.Stop()
	for {
		chunks := w.take()
		for _, c := range chunks {
			ev := &wire.LiveEvent{Chunk: &wire.LiveChunk{ArtifactId: c.ArtifactID, Offset: c.Offset, Text: c.Text}}
			if err := writeLive(conn, ev); err != nil {
				return nil
			}
		}
		if len(chunks) == 0 && w.grown() {
			if ended, err := e.ended(ctx, key); err != nil || ended {
				return nil
			}
		}
		select {
		case <-w.wake:
		case <-beat.C:
			if err := writeLive(conn, &wire.LiveEvent{Heartbeat: true}); err != nil {
				return nil
			}
		case <-left:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (e *Engine) ended(ctx context.Context, key shoal.TaskKey) (ended bool, err error) {
	err = e.DB.View(ctx, func(tx *store.Tx) error {
		r, err := loadRow(tx, Doing, key)
		if isNotFound(err) {
			return nil // its offer may still be on the way
		}
		ended = r.state.Terminal()
		return err
	})
	return ended, err
}

// joinChunks follows the chunks of a task on another node until ctx ends or the task
// does. What is missed meanwhile comes with the durable artifact.
func (e *Engine) joinChunks(ctx context.Context, t Task) {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		if err := e.followChunks(ctx, t); err == nil {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func (e *Engine) followChunks(ctx context.Context, t Task) error {
	host, err := e.Agents.Host(ctx, t.Doer)
	if err != nil {
		return err
	}
	conn, err := e.Mesh.Dial(ctx, host, Protocol)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = writeLive(conn, &wire.LiveRequest{
		Network: e.cfg.Network, Requester: t.Key.Requester.PublicKey(),
		Doer: t.Doer.PublicKey(), TaskId: string(t.Key.ID),
	})
	if err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for {
		if err := conn.SetReadDeadline(now().Add(liveSilence)); err != nil {
			return err
		}
		var ev wire.LiveEvent
		if err := unmarshalLive.UnmarshalFrom(in, &ev); err != nil {
			return err
		}
		if ev.GetError() != "" {
			return nil // the doer will not: retrying changes nothing
		}
		if c := ev.GetChunk(); c != nil {
			e.hub.chunk(t.Key, shoal.Chunk{ArtifactID: c.GetArtifactId(), Offset: c.GetOffset(), Text: c.GetText()})
		}
	}
}
