package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh"
)

const (
	payload    = 1 << 10
	floorFile  = 64 << 20 // preallocated, so that fdatasync writes data only
	floorBlock = 4 << 10
	echoProto  = "/bench/echo/1.0.0"
)

// disk is the floor of a commit: 4 KiB into a preallocated file, then fdatasync.
type disk struct {
	f     *os.File
	block []byte
	at    int64
}

func openDisk(path string) (*disk, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for range floorFile / len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	d := &disk{f: f, block: make([]byte, floorBlock)}
	if _, err := rand.Read(d.block); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, f.Sync()
}

func (d *disk) commit() error {
	if _, err := d.f.WriteAt(d.block, d.at); err != nil {
		return err
	}
	d.at = (d.at + floorBlock) % floorFile
	return fdatasync(d.f)
}

// wire is the floor of the network: two nodes of package mesh over QUIC on loopback,
// which echo. Libp2p's protocol negotiation is lazy there, as it is in the product.
type wire struct {
	client, server *mesh.Mesh
	stop           func()
	conn           net.Conn
	buf            []byte
}

func openWire(ctx context.Context) (*wire, error) {
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(ctx)
	w := &wire{buf: make([]byte, payload)}
	var ends []chan struct{}
	w.stop = func() {
		cancel()
		for _, end := range ends {
			<-end
		}
	}
	start := func() (*mesh.Mesh, error) {
		key, err := identity.Generate()
		if err != nil {
			return nil, err
		}
		listen, err := mesh.ListenAddrs("127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		m, err := mesh.New(mesh.Config{Network: "bench", Listen: listen[:1]}, key, log) // QUIC only
		if err != nil {
			return nil, err
		}
		if m == nil {
			return nil, errors.New("no mesh")
		}
		return m, nil
	}
	var err error
	if w.server, err = start(); err != nil {
		return nil, err
	}
	l, err := w.server.Listen(echoProto)
	if err != nil {
		return nil, err
	}
	go echoStreams(l)
	if w.client, err = start(); err != nil {
		return nil, err
	}
	for _, m := range []*mesh.Mesh{w.server, w.client} {
		if err := m.Bind(); err != nil {
			w.stop()
			return nil, err
		}
		end := make(chan struct{})
		ends = append(ends, end)
		go func() { defer close(end); _ = m.Run(ctx) }()
	}
	if _, err := w.client.Join(ctx, w.server.Addrs()); err != nil {
		w.stop()
		return nil, err
	}
	if w.conn, err = w.client.Dial(ctx, w.server.ID(), echoProto); err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

// echoStreams answers until the listener is closed, which the end of the mesh does.
func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
		}()
	}
}

// rtt is a round trip of 1 KiB on a stream that is open.
func (w *wire) rtt() error { return w.echo(w.conn) }

// newStream is a round trip of 1 KiB on a stream that is opened for it.
func (w *wire) newStream(ctx context.Context) error {
	c, err := w.client.Dial(ctx, w.server.ID(), echoProto)
	if err != nil {
		return err
	}
	return errors.Join(w.echo(c), c.Close())
}

func (w *wire) echo(c net.Conn) error {
	if _, err := c.Write(w.buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, w.buf)
	return err
}

// call is the floor of a local API call: a health check of the daemon, which does nothing.
func (a *api) call(ctx context.Context) error {
	_, err := a.health.CallUnary(ctx, connect.NewRequest(&grpc_health_v1.HealthCheckRequest{}))
	return err
}

// The floor of one hop of a token over the API is half of a round trip of 64 bytes on an
// open Connect stream over a unix socket, to another process that does nothing else.
const (
	echoEnv  = "SHOAL_BENCH_ECHO"
	echoPath = "/bench.v1.Echo/Stream"
	tokenLen = 64
)

type echoStream = connect.BidiStreamForClient[wrapperspb.StringValue, wrapperspb.StringValue]

// serveEcho is the other process; it ends with its stdin.
func serveEcho(sock string) error {
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.Handle(echoPath, connect.NewBidiStreamHandler(echoPath,
		func(_ context.Context, s *connect.BidiStream[wrapperspb.StringValue, wrapperspb.StringValue]) error {
			for {
				m, err := s.Receive()
				if err != nil {
					return nil
				}
				if err := s.Send(m); err != nil {
					return nil
				}
			}
		}))
	srv := &http.Server{Handler: mux, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); srv.Close() }()
	fmt.Println("ready")
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// hop is an open stream to that process.
type hop struct {
	stream *echoStream
	msg    *wrapperspb.StringValue
	stop   func()
}

func (b *bench) openHop(ctx context.Context) (*hop, error) {
	sock := b.path("echo.sock")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), echoEnv+"="+sock)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		return nil, errors.Join(err, in.Close(), cmd.Wait())
	}
	client := connect.NewClient[wrapperspb.StringValue, wrapperspb.StringValue](&http.Client{Transport: unixTransport(sock)}, baseURL+echoPath)
	text := make([]byte, tokenLen)
	for i := range text {
		text[i] = 'x'
	}
	stream := client.CallBidiStream(ctx)
	return &hop{stream, wrapperspb.String(string(text)), func() {
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
		_ = in.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}}, nil
}

func (h *hop) roundTrip() error {
	if err := h.stream.Send(h.msg); err != nil {
		return err
	}
	_, err := h.stream.Receive()
	return err
}
