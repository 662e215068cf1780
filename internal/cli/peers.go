package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) peersCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "peers",
		Short:   "List the connected nodes",
		Example: "  shoal peers\n  shoal peers -o json | jq .rtt_ms",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.node.Peers(ctx, connect.NewRequest(&shoalv1.PeersRequest{}))
			if err != nil {
				return apiError(ctx, err)
			}
			a.printPeers(resp.Msg.GetPeers())
			return nil
		},
	}
}

func (a *app) printPeers(peers []*shoalv1.Peer) {
	if a.asJSON() {
		for _, p := range peers {
			a.printJSON(struct {
				PeerID    string  `json:"peer_id"`
				Addr      string  `json:"addr"`
				Direction string  `json:"direction"`
				Path      string  `json:"path"`
				RTTMS     float64 `json:"rtt_ms"`
			}{p.GetPeerId(), p.GetAddr(), p.GetDirection(), p.GetPath(), p.GetRttMs()})
		}
		return
	}
	if len(peers) == 0 {
		a.note("no peers: give the line of `shoal invite` to a friend")
		return
	}
	var rows [][]string
	for _, p := range peers {
		rows = append(rows, []string{p.GetPeerId(), p.GetDirection(), p.GetPath(), span(p.GetRttMs()), p.GetAddr()})
	}
	a.table([]string{"PEER", "DIR", "PATH", "RTT", "ADDRESS"}, rows)
}

// pingEvery is the pause between two pings.
const pingEvery = 200 * time.Millisecond

func (a *app) pingCommand() *cobra.Command {
	var count uint32
	c := &cobra.Command{
		Use:   "ping AGENT",
		Short: "Measure the round trip to the node of an agent",
		Long: `Measure the round trip to the node that hosts AGENT: a DID, a peer id, or the name of
an agent hosted here. The exit code is 6 when the last ping got no answer.`,
		Example: "  shoal ping did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK\n" +
			"  shoal ping 12D3KooWGRUo7ZnVKpkSVyHhWFPjiKUWHZSPjYTJFrhVVHNpcPbR --count 5",
		Args: arguments(1, "AGENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count == 0 || count > 1000 {
				return usage("", "--count %d: it must be 1 to 1000", count)
			}
			target, err := a.pingTarget(cmd, args[0])
			if err != nil {
				return err
			}
			return a.ping(cmd, target, int(count))
		},
	}
	c.Flags().Uint32Var(&count, "count", 1, "how many pings")
	return c
}

// pingTarget turns a name into a DID, which is what the daemon pings.
func (a *app) pingTarget(cmd *cobra.Command, typed string) (string, error) {
	if looksLikeDID(typed) {
		_, err := shoal.ParseAgentID(typed)
		return typed, err
	}
	if strings.HasPrefix(typed, "12D3Koo") {
		_, err := shoal.ParseNodeID(typed)
		return typed, err
	}
	agent, err := a.resolve(cmd, typed, false)
	return agent.GetDid(), err
}

func (a *app) ping(cmd *cobra.Command, target string, count int) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var last error
	for i := range count {
		if i > 0 {
			select {
			case <-cmd.Context().Done():
				return errInterrupted
			case <-tick.C:
			}
		}
		if last = a.pingOnce(cmd, c, target); last != nil && shoal.KindOf(last) != shoal.Unavailable {
			return last
		}
	}
	return last
}

// pingOnce prints one round trip; the error is Unavailable when there was no answer.
func (a *app) pingOnce(cmd *cobra.Command, c *client, target string) error {
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.node.Ping(ctx, connect.NewRequest(&shoalv1.PingRequest{Agent: target}))
	if err != nil {
		return a.pingFailed(ctx, err)
	}
	p := resp.Msg
	switch {
	case a.asJSON():
		a.printJSON(pingJSON{p.GetReachable(), p.GetPath(), p.GetRttMs(), p.GetPeerId()})
	case p.GetReachable():
		a.printf("%s  %s  %s\n", span(p.GetRttMs()), escapeLine(p.GetPath()), escapeLine(p.GetPeerId()))
	}
	if !p.GetReachable() {
		return shoal.NewError(shoal.Unavailable, "unreachable", target+" does not answer", "is its node up? see `shoal peers`")
	}
	return nil
}

type pingJSON struct {
	Reachable bool    `json:"reachable"`
	Path      string  `json:"path"`
	RTTMS     float64 `json:"rtt_ms"`
	PeerID    string  `json:"peer_id,omitempty"`
}

// pingSelf is the answer for an agent that lives on the daemon's own node.
func (a *app) pingSelf() {
	if a.asJSON() {
		a.printJSON(pingJSON{Reachable: true, Path: "local"})
	} else {
		a.print("0 ms  local  it lives on this node\n")
	}
}

// pingFailed makes the JSON line of an unreachable peer, too, out of an error that says
// just that. A daemon that does not run is another matter.
func (a *app) pingFailed(ctx context.Context, err error) error {
	e := shoal.AsError(apiError(ctx, err))
	if e.Reason == "dial_self" {
		a.pingSelf()
		return nil
	}
	if a.asJSON() && e.Kind == shoal.Unavailable && e.Reason != "daemon_not_running" {
		a.printJSON(pingJSON{})
	}
	return e
}
