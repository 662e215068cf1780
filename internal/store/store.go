// Package store is the one database of a node (thin first version).
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite"

	"github.com/shoalmesh/shoal"
)

type Schema struct {
	Package string
	Steps   []string
}

type Config struct{ Dir string }

type DB struct {
	wdb, rdb *sql.DB
	w        *conn
	epoch    uint64
	fresh    bool

	mu     sync.Mutex
	queue  []*job
	active bool

	rmu   sync.Mutex
	rfree []*conn
}

type conn struct {
	c     *sql.Conn
	stmts map[string]*sql.Stmt
}

type job struct {
	ctx   context.Context
	fn    func(*Tx) error
	err   error
	done  chan struct{}
	after []func()
	lead  bool
}

type Tx struct {
	c        *conn
	ctx      context.Context
	wrote    bool
	after    []func()
	rollback []func()
}

func Open(cfg Config, schemas []Schema, log *slog.Logger) (*DB, error) {
	path := filepath.Join(cfg.Dir, "shoal.db")
	_, err := os.Stat(path)
	db := &DB{fresh: os.IsNotExist(err)}
	dsn := "file:" + path + "?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)"
	if db.wdb, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	if db.rdb, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
		return nil, err
	}
	c, err := db.wdb.Conn(context.Background())
	if err != nil {
		return nil, err
	}
	db.w = &conn{c: c, stmts: map[string]*sql.Stmt{}}
	return db, db.migrate(schemas)
}

func (db *DB) migrate(schemas []Schema) error {
	return db.Update(context.Background(), func(tx *Tx) error {
		if _, err := tx.Exec(`CREATE TABLE IF NOT EXISTS schema_version (package TEXT PRIMARY KEY, version INTEGER NOT NULL)`); err != nil {
			return err
		}
		if _, err := tx.Exec(`CREATE TABLE IF NOT EXISTS epoch (epoch INTEGER NOT NULL)`); err != nil {
			return err
		}
		var e int64
		ok, err := tx.One(`SELECT epoch FROM epoch`, nil, &e)
		if err != nil {
			return err
		}
		if !ok {
			var b [4]byte
			rand.Read(b[:])
			e = time.Now().UnixMilli()<<20 | int64(binary.BigEndian.Uint32(b[:])&0xfffff)
			if _, err := tx.Exec(`INSERT INTO epoch VALUES (?)`, e); err != nil {
				return err
			}
		}
		db.epoch = uint64(e)
		for _, s := range schemas {
			v := 0
			if _, err := tx.One(`SELECT version FROM schema_version WHERE package = ?`, []any{s.Package}, &v); err != nil {
				return err
			}
			if v > len(s.Steps) {
				return shoal.NewError(shoal.Conflict, "schema_too_new", "the database is newer", "")
			}
			for _, step := range s.Steps[v:] {
				if _, err := tx.c.c.ExecContext(tx.ctx, step); err != nil {
					return fmt.Errorf("migrate %s: %w", s.Package, err)
				}
			}
			if _, err := tx.Exec(`INSERT OR REPLACE INTO schema_version VALUES (?, ?)`, s.Package, len(s.Steps)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	j := &job{ctx: ctx, fn: fn, done: make(chan struct{})}
	db.mu.Lock()
	db.queue = append(db.queue, j)
	lead := !db.active
	db.active = true
	db.mu.Unlock()
	if !lead {
		<-j.done
		if !j.lead {
			return j.err
		}
	}
	db.mu.Lock()
	batch := db.queue
	db.queue = nil
	db.mu.Unlock()
	db.run(batch)
	db.mu.Lock()
	if len(db.queue) > 0 {
		next := db.queue[0]
		next.lead = true
		db.mu.Unlock()
		close(next.done)
	} else {
		db.active = false
		db.mu.Unlock()
	}
	for _, b := range batch {
		if b != j {
			close(closedOnce(b))
		}
	}
	return j.err
}

func closedOnce(j *job) chan struct{} {
	if j.lead {
		return make(chan struct{})
	}
	return j.done
}

func (db *DB) run(batch []*job) {
	if err := db.try(batch); err == nil {
		return
	}
	if len(batch) == 1 {
		return
	}
	for _, j := range batch {
		db.try([]*job{j})
	}
}

func (db *DB) try(batch []*job) error {
	bg := context.Background()
	fail := func(err error) error {
		for _, j := range batch {
			j.err = err
		}
		return err
	}
	if _, err := db.w.c.ExecContext(bg, "BEGIN IMMEDIATE"); err != nil {
		return fail(err)
	}
	var txs []*Tx
	back := func() {
		db.w.c.ExecContext(bg, "ROLLBACK")
		for _, tx := range txs {
			for _, f := range tx.rollback {
				f()
			}
		}
	}
	for _, j := range batch {
		tx := &Tx{c: db.w, ctx: bg}
		txs = append(txs, tx)
		j.err = j.fn(tx)
		if j.err != nil && tx.wrote {
			err := j.err
			back()
			return err
		}
		if j.err != nil {
			for _, f := range tx.rollback {
				f()
			}
			tx.after = nil
			tx.rollback = nil
		}
	}
	if _, err := db.w.c.ExecContext(bg, "COMMIT"); err != nil {
		back()
		return fail(err)
	}
	for _, tx := range txs {
		for _, f := range tx.after {
			f()
		}
	}
	return nil
}

func (db *DB) View(ctx context.Context, fn func(*Tx) error) error {
	db.rmu.Lock()
	var c *conn
	if n := len(db.rfree); n > 0 {
		c = db.rfree[n-1]
		db.rfree = db.rfree[:n-1]
	}
	db.rmu.Unlock()
	if c == nil {
		sc, err := db.rdb.Conn(context.Background())
		if err != nil {
			return err
		}
		c = &conn{c: sc, stmts: map[string]*sql.Stmt{}}
	}
	defer func() {
		db.rmu.Lock()
		db.rfree = append(db.rfree, c)
		db.rmu.Unlock()
	}()
	bg := context.Background()
	if _, err := c.c.ExecContext(bg, "BEGIN"); err != nil {
		return err
	}
	defer c.c.ExecContext(bg, "COMMIT")
	return fn(&Tx{c: c, ctx: bg})
}

func (db *DB) Epoch() uint64 { return db.epoch }
func (db *DB) Fresh() bool   { return db.fresh }
func (db *DB) Close() error  { db.w.c.Close(); return errors.Join(db.rdb.Close(), db.wdb.Close()) }
func (db *DB) Backup(ctx context.Context, path string) error {
	_, err := db.rdb.ExecContext(ctx, "VACUUM INTO ?", path)
	return err
}
func Restore(file, dir string) error { return os.Rename(file, filepath.Join(dir, "shoal.db")) }

func (t *Tx) stmt(q string) (*sql.Stmt, error) {
	if s := t.c.stmts[q]; s != nil {
		return s, nil
	}
	s, err := t.c.c.PrepareContext(t.ctx, q)
	if err == nil {
		t.c.stmts[q] = s
	}
	return s, err
}

func (t *Tx) exec(q string, args []any) (sql.Result, error) {
	s, err := t.stmt(q)
	if err != nil {
		return nil, err
	}
	t.wrote = true
	return s.ExecContext(t.ctx, args...)
}

func (t *Tx) Exec(q string, args ...any) (int64, error) {
	r, err := t.exec(q, args)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *Tx) Insert(q string, args ...any) (int64, error) {
	r, err := t.exec(q, args)
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}

func (t *Tx) One(q string, args []any, dest ...any) (bool, error) {
	s, err := t.stmt(q)
	if err != nil {
		return false, err
	}
	err = s.QueryRowContext(t.ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func (t *Tx) Each(q string, args []any, fn func(scan func(dest ...any) error) error) error {
	s, err := t.stmt(q)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(t.ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t *Tx) AfterCommit(f func()) { t.after = append(t.after, f) }
func (t *Tx) OnRollback(f func())  { t.rollback = append(t.rollback, f) }
