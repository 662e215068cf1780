package mail_test

import (
	"testing"
	"time"
)

// waitFor waits for what only shows in a database. Tests that can wait for an outcome do.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s in 15 s", what)
		}
	}
}
