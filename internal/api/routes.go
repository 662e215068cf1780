package api

import (
	"io"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/reflect/protoreflect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// route is one path that is served.
type route struct {
	handler       http.Handler
	clientStreams bool // the request has no foreseeable end
}

// table holds every path that is served. There are no patterns, so what is not listed
// is refused: a :path without a slash or an encoded one cannot slip past a rule.
type table map[string]route

func (t table) find(path string) (route, bool) {
	r, ok := t[path]
	return r, ok
}

func (t table) add(more table) {
	for path, r := range more {
		t[path] = r
	}
}

// methodTable lists the methods of the five services, from their descriptors: a method
// that is added to a proto file is in it, and so in the tests that walk it.
func methodTable(handlers map[string]http.Handler) table {
	t := table{}
	for _, svc := range serviceDescriptors() {
		prefix := "/" + string(svc.FullName()) + "/"
		for i := range svc.Methods().Len() {
			m := svc.Methods().Get(i)
			t[prefix+string(m.Name())] = route{handlers[prefix], m.IsStreamingClient()}
		}
	}
	return t
}

func serviceDescriptors() []protoreflect.ServiceDescriptor {
	var all []protoreflect.ServiceDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		shoalv1.File_shoal_v1_node_proto, shoalv1.File_shoal_v1_agent_proto,
		shoalv1.File_shoal_v1_task_proto, shoalv1.File_shoal_v1_worker_proto,
		shoalv1.File_shoal_v1_mail_proto,
	} {
		for i := range file.Services().Len() {
			all = append(all, file.Services().Get(i))
		}
	}
	return all
}

func serviceNames() []string {
	var names []string
	for _, svc := range serviceDescriptors() {
		names = append(names, string(svc.FullName()))
	}
	return names
}

// socketOnly lists what tells about the daemon's inside: only its own user sees it.
func (s *Server) socketOnly() table {
	reflector := grpcreflect.NewStaticReflector(append(serviceNames(), healthService)...)
	opt := connect.WithReadMaxBytes(maxWire)
	t := table{}
	for _, name := range []string{grpcreflect.ReflectV1ServiceName, "grpc.reflection.v1alpha.ServerReflection"} {
		_, h := grpcreflect.NewHandlerV1(reflector, opt)
		if name != grpcreflect.ReflectV1ServiceName {
			_, h = grpcreflect.NewHandlerV1Alpha(reflector, opt)
		}
		t["/"+name+"/ServerReflectionInfo"] = route{h, true}
	}
	for method, h := range s.health(opt) {
		t["/"+healthService+"/"+method] = route{h, false}
	}
	if s.cfg.Metrics != nil {
		t["/metrics"] = route{promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{}), false}
	}
	for path, h := range map[string]http.HandlerFunc{
		"": pprof.Index, "profile": pprof.Profile, "trace": pprof.Trace, "symbol": pprof.Symbol,
		"heap": pprof.Index, "goroutine": pprof.Index, "allocs": pprof.Index, "mutex": pprof.Index, "block": pprof.Index,
	} {
		t["/debug/pprof/"+path] = route{h, false}
	}
	return t
}

// refuse answers a request that no service sees, in the words of its protocol: gRPC and
// gRPC-Web carry the code in trailers of a 200, all else gets the HTTP status and JSON.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	s.meter.refused(err)
	ce := connectError(err)
	isGRPC := r.Method == http.MethodPost && strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/grpc")
	if isGRPC && ce.Code() == connect.CodeNotFound {
		ce = recode(ce, connect.CodeUnimplemented) // what gRPC says of an unknown method
	}
	if !isGRPC {
		if ce.Code() == connect.CodeUnauthenticated {
			w.Header().Set("WWW-Authenticate", `Bearer realm="shoal"`)
		}
		// A Connect stream would get its error inside a 200: hide that it is one, so
		// that every tool sees the status.
		r = r.Clone(r.Context())
		r.Header.Set("Content-Type", "application/json")
	}
	_ = s.writer.Write(w, r, ce) // the client may be gone
}

// slots counts what is under way, up to its capacity.
type slots chan struct{}

func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) give() { <-s }

// timedBody gives a request's body a time to arrive, so that a caller who drips it byte
// by byte holds a connection no longer than that. The time runs from the first read to
// the body's end, not through the handler's work.
type timedBody struct {
	io.ReadCloser
	w       http.ResponseWriter
	rc      *http.ResponseController
	h1      bool
	wait    time.Duration
	started bool
}

// withTimedBody returns r with such a body. It is a copy: net/http looks at the body of
// its own request when it decides whether to use the connection again.
func withTimedBody(w http.ResponseWriter, r *http.Request, wait time.Duration) *http.Request {
	if r.Body == nil || r.Body == http.NoBody {
		return r
	}
	timed := *r
	timed.Body = &timedBody{ReadCloser: r.Body, w: w, rc: http.NewResponseController(w), h1: r.ProtoMajor == 1, wait: wait}
	return &timed
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.started {
		b.started = true
		_ = b.rc.SetReadDeadline(time.Now().Add(b.wait)) // a writer without deadlines is a test's
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF: //nolint:errorlint // io.Reader's contract
		_ = b.rc.SetReadDeadline(time.Time{}) // the handler may take its time
	case err != nil && b.h1:
		// What is left of the body must not be waited for. The deadline stays as it is
		// for the same reason.
		b.w.Header().Set("Connection", "close")
	}
	return n, err
}
