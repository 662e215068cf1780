package directory

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shoalmesh/shoal"
)

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

// lie reports whether an honest node could not have served a card that is refused so.
func lie(err error) bool {
	return !errors.Is(err, ErrExpired) && !errors.Is(err, ErrNotYetValid) &&
		!errors.Is(err, ErrStale) && !errors.Is(err, ErrConflict) && shoal.KindOf(err) != shoal.Internal
}
