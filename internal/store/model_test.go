package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var bank = Schema{Package: "bank", Steps: []string{`
	CREATE TABLE bank (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0)) STRICT;
	CREATE TABLE bank_log (seq INTEGER PRIMARY KEY, op INTEGER NOT NULL UNIQUE, a INTEGER, b INTEGER, amount INTEGER) STRICT;
	WITH RECURSIVE n (id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id < 9) INSERT INTO bank SELECT id, 1000 FROM n;
`}}

var errNo = errors.New("no")

// transfer moves money and fails in many ways, all chosen before: it may run twice.
type transfer struct {
	op, a, b, amount int64
	mood             int
}

func (x transfer) run(tx *Tx) error {
	if x.mood == 0 {
		return errNo // before writing
	}
	if _, err := tx.Exec("UPDATE bank SET balance = balance - ? WHERE id = ?", x.amount, x.a); err != nil {
		if x.mood == 1 { // goes on after a constraint: nothing was taken, so nothing is given
			_, err = tx.Exec("INSERT INTO bank_log (op, a, b, amount) VALUES (?, 0, 0, 0)", x.op)
		}
		return err
	}
	if x.mood == 2 {
		return errNo // half done
	}
	if _, err := tx.Exec("UPDATE bank SET balance = balance + ? WHERE id = ?", x.amount, x.b); err != nil {
		return err
	}
	if x.mood == 3 {
		panic(errNo)
	}
	_, err := tx.Exec("INSERT INTO bank_log (op, a, b, amount) VALUES (?, ?, ?, ?)", x.op, x.a, x.b, x.amount)
	return err
}

// TestRandomTransfers compares the database with a model that replays the log of what was
// acknowledged, in the order of the log.
func TestRandomTransfers(t *testing.T) {
	db := open(t, home(t), bank)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	var mu sync.Mutex
	acked := map[int64]bool{}
	var wg sync.WaitGroup
	for g := range int64(24) {
		rng := rand.New(rand.NewPCG(seed, uint64(g)))
		wg.Go(func() {
			for i := range int64(80) {
				x := transfer{g*1000 + i, rng.Int64N(10), rng.Int64N(10), rng.Int64N(600), rng.IntN(20)}
				err := func() (err error) {
					defer func() {
						if v := recover(); v != nil {
							err = fmt.Errorf("panic: %v", v)
						}
					}()
					return db.Update(context.Background(), x.run)
				}()
				if err == nil {
					mu.Lock()
					acked[x.op] = true
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()

	model := map[int64]int64{}
	for id := range int64(10) {
		model[id] = 1000
	}
	logged := map[int64]bool{}
	got := map[int64]int64{}
	view(t, db, func(tx *Tx) error {
		err := tx.Each("SELECT op, a, b, amount FROM bank_log ORDER BY seq", nil, func(scan func(...any) error) error {
			var x transfer
			err := scan(&x.op, &x.a, &x.b, &x.amount)
			logged[x.op] = true
			model[x.a] -= x.amount
			model[x.b] += x.amount
			return err
		})
		return errors.Join(err, tx.Each("SELECT id, balance FROM bank", nil, func(scan func(...any) error) error {
			var id, balance int64
			err := scan(&id, &balance)
			got[id] = balance
			return err
		}))
	})
	if !maps.Equal(acked, logged) {
		t.Errorf("%d acknowledged, %d in the log", len(acked), len(logged))
	}
	if !maps.Equal(got, model) {
		t.Errorf("balances %v, want %v", got, model)
	}
	s := db.Stats()
	t.Logf("%d of %d transfers acknowledged, %d commits, %d reruns", len(acked), 24*80, s.Commits, s.Reruns)
	if len(acked) < 500 || s.Reruns == 0 {
		t.Errorf("the test did not test: %d acknowledged, %d reruns", len(acked), s.Reruns)
	}
}
