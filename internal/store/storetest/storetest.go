// Package storetest opens databases for tests.
package storetest

import (
	"log/slog"
	"testing"

	"github.com/shoalmesh/shoal/internal/store"
)

// Open returns a database in a directory of the test's own.
func Open(t testing.TB, schemas ...store.Schema) *store.DB {
	t.Helper()
	db, err := store.Open(store.Config{Dir: t.TempDir()}, schemas, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
