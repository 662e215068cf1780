// Package storetest opens databases for tests. Tests of the packages above the store call
// it; it hides nothing of the real one.
package storetest

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/shoalmesh/shoal/internal/store"
)

// Open returns a new database in a directory of the test's own, closed when the test
// ends. In a testing/synctest bubble call it with the bubble's t.
func Open(t testing.TB, schemas ...store.Schema) *store.DB {
	t.Helper()
	return OpenDir(t, filepath.Join(t.TempDir(), "home"), schemas...)
}

// OpenDir is Open for a directory that outlives the database: close it and open it again
// to see what a restart keeps. A missing directory is made.
func OpenDir(t testing.TB, dir string, schemas ...store.Schema) *store.DB {
	t.Helper()
	db, err := store.Open(store.Config{Dir: dir}, schemas, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
	})
	return db
}
