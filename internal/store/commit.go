package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Group commit: the first caller that finds nobody leading runs all that waits as one
// transaction, in its own goroutine, then hands the lead to the first of those who came
// meanwhile. Nobody waits for a clock, and an idle store costs no goroutine.

// request is one Update.
type request struct {
	ctx context.Context
	fn  func(*Tx) error

	wake chan struct{} // closed when it is finished, or to lead
	lead bool          // guarded by DB.mu until wake is closed

	tx       *Tx
	err      error
	panicked any
}

func (r *request) finish(err error) {
	r.err = err
	close(r.wake)
}

// Update runs fn in a transaction and returns nil once it is durable. If fn returns an
// error nothing of it is kept, and Update returns that error.
//
// fn may be run again, if another one in its batch failed: it must have no effect but
// through tx, and take what it needs anew each time. It runs in whichever goroutine
// leads the batch and must not call Update or block on other callers. A panic of fn is
// raised again in its own caller.
//
// When ctx ends before the batch began, fn is not run. Afterwards the outcome is
// reported as it is. [ErrDiskFull] and [ErrDisk] say that nothing was stored.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{ctx: ctx, fn: fn, wake: make(chan struct{})}
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return ErrClosed
	}
	db.queue = append(db.queue, r)
	r.lead = !db.leading
	db.leading = true
	lead := r.lead
	db.mu.Unlock()
	if !lead {
		lead = db.await(ctx, r)
	}
	if lead {
		db.leadBatch(r)
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

// await waits until r is finished (false) or has to lead (true).
func (db *DB) await(ctx context.Context, r *request) (lead bool) {
	select {
	case <-r.wake:
		return r.lead
	case <-ctx.Done():
	}
	db.mu.Lock()
	if i := slices.Index(db.queue, r); i >= 0 && !r.lead {
		db.queue = slices.Delete(db.queue, i, i+1)
		r.err = ctx.Err()
		db.mu.Unlock()
		return false
	}
	db.mu.Unlock()
	<-r.wake // in a batch already, or chosen to lead: the outcome is what counts
	return r.lead
}

// leadBatch runs what waits, own included, and passes the lead on.
func (db *DB) leadBatch(own *request) {
	db.mu.Lock()
	n := min(len(db.queue), db.cfg.MaxBatch)
	batch := slices.Clone(db.queue[:n])
	db.queue = slices.Delete(db.queue, 0, n)
	db.mu.Unlock()

	db.runBatch(batch)

	db.mu.Lock()
	var next *request
	if len(db.queue) > 0 {
		next = db.queue[0]
		next.lead = true
	} else {
		db.leading = false
	}
	db.mu.Unlock()
	if next != nil {
		close(next.wake)
	}
	for _, r := range batch {
		if r != own {
			close(r.wake)
		}
	}
}

// waitIdle leads an empty batch, which can only begin when nobody else leads.
func (db *DB) waitIdle() {
	r := &request{ctx: context.Background(), fn: func(*Tx) error { return nil }, wake: make(chan struct{})}
	db.mu.Lock()
	db.queue = append(db.queue, r)
	lead := !db.leading
	db.leading = true
	db.mu.Unlock()
	if !lead {
		<-r.wake
		lead = r.lead
	}
	if lead {
		db.leadBatch(r)
	}
}

// runBatch commits what can be committed. A function that fails after it wrote takes the
// transaction with it: the others run again without it. When the disk fails, each is
// tried alone, so that a small one may still find room.
func (db *DB) runBatch(batch []*request) {
	rest := batch
	for len(rest) > 0 {
		failed, err := db.try(rest)
		switch {
		case err == nil:
			return
		case failed != nil:
			rest = slices.DeleteFunc(slices.Clone(rest), func(r *request) bool { return r == failed })
		case len(rest) == 1:
			rest[0].err = db.explain(err)
			db.log.Warn("update not stored", "err", err)
			return
		default:
			for _, r := range rest {
				db.runBatch([]*request{r})
			}
			return
		}
	}
}

// try runs requests in one transaction. With failed, one of them made it impossible and
// has its error; without, the database did, and err says why.
func (db *DB) try(rs []*request) (failed *request, err error) {
	if db.writer == nil {
		if err := db.reconnect(); err != nil {
			return nil, err
		}
	}
	w := db.writer
	if err := w.run("BEGIN IMMEDIATE"); err != nil {
		db.afterFailure(err)
		return nil, err
	}
	for i, r := range rs {
		r.tx, r.err = &Tx{c: w, write: true}, nil
		if r.err = r.call(); r.err == nil {
			continue
		}
		if r.tx.broken == nil && !r.tx.wrote {
			r.tx.undo()
			continue // it left nothing: the others need not care
		}
		db.rollback(rs[:i+1])
		if r.tx.broken != nil && isDisk(r.tx.broken) {
			db.afterFailure(r.tx.broken)
			return nil, r.tx.broken
		}
		return r, r.err
	}
	if err := w.run("COMMIT"); err != nil {
		db.rollback(rs)
		db.afterFailure(err)
		return nil, err
	}
	for _, r := range rs {
		if r.err != nil {
			continue
		}
		for _, f := range r.tx.after {
			f()
		}
	}
	return nil, nil
}

// call runs fn; its panic becomes an error here and is raised again by its own caller.
func (r *request) call() (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.panicked = p
			r.tx.wrote = true // whatever it did must go
			err = fmt.Errorf("panic in an update: %v", p)
		}
	}()
	if err := r.fn(r.tx); err != nil {
		return err
	}
	return r.tx.broken // an error that fn did not pass on
}

// rollback takes the transaction back and tells those who had plans.
func (db *DB) rollback(rs []*request) {
	// SQLite has often rolled back by itself; then this is refused, which is as good.
	_ = db.writer.run("ROLLBACK")
	for _, r := range rs {
		if r.tx != nil {
			r.tx.undo()
		}
	}
}

// afterFailure drops the writer's connection when the disk failed.
func (db *DB) afterFailure(err error) {
	if code(err) != codeIOErr {
		return
	}
	if err := db.writer.close(); err != nil {
		db.log.Debug("writer closed after a disk error", "err", err)
	}
	db.writer = nil
}

// View runs fn on a snapshot; writes are refused. It does not wait for writers.
func (db *DB) View(ctx context.Context, fn func(*Tx) error) error {
	select {
	case db.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-db.slots }()
	c, err := db.reader()
	if err != nil {
		return db.explain(err)
	}
	if err := c.run("BEGIN"); err != nil {
		return errors.Join(db.explain(err), c.close())
	}
	tx := &Tx{c: c}
	err = db.explain(fn(tx))
	if end := c.run("COMMIT"); end != nil {
		return errors.Join(err, db.explain(end), c.close())
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return errors.Join(err, c.close())
	}
	db.idle = append(db.idle, c)
	return err
}

// reader returns an idle read connection, or a new one.
func (db *DB) reader() (*conn, error) {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil, ErrClosed
	}
	if n := len(db.idle); n > 0 {
		c := db.idle[n-1]
		db.idle = db.idle[:n-1]
		db.mu.Unlock()
		return c, nil
	}
	db.mu.Unlock()
	c, err := db.newConn()
	if err != nil {
		return nil, err
	}
	if err := c.run("PRAGMA query_only = 1"); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}
