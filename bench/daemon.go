package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// binary returns the shoal to be measured: SHOAL_BIN, else one that is built now.
func (b *bench) binary(ctx context.Context) (string, error) {
	if bin := os.Getenv("SHOAL_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	bin := b.path("shoal")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/shoal")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shoal: %w\n%s", err, out)
	}
	return bin, nil
}

// daemon is a running shoal.
type daemon struct {
	home  string
	ready readyLine
	took  time.Duration // spawn to the ready line
	pid   int           // 0: it runs in this process
	stop  func() error
}

// readyLine is the first line of `shoal up -o json`.
type readyLine struct {
	DID     string   `json:"did"`
	PeerID  string   `json:"peer_id"`
	Addrs   []string `json:"addrs"`
	Socket  string   `json:"socket"`
	ReadyMS float64  `json:"ready_ms"`
}

// up starts a daemon with shipped defaults, on a free port and without the HTTP port,
// since two cannot share that.
func (b *bench) up(ctx context.Context, home string, join ...string) (*daemon, error) {
	if b.prof != "" {
		return upHere(ctx, home, join)
	}
	args := []string{"up", "--home", home, "--listen", "127.0.0.1:0", "--http", "off", "-o", "json"}
	for _, j := range join {
		args = append(args, "--join", j)
	}
	cmd := exec.Command(b.bin, args...)
	log := &tail{}
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{home: home, pid: cmd.Process.Pid}
	d.stop = sync.OnceValue(func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		return cmd.Wait()
	})
	r := bufio.NewReader(out)
	line, err := r.ReadBytes('\n')
	d.took = time.Since(began)
	if err == nil {
		err = json.Unmarshal(line, &d.ready)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("daemon in %s did not come up: %w\n%s", home, err, log), d.stop())
	}
	go func() { _, _ = io.Copy(io.Discard, r) }() // ends with the daemon
	return d, nil
}

// tail keeps the end of what a daemon says on stderr.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-8<<10):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// pair is two joined daemons; work goes from a to b.
type pair struct{ a, b *daemon }

func (p *pair) stop() error {
	var errs []error
	for _, d := range []*daemon{p.a, p.b} {
		if d != nil {
			errs = append(errs, d.stop())
		}
	}
	return errors.Join(errs...)
}

func (b *bench) startPair(ctx context.Context) (_ *pair, err error) {
	p := &pair{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	if p.a, err = b.up(ctx, b.path("a")); err != nil {
		return nil, err
	}
	if p.b, err = b.up(ctx, b.path("b"), p.a.ready.Addrs...); err != nil {
		return nil, err
	}
	api := dialAPI(p.a.ready.Socket)
	defer api.close()
	return p, until(ctx, 20*time.Second, "the daemons did not join", func() (bool, error) {
		resp, err := api.node.Peers(ctx, connect.NewRequest(&shoalv1.PeersRequest{}))
		return err == nil && len(resp.Msg.GetPeers()) > 0, err
	})
}

// until asks again and again whether something is so.
func until(ctx context.Context, patience time.Duration, complaint string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New(complaint), err)
		case <-tick.C:
		}
	}
}

// cpu is the user and system time that a daemon has used; 0 where /proc is missing.
func (d *daemon) cpu() time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
}

// rssMB is the resident memory of a daemon; 0 where /proc is missing.
func (d *daemon) rssMB() float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb * 1024 / 1e6
		}
	}
	return 0
}
