// Package store is the one database of a node: one SQLite file, one writer, and commits
// that callers who wait at the same time share.
//
// It promises that what [DB.Update] acknowledged is on disk, that a function which failed
// left nothing, and that functions passed to [Tx.AfterCommit] run only after their
// transaction is durable, in commit order. A full disk or an I/O error acknowledges
// nothing; the store goes on by itself when the cause is gone. A damaged file is named,
// never repaired in silence.
//
// It owns the driver and the file, and no other package's tables: each package brings a
// [Schema]. Services call it; it calls nobody but the functions it was given.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
)

// File is the database's name in its directory.
const File = "shoal.db"

const (
	lockFile   = "lock"
	maxReaders = 4                   // read connections; each costs about a megabyte
	checkUpTo  = 64 << 20            // bytes: larger files are not checked page by page at start
	logSize    = 32 + 1100*(24+4096) // bytes: SQLite begins the log anew after 1000 pages (wal_autocheckpoint)
)

// Errors that callers test for.
var (
	ErrLocked = shoal.NewError(shoal.Conflict, "data_dir_locked", "another daemon uses this data dir",
		"stop it with `shoal down`, or use another --home")
	ErrTooNew = shoal.NewError(shoal.Conflict, "schema_too_new", "the database was written by a newer version",
		"run that version, or restore a backup of this one")
	ErrCorrupt = shoal.NewError(shoal.Corrupt, "db_corrupt", "the database is damaged",
		"restore a backup with `shoal restore FILE` into an empty --home")
	ErrDiskFull = shoal.NewError(shoal.Exhausted, "disk_full", "the disk is full; nothing was stored",
		"make room; the node goes on by itself")
	ErrDisk = shoal.NewError(shoal.Unavailable, "disk_error", "the disk failed; nothing was stored",
		"check the disk and the system log; the node tries again by itself")
	ErrModes  = shoal.NewError(shoal.Denied, "file_too_open", "others may read the database", "")
	ErrClosed = shoal.NewError(shoal.Unavailable, "store_closed", "the database is closed", "the node is stopping")
)

// Schema is the tables of one package. Steps[i] is the SQL script that leads from version
// i to i+1; a step that was released never changes.
type Schema struct {
	Package string
	Steps   []string
}

// Config says where the database is. Zero fields have defaults.
type Config struct {
	// Dir holds the file and its lock; it must exist, mode 0700. Required.
	Dir string
	// MaxBatch is how many Updates share a commit at most. More is faster under load but
	// makes a failed batch dearer. Default 512.
	MaxBatch int
	// MaxPages bounds the file, in pages of 4 KiB, for tests of a full disk. Default none.
	MaxPages int
}

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	cfg   Config
	path  string
	log   *slog.Logger
	lock  *os.File
	fresh bool
	epoch uint64

	pool   *sql.DB
	writer *conn // used by the leader of a batch only
	slots  chan struct{}

	mu      sync.Mutex
	queue   []*request
	leading bool // somebody runs a batch
	closed  bool
	idle    []*conn // read connections
}

// Open opens the database in cfg.Dir, made if it is not there, and brings each schema to
// its newest version. It returns [ErrLocked], [ErrTooNew], [ErrCorrupt] or [ErrModes],
// with what was found in the message.
func Open(cfg Config, schemas []Schema, log *slog.Logger) (_ *DB, err error) {
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 512
	}
	db := &DB{cfg: cfg, path: filepath.Join(cfg.Dir, File), log: log, slots: make(chan struct{}, maxReaders)}
	if db.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.release())
		}
	}()
	unclean, err := db.prepareFile()
	if err != nil {
		return nil, err
	}
	if err := db.connect(); err != nil {
		return nil, db.explain(err)
	}
	if unclean {
		if err := db.check(); err != nil {
			return nil, err
		}
	}
	if err := db.migrate(schemas); err != nil {
		return nil, db.explain(err)
	}
	db.growLog()
	return db, nil
}

// growLog writes zeros behind the write-ahead log up to the size at which it is used
// again from the start. A commit then overwrites blocks that the file has already, and
// waits for its data only, not for the file system's own journal: half the time or less.
// Recovery ends at the first frame without the log's salt, so zeros mean nothing to it.
func (db *DB) growLog() {
	f, err := os.OpenFile(db.path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		return // no log yet: nothing is lost but time
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() >= logSize {
		return
	}
	if _, err = f.WriteAt(make([]byte, logSize-fi.Size()), fi.Size()); err == nil {
		err = f.Sync()
	}
	if err != nil {
		db.log.Debug("write-ahead log not grown", "err", err)
	}
}

// prepareFile makes an empty file of the right mode, or looks at the one that is there.
// unclean says that the last owner did not close it.
func (db *DB) prepareFile() (unclean bool, err error) {
	f, err := os.OpenFile(db.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", db.path, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if wide := fi.Mode().Perm() & 0o077; wide != 0 && runtime.GOOS != "windows" {
		e := ErrModes.With("%s has mode %04o", db.path, fi.Mode().Perm())
		e.Hint = "run: chmod 600 " + db.path
		return false, e
	}
	if db.fresh = fi.Size() == 0; db.fresh {
		return false, nil
	}
	head := make([]byte, 100)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:16]) != "SQLite format 3\x00" {
		return false, ErrCorrupt.With("%s does not begin as a database (offset 0)", db.path)
	}
	page := int64(binary.BigEndian.Uint16(head[16:18]))
	if page == 1 {
		page = 65536
	}
	if page < 512 || page&(page-1) != 0 || fi.Size()%page != 0 {
		return false, ErrCorrupt.With("%s was cut off: %d bytes are not whole pages of %d", db.path, fi.Size(), page)
	}
	wal, err := os.Stat(db.path + "-wal")
	return err == nil && wal.Size() > 0, ignoreMissing(err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// connect opens the pool and the writer.
func (db *DB) connect() (err error) {
	// _txlock does not matter: we begin ourselves. FULL makes each commit wait for the disk.
	dsn := "file:" + filepath.ToSlash(db.path) + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&_pragma=cache_size(-4096)&_pragma=foreign_keys(0)&_pragma=temp_store(2)"
	if db.pool, err = sql.Open("sqlite", dsn); err != nil {
		return err
	}
	db.pool.SetMaxOpenConns(maxReaders + 2) // and one for a backup
	return db.reconnect()
}

// reconnect gives the writer a new connection: after an I/O error the old one may hold
// pages that never reached the disk (fsync is not asked twice, spec: LazyFS study).
func (db *DB) reconnect() error {
	if db.writer != nil {
		_ = db.writer.close() // it is broken
		db.writer = nil
	}
	c, err := db.newConn()
	if err != nil {
		return err
	}
	if db.cfg.MaxPages > 0 {
		if _, err := c.c.ExecContext(context.Background(), fmt.Sprintf("PRAGMA max_page_count = %d", db.cfg.MaxPages)); err != nil {
			return errors.Join(err, c.close())
		}
	}
	db.writer = c
	return nil
}

// check reads the whole file after an unclean end, if it is small enough that nobody
// minds the wait; SQLite checks the rest as it is read.
func (db *DB) check() error {
	fi, err := os.Stat(db.path)
	if err != nil || fi.Size() > checkUpTo {
		return err
	}
	var verdict string
	if err := db.writer.c.QueryRowContext(context.Background(), "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return db.explain(err)
	}
	if verdict != "ok" {
		return ErrCorrupt.With("%s: %s", db.path, verdict)
	}
	return nil
}

// migrate brings the tables to the newest version, all packages in one transaction.
func (db *DB) migrate(schemas []Schema) error {
	return db.Update(context.Background(), func(tx *Tx) error {
		_, err := tx.Exec(`CREATE TABLE IF NOT EXISTS store_schema (package TEXT PRIMARY KEY, version INTEGER NOT NULL)`)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`CREATE TABLE IF NOT EXISTS store_epoch (epoch INTEGER NOT NULL)`); err != nil {
			return err
		}
		if db.epoch, err = loadEpoch(tx); err != nil {
			return err
		}
		for _, s := range schemas {
			if err := migrateOne(tx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

func migrateOne(tx *Tx, s Schema) error {
	version := 0
	if _, err := tx.One(`SELECT version FROM store_schema WHERE package = ?`, []any{s.Package}, &version); err != nil {
		return err
	}
	if version > len(s.Steps) {
		return ErrTooNew.With("tables of %s are version %d, this program knows %d", s.Package, version, len(s.Steps))
	}
	if version == len(s.Steps) {
		return nil
	}
	for i, step := range s.Steps[version:] {
		if err := tx.script(step); err != nil {
			return fmt.Errorf("bring tables of %s to version %d: %w", s.Package, version+i+1, err)
		}
	}
	_, err := tx.Exec(`INSERT INTO store_schema (package, version) VALUES (?, ?)
		ON CONFLICT (package) DO UPDATE SET version = excluded.version`, s.Package, len(s.Steps))
	return err
}

// Fresh reports whether Open made the database.
func (db *DB) Fresh() bool { return db.fresh }

// Epoch is a number of this database: unix milliseconds of its making, then 20 random
// bits. A restored copy has another, higher one.
func (db *DB) Epoch() uint64 { return db.epoch }

func loadEpoch(tx *Tx) (uint64, error) {
	var e int64
	found, err := tx.One(`SELECT epoch FROM store_epoch`, nil, &e)
	if err != nil || found {
		return uint64(e), err
	}
	e = newEpoch(0, time.Now())
	_, err = tx.Exec(`INSERT INTO store_epoch (epoch) VALUES (?)`, e)
	return uint64(e), err
}

// newEpoch is above old even if the clock went back.
func newEpoch(old int64, now time.Time) int64 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return max(now.UnixMilli()<<20|int64(binary.BigEndian.Uint32(b[:])&0xfffff), old+1)
}

// Close waits for the batch that is running, refuses what waits with [ErrClosed], and
// gives the data dir free. Closing again does nothing.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	var lead, waiting []*request
	for _, r := range db.queue {
		if r.lead {
			lead = append(lead, r) // it was woken to run the next batch, and will
		} else {
			waiting = append(waiting, r)
		}
	}
	db.queue = lead
	leading := db.leading
	db.mu.Unlock()
	for _, r := range waiting {
		r.finish(ErrClosed)
	}
	if leading {
		// The leader is between batches or in one: the queue is empty, so it ends soon.
		// Taking its place is how we wait.
		db.waitIdle()
	}
	return db.release()
}

func (db *DB) release() error {
	var err error
	db.mu.Lock()
	db.closed = true
	idle := db.idle
	db.idle = nil
	db.mu.Unlock()
	for _, c := range idle {
		err = errors.Join(err, c.close())
	}
	if db.writer != nil {
		err = errors.Join(err, db.writer.close())
	}
	if db.pool != nil {
		err = errors.Join(err, db.pool.Close())
	}
	if db.lock != nil {
		err = errors.Join(err, db.lock.Close())
	}
	return err
}
