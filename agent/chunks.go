package agent

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// maxChunk bounds one piece of text on the stream.
const maxChunk = 16 << 10

type reportStream = connect.BidiStreamForClient[shoalv1.ReportRequest, shoalv1.ReportResponse]

// chunker sends the text of all writers of a session over one ReportStream. While one
// piece is being sent, the others collect what is written: batches form by themselves,
// with no timer. Pieces may be lost; the durable artifact holds all.
type chunker struct {
	workers shoalv1connect.WorkerServiceClient
	session string

	mu    sync.Mutex
	dirty []*Writer     // each at most once, see Writer.queued
	wake  chan struct{} // holds an element if dirty may be non-empty
}

func newChunker(workers shoalv1connect.WorkerServiceClient, session string) *chunker {
	return &chunker{workers: workers, session: session, wake: make(chan struct{}, 1)}
}

func (c *chunker) push(w *Writer) {
	c.mu.Lock()
	c.dirty = append(c.dirty, w)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next takes the writer that has waited longest; nil when ctx ends.
func (c *chunker) next(ctx context.Context) *Writer {
	for {
		c.mu.Lock()
		if len(c.dirty) > 0 {
			w := c.dirty[0]
			c.dirty = c.dirty[1:]
			c.mu.Unlock()
			return w
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
}

// run sends until ctx ends.
func (c *chunker) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stream *reportStream
	for {
		w := c.next(ctx)
		if w == nil {
			return nil
		}
		offset, text := w.take(maxChunk)
		if text == "" {
			continue
		}
		c.push(w) // there may be more; take ends it
		if stream == nil {
			stream = c.workers.ReportStream(ctx)
			opened := stream
			wg.Go(func() { drain(opened) })
		}
		err := stream.Send(&shoalv1.ReportRequest{
			Session: c.session, TaskId: string(w.t.key.ID), Requester: string(w.t.key.Requester),
			Chunk: &shoalv1.TextChunk{ArtifactId: AnswerID, Offset: int64(offset), Text: text},
		})
		if err != nil {
			// The daemon ended the stream, or the connection is gone: then ctx ends soon.
			_ = stream.CloseRequest()
			stream = nil
		}
	}
}

// drain reads the answers, which carry nothing for chunks, until the stream ends.
func drain(s *reportStream) {
	for {
		if _, err := s.Receive(); err != nil {
			_ = s.CloseResponse()
			return
		}
	}
}
