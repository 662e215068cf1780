package node

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/shoalmesh/shoal"
)

// maxSocketPath is what a unix socket's address holds on every system we build for.
const maxSocketPath = 100

// openHome makes the data dir, or checks that only its owner can look into it.
func openHome(home string) error {
	if !filepath.IsAbs(home) {
		return shoal.NewError(shoal.Invalid, "bad_home", "the home directory "+home+" is not an absolute path", "give --home an absolute path")
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return fmt.Errorf("make data dir: %w", err)
	}
	fi, err := os.Stat(home)
	if err != nil {
		return fmt.Errorf("look at data dir: %w", err)
	}
	if !fi.IsDir() {
		return shoal.NewError(shoal.Invalid, "bad_home", home+" is not a directory", "give --home a directory")
	}
	if wide := fi.Mode().Perm() & 0o077; wide != 0 && modesCount {
		return shoal.NewError(shoal.Denied, "home_too_open", fmt.Sprintf("others may look into %s (mode %04o)", home, fi.Mode().Perm()),
			"run: chmod 700 "+home)
	}
	return nil
}

// socketPath returns where the socket of a data dir is, and remembers it in home/socket
// when the path would be too long for a socket's address.
func socketPath(home, runtimeDir string) (string, error) {
	pointer := filepath.Join(home, "socket")
	path := filepath.Join(home, "shoal.sock")
	if len(path) <= maxSocketPath {
		if err := os.Remove(pointer); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		return path, nil
	}
	if runtimeDir == "" {
		runtimeDir = os.TempDir()
	}
	dir, err := os.MkdirTemp(runtimeDir, "shoal-")
	if err != nil {
		return "", fmt.Errorf("make socket dir: %w", err)
	}
	path = filepath.Join(dir, "shoal.sock")
	if len(path) > maxSocketPath {
		return "", shoal.NewError(shoal.Invalid, "socket_path_too_long", "the socket path "+path+" is too long", "set XDG_RUNTIME_DIR to a short directory, or use a shorter --home")
	}
	return path, os.WriteFile(pointer, []byte(path+"\n"), 0o600)
}

// listenUnix opens the API socket, 0600. The store's lock says that no other daemon uses
// the data dir, so a socket file that is there was left by a crash.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // removeSocket does it, last
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close() // the listener is of no use
		return nil, fmt.Errorf("close socket to others: %w", err)
	}
	return l, nil
}

// removeSocket removes the socket, and its directory if that is not the data dir. It is
// the last thing a daemon does: `shoal down` waits for it, and then the data dir is free.
func removeSocket(path, home string) error {
	err := ignoreNotExist(os.Remove(path))
	if dir := filepath.Dir(path); err == nil && dir != home {
		err = ignoreNotExist(os.Remove(dir))
	}
	return err
}

// listenHTTP opens the loopback HTTP port. want is the flag or config value ("" if
// none), kept the port of an earlier start. Without a wish, a busy port gives way to a
// free one, which is then kept.
func listenHTTP(want, kept string) (net.Listener, error) {
	addr := want
	if addr == "" {
		addr = kept
	}
	if addr == "" {
		addr = defaultHTTP
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, shoal.NewError(shoal.Invalid, "bad_http_addr", "the HTTP address "+addr+" is not HOST:PORT", "use 127.0.0.1:7420, 127.0.0.1:0 or off")
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, shoal.NewError(shoal.Denied, "http_not_loopback", "the HTTP address "+addr+" is not on loopback",
			"bind to 127.0.0.1; put a TLS proxy in front to reach it from elsewhere")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil && want == "" && isBusy(err) {
		l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", "0"))
	}
	if err != nil {
		if isBusy(err) {
			return nil, shoal.NewError(shoal.Conflict, "port_taken", "the HTTP port "+addr+" is taken", "choose another with --http, or --http off").Because(err)
		}
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// isBusy reports whether err says that an address is in use. The mesh wraps the cause in
// text, so the text counts, too.
func isBusy(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "address already in use") || strings.Contains(err.Error(), "Only one usage of each socket address"))
}

// hasData reports whether a data dir holds a database: its key must then be there, too.
func hasData(home string) (bool, error) {
	_, err := os.Stat(filepath.Join(home, "shoal.db"))
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, ignoreNotExist(err)
}

func ignoreNotExist(err error) error {
	if os.IsNotExist(err) || err == nil {
		return nil
	}
	return err
}

// readSecret reads a file that must be readable by its owner only, without its last
// line break.
func readSecret(path string) ([]byte, error) {
	raw, err := readPrivate(path)
	return bytes.TrimRight(raw, "\r\n"), err
}

// pskSize is what the mesh asks of a pre-shared key, in bytes.
const pskSize = 32

// readPSK reads a secret whose bytes may be any: a line break is part of the key if the
// key is complete only with it.
func readPSK(path string) ([]byte, error) {
	raw, err := readPrivate(path)
	if len(raw) == pskSize {
		return raw, err
	}
	return bytes.TrimRight(raw, "\r\n"), err
}

func readPrivate(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, shoal.NewError(shoal.NotFound, "no_secret_file", "the secret file "+path+" cannot be read", "create it, mode 0600").Because(err)
	}
	if fi.Mode().Perm()&0o077 != 0 && modesCount || fi.Mode()&fs.ModeType != 0 {
		return nil, shoal.NewError(shoal.Denied, "secret_too_open", "others may read the secret file "+path, "run: chmod 600 "+path)
	}
	return os.ReadFile(path)
}
