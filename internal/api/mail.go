package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

const (
	postBatch   = 256       // letters that are stored in one go
	maxAwaiting = 65_536    // letters of one stream that are on their way
	maxInbox    = 2 << 20   // bytes of bodies in one answer of Inbox; the rest comes with the next
	stateStored = "stored"  // PostResponse.state
	stateRefuse = "refused" // PostResponse.state
)

// mailService serves MailService.
type mailService struct{ *Server }

// Post takes letters as fast as they come. While one batch is being stored the next one
// gathers, so a busy stream needs few transactions and an idle one waits for nothing.
// Letters of one stream are stored in its order. A letter that cannot be posted is
// answered "refused" and does not end the stream.
func (s *mailService) Post(ctx context.Context, stream *connect.BidiStream[shoalv1.PostRequest, shoalv1.PostResponse]) error {
	if s.svc.Mail == nil {
		return errNotBuilt
	}
	ctx, done := s.untilStop(ctx)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	p := &postStream{mail: s.svc.Mail, out: newSender(stream), queue: make(chan *posting, postBatch), wake: make(chan struct{}, 1)}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { cancelOn(cancel, p.store(ctx)) })
	outcomes := make(chan struct{})
	work.Go(func() {
		defer close(outcomes)
		cancelOn(cancel, p.report(ctx))
	})

	err := s.receivePosts(ctx, stream, p)
	close(p.queue)
	if err == nil {
		<-outcomes // the client has said all; what it still hears are outcomes
		err = ctx.Err()
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // why sending failed, rather than what came of it
	}
	cancel(nil)
	return s.endOf(err)
}

func cancelOn(cancel context.CancelCauseFunc, err error) {
	if err != nil {
		cancel(err)
	}
}

func (s *mailService) receivePosts(ctx context.Context, stream *connect.BidiStream[shoalv1.PostRequest, shoalv1.PostResponse], p *postStream) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		letter, err := s.decodePost(req)
		if err == nil {
			err = p.admit()
		}
		if err != nil {
			if err := p.refuse(req.GetTag(), err); err != nil {
				return err
			}
			continue
		}
		item := &posting{tag: req.GetTag(), letter: letter}
		item.letter.Done = func(state, reason string) { p.outcome(item, state, reason) }
		select {
		case p.queue <- item:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *mailService) decodePost(m *shoalv1.PostRequest) (l Letter, err error) {
	if l.From, err = s.hosted("as", m.GetAs()); err != nil {
		return l, err
	}
	if l.To, err = s.anyAgent("to", m.GetTo()); err != nil {
		return l, err
	}
	if n := len(m.GetBody()); n > shoal.MaxBody {
		return l, invalid("body_too_large", fmt.Sprintf("at most %d bytes are allowed", shoal.MaxBody), "the body has %d bytes", n)
	}
	l.Body = m.GetBody()
	l.TTL, err = millis("ttl_ms", m.GetTtlMs(), maxDuration)
	return l, err
}

// posting is one letter of a stream.
type posting struct {
	tag    uint64
	letter Letter
	id     string
	told   bool                  // the client knows that it is stored
	early  *shoalv1.PostResponse // its outcome, if that came first
}

// postStream is the state of one Post call.
type postStream struct {
	mail  Mail
	out   *sender[shoalv1.PostResponse]
	queue chan *posting
	wake  chan struct{} // capacity 1: ready or drained changed

	mu       sync.Mutex
	ready    []*shoalv1.PostResponse // outcomes to be sent
	awaiting int                     // letters admitted whose last answer is not in ready
	drained  bool                    // no more letters come
}

// admit takes a place for a letter, or refuses it: what is on its way is remembered.
func (p *postStream) admit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awaiting >= maxAwaiting {
		return shoal.NewError(shoal.Exhausted, "too_many_awaiting", "too many letters of this stream are on their way",
			"wait for outcomes, or open another stream")
	}
	p.awaiting++
	return nil
}

// refuse answers a letter that was never stored.
func (p *postStream) refuse(tag uint64, err error) error {
	return p.out.send(&shoalv1.PostResponse{Tag: tag, State: stateRefuse, Reason: shoal.AsError(err).Reason})
}

// store stores what has gathered in the queue, again and again, until the queue is closed.
func (p *postStream) store(ctx context.Context) error {
	defer p.update(func() { p.drained = true })
	for first := range p.queue {
		batch := p.gather(first)
		letters := make([]Letter, len(batch))
		for i, item := range batch {
			letters[i] = item.letter
		}
		for i, res := range p.mail.Post(ctx, letters) {
			if err := p.stored(batch[i], res); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *postStream) gather(first *posting) []*posting {
	batch := append(make([]*posting, 0, postBatch), first)
	for len(batch) < postBatch {
		select {
		case next, ok := <-p.queue:
			if !ok {
				return batch
			}
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

func (p *postStream) stored(item *posting, res Posted) error {
	if res.Err != nil {
		p.update(func() { p.awaiting-- })
		return p.refuse(item.tag, res.Err)
	}
	err := p.out.send(&shoalv1.PostResponse{Tag: item.tag, Id: res.ID, State: stateStored})
	p.update(func() {
		item.told, item.id = true, res.ID
		if item.early != nil {
			item.early.Id = res.ID
			p.ready = append(p.ready, item.early)
			p.awaiting--
		}
	})
	return err
}

// outcome notes what became of a letter; mail calls it and must not wait.
func (p *postStream) outcome(item *posting, state, reason string) {
	resp := &shoalv1.PostResponse{Tag: item.tag, State: state, Reason: reason}
	p.update(func() {
		if !item.told { // "stored" goes first
			item.early = resp
			return
		}
		resp.Id = item.id
		p.ready = append(p.ready, resp)
		p.awaiting--
	})
}

func (p *postStream) update(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// report sends outcomes until all letters have theirs and no more come.
func (p *postStream) report(ctx context.Context) error {
	for {
		p.mu.Lock()
		ready, finished := p.ready, p.drained && p.awaiting == 0
		p.ready = nil
		p.mu.Unlock()

		for _, resp := range ready {
			if err := p.out.send(resp); err != nil {
				return err
			}
		}
		if finished {
			return nil
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Inbox may answer with fewer letters than asked for: an empty answer is the end.
func (s *mailService) Inbox(ctx context.Context, req *connect.Request[shoalv1.InboxRequest]) (*connect.Response[shoalv1.InboxResponse], error) {
	if s.svc.Mail == nil {
		return nil, errNotBuilt
	}
	agent, err := s.hosted("agent", req.Msg.GetAgent())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.Msg.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	letters, err := s.svc.Mail.Inbox(ctx, agent, req.Msg.GetAfter(), size)
	if err != nil {
		return nil, err
	}
	resp, bytes := &shoalv1.InboxResponse{}, 0
	for _, l := range letters {
		bytes += len(l.Body)
		if bytes > maxInbox && len(resp.Letters) > 0 {
			break
		}
		resp.Letters = append(resp.Letters, &shoalv1.Letter{
			Cursor: l.Cursor, Id: l.ID, From: string(l.From), To: string(l.To), Body: l.Body,
			CreatedAt: stamp(l.Created), ReceivedAt: stamp(l.Received),
		})
	}
	return connect.NewResponse(resp), nil
}

func (s *mailService) Ack(ctx context.Context, req *connect.Request[shoalv1.AckRequest]) (*connect.Response[shoalv1.AckResponse], error) {
	if s.svc.Mail == nil {
		return nil, errNotBuilt
	}
	agent, err := s.hosted("agent", req.Msg.GetAgent())
	if err != nil {
		return nil, err
	}
	cursors := req.Msg.GetCursors()
	if len(cursors) == 0 {
		return nil, missing("cursors", "give the cursors of the letters to remove, as Inbox returned them")
	}
	if len(cursors) > maxCursors {
		return nil, invalid("too_many", fmt.Sprintf("at most %d are allowed", maxCursors), "%d cursors are given", len(cursors))
	}
	if err := s.svc.Mail.Ack(ctx, agent, cursors); err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.AckResponse{}), nil
}
