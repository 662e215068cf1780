package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of its own, if the test may.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("cannot mount a tmpfs (the max_page_count tests run everywhere): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestRealFullDisk(t *testing.T) {
	disk := smallDisk(t, "2m")
	db := open(t, filepath.Join(disk, "home"), kv)
	row := strings.Repeat("x", 3000)
	acked, full := 0, 0
	for k := int64(0); full < 5; k++ {
		switch err := db.Update(context.Background(), func(tx *Tx) error { return put(tx, k, row) }); {
		case err == nil:
			acked++
		case errors.Is(err, ErrDiskFull):
			full++
		default:
			t.Fatalf("update %d: %v", k, err)
		}
		if acked > 2000 {
			t.Fatal("a disk of 2 MiB does not fill")
		}
	}
	count := func() (n int) {
		view(t, db, func(tx *Tx) error { _, err := tx.One("SELECT count(*) FROM kv", nil, &n); return err })
		return n
	}
	if n := count(); n != acked { // reads are served
		t.Errorf("%d rows, %d acknowledged", n, acked)
	}
	if err := db.Backup(context.Background(), filepath.Join(disk, "backup")); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a backup on a full disk: %v", err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	update(t, db, func(tx *Tx) error { return put(tx, -1, row) }) // nobody did anything
	if n := count(); n != acked+1 {
		t.Errorf("%d rows, %d acknowledged", n, acked+1)
	}
	shut(t, db)
	db = open(t, filepath.Join(disk, "home"), kv)
	if n := count(); n != acked+1 {
		t.Errorf("after a restart: %d rows, %d acknowledged", n, acked+1)
	}
	t.Logf("%d acknowledged, %d refused", acked, full)
}

func TestOpenOnAFullDisk(t *testing.T) {
	disk := smallDisk(t, "1m")
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if e := openErr(t, filepath.Join(disk, "home"), kv); !errors.Is(e, ErrDiskFull) || e.Hint == "" {
		t.Errorf("got %v", e)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	db := open(t, filepath.Join(disk, "home"), kv) // what the failed start left is no hindrance
	update(t, db, func(tx *Tx) error { return put(tx, 1, "x") })
}

func childUpdate(db *DB, id int64) error {
	return db.Update(context.Background(), func(tx *Tx) error { return putPair(tx, id) })
}

func runChild(t *testing.T, role string) {
	t.Helper()
	dir := home(t)
	out, err := childCmd(t, role, dir).Output()
	if err != nil {
		if contains(out, "skip:") {
			t.Skip(string(out))
		}
		t.Fatalf("%v: %s", err, out)
	}
	// What the child acknowledged is its last line.
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	want := lines[len(lines)-1]
	db := open(t, dir, pairs)
	if got := fmt.Sprint(havePairs(t, db)); got != want {
		t.Errorf("rows %s, acknowledged %s\n%s", got, want, out)
	}
	t.Logf("%s", out)
}

// TestFailedWrite: the log cannot grow (EFBIG by a limit on file size, an SQLITE_IOERR).
func TestFailedWrite(t *testing.T) { runChild(t, "fsize") }

func childWithoutRoom(db *DB, _ []string) error {
	acked := map[int64]bool{}
	var errs []error
	try := func(id int64, want error) {
		err := childUpdate(db, id)
		if !errors.Is(err, want) {
			errs = append(errs, fmt.Errorf("update %d: %w, want %w", id, err, want))
		}
		if err == nil {
			acked[id] = true
		}
	}
	try(1, nil)
	log, err := os.ReadFile(db.path + "-wal")
	if err != nil {
		return err
	}
	ends := commitEnds(log)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(ends[len(ends)-1]) + 100, Max: old.Max}); err != nil {
		return fmt.Errorf("skip: %w", err)
	}
	for id := int64(2); id < 10; id++ {
		try(id, ErrDisk)
	}
	n := 0
	err = db.View(context.Background(), func(tx *Tx) error { _, err := tx.One("SELECT count(*) FROM pairs_a", nil, &n); return err })
	if err != nil || n != 1 {
		errs = append(errs, fmt.Errorf("a read on a failing disk: %d rows, %w", n, err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	for id := int64(10); id < 13; id++ {
		try(id, nil)
	}
	fmt.Println(acked)
	return errors.Join(errs...)
}

// TestFailedFsync: fsync of the log fails once its frames are written. Nothing may be
// acknowledged by it, and nothing that was run again may be there twice or come back.
func TestFailedFsync(t *testing.T) { runChild(t, "fsync") }

func childWithoutFsync(db *DB, _ []string) error {
	acked := map[int64]bool{}
	if err := childUpdate(db, 1); err != nil {
		return err
	}
	acked[1] = true
	update := func(id int64) error {
		err := childUpdate(db, id)
		if err == nil {
			acked[id] = true
		}
		return err
	}
	fd, err := fdOf(db.path + "-wal")
	if err != nil {
		return err
	}
	if err := failFsync(fd); err != nil {
		return fmt.Errorf("skip: %w", err)
	}
	if err := update(2); !errors.Is(err, ErrDisk) {
		return fmt.Errorf("with a failing fsync: %w", err)
	}
	// The next one opens a new connection, whose fsync works.
	if err := update(3); err != nil {
		return err
	}
	if old, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); old == db.path+"-wal" {
		return errors.New("the failed connection is still open")
	}
	if err := update(2); err != nil { // the caller may try again: it was not stored
		return err
	}
	// Its number is free again, and fails for ever: nobody should get it.
	if err := unix.Dup3(int(os.Stdin.Fd()), fd, unix.O_CLOEXEC); err != nil {
		return err
	}
	if fd, err = fdOf(db.path + "-wal"); err != nil {
		return err
	}
	if err := failFsync(fd); err != nil {
		return err
	}
	// Both of a batch run again alone, on a new connection, and count once.
	if err := errors.Join(childTogether(db, 4, 5)...); err != nil {
		return fmt.Errorf("a batch with a failing fsync: %w", err)
	}
	acked[4], acked[5] = true, true
	fmt.Println(acked)
	os.Exit(0) // no clean end: the next start reads the log
	return nil
}

// childTogether is together without a test.
func childTogether(db *DB, ids ...int64) []error {
	running, goOn := make(chan struct{}), make(chan struct{})
	errs := make([]error, len(ids)+1)
	var wg sync.WaitGroup
	wg.Go(func() {
		errs[len(ids)] = db.Update(context.Background(), func(*Tx) error { close(running); <-goOn; return nil })
	})
	<-running
	for i, id := range ids {
		wg.Go(func() { errs[i] = childUpdate(db, id) })
	}
	for n := 0; n < len(ids); runtime.Gosched() {
		db.mu.Lock()
		n = len(db.queue)
		db.mu.Unlock()
	}
	close(goOn)
	wg.Wait()
	return errs
}

func fdOf(path string) (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == path {
			return strconv.Atoi(e.Name())
		}
	}
	return 0, fmt.Errorf("%s is not open", path)
}

// failFsync makes fsync and fdatasync of one descriptor fail with EIO, for good, by a
// seccomp filter over all threads.
func failFsync(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const (
		ld, eq, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	)
	prog := []unix.SockFilter{
		{Code: ld, K: 0}, // the number of the call
		{Code: eq, K: unix.SYS_FSYNC, Jt: 1},
		{Code: eq, K: unix.SYS_FDATASYNC, Jf: 3},
		{Code: ld, K: 16}, // its first argument
		{Code: eq, K: uint32(fd), Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return errno
	}
	return nil
}
