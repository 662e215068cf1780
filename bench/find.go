package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/directory"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh"
	"github.com/shoalmesh/shoal/internal/store"
)

const (
	capability = "ocr"
	// While one answer is given the mesh is asked behind it; the next find waits for that,
	// as finds of a real program are seconds apart.
	warmPause = 60 * time.Millisecond
)

// findNodes is fewer in a quick run: that many joining each other take most of its time.
func (b *bench) findNodes() int {
	if b.quick {
		return 12
	}
	return 50
}

// small is a node of mesh, directory and store, composed as package node does it.
type small struct {
	mesh *mesh.Mesh
	dir  *directory.Directory
	db   *store.DB
	up   atomic.Pointer[func(shoal.NodeID)]
}

// school is many small nodes in this process.
type school struct {
	b     *bench
	nodes []*small
	stop  context.CancelFunc
	work  sync.WaitGroup
	n     int // databases opened
}

// oneKey is the key of a node's own agent.
type oneKey identity.Key

func (k oneKey) Key(id shoal.AgentID) (identity.Key, bool) {
	return identity.Key(k), id == identity.Key(k).Agent()
}

// add starts a node; join is empty for the first.
func (s *school) add(ctx context.Context, join []string) (*small, error) {
	key, err := identity.Generate()
	if err != nil {
		return nil, err
	}
	n := &small{}
	listen, err := mesh.ListenAddrs("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.mesh, err = mesh.New(mesh.Config{Network: "bench", Listen: listen, Bootstrap: join, OnPeer: func(id shoal.NodeID, up bool) {
		if tell := n.up.Load(); up && tell != nil {
			(*tell)(id)
		}
	}}, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if n.dir, n.db, err = s.directory(n.mesh, key, directory.Config{}); err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	tell := n.dir.PeerUp
	n.up.Store(&tell)
	cards, err := n.mesh.Listen(directory.Protocol)
	if err != nil {
		return nil, err
	}
	if err := n.mesh.Bind(); err != nil {
		return nil, err
	}
	s.work.Go(func() { _ = n.mesh.Run(ctx) })
	s.work.Go(func() { _ = n.dir.Run(ctx) })
	s.work.Go(func() { s.serve(ctx, cards, n.dir) })
	return n, n.dir.Publish(ctx, shoal.AgentSpec{
		ID: key.Agent(), Name: fmt.Sprintf("agent-%02d", len(s.nodes)), Description: "reads scanned pages",
		Skills: []shoal.Skill{{ID: capability, Name: "OCR", Description: "text of a scanned page"}},
	})
}

func (s *school) serve(ctx context.Context, l net.Listener, dir *directory.Directory) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.work.Go(func() { dir.ServeConn(ctx, c) })
	}
}

// directory opens a directory with a database of its own over a node's mesh.
func (s *school) directory(m *mesh.Mesh, key identity.Key, cfg directory.Config) (*directory.Directory, *store.DB, error) {
	s.n++
	home := s.b.path(fmt.Sprintf("find-%d", s.n))
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.DiscardHandler)
	db, err := store.Open(store.Config{Dir: home}, []store.Schema{directory.Schema()}, log)
	if err != nil {
		return nil, nil, err
	}
	cfg.Network, cfg.Node = "bench", m.ID()
	dir, err := directory.New(cfg, db, m, oneKey(key), log)
	return dir, db, err
}

func (s *school) close() {
	s.stop()
	s.work.Wait()
	for _, n := range s.nodes {
		n.db.Close()
	}
}

// measureFind starts nodes with an agent each and one that looks for them.
func (b *bench) measureFind(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	s := &school{b: b, stop: stop}
	defer s.close()
	began := time.Now()
	first, err := s.add(ctx, nil)
	if err != nil {
		return err
	}
	for range b.findNodes() - 1 {
		if _, err := s.add(ctx, first.mesh.Addrs()); err != nil {
			return err
		}
	}
	f, err := s.addAsker(ctx, first.mesh.Addrs())
	if err != nil {
		return err
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	b.remark("%d nodes in one process know each other after %v", b.findNodes(), time.Since(began).Round(10*time.Millisecond))
	return b.takeFinds(ctx, f)
}

// asker looks for the agents with two directories over one mesh: one as shipped, and one
// whose answers are old almost at once, so that they come from the cards and nodes known
// while the mesh is asked behind them.
type asker struct {
	mesh         *mesh.Mesh
	cached, warm *directory.Directory
	asked        time.Time // when cached was last filled
	nodes        int       // how many have what is looked for
}

func (s *school) addAsker(ctx context.Context, join []string) (*asker, error) {
	key, err := identity.Generate()
	if err != nil {
		return nil, err
	}
	listen, err := mesh.ListenAddrs("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &asker{nodes: s.b.findNodes()}
	if f.mesh, err = mesh.New(mesh.Config{Network: "bench", Listen: listen, Bootstrap: join}, key, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	if err := f.mesh.Bind(); err != nil {
		return nil, err
	}
	s.work.Go(func() { _ = f.mesh.Run(ctx) })
	for _, d := range []struct {
		into **directory.Directory
		cfg  directory.Config
	}{{&f.cached, directory.Config{}}, {&f.warm, directory.Config{CacheFor: time.Millisecond, WarmFor: time.Hour}}} {
		dir, db, err := s.directory(f.mesh, key, d.cfg)
		if err != nil {
			return nil, err
		}
		s.nodes = append(s.nodes, &small{mesh: f.mesh, dir: dir, db: db})
		s.work.Go(func() { _ = dir.Run(ctx) })
		*d.into = dir
	}
	return f, nil
}

// settle waits until both directories know all agents.
func (f *asker) settle(ctx context.Context) error {
	for _, d := range []*directory.Directory{f.cached, f.warm} {
		n := 0
		err := until(ctx, time.Minute, "not all agents were found", func() (bool, error) {
			cards, err := d.Find(ctx, directory.Query{Capability: capability, Limit: 100, Fresh: true})
			n = len(cards)
			return n == f.nodes, err
		})
		if err != nil {
			return errors.Join(err, fmt.Errorf("%d of %d", n, f.nodes))
		}
	}
	f.asked = time.Now()
	return nil
}

func (f *asker) find(ctx context.Context, d *directory.Directory, fresh bool) error {
	cards, err := d.Find(ctx, directory.Query{Capability: capability, Limit: 100, Fresh: fresh})
	if err == nil && len(cards) != f.nodes {
		err = fmt.Errorf("%d of %d agents were found", len(cards), f.nodes)
	}
	return err
}

func (b *bench) takeFinds(ctx context.Context, f *asker) error {
	var cached, warm, fresh series
	for i := range b.windows() + 1 {
		if time.Since(f.asked) > 15*time.Second { // well within CacheFor
			if err := f.find(ctx, f.cached, true); err != nil {
				return err
			}
			f.asked = time.Now()
		}
		for _, part := range []struct {
			name string
			to   *series
			op   func() ([]float64, error)
		}{
			{"find_cached", &cached, func() ([]float64, error) {
				return timed(ctx, b.span()/4, func() error { return f.find(ctx, f.cached, false) })
			}},
			{"find_warm", &warm, func() ([]float64, error) { return f.warmly(ctx, b.span()) }},
			{"find_fresh", &fresh, func() ([]float64, error) {
				return timed(ctx, b.span()/4, func() error { return f.find(ctx, f.cached, true) })
			}},
		} {
			stopProf, err := b.profile(part.name, i)
			if err != nil {
				return err
			}
			window, err := part.op()
			stopProf()
			if err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
			if i > 0 {
				part.to.add(window)
			}
		}
		f.asked = time.Now()
	}
	b.remark("find that asks all %d nodes, over the network, before it answers: p50 %.2f ms, p99 %.2f ms, N %d",
		f.nodes, fresh.p50()/1e3, fresh.p99()/1e3, fresh.n())
	if b.wants("find_warm") {
		b.show(Figure{
			Name: "find_warm", P50: warm.p50() / 1e3, P99: warm.p99() / 1e3, Unit: "ms", Floor: 1, Must: 2, Dir: "max",
			note: fmt.Sprintf("N %d; %d cards; answer older than CacheFor, mesh asked behind it", warm.n(), f.nodes),
		})
	}
	if b.wants("find_cached") {
		b.show(Figure{
			Name: "find_cached", P50: cached.p50() / 1e3, P99: cached.p99() / 1e3, Unit: "ms", Floor: 1, Must: 0.2, Dir: "max",
			note: fmt.Sprintf("N %d; %d cards", cached.n(), f.nodes),
		})
	}
	return nil
}

// warmly finds with pauses, which are not counted.
func (f *asker) warmly(ctx context.Context, span time.Duration) ([]float64, error) {
	var out []float64
	for end := time.Now().Add(span); time.Now().Before(end) || len(out) < 5; {
		select {
		case <-time.After(warmPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		began := time.Now()
		if err := f.find(ctx, f.warm, false); err != nil {
			return nil, err
		}
		out = append(out, micros(time.Since(began)))
	}
	return out, nil
}
