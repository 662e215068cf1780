package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// lockedBuffer is a stdout that is read while it is written.
type lockedBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	wrote chan struct{}
}

func newLockedBuffer() *lockedBuffer { return &lockedBuffer{wrote: make(chan struct{}, 1)} }

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.buf.Write(p)
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return n, err
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// await returns what was written once it contains want.
func (b *lockedBuffer) await(t *testing.T, want string) string {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for !strings.Contains(b.String(), want) {
		select {
		case <-b.wrote:
		case <-timeout:
			t.Fatalf("no %q in %q", want, b.String())
		}
	}
	return b.String()
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func noEnv(string) string { return "" }

func TestUpPrintsReadyLineFirstAndStopsOnCtrlC(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	home, out := shortDir(t), newLockedBuffer()
	var stderr bytes.Buffer
	code := make(chan int)
	go func() {
		code <- run(ctx, []string{"up", "-o", "json", "--home", home, "--http", "off", "--listen=:0"}, nil, out, &stderr, fakeDaemon(), noEnv)
	}()
	line, _, _ := strings.Cut(out.await(t, "\n"), "\n")
	cancel()
	if c := <-code; c != exitOK {
		t.Errorf("exit code %d after ctrl-C, want 0; stderr %q", c, stderr.String())
	}
	var r map[string]any
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("the first line %q is no JSON: %v", line, err)
	}
	for _, key := range []string{"did", "peer_id", "addrs", "http", "socket", "ready_ms"} {
		if _, found := r[key]; !found {
			t.Errorf("the ready line %q has no %s", line, key)
		}
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("stdout holds more than the ready line: %q", out.String())
	}
	if !strings.Contains(stderr.String(), "level=INFO") {
		t.Errorf("stderr %q has no log", stderr.String())
	}
}

func TestUpTellsPeopleHowToInvite(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	home, out := shortDir(t), newLockedBuffer()
	code := make(chan int)
	go func() {
		code <- run(ctx, []string{"up", "--home", home}, nil, out, newLockedBuffer(), fakeDaemon(), noEnv)
	}()
	got := out.await(t, "let others join with\n  shoal up --join shoal:main?a=")
	cancel()
	if c := <-code; c != exitOK || !strings.HasPrefix(got, "shoal is up, ready in 12.5 ms\n") {
		t.Errorf("exit code %d, stdout %q", c, got)
	}
}

func TestUpInterruptedBeforeReadyIsNoError(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var stderr bytes.Buffer
	if c := run(ctx, []string{"up", "--home", shortDir(t), "--listen", "127.0.0.1:2"}, nil, &stderr, &stderr, fakeDaemon(), noEnv); c != exitOK {
		t.Errorf("exit code %d, %q", c, stderr.String())
	}
}

func TestUpDetached(t *testing.T) {
	t.Setenv(beShoal, "1")
	home := filepath.Join(shortDir(t), "home") // it makes the directory
	var stdout, stderr bytes.Buffer
	shoal := func(want int, args ...string) string {
		t.Helper()
		stdout.Reset()
		stderr.Reset()
		if code := run(t.Context(), append(args, "--home", home), nil, &stdout, &stderr, fakeDaemon(), noEnv); code != want {
			t.Fatalf("%v: exit code %d, want %d; stderr %q", args, code, want, stderr.String())
		}
		return stdout.String()
	}

	out := shoal(exitOK, "up", "-d", "--http", "127.0.0.1:0", "--join", "shoal:a", "--join", "shoal:b", "--require-token", "--log-level", "debug")
	if !strings.Contains(out, "stop it with `shoal down`") || !strings.Contains(out, "shoal up --join shoal:main") {
		t.Errorf("up -d printed %q", out)
	}
	shoal(exitOK, "status") // it is there when up -d returns
	shoal(exitOK, "down")
	if exists(socketPath(home)) {
		t.Error("down returned before the socket was gone")
	}
	log, err := os.ReadFile(logFile(home))
	if want := `listen="" http="127.0.0.1:0" join=["shoal:a" "shoal:b"] token=true log="debug"`; err != nil || !strings.Contains(string(log), want) {
		t.Errorf("log %q, %v; want %s", log, err, want)
	}
	if info, err := os.Stat(logFile(home)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log file: %v, %v", info, err)
	}

	out = shoal(exitOK, "up", "-d", "-o", "json")
	if !strings.HasPrefix(out, `{"did":"did:key:z6Mk`) || strings.Count(out, "\n") != 1 {
		t.Errorf("up -d -o json printed %q", out)
	}
	shoal(exitOK, "down", "-o", "json")

	// A daemon that cannot start says why, with its own exit code.
	shoal(exitConflict, "up", "-d", "--listen", "127.0.0.1:1")
	if got := stderr.String(); !strings.Contains(got, "error: the mesh port 127.0.0.1:1 is taken (port_taken)\nhint: choose another with --listen; see ") {
		t.Errorf("stderr %q", got)
	}
	// One that does not become ready is ended.
	shoal(exitTimeout, "up", "-d", "--listen", "127.0.0.1:2", "--timeout", "300ms")
}
