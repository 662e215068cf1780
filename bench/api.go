package main

import (
	"context"
	"net"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// api is a client of a daemon over its socket: Connect over HTTP/2, one connection, no
// compression, as package agent does it.
type api struct {
	transport *http.Transport
	node      shoalv1connect.NodeServiceClient
	agents    shoalv1connect.AgentServiceClient
	tasks     shoalv1connect.TaskServiceClient
	mail      shoalv1connect.MailServiceClient
	health    *connect.Client[grpc_health_v1.HealthCheckRequest, grpc_health_v1.HealthCheckResponse]
}

const baseURL = "http://localhost" // the socket decides where it goes

func dialAPI(socket string) *api {
	t := unixTransport(socket)
	hc := &http.Client{Transport: t}
	plain := connect.WithAcceptCompression("gzip", nil, nil)
	return &api{
		transport: t,
		node:      shoalv1connect.NewNodeServiceClient(hc, baseURL, plain),
		agents:    shoalv1connect.NewAgentServiceClient(hc, baseURL, plain),
		tasks:     shoalv1connect.NewTaskServiceClient(hc, baseURL, plain),
		mail:      shoalv1connect.NewMailServiceClient(hc, baseURL, plain),
		health: connect.NewClient[grpc_health_v1.HealthCheckRequest, grpc_health_v1.HealthCheckResponse](
			hc, baseURL+"/grpc.health.v1.Health/Check", plain),
	}
}

func (a *api) close() { a.transport.CloseIdleConnections() }

func unixTransport(socket string) *http.Transport {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		Protocols:          &protocols,
		DisableCompression: true,
	}
}
