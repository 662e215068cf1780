package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalmesh/shoal"
)

// ErrNotHosted is returned for an agent that is not of this node.
var ErrNotHosted = shoal.NewError(shoal.NotFound, "unknown_agent", "no such agent is hosted here",
	"list the hosted agents with `shoal agent list`")

const (
	publishers = 8  // agents published at the same time
	providers  = 4  // capabilities of one agent announced at the same time
	enoughPeer = 20 // the DHT keeps a record on the 20 nodes closest to its key
	// settle is the wait after a new peer before publishing again: several come at once.
	settle = 2 * time.Second
	// pause is the least time between two publications that new peers ask for.
	pause = 15 * time.Second
	// lookEvery is how long the publisher sleeps at most; its timer stops when the
	// machine sleeps, and cards may have expired by then.
	lookEvery = time.Minute
	firstTry  = 250 * time.Millisecond // a new peer takes a moment to enter the routing table
	lastTry   = 5 * time.Minute
)

// hosted is an agent of this node.
type hosted struct {
	spec   shoal.AgentSpec
	card   Card   // as last signed
	record []byte // the DHT record around it
	floor  uint64 // a sequence number seen under our name elsewhere: go above it

	outdone bool      // by a card with a higher number: sign anew
	due     time.Time // when to publish next; zero: now
	busy    bool      // being published
	again   bool      // became due while busy
	tries   int       // failed in a row

	published time.Time // last, with success
	peers     int       // how many nodes had been seen by then; 0: never published
}

func (h *hosted) setCard(c Card) {
	c.Local = true
	h.card = c
}

// peerUp makes the agent due if the new node is the first, or if the mesh is so small
// that the node may be one of those to keep the record, perhaps back with nothing.
func (h *hosted) peerUp(now time.Time) {
	switch {
	case h.peers == 0:
		h.due, h.tries = time.Time{}, 0
		h.again = h.busy
	case h.peers < enoughPeer:
		next := now.Add(settle)
		if soonest := h.published.Add(pause); next.Before(soonest) {
			next = soonest
		}
		if next.Before(h.due) {
			h.due = next
		}
	}
}

// Publish signs a new card for the agent, stores it, and has it published as soon as
// there is a peer. The card is in force here when Publish returns.
//
// It returns an [shoal.Invalid] error that says what is wrong with spec, a
// [shoal.Conflict] one if another agent here has the name, and [shoal.NotFound] if
// this node does not have the agent's key.
func (d *Directory) Publish(ctx context.Context, spec shoal.AgentSpec) error {
	spec, err := checkSpec(spec)
	if err != nil {
		return err
	}
	return d.sign(ctx, spec, false)
}

// Withdraw publishes that the agent offers nothing any more: a tombstone, which
// replaces its card until every earlier one has expired. The key must still be there.
// Withdrawing twice is no error; an agent never published is [ErrNotHosted].
func (d *Directory) Withdraw(ctx context.Context, id shoal.AgentID) error {
	d.mu.Lock()
	h, ok := d.local[id]
	var spec shoal.AgentSpec
	done := false
	if ok {
		spec, done = h.spec, h.card.withdrawn
	}
	d.mu.Unlock()
	if !ok {
		return ErrNotHosted.With("%s", clip(string(id)))
	}
	if done {
		return nil
	}
	return d.sign(ctx, spec, true)
}

// Refresh signs the card of the agent anew, or of all hosted agents if id is empty, and
// publishes at once. It returns how many are on the mesh, and what kept the others.
func (d *Directory) Refresh(ctx context.Context, id shoal.AgentID) (int, error) {
	ids := []shoal.AgentID{id}
	if id == "" {
		ids = nil
		for _, c := range d.Local() {
			ids = append(ids, c.Agent)
		}
	}
	n := 0
	var errs []error
	for _, id := range ids {
		if err := d.resign(ctx, id); err != nil {
			errs = append(errs, err)
		} else if err := d.put(ctx, id); err != nil {
			errs = append(errs, err)
		} else {
			n++
		}
	}
	return n, errors.Join(errs...)
}

// Local returns the cards of the agents hosted here, by name.
func (d *Directory) Local() []Card {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Card, 0, len(d.local))
	for _, h := range d.local {
		if !h.card.withdrawn {
			out = append(out, h.card)
		}
	}
	slices.SortFunc(out, byName)
	return out
}

// hostedCard returns the card of an agent of this node, a tombstone if it is withdrawn.
func (d *Directory) hostedCard(id shoal.AgentID) (Card, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h, ok := d.local[id]
	if !ok {
		return Card{}, false
	}
	return h.card, true
}

func (d *Directory) resign(ctx context.Context, id shoal.AgentID) error {
	d.mu.Lock()
	h, ok := d.local[id]
	if !ok || h.card.withdrawn {
		d.mu.Unlock()
		return ErrNotHosted.With("%s", clip(string(id)))
	}
	spec := h.spec
	d.mu.Unlock()
	return d.sign(ctx, spec, false)
}

// runPublisher publishes each hosted agent when it is due.
func (d *Directory) runPublisher(ctx context.Context) error {
	jobs, jobCtx := errgroup.WithContext(ctx)
	jobs.SetLimit(publishers)
	defer jobs.Wait() //nolint:errcheck // jobs return nil
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ids, next := d.takeDue(wallNow())
		for _, id := range ids {
			jobs.Go(func() error {
				d.publishOne(jobCtx, id)
				return nil
			})
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-d.publishing:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// takeDue marks the agents that are due as busy and returns them, with the time until
// the next one is.
func (d *Directory) takeDue(now time.Time) (ids []shoal.AgentID, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next = lookEvery
	for id, h := range d.local {
		switch {
		case h.busy || h.card.withdrawn && !h.card.NotAfter.After(now):
		case !h.due.After(now):
			h.busy = true
			ids = append(ids, id)
		default:
			next = min(next, h.due.Sub(now))
		}
	}
	slices.Sort(ids)
	return ids, next
}

// publishOne signs the agent's card anew if it is old, publishes it, and says when to
// do so again.
func (d *Directory) publishOne(ctx context.Context, id shoal.AgentID) {
	err := d.renew(ctx, id)
	if err == nil {
		err = d.put(ctx, id)
	}
	now := wallNow()
	d.mu.Lock()
	h := d.local[id]
	h.busy = false
	switch {
	case h.again:
		h.again, h.due = false, time.Time{}
	case err != nil:
		h.tries++
		h.due = now.Add(d.backOff(h.tries))
	default:
		h.tries = 0
		h.due = now.Add(d.jitter(d.cfg.Refresh))
	}
	tries := h.tries
	d.mu.Unlock()
	wake(d.publishing)
	if err != nil && ctx.Err() == nil {
		d.log.Debug("card not published yet", "agent", id, "tries", tries, "err", err)
	}
}

// backOff is the wait after the nth failure: twice as long each time, up to 5 minutes.
func (d *Directory) backOff(n int) time.Duration {
	return d.jitter(min(firstTry<<min(n-1, 20), lastTry))
}

// jitter takes off up to a tenth, so that nodes started together drift apart.
func (d *Directory) jitter(t time.Duration) time.Duration {
	return t - time.Duration(d.cfg.Rand()*float64(t)/10)
}

// renew signs the agent's card anew if it is old, or was outdone by one with a higher
// number under the same name.
func (d *Directory) renew(ctx context.Context, id shoal.AgentID) error {
	d.mu.Lock()
	h := d.local[id]
	spec, c, outdone := h.spec, h.card, h.outdone
	d.mu.Unlock()
	age := time.Since(c.NotBefore)
	old := age < 0 || age >= d.cfg.Refresh*9/10 // nine tenths, because of the jitter
	if !outdone && (c.withdrawn || !old) {
		return nil
	}
	if err := d.sign(ctx, spec, c.withdrawn); err != nil {
		return err
	}
	d.mu.Lock()
	h.again = false // what follows publishes the new card
	d.mu.Unlock()
	return nil
}

// put stores the agent's record in the DHT and announces its skills.
func (d *Directory) put(ctx context.Context, id shoal.AgentID) error {
	d.mu.Lock()
	h, ok := d.local[id]
	if !ok {
		d.mu.Unlock()
		return ErrNotHosted.With("%s", clip(string(id)))
	}
	card, record, peers := h.card, h.record, d.peers.len()
	d.mu.Unlock()

	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(1 + providers)
	g.Go(func() error { return d.putRecord(ctx, &card, record) })
	for _, s := range card.Skills {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*d.cfg.LookupTimeout)
			defer cancel()
			if err := d.mesh.Provide(ctx, shoal.CapabilityPrefix+s.ID); err != nil {
				return fmt.Errorf("announce %s: %w", s.ID, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	d.mu.Lock()
	h.peers, h.published = max(1, peers), wallNow()
	d.mu.Unlock()
	return nil
}

func (d *Directory) putRecord(ctx context.Context, card *Card, record []byte) error {
	putCtx, cancel := context.WithTimeout(ctx, 2*d.cfg.LookupTimeout)
	defer cancel()
	err := d.mesh.PutRecord(putCtx, record)
	if err == nil {
		return nil
	}
	d.seekRival(ctx, card)
	return fmt.Errorf("put card of %s: %w", card.Agent, err)
}

// seekRival looks for a newer card of a hosted agent, which is one reason why ours was
// refused: the database was restored from a backup, the agent's old host has a clock
// ahead of ours, or the key is used twice.
func (d *Directory) seekRival(ctx context.Context, ours *Card) {
	c, err := d.fromDHT(ctx, ours.Agent, true)
	if err != nil || c.Seq <= ours.Seq {
		return
	}
	if c.Node != d.cfg.Node && !c.withdrawn {
		d.log.Warn("another node has published a newer card of a hosted agent", "agent", c.Agent, "node", c.Node)
		return
	}
	d.mu.Lock()
	if h, ok := d.local[c.Agent]; ok {
		h.floor = max(h.floor, c.Seq)
		h.outdone = true
	}
	d.mu.Unlock()
}
