// Package node composes the daemon: it opens what everything stands on, makes each
// service after what it needs, says who hears what, and starts and stops all in order.
//
// It is the only package that imports the services; they do not know each other. It
// holds no rule of its own beyond which neighbour answers which question (peers.go,
// choose.go) and what an operator sees (serve.go). cmd/shoal calls [Run] and [Restore].
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/api"
	"github.com/shoalmesh/shoal/internal/directory"
	"github.com/shoalmesh/shoal/internal/httpguard"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/mesh"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/task"
	"github.com/shoalmesh/shoal/internal/worker"
)

// Ready says that the daemon accepts calls.
type Ready struct {
	DID     string
	PeerID  string
	Addrs   []string // full multiaddrs with /p2p/
	HTTP    string   // URL; "" when off
	Socket  string
	ReadyMS float64
}

// node is a composed daemon. Its fields are its services; it has no behaviour but to
// run them and to answer for them.
type node struct {
	home    string
	cfg     Config
	version string
	began   time.Time
	logs    *logBook
	log     *slog.Logger
	stop    context.CancelFunc

	db        *store.DB
	ring      *identity.Ring
	mesh      *mesh.Mesh
	directory *directory.Directory
	mail      *mail.Mailbox
	workers   *worker.Pool
	tasks     *task.Engine
	api       *api.Server
	tracing   *tracing
	peers     *peerBook
	streams   []part // who answers which mesh protocol

	unix, http net.Listener
	socket     string
}

// Run runs a daemon until ctx ends, Shutdown is called, or a part of it fails; ready is
// called once, when socket and HTTP accept. It returns nil when it stopped in order, and
// errors with a reason and a hint: data_dir_locked, port_taken, key_missing …
func Run(ctx context.Context, version string, o Options, ready func(Ready)) error {
	began := time.Now()
	closeProcess()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	n := &node{home: o.Home, version: version, began: began, stop: stop}
	if err := n.open(o); err != nil {
		return errors.Join(err, n.close())
	}
	if err := n.bind(); err != nil {
		return errors.Join(err, n.close())
	}
	n.log.Info("node is up", "agent", n.did(), "network", n.cfg.Network, "addrs", n.mesh.Addrs(), "took", time.Since(began))
	ready(Ready{
		DID: string(n.did()), PeerID: string(n.mesh.ID()), Addrs: n.mesh.Addrs(), HTTP: n.httpURL(), Socket: n.socket,
		ReadyMS: float64(time.Since(began).Microseconds()) / 1000,
	})
	err := n.run(ctx)
	return errors.Join(err, n.close())
}

// open makes the foundations and then each service after what it stands on. Nothing
// runs and nobody is called yet.
func (n *node) open(o Options) (err error) {
	if err := openHome(n.home); err != nil {
		return err
	}
	if n.cfg, err = loadConfig(o); err != nil {
		return err
	}
	if err := n.openLog(o); err != nil {
		return err
	}

	// Foundations: the database first, since its lock makes the data dir ours.
	n.db, err = store.Open(store.Config{Dir: n.home},
		[]store.Schema{schema(), directory.Schema(), mail.Schema(), worker.Schema(), task.Schema()}, n.named("store"))
	if err != nil {
		return err
	}
	if err := n.settle(); err != nil {
		return err
	}
	if err := n.openKeys(); err != nil {
		return err
	}
	if n.tracing, err = newTracing(n.cfg.OTLPEndpoint, n.version, n.did()); err != nil {
		return err
	}
	if err := n.openMesh(); err != nil {
		return err
	}

	// Services, each after what it stands on.
	n.directory, err = directory.New(directory.Config{Network: n.cfg.Network, Node: n.mesh.ID()}, n.db, n.mesh, n.ring, n.named("directory"))
	if err != nil {
		return err
	}
	n.workers, err = worker.New(worker.Config{
		Report: func(ctx context.Context, r shoal.Report) (uint64, error) { return n.tasks.Report(ctx, r) },
		Ready:  func(agent shoal.AgentID) { n.tasks.Ready(agent) },
		Lost:   func(keys []shoal.TaskKey, agent shoal.AgentID) { n.tasks.Lost(keys, agent) },
	}, n.db, n.directory, n.ring, n.named("worker"))
	if err != nil {
		return err
	}
	n.mail, err = mail.New(mail.Config{
		Network: n.cfg.Network,
		// Who hears which topic.
		Handlers: map[string]mail.Handler{
			task.Topic: func(tx *store.Tx, env shoal.Envelope) error { return n.tasks.Receive(tx, env) },
		},
		Undelivered: map[string]mail.UndeliveredFunc{
			task.Topic: func(tx *store.Tx, env shoal.Envelope, reason string) error {
				return n.tasks.Undelivered(tx, env, reason)
			},
		},
	}, n.db, n.mesh, n.directory, n.ring, n.named("mail"))
	if err != nil {
		return err
	}
	n.tasks, err = task.New(task.Config{
		Network: n.cfg.Network, DefaultTimeout: time.Duration(n.cfg.TaskTimeout), Tracer: n.tracing.tracer(),
	}, task.Deps{
		DB: n.db, Outbox: n.mail, Workers: n.workers, Agents: chooser{n}, Mesh: n.mesh, Keys: n.ring, Log: n.named("task"),
	})
	if err != nil {
		return err
	}
	if err := n.openStreams(); err != nil {
		return err
	}
	return n.openAPI()
}

func (n *node) openAPI() error {
	token, err := httpguard.OpenToken(filepath.Join(n.home, "token"))
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	n.register(metrics)
	n.api = api.New(api.Config{
		Version: n.version, Token: httpguard.TokenOf(token), AllowedHosts: n.cfg.AllowedHosts,
		Metrics: metrics, Tracer: n.tracing.tracer(),
	}, api.Services{
		Node: n, Admin: n, Agents: n.workers, Directory: n.directory, Tasks: n.tasks, Steps: n.tasks,
		Workers: api.PoolWorkers(n.workers), Mail: letters{n},
	}, n.named("api"))
	return nil
}

// bind opens what others can connect to. Handlers of mesh streams are known before the
// mesh listens, so no early peer is turned away.
func (n *node) bind() (err error) {
	if n.socket, err = socketPath(n.home, runtimeDir()); err != nil {
		return err
	}
	if err := n.bindMesh(); err != nil {
		return err
	}
	if n.unix, err = listenUnix(n.socket); err != nil {
		return err
	}
	if n.cfg.HTTP == "off" {
		return nil
	}
	kept, err := n.setting("http")
	if err != nil {
		return err
	}
	if n.http, err = listenHTTP(n.cfg.HTTP, kept); err != nil {
		return err
	}
	if n.cfg.HTTP == "" {
		return n.keep("http", n.http.Addr().String())
	}
	return nil
}

// run starts what runs, top to bottom, and stops it bottom to top.
func (n *node) run(ctx context.Context) error {
	parts := []part{
		{"mesh", n.mesh.Run},
		{"directory", n.directory.Run},
		{"peers", n.peers.Run},
		{"mail", n.mail.Run},
		{"workers", n.workers.Run},
		{"tasks", n.tasks.Run},
	}
	parts = append(parts, n.streams...)
	parts = append(parts, part{"api", func(ctx context.Context) error { return n.api.Run(ctx, n.unix, n.http) }})
	return runAll(ctx, parts)
}

// close gives back what open and bind took; it is safe on a half-opened node.
func (n *node) close() error {
	var err error
	if n.unix != nil {
		n.unix.Close()
	}
	if n.http != nil {
		n.http.Close()
	}
	if n.mesh != nil {
		err = n.mesh.Close()
	}
	if n.tracing != nil {
		err = errors.Join(err, n.tracing.close())
	}
	if n.db != nil {
		err = errors.Join(err, n.db.Close())
	}
	if n.unix != nil {
		err = errors.Join(err, removeSocket(n.socket, n.home))
	}
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

func (n *node) did() shoal.AgentID { return n.ring.Node().Agent() }

func (n *node) named(pkg string) *slog.Logger { return n.log.With("pkg", pkg) }

func (n *node) httpURL() string {
	if n.http == nil {
		return ""
	}
	return "http://" + n.http.Addr().String()
}
