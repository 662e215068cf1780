package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// What is checked when a database is opened (start must stay fast):
//   - always, in microseconds: the header, and that the file is as long as it says;
//   - if the last run did not close it, which shows in a log file that is not empty: the
//     log for damage that SQLite would take for its end (wal.go), then SQLite's own
//     quick_check of all pages, for as long as Config.CheckTime.

const (
	headerSize = 100
	magic      = "SQLite format 3\x00"
)

// checkFiles looks at the files before SQLite does.
func checkFiles(path string) (unclean bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, diskError(err, path)
	}
	defer f.Close()
	h := make([]byte, headerSize)
	if _, err := io.ReadFull(f, h); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, ErrCorrupt.With("%s ends in its header, at offset 0", path)
	} else if err != nil {
		return false, diskError(err, path)
	}
	if at, what := checkHeader(h); what != "" {
		return false, ErrCorrupt.With("%s: %s, at offset %d", path, what, at)
	}

	wal, err := os.Stat(path + "-wal")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, diskError(err, path+"-wal")
	}
	if err == nil && wal.Size() > 0 {
		// Page 1 may be ahead of the file's end while the log has the pages between.
		return true, checkWAL(path + "-wal")
	}
	fi, err := f.Stat()
	if err != nil {
		return false, diskError(err, path)
	}
	if want := int64(pageSize(h)) * int64(binary.BigEndian.Uint32(h[28:])); fi.Size() < want {
		return false, ErrCorrupt.With("%s is cut off, at offset %d of %d", path, fi.Size(), want)
	}
	return false, nil
}

// checkHeader says what is wrong with the first 100 bytes (https://www.sqlite.org/fileformat2.html §1.3).
func checkHeader(h []byte) (at int, what string) {
	size := pageSize(h)
	switch {
	case !bytes.Equal(h[:16], []byte(magic)):
		return 0, "not a SQLite database"
	case size < 512 || size > 65536 || size&(size-1) != 0:
		return 16, "an impossible page size"
	case h[18] < 1 || h[18] > 2 || h[19] < 1 || h[19] > 2:
		return 18, "an unknown file format version"
	case h[20] != 0 || h[21] != 64 || h[22] != 32 || h[23] != 32:
		return 20, "impossible payload fractions"
	case binary.BigEndian.Uint32(h[44:]) < 1 || binary.BigEndian.Uint32(h[44:]) > 4:
		return 44, "an unknown schema format"
	case binary.BigEndian.Uint32(h[56:]) != 1:
		return 56, "not UTF-8"
	case binary.BigEndian.Uint32(h[68:]) != appID:
		return 68, "not a database of shoal"
	case !bytes.Equal(h[72:92], make([]byte, 20)):
		return 72, "reserved bytes are not zero"
	case !bytes.Equal(h[24:28], h[92:96]):
		return 92, "the page count is not valid"
	}
	return 0, ""
}

func pageSize(h []byte) int {
	n := int(binary.BigEndian.Uint16(h[16:]))
	if n == 1 {
		return 65536
	}
	return n
}

// quickCheck has SQLite look at all pages, for as long as the Config says.
func (db *DB) quickCheck() error {
	ctx, cancel := context.WithTimeout(context.Background(), db.cfg.CheckTime)
	defer cancel()
	start := time.Now()
	what, err := pragmaCheck(ctx, db.writer, "PRAGMA quick_check(1)")
	if ctx.Err() != nil {
		db.log.Warn("the database was not closed cleanly and is too large to check at start",
			"file", db.path, "took", time.Since(start))
		return nil
	}
	if err != nil {
		return db.explain(err)
	}
	if what != "ok" {
		return ErrCorrupt.With("%s: %s", db.path, what)
	}
	return nil
}

// pragmaCheck returns what quick_check or integrity_check says first: "ok" if all is well.
func pragmaCheck(ctx context.Context, c *conn, pragma string) (what string, err error) {
	r, err := c.raw.(driver.QueryerContext).QueryContext(ctx, pragma, nil)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	vals := make([]driver.Value, len(r.Columns()))
	if err := r.Next(vals); err != nil {
		return "", err
	}
	what, _ = vals[0].(string)
	return what, nil
}
