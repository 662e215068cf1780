//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh"
)

// The protocols that a rogue speaks, as spec/wire.md §1 names them.
const (
	mailProtocol = "/shoal/mail/1.0.0"
	cardProtocol = "/shoal/card/1.0.0"
	liveProtocol = "/shoal/live/1.0.0"
	network      = "main"
)

// rogue is a member of the mesh that keeps to no rule above the transport.
type rogue struct {
	*mesh.Mesh
	t   *testing.T
	key identity.Key
}

// newRogue starts a node in the test process, connected to the daemons.
func newRogue(t *testing.T, daemons ...*daemon) *rogue {
	t.Helper()
	r := &rogue{t: t, key: newKey(t)}
	listen, err := mesh.ListenAddrs("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.Mesh, err = mesh.New(mesh.Config{Network: network, Listen: listen}, r.key, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	if err := r.Bind(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	for _, d := range daemons {
		if _, err := r.Join(ctxFor(t, 20*time.Second), d.ready.Addrs); err != nil {
			t.Fatalf("the rogue joins %s: %v", d.name, err)
		}
	}
	return r
}

func newKey(t *testing.T) identity.Key {
	t.Helper()
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// dial opens a stream to a daemon; one that was restarted may need a moment.
func (r *rogue) dial(d *daemon, protocol string) net.Conn {
	r.t.Helper()
	var conn net.Conn
	var err error
	ok := within(20*time.Second, func() bool {
		conn, err = r.Dial(ctxFor(r.t, 10*time.Second), shoal.NodeID(d.ready.PeerID), protocol)
		return err == nil
	})
	if !ok {
		r.t.Fatalf("the rogue dials %s: %v", d.name, err)
	}
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	return conn
}

// frame is a message with its length in front.
func frame(t *testing.T, m proto.Message) []byte {
	t.Helper()
	var b strings.Builder
	if _, err := protodelim.MarshalTo(&b, m); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}

// tell writes raw bytes on a mail stream, says that it is all, and returns the answers.
func (r *rogue) tell(d *daemon, raw []byte) []*wire.FlowAck {
	r.t.Helper()
	conn := r.dial(d, mailProtocol)
	defer conn.Close()
	if _, err := conn.Write(raw); err != nil {
		return nil // refused while we were still writing
	}
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	in := bufio.NewReader(conn)
	var out []*wire.FlowAck
	for {
		var ack wire.MailAck
		if err := (protodelim.UnmarshalOptions{MaxSize: 256 << 10}).UnmarshalFrom(in, &ack); err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				r.t.Errorf("%s neither answers mail nor closes its stream", d.name)
			}
			return out
		}
		out = append(out, ack.GetFlows()...)
	}
}

// seal is a frame of envelopes under one signature of k.
func seal(t *testing.T, k identity.Key, signedFor string, envs ...*wire.SealedEnvelope) *wire.MailFrame {
	t.Helper()
	var leaves [][32]byte
	for _, e := range envs {
		leaves = append(leaves, identity.LeafHash(e.GetHeader()))
	}
	root := identity.TreeRoot(leaves)
	return &wire.MailFrame{Envelopes: envs, Signature: k.Sign(identity.DomainEnvelope, signedFor, root[:])}
}

// raw encodes m; what it means to whoever reads it is the caller's business.
func raw(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tally counts attempts by how they were refused.
type tally struct {
	what     string
	controls int
	tried    int
	accepted int
	reasons  map[string]int
}

func newTally(what string) *tally { return &tally{what: what, reasons: map[string]int{}} }

// refused notes an attempt; without a reason it was accepted.
func (c *tally) note(t *testing.T, name, reason string, accepted bool) {
	t.Helper()
	c.tried++
	if accepted {
		c.accepted++
		t.Errorf("%s: %s: accepted", c.what, name)
		return
	}
	c.reasons[reason]++
	t.Logf("%s: %-48s refused: %s", c.what, name, reason)
}

func (c *tally) print(t *testing.T) {
	t.Helper()
	var by []string
	for _, r := range slices.Sorted(maps.Keys(c.reasons)) {
		by = append(by, fmt.Sprintf("%s %d", r, c.reasons[r]))
	}
	t.Logf("%s: controls accepted %d, attacks accepted %d of %d; refused: %s", c.what, c.controls, c.accepted, c.tried, strings.Join(by, ", "))
	if c.controls == 0 || c.tried == 0 {
		t.Errorf("%s: nothing was tested", c.what)
	}
}

// saidWhy finds a pattern's first group in what a daemon logged after a mark.
func saidWhy(d *daemon, mark int, pattern *regexp.Regexp) string {
	reason := ""
	within(3*time.Second, func() bool {
		m := pattern.FindStringSubmatch(d.log.since(mark))
		if m != nil {
			reason = m[1]
		}
		return m != nil
	})
	return reason
}
