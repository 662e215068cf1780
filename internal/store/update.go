package store

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
)

// op is one Update on its way through the queue.
type op struct {
	ctx context.Context
	fn  func(*Tx) error
	// wake tells the waiting caller to become the leader (true) or that err is final.
	wake chan bool
	// promoted is set under DB.mu when wake is told true: the op stays in the queue but
	// its caller must take the lead, whatever its ctx says.
	promoted bool

	err     error
	settled bool // err is final
	panic   *panicked
}

// panicked is a panic of a func that ran on another caller's goroutine. The func's own
// caller panics with it.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string {
	return fmt.Sprintf("func in store transaction panicked: %v\n%s", p.value, p.stack)
}

// Update runs fn in a read-write transaction and returns nil once its changes are on the
// disk. It returns fn's error, and keeps nothing of it, if fn fails; [ErrDiskFull] or
// [ErrDisk] if the disk does.
//
// Waiting Updates share a commit. So fn may run on another caller's goroutine, and may run
// again after a roll back: it must have no effects but through tx (see [Tx.AfterCommit])
// and set, not add to, the variables it closes over. It must not call Update or View, wait,
// or keep tx. An error of fn is returned only after what fn read was committed too.
//
// If ctx ends before fn's batch began, fn is not run and ctx's error is returned. After
// that ctx has no influence: the result says what became of fn's changes. The funcs given
// to AfterCommit have run when Update returns. If fn panics, so does Update, after a roll
// back.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return notRun(err)
	}
	o := &op{ctx: ctx, fn: fn, wake: make(chan bool, 1)}

	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return ErrClosed
	}
	db.queue = append(db.queue, o)
	lead := !db.leading
	db.leading = true
	db.mu.Unlock()

	if !lead {
		select {
		case lead = <-o.wake:
		case <-ctx.Done():
			if db.leave(o) {
				return notRun(ctx.Err())
			}
			lead = <-o.wake // its batch runs, or it was just asked to lead
		}
	}
	if lead {
		db.lead(o)
	}
	return o.result()
}

func notRun(err error) error { return fmt.Errorf("update was not begun: %w", err) }

func (o *op) result() error {
	if o.panic != nil {
		panic(o.panic)
	}
	return o.err
}

// leave takes o out of the queue; it reports false if o is no longer waiting there.
func (db *DB) leave(o *op) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	i := slices.Index(db.queue, o)
	if i < 0 || o.promoted {
		return false
	}
	db.queue = slices.Delete(db.queue, i, i+1)
	return true
}

// lead runs one batch on the caller's goroutine and hands the lead on. The first to wait
// leads, so there is no goroutine to start, stop or wake, and no timer: who comes while
// the disk is busy is in the next batch. own, the caller's op, is the first in the queue.
func (db *DB) lead(own *op) {
	if own.promoted {
		// Let those whose batch has just ended come back with their next update: twice as
		// many share a commit, measured with 128 callers. A lonely caller is not promoted.
		runtime.Gosched()
	}
	db.mu.Lock()
	n := min(len(db.queue), db.cfg.MaxBatch)
	batch := slices.Clone(db.queue[:n])
	db.queue = slices.Delete(db.queue, 0, n)
	db.mu.Unlock()

	done := false
	defer func() {
		if !done { // a func ended the goroutine with runtime.Goexit: t.FailNow does
			db.abandon(batch)
		}
		for _, o := range batch {
			if o != own {
				o.wake <- false
			}
		}
		db.growLog()
		db.pass()
	}()
	db.run(batch)
	done = true
}

// pass hands the lead to the first that waits.
func (db *DB) pass() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.queue) > 0 {
		db.queue[0].promoted = true
		db.queue[0].wake <- true
		return
	}
	db.leading = false
	if db.idle != nil {
		close(db.idle)
	}
}

// call runs fn and makes an error of its panic.
func (o *op) call(tx *Tx) (err error) {
	normal := false
	defer func() {
		if normal {
			return
		}
		if v := recover(); v != nil {
			o.panic = &panicked{value: v, stack: debug.Stack()}
			err = o.panic
		}
	}()
	o.panic = nil
	err = o.fn(tx)
	normal = true
	return err
}
