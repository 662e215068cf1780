package cli

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// client speaks to one daemon.
type client struct {
	node   shoalv1connect.NodeServiceClient
	agents shoalv1connect.AgentServiceClient
	tasks  shoalv1connect.TaskServiceClient
}

// dial returns a client of the daemon of --home. It does not connect yet.
func (a *app) dial() (*client, error) {
	home, err := a.homeDir()
	if err != nil {
		return nil, err
	}
	return newClient(home), nil
}

func newClient(home string) *client {
	transport := &http.Transport{
		// One process makes few calls, so nothing is kept or compressed.
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", socketPath(home))
			if err != nil && ctx.Err() == nil {
				return nil, notRunning(home, err)
			}
			return conn, err
		},
	}
	hc := &http.Client{Transport: transport}
	const base = "http://localhost" // the socket decides where it goes
	return &client{
		node:   shoalv1connect.NewNodeServiceClient(hc, base),
		agents: shoalv1connect.NewAgentServiceClient(hc, base),
		tasks:  shoalv1connect.NewTaskServiceClient(hc, base),
	}
}

// notRunning explains why nobody answers at the socket of home.
func notRunning(home string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return shoal.NewError(shoal.Denied, "socket_denied", "the daemon's socket in "+home+" belongs to another user",
			"run this as the user who ran `shoal up`")
	}
	hint := "start it with `shoal up`"
	if _, err := os.Stat(home); err != nil {
		hint += ", or name its data directory with --home"
	} else if log := logFile(home); exists(log) {
		hint += "; what it said last is in " + log
	}
	return shoal.NewError(shoal.Unavailable, "daemon_not_running", "no daemon runs in "+home, hint)
}

// homeDir returns the absolute data directory: --home, else SHOAL_HOME, else ~/.shoal.
func (a *app) homeDir() (string, error) {
	dir := a.home
	if dir == "" {
		dir = a.getenv("SHOAL_HOME")
	}
	if dir == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", usage("say where with --home DIR", "there is no home directory: %v", err)
		}
		dir = filepath.Join(user, ".shoal")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", usage("", "data directory %q: %v", dir, err)
	}
	return abs, nil
}

// socketPath is where the daemon of home listens: where $home/socket says, since the
// system limits a socket's path to about 100 bytes, else $home/shoal.sock.
func socketPath(home string) string {
	if moved, err := os.ReadFile(filepath.Join(home, "socket")); err == nil {
		if path := strings.TrimSpace(string(moved)); path != "" {
			return path
		}
	}
	return filepath.Join(home, "shoal.sock")
}

// logFile is where a detached daemon of home writes its log.
func logFile(home string) string { return filepath.Join(home, "shoal.log") }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hangUp ends a stream. Close alone would read on to its end, which may be that of a
// task; what is lost by cancelling first is of no interest any more.
func hangUp(cancel context.CancelFunc, stream interface{ Close() error }) {
	cancel()
	_ = stream.Close()
}
