package node

import (
	"context"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/shoalmesh/shoal"
)

// register puts the node's own figures beside those of the API. They are read when
// somebody asks, from what Status reads, too.
func (n *node) register(r *prometheus.Registry) {
	gauge := func(name, help string, read func(context.Context) (int, error)) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "shoal", Name: name, Help: help}, func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			v, err := read(ctx)
			if err != nil {
				return -1
			}
			return float64(v)
		}))
	}
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge("peers", "Connected nodes.", func(context.Context) (int, error) { return len(n.mesh.Peers()), nil })
	gauge("agents", "Hosted agents.", func(context.Context) (int, error) { return len(n.workers.Agents()), nil })
	gauge("tasks_open", "Tasks that have not ended, of either role.", n.tasks.Open)
	gauge("outbox_envelopes", "Envelopes that are not delivered yet.", func(ctx context.Context) (int, error) {
		st, err := n.mail.Stats(ctx)
		return st.Outbox, err
	})
	gauge("dead_letters", "Envelopes that were given up.", func(ctx context.Context) (int, error) {
		st, err := n.mail.Stats(ctx)
		return st.DeadLetters, err
	})
}

// tracing exports spans if an exporter is configured, in the config file or by the
// standard variable OTEL_EXPORTER_OTLP_ENDPOINT.
type tracing struct{ provider *sdktrace.TracerProvider }

func newTracing(endpoint, version string, did shoal.AgentID) (*tracing, error) {
	var opts []otlptracehttp.Option
	if endpoint != "" {
		opts = append(opts, otlptracehttp.WithEndpointURL(endpoint))
	} else if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return &tracing{}, nil
	}
	exporter, err := otlptracehttp.New(context.Background(), opts...)
	if err != nil {
		return nil, shoal.NewError(shoal.Invalid, "bad_otlp_endpoint", "the span exporter cannot be made", "use a URL such as http://127.0.0.1:4318").Because(err)
	}
	res := resource.NewSchemaless(attribute.String("service.name", "shoal"),
		attribute.String("service.version", version), attribute.String("service.instance.id", string(did)))
	return &tracing{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))}, nil
}

func (t *tracing) tracer() trace.Tracer {
	if t.provider == nil {
		return noop.NewTracerProvider().Tracer("shoal")
	}
	return t.provider.Tracer("github.com/shoalmesh/shoal")
}

// close sends what is left, for at most two seconds.
func (t *tracing) close() error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return t.provider.Shutdown(ctx)
}
