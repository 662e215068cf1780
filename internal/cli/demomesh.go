package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// demoNode is one daemon of the demo.
type demoNode struct {
	name    string
	home    string
	ready   Ready
	process *child
	stdin   io.Closer // the daemon ends when this does, even if we are killed
	log     *os.File
	client  *agent.Client
	api     *client
}

// demoMesh is the demo's three daemons and the three agents attached to them.
type demoMesh struct {
	dir                  string
	editor, poet, tailor *demoNode
	failed               chan error // an agent that ended by itself

	stopAgents context.CancelFunc
	agents     sync.WaitGroup
}

func newDemoMesh() (*demoMesh, error) {
	dir, err := os.MkdirTemp("", "shoal-demo-")
	if err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	m := &demoMesh{dir: dir, failed: make(chan error, 3), stopAgents: func() {}}
	m.editor, m.poet, m.tailor = m.node("editor"), m.node("poet"), m.node("tailor")
	return m, nil
}

func (m *demoMesh) node(name string) *demoNode {
	return &demoNode{name: "node " + name, home: filepath.Join(m.dir, name)}
}

func (m *demoMesh) nodes() []*demoNode { return []*demoNode{m.editor, m.poet, m.tailor} }

// up starts the first node, then the others, which join it.
func (m *demoMesh) up(ctx context.Context, say func(string, ...any)) error {
	if err := m.editor.start(ctx); err != nil {
		return err
	}
	say("%s is up in %s: %s", m.editor.name, span(m.editor.ready.ReadyMS), m.editor.ready.PeerID)
	join, err := m.editor.address()
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, n := range m.nodes()[1:] {
		g.Go(func() error { return n.start(ctx, join) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, n := range m.nodes()[1:] {
		say("%s is up in %s: %s", n.name, span(n.ready.ReadyMS), n.ready.PeerID)
	}
	say("both joined the first over libp2p: %s", join)
	return nil
}

// address is where others join the node: over QUIC, if it listens there.
func (n *demoNode) address() (string, error) {
	for _, addr := range n.ready.Addrs {
		if strings.Contains(addr, "/quic-v1/") {
			return addr, nil
		}
	}
	if len(n.ready.Addrs) == 0 {
		return "", shoal.NewError(shoal.Internal, "demo_failed", n.name+" listens nowhere", "")
	}
	return n.ready.Addrs[0], nil
}

// start runs `shoal up` as a process and waits until it is ready.
func (n *demoNode) start(ctx context.Context, join ...string) error {
	if err := os.MkdirAll(n.home, 0o700); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	var err error
	if n.log, err = os.OpenFile(logFile(n.home), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	args := append(upArgs(UpOptions{Home: n.home, Listen: "127.0.0.1:0", HTTP: "off", Join: join}), "--until-eof")
	c, err := spawn(args, n.log)
	if err != nil {
		return err
	}
	if n.stdin, err = c.StdinPipe(); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	ownGroup(c.Cmd)
	if n.ready, err = c.start(ctx); err != nil {
		return fmt.Errorf("%s: %w", n.name, childFailed(err, n.log, 0))
	}
	n.process = c
	n.api = newClient(n.home)
	n.client, err = agent.Dial(n.home)
	return err
}

// stopGrace is how long a daemon of the demo may take to stop in order.
const stopGrace = 5 * time.Second

// stop ends the daemon in order, by force if that takes too long.
func (n *demoNode) stop() error {
	if n.client != nil {
		n.client.Close()
	}
	if n.log != nil {
		defer n.log.Close()
	}
	if n.process == nil {
		return nil
	}
	// The work is over or given up, but its processes must still go.
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if _, err := n.api.node.Shutdown(ctx, connect.NewRequest(&shoalv1.ShutdownRequest{})); err != nil {
		_ = terminate(n.process.Process)
	}
	_ = n.stdin.Close()
	force := time.AfterFunc(stopGrace, func() { _ = n.process.Process.Kill() })
	defer force.Stop()
	err := n.process.Wait()
	if err != nil {
		return fmt.Errorf("%s did not stop in order: %w", n.name, err)
	}
	return nil
}

// close ends agents and daemons and removes every trace.
func (m *demoMesh) close() error {
	m.stopAgents()
	m.agents.Wait()
	var g errgroup.Group
	for _, n := range m.nodes() {
		g.Go(n.stop)
	}
	err := g.Wait()
	return errors.Join(err, os.RemoveAll(m.dir))
}
