package api

import (
	"context"
	"net/http"
	"runtime/debug"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoalmesh/shoal"
)

// interceptor does for every call what no service should have to: trace, count, turn
// panics into errors, and errors into what leaves.
type interceptor struct{ s *Server }

// WrapUnary implements [connect.Interceptor].
func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (resp connect.AnyResponse, err error) {
		ctx, span := i.s.trace(ctx, req.Spec(), req.Header())
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, i.s.panicked(req.Spec(), p)
			}
			err = i.s.finish(span, req.Spec(), err)
		}()
		if err := decodeFailure(req.Any()); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements [connect.Interceptor].
func (i *interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		ctx, span := i.s.trace(ctx, conn.Spec(), conn.RequestHeader())
		defer func() {
			if p := recover(); p != nil {
				err = i.s.panicked(conn.Spec(), p)
			}
			err = i.s.finish(span, conn.Spec(), err)
		}()
		return next(ctx, checkedConn{conn})
	}
}

// WrapStreamingClient implements [connect.Interceptor]; the server has no clients.
func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// checkedConn reports requests that could not be decoded.
type checkedConn struct{ connect.StreamingHandlerConn }

func (c checkedConn) Receive(m any) error {
	if err := c.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	return decodeFailure(m)
}

// trace puts the caller's traceparent into the context and, if spans are wanted, starts
// the call's.
func (s *Server) trace(ctx context.Context, spec connect.Spec, h http.Header) (context.Context, trace.Span) {
	if h.Get("Traceparent") != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(h))
	}
	if s.cfg.Tracer == nil {
		return ctx, nil
	}
	return s.cfg.Tracer.Start(ctx, spec.Procedure, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("rpc.system", "connect_rpc")))
}

// finish ends a call's span, counts the call and returns the error as it leaves.
func (s *Server) finish(span trace.Span, spec connect.Spec, err error) error {
	var out *connect.Error
	reason := "ok"
	if err != nil {
		e := classify(err)
		reason = e.Kind.String()
		out = connectError(e)
		if e.Kind == shoal.Internal || e.Kind == shoal.Corrupt {
			s.log.Error("call failed", "call", spec.Procedure, "err", e)
		}
	}
	s.meter.calls.WithLabelValues(spec.Procedure, reason).Inc()
	if span != nil {
		if out != nil {
			span.SetStatus(codes.Error, out.Message())
		}
		span.End()
	}
	if out == nil {
		return nil // not a typed nil
	}
	return out
}

func (s *Server) panicked(spec connect.Spec, p any) error {
	s.log.Error("call panicked", "call", spec.Procedure, "panic", p, "stack", string(debug.Stack()))
	return errPanic
}

// meter counts calls.
type meter struct {
	calls    *prometheus.CounterVec // by procedure and kind of error or "ok"
	refusals *prometheus.CounterVec // before any service, by reason
}

func newMeter(reg *prometheus.Registry) meter {
	m := meter{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_api_calls_total", Help: "Calls of the local API, by method and kind of error.",
		}, []string{"method", "kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_api_refusals_total", Help: "Requests refused before any service saw them, by reason.",
		}, []string{"reason"}),
	}
	if reg != nil {
		reg.MustRegister(m.calls, m.refusals)
	}
	return m
}

func (m meter) refused(err error) { m.refusals.WithLabelValues(shoal.AsError(err).Reason).Inc() }
