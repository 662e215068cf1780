//go:build e2e

// Package interop drives the real binary with tools that are not ours: a shell that reads
// README.md, curl, grpcurl, and Python with stubs generated from proto/.
//
// It promises that what the README shows is what happens, and that every process it
// started has ended when it returns, by its process id. SHOAL_BIN names the binary;
// without it, the tests build one. grpcurl and Python come from `make deps-e2e`.
package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	binDir string // holds shoal, and nothing else
	repo   string // the repository's root, absolute
)

func TestMain(m *testing.M) { os.Exit(mainCode(m)) }

func mainCode(m *testing.M) int {
	dir, err := os.MkdirTemp("", "shoal-bin-")
	if err == nil {
		defer os.RemoveAll(dir)
		binDir = dir
		repo, err = filepath.Abs("../..")
	}
	if err == nil {
		err = provideBinary(filepath.Join(dir, "shoal"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// provideBinary puts the shoal under test at path.
func provideBinary(path string) error {
	if given := os.Getenv("SHOAL_BIN"); given != "" {
		abs, err := filepath.Abs(given)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("SHOAL_BIN: %w", err)
		}
		return os.Symlink(abs, path)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/shoalmesh/shoal/cmd/shoal")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build shoal: %w\n%s", err, out)
	}
	return nil
}

// tool returns the path of a tool that `make deps-e2e` installs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(repo, ".tools", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make deps-e2e`", err)
	}
	return path
}

// tempHome is an empty directory whose path is short enough for sockets below it.
func tempHome(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal-i-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
