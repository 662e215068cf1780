package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"modernc.org/sqlite"
)

// maxStmts bounds the prepared statements of a connection. Queries are constants of the
// code, a few hundred; beyond that they are prepared for one use.
const maxStmts = 512

// conn is one SQLite connection with its prepared statements; one goroutine at a time.
type conn struct {
	path   string
	raw    driver.Conn
	stmts  map[string]*stmt
	args   []driver.NamedValue // scratch
	broken bool                // to be replaced before its next use
}

// stmt is a prepared statement. A busy one is being iterated and must not be run.
type stmt struct {
	raw    driver.Stmt
	exec   driver.StmtExecContext
	query  driver.StmtQueryContext
	kind   kind
	cached bool
	busy   bool
	own    bool // of this package: not checked
}

type kind uint8

const (
	other kind = iota // may write, and its count of changed rows means nothing
	reads             // does not write
	dml               // wrote if its count of changed rows is not zero
)

var (
	firstWord = regexp.MustCompile(`^(?:\s+|--[^\n]*\n|/\*(?s:.*?)\*/)*([A-Za-z]+)`)
	// An update that ends the whole transaction, or keeps half of a statement that failed,
	// would break the promise to the others in its batch.
	forbidden = regexp.MustCompile(`(?i)\bOR\s+(?:FAIL|ROLLBACK)\b`)
)

// openConn opens a connection. The file must exist: SQLite would make it, with the
// permissions it likes.
func openConn(path string, cacheKiB int, readOnly bool) (*conn, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(abs)}
	if runtime.GOOS == "windows" {
		u.Path = "/" + u.Path
	}
	q := url.Values{"mode": {"rw"}, "_pragma": {
		"busy_timeout(5000)",
		fmt.Sprintf("cache_size(-%d)", cacheKiB),
		"journal_mode(WAL)",
		"synchronous(FULL)",
		"fullfsync(1)", // macOS: fsync does not reach the disk there
		"checkpoint_fullfsync(1)",
		"foreign_keys(1)",
		"temp_store(MEMORY)",
		"trusted_schema(0)",
	}}
	if readOnly {
		q.Add("_pragma", "query_only(1)")
	}
	u.RawQuery = q.Encode()
	connector, err := sqlite.NewConnector(u.String())
	if err != nil {
		return nil, err
	}
	raw, err := connector.Connect(context.Background())
	if err != nil {
		return nil, explain(path, err)
	}
	return &conn{path: path, raw: raw, stmts: map[string]*stmt{}}, nil
}

func (db *DB) openConn(cacheKiB int, readOnly bool) (*conn, error) {
	return openConn(db.path, cacheKiB, readOnly)
}

// close closes the statements first: SQLite keeps a connection with open ones, and the
// last connection to close is the one that folds the log into the file. nil is fine.
func (c *conn) close() error {
	if c == nil || c.raw == nil {
		return nil
	}
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.raw.Close())
	}
	c.stmts = nil
	errs = append(errs, c.raw.Close())
	c.raw = nil
	return errors.Join(errs...)
}

// do runs one of the constant statements of this package.
func (c *conn) do(query string, args ...driver.NamedValue) error {
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	defer c.done(s)
	s.own = true
	_, err = s.exec.ExecContext(context.Background(), args)
	return err
}

// script runs statements of a migration, not kept.
func (c *conn) script(text string) error {
	_, err := c.raw.(driver.ExecerContext).ExecContext(context.Background(), text, nil)
	return err
}

// number returns the first column of the first row as an integer.
func (c *conn) number(query string) (n int64, err error) {
	tx := Tx{c: c}
	_, err = tx.One(query, nil, &n)
	return n, err
}

// inTx reports whether a transaction is open. The driver does not say, but BEGIN fails if so.
func (c *conn) inTx() bool {
	if err := c.do("BEGIN"); err != nil {
		return true
	}
	return c.do("ROLLBACK") != nil
}

// prepare returns a statement that is not in use; done gives it back.
func (c *conn) prepare(query string) (*stmt, error) {
	if s := c.stmts[query]; s != nil && !s.busy {
		return s, nil
	}
	if c.raw == nil {
		return nil, ErrClosed
	}
	raw, err := c.raw.Prepare(query)
	if err != nil {
		return nil, err
	}
	s := &stmt{raw: raw, kind: kindOf(query)}
	var ok1, ok2 bool
	s.exec, ok1 = raw.(driver.StmtExecContext)
	s.query, ok2 = raw.(driver.StmtQueryContext)
	if !ok1 || !ok2 {
		return nil, errors.Join(errors.New("the SQL driver lacks a method"), raw.Close())
	}
	if c.stmts[query] == nil && len(c.stmts) < maxStmts {
		c.stmts[query] = s
		s.cached = true
	}
	return s, nil
}

func (c *conn) done(s *stmt) {
	s.busy = false
	if !s.cached {
		_ = s.raw.Close() // it repeats the error of the last run
	}
}

func kindOf(query string) kind {
	if i := strings.IndexByte(query, ';'); i >= 0 && strings.TrimSpace(query[i+1:]) != "" {
		return other // a script, or a ; in a literal
	}
	m := firstWord.FindStringSubmatch(query)
	if m == nil {
		return other
	}
	switch strings.ToUpper(m[1]) {
	case "SELECT", "VALUES", "EXPLAIN":
		return reads
	case "INSERT", "UPDATE", "DELETE", "REPLACE":
		return dml
	}
	return other
}

// checkQuery refuses what would break the transaction that a query runs in.
func checkQuery(query string) error {
	word := ""
	if m := firstWord.FindStringSubmatch(query); m != nil {
		word = strings.ToUpper(m[1])
	}
	switch word {
	case "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH", "VACUUM", "PRAGMA":
		return fmt.Errorf("%s is not allowed in a transaction of the store", word)
	}
	if forbidden.MatchString(query) {
		return errors.New("OR FAIL and OR ROLLBACK are not allowed in a transaction of the store")
	}
	return nil
}

// rows iterates a result.
type rows struct {
	c    *conn
	s    *stmt
	raw  driver.Rows
	vals []driver.Value
}

func (c *conn) rows(s *stmt, args []driver.NamedValue) (*rows, error) {
	raw, err := s.query.QueryContext(context.Background(), args)
	if err != nil {
		c.done(s)
		return nil, err
	}
	s.busy = true
	return &rows{c: c, s: s, raw: raw, vals: make([]driver.Value, len(raw.Columns()))}, nil
}

func (r *rows) next() (bool, error) {
	err := r.raw.Next(r.vals)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}

func (r *rows) close() error {
	err := r.raw.Close()
	r.c.done(r.s)
	return err
}
