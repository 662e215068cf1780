package api

import (
	"context"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// nodeService serves NodeService.
type nodeService struct{ *Server }

func (s *nodeService) Status(ctx context.Context, _ *connect.Request[shoalv1.StatusRequest]) (*connect.Response[shoalv1.StatusResponse], error) {
	st, err := s.svc.Node.Status(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.StatusResponse{
		Did: string(st.Agent), PeerId: string(st.Node), Network: st.Network, Version: s.cfg.Version,
		Addrs: st.Addrs, Http: st.HTTP, Socket: st.Socket, Home: st.Home, State: st.State, Problems: st.Problems,
		Peers: count(st.Peers), Agents: count(st.Agents), Outbox: uint64(count(st.Outbox)),
		DeadLetters: uint64(count(st.DeadLetters)), TasksOpen: uint64(count(st.TasksOpen)),
		StartedAt: stamp(st.Started), RssBytes: st.RSS,
	}), nil
}

func (s *nodeService) Peers(ctx context.Context, _ *connect.Request[shoalv1.PeersRequest]) (*connect.Response[shoalv1.PeersResponse], error) {
	peers, err := s.svc.Node.Peers(ctx)
	if err != nil {
		return nil, err
	}
	resp := &shoalv1.PeersResponse{}
	for _, p := range peers {
		resp.Peers = append(resp.Peers, &shoalv1.Peer{
			PeerId: string(p.ID), Addr: p.Addr, Direction: p.Direction, Path: p.Path, RttMs: millisOf(p.RTT),
		})
	}
	return connect.NewResponse(resp), nil
}

// Ping answers reachable = false for a node that is known but silent: that is its result.
func (s *nodeService) Ping(ctx context.Context, req *connect.Request[shoalv1.PingRequest]) (*connect.Response[shoalv1.PingResponse], error) {
	id, err := s.nodeOf(ctx, req.Msg.GetAgent())
	if err != nil {
		return nil, err
	}
	path, rtt, err := s.svc.Node.Ping(ctx, id)
	resp := &shoalv1.PingResponse{PeerId: string(id)}
	if err == nil {
		resp.Reachable, resp.Path, resp.RttMs = true, path, millisOf(rtt)
		return connect.NewResponse(resp), nil
	}
	kind := shoal.KindOf(err)
	if ctx.Err() != nil || kind != shoal.Unavailable && kind != shoal.Timeout {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// nodeOf returns the node that a peer id names, or that hosts the agent of that name.
func (s *nodeService) nodeOf(ctx context.Context, name string) (shoal.NodeID, error) {
	if id, err := shoal.ParseNodeID(name); err == nil {
		return id, nil
	}
	agent, err := s.anyAgent("agent", name)
	if err != nil {
		return "", err
	}
	return s.svc.Directory.Host(ctx, agent)
}

func (s *nodeService) Invite(ctx context.Context, _ *connect.Request[shoalv1.InviteRequest]) (*connect.Response[shoalv1.InviteResponse], error) {
	link, err := s.svc.Node.Invite(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.InviteResponse{Link: link}), nil
}

func (s *nodeService) Join(ctx context.Context, req *connect.Request[shoalv1.JoinRequest]) (*connect.Response[shoalv1.JoinResponse], error) {
	target := strings.TrimSpace(req.Msg.GetTarget()) // a link is pasted
	if target == "" {
		return nil, missing("target", "give an invite link (shoal:…) or a multiaddr with /p2p/")
	}
	if err := checkWord("target", target, maxTarget, false); err != nil {
		return nil, err
	}
	ids, err := s.svc.Node.Join(ctx, target)
	if err != nil {
		return nil, err
	}
	resp := &shoalv1.JoinResponse{}
	for _, id := range ids {
		resp.Peers = append(resp.Peers, string(id))
	}
	return connect.NewResponse(resp), nil
}

func (s *nodeService) Shutdown(ctx context.Context, _ *connect.Request[shoalv1.ShutdownRequest]) (*connect.Response[shoalv1.ShutdownResponse], error) {
	if s.svc.Admin == nil {
		return nil, errNotBuilt
	}
	if err := s.svc.Admin.Shutdown(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.ShutdownResponse{}), nil
}

func (s *nodeService) Backup(ctx context.Context, req *connect.Request[shoalv1.BackupRequest]) (*connect.Response[shoalv1.BackupResponse], error) {
	if s.svc.Admin == nil {
		return nil, errNotBuilt
	}
	path := req.Msg.GetPath()
	if path == "" {
		return nil, missing("path", "give the absolute path of a file that does not exist")
	}
	if err := checkWord("path", path, maxTarget, true); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, invalid("bad_path", "give an absolute path without . and .. parts", "the path %q cannot be used", path)
	}
	n, err := s.svc.Admin.Backup(ctx, path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&shoalv1.BackupResponse{Bytes: n}), nil
}

func (s *nodeService) Logs(ctx context.Context, req *connect.Request[shoalv1.LogsRequest], stream *connect.ServerStream[shoalv1.LogsResponse]) error {
	if s.svc.Admin == nil {
		return errNotBuilt
	}
	tail, err := pageSize(req.Msg.GetTail(), 100, maxLogTail)
	if err != nil {
		return err
	}
	ctx, done := s.untilStop(ctx)
	defer done()

	out := newSender(stream)
	if err := out.open(); err != nil {
		return err
	}
	err = s.svc.Admin.Logs(ctx, tail, req.Msg.GetFollow(), func(line string) error {
		// A line may hold what a peer sent; proto strings are UTF-8.
		return out.send(&shoalv1.LogsResponse{Line: strings.ToValidUTF8(line, "\ufffd")})
	})
	return s.endOf(err)
}

func (s *nodeService) DeadLetters(ctx context.Context, req *connect.Request[shoalv1.DeadLettersRequest]) (*connect.Response[shoalv1.DeadLettersResponse], error) {
	if s.svc.Mail == nil {
		return nil, errNotBuilt
	}
	size, err := pageSize(req.Msg.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	if err := checkPageToken(req.Msg.GetPageToken()); err != nil {
		return nil, err
	}
	letters, next, err := s.svc.Mail.DeadLetters(ctx, req.Msg.GetPageToken(), size)
	if err != nil {
		return nil, err
	}
	resp := &shoalv1.DeadLettersResponse{NextPageToken: next}
	for _, l := range letters {
		resp.DeadLetters = append(resp.DeadLetters, &shoalv1.DeadLetter{
			Id: l.ID, From: string(l.From), To: string(l.To), Topic: l.Topic, Seq: l.Seq, Reason: l.Reason,
			CreatedAt: stamp(l.Created), DeadAt: stamp(l.Dead),
		})
	}
	return connect.NewResponse(resp), nil
}
