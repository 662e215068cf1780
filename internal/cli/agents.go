package cli

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) agentCommand() *cobra.Command {
	return a.group("agent", "List, show and remove agents",
		"  shoal agent list\n  shoal agent show poet",
		a.agentList(), a.agentShow(), a.agentRemove())
}

// agentJSON is what list, show and find print of an agent.
type agentJSON struct {
	DID         string          `json:"did"`
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Skills      []string        `json:"skills"`
	Node        string          `json:"node"`
	VerifiedAt  string          `json:"verified_at,omitempty"`
	ExpiresAt   string          `json:"expires_at,omitempty"`
	Seq         uint64          `json:"seq,omitempty"`
	Local       bool            `json:"local"`
	Workers     uint32          `json:"workers"`
	Card        json.RawMessage `json:"card,omitempty"`
}

func agentOf(g *shoalv1.Agent) agentJSON {
	return agentJSON{
		DID: g.GetDid(), Name: g.GetName(), Description: g.GetDescription(), Skills: list(g.GetSkills()), Node: g.GetNode(),
		VerifiedAt: stamp(g.GetVerifiedAt()), ExpiresAt: stamp(g.GetExpiresAt()), Seq: g.GetSeq(), Local: g.GetLocal(), Workers: g.GetWorkers(),
	}
}

func (a *app) agentList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the agents that this node hosts",
		Example: "  shoal agent list\n  shoal agent list -o json | jq -r .did",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.agents.List(ctx, connect.NewRequest(&shoalv1.AgentServiceListRequest{}))
			if err != nil {
				return apiError(ctx, err)
			}
			if a.asJSON() {
				for _, g := range resp.Msg.GetAgents() {
					a.printJSON(agentOf(g))
				}
				return nil
			}
			var rows [][]string
			for _, g := range resp.Msg.GetAgents() {
				rows = append(rows, []string{g.GetName(), strings.Join(g.GetSkills(), ","), strconv.Itoa(int(g.GetWorkers())), g.GetDid()})
			}
			a.table([]string{"NAME", "SKILLS", "WORKERS", "DID"}, rows)
			return nil
		},
	}
}

// resolve asks the daemon for an agent by DID or name.
func (a *app) resolve(cmd *cobra.Command, agent string, fresh bool) (*shoalv1.Agent, error) {
	if err := checkAgent(agent); err != nil {
		return nil, err
	}
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.agents.Resolve(ctx, connect.NewRequest(&shoalv1.ResolveRequest{Agent: agent, Fresh: fresh}))
	if err != nil {
		return nil, apiError(ctx, err)
	}
	return resp.Msg.GetAgent(), nil
}

func (a *app) agentShow() *cobra.Command {
	var fresh bool
	c := &cobra.Command{
		Use:     "show AGENT",
		Short:   "Show one agent, hosted here or anywhere",
		Example: "  shoal agent show poet\n  shoal agent show did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK --fresh",
		Args:    arguments(1, "AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := a.resolve(cmd, args[0], fresh)
			if err != nil {
				return err
			}
			if a.asJSON() {
				out := agentOf(g)
				out.Card = compactJSON(g.GetCardJson())
				a.printJSON(out)
				return nil
			}
			a.printAgent(g)
			return nil
		},
	}
	c.Flags().BoolVar(&fresh, "fresh", false, "ask the mesh even if a valid card is known")
	return c
}

func (a *app) printAgent(g *shoalv1.Agent) {
	now := time.Now()
	where := g.GetNode()
	if g.GetLocal() {
		where += " (this node)"
	}
	a.pairs(
		[2]string{"name", g.GetName()},
		[2]string{"did", g.GetDid()},
		[2]string{"node", where},
		[2]string{"about", g.GetDescription()},
		[2]string{"verified", clock(g.GetVerifiedAt(), now)},
		[2]string{"expires", clock(g.GetExpiresAt(), now)},
		[2]string{"card seq", strconv.FormatUint(g.GetSeq(), 10)},
	)
	if g.GetLocal() {
		a.printf("workers   %d\n", g.GetWorkers())
	}
	var rows [][]string
	for _, s := range g.GetCard().GetSkills() {
		rows = append(rows, []string{s.GetId(), s.GetName(), clip(s.GetDescription(), 100)})
	}
	if len(rows) > 0 {
		a.print("\n")
		a.table([]string{"SKILL", "NAME", "WHAT IT DOES"}, rows)
	} else if len(g.GetSkills()) > 0 {
		a.printf("skills    %s\n", escapeLine(strings.Join(g.GetSkills(), ", ")))
	}
}

// compactJSON returns JSON text as a value for printJSON, nil if it is none.
func compactJSON(s string) json.RawMessage {
	var buf bytes.Buffer
	if s == "" || json.Compact(&buf, []byte(s)) != nil {
		return nil
	}
	return buf.Bytes()
}

func (a *app) agentRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove AGENT",
		Short: "Withdraw a hosted agent's card and forget its key",
		Long: `Withdraw the card of an agent that this node hosts and forget its key. Nobody can be
that agent again, unless a backup holds the key.`,
		Example: "  shoal agent remove poet",
		Args:    arguments(1, "AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAgent(args[0]); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			if _, err := c.agents.Remove(ctx, connect.NewRequest(&shoalv1.RemoveRequest{Agent: args[0]})); err != nil {
				return apiError(ctx, err)
			}
			if a.asJSON() {
				a.printJSON(struct {
					Removed string `json:"removed"`
				}{args[0]})
			} else {
				a.printf("removed %s\n", escapeLine(args[0]))
			}
			return nil
		},
	}
}

func (a *app) cardCommand() *cobra.Command {
	return a.group("card", "Show and refresh signed agent cards",
		"  shoal card show poet\n  shoal card refresh",
		a.cardShow(), a.cardRefresh())
}

func (a *app) cardShow() *cobra.Command {
	var fresh bool
	c := &cobra.Command{
		Use:     "show AGENT",
		Short:   "Print an agent's signed card, verified, as received",
		Example: "  shoal card show poet\n  shoal card show did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK -o json | jq .signatures",
		Args:    arguments(1, "AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := a.resolve(cmd, args[0], fresh)
			if err != nil {
				return err
			}
			card := compactJSON(g.GetCardJson())
			if card == nil {
				return shoal.NewError(shoal.Corrupt, "no_card", "the daemon gave no card of "+args[0], "try again with --fresh")
			}
			if a.asJSON() {
				a.print(string(escapeJSON(card)) + "\n")
				return nil
			}
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, escapeJSON(card), "", "  "); err != nil {
				return err
			}
			a.print(pretty.String() + "\n")
			return nil
		},
	}
	c.Flags().BoolVar(&fresh, "fresh", false, "ask the mesh even if a valid card is known")
	return c
}

func (a *app) cardRefresh() *cobra.Command {
	return &cobra.Command{
		Use:     "refresh [AGENT]",
		Short:   "Sign and publish the cards of hosted agents again",
		Example: "  shoal card refresh\n  shoal card refresh poet",
		Args:    arguments(0, "AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &shoalv1.RefreshRequest{Agent: a.as}
			if len(args) > 0 {
				req.Agent = args[0]
			}
			if err := checkAgent(req.GetAgent()); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.agents.Refresh(ctx, connect.NewRequest(req))
			if err != nil {
				return apiError(ctx, err)
			}
			if a.asJSON() {
				a.printJSON(struct {
					Published uint32 `json:"published"`
				}{resp.Msg.GetPublished()})
			} else {
				a.printf("published %d\n", resp.Msg.GetPublished())
			}
			return nil
		},
	}
}

func (a *app) findCommand() *cobra.Command {
	var req shoalv1.FindRequest
	c := &cobra.Command{
		Use:   "find CAPABILITY | --text QUERY",
		Short: "Find agents by what they can do",
		Long: `Find agents on the mesh that offer CAPABILITY, or among the known ones those whose card
contains all words of QUERY. The exit code is 3 when there is none.`,
		Example: "  shoal find summarize\n  shoal find --text \"pdf tables\" --limit 5\n  shoal find ocr -o json | jq -r .did",
		Args:    arguments(0, "CAPABILITY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Capability = args[0]
			}
			return a.find(cmd, &req)
		},
	}
	c.Flags().StringVar(&req.Text, "text", "", "words that the card must contain, instead of a capability")
	c.Flags().Uint32Var(&req.Limit, "limit", 20, "at most this many, up to 100")
	c.Flags().BoolVar(&req.Fresh, "fresh", false, "ask the mesh even if the answer is cached")
	return c
}

func (a *app) find(cmd *cobra.Command, req *shoalv1.FindRequest) error {
	switch {
	case req.GetCapability() == "" && strings.TrimSpace(req.GetText()) == "":
		return usage("see `shoal find --help`", "shoal find needs a CAPABILITY or --text QUERY")
	case req.GetCapability() != "" && req.GetText() != "":
		return usage("see `shoal find --help`", "a CAPABILITY and --text cannot go together")
	case req.GetLimit() == 0 || req.GetLimit() > 100:
		return usage("", "--limit %d: it must be 1 to 100", req.GetLimit())
	}
	what := req.GetText()
	if req.GetCapability() != "" {
		name, err := shoal.ParseCapability(req.GetCapability())
		if err != nil {
			return err
		}
		req.Capability, what = name, name
	}
	if err := checkUTF8("--text", req.GetText()); err != nil {
		return err
	}

	c, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.agents.Find(ctx, connect.NewRequest(req))
	if err != nil {
		return apiError(ctx, err)
	}
	agents := resp.Msg.GetAgents()
	if len(agents) == 0 {
		return shoal.NewError(shoal.NotFound, "no_agent_found", "nobody known offers "+strconv.Quote(what),
			"is the node connected? see `shoal peers`; ask again with --fresh")
	}
	if a.asJSON() {
		for _, g := range agents {
			a.printJSON(agentOf(g))
		}
		return nil
	}
	now := time.Now()
	var rows [][]string
	for _, g := range agents {
		rows = append(rows, []string{g.GetName(), clip(strings.Join(g.GetSkills(), ","), 40), clock(g.GetVerifiedAt(), now), g.GetDid()})
	}
	a.table([]string{"NAME", "SKILLS", "VERIFIED", "DID"}, rows)
	return nil
}
