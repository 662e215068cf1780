package task

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

func now() time.Time { return time.Now() }

// Run settles what a crash left behind, then starts waiting tasks and ends late ones
// until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.recover(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it began
		}
		return fmt.Errorf("settle tasks of the last run: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.dispatch(ctx) })
	g.Go(func() error { return e.watchDeadlines(ctx) })
	err := g.Wait()
	e.live.wg.Wait()
	return err
}

// recover looks at each open task of the last run once. Workers' sessions did not
// survive, so tasks that were held are lost; live tasks of either role have an unknown
// outcome.
func (e *Engine) recover(ctx context.Context) error {
	var open []row
	err := e.DB.View(ctx, func(tx *store.Tx) error {
		return tx.Each(`SELECT `+rowColumns+` FROM tasks WHERE state IN (1, 2, 6, 8) AND row <= ? ORDER BY row`, []any{e.lastRun},
			func(scan func(...any) error) error {
				var r row
				var state int32
				if err := scan(r.dest(&state)...); err != nil {
					return err
				}
				r.state = stateFromPB(stateNumber(state))
				r.message = nil
				open = append(open, r)
				return nil
			})
	})
	if err != nil {
		return err
	}
	for _, r := range open {
		switch {
		case r.class == shoal.Live && r.role == Asked && r.peerN == 0:
			err = e.forceStep(ctx, Asked, r.key, change{in: input{kind: inUnknown}, reason: ReasonOutcomeUnknown})
		case r.role == Doing && r.queued:
			e.queue.add(r.doer)
		case r.role == Doing && r.held:
			e.queue.lost([]shoal.TaskKey{r.key}, r.doer, inLost)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forceStep applies a step that the engine itself decides; that it came too late is fine.
func (e *Engine) forceStep(ctx context.Context, role Role, key shoal.TaskKey, c change) error {
	err := e.DB.Update(ctx, func(tx *store.Tx) error {
		r, err := loadRow(tx, role, key)
		if err != nil {
			return err
		}
		return e.apply(tx, &r, c)
	})
	if errors.Is(err, ErrTerminal) || errors.Is(err, ErrIllegal) || isNotFound(err) {
		return nil
	}
	return err
}

// watchDeadlines ends tasks whose time is up.
func (e *Engine) watchDeadlines(ctx context.Context) error {
	for {
		wait := e.timers.next(now())
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-e.timers.changed:
			timer.Stop()
		case <-timer.C:
		}
		for _, key := range e.timers.due(now()) {
			if lt := e.live.doing(key); lt != nil {
				e.expireLive(ctx, lt)
				continue
			}
			err := e.DB.Update(ctx, func(tx *store.Tx) error {
				r, err := loadRow(tx, Doing, key)
				if err != nil || r.deadline == 0 || r.deadline > now().UnixMilli() {
					return err
				}
				return e.apply(tx, &r, change{in: input{kind: inDeadline}})
			})
			if err != nil && !errors.Is(err, ErrTerminal) && !isNotFound(err) && ctx.Err() == nil {
				e.Log.Warn("late task not ended; will be tried again", "task", key.ID, "err", err)
				e.timers.set(key, now().Add(time.Second).UnixMilli())
			}
		}
	}
}

// timers is the deadlines of running tasks, soonest first.
type timers struct {
	changed chan struct{} // capacity 1

	mu   sync.Mutex
	heap timerHeap
	at   map[shoal.TaskKey]int64 // current deadline; heap entries that differ are stale
}

type timerEntry struct {
	at  int64
	key shoal.TaskKey
}

func newTimers() *timers {
	return &timers{changed: make(chan struct{}, 1), at: map[shoal.TaskKey]int64{}}
}

// set replaces the deadline of key (unix ms); 0 removes it.
func (t *timers) set(key shoal.TaskKey, at int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, ok := t.at[key]
	if at == 0 {
		delete(t.at, key)
		t.shrink()
		return
	}
	if ok && old == at {
		return
	}
	t.at[key] = at
	heap.Push(&t.heap, timerEntry{at, key})
	if t.heap[0].key == key {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// shrink drops stale entries once they are the greater part.
func (t *timers) shrink() {
	if len(t.heap) < 64 || len(t.heap) < 2*len(t.at) {
		return
	}
	t.heap = t.heap[:0]
	for k, at := range t.at {
		t.heap = append(t.heap, timerEntry{at, k})
	}
	heap.Init(&t.heap)
}

// next returns how long until the first deadline, at most an hour.
func (t *timers) next(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.heap) == 0 {
		return time.Hour
	}
	return max(0, min(time.Hour, time.UnixMilli(t.heap[0].at).Sub(now)))
}

// due removes and returns the tasks whose deadline has passed.
func (t *timers) due(now time.Time) []shoal.TaskKey {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []shoal.TaskKey
	for len(t.heap) > 0 && t.heap[0].at <= now.UnixMilli() {
		e := heap.Pop(&t.heap).(timerEntry)
		if t.at[e.key] == e.at {
			delete(t.at, e.key)
			out = append(out, e.key)
		}
	}
	return out
}

type timerHeap []timerEntry

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timerEntry)) }
func (h *timerHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
