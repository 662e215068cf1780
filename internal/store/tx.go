package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
)

// cancelRows is how many rows a View reads between two looks at its context: one that
// reads little ends well even if the caller is stopping.
const cancelRows = 256

var errTxDone = errors.New("the transaction is over")

// Tx is a transaction, valid until the func that got it returns. It belongs to that
// func's goroutine. Queries should be constants: each is prepared once a connection.
// Arguments are positional (?). Tables are made in a [Schema], not here.
//
// Arguments and destinations may be of any integer, float, bool or string type, []byte and
// byte arrays, pointers to these (nil is NULL), or implement driver.Valuer and sql.Scanner.
// A uint64 is stored as the int64 of the same bits if it exceeds it. A nil []byte is NULL,
// an empty one is an empty blob; both scan into a nil
// []byte. A NULL scans into a zero value. There is no time.Time: store
// milliseconds.
type Tx struct {
	c   *conn
	ctx context.Context // of a View, nil in an Update
	// wrote: something changed. failed: the func failed and nothing of it remains.
	wrote, failed, over bool
	// broken is an error after which SQLite may have ended the transaction.
	broken   error
	after    []func()
	rollback []func()
}

func (tx *Tx) begin(c *conn, ctx context.Context) { *tx = Tx{c: c, ctx: ctx} }

func (tx *Tx) end() { tx.over = true }

// Exec runs a statement that returns no rows and returns how many it changed. The number
// means nothing for a script of several statements.
func (tx *Tx) Exec(query string, args ...any) (affected int64, err error) {
	r, err := tx.exec(query, args)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Insert runs an INSERT and returns the rowid of the last row it inserted.
func (tx *Tx) Insert(query string, args ...any) (id int64, err error) {
	r, err := tx.exec(query, args)
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}

func (tx *Tx) exec(query string, args []any) (driver.Result, error) {
	s, vals, err := tx.prepare(query, args)
	if err != nil {
		return nil, err
	}
	defer tx.c.done(s)
	r, err := s.exec.ExecContext(context.Background(), vals)
	if err != nil {
		return nil, tx.fault(query, err)
	}
	if !tx.wrote && s.kind != reads {
		n, err := r.RowsAffected()
		tx.wrote = s.kind == other || n != 0 || err != nil
	}
	return r, nil
}

// One runs a query and scans its first row, if there is one, into dest.
func (tx *Tx) One(query string, args []any, dest ...any) (found bool, err error) {
	err = tx.each(query, args, func(r *rows) (bool, error) {
		found = true
		return false, scanRow(r.vals, dest)
	})
	return found && err == nil, err
}

// Each runs a query and calls fn for each row; scan copies the row into dest. fn may run
// other statements, but must not change what the query still reads. An error of fn ends
// the iteration and is returned as it is.
func (tx *Tx) Each(query string, args []any, fn func(scan func(dest ...any) error) error) error {
	return tx.each(query, args, func(r *rows) (bool, error) {
		return true, fn(func(dest ...any) error {
			if err := scanRow(r.vals, dest); err != nil {
				return fmt.Errorf("%s: %w", brief(query), err)
			}
			return nil
		})
	})
}

func (tx *Tx) each(query string, args []any, fn func(*rows) (more bool, err error)) (err error) {
	s, vals, err := tx.prepare(query, args)
	if err != nil {
		return err
	}
	tx.wrote = tx.wrote || s.kind != reads && !tx.reading(query)
	r, err := tx.c.rows(s, vals)
	if err != nil {
		return tx.fault(query, err)
	}
	defer func() {
		if e := r.close(); e != nil && err == nil {
			err = tx.fault(query, e)
		}
	}()
	for n := 1; ; n++ {
		ok, err := r.next()
		if err != nil {
			return tx.fault(query, err)
		}
		if !ok {
			return nil
		}
		if tx.ctx != nil && n%cancelRows == 0 && tx.ctx.Err() != nil {
			return tx.ctx.Err()
		}
		if more, err := fn(r); err != nil || !more {
			return err
		}
	}
}

// reading reports whether a query that is not a plain SELECT reads only. A WITH may be either.
func (tx *Tx) reading(query string) bool {
	upper := strings.ToUpper(query)
	for _, w := range []string{"INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER", "REINDEX", "ANALYZE"} {
		if strings.Contains(upper, w) {
			return false
		}
	}
	return true
}

// AfterCommit has fn called once the changes are on the disk, before Update returns: in
// the order of the calls, and of the commits. It is called on any goroutine and holds up
// every Update meanwhile, so fn must not block and must not call Update. It is not called
// if the func fails. In a View it is called when the View ends without an error.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

// OnRollback has fn called if the changes are taken back, also before the func is run
// again; the last one first. It is held to the rules of AfterCommit.
func (tx *Tx) OnRollback(fn func()) { tx.rollback = append(tx.rollback, fn) }

// alive returns why no statement may run any more.
func (tx *Tx) alive() error {
	switch {
	case tx.over:
		return errTxDone
	case tx.broken != nil:
		return tx.broken
	}
	return nil
}

func (tx *Tx) prepare(query string, args []any) (*stmt, []driver.NamedValue, error) {
	if err := tx.alive(); err != nil {
		return nil, nil, err
	}
	c := tx.c
	if known := c.stmts[query]; known == nil || known.own {
		if err := checkQuery(query); err != nil {
			return nil, nil, err
		}
	}
	s, err := c.prepare(query)
	if err != nil {
		return nil, nil, tx.fault(query, err)
	}
	c.args = c.args[:0]
	for i, a := range args {
		v, err := toValue(a)
		if err != nil {
			c.done(s)
			return nil, nil, fmt.Errorf("%s: argument %d: %w", brief(query), i+1, err)
		}
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return s, c.args, nil
}

// fault says which query failed. If the transaction may be over, nothing more runs in it.
func (tx *Tx) fault(query string, err error) error {
	e := explain(tx.c.path, err)
	if isDisk(e) || tx.ctx == nil && !tx.c.inTx() {
		tx.broken = e
	}
	return fmt.Errorf("%s: %w", brief(query), e)
}

// brief is the start of a query, on one line: its values are not in it.
func brief(query string) string {
	f := strings.Join(strings.Fields(query), " ")
	if len(f) > 60 {
		f = f[:60] + "…"
	}
	return f
}
