package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	asker = "did:key:z6MkAsker"
	doer  = "did:key:z6MkDoer"
)

// daemon is the local API as an agent sees it, over a real unix socket.
type daemon struct {
	shoalv1connect.UnimplementedTaskServiceHandler
	shoalv1connect.UnimplementedWorkerServiceHandler

	t    testing.TB
	home string

	attached chan *attachment            // each session, once it is welcomed
	reports  chan *shoalv1.ReportRequest // durable ones
	chunks   chan *shoalv1.ReportRequest
	beats    chan string

	refuseAttach error
	refuseReport func(*shoalv1.ReportRequest) error
	send         func(*shoalv1.SendRequest) (*shoalv1.SendResponse, error)
	get          func(id string) (*shoalv1.TaskRecord, error)
	reply        func(*shoalv1.ReplyRequest) error
	watch        func(context.Context, *shoalv1.WatchRequest, func(*shoalv1.WatchResponse) error) error

	server *http.Server
	served chan struct{}
	cut    context.CancelFunc
}

// attachment is one Attach call.
type attachment struct {
	req    *shoalv1.AttachRequest
	id     string
	events chan *shoalv1.AttachResponse
	gone   chan struct{} // closed when the worker has left
}

func newDaemon(t testing.TB) *daemon {
	// Not t.TempDir: its path may be too long for a socket.
	home, err := os.MkdirTemp("", "shoal")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{
		t: t, home: home, attached: make(chan *attachment, 16),
		reports: make(chan *shoalv1.ReportRequest, 1000), chunks: make(chan *shoalv1.ReportRequest, 10_000),
		beats: make(chan string, 1000),
	}
	d.start()
	t.Cleanup(func() {
		d.stop()
		os.RemoveAll(home)
	})
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "unix", filepath.Join(d.home, socketName))
	if err != nil {
		d.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(shoalv1connect.NewTaskServiceHandler(d))
	mux.Handle(shoalv1connect.NewWorkerServiceHandler(d))
	mux.Handle(shoalv1connect.NewAgentServiceHandler(agentService{}))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	ctx, cut := context.WithCancel(context.Background())
	d.cut = cut
	d.server = &http.Server{
		Handler: mux, Protocols: &protocols, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	d.served = make(chan struct{})
	go func() {
		defer close(d.served)
		_ = d.server.Serve(l)
	}()
}

func (d *daemon) stop() {
	d.cut()
	_ = d.server.Close()
	<-d.served
}

func (d *daemon) Attach(ctx context.Context, req *connect.Request[shoalv1.AttachRequest], s *connect.ServerStream[shoalv1.AttachResponse]) error {
	if d.refuseAttach != nil {
		return d.refuseAttach
	}
	a := &attachment{
		req: req.Msg, id: fmt.Sprintf("session-%p", s),
		events: make(chan *shoalv1.AttachResponse, 100), gone: make(chan struct{}),
	}
	defer close(a.gone)
	welcome := &shoalv1.Welcome{Session: a.id, Did: doer, Name: req.Msg.GetAgent()}
	if err := s.Send(&shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Welcome{Welcome: welcome}}); err != nil {
		return err
	}
	d.attached <- a
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-a.events:
			if !ok {
				return apiError(shoal.NewError(shoal.Unavailable, "daemon_stopping", "stopping", ""))
			}
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

func (d *daemon) Report(_ context.Context, req *connect.Request[shoalv1.ReportRequest]) (*connect.Response[shoalv1.ReportResponse], error) {
	if d.refuseReport != nil {
		if err := d.refuseReport(req.Msg); err != nil {
			return nil, err
		}
	}
	d.reports <- req.Msg
	return connect.NewResponse(&shoalv1.ReportResponse{N: 1}), nil
}

func (d *daemon) ReportStream(_ context.Context, s *connect.BidiStream[shoalv1.ReportRequest, shoalv1.ReportResponse]) error {
	for {
		r, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		d.chunks <- r
	}
}

func (d *daemon) Heartbeat(_ context.Context, req *connect.Request[shoalv1.HeartbeatRequest]) (*connect.Response[shoalv1.HeartbeatResponse], error) {
	d.beats <- req.Msg.GetSession()
	return connect.NewResponse(&shoalv1.HeartbeatResponse{}), nil
}

func (d *daemon) Send(_ context.Context, req *connect.Request[shoalv1.SendRequest]) (*connect.Response[shoalv1.SendResponse], error) {
	resp, err := d.send(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func (d *daemon) Get(_ context.Context, req *connect.Request[shoalv1.GetRequest]) (*connect.Response[shoalv1.GetResponse], error) {
	rec, err := d.get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.GetResponse{Task: rec}), nil
}

func (d *daemon) Reply(_ context.Context, req *connect.Request[shoalv1.ReplyRequest]) (*connect.Response[shoalv1.ReplyResponse], error) {
	if err := d.reply(req.Msg); err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ReplyResponse{}), nil
}

func (d *daemon) Watch(ctx context.Context, req *connect.Request[shoalv1.WatchRequest], s *connect.ServerStream[shoalv1.WatchResponse]) error {
	return d.watch(ctx, req.Msg, s.Send)
}

type agentService struct {
	shoalv1connect.UnimplementedAgentServiceHandler
}

func (agentService) Find(_ context.Context, req *connect.Request[shoalv1.FindRequest]) (*connect.Response[shoalv1.FindResponse], error) {
	if req.Msg.GetCapability() != "ocr" {
		return nil, apiError(shoal.NewError(shoal.Invalid, "bad_capability", "malformed", "use a-z"))
	}
	return connect.NewResponse(&shoalv1.FindResponse{Agents: []*shoalv1.Agent{
		{Did: doer, Name: "bob", Skills: []string{"ocr"}, Node: "12D3KooW", Local: true},
	}}), nil
}

// apiError makes what the daemon sends for an error.
func apiError(e *shoal.Error) error {
	code := map[shoal.Kind]connect.Code{
		shoal.Invalid: connect.CodeInvalidArgument, shoal.NotFound: connect.CodeNotFound,
		shoal.Unavailable: connect.CodeUnavailable, shoal.Exhausted: connect.CodeResourceExhausted,
		shoal.Conflict: connect.CodeFailedPrecondition, shoal.Denied: connect.CodePermissionDenied,
	}[e.Kind]
	ce := connect.NewError(code, errors.New(e.Msg))
	detail, err := connect.NewErrorDetail(&shoalv1.ErrorInfo{Kind: e.Kind.String(), Reason: e.Reason, Hint: e.Hint})
	if err != nil {
		panic(err)
	}
	ce.AddDetail(detail)
	return ce
}

func textMessage(id, text string) *a2apb.Message {
	return &a2apb.Message{
		MessageId: id, Role: a2apb.Role_ROLE_USER,
		Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: text}}},
	}
}

func textArtifact(id, text string) *a2apb.Artifact {
	return &a2apb.Artifact{ArtifactId: id, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: text}}}}
}

func assign(id, text string) *shoalv1.AttachResponse {
	return &shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Assignment{Assignment: &shoalv1.Assignment{
		TaskId: id, Requester: asker, ContextId: "ctx", Skill: "echo", Attempt: 1, Message: textMessage("m-"+id, text),
	}}}
}

func cancelled(id string) *shoalv1.AttachResponse {
	return &shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Cancel{
		Cancel: &shoalv1.CancelEvent{TaskId: id, Requester: asker, Reason: "asked"},
	}}
}

func answered(id, text string) *shoalv1.AttachResponse {
	return &shoalv1.AttachResponse{Event: &shoalv1.AttachResponse_Input{
		Input: &shoalv1.InputEvent{TaskId: id, Requester: asker, Message: textMessage("i-"+id, text)},
	}}
}

// running is an agent in a test.
type running struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}
	err  error
}

func (d *daemon) run(cfg Config, h HandlerFunc) *running {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: d.t, stop: cancel, done: make(chan struct{})}
	cfg.Home, cfg.Log = d.home, slog.New(slog.DiscardHandler)
	if cfg.Name == "" {
		cfg.Name, cfg.Skills = "echo", []shoal.Skill{{ID: "echo"}}
	}
	go func() {
		defer close(r.done)
		r.err = Run(ctx, cfg, h)
	}()
	d.t.Cleanup(func() { r.end() })
	return r
}

// end stops the agent and returns what Run did.
func (r *running) end() error {
	r.stop()
	recv(r.t, r.done, "Run to return")
	return r.err
}

// recv waits for a value; the time is only for a test that fails.
func recv[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case v = <-c:
	case <-timer.C:
		t.Fatalf("waited too long for %s", what)
	}
	return v
}

func stateOf(r *shoalv1.ReportRequest) a2a.TaskState {
	return a2a.TaskState(r.GetStatus().GetState().String())
}

func saidIn(r *shoalv1.ReportRequest) string {
	m := r.GetStatus().GetMessage()
	if len(m.GetParts()) == 0 {
		return ""
	}
	return m.GetParts()[0].GetText()
}

func wantReport(t testing.TB, d *daemon, task string, state a2a.TaskState, text string) *shoalv1.ReportRequest {
	t.Helper()
	r := recv(t, d.reports, "a report of "+task)
	got := saidIn(r)
	if state == a2a.TaskStateCompleted {
		got = ""
		if len(r.GetArtifacts()) > 0 {
			got = r.GetArtifacts()[0].GetParts()[0].GetText()
		}
	}
	if r.GetTaskId() != task || r.GetRequester() != asker || stateOf(r) != state || got != text {
		t.Fatalf("got report %v, want %s %s %q", r, task, state, text)
	}
	return r
}

func wantError(t testing.TB, err error, kind shoal.Kind, reason string) {
	t.Helper()
	var e *shoal.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Reason != reason {
		t.Errorf("got error %v (%+v), want %v %s", err, e, kind, reason)
	}
}
