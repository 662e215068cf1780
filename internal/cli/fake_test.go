package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// The fake daemon's people. Keys come from fixed seeds, so goldens stay.
var (
	nodeKey   = ed25519.NewKeyFromSeed([]byte(strings.Repeat("n", 32)))
	poetKey   = ed25519.NewKeyFromSeed([]byte(strings.Repeat("p", 32)))
	tailorKey = ed25519.NewKeyFromSeed([]byte(strings.Repeat("t", 32)))
)

func didOf(k ed25519.PrivateKey) shoal.AgentID {
	return shoal.AgentIDOf(k.Public().(ed25519.PublicKey))
}

func peerOf(k ed25519.PrivateKey) shoal.NodeID {
	return shoal.NodeIDOf(k.Public().(ed25519.PublicKey))
}

var fakeTime = timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC))

// fakeAPI answers the local API over a real unix socket. What a task does is what its
// text says, see faketask_test.go.
type fakeAPI struct {
	home   string
	server *http.Server
	stop   func()

	mu    sync.Mutex
	tasks map[string]*fakeTask
	keys  map[string]string // request id to task id
	last  *shoalv1.SendRequest
}

type (
	fakeNode   struct{ *fakeAPI }
	fakeAgents struct{ *fakeAPI }
	fakeTasks  struct{ *fakeAPI }
)

// serveFake starts a fake daemon for home; the caller calls stop.
func serveFake(home string) (*fakeAPI, error) {
	f := &fakeAPI{home: home, tasks: map[string]*fakeTask{}, keys: map[string]string{}}
	mux := http.NewServeMux()
	mux.Handle(shoalv1connect.NewNodeServiceHandler(fakeNode{f}))
	mux.Handle(shoalv1connect.NewAgentServiceHandler(fakeAgents{f}))
	mux.Handle(shoalv1connect.NewTaskServiceHandler(fakeTasks{f}))
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", filepath.Join(home, "shoal.sock"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.server = &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = f.server.Serve(l)
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		_ = f.server.Close()
		<-served
	})
	return f, nil
}

func newFake(t testing.TB) *fakeAPI {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	f, err := serveFake(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.stop(); os.RemoveAll(dir) })
	return f
}

// apiErr is an error as package api makes it.
func apiErr(kind shoal.Kind, reason, msg, hint string) error {
	codes := map[shoal.Kind]connect.Code{
		shoal.Invalid: connect.CodeInvalidArgument, shoal.NotFound: connect.CodeNotFound, shoal.Denied: connect.CodePermissionDenied,
		shoal.Unauthenticated: connect.CodeUnauthenticated, shoal.Conflict: connect.CodeFailedPrecondition, shoal.Exhausted: connect.CodeResourceExhausted,
		shoal.Unavailable: connect.CodeUnavailable, shoal.Timeout: connect.CodeDeadlineExceeded, shoal.Corrupt: connect.CodeDataLoss,
		shoal.Unsupported: connect.CodeUnimplemented, shoal.Internal: connect.CodeInternal,
	}
	e := connect.NewError(codes[kind], errors.New(msg))
	d, err := connect.NewErrorDetail(&shoalv1.ErrorInfo{Kind: kind.String(), Reason: reason, Hint: hint})
	if err != nil {
		panic(err)
	}
	e.AddDetail(d)
	return e
}

func ok[T any](m *T) (*connect.Response[T], error) { return connect.NewResponse(m), nil }

func (f fakeNode) Status(context.Context, *connect.Request[shoalv1.StatusRequest]) (*connect.Response[shoalv1.StatusResponse], error) {
	return ok(&shoalv1.StatusResponse{
		Did: string(didOf(nodeKey)), PeerId: string(peerOf(nodeKey)), Network: "main", Version: "v0.test", State: "degraded",
		Problems: []string{"disk nearly full: free some space"}, Addrs: []string{"/ip4/127.0.0.1/udp/4420/quic-v1/p2p/" + string(peerOf(nodeKey))},
		Http: "http://127.0.0.1:7420", Socket: socketPath(f.home), Home: f.home, Peers: 2, Agents: 2, Outbox: 3, DeadLetters: 1, TasksOpen: 4,
		StartedAt: timestamppb.New(time.Now().Add(-90 * time.Second)), RssBytes: 43_210_000,
	})
}

func (f fakeNode) Peers(context.Context, *connect.Request[shoalv1.PeersRequest]) (*connect.Response[shoalv1.PeersResponse], error) {
	return ok(&shoalv1.PeersResponse{Peers: []*shoalv1.Peer{
		{PeerId: string(peerOf(poetKey)), Addr: "/ip4/10.0.0.2/udp/4420/quic-v1", Direction: "out", Path: "quic", RttMs: 1.25},
		{PeerId: string(peerOf(tailorKey)), Addr: "/ip4/10.0.0.3/tcp/4420", Direction: "in", Path: "tcp"},
	}})
}

func (f fakeNode) Ping(_ context.Context, r *connect.Request[shoalv1.PingRequest]) (*connect.Response[shoalv1.PingResponse], error) {
	switch r.Msg.GetAgent() {
	case string(didOf(poetKey)), string(peerOf(poetKey)):
		return ok(&shoalv1.PingResponse{Reachable: true, Path: "quic", RttMs: 0.75, PeerId: string(peerOf(poetKey))})
	case string(didOf(tailorKey)):
		return ok(&shoalv1.PingResponse{})
	case string(peerOf(nodeKey)):
		return nil, apiErr(shoal.Invalid, "dial_self", "a node cannot dial itself", "")
	default:
		return nil, apiErr(shoal.Unavailable, "unreachable", "no route to "+r.Msg.GetAgent(), "")
	}
}

func (f fakeNode) Invite(context.Context, *connect.Request[shoalv1.InviteRequest]) (*connect.Response[shoalv1.InviteResponse], error) {
	return ok(&shoalv1.InviteResponse{Link: "shoal:main?a=/ip4/127.0.0.1/tcp/4420/p2p/" + string(peerOf(nodeKey))})
}

func (f fakeNode) Join(context.Context, *connect.Request[shoalv1.JoinRequest]) (*connect.Response[shoalv1.JoinResponse], error) {
	return nil, apiErr(shoal.Unsupported, "fake", "no join here", "")
}

func (f fakeNode) Shutdown(context.Context, *connect.Request[shoalv1.ShutdownRequest]) (*connect.Response[shoalv1.ShutdownResponse], error) {
	go f.server.Shutdown(context.Background()) //nolint:errcheck // Close follows
	return ok(&shoalv1.ShutdownResponse{})
}

func (f fakeNode) Backup(_ context.Context, r *connect.Request[shoalv1.BackupRequest]) (*connect.Response[shoalv1.BackupResponse], error) {
	if !filepath.IsAbs(r.Msg.GetPath()) {
		return nil, apiErr(shoal.Invalid, "bad_path", "path is not absolute", "")
	}
	if exists(r.Msg.GetPath()) {
		return nil, apiErr(shoal.Conflict, "file_exists", r.Msg.GetPath()+" exists", "choose another name")
	}
	return ok(&shoalv1.BackupResponse{Bytes: 2048}) // the fake writes nothing
}

func (f fakeNode) Logs(ctx context.Context, r *connect.Request[shoalv1.LogsRequest], s *connect.ServerStream[shoalv1.LogsResponse]) error {
	for i := range min(r.Msg.GetTail(), 2) {
		if err := s.Send(&shoalv1.LogsResponse{Line: fmt.Sprintf("level=INFO msg=line%d peer=\x1b[31mred", i)}); err != nil {
			return err
		}
	}
	if r.Msg.GetFollow() {
		if err := s.Send(&shoalv1.LogsResponse{Line: "followed"}); err != nil {
			return err
		}
		<-ctx.Done()
	}
	return nil
}

func (f fakeNode) DeadLetters(context.Context, *connect.Request[shoalv1.DeadLettersRequest]) (*connect.Response[shoalv1.DeadLettersResponse], error) {
	return ok(&shoalv1.DeadLettersResponse{})
}

const fakeCard = `{"name":"poet","x":"\u001b[2J","bidi":"a` + "\u202e" + `b","signatures":[{"protected":"e30","signature":"AA"}]}`

func fakeAgentsList() []*shoalv1.Agent {
	return []*shoalv1.Agent{
		{Did: string(didOf(poetKey)), Name: "poet", Description: "writes", Skills: []string{"poem"}, Node: string(peerOf(nodeKey)), VerifiedAt: fakeTime, ExpiresAt: fakeTime, Seq: 7, Local: true, Workers: 1, CardJson: fakeCard},
		{Did: string(didOf(tailorKey)), Name: "tailor\x1b]0;pwned\x07\u202e", Skills: []string{"sew", "mend"}, Node: string(peerOf(tailorKey)), VerifiedAt: fakeTime},
	}
}

func (f fakeAgents) List(context.Context, *connect.Request[shoalv1.AgentServiceListRequest]) (*connect.Response[shoalv1.AgentServiceListResponse], error) {
	return ok(&shoalv1.AgentServiceListResponse{Agents: fakeAgentsList()[:1]})
}

func (f fakeAgents) Resolve(_ context.Context, r *connect.Request[shoalv1.ResolveRequest]) (*connect.Response[shoalv1.ResolveResponse], error) {
	for _, a := range fakeAgentsList() {
		if a.GetDid() == r.Msg.GetAgent() || a.GetName() == r.Msg.GetAgent() {
			return ok(&shoalv1.ResolveResponse{Agent: a})
		}
	}
	return nil, apiErr(shoal.NotFound, "unknown_agent", "agent "+r.Msg.GetAgent()+" is not known", "did you mean poet?")
}

func (f fakeAgents) Find(_ context.Context, r *connect.Request[shoalv1.FindRequest]) (*connect.Response[shoalv1.FindResponse], error) {
	resp := &shoalv1.FindResponse{}
	for _, a := range fakeAgentsList() {
		for _, s := range a.GetSkills() {
			if s == r.Msg.GetCapability() || r.Msg.GetText() != "" && strings.Contains(s, r.Msg.GetText()) {
				resp.Agents = append(resp.Agents, a)
			}
		}
	}
	return ok(resp)
}

func (f fakeAgents) Remove(_ context.Context, r *connect.Request[shoalv1.RemoveRequest]) (*connect.Response[shoalv1.RemoveResponse], error) {
	if r.Msg.GetAgent() != "poet" {
		return nil, apiErr(shoal.NotFound, "unknown_agent", "agent "+r.Msg.GetAgent()+" is not known", "did you mean poet?")
	}
	return ok(&shoalv1.RemoveResponse{})
}

func (f fakeAgents) Refresh(_ context.Context, r *connect.Request[shoalv1.RefreshRequest]) (*connect.Response[shoalv1.RefreshResponse], error) {
	if r.Msg.GetAgent() != "" {
		return ok(&shoalv1.RefreshResponse{Published: 1})
	}
	return ok(&shoalv1.RefreshResponse{Published: 2})
}

// signedReceipt is a true receipt of a task that node asked of poet.
func signedReceipt(id string, countersigned bool) *shoalv1.Receipt {
	in, out := sha256.Sum256([]byte("in")), sha256.Sum256([]byte("out"))
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&wire.ReceiptBody{
		Version: 1, Network: "main", Requester: nodeKey.Public().(ed25519.PublicKey), Doer: poetKey.Public().(ed25519.PublicKey),
		TaskId: id, Skill: "poem", InputHash: in[:], OutputHash: out[:], State: 3, Attempt: 1,
		SubmittedMs: fakeTime.AsTime().UnixMilli(), StartedMs: fakeTime.AsTime().UnixMilli() + 5, FinishedMs: fakeTime.AsTime().UnixMilli() + 1234,
	})
	if err != nil {
		panic(err)
	}
	input := append([]byte("shoal-signature-v1\n\x10shoal/receipt/v1\x04main"), body...)
	r := &shoalv1.Receipt{
		Body: body, DoerSignature: ed25519.Sign(poetKey, input), Network: "main", TaskId: id, From: string(didOf(nodeKey)), To: string(didOf(poetKey)),
		Skill: "poem", InputSha256: fmt.Sprintf("%x", in), OutputSha256: fmt.Sprintf("%x", out), State: 3, Attempt: 1, Class: shoalv1.TaskClass_TASK_CLASS_DURABLE,
		SubmittedAt: fakeTime, StartedAt: timestamppb.New(fakeTime.AsTime().Add(5 * time.Millisecond)),
		FinishedAt:   timestamppb.New(fakeTime.AsTime().Add(1234 * time.Millisecond)),
		InputMatches: true, OutputMatches: true,
	}
	if countersigned {
		r.AskerSignature = ed25519.Sign(nodeKey, input)
	}
	return r
}
