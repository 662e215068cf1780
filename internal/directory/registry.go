package directory

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoalmesh/shoal"
)

// maxKnownBytes bounds the signed bytes of all cards in memory; decoded they take about
// three times as much.
const maxKnownBytes = 32 << 20

// registry holds the verified cards of agents that are hosted elsewhere, the newest of
// each. It only ever moves forward: an older card never replaces a newer one. What it
// forgets for lack of room stays pinned in the database.
type registry struct {
	max int

	mu      sync.Mutex
	agents  map[shoal.AgentID]*entry
	digests map[digest]*entry // of the raw bytes: a known card is not verified again
	skills  map[string]map[shoal.AgentID]*entry
	recent  *list.List // of *entry, most recently used first
	bytes   int
	unsaved map[shoal.AgentID]*Card
}

// digest is the SHA-256 of a card's bytes as received.
type digest [sha256.Size]byte

func digestOf(raw []byte) digest { return sha256.Sum256(raw) }

type entry struct {
	card   *Card
	digest digest
	heard  time.Time // when the host itself last served it; zero if it did not when asked
	doubt  bool      // the host was asked and left it out
	twin   bool      // another card with the same number was seen
	place  *list.Element
}

func newRegistry(maxCards int) *registry {
	return &registry{
		max:     maxCards,
		agents:  map[shoal.AgentID]*entry{},
		digests: map[digest]*entry{},
		skills:  map[string]map[shoal.AgentID]*entry{},
		recent:  list.New(),
		unsaved: map[shoal.AgentID]*Card{},
	}
}

// get returns what is known of an agent, whether it may be shown or not.
func (r *registry) get(id shoal.AgentID) (c *Card, doubt, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.agents[id]
	if !ok {
		return nil, false, false
	}
	r.recent.MoveToFront(e.place)
	return e.card, e.doubt, true
}

// again returns the known card with these very bytes, if it is the newest of its agent.
// from is the node that served them.
func (r *registry) again(sum digest, from shoal.NodeID, now time.Time) (*Card, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.digests[sum]
	if !ok {
		return nil, false
	}
	e.hear(from, now)
	return e.card, true
}

// pinned returns the card of id that waits to be written down, if there is one.
func (r *registry) pinned(id shoal.AgentID) (*Card, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.agents[id]; ok {
		return e.card, true
	}
	c, ok := r.unsaved[id]
	return c, ok
}

// adopt makes c the newest card of its agent. It returns [ErrStale] or [ErrConflict] if
// it is not; of two cards with one sequence number the first stays, so an agent that
// signs two cannot show them to one node.
func (r *registry) adopt(c *Card, sum digest, from shoal.NodeID, save bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.agents[c.Agent]; ok {
		if err := newer(c.Seq, sum, old.card.Seq, old.digest); err != nil {
			return err
		}
		if old.digest == sum {
			old.hear(from, c.VerifiedAt)
			return nil
		}
		r.drop(old)
	}
	e := &entry{card: c, digest: sum}
	e.hear(from, c.VerifiedAt)
	e.place = r.recent.PushFront(e)
	r.agents[c.Agent], r.digests[sum] = e, e
	r.bytes += len(c.Raw)
	for _, s := range c.Skills {
		if r.skills[s.ID] == nil {
			r.skills[s.ID] = map[shoal.AgentID]*entry{}
		}
		r.skills[s.ID][c.Agent] = e
	}
	if save {
		r.unsaved[c.Agent] = c
	}
	r.makeRoom()
	return nil
}

// newer decides between a card and the one known before.
func newer(seq uint64, sum digest, oldSeq uint64, old digest) error {
	switch {
	case seq < oldSeq:
		return ErrStale.With("sequence number %d, known is %d", seq, oldSeq)
	case seq == oldSeq && sum != old:
		return ErrConflict.With("%d", seq)
	}
	return nil
}

// sawTwin notes that an agent has signed two cards with one number, and reports
// whether that is news.
func (r *registry) sawTwin(id shoal.AgentID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.agents[id]
	if !ok || e.twin {
		return false
	}
	e.twin = true
	return true
}

func (r *registry) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.agents)
}

func (e *entry) hear(from shoal.NodeID, now time.Time) {
	if from == "" || from != e.card.Node {
		return
	}
	e.heard, e.doubt = now, false
	if now.After(e.card.VerifiedAt) {
		c := *e.card // cards are immutable, they have been handed out
		c.VerifiedAt = now
		e.card = &c
	}
}

func (r *registry) makeRoom() {
	for len(r.agents) > 1 && (len(r.agents) > r.max || r.bytes > maxKnownBytes) {
		r.drop(r.recent.Back().Value.(*entry))
	}
}

func (r *registry) drop(e *entry) {
	r.recent.Remove(e.place)
	delete(r.agents, e.card.Agent)
	delete(r.digests, e.digest)
	r.bytes -= len(e.card.Raw)
	for _, s := range e.card.Skills {
		if m := r.skills[s.ID]; m[e.card.Agent] == e {
			delete(m, e.card.Agent)
			if len(m) == 0 {
				delete(r.skills, s.ID)
			}
		}
	}
}

// sweep forgets the cards that have expired.
func (r *registry) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.agents {
		if now.After(e.card.NotAfter.Add(Tolerance)) {
			r.drop(e)
		}
	}
}

// takeUnsaved returns the cards to be written down; saved says which of them were.
func (r *registry) takeUnsaved(most int) []*Card {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*Card, 0, min(most, len(r.unsaved)))
	for _, c := range r.unsaved {
		if len(out) == most {
			break
		}
		out = append(out, c)
	}
	return out
}

func (r *registry) saved(cards []*Card) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cards {
		if r.unsaved[c.Agent] == c {
			delete(r.unsaved, c.Agent)
		}
	}
}

// hosts returns the nodes that the known cards with that skill name, those heard last
// first.
func (r *registry) hosts(skill string) []shoal.NodeID {
	r.mu.Lock()
	last := map[shoal.NodeID]time.Time{}
	for _, e := range r.skills[skill] {
		if at, ok := last[e.card.Node]; !ok || e.heard.After(at) {
			last[e.card.Node] = e.heard
		}
	}
	r.mu.Unlock()
	return slices.SortedFunc(maps.Keys(last), func(a, b shoal.NodeID) int {
		return cmp.Or(last[b].Compare(last[a]), strings.Compare(string(a), string(b)))
	})
}

// settle notes what nodes answered when they were asked for a skill: a card that its
// own host left out is in doubt, one whose host was silent comes last.
func (r *registry) settle(skill string, since time.Time, answered map[shoal.NodeID]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.skills[skill] {
		complete, asked := answered[e.card.Node]
		switch {
		case !asked || !e.heard.Before(since):
		case complete:
			e.doubt = true
		default:
			e.heard = time.Time{}
		}
	}
}

// doubts notes that the host of id's card was asked for it and did not have it.
func (r *registry) doubts(id shoal.AgentID, host shoal.NodeID, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.agents[id]; ok && e.card.Node == host && e.heard.Before(since) {
		e.doubt = true
	}
}

// withSkill returns the cards that may be shown for a skill, those whose hosts were
// heard since then first, then by name.
func (r *registry) withSkill(skill string, now, since time.Time) []Card {
	r.mu.Lock()
	defer r.mu.Unlock()
	var heard, silent []Card
	for _, e := range r.skills[skill] {
		if e.doubt || !e.card.alive(now) {
			continue
		}
		if e.heard.Before(since) {
			silent = append(silent, *e.card)
		} else {
			heard = append(heard, *e.card)
		}
	}
	slices.SortFunc(heard, byName)
	slices.SortFunc(silent, byName)
	return append(heard, silent...)
}

// these returns those of the given agents whose newest card still offers the skill.
func (r *registry) these(ids []shoal.AgentID, skill string, now time.Time, limit int) []Card {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Card, 0, min(limit, len(ids)))
	offering := r.skills[skill]
	for _, id := range ids {
		if len(out) == limit {
			break
		}
		if e, ok := offering[id]; ok && !e.doubt && e.card.alive(now) {
			out = append(out, *e.card)
		}
	}
	return out
}

// withWords returns the cards that contain all words, which are in lower case.
func (r *registry) withWords(words []string, now time.Time) []Card {
	r.mu.Lock()
	cards := make([]*Card, 0, len(r.agents))
	for _, e := range r.agents {
		if !e.doubt && e.card.alive(now) {
			cards = append(cards, e.card)
		}
	}
	r.mu.Unlock()

	var out []Card
	for _, c := range cards {
		if c.contains(words) {
			out = append(out, *c)
		}
	}
	slices.SortFunc(out, byName)
	return out
}

func byName(a, b Card) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Agent), string(b.Agent)))
}

// contains reports whether every word occurs in what the card says about the agent.
func (c *Card) contains(words []string) bool {
	if len(words) == 0 {
		return true
	}
	var b strings.Builder
	add := func(s string) { b.WriteString(s); b.WriteByte('\n') }
	add(c.Name)
	add(c.Description)
	for _, s := range c.Skills {
		add(s.ID)
		add(s.Name)
		add(s.Description)
		for _, t := range s.Tags {
			add(t)
		}
	}
	text := strings.ToLower(b.String())
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}
