package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
)

// Run serves unix, the trusted socket, and tcp, loopback HTTP; either may be nil. It
// takes over the listeners. When ctx ends it stops: streams end with shutting_down,
// other calls get 2 s to finish. It returns nil then, else why a listener failed. It is
// called once.
func (s *Server) Run(ctx context.Context, unix, tcp net.Listener) error {
	var busy sync.WaitGroup
	defer busy.Wait() // handlers end soon after their connections
	var servers []*http.Server
	group, ctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, h http.Handler) {
		srv := s.httpServer(counted(&busy, h))
		servers = append(servers, srv)
		group.Go(func() error {
			if err := srv.Serve(aheadListener{l}); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	if err := checkLoopback(tcp); err != nil {
		return errors.Join(err, closeAll(unix, tcp))
	}
	if unix != nil {
		serve(unix, s.sameUser(s.Handler(true)))
	}
	if tcp != nil {
		// Whoever is on this machine may connect; they shall not use up the daemon's files.
		serve(netutil.LimitListener(tcp, maxConns), s.Handler(false))
	}
	group.Go(func() error {
		<-ctx.Done()
		s.stop()
		return s.shutdown(servers)
	})
	return group.Wait()
}

// checkLoopback refuses to serve other machines: that needs TLS, which this version
// does not have.
func checkLoopback(l net.Listener) error {
	if l == nil {
		return nil
	}
	if addr, ok := l.Addr().(*net.TCPAddr); ok && addr.IP.IsLoopback() {
		return nil
	}
	return shoal.NewError(shoal.Invalid, "not_loopback", fmt.Sprintf("the local API would be served on %s", l.Addr()),
		"use 127.0.0.1:PORT; reach it from elsewhere through an SSH tunnel")
}

func closeAll(ls ...net.Listener) error {
	var errs []error
	for _, l := range ls {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS; by prior knowledge only
	return &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerWait,
		IdleTimeout:       idleWait,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: stallWait},
		ConnContext:       withPeer,
		ErrorLog:          debugLog(s.log),
	}
}

// shutdown waits for the calls under way, not longer than shutdownWait.
func (s *Server) shutdown(servers []*http.Server) error {
	// ctx has ended; this is what ends with it, so it needs a time of its own.
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWait)
	defer cancel()
	var group errgroup.Group
	for _, srv := range servers {
		group.Go(func() error {
			if srv.Shutdown(ctx) == nil {
				return nil
			}
			s.log.Warn("calls were cut off at shutdown", "waited", shutdownWait)
			return srv.Close()
		})
	}
	return group.Wait()
}

// counted adds the requests being served to busy.
func counted(busy *sync.WaitGroup, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		defer busy.Done()
		h.ServeHTTP(w, r)
	})
}

// sameUser refuses callers of the socket who are not the user that runs the daemon. The
// socket's mode keeps others out; this also holds where the mode was changed, or the
// socket handed on.
func (s *Server) sameUser(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := r.Context().Value(peerKey{}).(peerCheck); !ok || !peer.same {
			s.refuse(w, r, errOtherUser)
			return
		}
		h.ServeHTTP(w, r)
	})
}

type peerKey struct{}

// peerCheck is what was found out about a connection's other end when it was made.
type peerCheck struct{ same bool }

func withPeer(ctx context.Context, c net.Conn) context.Context {
	if ahead, ok := c.(*aheadConn); ok {
		c = ahead.Conn
	}
	return context.WithValue(ctx, peerKey{}, peerCheck{same: sameUser(c)})
}

// stopReads ends what a client stream's handler is waiting for when the server stops.
// The function that it returns is called before the handler returns.
func (s *Server) stopReads(w http.ResponseWriter) func() {
	rc, ran := http.NewResponseController(w), make(chan struct{})
	detach := context.AfterFunc(s.stopping, func() {
		defer close(ran)
		_ = rc.SetReadDeadline(time.Now()) // a writer without deadlines is a test's
	})
	return func() {
		if !detach() {
			<-ran // the writer must not be touched after its handler has returned
		}
	}
}
