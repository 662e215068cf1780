package directory

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
)

// finding is who was found for a capability, best first, and when.
type finding struct {
	at     time.Time
	agents []shoal.AgentID
}

// findCache remembers findings, and lets only one caller ask for the same thing at a
// time; the others wait for its answer.
type findCache struct {
	mu       sync.Mutex
	findings map[string]finding
	flights  map[string]*flight
	marked   map[string]bool // waiting for a warmer
}

func newFindCache() *findCache {
	return &findCache{
		findings: map[string]finding{},
		flights:  map[string]*flight{},
		marked:   map[string]bool{},
	}
}

func (f *findCache) get(capability string) (finding, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	got, ok := f.findings[capability]
	return got, ok
}

// put remembers an answer; an empty one is forgotten, for whoever looks for an agent
// that is not there yet looks again soon.
func (f *findCache) put(capability string, at time.Time, cards []Card) {
	got := finding{at: at}
	for _, c := range first(cards, maxLimit) {
		got.agents = append(got.agents, c.Agent)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(cards) == 0 {
		delete(f.findings, capability)
		return
	}
	if _, ok := f.findings[capability]; !ok && len(f.findings) >= maxFinds {
		f.forgetOldest()
	}
	f.findings[capability] = got
}

func (f *findCache) forgetOldest() {
	oldest := ""
	for k, v := range f.findings {
		if oldest == "" || v.at.Before(f.findings[oldest].at) {
			oldest = k
		}
	}
	delete(f.findings, oldest)
}

// flight is one run of a question that others wait for.
type flight struct {
	done chan struct{}
	err  error // set before done is closed
}

// once runs ask, or waits for a run of it under the same key that is under way and
// returns its error. If that run ended with its caller's context, a waiter runs it anew.
func (f *findCache) once(ctx context.Context, key string, ask func() error) error {
	for {
		f.mu.Lock()
		other, busy := f.flights[key]
		if !busy {
			own := &flight{done: make(chan struct{})}
			f.flights[key] = own
			f.mu.Unlock()
			return f.run(key, own, ask)
		}
		f.mu.Unlock()
		select {
		case <-other.done:
			if !errors.Is(other.err, context.Canceled) && !errors.Is(other.err, context.DeadlineExceeded) {
				return other.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *findCache) run(key string, own *flight, ask func() error) error {
	own.err = context.Canceled // if ask panics, the waiters are not left with a success
	defer func() {
		f.mu.Lock()
		delete(f.flights, key)
		f.mu.Unlock()
		close(own.done)
	}()
	own.err = ask()
	return own.err
}

// mark reports whether key was not marked yet, and marks it.
func (f *findCache) mark(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.marked[key] {
		return false
	}
	f.marked[key] = true
	return true
}

func (f *findCache) unmark(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.marked, key)
}
