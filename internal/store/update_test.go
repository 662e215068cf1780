package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waitQueued waits until n updates wait behind the one that runs.
func waitQueued(t testing.TB, db *DB, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		db.mu.Lock()
		got := len(db.queue)
		db.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d updates wait, want %d", got, n)
		}
		runtime.Gosched()
	}
}

// together runs fns in one batch, in order, and returns their results. A panic is an error.
func together(t testing.TB, db *DB, fns ...func(*Tx) error) []error {
	t.Helper()
	running, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := db.Update(context.Background(), func(*Tx) error { close(running); <-goOn; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-running
	errs := make([]error, len(fns))
	var batch sync.WaitGroup
	for i, fn := range fns {
		batch.Go(func() {
			errs[i] = errors.New("the goroutine ended")
			defer func() {
				if v := recover(); v != nil {
					errs[i] = fmt.Errorf("panic: %v", v)
				}
			}()
			errs[i] = db.Update(context.Background(), fn)
		})
		waitQueued(t, db, i+1)
	}
	close(goOn)
	batch.Wait()
	return errs
}

// logOf returns where each commit of the log file ends: the file itself is longer.
func logOf(t *testing.T, db *DB) (ends []int) {
	t.Helper()
	b, err := os.ReadFile(db.path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return commitEnds(b)
}

func commitEnds(b []byte) (ends []int) {
	frame := frameHeader + int(binary.BigEndian.Uint32(b[8:]))
	for at := walHeaderSize; at+frame <= len(b) && string(b[at+8:at+16]) == string(b[16:24]); at += frame {
		if binary.BigEndian.Uint32(b[at+4:]) != 0 {
			ends = append(ends, at+frame)
		}
	}
	return ends
}

func TestWaitingUpdatesShareOneCommit(t *testing.T) {
	db := open(t, home(t), kv)
	before, inLog := db.Stats(), len(logOf(t, db))
	var fns []func(*Tx) error
	for i := range 100 {
		fns = append(fns, func(tx *Tx) error { return put(tx, int64(i), "x") })
	}
	for i, err := range together(t, db, fns...) {
		if err != nil {
			t.Errorf("update %d: %v", i, err)
		}
	}
	after := db.Stats()
	if got := after.Commits - before.Commits; got != 1 {
		t.Errorf("100 updates took %d commits, want 1", got)
	}
	if got := len(logOf(t, db)) - inLog; got != 1 {
		t.Errorf("the log has %d commits for 100 updates, want 1", got)
	}
	if got := after.Updates - before.Updates; got != 101 { // and the one that held up
		t.Errorf("%d updates, want 101", got)
	}
	if after.Reruns != before.Reruns {
		t.Errorf("%d reruns, want none", after.Reruns-before.Reruns)
	}
}

func TestBatchIsBounded(t *testing.T) {
	db, err := Open(Config{Dir: home(t), MaxBatch: 10}, []Schema{kv}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, db)
	before := db.Stats()
	var fns []func(*Tx) error
	for i := range 95 {
		fns = append(fns, func(tx *Tx) error { return put(tx, int64(i), "x") })
	}
	if err := errors.Join(together(t, db, fns...)...); err != nil {
		t.Fatal(err)
	}
	if got := db.Stats().Commits - before.Commits; got != 10 {
		t.Errorf("95 updates in batches of 10 took %d commits, want 10", got)
	}
}

func TestFailureBeforeWritingCostsOthersNothing(t *testing.T) {
	db := open(t, home(t), kv)
	no := errors.New("no")
	runs := 0
	errs := together(t, db,
		func(tx *Tx) error { runs++; return put(tx, 1, "one") },
		func(tx *Tx) error {
			_, err := tx.Exec("UPDATE kv SET v = x'00' WHERE k = 99") // changes no row
			return errors.Join(no, err)
		},
		func(tx *Tx) error { runs++; return put(tx, 2, "two") },
		func(tx *Tx) error { return put(tx, 1, "again") }, // a constraint: the statement left nothing
	)
	if errs[0] != nil || !errors.Is(errs[1], no) || errs[2] != nil || errs[3] == nil {
		t.Errorf("results: %v", errs)
	}
	if runs != 2 || db.Stats().Reruns != 0 {
		t.Errorf("%d runs of two funcs, %d reruns", runs, db.Stats().Reruns)
	}
	if got := all(t, db); got != "1=one 2=two" {
		t.Errorf("rows = %q", got)
	}
}

func TestFailureAfterWritingTakesOnlyItself(t *testing.T) {
	db := open(t, home(t), kv)
	no := errors.New("no")
	before := db.Stats()
	runs := make([]int, 5)
	fail := func(i int, k int64) func(*Tx) error {
		return func(tx *Tx) error { runs[i]++; return errors.Join(put(tx, k, "gone"), no) }
	}
	keep := func(i int, k int64) func(*Tx) error {
		return func(tx *Tx) error { runs[i]++; return put(tx, k, "kept") }
	}
	errs := together(t, db, keep(0, 1), fail(1, 2), keep(2, 2), fail(3, 3), keep(4, 3))
	for i, err := range errs {
		if want := i%2 == 1; errors.Is(err, no) != want {
			t.Errorf("update %d: %v", i, err)
		}
		if runs[i] > 2 {
			t.Errorf("update %d ran %d times", i, runs[i])
		}
	}
	if got := all(t, db); got != "1=kept 2=kept 3=kept" {
		t.Errorf("rows = %q", got)
	}
	if got := db.Stats().Commits - before.Commits; got != 1 {
		t.Errorf("%d commits, want 1", got)
	}
}

// An error that came of reading what another func of the batch wrote must not outlive a
// roll back of that write.
func TestErrorTellsOfWhatWasCommitted(t *testing.T) {
	db := open(t, home(t), kv)
	no := errors.New("no")
	first := true
	errs := together(t, db,
		func(tx *Tx) error { // writes in the first run only
			if first {
				first = false
				return put(tx, 1, "x")
			}
			return nil
		},
		func(tx *Tx) error { // fails if it sees the row
			var n int
			if _, err := tx.One("SELECT count(*) FROM kv WHERE k = 1", nil, &n); err != nil || n == 0 {
				return err
			}
			return no
		},
		func(tx *Tx) error { return errors.Join(put(tx, 2, "y"), no) },
	)
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], no) {
		t.Errorf("results: %v", errs)
	}
}

func TestPanicIsItsCallersOwn(t *testing.T) {
	db := open(t, home(t), kv)
	for name, bad := range map[string]func(tx *Tx) error{
		"before writing": func(*Tx) error { panic("boom") },
		"after writing": func(tx *Tx) error {
			if err := put(tx, 9, "gone"); err != nil {
				return err
			}
			panic("boom")
		},
		"inside Each": func(tx *Tx) error {
			return tx.Each("SELECT 1", nil, func(func(...any) error) error { panic("boom") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			one := func(tx *Tx) error { _, err := tx.Exec("INSERT OR REPLACE INTO kv VALUES (1, x'31')"); return err }
			two := func(tx *Tx) error { _, err := tx.Exec("INSERT OR REPLACE INTO kv VALUES (2, x'32')"); return err }
			errs := together(t, db, one, bad, two)
			if errs[0] != nil || errs[2] != nil || errs[1] == nil ||
				!strings.Contains(errs[1].Error(), "boom") || !strings.Contains(errs[1].Error(), "update_test.go") {
				t.Errorf("results: %v", errs)
			}
			errs = together(t, db, bad, one) // as the leader
			if errs[0] == nil || errs[1] != nil {
				t.Errorf("results: %v", errs)
			}
			if got := all(t, db); got != "1=1 2=2" {
				t.Errorf("rows = %q", got)
			}
		})
	}
}

func TestGoexitDoesNotWedgeTheWriter(t *testing.T) {
	db := open(t, home(t), kv)
	quit := func(tx *Tx) error {
		if err := put(tx, 9, "gone"); err != nil {
			return err
		}
		runtime.Goexit()
		return nil
	}
	errs := together(t, db, quit, func(tx *Tx) error { return put(tx, 1, "one") })
	if errs[0] == nil || errs[1] == nil {
		t.Errorf("results: %v, want errors: nothing of this batch was kept", errs)
	}
	update(t, db, func(tx *Tx) error { return put(tx, 2, "two") })
	if got := all(t, db); got != "2=two" {
		t.Errorf("rows = %q", got)
	}
}

func TestHooksRunInOrderOfCommits(t *testing.T) {
	db := open(t, home(t), kv)
	var order []int64 // only the leader appends
	var mu sync.Mutex
	no := errors.New("no")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for g := range 16 {
		rng := rand.New(rand.NewPCG(seed, uint64(g)))
		wg.Go(func() {
			for range 60 {
				fail := rng.IntN(10) == 0
				var id int64
				runs, undone := 0, 0
				err := db.Update(context.Background(), func(tx *Tx) (err error) {
					runs++
					tx.OnRollback(func() { undone++ })
					if id, err = tx.Insert("INSERT INTO kv (v) VALUES (NULL)"); err != nil {
						return err
					}
					tx.AfterCommit(func() { mu.Lock(); order = append(order, id); mu.Unlock() })
					if fail {
						return no
					}
					return nil
				})
				mu.Lock()
				told := len(order) > 0 && slices.Contains(order, id)
				mu.Unlock()
				switch {
				case fail != errors.Is(err, no):
					t.Errorf("update: %v", err)
				case !fail && (!told || undone != runs-1):
					t.Errorf("committed: told %v, %d runs, %d undone", told, runs, undone)
				case fail && undone != runs:
					t.Errorf("failed: %d runs, %d undone", runs, undone)
				}
			}
		})
	}
	wg.Wait()
	if !slices.IsSorted(order) || len(slices.Compact(slices.Clone(order))) != len(order) {
		t.Errorf("hooks ran out of the order of commits")
	}
	var n int
	view(t, db, func(tx *Tx) error { _, err := tx.One("SELECT count(*) FROM kv", nil, &n); return err })
	if n != len(order) {
		t.Errorf("%d rows, %d hooks", n, len(order))
	}
}

func TestPanicInAHookSparesOthers(t *testing.T) {
	db := open(t, home(t), kv)
	ran := 0
	hook := func(k int64, f func()) func(*Tx) error {
		return func(tx *Tx) error { tx.AfterCommit(f); return put(tx, k, "x") }
	}
	errs := together(t, db, hook(1, func() { ran++ }), hook(2, func() { panic("boom") }), hook(3, func() { ran++ }))
	if errs[0] != nil || errs[1] == nil || errs[2] != nil || ran != 2 {
		t.Errorf("results %v, %d hooks", errs, ran)
	}
	if got := all(t, db); got != "1=x 2=x 3=x" {
		t.Errorf("rows = %q: it was committed", got)
	}
}

func TestCancelledInTheQueueIsNotRun(t *testing.T) {
	db := open(t, home(t), kv)
	running, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := db.Update(context.Background(), func(*Tx) error { close(running); <-goOn; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-running
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() { got <- db.Update(ctx, func(tx *Tx) error { t.Error("it ran"); return nil }) }()
	waitQueued(t, db, 1)
	wg.Go(func() { update(t, db, func(tx *Tx) error { return put(tx, 1, "behind") }) })
	waitQueued(t, db, 2)
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) { // while the other still runs
		t.Errorf("got %v", err)
	}
	waitQueued(t, db, 1)
	close(goOn)
	wg.Wait()
	if err := db.Update(ctx, func(*Tx) error { t.Error("it ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := all(t, db); got != "1=behind" {
		t.Errorf("rows = %q", got)
	}
}

func TestCancelledAfterTheBatchBeganIsTold(t *testing.T) {
	db := open(t, home(t), kv)
	ctx, cancel := context.WithCancel(context.Background())
	if err := db.Update(ctx, func(tx *Tx) error { cancel(); return put(tx, 1, "kept") }); err != nil {
		t.Errorf("a committed update returned %v", err)
	}
	if got := all(t, db); got != "1=kept" {
		t.Errorf("rows = %q", got)
	}
}

// endsUnseen ends without closing Done, as if its caller had not woken up yet.
type endsUnseen struct {
	context.Context
	ended atomic.Bool
}

func (*endsUnseen) Done() <-chan struct{} { return nil }

func (c *endsUnseen) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

func TestCancelledBeforeItsBatchBeganIsNotRun(t *testing.T) {
	db := open(t, home(t), kv)
	running, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { update(t, db, func(*Tx) error { close(running); <-goOn; return nil }) })
	<-running
	ctx := &endsUnseen{Context: context.Background()}
	wg.Go(func() { // the next leader: its own func is not run, its batch is
		if err := db.Update(ctx, func(*Tx) error { t.Error("it ran"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	waitQueued(t, db, 1)
	wg.Go(func() { update(t, db, func(tx *Tx) error { return put(tx, 1, "behind") }) })
	waitQueued(t, db, 2)
	ctx.ended.Store(true)
	close(goOn)
	wg.Wait()
	if got := all(t, db); got != "1=behind" {
		t.Errorf("rows = %q", got)
	}
}

func TestWhoIsAskedToLeadDoesNotLeave(t *testing.T) {
	o := &op{promoted: true}
	db := &DB{queue: []*op{o}}
	if db.leave(o) || len(db.queue) != 1 {
		t.Error("the lead is lost")
	}
}

// Cancelling at random while the lead is handed on loses neither the lead nor a result.
func TestRandomCancels(t *testing.T) {
	db := open(t, home(t), kv)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked, refused := 0, 0
	for g := range 16 {
		rng := rand.New(rand.NewPCG(seed, uint64(g)))
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Microsecond)
				err := db.Update(ctx, func(tx *Tx) error { _, err := tx.Insert("INSERT INTO kv (v) VALUES (NULL)"); return err })
				cancel()
				mu.Lock()
				switch {
				case err == nil:
					acked++
				case errors.Is(err, context.DeadlineExceeded):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	var n int
	view(t, db, func(tx *Tx) error { _, err := tx.One("SELECT count(*) FROM kv", nil, &n); return err })
	t.Logf("%d acknowledged, %d refused", acked, refused)
	if n != acked {
		t.Errorf("%d rows, %d acknowledged", n, acked)
	}
}
