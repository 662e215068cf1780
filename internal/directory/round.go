package directory

import (
	"context"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// askMesh asks for a capability: at once the nodes whose cards are known to have it,
// and those that the DHT names as soon as it does. If both are none it asks nodes that
// are connected, so that a mesh of two finds itself before its DHT has settled. It
// reports whether the DHT was asked to the end, which it always is with patient.
func (d *Directory) askMesh(ctx context.Context, capability string, all, patient bool) (complete bool, err error) {
	start := time.Now()
	r := &round{
		d: d, capability: capability, all: all,
		asked: map[shoal.NodeID]bool{d.cfg.Node: true}, answered: map[shoal.NodeID]bool{},
	}
	r.askAll(ctx, first(d.known.hosts(capability), maxHosts))
	nodes, complete := d.providers(ctx, capability, patient)
	r.askAll(ctx, nodes)
	r.wg.Wait()

	if cards := d.fromKnown(capability, time.Now()); len(cards) == 0 {
		d.mu.Lock()
		peers := d.peers.latest(fewPeers)
		d.mu.Unlock()
		r.askAll(ctx, peers)
		r.wg.Wait()
	}
	r.askAll(ctx, d.known.hosts(capability)) // hosts that others' answers named
	r.wg.Wait()
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	d.known.settle(capability, start, r.answered)
	d.finds.put(capability, time.Now(), d.fromKnown(capability, time.Now()))
	return complete, nil
}

// providers returns the nodes that the DHT names for a capability, and whether the
// look-up came to its end.
func (d *Directory) providers(ctx context.Context, capability string, patient bool) (nodes []shoal.NodeID, complete bool) {
	times := []time.Duration{min(quickLookup, d.cfg.LookupTimeout), d.cfg.LookupTimeout}
	if patient {
		times = times[1:]
	}
	for _, t := range times {
		lookup, cancel := context.WithTimeout(ctx, t)
		found, err := d.mesh.Providers(lookup, shoal.CapabilityPrefix+capability, maxNodes)
		complete = lookup.Err() == nil
		cancel()
		if err != nil {
			d.log.Debug("providers not found", "capability", capability, "err", err)
		}
		if nodes = found; complete || len(nodes) > 0 || ctx.Err() != nil {
			break
		}
	}
	return nodes, complete
}

// round is one time of asking many nodes for a capability.
type round struct {
	d          *Directory
	capability string
	all        bool                  // ask silent nodes too
	asked      map[shoal.NodeID]bool // used by the asker only

	wg       sync.WaitGroup
	mu       sync.Mutex
	answered map[shoal.NodeID]bool // every asked node; true: it served all it has
}

// askAll starts to ask those nodes that were not asked in this round.
func (r *round) askAll(ctx context.Context, nodes []shoal.NodeID) {
	now := time.Now()
	for _, n := range nodes {
		if r.asked[n] || len(r.asked) > maxNodes {
			continue
		}
		r.asked[n] = true
		if !r.all && r.d.isSilent(n, now) {
			r.mu.Lock()
			r.answered[n] = false
			r.mu.Unlock()
			continue
		}
		r.wg.Go(func() {
			complete := r.d.askNode(ctx, n, r.capability)
			r.mu.Lock()
			r.answered[n] = complete
			r.mu.Unlock()
		})
	}
}

// askNode takes in the cards of one node and reports whether it answered in full.
func (d *Directory) askNode(ctx context.Context, node shoal.NodeID, capability string) bool {
	raws, err := d.ask(ctx, node, &wire.CardRequest{Capability: capability})
	if ctx.Err() == nil {
		d.mu.Lock()
		d.peers.heard(node, err == nil, time.Now())
		d.mu.Unlock()
	}
	if err != nil {
		d.log.Debug("node does not answer for its cards", "node", node, "err", err)
		return false
	}
	for _, raw := range raws {
		if _, err := d.accept(ctx, raw, node, ""); err != nil {
			d.log.Debug("card refused", "node", node, "err", err)
			if lie(err) {
				return false // its other cards are not worth the effort
			}
		}
	}
	return len(raws) < askCards
}

func (d *Directory) isSilent(node shoal.NodeID, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peers.isSilent(node, now)
}
