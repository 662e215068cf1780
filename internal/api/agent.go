package api

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/directory"
)

// agentService serves AgentService.
type agentService struct{ *Server }

func (s *agentService) List(_ context.Context, _ *connect.Request[shoalv1.AgentServiceListRequest]) (*connect.Response[shoalv1.AgentServiceListResponse], error) {
	resp := &shoalv1.AgentServiceListResponse{}
	for _, info := range s.svc.Agents.Agents() {
		a := &shoalv1.Agent{}
		if card, ok := s.svc.Directory.Knows(info.Spec.ID); ok {
			var err error
			if a, err = encodeCard(card); err != nil {
				return nil, err
			}
		}
		// What is attached now wins over the card, which follows it.
		a.Did, a.Name, a.Description = string(info.Spec.ID), info.Spec.Name, info.Spec.Description
		a.Skills, a.Local, a.Workers = skillIDs(info.Spec.Skills), true, count(info.Workers)
		resp.Agents = append(resp.Agents, a)
	}
	return connect.NewResponse(resp), nil
}

func (s *agentService) Resolve(ctx context.Context, req *connect.Request[shoalv1.ResolveRequest]) (*connect.Response[shoalv1.ResolveResponse], error) {
	id, err := s.anyAgent("agent", req.Msg.GetAgent())
	if err != nil {
		return nil, err
	}
	card, err := s.svc.Directory.Resolve(ctx, id, req.Msg.GetFresh())
	if err != nil {
		return nil, err
	}
	a, err := s.agentOf(card)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ResolveResponse{Agent: a}), nil
}

func (s *agentService) Find(ctx context.Context, req *connect.Request[shoalv1.FindRequest]) (*connect.Response[shoalv1.FindResponse], error) {
	q := directory.Query{Text: strings.TrimSpace(req.Msg.GetText()), Fresh: req.Msg.GetFresh()}
	var err error
	if q.Limit, err = pageSize(req.Msg.GetLimit(), 20, 100); err != nil {
		return nil, err
	}
	if (req.Msg.GetCapability() == "") == (q.Text == "") {
		return nil, invalid("bad_query", "give either a capability such as ocr, or text", "one of capability and text is needed")
	}
	if q.Text == "" {
		q.Capability, err = shoal.ParseCapability(req.Msg.GetCapability())
	} else {
		err = checkWord("text", q.Text, maxText, true)
	}
	if err != nil {
		return nil, err
	}
	cards, err := s.svc.Directory.Find(ctx, q)
	if err != nil {
		return nil, err
	}
	resp := &shoalv1.FindResponse{}
	for _, c := range cards {
		a, err := s.agentOf(c)
		if err != nil {
			return nil, err
		}
		resp.Agents = append(resp.Agents, a)
	}
	return connect.NewResponse(resp), nil
}

func (s *agentService) Remove(ctx context.Context, req *connect.Request[shoalv1.RemoveRequest]) (*connect.Response[shoalv1.RemoveResponse], error) {
	if req.Msg.GetAgent() == "" { // not the node's own by oversight: its key would be lost
		return nil, missing("agent", "give the DID or name of a hosted agent, see `shoal agent list`")
	}
	id, err := s.hosted("agent", req.Msg.GetAgent())
	if err != nil {
		return nil, err
	}
	if err := s.svc.Agents.Remove(ctx, id); err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.RemoveResponse{}), nil
}

func (s *agentService) Refresh(ctx context.Context, req *connect.Request[shoalv1.RefreshRequest]) (*connect.Response[shoalv1.RefreshResponse], error) {
	var id shoal.AgentID
	if req.Msg.GetAgent() != "" {
		var err error
		if id, err = s.hosted("agent", req.Msg.GetAgent()); err != nil {
			return nil, err
		}
	}
	n, err := s.svc.Directory.Refresh(ctx, id)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.RefreshResponse{Published: count(n)}), nil
}

// agentOf encodes a card, with the workers that are attached if the agent is hosted here.
func (s *agentService) agentOf(c directory.Card) (*shoalv1.Agent, error) {
	a, err := encodeCard(c)
	if err != nil || !c.Local {
		return a, err
	}
	for _, info := range s.svc.Agents.Agents() {
		if info.Spec.ID == c.Agent {
			a.Workers = count(info.Workers)
		}
	}
	return a, nil
}

func encodeCard(c directory.Card) (*shoalv1.Agent, error) {
	a := &shoalv1.Agent{
		Did: string(c.Agent), Name: c.Name, Description: c.Description, Skills: skillIDs(c.Skills),
		Node: string(c.Node), VerifiedAt: stamp(c.VerifiedAt), ExpiresAt: stamp(c.NotAfter),
		Seq: c.Seq, Local: c.Local, CardJson: string(c.Raw),
	}
	if c.Card == nil {
		return a, nil
	}
	bare := *c.Card
	bare.Signatures = nil // they are over the JSON, not over this
	pb, err := pbconv.ToProtoAgentCard(&bare)
	if err != nil {
		return nil, fmt.Errorf("encode card of %s: %w", c.Agent, err)
	}
	a.Card = pb
	return a, nil
}

func skillIDs(skills []shoal.Skill) []string {
	ids := make([]string, 0, len(skills))
	for _, sk := range skills {
		ids = append(ids, sk.ID)
	}
	return ids
}
