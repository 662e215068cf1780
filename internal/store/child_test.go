package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// child is the test binary as another process.
func child(role string, args []string) int {
	run, ok := map[string]func(*DB, []string) error{
		"write":  childWrites,
		"fsync":  childWithoutFsync,
		"fsize":  childWithoutRoom,
		"locked": func(*DB, []string) error { return nil },
	}[role]
	if !ok {
		fmt.Println("no such child")
		return 2
	}
	db, err := Open(Config{Dir: args[0]}, []Schema{pairs}, slog.New(slog.DiscardHandler))
	if err == nil {
		err = errors.Join(run(db, args[1:]), db.Close())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func childCmd(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), "SHOAL_STORE_TEST_CHILD="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// pairs: each update writes two rows, so half an update shows.
var pairs = Schema{Package: "pairs", Steps: []string{`
	CREATE TABLE pairs_a (id INTEGER PRIMARY KEY, pad BLOB) STRICT;
	CREATE TABLE pairs_b (id INTEGER PRIMARY KEY, pad BLOB) STRICT;
`}}

func putPair(tx *Tx, id int64) error {
	_, err := tx.Exec("INSERT INTO pairs_a VALUES (?, randomblob(300))", id)
	if err == nil {
		_, err = tx.Exec("INSERT INTO pairs_b VALUES (?, randomblob(300))", id)
	}
	return err
}

// childWrites writes pairs for ever and adds the id of each to a file once it is acknowledged.
func childWrites(db *DB, args []string) error {
	acks, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var next atomic.Int64
	err = db.View(context.Background(), func(tx *Tx) error {
		var last int64
		_, err := tx.One("SELECT coalesce(max(id), 0) FROM pairs_a", nil, &last)
		next.Store(last)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var wg sync.WaitGroup
	var failed atomic.Value
	for range 16 {
		wg.Go(func() {
			for {
				id := next.Add(1)
				if err := db.Update(context.Background(), func(tx *Tx) error { return putPair(tx, id) }); err != nil {
					failed.Store(err)
					return
				}
				if _, err := acks.Write(binary.BigEndian.AppendUint64(nil, uint64(id))); err != nil {
					failed.Store(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return failed.Load().(error)
}

// havePairs returns the ids of the database and complains of halves.
func havePairs(t *testing.T, db *DB) map[int64]bool {
	t.Helper()
	have := map[int64]bool{}
	view(t, db, func(tx *Tx) error {
		var halves int
		_, err := tx.One(`SELECT (SELECT count(*) FROM pairs_a WHERE id NOT IN (SELECT id FROM pairs_b)) +
			(SELECT count(*) FROM pairs_b WHERE id NOT IN (SELECT id FROM pairs_a))`, nil, &halves)
		if halves != 0 {
			t.Errorf("%d updates are there in half", halves)
		}
		return errors.Join(err, tx.Each("SELECT id FROM pairs_a", nil, func(scan func(...any) error) error {
			var id int64
			err := scan(&id)
			have[id] = true
			return err
		}))
	})
	return have
}

func TestKilledWriterLosesNothing(t *testing.T) {
	kills := 20
	if testing.Short() {
		kills = 4
	}
	dir, acks := home(t), filepath.Join(t.TempDir(), "acks")
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	acked, lost, kept := 0, 0, 0
	slowest := time.Duration(0)
	for range kills {
		cmd := childCmd(t, "write", dir, acks)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			rest, _ := io.ReadAll(out)
			t.Fatalf("the child said %q %s (%v)", line, rest, err)
		}
		slowest = max(slowest, time.Since(start))
		// Killed once it acknowledged something since it started, at a random moment.
		waitForGrowth(t, acks, acked*8+8*(1+rng.IntN(150)))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed

		db := open(t, dir, pairs)
		have := havePairs(t, db)
		kept = len(have)
		content, err := os.ReadFile(acks)
		if err != nil {
			t.Fatal(err)
		}
		acked = len(content) / 8
		for ; len(content) >= 8; content = content[8:] {
			if !have[int64(binary.BigEndian.Uint64(content))] {
				lost++
			}
		}
		shut(t, db)
	}
	t.Logf("%d kills: lost %d of %d acknowledged; %d more were stored; slowest start %v", kills, lost, acked, kept-acked, slowest)
	if lost != 0 || acked < kills {
		t.Errorf("lost %d of %d", lost, acked)
	}
}

func waitForGrowth(t *testing.T, path string, size int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if fi, err := os.Stat(path); err == nil && fi.Size() >= int64(size) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not grow to %d", path, size)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := home(t)
	db := open(t, dir, pairs)
	out, err := childCmd(t, "locked", dir).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the second process ended with %v: %s", err, out)
	}
	if want := fmt.Sprintf("process %d", os.Getpid()); !contains(out, ErrLocked.Msg) || !contains(out, want) {
		t.Errorf("it said %s", out)
	}
	shut(t, db)
	if out, err := childCmd(t, "locked", dir).Output(); err != nil {
		t.Errorf("after the first ended: %v: %s", err, out)
	}
}
