//go:build e2e

package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// daemon is a `shoal up` with a home of its own and free ports.
type daemon struct {
	Home   string
	DID    string   `json:"did"`
	Addrs  []string `json:"addrs"`
	HTTP   string   `json:"http"`
	Socket string   `json:"socket"`
}

// startDaemon starts a daemon and has it ended with the test. It also ends by itself when
// this process is killed, since its stdin ends then.
func startDaemon(t *testing.T, args ...string) daemon {
	t.Helper()
	d := daemon{Home: filepath.Join(tempHome(t), "h")}
	cmd := exec.Command(filepath.Join(binDir, "shoal"), append([]string{
		"up", "--until-eof", "-o", "json",
		"--home", d.Home, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
	}, args...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon did not stop in order: %v", err)
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", log.String())
		}
	})
	timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := json.NewDecoder(stdout).Decode(&d); err != nil {
		t.Fatalf("ready line: %v\n%s", err, log.String())
	}
	return d
}

// startPair starts two daemons that see each other; tasks go from a to b.
func startPair(t *testing.T) (a, b daemon) {
	t.Helper()
	b = startDaemon(t)
	a = startDaemon(t, "--join", b.Addrs[0])
	return a, b
}

// eventually tries until ok; a card takes a moment to travel.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// awaitSkill waits until the node of d finds an agent that offers the skill.
func awaitSkill(t *testing.T, d daemon, skill string) {
	t.Helper()
	eventually(t, skill, func() bool {
		return exec.Command(filepath.Join(binDir, "shoal"), "find", skill, "--home", d.Home).Run() == nil
	})
}

// toolTimeout is far above what one program of a tool takes.
const toolTimeout = time.Minute

// curl runs curl and returns status and body.
func curl(t *testing.T, url, body string, args ...string) (status int, answer string) {
	t.Helper()
	out, err := exec.Command("curl", append([]string{
		"-sS", "--max-time", "60", "-w", "\n%{http_code}",
		"-H", "Content-Type: application/json", "-d", body, url,
	}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", url, err, out)
	}
	i := strings.LastIndexByte(string(out), '\n')
	if _, err := fmt.Sscan(string(out[i+1:]), &status); err != nil {
		t.Fatalf("curl: no status in %q", out)
	}
	return status, string(out[:i])
}

// call calls a method over a socket by curl and decodes its answer.
func call(t *testing.T, socket, method, body string, into any) {
	t.Helper()
	status, answer := curl(t, "http://localhost/"+method, body, "--unix-socket", socket)
	if status != 200 {
		t.Fatalf("%s: %d %s", method, status, answer)
	}
	if err := json.Unmarshal([]byte(answer), into); err != nil {
		t.Fatalf("%s: %v in %s", method, err, answer)
	}
}

// sent is as much of SendResponse as the tests look at.
type sent struct {
	Task struct {
		Task struct {
			ID        string
			Status    struct{ State string }
			Artifacts []struct {
				Parts []struct{ Text string }
			}
		}
		From, To string
	}
}

func (s sent) text() string {
	var b strings.Builder
	for _, a := range s.Task.Task.Artifacts {
		for _, p := range a.Parts {
			b.WriteString(p.Text)
		}
	}
	return b.String()
}

func token(t *testing.T, d daemon) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(d.Home, "token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}
