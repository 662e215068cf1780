package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
)

// Why an agent's card cannot be had.
var (
	ErrUnknownAgent = shoal.NewError(shoal.NotFound, "unknown_agent", "no card of the agent was found on the mesh",
		"check the id; its node may be off or not connected to this mesh")
	ErrWithdrawn = shoal.NewError(shoal.NotFound, "agent_withdrawn", "the agent has been withdrawn",
		"find another one with `shoal find`")
	// ErrNotVerified means that there were answers and none was to be trusted.
	ErrNotVerified = shoal.NewError(shoal.Unavailable, "not_verified", "no answer about the agent could be verified",
		"try again; if it stays, connect to more nodes")
)

// Resolve returns the newest verified card of an agent: of one hosted here, the one in
// force; of any other, the one known if it is valid and was confirmed within Refresh,
// else what the DHT and its host say. With fresh it asks both in any case and takes
// the newer; if nobody answers, a valid card that is known is still returned, with the
// VerifiedAt it had.
//
// It returns [ErrUnknownAgent], [ErrWithdrawn], [ErrExpired] or [ErrNotVerified], or an
// [shoal.Invalid] error for a malformed id.
func (d *Directory) Resolve(ctx context.Context, id shoal.AgentID, fresh bool) (Card, error) {
	if _, err := shoal.ParseAgentID(string(id)); err != nil {
		return Card{}, err
	}
	if c, ok := d.hostedCard(id); ok && !c.withdrawn {
		return c, nil
	}
	now := time.Now()
	c, doubt, ok := d.known.get(id)
	if ok && !fresh && !doubt && c.alive(now) && now.Sub(c.VerifiedAt) < d.cfg.Refresh {
		return *c, nil
	}
	key := string(id)
	if fresh {
		key += " fresh"
	}
	err := d.finds.once(ctx, key, func() error { return d.seek(ctx, id, fresh) })
	if ctx.Err() != nil {
		return Card{}, ctx.Err()
	}
	got, refusal := d.shown(id)
	if err != nil && errors.Is(refusal, ErrUnknownAgent) {
		return Card{}, err
	}
	return got, refusal
}

// shown returns what is known of an agent elsewhere, or why that cannot be shown.
func (d *Directory) shown(id shoal.AgentID) (Card, error) {
	c, doubt, ok := d.known.get(id)
	if !ok {
		if _, hosted := d.hostedCard(id); hosted {
			return Card{}, ErrWithdrawn
		}
		return Card{}, ErrUnknownAgent
	}
	if err := c.checkTime(time.Now()); err != nil {
		return Card{}, err
	}
	switch {
	case c.withdrawn:
		return Card{}, ErrWithdrawn
	case doubt:
		return Card{}, ErrUnknownAgent.With("node %s does not host it any more", c.Node)
	}
	return *c, nil
}

// Knows returns the card of an agent if it can be shown without asking anybody.
func (d *Directory) Knows(id shoal.AgentID) (Card, bool) {
	if c, ok := d.hostedCard(id); ok && !c.withdrawn {
		return c, true
	}
	c, err := d.shown(id)
	return c, err == nil
}

// Host returns the node that an agent is reached on: the one that its card names, or,
// as a last resort, the node with the agent's own key if that is connected or can be
// dialled. It waits for the mesh only if no card is known; one not confirmed within
// Refresh is asked for behind the answer. Errors are those of [Directory.Resolve].
func (d *Directory) Host(ctx context.Context, id shoal.AgentID) (shoal.NodeID, error) {
	if c, ok := d.Knows(id); ok {
		if !c.Local && time.Since(c.VerifiedAt) > d.cfg.Refresh {
			d.warm(string(id)) // it may have moved: the next caller will know
		}
		return c.Node, nil
	}
	own := id.Node()
	if own == d.cfg.Node && own != "" {
		return own, nil // the node's own agent, though it offers nothing
	}
	c, err := d.Resolve(ctx, id, false)
	switch {
	case err == nil:
		return c.Node, nil
	case own == "" || errors.Is(err, ErrWithdrawn) || ctx.Err() != nil:
		return "", err
	}
	dialCtx, cancel := context.WithTimeout(ctx, d.cfg.NodeTimeout)
	defer cancel()
	conn, dialErr := d.mesh.Dial(dialCtx, own, Protocol)
	if dialErr != nil {
		return "", err
	}
	conn.Close()
	return own, nil
}

// seek asks the mesh for the card of one agent and takes in what it says. It returns
// an error only if ctx ended, or if there were answers and none was to be trusted.
func (d *Directory) seek(ctx context.Context, id shoal.AgentID, fresh bool) error {
	s := &search{d: d, id: id, start: time.Now(), asked: map[shoal.NodeID]bool{d.cfg.Node: true}}
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	if !fresh {
		s.found = cancel // one good answer is enough
	}
	s.wg.Go(func() {
		s.note(d.fromDHT(first, id, fresh))
	})
	s.askHost(first)
	s.wg.Wait()
	if fresh {
		s.askHost(ctx) // the host that the DHT's answer named has the last word
		s.wg.Wait()
	}
	if c, _, ok := d.known.get(id); !ok || c.checkTime(time.Now()) != nil {
		s.askAround(ctx)
		s.wg.Wait()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.refusal
}

// search is one time of asking for an agent's card.
type search struct {
	d     *Directory
	id    shoal.AgentID
	start time.Time
	asked map[shoal.NodeID]bool // used by the seeker only
	found func()                // called on a good answer; may be nil

	wg      sync.WaitGroup
	mu      sync.Mutex
	refusal error // why an answer was not taken, the first such
}

// askHost asks the node that the known card names, if that was not asked yet.
func (s *search) askHost(ctx context.Context) {
	if c, _, ok := s.d.known.get(s.id); ok {
		s.ask(ctx, c.Node)
	}
}

// askAround asks the node that the agent may be the own one of, and some that are
// connected: in a young mesh the DHT may not know what a neighbour does.
func (s *search) askAround(ctx context.Context) {
	s.d.mu.Lock()
	nodes := s.d.peers.latest(fewPeers)
	s.d.mu.Unlock()
	if own := s.id.Node(); own != "" {
		s.ask(ctx, own)
	}
	for _, n := range nodes {
		s.ask(ctx, n)
	}
}

func (s *search) ask(ctx context.Context, node shoal.NodeID) {
	if s.asked[node] {
		return
	}
	s.asked[node] = true
	s.wg.Go(func() {
		raws, err := s.d.ask(ctx, node, &wire.CardRequest{Did: string(s.id)})
		switch {
		case err != nil: // silent
		case len(raws) == 0:
			s.d.known.doubts(s.id, node, s.start)
		default:
			s.note(s.d.accept(ctx, raws[0], node, s.id))
		}
	})
}

// note takes down the outcome of one question. A tombstone does not end the search: the
// old host of an agent that has moved serves one.
func (s *search) note(c *Card, err error) {
	switch {
	case err == nil:
		if s.found != nil && !c.withdrawn {
			s.found()
		}
		return
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, ErrStale), errors.Is(err, ErrConflict):
		return
	}
	switch shoal.KindOf(err) {
	case shoal.NotFound, shoal.Unavailable, shoal.Timeout, shoal.Internal:
		return
	}
	if !errors.Is(err, ErrExpired) && !errors.Is(err, ErrNotYetValid) {
		err = ErrNotVerified.Because(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal == nil {
		s.refusal = err
	}
}

// fromDHT takes in the newest record of an agent's card that the DHT has; if it is not
// patient, the newest that the DHT finds quickly, if it does.
func (d *Directory) fromDHT(ctx context.Context, id shoal.AgentID, patient bool) (*Card, error) {
	times := []time.Duration{min(quickLookup, d.cfg.LookupTimeout), d.cfg.LookupTimeout}
	if patient {
		times = times[1:]
	}
	var raw []byte
	var err error
	for _, t := range times {
		lookup, cancel := context.WithTimeout(ctx, t)
		raw, err = d.mesh.GetRecord(lookup, kindCard, id)
		complete := lookup.Err() == nil
		cancel()
		if err == nil || complete || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up card of %s: %w", id, err)
	}
	rec, err := identity.OpenRecord(d.cfg.Network, raw, time.Now())
	if err != nil {
		return nil, fmt.Errorf("open record of %s: %w", id, err)
	}
	if rec.Kind != kindCard || rec.Owner != id {
		return nil, ErrWrongAgent.With("record of %s %s", rec.Kind, rec.Owner)
	}
	return d.accept(ctx, rec.Value, "", id)
}
