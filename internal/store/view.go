package store

import (
	"context"
	"errors"
	"sync"
)

// readerCacheKiB is the page cache of a reader: the system's cache holds the file anyway.
const readerCacheKiB = 1024

// readers are the connections of Views, opened when first needed; the one used last is
// used next, so a node that reads one at a time has one.
type readers struct {
	slots chan struct{}

	mu     sync.Mutex // guards what follows
	free   []*conn
	closed bool
}

func (r *readers) init(n int) { r.slots = make(chan struct{}, n) }

// View runs fn in a read-only transaction: fn sees one state of the database, which holds
// all that was acknowledged before View was called. It waits for nobody but other Views,
// if [Config].Readers of them run. If ctx ends before fn began, or while fn reads many
// rows, ctx's error is returned; else fn's. fn may call Update, whose changes it does not
// see. It must not call View, which may have to wait for it.
func (db *DB) View(ctx context.Context, fn func(*Tx) error) error {
	c, err := db.reader(ctx)
	if err != nil {
		return err
	}
	var tx Tx
	tx.begin(c, ctx)
	defer func() {
		tx.end()
		if err := c.do("ROLLBACK"); err != nil && c.inTx() || isDisk(tx.broken) {
			c.broken = true
		}
		db.readers.put(c)
	}()
	if err := c.do("BEGIN"); err != nil {
		return db.explain(err)
	}
	if err := fn(&tx); err != nil {
		return err
	}
	for _, f := range tx.after {
		f()
	}
	return nil
}

func (db *DB) reader(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := &db.readers
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	var c *conn
	closed := r.closed
	if n := len(r.free); n > 0 && !closed {
		c = r.free[n-1]
		r.free = r.free[:n-1]
	}
	r.mu.Unlock()
	if closed {
		<-r.slots
		return nil, ErrClosed
	}
	if c != nil {
		return c, nil
	}
	c, err := db.openConn(readerCacheKiB, true)
	if err != nil {
		<-r.slots
		return nil, db.explain(err)
	}
	return c, nil
}

func (r *readers) put(c *conn) {
	if c.broken {
		_ = c.close() // the error that broke it was returned
	} else {
		r.mu.Lock()
		r.free = append(r.free, c)
		r.mu.Unlock()
	}
	<-r.slots
}

// close waits for the Views that run.
func (r *readers) close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for range cap(r.slots) {
		r.slots <- struct{}{}
	}
	for range cap(r.slots) {
		<-r.slots
	}
	var errs []error
	for _, c := range r.free {
		errs = append(errs, c.close())
	}
	r.free = nil
	return errors.Join(errs...)
}

func (r *readers) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}
