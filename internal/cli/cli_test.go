package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
)

var update = flag.Bool("update", false, "rewrite golden files")

// beShoal in the environment makes the test binary the shoal command, for what starts
// itself again: up -d.
const beShoal = "SHOAL_TEST_BE_SHOAL"

func TestMain(m *testing.M) {
	if os.Getenv(beShoal) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, fakeDaemon())
		stop()
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// fakeDaemon runs a fake API instead of a node.
func fakeDaemon() Daemon {
	return Daemon{
		Version: "v0.test",
		Run: func(ctx context.Context, o UpOptions, ready func(Ready)) error {
			if o.Listen == "127.0.0.1:1" {
				fmt.Fprintln(o.Log, "level=ERROR msg=\"cannot listen\"")
				return shoal.NewError(shoal.Conflict, "port_taken", "the mesh port 127.0.0.1:1 is taken", "choose another with --listen")
			}
			if o.Listen == "127.0.0.1:2" {
				<-ctx.Done()
				return ctx.Err()
			}
			f, err := serveFake(o.Home)
			if err != nil {
				return err
			}
			defer f.stop()
			ready(Ready{
				DID: string(didOf(nodeKey)), PeerID: string(peerOf(nodeKey)), Addrs: []string{"/ip4/127.0.0.1/tcp/4420/p2p/" + string(peerOf(nodeKey))},
				HTTP: o.HTTP, Socket: socketPath(o.Home), ReadyMS: 12.5,
			})
			fmt.Fprintf(o.Log, "level=INFO msg=options listen=%q http=%q join=%q token=%v log=%q\n", o.Listen, o.HTTP, o.Join, o.RequireToken, o.LogLevel)
			for ctx.Err() == nil && exists(socketPath(o.Home)) {
				time.Sleep(time.Millisecond)
			}
			return nil
		},
		Restore: func(file, home string) error {
			if strings.HasSuffix(file, "bad.backup") {
				return shoal.NewError(shoal.Corrupt, "bad_backup", file+" is damaged", "use another")
			}
			return os.WriteFile(filepath.Join(home, "restored"), nil, 0o600)
		},
	}
}

// TestScripts runs testdata/*.txtar. "shoal [CODE] ARGS" runs the command in this
// process, with $SHOAL_HOME/shoal.sock served by the fake API unless the script began
// with "nodaemon", and checks its exit code, 0 if none is given.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			home, err := os.MkdirTemp("", "shoal")
			if err != nil {
				return err
			}
			f, err := serveFake(home)
			if err != nil {
				return err
			}
			env.Defer(func() { f.stop(); os.RemoveAll(home) })
			env.Values["fake"] = f
			env.Setenv("SHOAL_HOME", home)
			env.Setenv("POET", string(didOf(poetKey)))
			env.Setenv("TAILOR", string(didOf(tailorKey)))
			env.Setenv("NODE", string(didOf(nodeKey)))
			env.Setenv("NODEPEER", string(peerOf(nodeKey)))
			env.Setenv("POETPEER", string(peerOf(poetKey)))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"shoal":   shoalScript,
			"stdin-":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv("STDIN", ts.ReadFile(args[0])) },
			"control": controlFree,
			"sent":    sentScript,
			"big": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.Atoi(args[1])
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.Repeat([]byte("x"), n), 0o600))
			},
		},
	})
}

func shoalScript(ts *testscript.TestScript, neg bool, args []string) {
	want := exitOK
	if len(args) > 0 && len(args[0]) == 1 && args[0] >= "0" && args[0] <= "7" {
		want, args = int(args[0][0]-'0'), args[1:]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var stdin io.Reader = strings.NewReader(ts.Getenv("STDIN"))
	code := run(ctx, args, stdin, ts.Stdout(), ts.Stderr(), fakeDaemon(), ts.Getenv)
	if neg || code != want {
		ts.Fatalf("shoal %s: exit code %d, want %d", strings.Join(args, " "), code, want)
	}
}

// controlFree fails if the last stdout or stderr holds anything a terminal would obey.
func controlFree(ts *testscript.TestScript, _ bool, _ []string) {
	for _, name := range []string{"stdout", "stderr"} {
		for i, r := range ts.ReadFile(name) {
			if hostile(r, true) {
				ts.Fatalf("%s has %q at %d", name, r, i)
			}
		}
	}
}

// sentScript checks a field of the last SendRequest.
func sentScript(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value("fake").(*fakeAPI)
	f.mu.Lock()
	defer f.mu.Unlock()
	got := string(protoJSON(f.last))
	if strings.Contains(got, args[0]) == neg {
		ts.Fatalf("sent %s, want %s", got, args[0])
	}
}

// brokenPipe fails like stdout on a full disk.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestFullDiskBehindStdoutIsAnError(t *testing.T) {
	f := newFake(t)
	var stderr bytes.Buffer
	for _, args := range [][]string{{"invite"}, {"status"}, {"peers", "-o", "json"}, {"version"}, {"task", "send", "--to", "poet", "x", "--stream"}} {
		stderr.Reset()
		code := run(t.Context(), append(args, "--home", f.home), strings.NewReader(""), brokenPipe{}, &stderr, fakeDaemon(), func(string) string { return "" })
		if code != exitFailed || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%v: exit code %d, stderr %q; want 1 and the cause", args, code, stderr.String())
		}
	}
}

func TestInterruptedWatchSaysThatTheTaskGoesOn(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	// The fake's slow task shows two states, then nothing: ctrl-C comes with the second.
	out := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("WORKING")) {
			cancel()
		}
		return len(p), nil
	})
	f.mu.Lock()
	id := f.add("slow").id
	f.mu.Unlock()
	code := run(ctx, []string{"task", "watch", id, "--home", f.home}, strings.NewReader(""), out, &stderr, fakeDaemon(), func(string) string { return "" })
	if code != exitFailed || !strings.Contains(stderr.String(), "the task goes on") {
		t.Errorf("exit code %d, stderr %q; want 1 and that the task goes on", code, stderr.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
