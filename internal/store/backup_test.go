package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoalmesh/shoal"
)

func TestBackupWhileWriting(t *testing.T) {
	db := open(t, home(t), bank)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	started := make(chan struct{})
	var once sync.Once
	for g := range int64(4) {
		wg.Go(func() {
			for i := int64(0); ctx.Err() == nil; i++ {
				x := transfer{op: g<<32 | i, a: i % 10, b: (i + 1) % 10, amount: 1, mood: 9}
				if err := db.Update(context.Background(), x.run); err != nil {
					t.Error(err)
				}
				once.Do(func() { close(started) })
			}
		})
	}
	<-started
	out := t.TempDir()
	var last uint64
	for i, name := range []string{"a", "b", "c"} {
		path := filepath.Join(out, name)
		if err := db.Backup(context.Background(), path); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil || hasModes && fi.Mode().Perm() != 0o600 {
			t.Fatalf("backup: %v %v", fi, err)
		}
		dir := filepath.Join(out, name+"-home")
		if err := Restore(path, dir); err != nil {
			t.Fatal(err)
		}
		copied := open(t, dir, bank)
		var sum, ops int
		view(t, copied, func(tx *Tx) error {
			_, err := tx.One("SELECT (SELECT sum(balance) FROM bank), (SELECT count(*) FROM bank_log)", nil, &sum, &ops)
			return err
		})
		if sum != 10_000 || ops < i {
			t.Errorf("backup %d: sum %d, %d transfers", i, sum, ops)
		}
		if copied.Epoch() <= db.Epoch() || copied.Epoch() <= last {
			t.Errorf("epoch %d after %d and %d", copied.Epoch(), db.Epoch(), last)
		}
		last = copied.Epoch()
		if names := ls(t, dir); names != "lock shoal.db shoal.db-shm shoal.db-wal" {
			t.Errorf("restore left %s", names)
		}
	}
	if names := ls(t, out); names != "a a-home b b-home c c-home" {
		t.Errorf("backup left %s", names)
	}
}

func ls(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestBackupNeverOverwrites(t *testing.T) {
	db := open(t, home(t), kv)
	path := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := shoal.AsError(db.Backup(context.Background(), path))
	if err.Kind != shoal.Conflict || err.Reason != "file_exists" {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestFailedBackupLeavesNothing(t *testing.T) {
	db := open(t, home(t), kv)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := db.Backup(ctx, filepath.Join(dir, "b")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := db.Backup(context.Background(), filepath.Join(dir, "no", "b")); err == nil {
		t.Error("a backup into a missing directory")
	}
	if names := ls(t, dir); names != "" {
		t.Errorf("left %s", names)
	}
}

func TestRestoreRefuses(t *testing.T) {
	db := open(t, home(t), kv)
	for i := range 50 {
		update(t, db, func(tx *Tx) error { return put(tx, int64(i), strings.Repeat("x", 1000)) })
	}
	good := filepath.Join(t.TempDir(), "good")
	if err := db.Backup(context.Background(), good); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := Restore(good, home(t)); err != nil { // the control
		t.Fatal(err)
	}
	n := 0
	for name, bad := range map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"text":           func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 500)) },
		"cut in header":  func(b []byte) []byte { return b[:99] },
		"cut in a page":  func(b []byte) []byte { return b[:len(b)-1] },
		"cut by a page":  func(b []byte) []byte { return b[:len(b)-4096] },
		"foreign":        func(b []byte) []byte { b[71] ^= 1; return b },
		"broken b-tree":  func(b []byte) []byte { b[4096*5+3] ^= 0x40; return b },
		"lost root page": func(b []byte) []byte { clear(b[4096 : 2*4096]); return b },
	} {
		path := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(path, bad(append([]byte{}, content...)), 0o600); err != nil {
			t.Fatal(err)
		}
		dir := home(t)
		if err := Restore(path, dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if names := ls(t, dir); names != "lock" {
			t.Errorf("%s: left %s", name, names)
		}
		n++
	}
	t.Logf("%d damaged backups refused", n)

	dir := filepath.Dir(db.path)
	shut(t, db)
	err = Restore(good, dir)
	if e := shoal.AsError(err); e.Reason != "home_not_empty" || e.Hint == "" {
		t.Errorf("over a database: %v", err)
	}
	if err := Restore(filepath.Join(dir, "missing"), home(t)); err == nil {
		t.Error("restored a missing file")
	}
}
