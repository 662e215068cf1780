//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// ready is the first line of `shoal up -o json`.
type ready struct {
	DID     string   `json:"did"`
	PeerID  string   `json:"peer_id"`
	Addrs   []string `json:"addrs"`
	HTTP    string   `json:"http"`
	Socket  string   `json:"socket"`
	ReadyMS float64  `json:"ready_ms"`
}

// daemon is `shoal up` in a process of its own. Its API clients outlive restarts.
type daemon struct {
	t      *testing.T
	name   string
	home   string
	args   []string
	listen string // kept from the first start, as an operator's port is

	ready  ready
	wallMS float64 // from exec to the ready line

	cmd   *exec.Cmd
	stdin io.Closer
	log   *logLines
	ended chan struct{}

	tasks  shoalv1connect.TaskServiceClient
	node   shoalv1connect.NodeServiceClient
	agents shoalv1connect.AgentServiceClient
	mail   shoalv1connect.MailServiceClient
}

// startDaemon starts a daemon on a fresh home and has it ended with the test.
func startDaemon(t *testing.T, name string, args ...string) *daemon {
	t.Helper()
	d := newDaemon(t, name, tempHome(t), args...)
	d.start()
	return d
}

// newDaemon prepares a daemon that is not started.
func newDaemon(t *testing.T, name, home string, args ...string) *daemon {
	d := &daemon{t: t, name: name, home: home, args: args, listen: "127.0.0.1:0", log: &logLines{}}
	d.connect()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("%s's last words:\n%s", d.name, d.log.tail(40))
		}
	})
	return d
}

// tempHome is a home whose path is short enough for a socket.
func tempHome(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal-h-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// connect makes clients that dial the socket anew as needed.
func (d *daemon) connect() {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var nd net.Dialer
			return nd.DialContext(ctx, "unix", filepath.Join(d.home, "shoal.sock"))
		},
		MaxIdleConnsPerHost: 16,
	}
	d.t.Cleanup(transport.CloseIdleConnections)
	hc := &http.Client{Transport: transport}
	const base = "http://localhost"
	d.tasks = shoalv1connect.NewTaskServiceClient(hc, base)
	d.node = shoalv1connect.NewNodeServiceClient(hc, base)
	d.agents = shoalv1connect.NewAgentServiceClient(hc, base)
	d.mail = shoalv1connect.NewMailServiceClient(hc, base)
}

// start runs the daemon until it is ready; the test fails if that does not come.
func (d *daemon) start() {
	d.t.Helper()
	if err := d.tryStart(); err != nil {
		d.t.Fatalf("start %s: %v\n%s", d.name, err, d.log.tail(40))
	}
}

const startTimeout = 30 * time.Second

func (d *daemon) tryStart() error {
	args := append([]string{"up", "-o", "json", "--home", d.home, "--listen", d.listen, "--http", "off", "--until-eof"}, d.args...)
	d.cmd = exec.Command(shoalBinary, args...)
	d.cmd.Stderr = d.log
	d.cmd.Env = cleanEnv()
	// The daemon ends when this pipe does: also if the test binary is killed.
	in, err := d.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	children.add(d.cmd)
	d.stdin, d.ended = in, make(chan struct{})
	timer := time.AfterFunc(startTimeout, func() { _ = d.cmd.Process.Kill() })
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	timer.Stop()
	d.wallMS = float64(time.Since(began).Microseconds()) / 1000
	cmd, ended := d.cmd, d.ended
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait()
		children.remove(cmd)
	}()
	if err != nil {
		_ = d.cmd.Process.Kill()
		<-ended
		return errors.New("no ready line: " + d.cmd.ProcessState.String())
	}
	if err := json.Unmarshal(line, &d.ready); err != nil {
		return err
	}
	d.listen = "127.0.0.1:" + udpPort(d.ready.Addrs)
	return nil
}

// udpPort finds the port of the first QUIC address.
func udpPort(addrs []string) string {
	for _, a := range addrs {
		if _, rest, ok := strings.Cut(a, "/udp/"); ok {
			port, _, _ := strings.Cut(rest, "/")
			return port
		}
	}
	return "0"
}

// kill is `kill -9`; it returns when the process has ended.
func (d *daemon) kill() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.ended
	d.stdin.Close()
	d.cmd = nil
}

// stop ends the daemon in order and returns its exit code.
func (d *daemon) stop() int {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(20 * time.Second):
		d.t.Errorf("%s does not stop within 20 s; killed", d.name)
		d.kill()
		return -1
	}
	code := d.cmd.ProcessState.ExitCode()
	d.stdin.Close()
	d.cmd = nil
	return code
}

// join has d join the mesh of other, now and at later starts.
func (d *daemon) join(other *daemon) {
	d.t.Helper()
	for _, addr := range other.ready.Addrs {
		if strings.Contains(addr, "/127.0.0.1/udp/") {
			if _, err := d.node.Join(ctxFor(d.t, 20*time.Second), connect.NewRequest(&shoalv1.JoinRequest{Target: addr})); err != nil {
				d.t.Fatalf("%s joins %s: %v", d.name, other.name, err)
			}
			d.args = append(d.args, "--join", addr)
			return
		}
	}
	d.t.Fatalf("%s has no loopback address: %q", other.name, other.ready.Addrs)
}

func (d *daemon) tasksOpen(ctx context.Context) (int, error) {
	s, err := d.node.Status(ctx, connect.NewRequest(&shoalv1.StatusRequest{}))
	if err != nil {
		return 0, err
	}
	return int(s.Msg.GetTasksOpen()), nil
}

// cli runs the command line against a home and returns what it printed and its exit code.
func cli(t *testing.T, home string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return runCLI(t, append(cleanEnv(), "SHOAL_HOME="+home), args...)
}

func runCLI(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shoalBinary, args...)
	cmd.Env = env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	children.add(cmd)
	defer children.remove(cmd)
	err := cmd.Wait()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatalf("shoal %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cleanEnv is the environment without what would point a command at another daemon.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SHOAL_") && !strings.HasPrefix(kv, "OTEL_") {
			env = append(env, kv)
		}
	}
	return env
}

func ctxFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually asks again until ok, for at most d.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	if !within(d, ok) {
		t.Fatalf("not within %s: %s", d, what)
	}
}

func within(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// logLines keeps what daemons write to stderr.
type logLines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

// mark is a place in the log; since returns what was written after it.
func (l *logLines) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Len()
}

func (l *logLines) since(mark int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all.Bytes()[mark:])
}

func (l *logLines) tail(n int) string {
	lines := strings.Split(strings.TrimRight(l.since(0), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
