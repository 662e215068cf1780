package api

import (
	"context"
	"sync"
	"time"
)

// sender sends on a stream from several goroutines; Connect's streams take one.
type sender[T any] struct {
	mu     sync.Mutex
	stream interface{ Send(*T) error }
	last   time.Time // of the last send
}

func newSender[T any](stream interface{ Send(*T) error }) *sender[T] {
	return &sender[T]{stream: stream, last: time.Now()}
}

// open sends the headers, so that the client knows that it is connected before there is
// anything to say.
func (s *sender[T]) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(nil)
}

func (s *sender[T]) send(m *T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	return s.stream.Send(m)
}

func (s *sender[T]) quiet() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)
}

// beat sends what make returns whenever the stream was quiet for every; it returns when
// ctx ends or a send fails.
func (s *sender[T]) beat(ctx context.Context, every time.Duration, make func() *T) {
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		quiet := s.quiet()
		if quiet >= every {
			if s.send(make()) != nil {
				return
			}
			quiet = 0
		}
		timer.Reset(every - quiet)
	}
}

// endOf returns the error with which a stream ends: that the daemon stops, if it does,
// however the stream's work noticed.
func (s *Server) endOf(err error) error {
	if err != nil && s.stopping.Err() != nil {
		return errStopping
	}
	return err
}
