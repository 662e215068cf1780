package store

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

type (
	name    string
	count   uint16
	raw     []byte
	hash    [4]byte
	flag    bool
	doubled struct{ n int64 }
)

func (d doubled) Value() (driver.Value, error) { return d.n * 2, nil }
func (d *doubled) Scan(v any) error            { d.n = v.(int64) / 2; return nil }

func TestValuesComeBackAsTheyWere(t *testing.T) {
	db := open(t, home(t), Schema{Package: "v", Steps: []string{"CREATE TABLE v (v)"}})
	seven := int64(7)
	for _, v := range []any{
		int64(math.MinInt64), int64(math.MaxInt64), int(-1), int32(-2), int8(-3), uint64(math.MaxUint64), uint32(math.MaxUint32),
		uint8(255), count(65535), true, false, flag(true), 1.5, float32(0.25), "", "text\x00é", name("n"),
		[]byte{1, 0, 2},
		raw{3},
		hash{1, 2, 3, 4},
		&seven, (*int64)(nil), []byte(nil),
		doubled{21},
		sql.Null[string]{V: "x", Valid: true},
		sql.Null[string]{},
	} {
		update(t, db, func(tx *Tx) error { _, err := tx.Exec("INSERT INTO v VALUES (?)", v); return err })
		got := reflect.New(reflect.TypeOf(v))
		view(t, db, func(tx *Tx) error {
			found, err := tx.One("SELECT v FROM v ORDER BY rowid DESC LIMIT 1", nil, got.Interface())
			if !found && err == nil {
				err = errors.New("not found")
			}
			return err
		})
		if !reflect.DeepEqual(got.Elem().Interface(), v) {
			t.Errorf("%T %v came back as %v", v, v, got.Elem())
		}
	}
}

func TestEmptyBlobIsNotNull(t *testing.T) {
	db := open(t, home(t))
	update(t, db, func(tx *Tx) error {
		var a, b, c string
		_, err := tx.One("SELECT typeof(?), typeof(?), typeof(?)", []any{[]byte{}, []byte(nil), nil}, &a, &b, &c)
		if got := a + " " + b + " " + c; got != "blob null null" {
			t.Errorf("got %s", got)
		}
		return err
	})
}

func TestScanRefusesWhatDoesNotFit(t *testing.T) {
	db := open(t, home(t))
	for _, c := range []struct {
		sql  string
		dest any
	}{
		{"SELECT 256", new(uint8)},
		{"SELECT -1", new(uint32)},
		{"SELECT 40000", new(int16)},
		{"SELECT 'x'", new(int)},
		{"SELECT 2", new(bool)},
		{"SELECT 1.5", new(int64)},
		{"SELECT 7", new(string)},
		{"SELECT x'0102'", new(hash)},
		{"SELECT x'01'", new(float64)},
		{"SELECT 1", new(time.Time)},
		{"SELECT 1", 5},
		{"SELECT 1", (*int32)(nil)},
		{"SELECT 1, 2", new(int)},
	} {
		view(t, db, func(tx *Tx) error {
			if _, err := tx.One(c.sql, nil, c.dest); err == nil {
				t.Errorf("%s went into a %T", c.sql, c.dest)
			}
			return nil
		})
	}
}

func TestRefusesArgumentsWithoutAForm(t *testing.T) {
	db := open(t, home(t), kv)
	for _, v := range []any{time.Now(), struct{}{}, []int{1}, map[string]int{}, make(chan int), [2]int{}, complex(1, 1)} {
		err := db.Update(context.Background(), func(tx *Tx) error { _, err := tx.Exec("INSERT INTO kv (v) VALUES (?)", v); return err })
		if err == nil || !strings.Contains(err.Error(), "argument 1") {
			t.Errorf("%T: %v", v, err)
		}
	}
}

func TestScannedBytesAreTheCallersOwn(t *testing.T) {
	db := open(t, home(t), kv)
	in := []byte("before")
	update(t, db, func(tx *Tx) error {
		_, err := tx.Exec("INSERT INTO kv VALUES (1, ?)", in)
		copy(in, "XXXXXX")
		return err
	})
	var got [][]byte
	view(t, db, func(tx *Tx) error {
		return tx.Each("SELECT v FROM kv UNION ALL SELECT v FROM kv", nil, func(scan func(...any) error) error {
			var b []byte
			err := scan(&b)
			got = append(got, b)
			return err
		})
	})
	got[0][0] = 'Y'
	if !bytes.Equal(got[1], []byte("before")) {
		t.Errorf("got %q", got)
	}
}

func TestRefusesWhatWouldEndTheTransaction(t *testing.T) {
	db := open(t, home(t), kv, Schema{Package: "trig", Steps: []string{`CREATE TRIGGER trig BEFORE INSERT ON kv WHEN new.k = 666
		BEGIN SELECT RAISE(ROLLBACK, 'out'); END`}})
	for _, q := range []string{
		"COMMIT", "end", " ROLLBACK", "/* x */ BEGIN", "-- x\nSAVEPOINT s", "RELEASE op", "ATTACH 'x' AS y", "DETACH y", "VACUUM",
		"PRAGMA synchronous = OFF", "INSERT OR ROLLBACK INTO kv VALUES (1, NULL)", "UPDATE or\n fail kv SET k = 1",
		"INSERT INTO kv VALUES (666, NULL)", // SQLite ends the transaction by itself
	} {
		errs := together(t, db,
			func(tx *Tx) error { return put(tx, 1, "one") },
			func(tx *Tx) error {
				_, _ = tx.Exec(q)
				_, err := tx.Exec("INSERT INTO kv VALUES (2, NULL)")
				return err
			},
			func(tx *Tx) error { return put(tx, 3, "three") },
		)
		if errs[0] != nil || errs[2] != nil {
			t.Errorf("%q: %v", q, errs)
		}
		want := "1=one 2= 3=three"
		if strings.Contains(q, "666") { // its own transaction is gone, whatever it made of the error
			want = "1=one 3=three"
			if errs[1] == nil {
				t.Errorf("%q: acknowledged", q)
			}
		}
		if got := all(t, db); got != want {
			t.Errorf("%q: rows = %q, want %q", q, got, want)
		}
		update(t, db, func(tx *Tx) error { _, err := tx.Exec("DELETE FROM kv"); return err })
	}
}

func TestTxIsOverWhenTheFuncReturns(t *testing.T) {
	db := open(t, home(t), kv)
	var kept *Tx
	update(t, db, func(tx *Tx) error { kept = tx; return nil })
	if err := put(kept, 1, "x"); err == nil {
		t.Error("an Update's Tx worked after it")
	}
	view(t, db, func(tx *Tx) error { kept = tx; return nil })
	if _, err := kept.One("SELECT 1", nil, new(int)); err == nil {
		t.Error("a View's Tx worked after it")
	}
}

func TestEachMayNestTheSameQuery(t *testing.T) {
	db := open(t, home(t), kv)
	var got []string
	fn := func(tx *Tx) error {
		got = nil
		const q = "SELECT k FROM kv WHERE k > ? ORDER BY k"
		return tx.Each(q, []any{0}, func(scan func(...any) error) error {
			var a int
			if err := scan(&a); err != nil {
				return err
			}
			return tx.Each(q, []any{a}, func(scan func(...any) error) error {
				var b int
				err := scan(&b)
				got = append(got, fmt.Sprint(a, b))
				return err
			})
		})
	}
	update(t, db, func(tx *Tx) error { return errors.Join(put(tx, 1, ""), put(tx, 2, ""), put(tx, 3, ""), fn(tx)) })
	view(t, db, fn)
	if s := strings.Join(got, ","); s != "1 2,1 3,2 3" {
		t.Errorf("got %s", s)
	}
}

func TestErrorOfEachIsReturnedAsItIs(t *testing.T) {
	db := open(t, home(t))
	no := errors.New("no")
	view(t, db, func(tx *Tx) error {
		if err := tx.Each("SELECT 1", nil, func(func(...any) error) error { return no }); err != no { //nolint:errorlint // as it is
			t.Errorf("got %v", err)
		}
		return nil
	})
}

func TestQueryIsNamedInItsError(t *testing.T) {
	db := open(t, home(t), kv)
	err := db.Update(context.Background(), func(tx *Tx) error {
		return errors.Join(put(tx, 1, "secret"), put(tx, 1, "secret"))
	})
	if err == nil || !strings.Contains(err.Error(), "INSERT INTO kv") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestStatementsAreKeptWithinBounds(t *testing.T) {
	db := open(t, home(t), kv)
	update(t, db, func(tx *Tx) error {
		for i := range maxStmts + 100 {
			var n int
			if _, err := tx.One(fmt.Sprintf("SELECT %d", i), nil, &n); err != nil || n != i {
				t.Errorf("SELECT %d = %d, %v", i, n, err)
			}
		}
		return nil
	})
	if n := len(db.writer.stmts); n > maxStmts {
		t.Errorf("%d statements are kept", n)
	}
	update(t, db, func(tx *Tx) error { return put(tx, 1, "x") })
}

func TestReturningWrites(t *testing.T) {
	db := open(t, home(t), kv)
	no := errors.New("no")
	for _, q := range []string{
		"INSERT INTO kv (k) VALUES (1) RETURNING k",
		"WITH x (k) AS (SELECT 1) INSERT INTO kv (k) SELECT k FROM x RETURNING k",
	} {
		errs := together(t, db,
			func(tx *Tx) error {
				var k int
				_, err := tx.One(q, nil, &k)
				return errors.Join(err, no)
			},
			func(tx *Tx) error { return put(tx, 2, "two") })
		if !errors.Is(errs[0], no) || errs[1] != nil {
			t.Errorf("%s: %v", q, errs)
		}
		if got := all(t, db); got != "2=two" {
			t.Errorf("%s: rows = %q", q, got)
		}
		update(t, db, func(tx *Tx) error { _, err := tx.Exec("DELETE FROM kv"); return err })
	}
}

func TestViewIsOneStateAndDoesNotWrite(t *testing.T) {
	db := open(t, home(t), kv)
	update(t, db, func(tx *Tx) error { return put(tx, 1, "one") })
	view(t, db, func(tx *Tx) error {
		var before, after int
		if _, err := tx.One("SELECT count(*) FROM kv", nil, &before); err != nil {
			return err
		}
		update(t, db, func(tx *Tx) error { return put(tx, 2, "two") })
		_, err := tx.One("SELECT count(*) FROM kv", nil, &after)
		if before != 1 || after != 1 {
			t.Errorf("a view saw %d, then %d", before, after)
		}
		if err := put(tx, 3, "three"); err == nil {
			t.Error("a view wrote")
		}
		return err
	})
	view(t, db, func(tx *Tx) error {
		if err := put(tx, 3, "three"); err == nil {
			t.Error("a view wrote")
		}
		return nil
	})
	if got := all(t, db); got != "1=one 2=two" {
		t.Errorf("rows = %q", got)
	}
}

func TestViewsAreBoundedAndCancelled(t *testing.T) {
	db := open(t, home(t), kv)
	var wg sync.WaitGroup
	goOn, in := make(chan struct{}), make(chan struct{})
	for range 4 {
		wg.Go(func() { view(t, db, func(*Tx) error { in <- struct{}{}; <-goOn; return nil }) })
		<-in
	}
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() { got <- db.View(ctx, func(*Tx) error { t.Error("it ran"); return nil }) }()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(goOn)
	wg.Wait()

	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	rows := 0
	err := db.View(ctx, func(tx *Tx) error {
		return tx.Each("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", nil,
			func(func(...any) error) error {
				if rows++; rows == 10 {
					cancel()
				}
				return nil
			})
	})
	if !errors.Is(err, context.Canceled) || rows > cancelRows {
		t.Errorf("an endless query ended after %d rows with %v", rows, err)
	}
	view(t, db, func(tx *Tx) error { _, err := tx.One("SELECT 1", nil, new(int)); return err })
}

func TestReadersAreOpenedWhenNeeded(t *testing.T) {
	db := open(t, home(t), kv)
	for range 10 {
		all(t, db)
	}
	if n := len(db.readers.free); n != 1 {
		t.Errorf("%d readers for one at a time", n)
	}
}
