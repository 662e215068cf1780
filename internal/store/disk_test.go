package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
)

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// limit makes the database full at its size of now and n pages more. 0 lifts the limit.
func limit(t *testing.T, db *DB, n int64) {
	t.Helper()
	update(t, db, func(tx *Tx) error { // nobody else leads meanwhile
		pages, err := db.writer.number("SELECT page_count FROM pragma_page_count")
		if err != nil {
			return err
		}
		most := pages + n
		if n == 0 {
			most = 1 << 30
		}
		return db.writer.script(fmt.Sprintf("PRAGMA max_page_count = %d", most))
	})
}

func TestFullDiskStoresWhoFitsAndTellsWhoDoesNot(t *testing.T) {
	db := open(t, home(t), kv)
	update(t, db, func(tx *Tx) error { return put(tx, 0, "x") })
	limit(t, db, 4)
	runs := 0
	big := func(k int64) func(*Tx) error {
		return func(tx *Tx) error { runs++; return put(tx, k, strings.Repeat("x", 200_000)) }
	}
	small := func(k int64) func(*Tx) error {
		return func(tx *Tx) error { runs++; return put(tx, k, "x") }
	}
	swallow := func(tx *Tx) error { _ = put(tx, 7, strings.Repeat("x", 200_000)); return nil }
	errs := together(t, db, small(1), big(2), small(3), swallow, big(5), small(6))
	for i, err := range errs {
		if wantErr := i == 1 || i == 3 || i == 4; errors.Is(err, ErrDiskFull) != wantErr || !wantErr && err != nil {
			t.Errorf("update %d: %v", i, err)
		}
	}
	e := shoal.AsError(errs[1])
	if e.Kind != shoal.Exhausted || e.Reason != "disk_full" || e.Hint == "" || !strings.Contains(e.Error(), db.cfg.Dir) {
		t.Errorf("error %v %s %v hint %q", e.Kind, e.Reason, e, e.Hint)
	}
	if got := all(t, db); got != "0=x 1=x 3=x 6=x" {
		t.Errorf("rows = %.80q", got)
	}

	limit(t, db, 0) // space returns
	if errs := together(t, db, big(2), small(4)); errors.Join(errs...) != nil {
		t.Errorf("after space returned: %v", errs)
	}
	if runs < 6 {
		t.Errorf("%d runs", runs)
	}
}

// Random updates on a disk that is full now and then: what was acknowledged is there, what
// was not is not.
func TestRandomFullDisk(t *testing.T) {
	db := open(t, home(t), kv)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	acked, refused := map[int64]bool{}, 0
	next := int64(0)
	for round := range 30 {
		if round%3 == 2 {
			limit(t, db, 0)
		} else {
			limit(t, db, int64(rng.IntN(30)))
		}
		var ids []int64
		var fns []func(*Tx) error
		for range 1 + rng.IntN(12) {
			next++
			id, size := next, rng.IntN(30_000)
			ids = append(ids, id)
			fns = append(fns, func(tx *Tx) error { return put(tx, id, strings.Repeat("x", size)) })
		}
		for i, err := range together(t, db, fns...) {
			switch {
			case err == nil:
				acked[ids[i]] = true
			case errors.Is(err, ErrDiskFull):
				refused++
			default:
				t.Error(err)
			}
		}
	}
	have := map[int64]bool{}
	view(t, db, func(tx *Tx) error {
		return tx.Each("SELECT k FROM kv", nil, func(scan func(...any) error) error {
			var k int64
			err := scan(&k)
			have[k] = true
			return err
		})
	})
	for id := range next {
		if acked[id+1] != have[id+1] {
			t.Errorf("update %d: acknowledged %v, there %v", id+1, acked[id+1], have[id+1])
		}
	}
	t.Logf("%d acknowledged, %d refused", len(acked), refused)
	if refused == 0 || len(acked) == 0 {
		t.Error("the test did not test")
	}
}

func TestBatchOnADyingDiskGivesUpSoon(t *testing.T) {
	db := open(t, home(t), kv)
	runs := 0
	var fns []func(*Tx) error
	for range 50 {
		fns = append(fns, func(tx *Tx) error {
			runs++
			tx.broken = ErrDisk // as after an SQLITE_IOERR
			return nil
		})
	}
	for i, err := range together(t, db, fns...) {
		if !errors.Is(err, ErrDisk) {
			t.Errorf("update %d: %v", i, err)
		}
	}
	if runs > 1+maxDiskErrors {
		t.Errorf("%d runs", runs)
	}
	if err := db.Update(context.Background(), func(tx *Tx) error { return put(tx, 1, "x") }); err != nil {
		t.Errorf("on a new connection: %v", err)
	}
}
