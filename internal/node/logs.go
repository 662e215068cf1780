package node

import (
	"bytes"
	"context"
	"io"
	"sync"
)

// maxLogLines is how many lines `shoal logs` can look back.
const maxLogLines = 2000

// logBook passes log lines on to a writer and keeps the last ones for the API.
type logBook struct {
	out io.Writer // may be nil

	mu    sync.Mutex
	lines []string
	first int // number of lines[0] since the start
	grown chan struct{}
}

func newLogBook(out io.Writer) *logBook {
	return &logBook{out: out, grown: make(chan struct{})}
}

// Write takes one or more whole lines, as slog's handlers write them.
func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	for line := range bytes.Lines(p) {
		b.lines = append(b.lines, string(bytes.TrimRight(line, "\n")))
	}
	if over := len(b.lines) - maxLogLines; over > 0 {
		b.lines = append([]string(nil), b.lines[over:]...)
		b.first += over
	}
	close(b.grown)
	b.grown = make(chan struct{})
	b.mu.Unlock()
	if b.out == nil {
		return len(p), nil
	}
	return b.out.Write(p)
}

// from returns the lines since number n and a channel that is closed when more come.
func (b *logBook) from(n int) (lines []string, next int, grown <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(max(n, b.first), b.first+len(b.lines))
	return append([]string(nil), b.lines[n-b.first:]...), b.first + len(b.lines), b.grown
}

// Logs emits the last tail lines, and with follow those that come, until ctx ends.
func (b *logBook) Logs(ctx context.Context, tail int, follow bool, emit func(string) error) error {
	if tail <= 0 {
		tail = 100
	}
	_, end, _ := b.from(1 << 62)
	next := end - tail
	for {
		lines, after, grown := b.from(next)
		for _, l := range lines {
			if err := emit(l); err != nil {
				return err
			}
		}
		next = after
		if !follow {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		}
	}
}
