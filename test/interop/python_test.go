//go:build e2e

package interop

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stubs generates the Python code of the protos.
func stubs(t *testing.T) (python string, env []string) {
	t.Helper()
	python = tool(t, "python/bin/python")
	dir := t.TempDir()
	args := []string{"-m", "grpc_tools.protoc", "-I", "proto", "--python_out=" + dir, "--grpc_python_out=" + dir, "proto/a2av1.proto"}
	protos, err := filepath.Glob(filepath.Join(repo, "proto/shoal/v1/*.proto"))
	if err != nil || len(protos) == 0 {
		t.Fatalf("no protos: %v", err)
	}
	for _, p := range protos {
		args = append(args, "proto/shoal/v1/"+filepath.Base(p))
	}
	cmd := exec.Command(python, args...)
	cmd.Dir = repo
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("generate stubs: %v\n%s", err, out)
	}
	return python, append(os.Environ(), "PYTHONPATH="+dir, "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1")
}

// startWorker starts a program that attaches to a daemon, ends it with the test and
// returns the lines that it prints.
func startWorker(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*toolTimeout, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s wrote: %s", filepath.Base(cmd.Path), errs.String())
		}
	})
	return bufio.NewReader(out)
}

// A worker in Python on one node streams, asks back and completes the task that a client
// in Python sent from another.
func TestPythonWorkerAndClient(t *testing.T) {
	t.Parallel()
	python, env := stubs(t)
	a, b := startPair(t)

	worker := exec.Command(python, filepath.Join(repo, "examples/python/worker.py"), b.Socket)
	worker.Env = env
	if line, err := startWorker(t, worker).ReadString('\n'); err != nil || !strings.HasPrefix(line, "attached as did:key:z") {
		t.Fatalf("the worker says %q, %v", line, err)
	}
	awaitSkill(t, a, "reverse")

	client := exec.Command(python, filepath.Join(repo, "examples/python/client.py"), "reverse", "loohcs fo hsif", "Ann", a.Socket)
	client.Env = env
	timer := time.AfterFunc(toolTimeout, func() { _ = client.Process.Kill() })
	defer timer.Stop()
	out, err := client.CombinedOutput()
	if err != nil {
		t.Fatalf("client: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	for _, want := range []string{"? Whom is it for?", "TASK_STATE_COMPLETED\nschool of fish for Ann\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in the client's output", want)
		}
	}
	// It was streamed, too: pieces came before the end. A single one may be lost by design.
	before, _, _ := strings.Cut(string(out), "TASK_STATE_COMPLETED")
	if !strings.Contains(before, "school") && !strings.Contains(before, "for Ann") {
		t.Error("nothing was streamed before the end")
	}
}
