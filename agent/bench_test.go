package agent

import (
	"context"
	"strconv"
	"testing"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// BenchmarkEcho is one task through the socket: assignment out, handler, report in.
func BenchmarkEcho(b *testing.B) {
	d := newDaemon(b)
	d.chunks = make(chan *shoalv1.ReportRequest, 1_000_000)
	d.run(Config{}, echo)
	a := recv(b, d.attached, "the agent")
	for i := 0; b.Loop(); i++ {
		a.events <- assign(strconv.Itoa(i), "hello")
		<-d.reports
	}
}

// BenchmarkToken is one write of a handler until the daemon has read it.
func BenchmarkToken(b *testing.B) {
	d := newDaemon(b)
	token := make(chan struct{})
	d.run(Config{}, func(_ context.Context, _ *Task, w *Writer) error {
		for range token {
			if _, err := w.WriteString("token "); err != nil {
				return err
			}
		}
		return nil
	})
	a := recv(b, d.attached, "the agent")
	a.events <- assign("t", "")
	for i := 0; b.Loop(); i++ {
		if i >= maxAnswer/6 {
			b.Fatal("the answer is full: use -benchtime 20000x")
		}
		token <- struct{}{}
		<-d.chunks
	}
	close(token)
	<-d.reports
}
