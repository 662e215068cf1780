//go:build e2e

package interop

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandTimeout is ten times what the slowest command of the README takes.
const commandTimeout = 200 * time.Second

// shell is one bash that keeps its variables from command to command, as a person's does.
type shell struct {
	t     *testing.T
	stdin io.Writer
	lines chan string
	n     int
	// daemons holds the process ids that `shoal up -d` told.
	daemons []int
}

// startShell starts a bash in the repository's root with an empty HOME and the binary on
// PATH. Go's caches stay where they are, or `go run` would download the world anew.
func startShell(t *testing.T, home string) *shell {
	t.Helper()
	cmd := exec.Command("bash", "--noprofile", "--norc")
	cmd.Dir = repo
	cmd.Env = append(goEnv(t),
		"HOME="+home, "TMPDIR="+home, "LC_ALL=C.UTF-8",
		"PATH="+strings.Join([]string{binDir, filepath.Join(repo, ".tools", "bin"), os.Getenv("PATH")}, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s := &shell{t: t, stdin: stdin, lines: make(chan string, 1024)}
	go func() { // ends when the last process of the group has closed its output
		defer close(s.lines)
		in := bufio.NewScanner(r)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			s.lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the group that was made above
		_ = cmd.Wait()
		for _, pid := range s.daemons {
			killDaemon(t, pid)
		}
		for range s.lines {
		}
		r.Close()
	})
	return s
}

// killDaemon ends a detached daemon that a failed test left.
func killDaemon(t *testing.T, pid int) {
	deadline := time.Now().Add(10 * time.Second)
	for ours(pid) { // one that was told to stop has a moment to end
		if t.Failed() || time.Now().After(deadline) {
			t.Errorf("daemon %d was still there", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ours reports whether a process is a daemon of one of these tests: its id may have gone
// to somebody else.
func ours(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(raw), "shoal-i-")
}

// goEnv is the environment without what would lead to the user's own node.
func goEnv(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOPATH", "GOMODCACHE", "GOCACHE").Output()
	v := strings.Fields(string(out))
	if err != nil || len(v) != 3 {
		t.Fatalf("go env: %q, %v", out, err)
	}
	env := []string{"GOPATH=" + v[0], "GOMODCACHE=" + v[1], "GOCACHE=" + v[2], "CGO_ENABLED=0"}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "HOME", "TMPDIR", "PATH", "SHOAL_HOME", "XDG_RUNTIME_DIR", "GOPATH", "GOMODCACHE", "GOCACHE", "CGO_ENABLED", "LC_ALL":
		default:
			env = append(env, e)
		}
	}
	return env
}

var detached = regexp.MustCompile(`it goes on as process (\d+)`)

// run runs one command and returns what it wrote, stdout and stderr, and its exit code.
func (s *shell) run(command string) (out []string, code int) {
	s.t.Helper()
	s.n++
	mark := fmt.Sprintf("-- end of command %d:", s.n)
	// The echo comes on a line of its own even if the output does not end with one.
	if _, err := fmt.Fprintf(s.stdin, "%s\nprintf '\\n%s %%d\\n' $?\n", command, mark); err != nil {
		s.t.Fatal(err)
	}
	timeout := time.After(commandTimeout)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the shell ended in %q", command)
			}
			if rest, ok := strings.CutPrefix(line, mark+" "); ok {
				code, err := strconv.Atoi(rest)
				if err != nil {
					s.t.Fatal(err)
				}
				return out, code
			}
			if m := detached.FindStringSubmatch(line); m != nil {
				pid, _ := strconv.Atoi(m[1])
				s.daemons = append(s.daemons, pid)
			}
			out = append(out, line)
		case <-timeout:
			s.t.Fatalf("%q did not end; so far:\n%s", command, strings.Join(out, "\n"))
		}
	}
}
