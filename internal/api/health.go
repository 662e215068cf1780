package api

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const healthService = "grpc.health.v1.Health"

// health answers gRPC's standard health check, for process supervisors: SERVING as long
// as the daemon answers at all; `shoal status` says how well.
func (s *Server) health(opts ...connect.HandlerOption) map[string]http.Handler {
	return map[string]http.Handler{
		"Check": connect.NewUnaryHandler("/"+healthService+"/Check", s.checkHealth, opts...),
	}
}

func (s *Server) checkHealth(_ context.Context, req *connect.Request[grpc_health_v1.HealthCheckRequest]) (*connect.Response[grpc_health_v1.HealthCheckResponse], error) {
	status := grpc_health_v1.HealthCheckResponse_SERVING
	if s.stopping.Err() != nil {
		status = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	known := req.Msg.GetService() == ""
	for _, name := range serviceNames() {
		known = known || name == req.Msg.GetService()
	}
	if !known {
		return nil, connectError(errUnknownPath.With("service %q", req.Msg.GetService()))
	}
	return connect.NewResponse(&grpc_health_v1.HealthCheckResponse{Status: status}), nil
}
