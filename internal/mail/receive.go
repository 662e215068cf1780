package mail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

// inwards is what receiving streams share.
type inwards struct {
	budget *semaphore.Weighted // bytes received and not yet applied

	flows atomic.Int64 // rows of mail_inflow

	mu      sync.Mutex
	streams map[string]int // open, by peer
	dropped map[string]uint64
}

const (
	maxStreams   = 4 // of one peer at a time; an old one may be dying while a new one opens
	framesQueued = 4 // verified and not yet applied, of one stream
	acksQueued   = 16
	readTimeout  = 10 * time.Minute // without a frame, the sender is gone
	writeTimeout = 30 * time.Second // of an ack
)

func (in *inwards) init() {
	in.streams, in.dropped = make(map[string]int), make(map[string]uint64)
}

func (in *inwards) drop(reason string) {
	in.mu.Lock()
	in.dropped[reason]++
	in.mu.Unlock()
}

// reasons returns a copy of the counts. Its keys are ours and our handlers', so few.
func (in *inwards) reasons() map[string]uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := make(map[string]uint64, len(in.dropped))
	for k, v := range in.dropped {
		out[k] = v
	}
	return out
}

func (in *inwards) enter(peer string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.streams[peer] >= maxStreams {
		return false
	}
	in.streams[peer]++
	return true
}

func (in *inwards) exit(peer string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.streams[peer]--; in.streams[peer] == 0 {
		delete(in.streams, peer)
	}
}

// inbound is a verified envelope: signed by its sender for this network, body and all.
type inbound struct {
	header
	sender, recipient shoal.AgentID
	body              []byte
}

// inFrame is what one frame brought.
type inFrame struct {
	envelopes []inbound
	weight    int64
}

// ServeConn answers one mail stream until it ends or ctx does. Who the peer is does not
// matter for what it brings: each frame is signed by the envelopes' sender. A frame that
// is not in order ends the stream, and nothing of it is applied.
func (m *Mailbox) ServeConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	peer := conn.RemoteAddr().String()
	if !m.inward.enter(peer) {
		m.inward.drop("too_many_streams")
		return
	}
	defer m.inward.exit(peer)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	frames := make(chan inFrame, framesQueued)
	acks := make(chan []*wire.FlowAck, acksQueued)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // verify
		defer close(frames)
		if err := m.readFrames(ctx, conn, frames); err != nil && ctx.Err() == nil {
			m.log.Debug("mail stream refused", "node", peer, "err", err)
		}
	})
	wg.Go(func() { // apply
		defer close(acks)
		m.applyFrames(ctx, frames, acks)
	})
	if err := m.writeAcks(conn, acks); err != nil {
		conn.Close() // the reader ends, and with it the applier
		cancel()
		for range acks { // it may be waiting to tell us
		}
	}
}

// readFrames reads and verifies frames until the stream ends or one is not in order.
func (m *Mailbox) readFrames(ctx context.Context, conn net.Conn, frames chan<- inFrame) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	trust := 0 // twice the largest frame that was in order
	for {
		if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
			return err
		}
		raw, err := readPrefixed(r, maxFrame, trust)
		if err != nil {
			if errors.Is(err, errTooLong) {
				m.inward.drop("too_long")
				return err
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		envs, err := m.openFrame(raw)
		if err != nil {
			var b *badFrame
			if errors.As(err, &b) {
				m.inward.drop(b.reason)
			}
			return err
		}
		trust = max(trust, 2*len(raw))
		m.count.receivedFrames.Add(1)
		m.count.received.Add(uint64(len(envs)))
		weight := min(int64(len(raw)), m.cfg.Memory)
		if err := m.inward.budget.Acquire(ctx, weight); err != nil {
			return err
		}
		select {
		case frames <- inFrame{envs, weight}:
		case <-ctx.Done():
			m.inward.budget.Release(weight)
			return ctx.Err()
		}
	}
}

// openFrame checks everything about a frame that needs no database: shape, limits, one
// sender, this network, the bodies' hashes, and the signature over the bytes as received.
func (m *Mailbox) openFrame(raw []byte) ([]inbound, error) {
	parts, sig, err := parseFrame(raw)
	if err != nil {
		return nil, err
	}
	envs := make([]inbound, len(parts))
	leaves := make([][32]byte, len(parts))
	for i, p := range parts {
		e := &envs[i]
		if e.header, err = parseHeader(p.header); err != nil {
			return nil, err
		}
		if err := e.check(); err != nil {
			return nil, err
		}
		switch {
		case e.network != m.cfg.Network:
			return nil, bad("wrong_network", "%.80q", e.network)
		case e.from != envs[0].from:
			return nil, bad("malformed", "two senders in one frame")
		case !e.bodyMatches(p.body):
			return nil, bad("wrong_body", "envelope %x", e.id)
		case e.skipFrom > 0 && len(p.body) > 0:
			return nil, bad("malformed", "skip with a body")
		}
		e.body = p.body
		e.sender, e.recipient = m.ids.agent(e.from), m.ids.agent(e.to)
		leaves[i] = identity.LeafHash(p.header)
	}
	root := identity.TreeRoot(leaves)
	m.count.verified.Add(1)
	if err := identity.Verify(envs[0].from[:], identity.DomainEnvelope, m.cfg.Network, root[:], sig); err != nil {
		return nil, bad("bad_signature", "of %s", envs[0].sender)
	}
	return envs, nil
}

// applyFrames applies all frames that wait in one go, as long as they come.
func (m *Mailbox) applyFrames(ctx context.Context, frames <-chan inFrame, acks chan<- []*wire.FlowAck) {
	told := make(told)
	for f := range frames {
		envs, weight := f.envelopes, f.weight
	more:
		for len(envs) < maxEnvelopes {
			select {
			case f, ok := <-frames:
				if !ok {
					break more
				}
				envs, weight = append(envs, f.envelopes...), weight+f.weight
			default:
				break more
			}
		}
		answer := m.apply(ctx, told, envs)
		m.inward.budget.Release(weight)
		if ctx.Err() != nil {
			continue // drain, so that the reader can end
		}
		acks <- answer
	}
}

// writeAcks writes answers, joined where they wait.
func (m *Mailbox) writeAcks(conn net.Conn, acks <-chan []*wire.FlowAck) error {
	var buf []byte
	for flows := range acks {
		for len(flows) > 0 {
			n := min(len(flows), maxAckFlows)
			var err error
			if buf, err = appendAck(buf[:0], flows[:n]); err != nil {
				return err
			}
			flows = flows[n:]
			if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return fmt.Errorf("write ack: %w", err)
			}
			if _, err := conn.Write(buf); err != nil {
				return fmt.Errorf("write ack: %w", err)
			}
		}
	}
	return nil
}

// maxAckFlows keeps a MailAck below maxAck: a FlowAck has two keys, a topic, a reason and
// numbers, less than 256 bytes.
const maxAckFlows = maxAck / 256

// appendAck appends a MailAck with its length prefix.
func appendAck(b []byte, flows []*wire.FlowAck) ([]byte, error) {
	b = beginFrame(b)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, &wire.MailAck{Flows: flows})
	if err != nil {
		return b, fmt.Errorf("encode ack: %w", err)
	}
	return closeFrame(b), nil
}
