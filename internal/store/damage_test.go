package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalmesh/shoal"
)

// makeClosed returns a directory with a database of some rows that was closed cleanly, and its content.
func makeClosed(t *testing.T) (dir string, content []byte) {
	t.Helper()
	dir = home(t)
	db := open(t, dir, kv)
	for i := range 20 {
		update(t, db, func(tx *Tx) error { return put(tx, int64(i), strings.Repeat("x", 500)) })
	}
	shut(t, db)
	content, err := os.ReadFile(db.path)
	if err != nil {
		t.Fatal(err)
	}
	return dir, content
}

// tryOpen opens dir and returns the rows, or the error.
func tryOpen(dir string) (rows int, err error) {
	db, err := Open(Config{Dir: dir}, []Schema{kv}, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	err = db.View(context.Background(), func(tx *Tx) error {
		return tx.Each("SELECT v FROM kv", nil, func(scan func(...any) error) error {
			var v []byte
			if err := scan(&v); err != nil {
				return err
			}
			rows++
			if len(v) != 500 || bytes.Trim(v, "x") != nil && len(bytes.Trim(v, "x")) > 0 {
				return errors.New("a wrong row")
			}
			return nil
		})
	})
	return rows, errors.Join(err, db.Close())
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTruncatedFileIsNamed(t *testing.T) {
	dir, content := makeClosed(t)
	path := filepath.Join(dir, dbFile)
	if rows, err := tryOpen(dir); rows != 20 || err != nil { // the control
		t.Fatal(rows, err)
	}
	n := 0
	for size := 0; size < len(content); size += 512 {
		write(t, path, content[:size])
		_, err := tryOpen(dir)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "offset") {
			t.Errorf("cut to %d: %v", size, err)
		}
		if e := shoal.AsError(err); e.Hint == "" {
			t.Errorf("cut to %d: no hint", size)
		}
		n++
	}
	t.Logf("%d of %d cuts refused", n, n)
}

// Every bit of the header: refused with the file's name, or harmless.
func TestFlippedHeaderIsNamedOrHarmless(t *testing.T) {
	dir, content := makeClosed(t)
	path := filepath.Join(dir, dbFile)
	refused, harmless := 0, 0
	for bit := range headerSize * 8 {
		bad := bytes.Clone(content)
		bad[bit/8] ^= 1 << (bit % 8)
		write(t, path, bad)
		rows, err := tryOpen(dir)
		switch {
		case errors.Is(err, ErrTooNew) && bit/8 >= 60 && bit/8 < 64: // user_version
			refused++
		case err != nil:
			refused++
			if !strings.Contains(err.Error(), path) {
				t.Errorf("bit %d: %v", bit, err)
			}
			if bit/8 < 16 && !errors.Is(err, ErrCorrupt) {
				t.Errorf("bit %d: %v", bit, err)
			}
		case rows == 20:
			harmless++ // a counter, a cookie, a size that SQLite works out anew
		default:
			t.Errorf("bit %d: %d rows of 20 without an error", bit, rows)
		}
		for _, s := range []string{"-wal", "-shm"} {
			_ = os.Remove(path + s)
		}
	}
	t.Logf("%d bits refused, %d harmless", refused, harmless)
	if refused < 300 {
		t.Errorf("only %d bits refused", refused)
	}
}

// crashed returns the files of a database as a crash would leave them.
func crashed(t *testing.T, db *DB) (main, wal []byte) {
	t.Helper()
	main, err := os.ReadFile(db.path)
	if err != nil {
		t.Fatal(err)
	}
	wal, err = os.ReadFile(db.path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return main, wal
}

func TestLogIsReadBackOrNamed(t *testing.T) {
	db := open(t, home(t), kv)
	const n = growAfter + 4
	for i := range n {
		update(t, db, func(tx *Tx) error { return put(tx, int64(i), strings.Repeat("x", 500)) })
	}
	main, wal := crashed(t, db)
	ends := commitEnds(wal)
	ends = ends[len(ends)-n:] // those of the rows
	end := ends[n-1]
	if len(wal) == end {
		t.Error("the log was not grown ahead")
	}
	wal = wal[:end+3*4120] // the rest is zeros too
	dir := home(t)
	path := filepath.Join(dir, dbFile)
	try := func(wal []byte) (int, error) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, main)
		write(t, path+"-wal", wal)
		return tryOpen(dir)
	}
	if rows, err := try(wal); rows != n || err != nil { // the control
		t.Fatal(rows, err)
	}

	// A torn end is a crash: all before it is there.
	for cut := ends[n-3] - 100; cut < end; cut += 700 {
		want := 0
		for _, e := range ends {
			if e <= cut {
				want++
			}
		}
		if rows, err := try(wal[:cut]); rows != want || err != nil {
			t.Errorf("log cut to %d: %d rows, want %d: %v", cut, rows, want, err)
		}
		torn := append(bytes.Clone(wal[:cut]), make([]byte, len(wal)-cut)...)
		if rows, err := try(torn); rows != want || err != nil {
			t.Errorf("log with zeros from %d: %d rows, want %d: %v", cut, rows, want, err)
		}
	}

	// A flipped bit before the last two commits would lose what was acknowledged.
	refused := 0
	for at := 0; at < ends[n-3]; at += 211 {
		bad := bytes.Clone(wal)
		bad[at] ^= 0x10
		rows, err := try(bad)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path+"-wal") || !strings.Contains(err.Error(), "offset") {
			t.Errorf("bit at %d of the log: %d rows, %v", at, rows, err)
			continue
		}
		refused++
	}
	t.Logf("%d flipped bits refused", refused)

	// A main file that has gone is not a new node.
	if _, err := try(wal); err != nil {
		t.Fatal(err)
	}
	write(t, path+"-wal", wal)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOpen(dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("a log without its file: %v", err)
	}
}

// What a roll back or a second life of the log leaves behind its end is no damage.
func TestOldFramesBehindTheLogsEndAreNoDamage(t *testing.T) {
	db, err := Open(Config{Dir: home(t), CacheKiB: 64}, []Schema{kv}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, db)
	no := errors.New("no")
	rows := 0
	for round := range 3 {
		// Larger than the cache: it spills into the log, then is rolled back.
		err := db.Update(context.Background(), func(tx *Tx) error {
			for i := range 400 {
				if err := put(tx, int64(100_000+i), strings.Repeat("y", 1000)); err != nil {
					return err
				}
			}
			return no
		})
		if !errors.Is(err, no) {
			t.Fatal(err)
		}
		for range 3 {
			update(t, db, func(tx *Tx) error { rows++; return put(tx, int64(rows), strings.Repeat("x", 500)) })
		}
		if round == 1 { // a new life of the log, the old frames stay behind it
			var busy, frames, folded int
			tx := Tx{c: db.writer}
			r, err := db.writer.prepare("PRAGMA wal_checkpoint(RESTART)")
			if err != nil {
				t.Fatal(err)
			}
			res, err := tx.c.rows(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := res.next(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(scanRow(res.vals, []any{&busy, &frames, &folded}), res.close()); err != nil || busy != 0 {
				t.Fatal(busy, err)
			}
		}
		main, wal := crashed(t, db)
		dir := home(t)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, dbFile), main)
		write(t, filepath.Join(dir, dbFile+"-wal"), wal)
		if got, err := tryOpen(dir); got != rows || err != nil {
			t.Errorf("round %d: %d rows, want %d: %v", round, got, rows, err)
		}
	}
}

func TestDamagedPagesAreFoundAfterACrash(t *testing.T) {
	dir, content := makeClosed(t)
	path := filepath.Join(dir, dbFile)
	db := open(t, dir, kv)
	update(t, db, func(tx *Tx) error { return put(tx, 999, strings.Repeat("x", 500)) })
	_, wal := crashed(t, db)
	shut(t, db)
	n := 0
	for page := 1; page < len(content)/4096; page++ {
		bad := bytes.Clone(content)
		bad[page*4096] = 0x77 // no such kind of page
		write(t, path, bad)
		write(t, path+"-wal", wal)
		_, err := tryOpen(dir)
		if err == nil {
			continue // the log has a newer copy of that page
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("page %d: %v", page+1, err)
		}
		n++
	}
	// What reading rows would never meet: a wrong count of free bytes in a leaf.
	bad := bytes.Clone(content)
	for page := range len(content) / 4096 {
		if bad[page*4096] == 13 {
			bad[page*4096+7] ^= 0x55
		}
	}
	write(t, path, bad)
	write(t, path+"-wal", wal)
	if _, err := tryOpen(dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("wrong counts of free bytes: %v", err)
	}
	t.Logf("%d of %d damaged pages named", n, len(content)/4096-1)
	if n == 0 {
		t.Error("no damage was found")
	}
}

func TestOthersMayNotRead(t *testing.T) {
	if !hasModes {
		t.Skip("no modes on this system")
	}
	dir, _ := makeClosed(t)
	path := filepath.Join(dir, dbFile)
	for _, c := range []struct {
		path string
		mode os.FileMode
		want string
	}{
		{dir, 0o755, "chmod 0700 " + dir},
		{dir, 0o710, "chmod 0700 " + dir},
		{path, 0o644, "chmod 0600 " + path},
		{path, 0o620, "chmod 0600 " + path},
		{filepath.Join(dir, lockName), 0o666, "chmod 0600 " + filepath.Join(dir, lockName)},
		{path + "-wal", 0o644, "chmod 0600 " + path + "-wal"},
	} {
		if strings.HasSuffix(c.path, "-wal") {
			write(t, c.path, nil)
		}
		before, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(c.path, c.mode); err != nil {
			t.Fatal(err)
		}
		e := openErr(t, dir, kv)
		if e.Reason != "file_too_open" || e.Hint != c.want || !strings.Contains(e.Msg, fmt.Sprintf("%04o", c.mode)) {
			t.Errorf("%s with %o: %v, hint %q, want %q", c.path, c.mode, e, e.Hint, c.want)
		}
		if err := os.Chmod(c.path, before.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	if rows, err := tryOpen(dir); rows != 20 || err != nil {
		t.Error(rows, err)
	}
	if got, want := shellQuote("/tmp/it's mine"), `'/tmp/it'\''s mine'`; got != want {
		t.Errorf("quoted %s, want %s", got, want)
	}
	open(t, filepath.Join(t.TempDir(), "a?b #%41'c", "home"), kv) // names that a URI would take apart
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	if !hasModes {
		t.Skip("no modes on this system")
	}
	dir := home(t)
	db := open(t, dir, kv)
	all(t, db)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", e.Name(), fi.Mode(), err)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
}

// FuzzHeader: no header makes Open panic or hang.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(magic), []byte{0x37, 0x7f, 0x06, 0x82})
	f.Add(bytes.Repeat([]byte{0}, 100), bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, main, wal []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, dbFile)
		write(t, path, main)
		write(t, path+"-wal", wal)
		_, err := checkFiles(path)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
		if err := checkWAL(path + "-wal"); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}
