package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/task"
	"github.com/shoalmesh/shoal/internal/worker"
)

// TestStopEndsStreamsAndFinishesCalls stops a daemon with each kind of stream open and a
// call under way.
func TestStopEndsStreamsAndFinishesCalls(t *testing.T) {
	inCall, release, waiting := make(chan struct{}), make(chan struct{}), make(chan struct{})
	f := &fake{
		watch:  history(1, false),
		attach: func(context.Context, worker.AttachSpec) (Session, error) { return newSession(), nil },
		logs: func(ctx context.Context, _ int, _ bool, emit func(string) error) error {
			if err := emit("x"); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		},
		status: func(context.Context) (Status, error) { close(inCall); <-release; return Status{Agent: own}, nil },
		wait: func(ctx context.Context, _ task.Ref) (task.Task, error) {
			close(waiting)
			<-ctx.Done()
			return task.Task{}, ctx.Err()
		},
	}
	r := start(t, f, nil)
	c := r.clients(r.http(true, true), connect.WithGRPC())
	ctx := testContext(t)

	watch, err1 := c.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: "t1"}))
	attach, err2 := c.worker.Attach(ctx, connect.NewRequest(&shoalv1.AttachRequest{}))
	logs, err3 := c.node.Logs(ctx, connect.NewRequest(&shoalv1.LogsRequest{Follow: true}))
	reports, post := c.worker.ReportStream(ctx), c.mail.Post(ctx)
	err4 := reports.Send(completed("t1"))
	err5 := post.Send(&shoalv1.PostRequest{To: string(bob)})
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	if !watch.Receive() || !attach.Receive() || !logs.Receive() {
		t.Fatal(watch.Err(), attach.Err(), logs.Err())
	}
	if _, err := reports.Receive(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // stored, delivered
		if _, err := post.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	unary := make(chan error, 1)
	go func() {
		_, err := r.clients(r.http(true, false)).node.Status(ctx, connect.NewRequest(&shoalv1.StatusRequest{}))
		unary <- err
	}()
	<-inCall
	sent := make(chan error, 1)
	go func() {
		resp, err := c.tasks.Send(ctx, connect.NewRequest(&shoalv1.SendRequest{To: "alice", Message: text("x"), Wait: true}))
		if err == nil && resp.Msg.GetTask().GetTask().GetId() != "t1" {
			err = errors.New("no task in the answer")
		}
		sent <- err
	}()
	<-waiting

	stopped := make(chan error, 1)
	begun := time.Now()
	go func() { stopped <- r.stop() }()
	for watch.Receive() {
	}
	for attach.Receive() {
	}
	for logs.Receive() {
	}
	_, reportsErr := reports.Receive()
	_, postErr := post.Receive()
	for name, err := range map[string]error{"watch": watch.Err(), "attach": attach.Err(), "logs": logs.Err(), "reports": reportsErr, "post": postErr} {
		if connect.CodeOf(err) != connect.CodeUnavailable || infoOf(t, err).GetReason() != "shutting_down" {
			t.Errorf("%s ended with %v, want shutting_down", name, err)
		}
	}
	if err := <-sent; err != nil {
		t.Errorf("a waiting send: %v, want the task as it is", err)
	}
	close(release)
	if err := <-unary; err != nil {
		t.Errorf("a call under way was cut off: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begun); took > shutdownWait {
		t.Errorf("stopping took %v, want less than %v", took, shutdownWait)
	}
	if _, err := os.Stat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	in := make(chan struct{})
	f := &fake{status: func(ctx context.Context) (Status, error) { close(in); <-ctx.Done(); return Status{}, ctx.Err() }}
	r := start(t, f, nil)
	cut := make(chan error, 1)
	go func() {
		_, err := r.clients(r.http(false, false)).node.Status(context.Background(), connect.NewRequest(&shoalv1.StatusRequest{}))
		cut <- err
	}()
	<-in
	begun := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begun); took < shutdownWait || took > shutdownWait+3*time.Second {
		t.Errorf("stopping took %v, want about %v", took, shutdownWait)
	}
	if err := <-cut; err == nil {
		t.Error("the call that never ends has succeeded")
	}
}

func TestShutdownIsAnsweredFirst(t *testing.T) {
	f := &fake{}
	r := start(t, f, nil)
	ended := make(chan error, 1)
	f.down = func() { go func() { ended <- r.stop() }() }
	if _, err := r.clients(r.http(true, false)).node.Shutdown(testContext(t), connect.NewRequest(&shoalv1.ShutdownRequest{})); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBrokenListenerIsTheError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New(Config{}, services(&fake{}), discard()).Run(testContext(t), nil, l); err == nil || !strings.Contains(err.Error(), "serve") {
		t.Errorf("got %v", err)
	}
}

// TestManyIdleConnectionsKeepNobodyOut fills the places for connections with ones that
// say nothing; the socket answers at once, and HTTP when the first of them leaves.
func TestManyIdleConnectionsKeepNobodyOut(t *testing.T) {
	r := start(t, &fake{}, nil)
	var idle []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	if _, err := r.clients(r.http(true, false)).node.Peers(testContext(t), connect.NewRequest(&shoalv1.PeersRequest{})); err != nil {
		t.Errorf("socket: %v", err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := r.clients(r.http(false, false)).node.Peers(testContext(t), connect.NewRequest(&shoalv1.PeersRequest{}))
		answer <- err
	}()
	idle[0].Close()
	if err := <-answer; err != nil {
		t.Errorf("http: %v", err)
	}
}

func TestMetricsAndProfilesOnTheSocketOnly(t *testing.T) {
	r := start(t, &fake{}, func(c *Config) { c.Metrics = prometheus.NewRegistry() })
	unix, tcp := r.http(true, false), r.http(false, false)
	_, _ = r.clients(unix).tasks.Get(testContext(t), connect.NewRequest(&shoalv1.GetRequest{Id: "nope"}))
	get := func(hc *http.Client, path string) (int, string) {
		resp, err := hc.Get(r.url() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	code, body := get(unix, "/metrics")
	if want := `shoal_api_calls_total{kind="not_found",method="/shoal.v1.TaskService/Get"} 1`; code != 200 || !strings.Contains(body, want) {
		t.Errorf("metrics: %d %s", code, body)
	}
	if code, body := get(unix, "/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("profile: %d %.100s", code, body)
	}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/goroutine"} {
		if code, _ := get(tcp, path); code != 404 {
			t.Errorf("%s over TCP: %d, want 404", path, code)
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	f := &fake{
		status: func(context.Context) (Status, error) { panic("boom") },
		watch:  func(context.Context, task.Ref, uint64, func(task.Event) error) error { panic("boom") },
	}
	r := start(t, f, nil)
	c := r.clients(r.http(true, true))
	_, err := c.node.Status(testContext(t), connect.NewRequest(&shoalv1.StatusRequest{}))
	if info := infoOf(t, err); info.GetKind() != "internal" || strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v, %v", err, info)
	}
	stream, err := c.tasks.Watch(testContext(t), connect.NewRequest(&shoalv1.WatchRequest{Id: "t1"}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeInternal {
		t.Errorf("stream: %v", stream.Err())
	}
}

func TestEveryKindHasItsCode(t *testing.T) {
	seen := map[connect.Code]shoal.Kind{}
	for k := shoal.Internal; k <= shoal.Unsupported; k++ {
		code := codeOf(k)
		if other, ok := seen[code]; ok {
			t.Errorf("%v and %v share %v", k, other, code)
		}
		seen[code] = k
		info := infoOf(t, connectError(shoal.NewError(k, "r", "m", "h")))
		if shoal.ParseKind(info.GetKind()) != k || info.GetReason() != "r" || info.GetHint() != "h" {
			t.Errorf("%v leaves as %v", k, info)
		}
	}
	for err, want := range map[error]connect.Code{
		context.Canceled: connect.CodeCanceled, context.DeadlineExceeded: connect.CodeDeadlineExceeded,
		errors.New("x"): connect.CodeInternal,
		connect.NewError(connect.CodeInvalidArgument, errors.New("x")):   connect.CodeInvalidArgument,
		connect.NewError(connect.CodeResourceExhausted, errors.New("x")): connect.CodeInvalidArgument,
	} {
		if got := connectError(err); got.Code() != want || infoOf(t, got).GetReason() == "" {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

func TestTraceIsContinued(t *testing.T) {
	const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	for _, traced := range []bool{true, false} {
		var seen oteltrace.SpanContext
		f := &fake{submit: func(ctx context.Context, _ task.Request) (task.Task, bool, error) {
			seen = oteltrace.SpanContextFromContext(ctx)
			return someTask("t1", a2a.TaskStateSubmitted), true, nil
		}}
		spans := tracetest.NewSpanRecorder()
		provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
		r := start(t, f, func(c *Config) {
			if traced {
				c.Tracer = provider.Tracer("shoal")
			}
		})
		for _, opt := range []connect.ClientOption{connect.WithGRPC(), connect.WithProtoJSON()} {
			req := connect.NewRequest(&shoalv1.SendRequest{To: "alice", Message: text("x")})
			req.Header().Set("traceparent", parent)
			if _, err := r.clients(r.http(true, true), opt).tasks.Send(testContext(t), req); err != nil {
				t.Fatal(err)
			}
			if seen.TraceID().String() != parent[3:35] || (seen.SpanID().String() == parent[36:52]) == traced {
				t.Errorf("traced=%v: the service saw %v", traced, seen)
			}
		}
		if n := len(spans.Ended()); traced && n != 2 || !traced && n != 0 {
			t.Errorf("traced=%v: %d spans", traced, n)
		}
		if err := provider.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}
}
