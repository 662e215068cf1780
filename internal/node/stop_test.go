package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalmesh/shoal/internal/store"
)

// `shoal down` waits until the socket is gone; the next `up` or `restore` must not find
// the data dir locked then.
func TestSocketGoesLast(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	r, stop := start(t, Options{Home: home})
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for {
		if _, err := os.Stat(r.Socket); os.IsNotExist(err) {
			break
		}
	}
	db, err := store.Open(store.Config{Dir: home}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Errorf("the socket is gone, but: %v", err)
	} else if err := db.Close(); err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A home whose path is too long has its socket elsewhere; nothing of that stays.
func TestSocketElsewhereLeavesNothing(t *testing.T) {
	runtime := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	if len(runtime) > maxSocketPath-30 {
		t.Skip("the temporary directory has a long path itself")
	}
	home := filepath.Join(t.TempDir(), strings.Repeat("h", 99))
	r, stop := start(t, Options{Home: home})
	if filepath.Dir(filepath.Dir(r.Socket)) != runtime {
		t.Fatalf("socket at %s", r.Socket)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
