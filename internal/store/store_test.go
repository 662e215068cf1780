package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/store/storetest"
)

var rows = store.Schema{Package: "test", Steps: []string{`CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB NOT NULL)`}}

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

func insert(db *store.DB, body string) error {
	return db.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO rows (body) VALUES (?)`, body)
		return err
	})
}

func count(t testing.TB, db *store.DB) (n int) {
	t.Helper()
	err := db.View(context.Background(), func(tx *store.Tx) error {
		_, err := tx.One(`SELECT COUNT(*) FROM rows`, nil, &n)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t testing.TB, dir string, schemas ...store.Schema) (*store.DB, error) {
	t.Helper()
	return store.Open(store.Config{Dir: dir}, schemas, slog.New(slog.DiscardHandler))
}

// Updates that wait at the same time share a commit, and AfterCommit keeps their order.
func TestConcurrentUpdatesShareCommits(t *testing.T) {
	db := storetest.Open(t, rows)
	const n = 2000
	var mu sync.Mutex
	var order []int
	seq, batches := 0, 0
	last := new(int)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			err := db.Update(context.Background(), func(tx *store.Tx) error {
				id, err := tx.Insert(`INSERT INTO rows (body) VALUES ('x')`)
				if err != nil {
					return err
				}
				seq++ // functions of one batch run one after the other
				mine := seq
				tx.AfterCommit(func() {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, int(id))
					if *last != seq { // all functions of a batch run before the first hook
						*last = seq
						batches++
					}
					_ = mine
				})
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := count(t, db); got != n {
		t.Fatalf("%d rows, want %d", got, n)
	}
	for i, id := range order {
		if id != i+1 {
			t.Fatalf("hook %d ran for row %d", i, id)
		}
	}
	if batches >= n/2 {
		t.Errorf("%d updates took %d commits: nothing was shared", n, batches)
	}
	t.Logf("%d updates in %d commits", n, batches)
}

// A model test: random functions, some of which fail before or after writing, or panic.
// What was acknowledged is there, what failed is not, hooks ran exactly for the former.
func TestFailingFunctionsLeaveNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	db := storetest.Open(t, rows)
	var committed, undone atomic.Int64
	var want sync.Map
	var wg sync.WaitGroup
	boom := errors.New("boom")
	for w := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := range 60 {
				body := fmt.Sprintf("%d-%d", w, i)
				how := rng.IntN(6)
				err := func() (err error) {
					defer func() {
						if p := recover(); p != nil {
							err = boom
						}
					}()
					return db.Update(context.Background(), func(tx *store.Tx) error {
						tx.AfterCommit(func() { committed.Add(1) })
						tx.OnRollback(func() { undone.Add(1) })
						if how == 0 {
							return boom
						}
						if _, err := tx.Exec(`INSERT INTO rows (body) VALUES (?)`, body); err != nil {
							return err
						}
						if how == 1 {
							return boom
						}
						if how == 2 {
							panic("boom")
						}
						return nil
					})
				}()
				if (err != nil) != (how < 3) {
					t.Errorf("how %d: %v", how, err)
				}
				if err == nil {
					want.Store(body, true)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	want.Range(func(any, any) bool { n++; return true })
	err := db.View(context.Background(), func(tx *store.Tx) error {
		return tx.Each(`SELECT body FROM rows`, nil, func(scan func(...any) error) error {
			var body string
			if err := scan(&body); err != nil {
				return err
			}
			if _, ok := want.LoadAndDelete(body); !ok {
				t.Errorf("row %s was not acknowledged, or is there twice", body)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	want.Range(func(k, _ any) bool { t.Errorf("row %v was acknowledged and is gone", k); return true })
	if committed.Load() != int64(n) || undone.Load() == 0 {
		t.Errorf("%d hooks ran for %d commits; %d undone", committed.Load(), n, undone.Load())
	}
	t.Logf("0 of %d acknowledged rows lost; %d undone", n, undone.Load())
}

func TestCancelledWhileWaitingIsNotRun(t *testing.T) {
	db := storetest.Open(t, rows)
	inside, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(context.Background(), func(*store.Tx) error { close(inside); <-release; return nil })
	})
	<-inside
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	wg.Go(func() {
		ended <- db.Update(ctx, func(*store.Tx) error { t.Error("it was run"); return nil })
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	wg.Wait()
}

func TestViewSeesASnapshotAndCannotWrite(t *testing.T) {
	db := storetest.Open(t, rows)
	if err := insert(db, "a"); err != nil {
		t.Fatal(err)
	}
	err := db.View(context.Background(), func(tx *store.Tx) error {
		var before, after int
		if _, err := tx.One(`SELECT COUNT(*) FROM rows`, nil, &before); err != nil {
			return err
		}
		if err := insert(db, "b"); err != nil {
			return err
		}
		if _, err := tx.One(`SELECT COUNT(*) FROM rows`, nil, &after); err != nil {
			return err
		}
		if before != 1 || after != 1 {
			t.Errorf("the snapshot moved from %d to %d rows", before, after)
		}
		if _, err := tx.Exec(`INSERT INTO rows (body) VALUES ('c')`); err == nil {
			t.Error("a view could write")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	db, err := open(t, dir, rows)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, rows); !errors.Is(err, store.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = open(t, dir, rows)
	if err != nil {
		t.Fatalf("open after close: %v", err)
	}
	if db.Fresh() {
		t.Error("an old database calls itself fresh")
	}
	db.Close()
	if err := insert(db, "x"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("update after close: %v", err)
	}
}

// A node that stops under load: each update is stored or told that it was not.
func TestCloseUnderLoad(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		db, err := open(t, dir, rows)
		if err != nil {
			t.Fatal(err)
		}
		var acked atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for {
					err := insert(db, "x")
					if errors.Is(err, store.ErrClosed) {
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
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if db, err = open(t, dir, rows); err != nil {
			t.Fatal(err)
		}
		if got := count(t, db); got != int(acked.Load()) {
			t.Errorf("%d rows for %d acknowledgements", got, acked.Load())
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSchemasMoveForwardOnly(t *testing.T) {
	dir := t.TempDir()
	next := store.Schema{Package: "test", Steps: append(append([]string(nil), rows.Steps...), `ALTER TABLE rows ADD COLUMN more TEXT`)}
	for _, s := range []store.Schema{rows, next} {
		db, err := open(t, dir, s)
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
	}
	if _, err := open(t, dir, rows); !errors.Is(err, store.ErrTooNew) {
		t.Errorf("older program: %v", err)
	}
	broken := store.Schema{Package: "other", Steps: []string{`CREATE TABLE fine (x)`, `CREATE TABLE nonsense (`}}
	if _, err := open(t, dir, next, broken); err == nil {
		t.Error("a broken step was taken")
	}
	db, err := open(t, dir, next, store.Schema{Package: "other", Steps: []string{`CREATE TABLE fine (x)`}})
	if err != nil {
		t.Fatalf("half of a broken migration stayed: %v", err)
	}
	db.Close()
}

func TestDamageIsNamed(t *testing.T) {
	make := func() (dir, path string) {
		dir = t.TempDir()
		db, err := open(t, dir, rows)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(context.Background(), func(tx *store.Tx) error {
			for i := range 200 {
				if _, err := tx.Exec(`INSERT INTO rows (body) VALUES (?)`, strings.Repeat(strconv.Itoa(i), 200)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return dir, filepath.Join(dir, store.File)
	}
	for _, c := range []struct {
		name   string
		damage func(path string) error
		want   *shoal.Error
	}{
		{"first byte flipped", func(p string) error { return flip(p, 0) }, store.ErrCorrupt},
		{"cut in the middle of a page", func(p string) error { return os.Truncate(p, 5000) }, store.ErrCorrupt},
		{"cut to whole pages", func(p string) error { return os.Truncate(p, 4096) }, store.ErrCorrupt},
		{"schema page flipped", func(p string) error { return flip(p, 100) }, store.ErrCorrupt},
		{"others may read", func(p string) error { return os.Chmod(p, 0o644) }, store.ErrModes},
	} {
		if runtime.GOOS == "windows" && c.want == store.ErrModes {
			continue
		}
		dir, path := make()
		if err := c.damage(path); err != nil {
			t.Fatal(err)
		}
		db, err := open(t, dir, rows)
		if err == nil {
			// SQLite reads a page when it is needed: then it must say so.
			err = db.View(context.Background(), func(tx *store.Tx) error {
				var n int
				_, err := tx.One(`SELECT SUM(LENGTH(body)) FROM rows`, nil, &n)
				return err
			})
			db.Close()
		}
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v and the path", c.name, err, c.want)
		}
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	return err
}

// A full disk acknowledges nothing, reads go on, and so does writing once there is room.
// SQLite's own page limit stands for the disk here; TestFullDisk fills a real one.
func TestFullDatabase(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir(), MaxPages: 64}, []store.Schema{rows}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	fillAndRecover(t, db, func() {
		err := db.Update(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Exec(`DELETE FROM rows WHERE id % 2 = 0`)
			return err
		})
		if err != nil {
			t.Errorf("making room: %v", err)
		}
	})
}

func fillAndRecover(t *testing.T, db *store.DB, makeRoom func()) {
	t.Helper()
	body := strings.Repeat("x", 3000)
	var acked atomic.Int64
	var refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 400 {
				err := insert(db, body)
				switch {
				case err == nil:
					acked.Add(1)
				case errors.Is(err, store.ErrDiskFull) || errors.Is(err, store.ErrDisk):
					refused.Add(1)
				default:
					t.Errorf("unclear error: %v", err)
				}
				if refused.Load() > 40 {
					return
				}
			}
		})
	}
	wg.Wait()
	if refused.Load() == 0 {
		t.Fatal("the disk never got full")
	}
	if got := count(t, db); got != int(acked.Load()) {
		t.Fatalf("%d rows for %d acknowledgements", got, acked.Load())
	}
	makeRoom()
	if err := insert(db, "small"); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	t.Logf("%d acknowledged, %d refused, 0 wrong", acked.Load(), refused.Load())
}

func TestFullDisk(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("needs Linux and root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs here: %v %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	}()
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := open(t, dir, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	fillAndRecover(t, db, func() {
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	})
}

func TestBackupAndRestore(t *testing.T) {
	db := storetest.Open(t, rows)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := insert(db, "more"); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	if err := insert(db, "first"); err != nil {
		t.Fatal(err)
	}
	before := count(t, db)
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := db.Backup(context.Background(), copied); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	if err := db.Backup(context.Background(), copied); err == nil {
		t.Error("a backup was overwritten")
	}
	home := t.TempDir()
	if err := store.Restore(copied, home); err != nil {
		t.Fatal(err)
	}
	again, err := open(t, home, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := count(t, again); got < before {
		t.Errorf("%d rows restored, %d were there", got, before)
	}
	if again.Epoch() <= db.Epoch() {
		t.Errorf("epoch %d is not above %d", again.Epoch(), db.Epoch())
	}
	other := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(other, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Restore(other, t.TempDir()); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("restore of junk: %v", err)
	}
	if err := store.Restore(copied, home); err == nil {
		t.Error("restore over a database")
	}
}

// writeUntilKilled is the child of TestKilledWriterLosesNothing: it writes each number
// that was acknowledged to stdout.
func writeUntilKilled(dir string) {
	db, err := store.Open(store.Config{Dir: dir}, []store.Schema{rows}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				body := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := insert(db, body); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(body)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestKilledWriterLosesNothing(t *testing.T) {
	kills := 20
	if testing.Short() {
		kills = 5
	}
	dir := t.TempDir()
	acked := map[string]bool{}
	for range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_WRITER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		until := 50 + rand.IntN(200)
		killed := false
		for n := 0; lines.Scan(); n++ {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Error(lines.Text())
			}
			acked[lines.Text()] = true
			if n == until {
				_ = cmd.Process.Kill()
				killed = true
			}
		}
		_ = cmd.Wait()
		if !killed {
			t.Fatal("the writer ended by itself")
		}
	}
	began := time.Now()
	db, err := open(t, dir, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	took := time.Since(began)
	have := map[string]bool{}
	err = db.View(context.Background(), func(tx *store.Tx) error {
		return tx.Each(`SELECT body FROM rows`, nil, func(scan func(...any) error) error {
			var body string
			err := scan(&body)
			if have[body] {
				t.Errorf("%s is there twice", body)
			}
			have[body] = true
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for body := range acked {
		// The last line may have been cut by the kill.
		if strings.Count(body, "-") == 2 && !have[body] {
			lost++
		}
	}
	if lost > len(acked)/1000 && lost > kills {
		t.Fatalf("lost %d of %d", lost, len(acked))
	}
	if lost > 0 {
		t.Errorf("lost %d of %d acknowledged rows in %d kills", lost, len(acked), kills)
	}
	t.Logf("lost 0 of %d acknowledged rows in %d kills; open took %v", len(acked), kills, took)
}

func BenchmarkUpdate(b *testing.B) {
	body := strings.Repeat("x", 1024)
	for _, outstanding := range []int{1, 128} {
		b.Run(strconv.Itoa(outstanding), func(b *testing.B) {
			db := storetest.Open(b, rows)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range outstanding {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := insert(db, body); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkFsyncFloor(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for i := range b.N {
		if _, err := f.WriteAt(page, int64(i%256)*4096); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}
