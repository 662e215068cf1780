package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"

	"github.com/shoalmesh/shoal"
)

// SQLite's primary result codes (https://www.sqlite.org/rescode.html).
const (
	codePerm     = 3
	codeBusy     = 5
	codeNoMem    = 7
	codeReadOnly = 8
	codeIOErr    = 10
	codeCorrupt  = 11
	codeFull     = 13
	codeCantOpen = 14
	codeNotADB   = 26

	codeShmSize = codeIOErr | 19<<8 // the shared index could not grow
)

// explain makes one of the package's errors of an error of SQLite about the file path.
// Others come back as they are: a wrong query, a constraint.
func explain(path string, err error) error {
	var known *shoal.Error
	var se *sqlite.Error
	if err == nil || errors.As(err, &known) || !errors.As(err, &se) {
		return err
	}
	switch se.Code() & 0xff {
	case codeFull:
		return ErrDiskFull.With("%s", filepath.Dir(path)).Because(err)
	case codeIOErr, codeCantOpen, codeReadOnly, codePerm, codeNoMem:
		if se.Code() == codeShmSize && free(filepath.Dir(path)) < 1<<20 {
			return ErrDiskFull.With("%s", filepath.Dir(path)).Because(err)
		}
		return ErrDisk.With("%s", path).Because(err)
	case codeCorrupt, codeNotADB:
		return ErrCorrupt.With("%s", path).Because(err)
	case codeBusy:
		return ErrBusy.With("%s", path).Because(err)
	}
	return err
}

func (db *DB) explain(err error) error { return explain(db.path, err) }

// isDisk reports whether err is about the disk or the file, not about the query.
func isDisk(err error) bool {
	return errors.Is(err, ErrDiskFull) || errors.Is(err, ErrDisk) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrBusy)
}

// diskError is explain for errors of package os.
func diskError(err error, path string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC):
		return ErrDiskFull.With("%s", path).Because(err)
	case errors.Is(err, fs.ErrPermission):
		return shoal.NewError(shoal.Denied, "no_permission", "no permission for "+path,
			"run as the user that owns the data directory").Because(err)
	}
	return ErrDisk.With("%s", path).Because(err)
}
