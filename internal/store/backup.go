package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Backup writes a consistent copy of the database to path, which must not exist, while
// others read and write. The copy is on disk when it returns.
func (db *DB) Backup(ctx context.Context, path string) error {
	// Made first, so that it is never readable by others and never replaces anything.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create backup: %w", err)
	}
	defer f.Close()
	c, err := db.pool.Conn(ctx)
	if err != nil {
		return errors.Join(db.explain(err), os.Remove(path))
	}
	defer c.Close()
	if _, err := c.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return errors.Join(fmt.Errorf("copy the database: %w", db.explain(err)), os.Remove(path))
	}
	if err := errors.Join(f.Sync(), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("write the copy to disk: %w", err)
	}
	return nil
}

// Restore moves the copy in file into dir, which must hold no database, after checking
// all of it and giving it a new epoch. file is gone afterwards.
func Restore(file, dir string) error {
	target := filepath.Join(dir, File)
	if _, err := os.Stat(target); err == nil {
		return fmt.Errorf("restore: %s exists", target)
	}
	if err := renew(file); err != nil {
		return err
	}
	if err := os.Chmod(file, 0o600); err != nil {
		return err
	}
	if err := os.Rename(file, target); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return syncDir(dir)
}

// renew checks a copy and replaces its epoch, so that peers do not take the sequence
// numbers of this life for those of the last.
func renew(file string) (err error) {
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(file)+"?_pragma=synchronous(FULL)&_pragma=journal_mode(DELETE)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	if err := db.QueryRow("PRAGMA integrity_check(1)").Scan(&verdict); err != nil || verdict != "ok" {
		return ErrCorrupt.With("%s: %s", file, verdict).Because(err)
	}
	var old int64
	if err := db.QueryRow("SELECT epoch FROM store_epoch").Scan(&old); err != nil {
		return ErrCorrupt.With("%s has no epoch", file).Because(err)
	}
	if _, err := db.Exec("UPDATE store_epoch SET epoch = ?", newEpoch(old, time.Now())); err != nil {
		return fmt.Errorf("renew the epoch: %w", err)
	}
	return nil
}

// syncDir makes a new or renamed name in dir durable. Windows cannot and need not.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return ignoreUnsupported(d.Sync())
}
