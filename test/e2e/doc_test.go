//go:build e2e

// Package e2e runs the real binary: daemons as processes of their own on loopback, each
// with a home of its own, driven through the API and the command line as a user would.
//
// It promises that every process it started has ended when it returns, by its process id,
// and that each count of failures is printed beside the N that was tried. Counts scale
// with SHOAL_FRACTION (default 0.1; `make soak` sets 1). SHOAL_BIN names the binary;
// without it, the tests build one. SHOAL_SEED repeats a run's choices.
package e2e

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// shoalBinary is the shoal under test, an absolute path. TestMain sets it.
var shoalBinary string

// fraction scales the heavy counts.
var fraction = 0.1

// seed is where a test's own choices come from.
var seed = uint64(time.Now().UnixNano())

func TestMain(m *testing.M) { os.Exit(mainCode(m)) }

func mainCode(m *testing.M) int {
	if s := os.Getenv("SHOAL_FRACTION"); s != "" {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || !(f > 0 && f <= 10) {
			fmt.Fprintf(os.Stderr, "SHOAL_FRACTION %q is not a number above 0\n", s)
			return 2
		}
		fraction = f
	}
	if s := os.Getenv("SHOAL_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			fmt.Fprintf(os.Stderr, "SHOAL_SEED %q is not a number\n", s)
			return 2
		}
		seed = n
	}
	dir, err := os.MkdirTemp("", "shoal-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if shoalBinary, err = findBinary(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("e2e: %s, SHOAL_FRACTION=%g, SHOAL_SEED=%d\n", shoalBinary, fraction, seed)
	defer children.end()
	return m.Run()
}

func findBinary(dir string) (string, error) {
	if path := os.Getenv("SHOAL_BIN"); path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		_, err = os.Stat(abs)
		return abs, err
	}
	path := filepath.Join(dir, "shoal")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/shoalmesh/shoal/cmd/shoal")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shoal: %w\n%s", err, out)
	}
	return path, nil
}

// scaled is n at the run's fraction, at least least.
func scaled(n, least int) int {
	return max(least, int(math.Round(float64(n)*fraction)))
}

// children are the processes that were started and have not been waited for. Each test
// ends its own; what a panic leaves ends here, by process id.
var children = processes{running: map[*exec.Cmd]bool{}}

type processes struct {
	mu      sync.Mutex
	running map[*exec.Cmd]bool
}

func (p *processes) add(c *exec.Cmd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running[c] = true
}

func (p *processes) remove(c *exec.Cmd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, c)
}

func (p *processes) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.running {
		if c.Process != nil && c.ProcessState == nil {
			_ = c.Process.Kill()
		}
	}
}
