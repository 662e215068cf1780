package agent

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
)

const (
	socketName  = "shoal.sock"
	pointerName = "socket" // in the home: the socket's real path, when that is elsewhere

	// maxSocketPath is the shortest sun_path among the systems we run on (macOS: 104
	// bytes with the final zero).
	maxSocketPath = 103

	// maxPointer bounds what is read from the pointer file.
	maxPointer = 4096

	// baseURL names the daemon to the HTTP client; the dialer ignores it. "localhost"
	// passes the daemon's Host check.
	baseURL = "http://localhost"

	// Connections that are kept for the next calls.
	maxIdle  = 64
	idleTime = 90 * time.Second

	// maxReply bounds one message from the daemon: the largest task with its history.
	maxReply = 16 << 20
)

// place says where the daemon's socket is. It is looked up at each dial, since a
// restarted daemon may have another one.
type place struct {
	home   string // "" if socket is set
	socket string
}

// parsePlace tells a home from a socket: what exists decides, then the name.
func parsePlace(s string) (place, error) {
	if s == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return place{}, shoal.NewError(shoal.Invalid, "no_home", "the user has no home directory",
				"give the daemon's home or socket").Because(err)
		}
		return place{home: filepath.Join(user, ".shoal")}, nil
	}
	info, err := os.Stat(s)
	isSocket := strings.HasSuffix(s, ".sock")
	if err == nil {
		isSocket = !info.IsDir()
	}
	if isSocket {
		return place{socket: s}, checkSocketPath(s)
	}
	return place{home: s}, nil
}

// path returns the socket's path as it is now.
func (p place) path() string {
	if p.socket != "" {
		return p.socket
	}
	if f, err := os.Open(filepath.Join(p.home, pointerName)); err == nil {
		defer f.Close()
		buf := make([]byte, maxPointer)
		n, _ := f.Read(buf)
		if real := strings.TrimSpace(string(buf[:n])); filepath.IsAbs(real) {
			return real
		}
	}
	return filepath.Join(p.home, socketName)
}

func checkSocketPath(s string) error {
	if len(s) > maxSocketPath {
		return shoal.NewError(shoal.Invalid, "bad_socket", "the socket's path is too long",
			"use a home with a shorter path")
	}
	return nil
}

// transports are the ways to the socket. A call by HTTP/1.1 costs two thirds of one by
// HTTP/2, so only ReportStream, which needs both directions at once, goes by the latter.
type transports struct{ calls, duplex *http.Transport }

func (t transports) close() {
	t.calls.CloseIdleConnections()
	t.duplex.CloseIdleConnections()
}

func (p place) transports() transports {
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path := p.path()
		if err := checkSocketPath(path); err != nil {
			return nil, err
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return transports{
		calls: &http.Transport{
			DialContext: dial, Protocols: &h1, DisableCompression: true,
			MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleTime,
		},
		duplex: &http.Transport{
			DialContext: dial, Protocols: &h2, DisableCompression: true,
			HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 20},
		},
	}
}

// callOptions are those of every client: compression costs more than a local socket.
func callOptions() []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(maxReply),
	}
}
