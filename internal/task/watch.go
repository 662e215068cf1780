package task

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// Watch emits the task's events after the cursor, then those that come, in order, and
// ends with Final once the task is terminal. Chunks are emitted as they arrive, for as
// long as emit keeps up; those who watch a task on another node open a stream to it for
// that. It returns emit's first error, or ctx's.
func (e *Engine) Watch(ctx context.Context, ref Ref, after uint64, emit func(Event) error) error {
	t, err := e.Get(ctx, ref)
	if err != nil {
		return err
	}
	ref = Ref{ID: t.Key.ID, Requester: t.Key.Requester, Role: t.Role}
	if t.Cursor < after {
		return shoal.NewError(shoal.Invalid, "bad_cursor", fmt.Sprintf("cursor %d is beyond the task's last event %d", after, t.Cursor),
			"use the cursor of an event of this task on this node")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := e.hub.watch(t.Role, t.Key, false)
	defer w.close()
	// A doer on this node has its chunks in the hub already.
	_, local := e.Keys.Key(t.Doer)
	follow := t.Role == Asked && !t.Terminal() && !local
	var following sync.WaitGroup
	defer func() { stop(); following.Wait() }()
	for {
		if follow && w.join() {
			following.Go(func() { defer w.leave(); e.joinChunks(ctx, t) })
		}
		for _, c := range w.take() {
			if err := emit(Event{Cursor: after, At: now(), Chunk: &c}); err != nil {
				return err
			}
		}
		if w.grown() { // a chunk alone is no reason to read the log
			next, final, err := e.emitLog(ctx, ref, after, emit)
			if err != nil || final {
				return err
			}
			after = next
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// emitLog emits what the log holds after the cursor; final once the task has ended.
func (e *Engine) emitLog(ctx context.Context, ref Ref, after uint64, emit func(Event) error) (next uint64, final bool, err error) {
	const page = 256
	for {
		var t Task
		var logs []logged
		err := e.DB.View(ctx, func(tx *store.Tx) error {
			r, err := findRow(tx, ref)
			if err != nil || r.n == after && !r.state.Terminal() {
				return err
			}
			if logs, err = eventsAfter(tx, r.row, after, page); err != nil {
				return err
			}
			if r.state.Terminal() && len(logs) < page {
				t, err = e.full(tx, &r)
			}
			return err
		})
		if err != nil {
			return after, false, err
		}
		for _, l := range logs {
			if err := emitLogged(l, emit); err != nil {
				return after, false, err
			}
			after = l.n
		}
		if t.State != "" {
			return after, true, emit(Event{Cursor: after, At: t.Updated, Final: &t})
		}
		if len(logs) < page {
			return after, false, nil
		}
	}
}

// emitLogged emits one row of the log. Its parts before the last carry the cursor of the
// row before it, so that a watch which breaks between them repeats rather than misses.
func emitLogged(l logged, emit func(Event) error) error {
	at := fromMS(l.at)
	if l.kind == eventMessage {
		m, err := decodeMessage(l.body)
		if err != nil {
			return err
		}
		return emit(Event{Cursor: l.n, At: at, Message: m})
	}
	var ev wire.TaskEvent
	if err := proto.Unmarshal(l.body, &ev); err != nil {
		return err
	}
	for i, raw := range ev.GetArtifacts() {
		a, err := decodeArtifact(raw)
		if err != nil {
			return err
		}
		cursor := l.n - 1
		if i == len(ev.GetArtifacts())-1 && ev.GetStatus() == nil {
			cursor = l.n
		}
		if err := emit(Event{Cursor: cursor, At: at, Artifact: a}); err != nil {
			return err
		}
	}
	if ev.GetStatus() == nil {
		return nil
	}
	s, err := decodeStatus(ev.GetStatus())
	if err != nil {
		return err
	}
	return emit(Event{Cursor: l.n, At: at, Status: &a2a.TaskStatus{State: s.state, Message: s.msg, Timestamp: &s.at}})
}

// Wait returns the task once it is terminal or interrupted, or with ctx's error.
func (e *Engine) Wait(ctx context.Context, ref Ref) (Task, error) {
	w, err := e.watcherOf(ctx, &ref)
	if err != nil {
		return Task{}, err
	}
	defer w.close()
	for {
		settled := false
		var t Task
		err := e.DB.View(ctx, func(tx *store.Tx) error {
			r, err := loadRow(tx, ref.Role, shoal.TaskKey{Requester: ref.Requester, ID: ref.ID})
			if err != nil {
				return err
			}
			if settled = r.state.Terminal() || interrupted(r.state); settled {
				t, err = e.full(tx, &r)
			}
			return err
		})
		if err != nil || settled {
			return t, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Task{}, ctx.Err()
		}
	}
}

// watcherOf resolves ref and registers a watcher before anything can be missed.
func (e *Engine) watcherOf(ctx context.Context, ref *Ref) (*watcher, error) {
	if ref.Requester == "" || ref.Role == 0 {
		var r row
		err := e.DB.View(ctx, func(tx *store.Tx) (err error) {
			r, err = findRow(tx, *ref)
			return err
		})
		if err != nil {
			return nil, err
		}
		ref.Requester, ref.Role = r.key.Requester, r.role
	}
	return e.hub.watch(ref.Role, shoal.TaskKey{Requester: ref.Requester, ID: ref.ID}, true), nil
}

// List returns a page of tasks, newest change first, and the token of the next page, ""
// at the end. Its tasks have no History and no Artifacts (A2A 1.0 §3.1.4).
func (e *Engine) List(ctx context.Context, f Filter) (tasks []Task, next string, err error) {
	if f.PageSize < 0 || f.PageSize > 100 {
		return nil, "", shoal.NewError(shoal.Invalid, "bad_page_size", "the page size is out of range", "use 1 to 100")
	}
	if f.PageSize == 0 {
		f.PageSize = 50
	}
	q := `SELECT ` + rowColumns + ` FROM tasks WHERE 1 = 1`
	var args []any
	add := func(cond string, vals ...any) { q += " AND " + cond; args = append(args, vals...) }
	if f.State != "" {
		add("state = ?", int32(stateToPB(f.State)))
	}
	if f.Role != 0 {
		add("role = ?", uint8(f.Role))
	}
	if f.ContextID != "" {
		add("context_id = ?", f.ContextID)
	}
	if f.PageToken != "" {
		ms, id, err := parseToken(f.PageToken)
		if err != nil {
			return nil, "", err
		}
		add("(updated_ms, row) < (?, ?)", ms, id)
	}
	args = append(args, f.PageSize+1)
	var last row
	err = e.DB.View(ctx, func(tx *store.Tx) error {
		return tx.Each(q+` ORDER BY updated_ms DESC, row DESC LIMIT ?`, args, func(scan func(...any) error) error {
			var r row
			var state int32
			if err := scan(r.dest(&state)...); err != nil {
				return err
			}
			if len(tasks) == f.PageSize {
				next = fmt.Sprintf("%d.%d", last.updated, last.row)
				return nil
			}
			r.state = stateFromPB(stateNumber(state))
			t, err := r.view()
			tasks, last = append(tasks, t), r
			return err
		})
	})
	return tasks, next, err
}

func parseToken(s string) (ms, id int64, err error) {
	a, b, ok := strings.Cut(s, ".")
	ms, err1 := strconv.ParseInt(a, 10, 64)
	id, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, shoal.NewError(shoal.Invalid, "bad_page_token", "the page token is malformed", "use next_page_token of the page before")
	}
	return ms, id, nil
}
