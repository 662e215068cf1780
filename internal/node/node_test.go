package node

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// start runs a node on loopback until the test ends, or stop is called.
func start(t *testing.T, o Options) (r Ready, stop func() error) {
	t.Helper()
	if o.Home == "" {
		o.Home = filepath.Join(t.TempDir(), "h")
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.HTTP == "" {
		o.HTTP = "off"
	}
	ctx, cancel := context.WithCancel(context.Background())
	up, ended := make(chan Ready, 1), make(chan error, 1)
	go func() { ended <- Run(ctx, "test", o, func(r Ready) { up <- r }) }()
	select {
	case r = <-up:
	case err := <-ended:
		cancel()
		t.Fatalf("node did not start: %v", err)
	}
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("node did not stop in order: %v", err)
		}
	})
	return r, stop
}

// refused starts a node that must not come up and returns why.
func refused(t *testing.T, o Options) *shoal.Error {
	t.Helper()
	err := Run(context.Background(), "test", o, func(Ready) { t.Error("the node came up") })
	if err == nil {
		t.Fatal("no error")
	}
	return shoal.AsError(err)
}

// Two nodes, an agent on one, a task from the other; then a restart, and all is there.
func TestTwoNodesDoATaskAndRemember(t *testing.T) {
	aHome := filepath.Join(t.TempDir(), "a")
	a, stopA := start(t, Options{Home: aHome})
	b, _ := start(t, Options{Join: a.Addrs})

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	attached := make(chan string, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	wg.Go(func() {
		_ = agent.Run(work, agent.Config{Socket: b.Socket, Name: "echo", Skills: []shoal.Skill{{ID: "echo"}}, OnReady: func(did string) { attached <- did }},
			func(_ context.Context, task *agent.Task, w *agent.Writer) error {
				_, err := w.WriteString("heard " + task.Text())
				return err
			})
	})
	did := <-attached

	client, err := agent.Dial(a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, live := range []bool{false, true} {
		res, err := client.Send(ctx, agent.Request{To: did, Skill: "echo", Text: "you", Key: map[bool]string{false: "k1", true: "k2"}[live], Live: live})
		if err != nil || res.Text != "heard you" {
			t.Fatalf("live %v: %+v, %v", live, res, err)
		}
	}
	found, err := client.Find(ctx, "echo")
	if err != nil || len(found) != 1 || string(found[0].DID) != did {
		t.Fatalf("find: %+v, %v", found, err)
	}
	client.Close()
	if err := stopA(); err != nil {
		t.Fatal(err)
	}

	again, _ := start(t, Options{Home: aHome})
	if again.DID != a.DID {
		t.Fatalf("the node has another identity after a restart: %s", again.DID)
	}
	client, err = agent.Dial(again.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// The same key is the same task, answered from the disk.
	res, err := client.Send(ctx, agent.Request{To: did, Skill: "echo", Text: "you", Key: "k1"})
	if err != nil || res.Text != "heard you" {
		t.Fatalf("after the restart: %+v, %v", res, err)
	}
}

func TestRefusesToStart(t *testing.T) {
	home := func(prepare func(dir string) error) Options {
		dir := filepath.Join(t.TempDir(), "h")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if prepare != nil {
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
		}
		return Options{Home: dir, Listen: "127.0.0.1:0", HTTP: "off"}
	}
	write := func(name, content string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600) }
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	with := func(o Options, change func(*Options)) Options { change(&o); return o }

	for _, c := range []struct {
		name   string
		o      Options
		reason string
	}{
		{"relative home", Options{Home: "x"}, "bad_home"},
		{"others may look in", home(func(d string) error { return os.Chmod(d, 0o755) }), "home_too_open"},
		{"unknown config key", home(write("config.toml", "netwrok = \"x\"\n")), "bad_config"},
		{"config of the wrong type", home(write("config.toml", "join = 5\n")), "bad_config"},
		{"config with a bad duration", home(write("config.toml", "task_timeout = \"-5m\"\n")), "bad_config"},
		{"config file missing", with(home(nil), func(o *Options) { o.ConfigFile = "/nonexistent.toml" }), "no_config"},
		{"network with a slash", home(write("config.toml", "network = \"a/b\"\n")), "bad_network"},
		{"unknown log level", with(home(nil), func(o *Options) { o.LogLevel = "loud" }), "bad_log_level"},
		{"HTTP beyond loopback", with(home(nil), func(o *Options) { o.HTTP = "0.0.0.0:0" }), "http_not_loopback"},
		{"HTTP address without port", with(home(nil), func(o *Options) { o.HTTP = "localhost" }), "bad_http_addr"},
		{"HTTP port taken", with(home(nil), func(o *Options) { o.HTTP = busy.Addr().String() }), "port_taken"},
		{"database is junk", home(write("shoal.db", "junk junk junk")), "db_corrupt"},
		{"passphrase file missing", with(home(nil), func(o *Options) { o.PassphraseFile = "/nonexistent" }), "no_secret_file"},
		{"join target is junk", with(home(nil), func(o *Options) { o.Join = []string{"shoal:???"} }), ""},
	} {
		e := refused(t, c.o)
		if c.reason != "" && e.Reason != c.reason || e.Hint == "" || e.Kind == shoal.Internal {
			t.Errorf("%s: %v (%s, hint %q), want %s", c.name, e, e.Reason, e.Hint, c.reason)
		}
	}
}

// A key that is gone or was swapped beside existing data is an error, never a new identity.
func TestNeverANewIdentityOverOldData(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	_, stop := start(t, Options{Home: home})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(home, "keys", "node.key")
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "o")
	_, stop = start(t, Options{Home: other})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other, "keys", "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{"gone": nil, "empty": {}, "flipped": flipped, "cut": good[:len(good)-5], "swapped": foreign} {
		if content == nil {
			err = os.Remove(key)
		} else {
			err = os.WriteFile(key, content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if e := refused(t, Options{Home: home, Listen: "127.0.0.1:0", HTTP: "off"}); e.Kind != shoal.Corrupt {
			t.Errorf("%s: %v (%s)", name, e, e.Kind)
		}
	}
	if err := os.WriteFile(key, good, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, Options{Home: home})
}

func TestSecondDaemonIsRefused(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	start(t, Options{Home: home})
	if e := refused(t, Options{Home: home, Listen: "127.0.0.1:0", HTTP: "off"}); e.Reason != "data_dir_locked" {
		t.Errorf("%v", e)
	}
}

func TestBusyPortGivesWayAtFirstStart(t *testing.T) {
	l, err := listenHTTP("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := listenHTTP("", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Addr().String() == l.Addr().String() {
		t.Error("two listeners on one port")
	}
}

func TestLongHomeMovesTheSocket(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	r, stop := start(t, Options{Home: home})
	if len(r.Socket) > maxSocketPath {
		t.Errorf("socket path %s is too long", r.Socket)
	}
	client, err := agent.Dial(home)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Find(context.Background(), "nothing"); err != nil {
		t.Errorf("call over the moved socket: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestRestoreTakesOnlyBackups(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	r, _ := start(t, Options{Home: home})
	file := filepath.Join(t.TempDir(), "b.tar")
	n := backupOf(t, home, file)
	if fi, err := os.Stat(file); err != nil || fi.Size() != n || fi.Mode().Perm() != 0o600 {
		t.Fatalf("backup: %v %v, want %d bytes", fi, err, n)
	}
	control := filepath.Join(t.TempDir(), "new")
	if err := Restore(file, control); err != nil {
		t.Fatal(err)
	}
	again, _ := start(t, Options{Home: control})
	if again.DID != r.DID {
		t.Errorf("restored node is %s, want %s", again.DID, r.DID)
	}
	if e := shoal.AsError(Restore(file, control)); e == nil || e.Reason != "home_not_empty" {
		t.Errorf("restore over a node: %v", e)
	}

	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	forged := map[string][]byte{
		"empty":   {},
		"cut":     raw[:len(raw)/2],
		"no mark": rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool { return h.Name != backupMark }),
		"version 2": rewrite(t, raw, func(h *tar.Header, b *[]byte) bool {
			if h.Name == backupMark {
				*b = []byte("2\n")
			}
			return true
		}),
		"path up": rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool {
			if h.Name == "keys/node.key" {
				h.Name = "keys/../../x"
			}
			return true
		}),
		"absolute": rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool {
			if h.Name == "keys/node.key" {
				h.Name = "/tmp/x"
			}
			return true
		}),
		"symlink": rewrite(t, raw, func(h *tar.Header, b *[]byte) bool {
			if h.Name == "keys/node.key" {
				h.Typeflag, h.Linkname, *b = tar.TypeSymlink, "/etc/passwd", nil
			}
			return true
		}),
		"no key": rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool { return h.Name != "keys/node.key" }),
		"no db":  rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool { return h.Name != "shoal.db" }),
		"junk db": rewrite(t, raw, func(h *tar.Header, b *[]byte) bool {
			if h.Name == "shoal.db" {
				*b = bytes.Repeat([]byte("x"), 8192)
			}
			return true
		}),
		"more": rewrite(t, raw, func(h *tar.Header, _ *[]byte) bool {
			if h.Name == "shoal.db" {
				h.Name = "config.toml"
			}
			return true
		}),
	}
	for name, content := range forged {
		bad := filepath.Join(t.TempDir(), "bad.tar")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "h")
		err := Restore(bad, dir)
		if shoal.KindOf(err) != shoal.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
		if has, _ := hasData(dir); has {
			t.Errorf("%s: left a database", name)
		}
	}
	t.Logf("taken 0 of %d forged backups, 1 of 1 control", len(forged))
}

func backupOf(t *testing.T, home, file string) int64 {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(home, "shoal.sock"))
	}}
	defer transport.CloseIdleConnections()
	client := shoalv1connect.NewNodeServiceClient(&http.Client{Transport: transport}, "http://localhost")
	res, err := client.Backup(context.Background(), connect.NewRequest(&shoalv1.BackupRequest{Path: file}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetBytes()
}

// rewrite makes a tar anew with one change.
func rewrite(t *testing.T, raw []byte, change func(*tar.Header, *[]byte) bool) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !change(h, &body) {
			continue
		}
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSpansReachAConfiguredExporter(t *testing.T) {
	var posts, bytesIn atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/v1/traces" && bytes.Contains(raw, []byte("task.submit")) {
			posts.Add(1)
		}
		bytesIn.Add(int64(len(raw)))
	}))
	defer collector.Close()
	home := filepath.Join(t.TempDir(), "h")
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte("otlp_endpoint = \""+collector.URL+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, stop := start(t, Options{Home: home})
	client, err := agent.Dial(r.Socket)
	if err != nil {
		t.Fatal(err)
	}
	// To a stranger: the task stays on its way, but it was submitted.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = client.Send(ctx, agent.Request{To: "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK", Text: "x"})
	client.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if posts.Load() == 0 {
		t.Errorf("no span of the task reached the exporter (%d bytes did)", bytesIn.Load())
	}
}

func TestPartsStopInReverseOrder(t *testing.T) {
	var mu sync.Mutex
	var stopped []string
	p := func(name string, err error) part {
		return part{name, func(ctx context.Context) error {
			if err != nil {
				return err
			}
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			stopped = append(stopped, name)
			return nil
		}}
	}
	err := runAll(context.Background(), []part{p("a", nil), p("b", nil), p("c", errors.New("broke")), p("d", nil)})
	if err == nil || err.Error() != "c: broke" {
		t.Errorf("got %v, want c: broke", err)
	}
	if got := strings.Join(stopped, ""); got != "dba" {
		t.Errorf("stopped in order %q, want dba", got)
	}
}

func TestLogsFollow(t *testing.T) {
	b := newLogBook(nil)
	for i := range maxLogLines + 10 {
		if _, err := b.Write([]byte(strings.Repeat("x", i%7) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := b.Logs(context.Background(), 5, false, func(string) error { n++; return nil }); err != nil || n != 5 {
		t.Errorf("%d lines, %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan string, 10)
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Logs(ctx, 1, true, func(l string) error { got <- l; return nil }) })
	<-got
	_, _ = b.Write([]byte("new\n"))
	if l := <-got; l != "new" {
		t.Errorf("followed %q", l)
	}
	cancel()
	wg.Wait()
}
