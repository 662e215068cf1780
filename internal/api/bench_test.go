package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// What a local call costs, beside its floors: a bare HTTP exchange of the same bytes on
// the same kind of connection, and a ping-pong of bytes on a socket.

func benchUnary(b *testing.B, unix, h2 bool, opts ...connect.ClientOption) {
	r := start(b, &fake{}, nil)
	c := r.clients(r.http(unix, h2), opts...)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.worker.Heartbeat(ctx, connect.NewRequest(&shoalv1.HeartbeatRequest{Session: "sess"})); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnaryUnixH1(b *testing.B)     { benchUnary(b, true, false) }
func BenchmarkUnaryUnixH2C(b *testing.B)    { benchUnary(b, true, true) }
func BenchmarkUnaryUnixGRPC(b *testing.B)   { benchUnary(b, true, true, connect.WithGRPC()) }
func BenchmarkUnaryUnixJSON(b *testing.B)   { benchUnary(b, true, false, connect.WithProtoJSON()) }
func BenchmarkUnaryTCPH1Token(b *testing.B) { benchUnary(b, false, false) }

// BenchmarkSendUnixH1 is a task of 1 KiB with a service that does nothing.
func BenchmarkSendUnixH1(b *testing.B) {
	r := start(b, &fake{}, nil)
	c := r.clients(r.http(true, false))
	body := text(string(make([]byte, 1024)))
	for b.Loop() {
		body.MessageId = ""
		if _, err := c.tasks.Send(context.Background(), connect.NewRequest(&shoalv1.SendRequest{To: "alice", Message: body})); err != nil {
			b.Fatal(err)
		}
		r.fake.requests = nil
	}
}

// BenchmarkReportStream is one durable report and its answer on an open stream.
func BenchmarkReportStream(b *testing.B) {
	r := start(b, &fake{}, nil)
	stream := r.clients(r.http(true, true)).worker.ReportStream(context.Background())
	report := completed("t1")
	for b.Loop() {
		if err := stream.Send(report); err != nil {
			b.Fatal(err)
		}
		if _, err := stream.Receive(); err != nil {
			b.Fatal(err)
		}
		r.fake.reports = nil
	}
	_ = stream.CloseRequest()
	_ = stream.CloseResponse()
}

// BenchmarkPost is a letter, many outstanding, with a store that does nothing.
func BenchmarkPost(b *testing.B) {
	r := start(b, &fake{}, nil)
	stream := r.clients(r.http(true, true)).mail.Post(context.Background())
	body := make([]byte, 1024)
	window := make(chan struct{}, 128)
	done := make(chan error, 1)
	go func() {
		for {
			resp, err := stream.Receive()
			if err != nil {
				done <- err
				return
			}
			if resp.GetState() == "delivered" {
				<-window
			}
		}
	}()
	for b.Loop() {
		window <- struct{}{}
		if err := stream.Send(&shoalv1.PostRequest{To: string(bob), Body: body}); err != nil {
			b.Fatal(err)
		}
	}
	_ = stream.CloseRequest()
	if err := <-done; !errors.Is(err, io.EOF) {
		b.Fatal(err)
	}
	_ = stream.CloseResponse()
}

func benchFloor(b *testing.B, h2 bool) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write([]byte("{}"))
	})}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	r := &running{t: b, socket: l.Addr().String()}
	hc := r.http(true, h2)
	for b.Loop() {
		if code, _ := r.post(b, hc, "localhost/", "application/proto", []byte("sess")); code != 200 {
			b.Fatal(code)
		}
	}
}

func BenchmarkFloorHTTPUnixH1(b *testing.B)  { benchFloor(b, false) }
func BenchmarkFloorHTTPUnixH2C(b *testing.B) { benchFloor(b, true) }

func BenchmarkFloorSocket(b *testing.B) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 200)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}
