package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"
	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
	"github.com/shoalmesh/shoal/internal/directory"
	"github.com/shoalmesh/shoal/internal/httpguard"
	"github.com/shoalmesh/shoal/internal/task"
	"github.com/shoalmesh/shoal/internal/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"

// did returns the n-th agent of the tests.
func did(n byte) shoal.AgentID {
	return shoal.AgentIDOf(ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+n)), 32))).Public().(ed25519.PublicKey))
}

var (
	own   = did(0) // the node's own agent
	alice = did(1) // hosted, named alice
	bob   = did(2) // elsewhere
)

// fake is all services at once. Its funcs may be replaced before the server starts.
type fake struct {
	mu       sync.Mutex
	requests []task.Request
	reports  []shoal.Report
	letters  []Letter
	acked    []uint64
	removed  []shoal.AgentID
	queries  []directory.Query
	joined   []string
	specs    []worker.AttachSpec
	calls    int // of any method

	submit func(context.Context, task.Request) (task.Task, bool, error)
	wait   func(context.Context, task.Ref) (task.Task, error)
	watch  func(context.Context, task.Ref, uint64, func(task.Event) error) error
	attach func(context.Context, worker.AttachSpec) (Session, error)
	report func(context.Context, string, shoal.Report) (uint64, error)
	post   func(context.Context, []Letter) []Posted
	logs   func(context.Context, int, bool, func(string) error) error
	status func(context.Context) (Status, error)
	down   func()
}

func (f *fake) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if change != nil {
		change()
	}
}

func (f *fake) called() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fake) Status(ctx context.Context) (Status, error) {
	f.note(nil)
	if f.status != nil {
		return f.status(ctx)
	}
	return Status{Agent: own, Node: own.Node(), Network: "test", State: "alone", Started: time.Unix(1, 0)}, nil
}

func (f *fake) Peers(context.Context) ([]Peer, error) {
	f.note(nil)
	return []Peer{{ID: bob.Node(), Addr: "/ip4/127.0.0.1", Direction: "out", Path: "quic", RTT: 1500 * time.Microsecond}}, nil
}

func (f *fake) Ping(_ context.Context, id shoal.NodeID) (string, time.Duration, error) {
	f.note(nil)
	if id != bob.Node() {
		return "", 0, shoal.NewError(shoal.Unavailable, "unreachable", "no way", "")
	}
	return "quic", time.Millisecond, nil
}

func (f *fake) Invite(context.Context) (string, error) { f.note(nil); return "shoal:x", nil }

func (f *fake) Join(_ context.Context, target string) ([]shoal.NodeID, error) {
	f.note(func() { f.joined = append(f.joined, target) })
	return []shoal.NodeID{bob.Node()}, nil
}

func (f *fake) Shutdown(context.Context) error {
	f.note(nil)
	if f.down != nil {
		f.down()
	}
	return nil
}

func (f *fake) Backup(_ context.Context, path string) (int64, error) {
	f.note(nil)
	return int64(len(path)), nil
}

func (f *fake) Logs(ctx context.Context, tail int, follow bool, emit func(string) error) error {
	f.note(nil)
	if f.logs != nil {
		return f.logs(ctx, tail, follow, emit)
	}
	return emit(fmt.Sprintf("tail=%d \xff", tail))
}

func (f *fake) Lookup(name string) (shoal.AgentID, error) {
	switch name {
	case "", string(own):
		return own, nil
	case "alice", string(alice):
		return alice, nil
	}
	return "", shoal.NewError(shoal.NotFound, "unknown_agent", "no such agent here", "did you mean alice?")
}

func (f *fake) Agents() []worker.AgentInfo {
	f.note(nil)
	return []worker.AgentInfo{
		{Spec: shoal.AgentSpec{ID: alice, Name: "alice", Skills: []shoal.Skill{{ID: "ocr"}}}, Workers: 2},
		{Spec: shoal.AgentSpec{ID: own, Name: "node"}},
	}
}

func (f *fake) Remove(_ context.Context, id shoal.AgentID) error {
	f.note(func() { f.removed = append(f.removed, id) })
	return nil
}

func card(id shoal.AgentID) directory.Card {
	return directory.Card{
		Agent: id, Node: id.Node(), Name: "n", Skills: []shoal.Skill{{ID: "ocr"}}, Seq: 7, Local: id != bob,
		NotAfter: time.Unix(100, 0), VerifiedAt: time.Unix(50, 0), Raw: []byte(`{"name":"n"}`),
		Card: &a2a.AgentCard{Name: "n", Signatures: []a2a.AgentCardSignature{{Signature: "s"}}},
	}
}

func (f *fake) Resolve(_ context.Context, id shoal.AgentID, _ bool) (directory.Card, error) {
	f.note(nil)
	return card(id), nil
}

func (f *fake) Find(_ context.Context, q directory.Query) ([]directory.Card, error) {
	f.note(func() { f.queries = append(f.queries, q) })
	return []directory.Card{card(bob), card(alice)}, nil
}

func (f *fake) Refresh(_ context.Context, id shoal.AgentID) (int, error) {
	f.note(nil)
	if id == "" {
		return 2, nil
	}
	return 1, nil
}

func (f *fake) Host(_ context.Context, id shoal.AgentID) (shoal.NodeID, error) {
	f.note(nil)
	return id.Node(), nil
}

func (f *fake) Knows(id shoal.AgentID) (directory.Card, bool) { return card(id), id != own }

// someTask is a task in the given state.
func someTask(id string, state a2a.TaskState) task.Task {
	return task.Task{
		Key: shoal.TaskKey{Requester: own, ID: a2a.TaskID(id)}, Role: task.Asked, Doer: bob, ContextID: "ctx", Skill: "ocr",
		State: state, StatusAt: time.Unix(102, 0), Attempt: 1, Created: time.Unix(100, 0), Updated: time.Unix(102, 0),
		Delivery: "delivered", Cursor: 3,
		History: []*a2a.Message{a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("hi"))},
	}
}

func (f *fake) Submit(ctx context.Context, req task.Request) (task.Task, bool, error) {
	f.note(func() { f.requests = append(f.requests, req) })
	if f.submit != nil {
		return f.submit(ctx, req)
	}
	return someTask("t1", a2a.TaskStateSubmitted), true, nil
}

func (f *fake) Get(_ context.Context, ref task.Ref) (task.Task, error) {
	f.note(nil)
	if ref.ID != "t1" {
		return task.Task{}, task.ErrNotFound
	}
	return someTask("t1", a2a.TaskStateWorking), nil
}

func (f *fake) List(context.Context, task.Filter) ([]task.Task, string, error) {
	f.note(nil)
	return []task.Task{someTask("t1", a2a.TaskStateWorking)}, "next", nil
}

func (f *fake) Watch(ctx context.Context, ref task.Ref, after uint64, emit func(task.Event) error) error {
	f.note(nil)
	return f.watch(ctx, ref, after, emit)
}

func (f *fake) Wait(ctx context.Context, ref task.Ref) (task.Task, error) {
	f.note(nil)
	if f.wait != nil {
		return f.wait(ctx, ref)
	}
	return someTask("t1", a2a.TaskStateCompleted), nil
}

func (f *fake) Cancel(_ context.Context, ref task.Ref) (task.Task, error) {
	f.note(nil)
	if ref.ID != "t1" {
		return task.Task{}, task.ErrTerminal
	}
	return someTask("t1", a2a.TaskStateWorking), nil
}

func (f *fake) Reply(context.Context, task.Ref, *a2a.Message, string) (task.Task, error) {
	f.note(nil)
	return someTask("t1", a2a.TaskStateWorking), nil
}

func (f *fake) Receipt(context.Context, task.Ref) (task.SignedReceipt, error) {
	f.note(nil)
	return task.SignedReceipt{Receipt: shoal.Receipt{Network: "test", Doer: bob, State: a2a.TaskStateCompleted}, Body: []byte("b")}, nil
}

func (f *fake) Attach(ctx context.Context, spec worker.AttachSpec) (Session, error) {
	f.note(func() { f.specs = append(f.specs, spec) })
	return f.attach(ctx, spec)
}

func (f *fake) Report(ctx context.Context, session string, r shoal.Report) (uint64, error) {
	f.note(func() { f.reports = append(f.reports, r) })
	if f.report != nil {
		return f.report(ctx, session, r)
	}
	if session != "sess" {
		return 0, shoal.NewError(shoal.Denied, "not_assigned", "not yours", "")
	}
	if r.Chunk != nil {
		return 0, nil
	}
	return 9, nil
}

func (f *fake) Heartbeat(session string) error {
	f.note(nil)
	if session != "sess" {
		return shoal.NewError(shoal.NotFound, "unknown_session", "no such session", "attach again")
	}
	return nil
}

func (f *fake) Post(ctx context.Context, letters []Letter) []Posted {
	f.note(func() { f.letters = append(f.letters, letters...) })
	if f.post != nil {
		return f.post(ctx, letters)
	}
	out := make([]Posted, len(letters))
	for i, l := range letters {
		out[i].ID = string(l.Body)
		l.Done("delivered", "")
	}
	return out
}

func (f *fake) Inbox(_ context.Context, agent shoal.AgentID, after uint64, limit int) ([]Received, error) {
	f.note(nil)
	return []Received{{Cursor: after + 1, ID: "l1", From: bob, To: agent, Body: []byte{0, 255}}}, nil
}

func (f *fake) Ack(_ context.Context, _ shoal.AgentID, cursors []uint64) error {
	f.note(func() { f.acked = append(f.acked, cursors...) })
	return nil
}

func (f *fake) DeadLetters(_ context.Context, after string, _ int) ([]DeadLetter, string, error) {
	f.note(nil)
	return []DeadLetter{{ID: "d1", From: own, To: bob, Topic: "shoal.task", Reason: "expired"}}, after + "x", nil
}

// session is a worker session that hands out the events of a channel.
type session struct {
	id     string
	events chan worker.Event
	closed chan struct{}
	once   sync.Once
}

func newSession() *session {
	return &session{id: "sess", events: make(chan worker.Event, 16), closed: make(chan struct{})}
}

func (s *session) ID() string             { return s.id }
func (s *session) Agent() shoal.AgentSpec { return shoal.AgentSpec{ID: alice, Name: "alice"} }
func (s *session) Close()                 { s.once.Do(func() { close(s.closed) }) }
func (s *session) Next(ctx context.Context) (worker.Event, error) {
	select {
	case ev := <-s.events:
		return ev, nil
	case <-ctx.Done():
		return worker.Event{}, ctx.Err()
	}
}

// running is a served API.
type running struct {
	t      testing.TB
	server *Server
	fake   *fake
	socket string
	addr   string // of loopback HTTP
	stop   func() error
}

func services(f *fake) Services {
	return Services{Node: f, Admin: f, Agents: f, Directory: f, Tasks: f, Steps: f, Workers: f, Mail: f}
}

func start(t testing.TB, f *fake, change func(*Config)) *running {
	t.Helper()
	cfg := Config{Version: "1.2.3", Token: httpguard.TokenOf(secret)}
	if change != nil {
		change(&cfg)
	}
	dir, err := os.MkdirTemp("", "shoal") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, fake: f, socket: filepath.Join(dir, "s.sock")}
	unix, err := net.Listen("unix", r.socket)
	if err == nil {
		err = os.Chmod(r.socket, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = tcp.Addr().String()
	r.server = New(cfg, services(f), discard())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.server.Run(ctx, unix, tcp) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// http returns a client. On the socket any URL goes to it; over TCP each request gets
// the token. h2 speaks HTTP/2 by prior knowledge.
func (r *running) http(unix, h2 bool) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: &p, DisableCompression: true}
	if unix {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", r.socket)
		}
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	if unix {
		return &http.Client{Transport: tr}
	}
	return &http.Client{Transport: withToken{tr}}
}

type withToken struct{ http.RoundTripper }

func (w withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Authorization") == "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	return w.RoundTripper.RoundTrip(req)
}

func (r *running) url() string { return "http://" + r.addr }

// clients of all services.
type clients struct {
	node   shoalv1connect.NodeServiceClient
	agents shoalv1connect.AgentServiceClient
	tasks  shoalv1connect.TaskServiceClient
	worker shoalv1connect.WorkerServiceClient
	mail   shoalv1connect.MailServiceClient
}

func (r *running) clients(hc *http.Client, opts ...connect.ClientOption) clients {
	return clients{
		shoalv1connect.NewNodeServiceClient(hc, r.url(), opts...), shoalv1connect.NewAgentServiceClient(hc, r.url(), opts...),
		shoalv1connect.NewTaskServiceClient(hc, r.url(), opts...), shoalv1connect.NewWorkerServiceClient(hc, r.url(), opts...),
		shoalv1connect.NewMailServiceClient(hc, r.url(), opts...),
	}
}

// testContext ends the test rather than hang it.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// infoOf returns the ErrorInfo of a failed call.
func infoOf(t testing.TB, err error) *shoalv1.ErrorInfo {
	t.Helper()
	ce := new(connect.Error)
	if !asConnect(err, &ce) {
		t.Fatalf("got %v, want a connect error", err)
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		if info, ok := v.(*shoalv1.ErrorInfo); ok {
			return info
		}
	}
	t.Fatalf("error %v has no ErrorInfo", err)
	return nil
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// post sends a body and returns the status and what comes back.
func (r *running) post(t testing.TB, hc *http.Client, path, ctype string, body []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, r.url()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ctype)
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// curl posts JSON as curl would.
func (r *running) curl(t testing.TB, hc *http.Client, path, body string) (int, string) {
	t.Helper()
	return r.post(t, hc, path, "application/json", []byte(body))
}

// direct calls a handler without a network.
func (r *running) direct(t testing.TB, h http.Handler, path, body string) (int, string) {
	t.Helper()
	req := httptest.NewRequestWithContext(testContext(t), http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}
