package api

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOtherUserIsRefused connects as uid 65534 through a socket whose mode lets it.
func TestOtherUserIsRefused(t *testing.T) {
	if os.Getenv("SHOAL_TEST_SOCKET") != "" {
		os.Stdout.WriteString(raw(t, "unix", os.Getenv("SHOAL_TEST_SOCKET"),
			[]byte("POST /shoal.v1.NodeService/Status HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	r := start(t, &fake{}, nil)
	info, err := os.Stat(r.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", info.Mode(), err)
	}
	// The test binary is in a directory of root's: copy it to where the other may run it.
	dir, err := os.MkdirTemp("", "shoal")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "other")
	raw, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, raw, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Dir(r.socket)} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	as := func(uid uint32) string {
		cmd := exec.Command(exe, "-test.run=^TestOtherUserIsRefused$")
		cmd.Env = append(os.Environ(), "SHOAL_TEST_SOCKET="+r.socket)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String() + " " + errText(err)
	}
	if got := as(0); !strings.Contains(got, "200 OK") {
		t.Fatalf("control as ourselves: %s", got)
	}
	calls := r.fake.called()
	if got := as(65534); !strings.Contains(got, "permission denied") {
		t.Errorf("mode 0600: got %s, want permission denied", got)
	}
	if err := os.Chmod(r.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := as(65534); !strings.Contains(got, "403") || !strings.Contains(got, "permission_denied") {
		t.Errorf("mode 0666: got %s, want 403", got)
	}
	if r.fake.called() != calls {
		t.Error("a service was called by another user")
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
