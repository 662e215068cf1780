package worker

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shoalmesh/shoal"
)

const (
	maxName        = 64
	maxSkills      = 32
	maxDescription = 1024 // bytes; the whole card has 8 KiB
	maxLabel       = 64
	maxTags        = 16
	maxExample     = 256

	minHeartbeat = 100 * time.Millisecond
	maxHeartbeat = time.Hour
)

// AttachSpec says for whom a worker works and how.
type AttachSpec struct {
	// Agent is the name or DID of a hosted agent; a new name makes a new agent; "" is
	// the node's own. A name is 1 to 64 of a-z, 0-9, '-', '_', '.' and inner spaces.
	Agent string
	// Description replaces the agent's; "" keeps it.
	Description string
	// Skills is what this worker does, at most 32. None means all that the agent offers.
	Skills []shoal.Skill
	// Concurrency is how many tasks it takes at once, 1 to 1024. Default 1.
	Concurrency int
	// Heartbeat is how often at least the worker promises to report or call
	// [Pool.Heartbeat], 100ms to 1h; the session is lost after one and a half times
	// that. 0: no promise.
	Heartbeat time.Duration
	// Ephemeral withdraws the agent's card when its last worker has left.
	Ephemeral bool
}

// check returns the spec with defaults filled in and skills in plain form.
func (s AttachSpec) check() (AttachSpec, error) {
	if s.Concurrency == 0 {
		s.Concurrency = 1
	}
	if s.Concurrency < 1 || s.Concurrency > maxConcurrency {
		return s, invalid("bad_concurrency", fmt.Sprintf("concurrency %d is out of range", s.Concurrency), "use 1 to 1024")
	}
	if s.Heartbeat != 0 && (s.Heartbeat < minHeartbeat || s.Heartbeat > maxHeartbeat) {
		return s, invalid("bad_heartbeat", fmt.Sprintf("heartbeat %v is out of range", s.Heartbeat), "use 100ms to 1h, or 0 for none")
	}
	if s.Agent == "" {
		s.Agent = OwnName
	}
	if !strings.HasPrefix(s.Agent, "did:") {
		if err := checkName(s.Agent); err != nil {
			return s, err
		}
	}
	if err := checkText("description", s.Description, maxDescription); err != nil {
		return s, err
	}
	skills, err := checkSkills(s.Skills)
	s.Skills = skills
	return s, err
}

func checkName(s string) error {
	ok := len(s) >= 1 && len(s) <= maxName && s[0] != ' ' && s[len(s)-1] != ' '
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == ' '
	}
	if !ok {
		return invalid("bad_name", fmt.Sprintf("agent name %q is malformed", clip(s)),
			"use 1 to 64 of a-z, 0-9, '-', '_', '.' and spaces inside")
	}
	return nil
}

func checkSkills(in []shoal.Skill) ([]shoal.Skill, error) {
	if len(in) > maxSkills {
		return nil, invalid("too_many_skills", fmt.Sprintf("%d skills are too many", len(in)), "offer at most 32, or use several agents")
	}
	out := make([]shoal.Skill, 0, len(in))
	for _, s := range in {
		id, err := shoal.ParseCapability(s.ID)
		if err != nil {
			return nil, err
		}
		s.ID = id
		if hasSkill(out, id) {
			return nil, invalid("duplicate_skill", "skill "+id+" is named twice", "")
		}
		if err := checkSkill(s); err != nil {
			return nil, err
		}
		s.Tags, s.Examples = own(s.Tags), own(s.Examples)
		out = append(out, s)
	}
	return out, nil
}

// own copies a list; none and empty become the same, so that specs can be compared.
func own(in []string) []string { return append([]string(nil), in...) }

func checkSkill(s shoal.Skill) error {
	if len(s.Tags) > maxTags || len(s.Examples) > maxTags {
		return invalid("bad_skill", "skill "+s.ID+" has too many tags or examples", "use at most 16 of each")
	}
	if err := checkText("name of skill "+s.ID, s.Name, maxLabel); err != nil {
		return err
	}
	if err := checkText("description of skill "+s.ID, s.Description, maxDescription); err != nil {
		return err
	}
	for _, t := range s.Tags {
		if err := checkText("tag of skill "+s.ID, t, maxLabel); err != nil {
			return err
		}
	}
	for _, e := range s.Examples {
		if err := checkText("example of skill "+s.ID, e, maxExample); err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses what would not survive JSON or could fool a terminal.
func checkText(what, s string, most int) error {
	if len(s) > most {
		return invalid("text_too_long", fmt.Sprintf("the %s is longer than %d bytes", what, most), "shorten it")
	}
	unprintable := func(r rune) bool { return !unicode.IsGraphic(r) && r != '\n' && r != '\t' }
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable) {
		return invalid("bad_text", "the "+what+" has bytes that cannot be shown", "use printable UTF-8")
	}
	return nil
}

func invalid(reason, msg, hint string) error { return shoal.NewError(shoal.Invalid, reason, msg, hint) }

func hasSkill(skills []shoal.Skill, id string) bool {
	return slices.ContainsFunc(skills, func(s shoal.Skill) bool { return s.ID == id })
}

// Attach opens a session for a worker, making the agent if the name is new. The agent's
// card in the directory is up to date here when it returns; the mesh hears later.
// It returns an [shoal.Invalid] error that says what is wrong with spec,
// [ErrUnknownAgent] for a DID that is not hosted here, and errors of the directory and
// the store.
func (p *Pool) Attach(ctx context.Context, spec AttachSpec) (*Session, error) {
	spec, err := spec.check()
	if err != nil {
		return nil, err
	}
	s, err := p.attach(ctx, spec)
	if err != nil {
		return nil, err
	}
	p.cfg.Ready(s.spec.ID)
	return s, nil
}

func (p *Pool) attach(ctx context.Context, spec AttachSpec) (*Session, error) {
	if err := p.lockAdmin(ctx); err != nil {
		return nil, err
	}
	defer p.unlockAdmin()
	id, made, err := p.ensure(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := p.update(ctx, id, spec); err != nil {
		if made {
			p.unmake(ctx, id)
		}
		return nil, err
	}
	return p.open(id, spec)
}

// ensure returns the agent of spec, made if need be. The caller holds admin.
func (p *Pool) ensure(ctx context.Context, spec AttachSpec) (id shoal.AgentID, made bool, err error) {
	p.mu.Lock()
	id, err = p.lookup(spec.Agent)
	full, stopped := len(p.agents) >= maxAgents, p.stopped
	p.mu.Unlock()
	switch {
	case stopped:
		return "", false, errStopping
	case err == nil:
		return id, false, nil
	case strings.HasPrefix(spec.Agent, "did:"):
		return "", false, err
	case full:
		return "", false, shoal.NewError(shoal.Exhausted, "too_many_agents", "this node hosts too many agents",
			"remove some with `shoal agent remove NAME`")
	}

	key, err := p.keys.NewAgent()
	if err != nil {
		return "", false, fmt.Errorf("make a key for agent %s: %w", spec.Agent, err)
	}
	id = key.Agent()
	r := record{Spec: shoal.AgentSpec{ID: id, Name: spec.Agent}}
	if err := p.write(ctx, r); err != nil {
		p.removeKey(id)
		return "", false, err
	}
	p.mu.Lock()
	p.agents[id] = &agent{record: r}
	p.names[spec.Agent] = id
	p.mu.Unlock()
	return id, true, nil
}

// unmake forgets an agent that was just made, because its card was refused.
func (p *Pool) unmake(ctx context.Context, id shoal.AgentID) {
	// Also if the caller has hung up: else the name would stay taken by an empty agent.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmakeTime)
	defer cancel()
	if _, err := p.drop(ctx, id); err != nil {
		p.log.Warn("agent that could not be published is left over", "agent", id, "err", err)
		return
	}
	p.removeKey(id)
}

const unmakeTime = 5 * time.Second

func (p *Pool) removeKey(id shoal.AgentID) {
	if err := p.keys.Remove(id); err != nil {
		p.log.Warn("key of an agent that was not made is left over", "agent", id, "err", err)
	}
}

// update brings the agent's record and card in line with what spec says, if they are
// not. The caller holds admin.
func (p *Pool) update(ctx context.Context, id shoal.AgentID, spec AttachSpec) error {
	p.mu.Lock()
	a := p.agents[id]
	old := a.record
	next := old
	next.Ephemeral = spec.Ephemeral
	next.Spec.Skills = merge(a, spec.Skills)
	p.mu.Unlock()
	if spec.Description != "" {
		next.Spec.Description = spec.Description
	}
	same := reflect.DeepEqual(old.Spec, next.Spec)
	if same && old.Published && old.Ephemeral == next.Ephemeral {
		return nil
	}
	// The order survives a crash in between: a record that says it is not published is
	// published by the next attach.
	if !same || !old.Published {
		next.Published = false
		if !reflect.DeepEqual(old, next) {
			if err := p.write(ctx, next); err != nil {
				return err
			}
		}
		if err := p.dir.Publish(ctx, next.Spec); err != nil {
			p.restore(ctx, old)
			return fmt.Errorf("publish card of %s: %w", next.Spec.Name, err)
		}
	}
	next.Published = true
	return p.save(ctx, id, func(r *record) { *r = next })
}

// restore undoes a change that the directory refused.
func (p *Pool) restore(ctx context.Context, old record) {
	if err := p.write(context.WithoutCancel(ctx), old); err != nil {
		p.log.Warn("agent's record not restored", "agent", old.Spec.ID, "err", err)
	}
}

// merge returns the agent's skills once a worker with those given is attached: what it
// and the other attached workers offer, in the order known so far. Workers of one agent
// may offer different things; a worker that is alone replaces all.
func merge(a *agent, given []shoal.Skill) []shoal.Skill {
	if len(given) == 0 {
		return a.Spec.Skills
	}
	var out []shoal.Skill
	for _, s := range a.Spec.Skills {
		if i := slices.IndexFunc(given, func(g shoal.Skill) bool { return g.ID == s.ID }); i >= 0 {
			out = append(out, given[i])
		} else if slices.ContainsFunc(a.sessions, func(w *Session) bool { return w.offers[s.ID] }) {
			out = append(out, s)
		}
	}
	for _, g := range given {
		if !hasSkill(out, g.ID) {
			out = append(out, g)
		}
	}
	return out
}
