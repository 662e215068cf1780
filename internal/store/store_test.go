package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("SHOAL_STORE_TEST_CHILD"); role != "" {
		os.Exit(child(role, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

var kv = Schema{Package: "kv", Steps: []string{`
	CREATE TABLE kv (k INTEGER PRIMARY KEY, v BLOB) STRICT;
	-- a second statement
	CREATE INDEX kv_v ON kv (length(v));
`}}

func home(t testing.TB) string { return filepath.Join(t.TempDir(), "home") }

func open(t testing.TB, dir string, schemas ...Schema) *DB {
	t.Helper()
	db, err := Open(Config{Dir: dir}, schemas, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, db) })
	return db
}

func shut(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// openErr opens a directory that must be refused.
func openErr(t *testing.T, dir string, schemas ...Schema) *shoal.Error {
	t.Helper()
	db, err := Open(Config{Dir: dir}, schemas, slog.New(slog.DiscardHandler))
	if err == nil {
		shut(t, db)
		t.Fatal("the database was opened")
	}
	return shoal.AsError(err)
}

func put(tx *Tx, k int64, v string) error {
	_, err := tx.Exec("INSERT INTO kv (k, v) VALUES (?, ?)", k, []byte(v))
	return err
}

func update(t testing.TB, db *DB, fn func(*Tx) error) {
	t.Helper()
	if err := db.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, db *DB, fn func(*Tx) error) {
	t.Helper()
	if err := db.View(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

// all returns the rows of kv as one line.
func all(t testing.TB, db *DB) string {
	t.Helper()
	var b strings.Builder
	view(t, db, func(tx *Tx) error {
		b.Reset()
		return tx.Each("SELECT k, v FROM kv ORDER BY k", nil, func(scan func(...any) error) error {
			var k int64
			var v []byte
			err := scan(&k, &v)
			fmt.Fprintf(&b, "%d=%s ", k, v)
			return err
		})
	})
	return strings.TrimSpace(b.String())
}

func TestKeepsWhatItAcknowledged(t *testing.T) {
	dir := home(t)
	db := open(t, dir, kv)
	if !db.Fresh() {
		t.Error("a new database is not fresh")
	}
	update(t, db, func(tx *Tx) error { return put(tx, 1, "one") })
	epoch := db.Epoch()
	shut(t, db)
	if _, err := os.Stat(db.path + "-wal"); err == nil {
		t.Error("a clean close left a log")
	}

	db = open(t, dir, kv)
	if db.Fresh() {
		t.Error("an old database is fresh")
	}
	if db.Epoch() != epoch {
		t.Errorf("epoch = %d, want %d", db.Epoch(), epoch)
	}
	if got := all(t, db); got != "1=one" {
		t.Errorf("rows = %q", got)
	}
}

func TestOneProcessADirectory(t *testing.T) {
	dir := home(t)
	db := open(t, dir, kv)
	err := openErr(t, dir, kv)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Msg, fmt.Sprintf("process %d", os.Getpid())) || err.Hint == "" {
		t.Errorf("got %v, want %v with the process", err, ErrLocked)
	}
	update(t, db, func(tx *Tx) error { return put(tx, 1, "x") })
	if err := Restore("any", dir); !errors.Is(err, ErrLocked) {
		t.Errorf("restore into a running node: got %v", err)
	}
	shut(t, db)
	open(t, dir, kv)
}

func TestMigrationsRunOnce(t *testing.T) {
	dir := home(t)
	s := Schema{Package: "p", Steps: []string{"CREATE TABLE p (n INTEGER); INSERT INTO p VALUES (1);"}}
	shut(t, open(t, dir, s))
	s.Steps = append(s.Steps, "INSERT INTO p VALUES (2);", "INSERT INTO p VALUES (3); -- ; end")
	q := Schema{Package: "q", Steps: []string{"CREATE TABLE q (n INTEGER)"}}
	shut(t, open(t, dir, s, q))
	db := open(t, dir, s, q)
	var got string
	view(t, db, func(tx *Tx) error {
		_, err := tx.One("SELECT group_concat(n) FROM p", nil, &got)
		return err
	})
	if got != "1,2,3" {
		t.Errorf("rows = %s, want 1,2,3", got)
	}
}

func TestFailedMigrationLeavesNothing(t *testing.T) {
	for _, step := range []string{"CREATE TABLE kv (oops)", "COMMIT", "ROLLBACK", "no SQL"} {
		dir := home(t)
		shut(t, open(t, dir, kv))
		up := Schema{Package: "kv", Steps: append(slices.Clone(kv.Steps), "ALTER TABLE kv ADD COLUMN w TEXT", step)}
		err := openErr(t, dir, up)
		if !strings.Contains(err.Error(), "migrate kv to version 3") {
			t.Errorf("step %q: %v", step, err)
		}
		if step == "COMMIT" {
			continue // it broke its own promise; that it is refused is all we can do
		}
		db := open(t, dir, kv)
		update(t, db, func(tx *Tx) error {
			if _, err := tx.Exec("SELECT w FROM kv"); err == nil {
				t.Errorf("step %q: half of the migration is there", step)
			}
			return nil
		})
		shut(t, db)
	}
}

func TestRefusesNewer(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*DB) error
		want   string
	}{
		"a newer version of a package": {func(db *DB) error {
			return db.writer.do("UPDATE store_schema SET version = 7 WHERE package = 'kv'")
		}, "package kv has version 7, this version knows 1"},
		"a package of the future": {func(db *DB) error {
			return db.writer.do("INSERT INTO store_schema VALUES ('pay', 1)")
		}, "package pay has version 1, this version knows 0"},
		"a newer format": {func(db *DB) error { return db.writer.do("PRAGMA user_version = 2") }, "format 2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := home(t)
			db := open(t, dir, kv)
			if err := c.damage(db); err != nil {
				t.Fatal(err)
			}
			shut(t, db)
			before, err := os.ReadFile(db.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := openErr(t, dir, kv); !errors.Is(err, ErrTooNew) || !strings.Contains(err.Error(), c.want) || err.Hint == "" {
				t.Errorf("got %v, want %q", err, c.want)
			}
			after, err := os.ReadFile(db.path)
			if err != nil || string(after) != string(before) {
				t.Errorf("the newer database was changed (%v)", err)
			}
			if name != "a newer format" { // to look at it, or to back it up, needs no tables
				shut(t, open(t, dir))
			}
		})
	}
}

func TestRefusesSchemasThatClash(t *testing.T) {
	for _, s := range [][]Schema{{kv, kv}, {{Steps: []string{"SELECT 1"}}}} {
		openErr(t, home(t), s...)
	}
}

func TestEpochOnlyGrows(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	first := newEpoch(now, 0)
	if ms := first >> 20; ms != 1_800_000_000_000 {
		t.Errorf("high bits = %d", ms)
	}
	old := first
	for i, at := range []time.Time{now, now.Add(-time.Hour), now.Add(time.Hour), time.UnixMilli(0), now} {
		e := newEpoch(at, old)
		if e <= old || int64(e) < 0 {
			t.Errorf("%d: epoch %d after %d", i, e, old)
		}
		old = e
	}
	if newEpoch(now, 0)&(1<<20-1) == first&(1<<20-1) && newEpoch(now, 0) == first {
		t.Error("the low bits are not random")
	}
}

func TestCloseWaitsAndRefuses(t *testing.T) {
	db := open(t, home(t), kv)
	running, goOn := make(chan struct{}), make(chan struct{})
	results := make(chan error, 2)
	go func() {
		results <- db.Update(context.Background(), func(tx *Tx) error {
			close(running)
			<-goOn
			return put(tx, 1, "one")
		})
	}()
	<-running
	go func() { results <- db.Update(context.Background(), func(tx *Tx) error { return put(tx, 2, "two") }) }()
	waitQueued(t, db, 1)
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for shutting := false; !shutting; runtime.Gosched() {
		db.mu.Lock()
		shutting = db.closed
		db.mu.Unlock()
	}
	if err := db.Update(context.Background(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("update after close: %v", err)
	}
	if err := db.View(ended, func(*Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("view with an ended context: %v", err)
	}
	select {
	case err := <-closed:
		t.Fatalf("closed while an update runs: %v", err)
	default:
	}
	close(goOn)
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("an update that was begun or queued: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := db.View(context.Background(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("view after close: %v", err)
	}
	if err := db.Backup(context.Background(), filepath.Join(t.TempDir(), "b")); !errors.Is(err, ErrClosed) {
		t.Errorf("backup after close: %v", err)
	}
	db = open(t, filepath.Dir(db.path), kv)
	if got := all(t, db); got != "1=one 2=two" {
		t.Errorf("rows = %q", got)
	}
}

// A node that stops under load: each update is stored or told that it was not.
func TestCloseUnderLoad(t *testing.T) {
	for range 10 {
		dir := home(t)
		db := open(t, dir, kv)
		var acked atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for {
					err := db.Update(context.Background(), func(tx *Tx) error { _, err := tx.Exec("INSERT INTO kv (v) VALUES (NULL)"); return err })
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					acked.Add(1)
				}
			})
		}
		for acked.Load() < 50 {
			runtime.Gosched()
		}
		shut(t, db)
		wg.Wait()
		db = open(t, dir, kv)
		var n int64
		view(t, db, func(tx *Tx) error { _, err := tx.One("SELECT count(*) FROM kv", nil, &n); return err })
		if n != acked.Load() {
			t.Errorf("%d rows, %d acknowledged", n, acked.Load())
		}
	}
}

func TestWorksInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := open(t, home(t), kv)
		for i := range 20 {
			go func() { update(t, db, func(tx *Tx) error { return put(tx, int64(i), "x") }) }()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := db.Stats().Updates; got < 20 {
			t.Errorf("%d updates", got)
		}
	})
}
