// Package store is the one database of a node: a SQLite file with one writer that
// commits many updates at once.
//
// It promises that what [DB.Update] acknowledged is on the disk; that an Update's
// changes are kept whole or not at all; that a full or failing disk is an error to each
// caller and never a wrong acknowledgement, and that work goes on by itself when the disk
// does. One process uses a directory at a time. It refuses a database of a newer version
// and names a file that is damaged.
//
// It does not know any other package's tables: each hands in its [Schema] and runs its
// own SQL through [Tx]. It does not detect a flipped bit inside a row: who needs that
// signs or hashes what it stores.
//
// Package node opens it; the services of layer 2 read and write. It is the only importer
// of the SQL driver (modernc.org/sqlite), which it uses below database/sql: one goroutine
// at a time owns a connection, so a pool, its locks and a goroutine for each cancellable
// statement would buy nothing.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalmesh/shoal"
)

const dbFile = "shoal.db"

var (
	// ErrLocked is returned when another process uses the directory.
	ErrLocked = shoal.NewError(shoal.Conflict, "data_dir_locked", "another node uses the data directory",
		"stop it with `shoal down`, or choose another --home")
	// ErrTooNew is returned for a database of a newer version of the program.
	ErrTooNew = shoal.NewError(shoal.Conflict, "schema_too_new", "the database was written by a newer version",
		"use that version, or restore a backup of this one")
	// ErrCorrupt is returned for a file that is damaged. Its message names the file.
	ErrCorrupt = shoal.NewError(shoal.Corrupt, "db_corrupt", "the database is damaged",
		"restore a backup into an empty directory with `shoal restore`; keep the damaged files for a look")
	// ErrDiskFull is returned by an Update that did not fit. Nothing of it is stored.
	ErrDiskFull = shoal.NewError(shoal.Exhausted, "disk_full", "the disk is full, nothing was stored",
		"make room on the disk of the data directory; the node goes on by itself")
	// ErrDisk is returned when reading or writing fails. Nothing was acknowledged.
	ErrDisk = shoal.NewError(shoal.Unavailable, "disk_error", "the disk does not read or write",
		"look at the system's log (`dmesg`); the node goes on by itself when the disk does")
	// ErrBusy is returned when another program holds the database for too long.
	ErrBusy = shoal.NewError(shoal.Unavailable, "db_busy", "another program holds the database",
		"close the program that has shoal.db open")
	// ErrClosed is returned after [DB.Close].
	ErrClosed = shoal.NewError(shoal.Unavailable, "store_closed", "the database is closed", "")
)

// Schema is one package's tables.
type Schema struct {
	// Package owns the tables; their names begin with it.
	Package string
	// Steps[i] is the SQL script that makes version i+1 of version i. A step that was
	// released is never changed. All pending steps of all packages are one transaction.
	Steps []string
}

// Config says where the database is and how much memory it may use. Zero is the default.
type Config struct {
	// Dir is the data directory. Open makes it with mode 0700 if it is missing.
	Dir string
	// MaxBatch is how many Update funcs share a commit at most. More is more throughput
	// under load and a longer wait behind a full batch. Default 512.
	MaxBatch int
	// Readers is how many Views run at a time; others wait. Each costs up to 1 MiB once
	// used. Default 4.
	Readers int
	// CacheKiB is the writer's page cache in KiB. Default 4096.
	CacheKiB int
	// CheckTime bounds the check of a database that was not closed cleanly. What is not
	// reached in it is not checked. Default 100 ms.
	CheckTime time.Duration
}

func (c Config) withDefaults() Config {
	if c.MaxBatch <= 0 {
		c.MaxBatch = 512
	}
	if c.Readers <= 0 {
		c.Readers = 4
	}
	if c.CacheKiB <= 0 {
		c.CacheKiB = 4096
	}
	if c.CheckTime <= 0 {
		c.CheckTime = 100 * time.Millisecond
	}
	return c
}

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	cfg   Config
	log   *slog.Logger
	path  string
	lock  *dirLock
	epoch uint64
	fresh bool

	// writer and grown belong to the leader of the moment, see update.go.
	writer *conn
	grown  bool // growLog was called

	mu      sync.Mutex // guards what follows, never held over I/O or a callback
	queue   []*op
	leading bool
	closed  bool
	idle    chan struct{} // made by Close, closed by the last leader

	readers readers

	updates, commits, reruns atomic.Uint64
}

// Open opens the database in cfg.Dir, makes it if there is none, and brings the tables
// to the versions of schemas. It returns [ErrLocked], [ErrTooNew], [ErrCorrupt],
// [ErrDiskFull], [ErrDisk], or an error with reason file_too_open or no_permission whose
// hint is the command that helps. schemas is not kept; without any, no version is checked.
func Open(cfg Config, schemas []Schema, log *slog.Logger) (_ *DB, err error) {
	cfg = cfg.withDefaults()
	if err := checkSchemas(schemas); err != nil {
		return nil, err
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, err
	}

	db := &DB{cfg: cfg, log: log, path: filepath.Join(cfg.Dir, dbFile)}
	db.readers.init(cfg.Readers)
	if db.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(db.named(err), db.writer.close(), db.lock.release())
		}
	}()

	unclean, err := db.makeOrCheck()
	if err != nil {
		return nil, err
	}
	if db.writer, err = db.openConn(cfg.CacheKiB, false); err != nil {
		return nil, err
	}
	if unclean {
		if err := db.quickCheck(); err != nil {
			return nil, err
		}
	}
	if err := db.migrate(schemas); err != nil {
		return nil, err
	}
	return db, nil
}

func checkSchemas(schemas []Schema) error {
	var seen []string
	for _, s := range schemas {
		if s.Package == "" || slices.Contains(seen, s.Package) {
			return fmt.Errorf("schema %q: no name, or twice", s.Package)
		}
		seen = append(seen, s.Package)
	}
	return nil
}

// makeOrCheck makes the file if there is none, or looks at the files that are there. It
// does so before SQLite opens them: on POSIX, closing a file of our own would drop
// SQLite's locks on it.
func (db *DB) makeOrCheck() (unclean bool, err error) {
	_, err = os.Stat(db.path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(db.path + "-wal"); err == nil {
			return false, ErrCorrupt.With("%s is missing beside its %s-wal", db.path, dbFile)
		}
		db.fresh = true
		return false, db.create()
	}
	if err != nil {
		return false, diskError(err, db.path)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := checkMode(db.path+suffix, 0o600); err != nil {
			return false, err
		}
	}
	return checkFiles(db.path)
}

// create makes the file under another name first: an empty or half-made shoal.db would
// look like one that lost its content.
func (db *DB) create() error {
	tmp := db.path + ".new"
	if err := removeDB(tmp); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError(err, tmp)
	}
	if err := f.Close(); err != nil {
		return diskError(err, tmp)
	}
	if err := writeMeta(tmp, newEpoch(time.Now(), 0)); err != nil {
		return err
	}
	return moveIntoPlace(tmp, db.path)
}

// named puts the file's path into an error that has no hint of its own.
func (db *DB) named(err error) error {
	var e *shoal.Error
	if errors.As(err, &e) {
		return err
	}
	return fmt.Errorf("open %s: %w", db.path, err)
}

// Epoch returns a number that is this database's own: its high 44 bits are the Unix
// millisecond of its making or of its last [Restore], its low 20 bits are random. It grows
// with each Restore, so who numbers things with (epoch, sequence) never repeats a number
// after a backup was put back. It fits an int64 until the year 2248.
func (db *DB) Epoch() uint64 { return db.epoch }

// Fresh reports whether this Open made the database.
func (db *DB) Fresh() bool { return db.fresh }

// Close waits for what runs, refuses what comes after with [ErrClosed], moves the log
// into the main file and lets go of the directory. A second Close does nothing.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	idle := make(chan struct{})
	if db.leading {
		db.idle = idle
	} else {
		close(idle)
	}
	db.mu.Unlock()

	<-idle
	return errors.Join(db.readers.close(), db.writer.close(), db.lock.release())
}

// Stats tell how well updates share commits.
type Stats struct {
	Updates uint64 // funcs that succeeded and were committed
	Commits uint64 // commits that wrote, each with one fsync
	Reruns  uint64 // funcs that were run again because another one of their batch failed
}

// Stats returns the counts since Open.
func (db *DB) Stats() Stats {
	return Stats{Updates: db.updates.Load(), Commits: db.commits.Load(), Reruns: db.reruns.Load()}
}
