package meshtest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/shoalmesh/shoal"
)

const (
	acceptBacklog = 128
	// window is how many bytes may be under way in one direction before Write blocks.
	window = 1 << 20
)

// listener is a net.Listener in memory.
type listener struct {
	mesh  *Mesh
	proto string
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case <-l.done:
		return nil, net.ErrClosed
	case c := <-l.conns:
		return c, nil
	}
}

func (l *listener) Close() error {
	l.mesh.net.mu.Lock()
	if l.mesh.listeners[l.proto] == l {
		delete(l.mesh.listeners, l.proto)
	}
	l.stop()
	var left []net.Conn
	for len(l.conns) > 0 {
		left = append(left, <-l.conns)
	}
	l.mesh.net.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
	return nil
}

func (l *listener) stop() { l.once.Do(func() { close(l.done) }) }

func (l *listener) Addr() net.Addr { return addr(l.mesh.id) }

// addr is a NodeID as a net.Addr.
type addr shoal.NodeID

func (addr) Network() string  { return "memory" }
func (a addr) String() string { return string(a) }

// link is a connection: two ends, each writing into the half that the other reads.
type link struct {
	net  *Net
	ends [2]*end
}

func newLink(n *Net, from, to shoal.NodeID) *link {
	k := &link{net: n}
	there, back := newHalf(), newHalf()
	k.ends[0] = &end{link: k, local: from, remote: to, in: back, out: there, readBy: newAlarm(), writeBy: newAlarm()}
	k.ends[1] = &end{link: k, local: to, remote: from, in: there, out: back, readBy: newAlarm(), writeBy: newAlarm()}
	return k
}

// sever breaks the connection for both ends at once.
func (k *link) sever() {
	for _, e := range k.ends {
		e.in.fail(syscall.ECONNRESET)
	}
}

// end is one side of a connection.
type end struct {
	link            *link
	local, remote   shoal.NodeID
	in, out         *half
	readBy, writeBy *alarm
	once            sync.Once
	closed          bool // guarded by link.net.mu
}

func (e *end) LocalAddr() net.Addr  { return addr(e.local) }
func (e *end) RemoteAddr() net.Addr { return addr(e.remote) }

func (e *end) Read(b []byte) (int, error) { return e.in.read(b, e.readBy) }

func (e *end) Write(b []byte) (int, error) {
	n := e.link.net
	n.mu.Lock()
	lost, latency := n.lost(), n.latency
	n.mu.Unlock()
	if lost {
		e.link.sever()
		return 0, syscall.ECONNRESET
	}
	return e.out.write(b, latency, e.writeBy)
}

// CloseWrite ends this direction; the other side reads to the end.
func (e *end) CloseWrite() error {
	n := e.link.net
	n.mu.Lock()
	latency := n.latency
	n.mu.Unlock()
	e.out.end(latency)
	return nil
}

func (e *end) Close() error {
	e.once.Do(func() {
		_ = e.CloseWrite()
		e.in.abandon()
		n := e.link.net
		n.mu.Lock()
		defer n.mu.Unlock()
		e.closed = true
		if e.link.ends[0].closed && e.link.ends[1].closed {
			delete(n.links, e.link)
		}
	})
	return nil
}

func (e *end) SetDeadline(t time.Time) error {
	e.readBy.set(t)
	e.writeBy.set(t)
	return nil
}
func (e *end) SetReadDeadline(t time.Time) error  { e.readBy.set(t); return nil }
func (e *end) SetWriteDeadline(t time.Time) error { e.writeBy.set(t); return nil }

// half carries bytes one way.
type half struct {
	mu     sync.Mutex
	chunks []chunk
	size   int
	last   time.Time // nothing arrives before this: order is kept
	ended  bool      // the writer is done
	gone   bool      // the reader is done
	broken error
	wake   chan struct{} // closed and replaced at each change
}

type chunk struct {
	at   time.Time
	data []byte
}

func newHalf() *half { return &half{wake: make(chan struct{})} }

func (h *half) changed() {
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.broken = err
		h.changed()
	}
}

func (h *half) end(latency time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		h.last = later(h.last, time.Now().Add(latency))
		h.changed()
	}
}

func (h *half) abandon() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone, h.chunks, h.size = true, nil, 0
	h.changed()
}

func (h *half) read(b []byte, by *alarm) (int, error) {
	for {
		h.mu.Lock()
		n, wait, err := h.take(b)
		wake := h.wake
		h.mu.Unlock()
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		if err := sleep(wait, wake, by); err != nil {
			return 0, err
		}
	}
}

// take reads what has arrived; wait is how long until more does, 0 if that is unknown.
func (h *half) take(b []byte) (n int, wait time.Duration, err error) {
	switch now := time.Now(); {
	case h.gone:
		return 0, 0, net.ErrClosed
	case h.broken != nil:
		return 0, 0, h.broken
	case len(h.chunks) > 0:
		c := &h.chunks[0]
		if c.at.After(now) {
			return 0, c.at.Sub(now), nil
		}
		n = copy(b, c.data)
		h.size -= n
		if c.data = c.data[n:]; len(c.data) == 0 {
			h.chunks = h.chunks[1:]
		}
		h.changed()
		return n, 0, nil
	case h.ended:
		if h.last.After(now) {
			return 0, h.last.Sub(now), nil
		}
		return 0, 0, io.EOF
	}
	return 0, 0, nil
}

func (h *half) write(b []byte, latency time.Duration, by *alarm) (int, error) {
	written := 0
	for {
		h.mu.Lock()
		n, err := h.put(b[written:], latency)
		wake := h.wake
		h.mu.Unlock()
		written += n
		if err != nil || written == len(b) {
			return written, err
		}
		if err := sleep(0, wake, by); err != nil {
			return written, err
		}
	}
}

// put takes as much of b as the window has room for.
func (h *half) put(b []byte, latency time.Duration) (int, error) {
	switch {
	case h.ended:
		return 0, net.ErrClosed
	case h.broken != nil:
		return 0, h.broken
	case h.gone:
		return 0, syscall.EPIPE
	}
	n := min(len(b), window-h.size)
	if n > 0 {
		h.last = later(h.last, time.Now().Add(latency))
		h.chunks = append(h.chunks, chunk{h.last, append([]byte(nil), b[:n]...)})
		h.size += n
		h.changed()
	}
	return n, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sleep waits for wake, for d to pass unless it is 0, or for the deadline.
func sleep(d time.Duration, wake <-chan struct{}, by *alarm) error {
	rung := by.rung()
	var tick <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		tick = t.C
	}
	select {
	case <-rung:
		return os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-wake:
	case <-tick:
	case <-rung:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// alarm is a deadline that can be moved while somebody waits for it.
type alarm struct {
	mu    sync.Mutex
	timer *time.Timer
	turn  int           // counts calls of set: an old timer that fires late does nothing
	ring  chan struct{} // closed at the deadline
}

func newAlarm() *alarm { return &alarm{ring: make(chan struct{})} }

func (a *alarm) rung() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ring
}

func (a *alarm) set(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	select {
	case <-a.ring:
		a.ring = make(chan struct{})
	default:
	}
	a.turn++
	if t.IsZero() {
		return
	}
	turn := a.turn
	if d := time.Until(t); d > 0 {
		a.timer = time.AfterFunc(d, func() { a.fire(turn) })
	} else {
		close(a.ring)
	}
}

func (a *alarm) fire(turn int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.turn == turn {
		a.turn++
		close(a.ring)
	}
}
