package directory

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// What a card says about itself (spec/card.md §1 and §2).
const (
	// ExtensionURI names the one extension that carries what A2A cards lack.
	ExtensionURI = "https://github.com/shoalmesh/shoal/spec/card/v1"
	// BindingURI is the protocolBinding of A2A over libp2p streams.
	BindingURI = "https://github.com/shoalmesh/shoal/spec/binding/libp2p/v1"
	// MaxCard is the size of a signed card in bytes.
	MaxCard = 8 << 10
	// MaxLife is the longest time from not_before to not_after.
	MaxLife = 24 * time.Hour
	// Tolerance is how far two clocks may differ.
	Tolerance = 2 * time.Minute

	urlPrefix = "libp2p:/p2p/"
	kindCard  = "card"
	// maxSeq is the largest integer that every JSON reader keeps exactly (RFC 8785).
	maxSeq    = 1<<53 - 1
	maxName   = 64
	maxSkills = 64
)

// Refusals of a card, by reason. The texts of identity's refusals come on top.
var (
	ErrBadCard      = shoal.NewError(shoal.Invalid, "bad_card", "card is malformed", "")
	ErrWrongNetwork = shoal.NewError(shoal.Denied, "card_wrong_network", "card is of another network", "")
	ErrWrongAgent   = shoal.NewError(shoal.Denied, "card_wrong_agent", "card is of another agent", "")
	ErrExpired      = shoal.NewError(shoal.Denied, "card_expired", "card has expired",
		"the agent's node may be off, or one of the two clocks is wrong")
	ErrNotYetValid = shoal.NewError(shoal.Denied, "card_not_yet_valid", "card is not valid yet",
		"one of the two clocks is wrong")
	ErrStale    = shoal.NewError(shoal.Denied, "card_stale", "a newer card of the agent is known", "")
	ErrConflict = shoal.NewError(shoal.Denied, "card_conflict", "another card with the same sequence number is known", "")
)

// Card is what is known of an agent: the verified content of its newest card.
// Its slices and pointers are shared; nobody changes them.
type Card struct {
	Agent       shoal.AgentID
	Node        shoal.NodeID // its host
	Name        string
	Description string
	Skills      []shoal.Skill
	Seq         uint64
	NotBefore   time.Time
	NotAfter    time.Time
	VerifiedAt  time.Time // when this node last heard it from the host, or first from others
	Card        *a2a.AgentCard
	Raw         []byte // the signed JSON as received
	Local       bool   // hosted here

	withdrawn bool
}

// params are the extension's parameters.
type params struct {
	Seq       uint64                 `json:"seq"`
	NotBefore time.Time              `json:"not_before"`
	NotAfter  time.Time              `json:"not_after"`
	Node      shoal.NodeID           `json:"node"`
	Network   string                 `json:"network"`
	Withdrawn bool                   `json:"withdrawn,omitempty"`
	Skills    map[string]skillParams `json:"skills,omitempty"`
}

// skillParams are what A2A skills lack. The hashes are "sha256:<hex>" of JSON Schemas
// that the host serves.
type skillParams struct {
	Idempotent   bool   `json:"idempotent,omitempty"`
	InputSchema  string `json:"input_schema,omitempty"`
	OutputSchema string `json:"output_schema,omitempty"`
}

// Has reports whether the card offers the skill with that id.
func (c *Card) Has(skill string) bool {
	for i := range c.Skills {
		if c.Skills[i].ID == skill {
			return true
		}
	}
	return false
}

// alive reports whether the card may be shown to anybody now.
func (c *Card) alive(now time.Time) bool {
	return !c.withdrawn && c.checkTime(now) == nil
}

func (c *Card) checkTime(now time.Time) error {
	if now.After(c.NotAfter.Add(Tolerance)) {
		return ErrExpired.With("at %s, our clock differs by %s", stamp(c.NotAfter), now.Sub(c.NotAfter).Round(time.Second))
	}
	if now.Add(Tolerance).Before(c.NotBefore) {
		return ErrNotYetValid.With("before %s, our clock differs by %s", stamp(c.NotBefore), c.NotBefore.Sub(now).Round(time.Second))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// openCard verifies a signed card as received: its signature, its extension, its
// network and that it is valid now. It says nothing about newer cards.
func openCard(raw []byte, network string, now time.Time) (Card, error) {
	c, err := openTimeless(raw, network)
	if err != nil {
		return Card{}, err
	}
	c.VerifiedAt = now
	return c, c.checkTime(now)
}

func openTimeless(raw []byte, network string) (Card, error) {
	if len(raw) > MaxCard {
		return Card{}, ErrBadCard.With("%d bytes are more than %d", len(raw), MaxCard)
	}
	card, agent, err := identity.VerifyCard(raw)
	if err != nil {
		return Card{}, fmt.Errorf("verify card: %w", err)
	}
	p, err := readParams(card)
	if err != nil {
		return Card{}, err
	}
	if p.Network != network {
		return Card{}, ErrWrongNetwork.With("%q", clip(p.Network))
	}
	c := Card{
		Agent: agent, Node: p.Node, Name: card.Name, Description: card.Description,
		Seq: p.Seq, NotBefore: p.NotBefore, NotAfter: p.NotAfter,
		Card: card, Raw: raw, withdrawn: p.Withdrawn,
	}
	c.Skills, err = readSkills(card, p)
	return c, err
}

// readParams returns the content of the one extension of ours. Parameters that it does
// not know are left alone: a later version may add some.
func readParams(card *a2a.AgentCard) (params, error) {
	var ours []a2a.AgentExtension
	for _, e := range card.Capabilities.Extensions {
		if e.URI == ExtensionURI {
			ours = append(ours, e)
		}
	}
	if len(ours) != 1 {
		return params{}, ErrBadCard.With("extension %s occurs %d times", ExtensionURI, len(ours))
	}
	raw, err := json.Marshal(ours[0].Params)
	if err != nil {
		return params{}, ErrBadCard.Because(err)
	}
	var p params
	if err := json.Unmarshal(raw, &p); err != nil {
		return params{}, ErrBadCard.Because(err)
	}
	return p, p.check(card)
}

func (p *params) check(card *a2a.AgentCard) error {
	node, err := shoal.ParseNodeID(string(p.Node))
	if err != nil {
		return ErrBadCard.Because(err)
	}
	life := p.NotAfter.Sub(p.NotBefore)
	switch {
	case p.Seq < 1 || p.Seq > maxSeq:
		return ErrBadCard.With("seq %d is out of range", p.Seq)
	case p.NotBefore.IsZero() || life <= 0 || life > MaxLife:
		return ErrBadCard.With("it is valid for %s, not more than 0 and at most %s", life, MaxLife)
	case p.Withdrawn && len(card.Skills) > 0:
		return ErrBadCard.With("it is withdrawn and has skills")
	}
	return checkInterfaces(card, node)
}

// checkInterfaces refuses a card whose A2A interface points to another node than its
// extension: clients of the one and of the other would talk to different hosts.
func checkInterfaces(card *a2a.AgentCard, node shoal.NodeID) error {
	n := 0
	for _, i := range card.SupportedInterfaces {
		if i == nil || i.ProtocolBinding != BindingURI {
			continue
		}
		n++
		if i.URL != urlPrefix+string(node) {
			return ErrBadCard.With("its interface %q is not of its node", clip(i.URL))
		}
	}
	if n != 1 {
		return ErrBadCard.With("it has %d interfaces of our binding, not 1", n)
	}
	return nil
}

func readSkills(card *a2a.AgentCard, p params) ([]shoal.Skill, error) {
	if err := checkText(card.Name, 1, maxName); err != nil {
		return nil, ErrBadCard.With("name").Because(err)
	}
	if len(card.Skills) > maxSkills {
		return nil, ErrBadCard.With("%d skills are more than %d", len(card.Skills), maxSkills)
	}
	seen := make(map[string]bool, len(card.Skills))
	skills := make([]shoal.Skill, 0, len(card.Skills))
	for _, s := range card.Skills {
		if id, err := shoal.ParseCapability(s.ID); err != nil || id != s.ID || seen[id] {
			return nil, ErrBadCard.With("skill id %q is malformed or occurs twice", clip(s.ID))
		}
		seen[s.ID] = true
		skills = append(skills, shoal.Skill{
			ID: s.ID, Name: s.Name, Description: s.Description,
			Tags: s.Tags, Examples: s.Examples, Idempotent: p.Skills[s.ID].Idempotent,
		})
	}
	return skills, nil
}

func checkText(s string, least, most int) error {
	switch {
	case len(s) < least || len(s) > most:
		return fmt.Errorf("%d bytes, not %d to %d", len(s), least, most)
	case !utf8.ValidString(s):
		return fmt.Errorf("it is not UTF-8")
	case strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0:
		return fmt.Errorf("it has characters that cannot be printed")
	}
	return nil
}

func clip(s string) string {
	const most = 100
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// newCard makes the unsigned card of spec. A withdrawn one offers nothing.
func newCard(spec shoal.AgentSpec, p params) *a2a.AgentCard {
	card := &a2a.AgentCard{
		Name:        spec.Name,
		Description: spec.Description,
		Version:     "1.0.0",
		SupportedInterfaces: []*a2a.AgentInterface{{
			URL: urlPrefix + string(p.Node), ProtocolBinding: BindingURI, ProtocolVersion: a2a.Version,
		}},
		DefaultInputModes:  []string{"text/plain", "application/json"},
		DefaultOutputModes: []string{"text/plain", "application/json"},
		Capabilities:       a2a.AgentCapabilities{Streaming: true},
		Skills:             []a2a.AgentSkill{},
	}
	if !p.Withdrawn {
		p.Skills = map[string]skillParams{}
		for _, s := range spec.Skills {
			card.Skills = append(card.Skills, a2a.AgentSkill{
				ID: s.ID, Name: s.Name, Description: s.Description,
				Tags: append([]string{}, s.Tags...), Examples: s.Examples,
			})
			if s.Idempotent {
				p.Skills[s.ID] = skillParams{Idempotent: true}
			}
		}
	}
	card.Capabilities.Extensions = []a2a.AgentExtension{{
		URI: ExtensionURI, Description: "Where the agent is hosted and how long this card holds",
		Params: p.asMap(),
	}}
	return card
}

func (p params) asMap() map[string]any {
	m := map[string]any{
		"seq": p.Seq, "not_before": stamp(p.NotBefore), "not_after": stamp(p.NotAfter),
		"node": string(p.Node), "network": p.Network,
	}
	if p.Withdrawn {
		m["withdrawn"] = true
	}
	if len(p.Skills) > 0 {
		m["skills"] = p.Skills
	}
	return m
}
