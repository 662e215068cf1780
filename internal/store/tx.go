package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"modernc.org/sqlite"

	"github.com/shoalmesh/shoal"
)

// conn is one connection with its prepared statements.
type conn struct {
	c     *sql.Conn
	stmts map[string]*sql.Stmt
}

// maxStmts bounds the statements that are kept prepared; ours are constants, so a
// connection that gets there was given text with values in it.
const maxStmts = 512

func (db *DB) newConn() (*conn, error) {
	c, err := db.pool.Conn(context.Background())
	if err != nil {
		return nil, err
	}
	return &conn{c: c, stmts: map[string]*sql.Stmt{}}, nil
}

func (c *conn) stmt(query string) (*sql.Stmt, error) {
	if s := c.stmts[query]; s != nil {
		return s, nil
	}
	if len(c.stmts) >= maxStmts {
		return nil, fmt.Errorf("more than %d different statements: %.60s", maxStmts, query)
	}
	s, err := c.c.PrepareContext(context.Background(), query)
	if err == nil {
		c.stmts[query] = s
	}
	return s, err
}

// run executes a statement without arguments.
func (c *conn) run(query string) error {
	s, err := c.stmt(query)
	if err != nil {
		return err
	}
	_, err = s.ExecContext(context.Background())
	return err
}

// close ends the connection for good: it does not go back to the pool.
func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close() // the connection goes away with them
	}
	_ = c.c.Raw(func(any) error { return sql.ErrConnDone }) // nothing to do with the driver's connection
	return c.c.Close()
}

// Tx is a transaction, valid while the function that got it runs. It is not for
// concurrent use. Statements are kept prepared by their text: values go into args.
type Tx struct {
	c      *conn
	write  bool // made by Update
	wrote  bool
	broken error // an error after which SQLite may have rolled back

	after    []func()
	rollback []func()
}

// Exec runs a statement and returns how many rows it changed.
func (tx *Tx) Exec(query string, args ...any) (affected int64, err error) {
	r, err := tx.exec(query, args)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Insert runs an INSERT and returns the new row's id.
func (tx *Tx) Insert(query string, args ...any) (id int64, err error) {
	r, err := tx.exec(query, args)
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}

func (tx *Tx) exec(query string, args []any) (sql.Result, error) {
	if tx.broken != nil {
		return nil, tx.broken // after SQLite's own rollback a statement would commit by itself
	}
	s, err := tx.c.stmt(query)
	if err != nil {
		return nil, tx.fail(err)
	}
	tx.wrote = true
	r, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return nil, tx.fail(err)
	}
	return r, nil
}

// script runs several statements, for migrations.
func (tx *Tx) script(text string) error {
	tx.wrote = true
	_, err := tx.c.c.ExecContext(context.Background(), text)
	return err
}

// One reads one row into dest; found is false if there is none.
func (tx *Tx) One(query string, args []any, dest ...any) (found bool, err error) {
	if tx.broken != nil {
		return false, tx.broken
	}
	s, err := tx.c.stmt(query)
	if err != nil {
		return false, tx.fail(err)
	}
	err = s.QueryRowContext(context.Background(), args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, tx.fail(err)
}

// Each calls fn for each row; scan reads the row's columns. An error of fn ends it and is
// returned. fn must not run other statements that change the rows being read.
func (tx *Tx) Each(query string, args []any, fn func(scan func(dest ...any) error) error) error {
	if tx.broken != nil {
		return tx.broken
	}
	s, err := tx.c.stmt(query)
	if err != nil {
		return tx.fail(err)
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return tx.fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return tx.fail(rows.Err())
}

// AfterCommit registers f to run once the transaction is durable, before Update returns.
// It must not block, nor call Update. In a View it never runs.
func (tx *Tx) AfterCommit(f func()) { tx.after = append(tx.after, f) }

// OnRollback registers f to run if this run of the function does not commit.
func (tx *Tx) OnRollback(f func()) { tx.rollback = append(tx.rollback, f) }

func (tx *Tx) undo() {
	for _, f := range tx.rollback {
		f()
	}
	tx.rollback, tx.after = nil, nil
}

// fail remembers errors that end the whole transaction, whoever swallows them.
func (tx *Tx) fail(err error) error {
	if err != nil && tx.write && isDisk(err) {
		tx.broken = err
	}
	return err
}

// Primary result codes of SQLite (sqlite.org/rescode.html).
const (
	codeIOErr    = 10
	codeCorrupt  = 11
	codeFull     = 13
	codeCantOpen = 14
	codeNotADB   = 26
)

func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

func isDisk(err error) bool {
	switch code(err) {
	case codeIOErr, codeCorrupt, codeFull, codeCantOpen, codeNotADB:
		return true
	}
	return false
}

// explain turns SQLite's words into ours; other errors pass.
func (db *DB) explain(err error) error {
	var ours *shoal.Error
	if err == nil || errors.As(err, &ours) {
		return err
	}
	switch code(err) {
	case codeFull:
		return ErrDiskFull.Because(err)
	case codeIOErr, codeCantOpen:
		return ErrDisk.Because(err)
	case codeCorrupt, codeNotADB:
		return ErrCorrupt.With("%s", db.path).Because(err)
	}
	return err
}
