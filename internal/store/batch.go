package store

import (
	"errors"

	"github.com/shoalmesh/shoal"
)

// errSavepoints asks for a second pass in which a failing func takes only itself back.
var errSavepoints = errors.New("a func failed after writing")

// maxDiskErrors is how many funcs of a batch in a row may meet a failing disk before the
// rest is told without trying: a dying disk can take seconds for each error.
const maxDiskErrors = 4

// run settles every op of the batch. The first pass has no savepoints, which cost about
// as much as a small row; if a func fails after it wrote, all is rolled back and a second
// pass has one around each func. So no func runs more than twice but for disk errors.
func (db *DB) run(batch []*op) {
	batch = skipEnded(batch)
	err := db.attempt(batch, false)
	if errors.Is(err, errSavepoints) {
		db.reruns.Add(uint64(len(batch)))
		err = db.attempt(batch, true)
	}
	if err == nil {
		return
	}
	db.heal(err)
	if len(batch) == 1 {
		batch[0].err = err
		return
	}

	// SQLite may have rolled back everything, and the batch as a whole may be what does
	// not fit. Each alone: who fits is stored, who does not is told.
	db.reruns.Add(uint64(len(batch)))
	bad := 0
	for i, o := range batch {
		if bad >= maxDiskErrors {
			o.err = err
			continue
		}
		bad++
		if err = db.attempt(batch[i:i+1], false); err != nil {
			o.err = err
			db.heal(err)
		}
		if !errors.Is(err, ErrDisk) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrBusy) {
			bad = 0
		}
	}
}

func skipEnded(batch []*op) []*op {
	run := batch[:0:0]
	for _, o := range batch {
		if err := o.ctx.Err(); err != nil {
			o.err = notRun(err)
			continue
		}
		run = append(run, o)
	}
	return run
}

// attempt runs the batch as one transaction. nil: each op's err is final and durable.
// errSavepoints: nothing is stored, run it again with savepoints. Else the disk failed:
// nothing is acknowledged.
func (db *DB) attempt(batch []*op, savepoints bool) (err error) {
	if len(batch) == 0 {
		return nil
	}
	w, err := db.writable()
	if err != nil {
		return err
	}
	if err := w.do("BEGIN IMMEDIATE"); err != nil {
		return db.explain(err)
	}

	txs := make([]Tx, len(batch))
	for i, o := range batch {
		tx := &txs[i]
		tx.begin(w, nil)
		if err := db.one(o, tx, savepoints, len(batch) == 1); err != nil {
			db.rollback(w, txs[:i+1], batch)
			return err
		}
		if len(batch) == 1 && tx.failed {
			db.rollback(w, txs, batch)
			return nil
		}
	}

	wrote := false
	for i := range txs {
		wrote = wrote || txs[i].wrote
	}
	if err := w.do("COMMIT"); err != nil {
		db.rollback(w, txs, batch)
		return db.explain(err)
	}
	if wrote {
		db.commits.Add(1)
	}
	db.committed(txs, batch)
	return nil
}

// one runs one op of the batch. It returns an error if the whole batch must be rolled back.
func (db *DB) one(o *op, tx *Tx, savepoint, alone bool) error {
	if savepoint {
		if err := tx.c.do("SAVEPOINT op"); err != nil {
			return db.explain(err)
		}
	}
	o.err = o.call(tx)
	tx.end()
	switch {
	case tx.broken != nil: // whatever fn made of it
		return db.explain(tx.broken)
	case o.err == nil:
	case savepoint:
		tx.failed = true
		if err := tx.c.do("ROLLBACK TO op"); err != nil {
			return db.explain(err)
		}
		tx.wrote = false
	case tx.wrote && !alone:
		return errSavepoints
	default:
		tx.failed = true
	}
	if tx.failed && !alone {
		tx.undo(o)
	}
	if savepoint {
		if err := tx.c.do("RELEASE op"); err != nil {
			return db.explain(err)
		}
	}
	return nil
}

// rollback takes the transaction back. An error of ROLLBACK means that SQLite did so
// already; a connection that is still in a transaction afterwards is replaced.
func (db *DB) rollback(w *conn, txs []Tx, batch []*op) {
	for i := range txs {
		txs[i].end()
	}
	err := w.do("ROLLBACK")
	if err != nil && w.inTx() {
		db.log.Warn("roll back failed, reopening the database", "err", err)
		w.broken = true
	}
	for i := len(txs) - 1; i >= 0; i-- {
		txs[i].undo(batch[i])
	}
}

func (db *DB) committed(txs []Tx, batch []*op) {
	for i := range txs {
		batch[i].settled = true
	}
	for i := range txs {
		if txs[i].failed {
			continue
		}
		db.updates.Add(1)
		for _, f := range txs[i].after {
			batch[i].hook(f)
		}
	}
}

// undo runs the OnRollback funcs, the last one first.
func (tx *Tx) undo(o *op) {
	for i := len(tx.rollback) - 1; i >= 0; i-- {
		o.hook(tx.rollback[i])
	}
	tx.after, tx.rollback = nil, nil
}

// hook runs f; its panic becomes its caller's, the others' hooks still run.
func (o *op) hook(f func()) {
	before := o.panic
	sub := &op{fn: func(*Tx) error { f(); return nil }}
	if sub.call(nil) != nil {
		o.panic = sub.panic
	} else {
		o.panic = before
	}
}

// abandon settles a batch whose leader's goroutine was ended by one of the funcs.
func (db *DB) abandon(batch []*op) {
	if db.writer != nil {
		if err := db.writer.do("ROLLBACK"); err != nil && db.writer.inTx() {
			db.writer.broken = true
		}
	}
	for _, o := range batch {
		if o.settled {
			continue
		}
		o.err = shoal.NewError(shoal.Internal, "update_abandoned", "a func of the same batch ended its goroutine", "")
	}
}

// heal marks the writer for replacement after an error that may have left it unusable.
func (db *DB) heal(err error) {
	if db.writer != nil && (errors.Is(err, ErrDisk) || errors.Is(err, ErrCorrupt)) {
		db.writer.broken = true
	}
}

// writable returns the writer, a new one if the last one met a disk error. The new one is
// opened before the old one is closed: were there no connection for a moment, SQLite would
// read the log again, could find a commit whose fsync failed, and the funcs that were not
// acknowledged and run again would count twice.
func (db *DB) writable() (*conn, error) {
	if !db.writer.broken {
		return db.writer, nil
	}
	w, err := db.openConn(db.cfg.CacheKiB, false)
	if err != nil {
		return nil, db.explain(err)
	}
	if err := db.writer.close(); err != nil {
		db.log.Warn("closing a failed connection", "err", err)
	}
	db.writer = w
	return w, nil
}
