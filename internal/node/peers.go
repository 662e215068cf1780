package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/directory"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/mesh"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/task"
)

const (
	maxKeptPeers = 32
	// maxKeptIn bounds those who came by themselves: strangers must not fill the book.
	maxKeptIn = 8
	keepPeers = time.Minute // how often the peers' addresses are written down
	// keepPause is the least time between two writes because peers came. The first is at
	// once: a node that joined nobody and is killed before it would wait until somebody
	// finds out that it is back, up to 30 s, when QUIC gives up an idle connection.
	keepPause = time.Second
)

// How a kept peer was met, in node_peers.joined. The highest stays.
const (
	metIn     = -1 // it connected to us
	metOut    = 0  // we connected to it
	metJoined = 1  // the operator named it
)

// openMesh makes the mesh with the peers of the config and of earlier runs.
func (n *node) openMesh() error {
	known, err := n.keptPeers()
	if err != nil {
		return err
	}
	listen, err := n.listenAddrs()
	if err != nil {
		return err
	}
	cfg := mesh.Config{
		Network: n.cfg.Network, Listen: listen, Bootstrap: append(append([]string(nil), n.cfg.Join...), known...),
		OnPeer: n.onPeer,
	}
	if len(cfg.Bootstrap) > 64 {
		cfg.Bootstrap = cfg.Bootstrap[:64]
	}
	if n.cfg.PSKFile != "" {
		if cfg.PSK, err = readPSK(n.cfg.PSKFile); err != nil {
			return err
		}
	}
	if n.mesh, err = mesh.New(cfg, n.ring.Node(), n.named("mesh")); err != nil {
		return err
	}
	n.peers = &peerBook{n: n, log: n.named("peers"), came: make(chan struct{}, 1)}
	return nil
}

// listenAddrs is where the mesh listens: as the operator says, else as before.
func (n *node) listenAddrs() ([]string, error) {
	if n.cfg.Listen != "" {
		return mesh.ListenAddrs(n.cfg.Listen)
	}
	kept, err := n.setting("listen")
	if err != nil {
		return nil, err
	}
	if kept == "" {
		kept = defaultListen
	}
	return mesh.ListenAddrs(kept)
}

// bindMesh listens. Without a wish, a busy port gives way to a free one, which is kept
// so that peers find the node again.
func (n *node) bindMesh() error {
	err := n.mesh.Bind()
	if err == nil || n.cfg.Listen != "" || shoal.AsError(err).Reason != mesh.ErrPortBusy.Reason {
		return err
	}
	free, err := mesh.ListenAddrs("0.0.0.0:0")
	if err != nil {
		return err
	}
	if err := n.mesh.BindTo(free); err != nil {
		return err
	}
	return n.keep("listen", "0.0.0.0:"+portOf(n.mesh.Addrs()))
}

// portOf finds the port in the first multiaddr.
func portOf(addrs []string) string {
	for _, a := range addrs {
		parts := strings.Split(a, "/")
		for i, p := range parts {
			if (p == "udp" || p == "tcp") && i+1 < len(parts) {
				return parts[i+1]
			}
		}
	}
	return "0"
}

// openStreams registers the handlers of the node's own protocols with the mesh.
func (n *node) openStreams() error {
	cards, err := n.mesh.Listen(directory.Protocol)
	if err != nil {
		return err
	}
	letters, err := n.mesh.Listen(mail.Protocol)
	if err != nil {
		return err
	}
	live, err := n.mesh.Listen(task.Protocol)
	if err != nil {
		return err
	}
	n.streams = []part{
		serveStreams("cards", cards, n.directory.ServeConn),
		serveStreams("mail streams", letters, n.mail.ServeConn),
		serveStreams("live streams", live, n.tasks.ServeConn),
	}
	return nil
}

// onPeer tells those who wait for a peer.
func (n *node) onPeer(id shoal.NodeID, up bool) {
	n.log.Debug("peer", "peer", id, "up", up)
	if up {
		n.directory.PeerUp(id)
		n.mail.PeerUp(id)
		n.peers.note()
	}
}

// peerBook writes down where peers were, so that a restarted node finds its mesh even
// if the node that it joined by is gone.
type peerBook struct {
	n    *node
	log  *slog.Logger
	came chan struct{} // capacity 1: a peer came since the last write
}

// note has the addresses written down.
func (b *peerBook) note() {
	select {
	case b.came <- struct{}{}:
	default:
	}
}

// Run writes the addresses when a peer came, each minute, and once more at the end.
func (b *peerBook) Run(ctx context.Context) error {
	tick := time.NewTicker(keepPeers)
	defer tick.Stop()
	var soon <-chan time.Time // at most one write each keepPause, however many come
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			b.write(context.WithoutCancel(ctx))
			return nil
		case <-b.came:
			if soon == nil {
				soon = time.After(time.Until(last.Add(keepPause)))
			}
			continue
		case <-soon:
			soon, last = nil, time.Now()
		case <-tick.C:
		}
		b.write(ctx)
	}
}

func (b *peerBook) write(ctx context.Context) {
	targets := map[string]int{}
	in := 0
	for _, p := range b.n.mesh.Peers() {
		how := metOut
		if p.Direction != "out" {
			if in++; in > maxKeptIn {
				continue
			}
			how = metIn
		}
		if len(targets) < maxKeptPeers {
			targets[fullAddr(p)] = how
		}
	}
	if len(targets) == 0 {
		return
	}
	err := b.n.db.Update(ctx, func(tx *store.Tx) error {
		for _, t := range slices.Sorted(maps.Keys(targets)) {
			if err := keepTarget(tx, t, targets[t]); err != nil {
				return err
			}
		}
		for how, most := range map[int]int{metOut: maxKeptPeers, metIn: maxKeptIn} {
			if _, err := tx.Exec(`DELETE FROM node_peers WHERE joined = ? AND target NOT IN
				(SELECT target FROM node_peers WHERE joined = ? ORDER BY seen_ms DESC LIMIT ?)`, how, how, most); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.log.Warn("peers not written down", "err", err)
	}
}

func fullAddr(p mesh.Peer) string {
	if strings.Contains(p.Addr, "/p2p/") {
		return p.Addr
	}
	return p.Addr + "/p2p/" + string(p.ID)
}

func keepTarget(tx *store.Tx, target string, how int) error {
	_, err := tx.Exec(`INSERT INTO node_peers (target, joined, seen_ms) VALUES (?, ?, ?)
		ON CONFLICT (target) DO UPDATE SET seen_ms = excluded.seen_ms, joined = MAX(joined, excluded.joined)`,
		target, how, time.Now().UnixMilli())
	return err
}

func (n *node) keptPeers() (targets []string, err error) {
	err = n.db.View(context.Background(), func(tx *store.Tx) error {
		return tx.Each(`SELECT target FROM node_peers ORDER BY joined DESC, seen_ms DESC LIMIT ?`, []any{maxKeptPeers},
			func(scan func(...any) error) error {
				var t string
				if err := scan(&t); err != nil {
					return err
				}
				targets = append(targets, t)
				return nil
			})
	})
	return targets, err
}

// Join connects to what target names and remembers it for later starts.
func (n *node) Join(ctx context.Context, target string) ([]shoal.NodeID, error) {
	inv, err := mesh.ParseTarget(target)
	if err != nil {
		return nil, err
	}
	if inv.Network != "" && inv.Network != n.cfg.Network {
		return nil, shoal.NewError(shoal.Conflict, "other_network",
			fmt.Sprintf("the link is for network %s, this node belongs to %s", inv.Network, n.cfg.Network), "use another --home for another network")
	}
	err = n.db.Update(ctx, func(tx *store.Tx) error { return keepTarget(tx, target, metJoined) })
	if err != nil {
		return nil, err
	}
	return n.mesh.Join(ctx, inv.Addrs)
}
