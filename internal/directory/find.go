package directory

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/shoalmesh/shoal"
)

const (
	defaultLimit = 20
	maxLimit     = 100
	maxNodes     = 64 // asked in one find, all at once
	maxHosts     = 32 // of these, because their cards are known; the rest is for new ones
	fewPeers     = 16 // connected nodes asked when the DHT names nobody
	// quickLookup is the time for the DHT to name nodes before what it has found is used: a
	// look-up ends only when every node on its way has answered, also the dead ones.
	quickLookup = 750 * time.Millisecond
	// recheck is the age from which the mesh is asked again behind an answer. A young mesh
	// changes from second to second.
	recheck = 5 * time.Second

	maxFinds   = 256 // capabilities whose answers are remembered
	maxWarming = 64  // capabilities waiting to be asked for behind an answer
	warmers    = 2   // asking for them
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
// NodeTimeout; one that was silent a minute ago is asked only if q.Fresh. The answer is
// given again for CacheFor, then for WarmFor it is made from the cards known; from an
// age of 5 s on, the mesh is asked behind it, so the next answer is of now. An empty
// answer is never remembered. By text alone it looks through the cards already known
// and asks nobody. Agents hosted here are included.
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
				if age > recheck {
					d.warm(capability)
				}
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
	err := d.finds.once(ctx, key, func() error {
		complete, err := d.askMesh(ctx, capability, fresh, fresh)
		if err == nil && !complete {
			d.warm(capability)
		}
		return err
	})
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
				_, err := d.askMesh(ctx, what, false, true)
				return err
			})
			if err != nil && ctx.Err() == nil {
				d.log.Debug("not asked for again", "what", what, "err", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
