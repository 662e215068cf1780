package task

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoalmesh/shoal"
)

// A task carries its W3C traceparent in the offer, so the spans of both nodes join.

func traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

func contextOf(parent string) context.Context {
	ctx := context.Background() // spans are made after the request that caused them
	if parent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent})
}

func taskAttrs(key shoal.TaskKey, skill string) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("shoal.task.id", string(key.ID)),
		attribute.String("shoal.task.requester", string(key.Requester)),
		attribute.String("shoal.task.skill", skill),
	}
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, shoal.AsError(err).Reason)
	}
	span.End()
}
