package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shoalmesh/shoal"
)

const lockName = "lock"

// dirLock keeps other processes out of a directory. The system drops it when the process
// ends, however it ends.
type dirLock struct{ f *os.File }

// lockDir takes the lock of dir and writes the process's id into it, for the message.
func lockDir(dir string) (*dirLock, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, diskError(err, path)
	}
	if err := checkMode(path, 0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	ok, err := tryLock(f)
	if err != nil {
		return nil, errors.Join(diskError(err, path), f.Close())
	}
	if !ok {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // only for the message; Windows does not let us read it
		who := "process " + strings.TrimSpace(string(pid[:n]))
		if n == 0 {
			who = "a process"
		}
		return nil, errors.Join(ErrLocked.With("%s has %s", who, dir), f.Close())
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	if err == nil {
		err = f.Truncate(int64(len(strconv.Itoa(os.Getpid())) + 1))
	}
	if err != nil && !errors.Is(diskError(err, path), ErrDiskFull) { // the id is a courtesy
		return nil, errors.Join(diskError(err, path), f.Close())
	}
	return &dirLock{f}, nil
}

// release lets go. The file stays: removing it would let two processes lock two files.
func (l *dirLock) release() error {
	if l == nil {
		return nil
	}
	return l.f.Close()
}

// makeDir makes dir with mode 0700, or checks that of the one that is there.
func makeDir(dir string) error {
	if dir == "" {
		return errors.New("no data directory is configured")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError(err, dir)
	}
	return checkMode(dir, 0o700)
}

// checkMode refuses a file that others than its owner may use. A missing one is fine.
func checkMode(path string, most fs.FileMode) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return diskError(err, path)
	}
	if !hasModes || fi.Mode().Perm()&^most == 0 {
		return nil
	}
	return shoal.NewError(shoal.Denied, "file_too_open",
		fmt.Sprintf("%s has mode %04o, others may read or write it", path, fi.Mode().Perm()),
		fmt.Sprintf("chmod %04o %s", most, shellQuote(path)))
}

func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// removeDB removes a database that nobody uses, with what SQLite puts beside it.
func removeDB(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskError(err, path+suffix)
		}
	}
	return nil
}

// moveIntoPlace makes a complete and closed database appear under its name, durably.
func moveIntoPlace(tmp, path string) error {
	if _, err := os.Stat(tmp + "-wal"); err == nil { // SQLite could not fold it in and does not say so
		return ErrDisk.With("%s-wal could not be folded in", tmp)
	}
	if err := syncFile(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return diskError(err, path)
	}
	return diskError(syncDir(filepath.Dir(path)), path)
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return diskError(err, path)
	}
	return diskError(errors.Join(f.Sync(), f.Close()), path)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return diskError(err, from)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError(err, to)
	}
	_, err = io.Copy(out, in)
	return diskError(errors.Join(err, out.Sync(), out.Close()), to)
}

const (
	// SQLite begins the log anew after 1000 pages (wal_autocheckpoint), or at the end of
	// the transaction that passes them.
	logSize = walHeaderSize + 1100*(frameHeader+4096)
	// roomToGrow is the free space below which the disk has better uses.
	roomToGrow = 16 * logSize
	// growAfter is how many commits a database must see before it is worth the 10 ms.
	growAfter = 16
)

// growLog writes zeros behind the log, up to the size at which it is begun anew. A commit
// then overwrites blocks that the file has, and waits for its own data but not for the
// file system's journal: 1.4 instead of 1.7 times the floor. Recovery ends at the first
// frame without the log's salt, so the zeros mean nothing to it. If there is no room,
// nothing is lost but time. Only the leader calls it, between two batches.
func (db *DB) growLog() {
	if db.grown || db.commits.Load() < growAfter {
		return
	}
	db.grown = true
	f, err := os.OpenFile(db.path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	// Zeros in place of a header would look like damage (wal.go).
	if err != nil || fi.Size() < walHeaderSize || fi.Size() >= logSize || free(db.cfg.Dir) < roomToGrow {
		return
	}
	if err = writeZeros(f, fi.Size(), logSize); err == nil {
		err = f.Sync()
	} else {
		err = errors.Join(err, f.Truncate(fi.Size()))
	}
	if err != nil {
		db.log.Warn("the log could not be grown ahead", "err", err)
	}
}

func writeZeros(f *os.File, from, to int64) error {
	zeros := make([]byte, 64<<10)
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}
