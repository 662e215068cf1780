package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsPeer is the peer for durable mail: a NATS server in this process (no network at
// all), whose stream is on the same disk and synced before each ack.
type natsPeer struct {
	srv  *server.Server
	conn *nats.Conn
	js   jetstream.JetStream
}

func openJetStream(dir string) (*natsPeer, error) {
	srv, err := server.NewServer(&server.Options{
		ServerName: "bench", DontListen: true, JetStream: true, StoreDir: dir, SyncAlways: true, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, err
	}
	p := &natsPeer{srv: srv}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		p.close()
		return nil, errors.New("the server did not start")
	}
	if p.conn, err = nats.Connect("", nats.InProcessServer(srv)); err != nil {
		p.close()
		return nil, err
	}
	if p.js, err = jetstream.New(p.conn, jetstream.WithPublishAsyncMaxPending(outstanding)); err != nil {
		p.close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = p.js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench"}, Storage: jetstream.FileStorage})
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *natsPeer) close() {
	if p.conn != nil {
		p.conn.Close()
	}
	p.srv.Shutdown()
	p.srv.WaitForShutdown()
}

// publish publishes for about span with at most 128 messages that are not acknowledged,
// and returns how many were a second.
func (p *natsPeer) publish(ctx context.Context, span time.Duration) (float64, error) {
	slots := make(chan struct{}, outstanding)
	failed := make(chan error, 1)
	began := time.Now()
	n := 0
	for end := began.Add(span); time.Now().Before(end); n++ {
		select {
		case slots <- struct{}{}:
		case err := <-failed:
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		f, err := p.js.PublishAsync("bench", letter)
		if err != nil {
			return 0, err
		}
		go func() {
			select {
			case <-f.Ok():
			case err := <-f.Err():
				select {
				case failed <- err:
				default:
				}
			}
			<-slots
		}()
	}
	for range outstanding { // all acknowledged
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, err
	default:
		return float64(n) / took.Seconds(), nil
	}
}
