package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// OwnName is the name of the node's own agent.
const OwnName = "node"

// Schema is the table of hosted agents.
func Schema() store.Schema {
	return store.Schema{Package: "worker", Steps: []string{`
CREATE TABLE worker_agents (
	did       TEXT PRIMARY KEY,
	name      TEXT NOT NULL UNIQUE,
	record    BLOB NOT NULL -- JSON of record
) STRICT;
`}}
}

// record is what is kept of an agent on disk.
type record struct {
	Spec      shoal.AgentSpec
	Ephemeral bool // as its last worker said
	Published bool // the card in the directory says Spec
}

// agent is a hosted agent and its attached workers, oldest first.
type agent struct {
	record
	sessions []*Session
	leftAt   time.Time // when the last session ended
}

// AgentInfo is a hosted agent and how many workers are attached to it.
type AgentInfo struct {
	Spec    shoal.AgentSpec
	Workers int
}

// load reads the table. The node's own agent is always there, if only in memory.
func (p *Pool) load(ctx context.Context) error {
	p.agents[p.own] = &agent{record: record{Spec: shoal.AgentSpec{ID: p.own, Name: OwnName}}}
	err := p.db.View(ctx, func(tx *store.Tx) error {
		return tx.Each(`SELECT did, record FROM worker_agents ORDER BY did`, nil, func(scan func(...any) error) error {
			var did string
			var raw []byte
			if err := scan(&did, &raw); err != nil {
				return err
			}
			a := &agent{leftAt: time.Now()}
			if err := json.Unmarshal(raw, &a.record); err != nil || string(a.Spec.ID) != did {
				return shoal.NewError(shoal.Corrupt, "db_corrupt", "the record of agent "+did+" is damaged",
					"restore a backup with `shoal restore FILE`")
			}
			p.agents[a.Spec.ID] = a
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("load hosted agents: %w", err)
	}
	for id, a := range p.agents {
		p.names[a.Spec.Name] = id
	}
	return nil
}

// save changes an agent's record in memory and on disk. The caller holds admin.
func (p *Pool) save(ctx context.Context, id shoal.AgentID, change func(*record)) error {
	p.mu.Lock()
	a := p.agents[id]
	if a == nil {
		p.mu.Unlock()
		return ErrUnknownAgent.With("%s", id)
	}
	r := a.record
	p.mu.Unlock()

	change(&r)
	if err := p.write(ctx, r); err != nil {
		return err
	}
	p.mu.Lock()
	a.record = r
	p.mu.Unlock()
	return nil
}

func (p *Pool) write(ctx context.Context, r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	err = p.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO worker_agents (did, name, record) VALUES (?, ?, ?)
			ON CONFLICT (did) DO UPDATE SET name = excluded.name, record = excluded.record`,
			string(r.Spec.ID), r.Spec.Name, raw)
		return err
	})
	if err != nil {
		return fmt.Errorf("store agent %s: %w", r.Spec.Name, err)
	}
	return nil
}

// Agents returns the hosted agents, by name. The caller must not change their skills.
func (p *Pool) Agents() []AgentInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]AgentInfo, 0, len(p.agents))
	for _, a := range p.agents {
		out = append(out, AgentInfo{Spec: a.Spec, Workers: len(a.sessions)})
	}
	slices.SortFunc(out, func(a, b AgentInfo) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return out
}

// Lookup returns the hosted agent of that name or DID; "" is the node's own. It returns
// [ErrUnknownAgent], with the nearest names.
func (p *Pool) Lookup(nameOrDID string) (shoal.AgentID, error) {
	if nameOrDID == "" {
		return p.own, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lookup(nameOrDID)
}

func (p *Pool) lookup(nameOrDID string) (shoal.AgentID, error) {
	if _, ok := p.agents[shoal.AgentID(nameOrDID)]; ok {
		return shoal.AgentID(nameOrDID), nil
	}
	if id, ok := p.names[nameOrDID]; ok {
		return id, nil
	}
	err := ErrUnknownAgent.With("%q", clip(nameOrDID))
	err.Hint = suggest(nameOrDID, slices.Sorted(maps.Keys(p.names)), err.Hint)
	return "", err
}

// Remove withdraws an agent's card, ends its sessions and forgets it and its key. The
// tasks that its workers held are lost. The node's own agent cannot be removed.
func (p *Pool) Remove(ctx context.Context, id shoal.AgentID) error {
	if id == p.own {
		return shoal.NewError(shoal.Conflict, "own_agent", "the node's own agent cannot be removed", "")
	}
	sessions, err := p.remove(ctx, id)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		p.close(s, errRemoved)
	}
	return p.keys.Remove(id)
}

// remove takes the agent out of directory and table and returns who is attached.
func (p *Pool) remove(ctx context.Context, id shoal.AgentID) ([]*Session, error) {
	if err := p.lockAdmin(ctx); err != nil {
		return nil, err
	}
	defer p.unlockAdmin()
	p.mu.Lock()
	a := p.agents[id]
	p.mu.Unlock()
	if a == nil {
		return nil, ErrUnknownAgent.With("%q", clip(string(id)))
	}
	if err := p.dir.Withdraw(ctx, id); err != nil && shoal.KindOf(err) != shoal.NotFound {
		return nil, fmt.Errorf("withdraw card of %s: %w", a.Spec.Name, err)
	}
	return p.drop(ctx, id)
}

// drop forgets an agent, but for its key. The caller holds admin.
func (p *Pool) drop(ctx context.Context, id shoal.AgentID) ([]*Session, error) {
	err := p.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM worker_agents WHERE did = ?`, string(id))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forget agent %s: %w", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.agents[id]
	delete(p.agents, id)
	delete(p.names, a.Spec.Name)
	return slices.Clone(a.sessions), nil
}

// Skill returns what the agent says about a skill, "" being its first. It returns
// [ErrUnknownAgent], or unknown_skill with the nearest names.
func (p *Pool) Skill(id shoal.AgentID, skill string) (shoal.Skill, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.agents[id]
	if a == nil {
		return shoal.Skill{}, ErrUnknownAgent.With("%q", clip(string(id)))
	}
	if skill == "" && len(a.Spec.Skills) > 0 {
		return a.Spec.Skills[0], nil
	}
	name := strings.TrimPrefix(skill, shoal.CapabilityPrefix)
	names := make([]string, len(a.Spec.Skills))
	for i, s := range a.Spec.Skills {
		if s.ID == name {
			return s, nil
		}
		names[i] = s.ID
	}
	hint := "it offers " + strings.Join(names, ", ")
	if len(names) == 0 {
		hint = "it offers nothing; attach a worker to it"
	}
	return shoal.Skill{}, shoal.NewError(shoal.NotFound, "unknown_skill",
		fmt.Sprintf("agent %s does not offer %q", a.Spec.Name, clip(skill)), suggest(name, names, hint))
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
