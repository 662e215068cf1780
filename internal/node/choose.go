package node

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/directory"
)

const (
	maxCandidates = 16
	pingTime      = 500 * time.Millisecond
)

// chooser answers the task engine's questions about agents from directory, workers and
// mesh.
type chooser struct{ n *node }

// Host returns the node that hosts the agent.
func (c chooser) Host(ctx context.Context, agent shoal.AgentID) (shoal.NodeID, error) {
	return c.n.directory.Host(ctx, agent)
}

// Check refuses a skill that the agent's known card lacks.
func (c chooser) Check(agent shoal.AgentID, skill string) error {
	if _, ok := c.n.ring.Key(agent); ok {
		_, err := c.n.workers.Skill(agent, skill)
		return err
	}
	card, ok := c.n.directory.Knows(agent)
	if !ok || skill == "" || card.Has(skill) {
		return nil
	}
	names := make([]string, 0, len(card.Skills))
	for _, s := range card.Skills {
		names = append(names, s.ID)
	}
	hint := "it offers: " + strings.Join(names, ", ")
	if near := directory.Nearest(names, skill); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return shoal.NewError(shoal.NotFound, "unknown_skill", "agent "+string(agent)+" does not offer "+skill, hint)
}

// Choose returns the agent with the lowest measured round trip among those that offer
// the skill, ties by DID. An agent of this node is nearest.
func (c chooser) Choose(ctx context.Context, skill string) (shoal.AgentID, error) {
	cards, err := c.n.directory.Find(ctx, directory.Query{Capability: skill, Limit: maxCandidates})
	if err != nil {
		return "", err
	}
	if len(cards) == 0 {
		return "", shoal.NewError(shoal.NotFound, "no_agent", "no agent on the mesh offers "+skill,
			"see `shoal find "+skill+"`; it may take a moment after joining")
	}
	if len(cards) == 1 {
		return cards[0].Agent, nil
	}
	rtts := c.rtts(ctx, cards)
	best := slices.MinFunc(cards, func(a, b directory.Card) int {
		return cmp.Or(cmp.Compare(rtts[a.Node], rtts[b.Node]), cmp.Compare(a.Agent, b.Agent))
	})
	return best.Agent, nil
}

// rtts measures nodes whose round trip is not known yet, all at once; one that does not
// answer counts as far away.
func (c chooser) rtts(ctx context.Context, cards []directory.Card) map[shoal.NodeID]time.Duration {
	rtts := map[shoal.NodeID]time.Duration{c.n.mesh.ID(): 0}
	for _, p := range c.n.mesh.Peers() {
		if p.RTT > 0 {
			rtts[p.ID] = p.RTT
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, card := range cards {
		mu.Lock()
		_, known := rtts[card.Node]
		if !known {
			rtts[card.Node] = time.Hour
		}
		mu.Unlock()
		if known {
			continue
		}
		wg.Go(func() {
			_, rtt, err := c.n.mesh.Ping(ctx, card.Node)
			if err == nil {
				mu.Lock()
				rtts[card.Node] = rtt
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return rtts
}
