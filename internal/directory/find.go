package directory

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

const (
	defaultLimit = 20
	maxLimit     = 100
	maxNodes     = 64  // asked in one find, all at once
	maxHosts     = 32  // of these, because their cards are known; the rest is for new ones
	fewPeers     = 16  // connected nodes asked when the DHT names nobody
	maxFinds     = 256 // capabilities whose answers are remembered
	maxWarming   = 64  // capabilities waiting to be asked for behind an answer
	warmers      = 2   // asking for them
)

// Query says which agents are wanted: those with a capability, those whose cards
// contain all words of a text, or both.
type Query struct {
	Capability string // plain name, or with [shoal.CapabilityPrefix]
	Text       string // words; case does not matter
	Limit      int    // default 20, at most 100
	Fresh      bool   // ask the mesh even if an answer is known
}

// Find returns agents that match q, those whose hosts answered first, then by name.
//
// By capability it asks the nodes that announce it, at most 64 at once, and each gets
// NodeTimeout; one that was silent a minute ago is asked only if q.Fresh. The answer is given again for CacheFor; after that, for WarmFor, it is
// made from the cards known while the mesh is asked behind it. An empty answer is
// never remembered. By text alone it looks through the cards already known and asks
// nobody. Agents hosted here are included.
//
// It returns an [shoal.Invalid] error for a malformed query; that nobody was found is
// no error.
func (d *Directory) Find(ctx context.Context, q Query) ([]Card, error) {
	words := strings.Fields(strings.ToLower(q.Text))
	limit := q.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	limit = min(limit, maxLimit)
	if q.Capability == "" {
		if len(words) == 0 {
			return nil, shoal.NewError(shoal.Invalid, "empty_query", "nothing to find",
				"give a capability, or words that the card contains")
		}
		return first(d.withLocal(d.known.withWords(words, time.Now()), "", words), limit), nil
	}
	capability, err := shoal.ParseCapability(q.Capability)
	if err != nil {
		return nil, err
	}
	cards, err := d.findCapability(ctx, capability, q.Fresh, limit+len(words)*maxLimit)
	if err != nil {
		return nil, err
	}
	cards = slices.DeleteFunc(cards, func(c Card) bool { return !c.contains(words) })
	return first(d.withLocal(cards, capability, words), limit), nil
}

func first[T any](list []T, n int) []T { return list[:min(n, len(list))] }

// withLocal puts the matching agents of this node in front.
func (d *Directory) withLocal(cards []Card, capability string, words []string) []Card {
	var out []Card
	now := time.Now()
	for _, c := range d.Local() {
		if c.alive(now) && (capability == "" || c.Has(capability)) && c.contains(words) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return cards
	}
	return append(out, cards...)
}

// findCapability returns the remote agents with a capability, from the cheapest source
// that is good enough.
func (d *Directory) findCapability(ctx context.Context, capability string, fresh bool, limit int) ([]Card, error) {
	if now := time.Now(); !fresh {
		f, ok := d.finds.get(capability)
		age := now.Sub(f.at)
		switch {
		case !ok || age > d.cfg.WarmFor || age < 0:
		case age <= d.cfg.CacheFor:
			if cards := d.known.these(f.agents, capability, now, limit); len(cards) > 0 {
				return cards, nil
			}
		default:
			if cards := d.fromKnown(capability, now); len(cards) > 0 {
				d.warm(capability)
				return first(cards, limit), nil
			}
		}
	}
	key := capability
	if fresh {
		key += " fresh"
	}
	err := d.finds.once(ctx, key, func() error { return d.askMesh(ctx, capability, fresh) })
	if err != nil {
		return nil, err
	}
	return first(d.fromKnown(capability, time.Now()), limit), nil
}

// fromKnown returns the known agents with a capability, those heard lately first.
func (d *Directory) fromKnown(capability string, now time.Time) []Card {
	return d.known.withSkill(capability, now, now.Add(-d.cfg.CacheFor-d.cfg.WarmFor))
}

// warm has the mesh asked behind an answer for a capability, or for an agent by its id,
// unless many wait already.
func (d *Directory) warm(what string) {
	if !d.finds.mark(what) {
		return
	}
	select {
	case d.warming <- what:
	default:
		d.finds.unmark(what)
	}
}

func (d *Directory) runWarmer(ctx context.Context) error {
	for {
		select {
		case what := <-d.warming:
			d.finds.unmark(what)
			err := d.finds.once(ctx, what, func() error {
				if id, err := shoal.ParseAgentID(what); err == nil {
					return d.seek(ctx, id, false)
				}
				return d.askMesh(ctx, what, false)
			})
			if err != nil && ctx.Err() == nil {
				d.log.Debug("not asked for again", "what", what, "err", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// askMesh asks for a capability: at once the nodes whose cards are known to have it,
// and those that the DHT names as soon as it does. If both are none it asks nodes that
// are connected, so that a mesh of two finds itself before its DHT has settled.
func (d *Directory) askMesh(ctx context.Context, capability string, fresh bool) error {
	start := time.Now()
	r := &round{
		d: d, capability: capability, fresh: fresh,
		asked: map[shoal.NodeID]bool{d.cfg.Node: true}, answered: map[shoal.NodeID]bool{},
	}
	r.askAll(ctx, first(d.known.hosts(capability), maxHosts))

	lookup, cancel := context.WithTimeout(ctx, d.cfg.LookupTimeout)
	nodes, err := d.mesh.Providers(lookup, shoal.CapabilityPrefix+capability, maxNodes)
	cancel()
	if err != nil {
		d.log.Debug("providers not found", "capability", capability, "err", err)
	}
	r.askAll(ctx, nodes)
	r.wg.Wait()

	if cards := d.fromKnown(capability, time.Now()); len(cards) == 0 {
		d.mu.Lock()
		peers := d.peers.latest(fewPeers)
		d.mu.Unlock()
		r.askAll(ctx, peers)
	}
	r.askAll(ctx, d.known.hosts(capability)) // hosts that others' answers named
	r.wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.known.settle(capability, start, r.answered)
	d.finds.put(capability, time.Now(), d.fromKnown(capability, time.Now()))
	return nil
}

// round is one time of asking many nodes for a capability.
type round struct {
	d          *Directory
	capability string
	fresh      bool                  // ask silent nodes too
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
		if !r.fresh && r.d.isSilent(n, now) {
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

// lie reports whether an honest node could not have served a card that is refused so.
func lie(err error) bool {
	return !errors.Is(err, ErrExpired) && !errors.Is(err, ErrNotYetValid) &&
		!errors.Is(err, ErrStale) && !errors.Is(err, ErrConflict) && shoal.KindOf(err) != shoal.Internal
}

// accept verifies a card from anywhere and makes it the newest known of its agent. from
// is the node that served it, empty if it came from the DHT; want is the agent that
// was asked for, empty for any. It is the only way in.
func (d *Directory) accept(ctx context.Context, raw []byte, from shoal.NodeID, want shoal.AgentID) (*Card, error) {
	now := time.Now()
	if len(raw) > MaxCard {
		return nil, ErrBadCard.With("%d bytes are more than %d", len(raw), MaxCard)
	}
	sum := digestOf(raw)
	if c, ok := d.known.again(sum, from, now); ok {
		if want != "" && c.Agent != want {
			return nil, ErrWrongAgent.With("%s", c.Agent)
		}
		return c, c.checkTime(now)
	}
	card, err := openCard(slices.Clone(raw), d.cfg.Network, now)
	if err != nil {
		return nil, err
	}
	c := &card
	if want != "" && c.Agent != want {
		return nil, ErrWrongAgent.With("%s", c.Agent)
	}
	if ours, ok := d.hostedCard(c.Agent); ok && !(ours.withdrawn && c.Seq > ours.Seq && c.Node != d.cfg.Node) {
		return c, nil // what we sign ourselves needs no second opinion
	}
	seq, old, pinned, err := d.pin(ctx, c.Agent)
	if err != nil {
		return nil, err
	}
	if pinned {
		if err := newer(c.Seq, sum, seq, old); err != nil {
			d.noteConflict(c, from, err)
			return nil, err
		}
	}
	if err := d.known.adopt(c, sum, from, true); err != nil {
		d.noteConflict(c, from, err)
		return nil, err
	}
	wake(d.flushing)
	return c, nil
}

func (d *Directory) noteConflict(c *Card, from shoal.NodeID, err error) {
	if errors.Is(err, ErrConflict) && d.known.sawTwin(c.Agent) {
		d.log.Warn("an agent has signed two cards with one sequence number", "agent", c.Agent, "seq", c.Seq, "node", from)
	}
}
