package mesh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
)

// keepTag keeps the connection manager from cutting a peer that is to stay.
const keepTag = "shoal/keep"

// strangerGrace is how long a node of another network stays connected: long enough for
// it to learn from our identify message why it is turned away.
const strangerGrace = 2 * time.Second

// keeper is the state of Run: who is up, and whom to dial again when. Only Run's
// goroutine touches it.
type keeper struct {
	mesh *Mesh
	host host.Host
	up   map[peer.ID]time.Time // since when its newest identified connection is open
	kept map[peer.ID]*kept
	done chan dialed

	strangers map[peer.ID]time.Time // of other networks, and when to turn them away
}

// kept is a peer that is to stay connected.
type kept struct {
	info    peer.AddrInfo
	pause   *backoff.ExponentialBackOff
	next    time.Time // zero while connected or being dialed
	dialing bool
}

type dialed struct {
	id  peer.ID
	err error
}

// watch is the one long-lived goroutine of a mesh.
func (m *Mesh) watch(ctx context.Context) error {
	h, _, err := m.live()
	if err != nil {
		return err
	}
	sub, err := h.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerIdentificationFailed),
		new(event.EvtPeerConnectednessChanged),
	}, eventbus.BufSize(1024), eventbus.Name("shoal"))
	if err != nil {
		return fmt.Errorf("subscribe to peer events: %w", err)
	}
	defer sub.Close()

	boot, err := m.cfg.peers(m.cfg.Bootstrap)
	if err != nil {
		return err
	}
	k := &keeper{
		mesh: m, host: h,
		up: make(map[peer.ID]time.Time), kept: make(map[peer.ID]*kept),
		done: make(chan dialed, maxRemembered), strangers: make(map[peer.ID]time.Time),
	}
	for _, ai := range boot {
		k.keep(ai)
	}
	for _, p := range h.Network().Peers() { // connected before we subscribed
		k.identified(p, k.newest(p))
	}
	defer k.allDown()
	return k.loop(ctx, sub)
}

func (k *keeper) loop(ctx context.Context, sub event.Subscription) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return ErrClosed
			}
			k.event(e)
		case ai := <-k.mesh.remember:
			k.keep(ai)
		case r := <-k.done:
			k.dialed(r)
		case <-timer.C:
		}
		k.turnAway(time.Now())
		k.dialDue(ctx, time.Now())
		timer.Reset(k.untilNext(time.Now()))
	}
}

func (k *keeper) event(e any) {
	switch e := e.(type) {
	case event.EvtPeerIdentificationCompleted:
		k.identified(e.Peer, e.Conn.Stat().Opened)
	case event.EvtPeerIdentificationFailed:
		if _, up := k.up[e.Peer]; !up { // of no use; a new connection may do better
			k.mesh.log.Debug("peer did not identify itself", "peer", e.Peer, "err", e.Reason)
			_ = k.host.Network().ClosePeer(e.Peer)
		}
	case event.EvtPeerConnectednessChanged:
		if e.Connectedness != network.Connected && k.host.Network().Connectedness(e.Peer) != network.Connected {
			k.gone(e.Peer)
		}
	}
}

// identified takes in a peer that said who it is, or notes that it is to leave.
// It is told of again when it came over a newer connection: then it may be another
// process, and what was sent to the old one lost.
func (k *keeper) identified(p peer.ID, opened time.Time) {
	since, up := k.up[p]
	if up && !opened.After(since) || k.host.Network().Connectedness(p) != network.Connected {
		return
	}
	switch versionOf(k.host, p) {
	case "":
		return // not identified yet; the event will come
	case k.mesh.version():
	default:
		k.mesh.log.Debug("peer of another network", "peer", p)
		k.strangers[p] = time.Now().Add(strangerGrace)
		return
	}
	k.up[p] = opened
	if e := k.kept[p]; e != nil {
		e.next = time.Time{}
		e.pause.Reset()
	}
	k.tell(p, true)
}

// newest returns when the newest connection with p was opened.
func (k *keeper) newest(p peer.ID) (opened time.Time) {
	for _, c := range k.host.Network().ConnsToPeer(p) {
		if t := c.Stat().Opened; t.After(opened) {
			opened = t
		}
	}
	return opened
}

func (k *keeper) gone(p peer.ID) {
	delete(k.strangers, p)
	if _, up := k.up[p]; up {
		delete(k.up, p)
		k.tell(p, false)
	}
	if e := k.kept[p]; e != nil && !e.dialing && e.next.IsZero() {
		e.next = time.Now().Add(e.pause.NextBackOff())
	}
}

func (k *keeper) tell(p peer.ID, up bool) {
	k.mesh.log.Debug("peer", "peer", p, "up", up)
	if k.mesh.cfg.OnPeer != nil {
		k.mesh.cfg.OnPeer(nodeOf(p), up)
	}
}

func (k *keeper) allDown() {
	for p := range k.up {
		k.tell(p, false)
	}
}

// keep starts to keep a peer connected; it is dialed at once if it is not.
func (k *keeper) keep(ai peer.AddrInfo) {
	if ai.ID == k.mesh.self {
		return
	}
	e := k.kept[ai.ID]
	if e == nil {
		if len(k.kept) >= maxRemembered {
			return
		}
		e = &kept{pause: &backoff.ExponentialBackOff{
			InitialInterval: k.mesh.cfg.RetryMin, MaxInterval: k.mesh.cfg.RetryMax,
			Multiplier: 2, RandomizationFactor: 0.5,
		}}
		e.pause.Reset()
		k.kept[ai.ID] = e
		k.host.ConnManager().Protect(ai.ID, keepTag)
	}
	e.info = ai
	if k.host.Network().Connectedness(ai.ID) != network.Connected && !e.dialing {
		e.next = time.Now()
	}
}

func (k *keeper) turnAway(now time.Time) {
	for p, when := range k.strangers {
		if !when.After(now) {
			delete(k.strangers, p)
			_ = k.host.Network().ClosePeer(p)
		}
	}
}

func (k *keeper) dialDue(ctx context.Context, now time.Time) {
	for p, e := range k.kept {
		if e.dialing || e.next.IsZero() || e.next.After(now) {
			continue
		}
		e.next, e.dialing = time.Time{}, true
		info := e.info
		if !k.mesh.background(func() { k.done <- dialed{p, k.mesh.connect(ctx, k.host, info)} }) {
			return
		}
	}
}

func (k *keeper) dialed(r dialed) {
	e := k.kept[r.id]
	e.dialing = false
	if r.err == nil && k.host.Network().Connectedness(r.id) == network.Connected {
		k.identified(r.id, k.newest(r.id))
		if _, d, err := k.mesh.live(); err == nil {
			d.RefreshRoutingTable()
		}
		return
	}
	if errors.Is(r.err, ErrWrongNetwork) {
		delete(k.kept, r.id)
		k.host.ConnManager().Unprotect(r.id, keepTag)
		k.mesh.log.Warn("a peer to keep is of another network, dropped", "peer", r.id)
		return
	}
	pause := e.pause.NextBackOff()
	e.next = time.Now().Add(pause)
	k.mesh.log.Debug("peer not reached", "peer", r.id, "retry", pause, "err", r.err)
}

func (k *keeper) untilNext(now time.Time) time.Duration {
	wait := time.Hour
	for _, e := range k.kept {
		if !e.next.IsZero() {
			wait = min(wait, max(0, e.next.Sub(now)))
		}
	}
	for _, when := range k.strangers {
		wait = min(wait, max(0, when.Sub(now)))
	}
	return wait
}
