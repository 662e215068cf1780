package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/task"
)

func asConnect(err error, target **connect.Error) bool { return errors.As(err, target) }

// TestEveryProtocolWorks calls a unary and a streaming method in each way.
func TestEveryProtocolWorks(t *testing.T) {
	f := &fake{watch: func(_ context.Context, _ task.Ref, _ uint64, emit func(task.Event) error) error {
		done := someTask("t1", "TASK_STATE_COMPLETED")
		return emit(task.Event{Cursor: 4, Final: &done})
	}}
	r := start(t, f, nil)
	tried := 0
	for _, unix := range []bool{true, false} {
		for _, h2 := range []bool{true, false} {
			for name, opts := range map[string][]connect.ClientOption{
				"connect": nil, "connect json": {connect.WithProtoJSON()}, "gzip": {connect.WithSendGzip()},
				"get": {connect.WithHTTPGet()}, "grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
			} {
				if name == "grpc" && !h2 {
					continue
				}
				c := r.clients(r.http(unix, h2), opts...)
				resp, err := c.node.Status(testContext(t), connect.NewRequest(&shoalv1.StatusRequest{}))
				if err != nil || resp.Msg.GetDid() != string(own) || resp.Msg.GetVersion() != "1.2.3" {
					t.Errorf("%s unix=%v h2=%v: got %v, %v", name, unix, h2, resp, err)
				}
				stream, err := c.tasks.Watch(testContext(t), connect.NewRequest(&shoalv1.WatchRequest{Id: "t1"}))
				if err != nil {
					t.Fatalf("%s unix=%v h2=%v: watch: %v", name, unix, h2, err)
				}
				if !stream.Receive() || stream.Msg().GetTask().GetTask().GetId() != "t1" || stream.Msg().GetCursor() != 4 {
					t.Errorf("%s unix=%v h2=%v: watch got %v, %v", name, unix, h2, stream.Msg(), stream.Err())
				}
				if stream.Receive() || stream.Err() != nil {
					t.Errorf("%s unix=%v h2=%v: watch ends with %v", name, unix, h2, stream.Err())
				}
				stream.Close()
				_, err = c.tasks.Get(testContext(t), connect.NewRequest(&shoalv1.GetRequest{Id: "nope"}))
				if info := infoOf(t, err); info.GetReason() != "unknown_task" || connect.CodeOf(err) != connect.CodeNotFound {
					t.Errorf("%s unix=%v h2=%v: error %v, info %v", name, unix, h2, err, info)
				}
				tried++
			}
		}
	}
	t.Logf("%d ways to call", tried)
}

func (r *running) grpc(t testing.TB, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestGRPCClient(t *testing.T) {
	r := start(t, &fake{}, nil)
	for name, target := range map[string]string{"unix": "unix:" + r.socket, "tcp": "dns:///" + r.addr} {
		conn := r.grpc(t, target)
		ctx := testContext(t)
		if name == "tcp" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+secret)
		}
		resp := &shoalv1.StatusResponse{}
		if err := conn.Invoke(ctx, "/shoal.v1.NodeService/Status", &shoalv1.StatusRequest{}, resp); err != nil || resp.GetDid() != string(own) {
			t.Errorf("%s: got %v, %v", name, resp, err)
		}
		err := conn.Invoke(ctx, "/shoal.v1.TaskService/Get", &shoalv1.GetRequest{}, &shoalv1.GetResponse{})
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || len(st.Details()) != 1 || st.Details()[0].(*shoalv1.ErrorInfo).GetReason() != "field_missing" {
			t.Errorf("%s: got %v with %v", name, err, st.Details())
		}
		err = conn.Invoke(ctx, "/shoal.v1.NodeService/Nope", &shoalv1.StatusRequest{}, resp)
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: unknown method: got %v, want Unimplemented", name, err)
		}
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/shoal.v1.WorkerService/ReportStream")
		if err != nil {
			t.Fatal(err)
		}
		report := &shoalv1.ReportRequest{Session: "sess", TaskId: "t1", Chunk: &shoalv1.TextChunk{ArtifactId: "a", Text: "x"}}
		if err := errors.Join(stream.SendMsg(report), stream.SendMsg(completed("t1")), stream.CloseSend()); err != nil {
			t.Fatal(err)
		}
		answer := &shoalv1.ReportResponse{}
		if err := stream.RecvMsg(answer); err != nil || answer.GetN() != 9 {
			t.Errorf("%s: report stream: got %v, %v", name, answer, err)
		}
		if err := stream.RecvMsg(answer); !errors.Is(err, io.EOF) {
			t.Errorf("%s: report stream ends with %v", name, err)
		}
	}
}

func TestReflectionAndHealthOnTheSocketOnly(t *testing.T) {
	r := start(t, &fake{}, nil)
	conn := r.grpc(t, "unix:"+r.socket)
	health, err := grpc_health_v1.NewHealthClient(conn).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: "shoal.v1.TaskService"})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v", err)
	}
	names, err := reflected(testContext(t), conn)
	if err != nil || !strings.Contains(names, "shoal.v1.WorkerService") {
		t.Errorf("reflection: got %q, %v", names, err)
	}

	// With the token, loopback HTTP still does not know them.
	tcp := r.grpc(t, "dns:///"+r.addr)
	ctx := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+secret)
	if _, err := reflected(ctx, tcp); status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection over TCP: got %v, want Unimplemented", err)
	}
	if _, err := grpc_health_v1.NewHealthClient(tcp).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("health over TCP: got %v, want Unimplemented", err)
	}
}

func reflected(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return "", err
	}
	defer stream.CloseSend()
	list := &grpc_reflection_v1.ServerReflectionRequest_ListServices{}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: list}); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	resp, err := stream.Recv()
	return resp.String(), err
}

func TestPlainJSON(t *testing.T) {
	r := start(t, &fake{}, nil)
	hc := r.http(true, false)
	code, body := r.curl(t, hc, "/shoal.v1.TaskService/Send", `{"to":"alice","message":{"parts":[{"text":"hi"}]},"wait":true}`)
	if code != 200 || !strings.Contains(body, `"TASK_STATE_COMPLETED"`) || !strings.Contains(body, `"created":true`) {
		t.Errorf("send: %d %s", code, body)
	}
	got := r.fake.requests[0]
	if got.From != own || got.To != alice || got.Message.Role != "ROLE_USER" || got.Message.ID == "" || got.Message.Parts[0].Text() != "hi" {
		t.Errorf("send arrived as %+v, message %+v", got, got.Message)
	}
	code, body = r.curl(t, hc, "/shoal.v1.TaskService/Send", `{"too":"alice"}`)
	if code != 400 || !strings.Contains(body, `too`) || !strings.Contains(body, `"bad_request"`) && !strings.Contains(body, "ErrorInfo") {
		t.Errorf("misspelt field: %d %s", code, body)
	}
}

// raw sends bytes and returns what comes back before the server closes or falls silent.
func raw(t testing.TB, network, addr string, send []byte) string {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = conn.Write(send) }() // the server may close first
	deadline, _ := testContext(t).Deadline()
	if err := conn.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	_, _ = io.Copy(&got, conn)
	return got.String()
}
