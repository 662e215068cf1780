package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

var (
	errNameTaken = shoal.NewError(shoal.Conflict, "name_taken", "another agent of this node has that name",
		"choose another name, or remove the other agent")
	errNoKey = shoal.NewError(shoal.NotFound, "unknown_agent", "this node has no key of the agent",
		"only agents created on this node can be published here")
	errTooLarge = shoal.NewError(shoal.Invalid, "card_too_large", "the agent's card is too large",
		"shorten descriptions and examples, or split the skills over two agents")
	errBadSpec = shoal.NewError(shoal.Invalid, "bad_agent", "the agent's description is malformed", "")
)

// sign makes, stores and puts into force the next card of the agent.
func (d *Directory) sign(ctx context.Context, spec shoal.AgentSpec, withdraw bool) error {
	key, ok := d.keys.Key(spec.ID)
	if !ok {
		return errNoKey.With("%s", clip(string(spec.ID)))
	}
	d.signMu.Lock()
	defer d.signMu.Unlock()

	seq, err := d.nextSeq(spec)
	if err != nil {
		return err
	}
	h, err := d.makeCard(spec, key, seq, withdraw, time.Now())
	if err != nil {
		return err
	}
	if err := d.saveHosted(ctx, h); err != nil {
		return fmt.Errorf("store card of %s: %w", spec.ID, err)
	}

	d.mu.Lock()
	if old, ok := d.local[spec.ID]; ok {
		h.floor, h.busy, h.again, h.peers = old.floor, old.busy, old.busy, old.peers
		h.published = old.published
		*old = *h
	} else {
		d.local[spec.ID] = h
	}
	d.mu.Unlock()
	wake(d.publishing)
	return nil
}

// nextSeq returns a sequence number above all that were used for the agent here. It
// starts at the time in milliseconds, so that a node whose database was restored from
// an old backup does not fall behind what it has published since.
func (d *Directory) nextSeq(spec shoal.AgentSpec) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seq := uint64(max(1, time.Now().UnixMilli()))
	for id, h := range d.local {
		switch {
		case id == spec.ID:
			seq = max(seq, h.card.Seq+1, h.floor+1)
		case h.spec.Name == spec.Name && !h.card.withdrawn:
			return 0, errNameTaken.With("%q is %s", spec.Name, id)
		}
	}
	if seq > maxSeq {
		return 0, shoal.NewError(shoal.Exhausted, "seq_exhausted", "the agent's card numbers are used up",
			"create a new agent")
	}
	return seq, nil
}

func (d *Directory) makeCard(spec shoal.AgentSpec, key identity.Key, seq uint64, withdraw bool, now time.Time) (*hosted, error) {
	now = now.UTC().Truncate(time.Second)
	p := params{
		Seq: seq, NotBefore: now, NotAfter: now.Add(d.cfg.TTL),
		Node: d.cfg.Node, Network: d.cfg.Network, Withdrawn: withdraw,
	}
	unsigned := newCard(spec, p)
	raw, err := identity.SignCard(unsigned, key)
	if err != nil {
		return nil, signError(unsigned, err)
	}
	card, err := openCard(raw, d.cfg.Network, now) // what others would refuse is not published
	if err != nil {
		return nil, errBadSpec.Because(err)
	}
	record, err := identity.SignRecord(key, d.cfg.Network, shoal.Record{
		Kind: kindCard, Owner: spec.ID, Seq: seq, NotBefore: p.NotBefore, NotAfter: p.NotAfter, Value: raw,
	})
	if err != nil {
		return nil, fmt.Errorf("sign record of %s: %w", spec.ID, err)
	}
	h := &hosted{spec: spec, record: record}
	h.setCard(card)
	return h, nil
}

// signError says why a card could not be signed; by far the most likely reason is its size.
func signError(card *a2a.AgentCard, err error) error {
	const signature = 320 // bytes that signing adds, about
	if text, jsonErr := json.Marshal(card); jsonErr == nil && len(text) > MaxCard-signature {
		return errTooLarge.With("about %d bytes, at most %d", len(text)+signature, MaxCard)
	}
	return errBadSpec.Because(err)
}

// checkSpec returns spec with the gaps filled that A2A does not allow, or what is wrong.
func checkSpec(s shoal.AgentSpec) (shoal.AgentSpec, error) {
	bad := func(what string, err error) (shoal.AgentSpec, error) {
		return s, errBadSpec.With("%s", what).Because(err)
	}
	if _, err := shoal.ParseAgentID(string(s.ID)); err != nil {
		return bad("id", err)
	}
	if err := checkText(s.Name, 1, maxName); err != nil {
		return bad("name", err)
	}
	texts := []string{s.Description}
	if len(s.Skills) > maxSkills {
		return bad("skills", fmt.Errorf("%d, at most %d", len(s.Skills), maxSkills))
	}
	s.Skills = slices.Clone(s.Skills)
	seen := map[string]bool{}
	for i := range s.Skills {
		k := &s.Skills[i]
		id, err := shoal.ParseCapability(k.ID)
		if err != nil {
			return bad("skill", err)
		}
		if seen[id] {
			return bad("skill "+id, errors.New("it occurs twice"))
		}
		seen[id], k.ID = true, id
		if k.Name == "" {
			k.Name = id
		}
		if k.Description == "" {
			k.Description = k.Name
		}
		texts = append(append(append(texts, k.Name, k.Description), k.Tags...), k.Examples...)
	}
	for _, t := range texts {
		// JSON would turn it into replacement characters, silently.
		if !utf8.ValidString(t) || strings.ContainsRune(t, 0) {
			return bad("text", fmt.Errorf("%q is not UTF-8 or has a zero byte", clip(t)))
		}
	}
	return s, nil
}
