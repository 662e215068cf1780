// Package api serves the local API: the Connect services of proto/shoal/v1, which
// speak Connect, gRPC and gRPC-Web over HTTP/1.1 and HTTP/2 without TLS.
//
// It promises that nothing is answered to a caller who may not ask: on the unix socket
// that is the daemon's own user, on loopback HTTP who knows the token and is no foreign
// web page. A path that is not in the table of methods is refused, after that check.
// Every field of a request is checked here, with one clear error, and every error
// leaves as a code with a shoal.v1.ErrorInfo, so the services behind trust what they
// get. Reflection, health, metrics and profiles are on the unix socket only.
//
// It holds no state and knows no rule of the services: each call is authenticate,
// decode, one service call, encode; one file for each service. Package node hands it
// the services; the CLI, the SDKs, curl and grpcurl call it.
package api

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
	"github.com/shoalmesh/shoal/internal/httpguard"
)

// Limits of the local API (design/security.md §5). There is no rate limit: callers are
// on this machine and know the token.
const (
	maxMessage   = 1 << 20  // bytes of a decoded request: then it is message_too_large
	maxWire      = 4 << 20  // bytes of a request before and after decompression: then it is not read on
	maxHeader    = 16 << 10 // bytes of a request's headers
	maxStreams   = 128      // concurrent HTTP/2 streams of one connection
	maxInFlight  = 4096     // requests being served, of all connections
	maxConns     = 512      // TCP connections; more wait to be accepted
	headerWait   = 5 * time.Second
	bodyWait     = 10 * time.Second // for the request of a call that is no client stream
	idleWait     = 60 * time.Second
	stallWait    = 30 * time.Second // a connection that takes no bytes for so long is closed
	shutdownWait = 2 * time.Second
)

// Config says who may call and what is watched. Its zero value serves the unix socket;
// over HTTP it refuses all, for want of a token.
type Config struct {
	// Version is the daemon's version, as Status tells it.
	Version string
	// Token is what callers over HTTP must know. The zero Token is known by nobody.
	Token httpguard.Token
	// AllowedHosts are further names for the Host header, see [httpguard.Config].
	AllowedHosts []string
	// Heartbeat is how often an idle Watch or Attach stream says that it is alive.
	// Shorter finds dead connections sooner but wakes clients. Default 15s.
	Heartbeat time.Duration
	// Metrics takes the API's metrics and is served at /metrics on the unix socket.
	// Nil: neither.
	Metrics *prometheus.Registry
	// Tracer makes a span of each call. Nil: none; a caller's traceparent is passed on
	// in the context either way.
	Tracer trace.Tracer

	bodyWait time.Duration // tests shorten it
}

func (c Config) withDefaults() Config {
	if c.Heartbeat <= 0 {
		c.Heartbeat = 15 * time.Second
	}
	if c.bodyWait <= 0 {
		c.bodyWait = bodyWait
	}
	return c
}

// Services are what the API is an edge of. Admin and Mail may be nil: their callers get
// an Unsupported error.
type Services struct {
	Node      Node
	Admin     Admin
	Agents    Agents
	Directory Directory
	Tasks     Tasks
	Steps     Steps
	Workers   Workers
	Mail      Mail
}

// Server serves the local API. Safe for concurrent use.
type Server struct {
	cfg    Config
	svc    Services
	log    *slog.Logger
	guard  *httpguard.Guard
	writer *connect.ErrorWriter
	meter  meter

	// stopping ends when Run begins to stop: it is the server's own lifetime, which
	// streams must heed beside the request's.
	stopping context.Context
	stop     context.CancelFunc
}

// New returns a server. It starts nothing.
func New(cfg Config, svc Services, log *slog.Logger) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg, svc: svc, log: log,
		guard:  httpguard.New(httpguard.Config{Token: cfg.Token, AllowedHosts: cfg.AllowedHosts}),
		writer: connect.NewErrorWriter(),
		meter:  newMeter(cfg.Metrics),
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s
}

// Handler returns the API as one handler. A trusted one is for the unix socket, where
// the caller's identity is known from the socket; it also serves reflection, health,
// metrics and profiles. The other is for loopback TCP: it checks Host, Origin and token.
func (s *Server) Handler(trusted bool) http.Handler {
	table := s.services()
	if trusted {
		table.add(s.socketOnly())
	}
	var inFlight slots = make(chan struct{}, maxInFlight)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if !trusted {
			if err := s.guard.Check(r); err != nil {
				s.refuse(w, r, err)
				return
			}
		}
		if !inFlight.take() {
			s.refuse(w, r, errTooManyCalls)
			return
		}
		defer inFlight.give()
		route, ok := table.find(r.URL.Path)
		if !ok {
			s.refuse(w, r, errUnknownPath)
			return
		}
		if r.ContentLength > maxWire {
			s.refuse(w, r, errTooLarge)
			return
		}
		if route.clientStreams {
			defer s.stopReads(w)()
		} else {
			r = withTimedBody(w, r, s.cfg.bodyWait)
		}
		route.handler.ServeHTTP(w, r)
	})
}

// services returns the table of the five services' methods.
func (s *Server) services() table {
	opts := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxWire),
		connect.WithCompressMinBytes(math.MaxInt), // answers do not leave the machine
		connect.WithInterceptors(&interceptor{s}),
		connect.WithCodec(binaryCodec{}),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
	)
	handlers := map[string]http.Handler{}
	add := func(prefix string, h http.Handler) { handlers[prefix] = h }
	add(shoalv1connect.NewNodeServiceHandler(&nodeService{s}, opts))
	add(shoalv1connect.NewAgentServiceHandler(&agentService{s}, opts))
	add(shoalv1connect.NewTaskServiceHandler(&taskService{s}, opts))
	add(shoalv1connect.NewWorkerServiceHandler(&workerService{s}, opts))
	add(shoalv1connect.NewMailServiceHandler(&mailService{s}, opts))
	return methodTable(handlers)
}

// untilStop returns a context that also ends, with cause errStopping, when the server
// begins to stop. Streams use it; unary calls are left the time to finish.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(s.stopping, func() { cancel(errStopping) })
	return ctx, func() {
		detach()
		cancel(nil)
	}
}
