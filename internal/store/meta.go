package store

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// appID marks the file as ours in SQLite's header: "SHOL".
const appID = 0x53484f4c

// epochRandomBits is how much of an epoch is chance.
const epochRandomBits = 20

// metaSchema holds what the store keeps for itself. Its version is SQLite's user_version.
const metaSchema = `
CREATE TABLE store_schema (package TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE store_meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
`

const metaVersion = 1

// newEpoch returns an epoch above old.
func newEpoch(now time.Time, old uint64) uint64 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	ms := max(uint64(now.UnixMilli()), old>>epochRandomBits+1)
	return ms<<epochRandomBits | uint64(binary.BigEndian.Uint32(b[:]))&(1<<epochRandomBits-1)
}

// writeMeta makes a database in the empty file path.
func writeMeta(path string, epoch uint64) (err error) {
	c, err := openConn(path, readerCacheKiB, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(explain(path, err), c.close()) }()
	script := fmt.Sprintf("BEGIN; PRAGMA application_id = %d; PRAGMA user_version = %d; %s COMMIT", appID, metaVersion, metaSchema)
	if err := c.script(script); err != nil {
		return err
	}
	return putEpoch(c, epoch)
}

func putEpoch(c *conn, epoch uint64) error {
	return c.do("INSERT OR REPLACE INTO store_meta VALUES ('epoch', ?)", driver.NamedValue{Ordinal: 1, Value: int64(epoch)})
}

// migrate reads what the store keeps for itself and brings every package's tables up.
func (db *DB) migrate(schemas []Schema) error {
	v, err := db.writer.number("SELECT user_version FROM pragma_user_version")
	if err != nil {
		return err
	}
	if v != metaVersion {
		return ErrTooNew.With("%s has format %d, this version knows %d", db.path, v, metaVersion)
	}
	have := map[string]int{}
	err = db.Update(context.Background(), func(tx *Tx) error {
		found, err := tx.One("SELECT value FROM store_meta WHERE key = 'epoch'", nil, &db.epoch)
		if err != nil {
			return err
		}
		if !found {
			return ErrCorrupt.With("%s has no epoch", db.path)
		}
		return tx.Each("SELECT package, version FROM store_schema", nil, func(scan func(...any) error) error {
			var pkg string
			var version int
			err := scan(&pkg, &version)
			have[pkg] = version
			return err
		})
	})
	if err != nil {
		return err
	}
	if err := checkVersions(db.path, have, schemas); err != nil {
		return err
	}
	return db.Update(context.Background(), func(tx *Tx) error {
		for _, s := range schemas {
			if err := tx.migrate(s, have[s.Package]); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkVersions refuses a database of a newer program: also one with a package that this
// program lacks, which could not keep that package's rows in step with the others. Who
// brings no schemas at all uses no tables.
func checkVersions(path string, have map[string]int, schemas []Schema) error {
	if len(schemas) == 0 {
		return nil
	}
	know := map[string]int{}
	for _, s := range schemas {
		know[s.Package] = len(s.Steps)
	}
	for pkg, v := range have {
		if v > know[pkg] {
			return ErrTooNew.With("%s: package %s has version %d, this version knows %d", path, pkg, v, know[pkg])
		}
	}
	return nil
}

func (tx *Tx) migrate(s Schema, from int) error {
	if from == len(s.Steps) {
		return nil
	}
	tx.wrote = true
	for i, step := range s.Steps[from:] {
		err := tx.c.script(step)
		if err == nil && !tx.c.inTx() {
			err = errors.New("it ends the transaction")
		}
		if err != nil {
			err = explain(tx.c.path, err)
			if isDisk(err) {
				tx.broken = err
			}
			return fmt.Errorf("migrate %s to version %d: %w", s.Package, from+i+1, err)
		}
	}
	_, err := tx.Exec("INSERT OR REPLACE INTO store_schema VALUES (?, ?)", s.Package, len(s.Steps))
	return err
}
