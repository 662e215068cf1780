package store

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/windows"
)

// hasModes: access on Windows is by lists that the profile directory hands down.
const hasModes = false

func tryLock(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{OffsetHigh: 1}) // past the content, which others may read
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return false, nil
	}
	return err == nil, err
}

// syncDir does nothing: NTFS journals its directories.
func syncDir(string) error { return nil }

// free returns how many bytes the disk of dir has for us.
func free(dir string) uint64 {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return math.MaxUint64
	}
	var n uint64
	if err := windows.GetDiskFreeSpaceEx(p, &n, nil, nil); err != nil {
		return math.MaxUint64
	}
	return n
}
