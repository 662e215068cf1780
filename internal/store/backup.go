package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/shoalmesh/shoal"
)

// Backup writes the state of this moment to the new file path, mode 0600, while updates go
// on; it is on the disk when Backup returns. The file is one SQLite database without a log,
// the same for the same content whatever was deleted before. It holds no keys.
// It returns a Conflict with reason file_exists if path exists, and ctx's error, leaving
// no file, if ctx ends first.
func (db *DB) Backup(ctx context.Context, path string) (err error) {
	// The name is taken first and replaced last: a backup never overwrites anything and is
	// never there in part, but for an empty file after a crash.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return shoal.NewError(shoal.Conflict, "file_exists", path+" exists already", "choose another name").Because(err)
	}
	if err != nil {
		return diskError(err, path)
	}
	if err := f.Close(); err != nil {
		return diskError(err, path)
	}
	tmp := path + ".part"
	defer func() {
		if err != nil {
			err = errors.Join(err, removeDB(tmp), os.Remove(path))
		}
	}()
	if err := removeDB(tmp); err != nil {
		return err
	}
	if f, err = os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return diskError(err, tmp)
	}
	if err := f.Close(); err != nil {
		return diskError(err, tmp)
	}

	if err := db.vacuumInto(ctx, tmp); err != nil {
		return err
	}
	return moveIntoPlace(tmp, path)
}

// vacuumInto copies on a connection of its own: it lasts long and is not worth a cache.
func (db *DB) vacuumInto(ctx context.Context, tmp string) error {
	select {
	case db.readers.slots <- struct{}{}: // so that Close waits
		defer func() { <-db.readers.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if db.readers.isClosed() {
		return ErrClosed
	}
	c, err := db.openConn(readerCacheKiB, false)
	if err != nil {
		return db.explain(err)
	}
	_, err = c.raw.(driver.ExecerContext).ExecContext(ctx, "VACUUM INTO ?", []driver.NamedValue{{Ordinal: 1, Value: tmp}})
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err = db.explain(err); err != nil {
		err = fmt.Errorf("back up to %s: %w", tmp, err)
	}
	return errors.Join(err, c.close())
}

// Restore checks a file that [DB.Backup] wrote and puts a copy of it into dir, which may
// have other files but no database, with a new [DB.Epoch]. It is there whole or not at
// all. It returns [ErrCorrupt] for a damaged or foreign file, [ErrLocked], or a Conflict
// with reason home_not_empty. backup is not changed.
func Restore(backup, dir string) (err error) {
	if err := makeDir(dir); err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()

	path := filepath.Join(dir, dbFile)
	for _, suffix := range []string{"", "-wal"} {
		if _, err := os.Lstat(path + suffix); err == nil {
			return shoal.NewError(shoal.Conflict, "home_not_empty", path+suffix+" exists already", "restore into an empty --home")
		}
	}
	if unclean, err := checkFiles(backup); err != nil || unclean {
		if err == nil {
			err = ErrCorrupt.With("%s is not a backup: there is a log beside it", backup)
		}
		return err
	}
	tmp := path + ".restore"
	if err := removeDB(tmp); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeDB(tmp)) }()
	if err := copyFile(tmp, backup); err != nil {
		return err
	}
	if err := renew(tmp, backup); err != nil {
		return err
	}
	return moveIntoPlace(tmp, path)
}

// renew checks every page and index of a copy and gives it a new epoch.
func renew(tmp, backup string) (err error) {
	c, err := openConn(tmp, readerCacheKiB, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	what, err := pragmaCheck(context.Background(), c, "PRAGMA integrity_check(1)")
	if err != nil {
		return explain(backup, err)
	}
	if what != "ok" {
		return ErrCorrupt.With("%s: %s", backup, what)
	}
	old, err := c.number("SELECT value FROM store_meta WHERE key = 'epoch'")
	if err != nil {
		return ErrCorrupt.With("%s has no epoch", backup).Because(err)
	}
	return explain(tmp, putEpoch(c, newEpoch(time.Now(), uint64(old))))
}
