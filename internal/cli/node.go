package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "Stop the daemon in order",
		Example: "  shoal down",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := a.homeDir()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			_, err = newClient(home).node.Shutdown(ctx, connect.NewRequest(&shoalv1.ShutdownRequest{}))
			// A daemon that went so fast that its answer was lost did what it was told.
			if e := shoal.AsError(apiError(ctx, err)); e != nil && (e.Kind != shoal.Unavailable || e.Reason == "daemon_not_running") {
				return e
			}
			if err := awaitGone(ctx, socketPath(home)); err != nil {
				return err
			}
			if a.asJSON() {
				a.printJSON(struct {
					Stopped bool `json:"stopped"`
				}{true})
			} else {
				a.print("stopped\n")
			}
			return nil
		},
	}
}

// awaitGone waits until the daemon has removed its socket, the last thing it does.
func awaitGone(ctx context.Context, socket string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for exists(socket) {
		select {
		case <-ctx.Done():
			return shoal.NewError(shoal.Timeout, "still_stopping", "the daemon got the word but has not ended yet", "wait a little and ask `shoal status`")
		case <-tick.C:
		}
	}
	return nil
}

type statusJSON struct {
	DID         string   `json:"did"`
	PeerID      string   `json:"peer_id"`
	Network     string   `json:"network"`
	Version     string   `json:"version"`
	State       string   `json:"state"`
	Problems    []string `json:"problems"`
	Addrs       []string `json:"addrs"`
	HTTP        string   `json:"http"`
	Socket      string   `json:"socket"`
	Home        string   `json:"home"`
	Peers       uint32   `json:"peers"`
	Agents      uint32   `json:"agents"`
	TasksOpen   uint64   `json:"tasks_open"`
	Outbox      uint64   `json:"outbox"`
	DeadLetters uint64   `json:"dead_letters"`
	StartedAt   string   `json:"started_at,omitempty"`
	UptimeMS    int64    `json:"uptime_ms"`
	RSSBytes    uint64   `json:"rss_bytes"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Tell who this node is and how it does",
		Example: "  shoal status\n  shoal status -o json | jq -r .state",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
			if err != nil {
				return err
			}
			uptime := time.Duration(0)
			if s.GetStartedAt() != nil {
				uptime = time.Since(s.GetStartedAt().AsTime())
			}
			if a.asJSON() {
				a.printJSON(statusJSON{
					DID: s.GetDid(), PeerID: s.GetPeerId(), Network: s.GetNetwork(), Version: s.GetVersion(), State: s.GetState(),
					Problems: list(s.GetProblems()), Addrs: list(s.GetAddrs()), HTTP: s.GetHttp(), Socket: s.GetSocket(), Home: s.GetHome(),
					Peers: s.GetPeers(), Agents: s.GetAgents(), TasksOpen: s.GetTasksOpen(), Outbox: s.GetOutbox(), DeadLetters: s.GetDeadLetters(),
					StartedAt: stamp(s.GetStartedAt()), UptimeMS: uptime.Milliseconds(), RSSBytes: s.GetRssBytes(),
				})
				return nil
			}
			a.printStatus(s, uptime)
			return nil
		},
	}
}

func (a *app) printStatus(s *shoalv1.StatusResponse, uptime time.Duration) {
	a.pairs(
		[2]string{"state", s.GetState()},
		[2]string{"did", s.GetDid()},
		[2]string{"peer id", s.GetPeerId()},
		[2]string{"network", s.GetNetwork()},
		[2]string{"version", s.GetVersion()},
		[2]string{"home", s.GetHome()},
		[2]string{"socket", s.GetSocket()},
		[2]string{"http", s.GetHttp()},
		[2]string{"up for", uptime.Round(time.Second).String()},
		[2]string{"memory", size(s.GetRssBytes())},
		[2]string{"peers", strconv.FormatUint(uint64(s.GetPeers()), 10)},
		[2]string{"agents", strconv.FormatUint(uint64(s.GetAgents()), 10)},
		[2]string{"open tasks", strconv.FormatUint(s.GetTasksOpen(), 10)},
		[2]string{"outbox", strconv.FormatUint(s.GetOutbox(), 10)},
		[2]string{"dead letters", strconv.FormatUint(s.GetDeadLetters(), 10)},
	)
	for _, addr := range s.GetAddrs() {
		a.printf("listens on %s\n", escapeLine(addr))
	}
	for _, p := range s.GetProblems() {
		a.printf("%s %s\n", a.style(a.out, "33", "problem:"), escapeText(p))
	}
	if s.GetState() == "alone" {
		a.print("no peer yet: give the line of `shoal invite` to a friend, or `shoal up --join LINK`\n")
	}
}

func (a *app) status(cmd *cobra.Command) (*shoalv1.StatusResponse, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.node.Status(ctx, connect.NewRequest(&shoalv1.StatusRequest{}))
	if err != nil {
		return nil, apiError(ctx, err)
	}
	return resp.Msg, nil
}

// list makes [] of nothing, so that JSON readers need no case for null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *app) idCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "id",
		Short:   "Print the node's identity, or with --as a hosted agent's",
		Example: "  shoal id\n  shoal id -o json | jq -r .did\n  shoal id --as poet",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
			if err != nil {
				return err
			}
			did, name := s.GetDid(), ""
			if a.as != "" {
				agent, err := a.resolve(cmd, a.as, false)
				if err != nil {
					return err
				}
				if !agent.GetLocal() {
					return shoal.NewError(shoal.NotFound, "not_hosted", "agent "+clip(a.as, 80)+" does not live on this node", "see `shoal agent list`")
				}
				did, name = agent.GetDid(), agent.GetName()
			}
			if a.asJSON() {
				a.printJSON(struct {
					DID     string `json:"did"`
					PeerID  string `json:"peer_id"`
					Network string `json:"network"`
					Name    string `json:"name,omitempty"`
				}{did, s.GetPeerId(), s.GetNetwork(), name})
				return nil
			}
			a.pairs([2]string{"did", did}, [2]string{"peer id", s.GetPeerId()}, [2]string{"network", s.GetNetwork()}, [2]string{"name", name})
			return nil
		},
	}
}

func (a *app) inviteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "invite",
		Short: "Print a link that another node can join with",
		Example: "  shoal invite\n" +
			"  shoal up --join \"$(shoal invite --home ~/other)\" --home ~/third",
		Args: arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.node.Invite(ctx, connect.NewRequest(&shoalv1.InviteRequest{}))
			if err != nil {
				return apiError(ctx, err)
			}
			if a.asJSON() {
				a.printJSON(struct {
					Link string `json:"link"`
				}{resp.Msg.GetLink()})
			} else {
				a.print(escapeLine(resp.Msg.GetLink()) + "\n")
			}
			return nil
		},
	}
}

func (a *app) logsCommand() *cobra.Command {
	var tail uint32
	var follow bool
	c := &cobra.Command{
		Use:     "logs",
		Short:   "Print the daemon's last log lines",
		Example: "  shoal logs\n  shoal logs --tail 500\n  shoal logs -f",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tail == 0 || tail > 100_000 {
				return usage("", "--tail %d: it must be 1 to 100000", tail)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			bound := a.bounded
			if follow {
				bound = a.unbounded
			}
			ctx, cancel := bound(cmd)
			defer cancel()
			stream, err := c.node.Logs(ctx, connect.NewRequest(&shoalv1.LogsRequest{Tail: tail, Follow: follow}))
			if err != nil {
				return apiError(ctx, err)
			}
			defer hangUp(cancel, stream)
			for stream.Receive() {
				if a.asJSON() {
					a.printJSON(struct {
						Line string `json:"line"`
					}{stream.Msg().GetLine()})
				} else {
					a.print(escapeText(stream.Msg().GetLine()) + "\n")
				}
			}
			err = apiError(ctx, stream.Err())
			if follow && errors.Is(err, errInterrupted) {
				return nil // ctrl-C is how one stops reading
			}
			return err
		},
	}
	c.Flags().Uint32Var(&tail, "tail", 100, "how many lines from before")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with lines as they come, until ctrl-C")
	return c
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the database and the keys to a new file while the daemon runs",
		Long: `Write a consistent copy of the database and the keys to FILE, which must not exist.
Whoever has the file is you: keep it as safe as the data directory.`,
		Example: "  shoal backup ~/shoal-$(date +%F).backup",
		Args:    arguments(1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return usage("", "file %q: %v", args[0], err)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.unbounded(cmd)
			defer cancel()
			resp, err := c.node.Backup(ctx, connect.NewRequest(&shoalv1.BackupRequest{Path: path}))
			if err != nil {
				return apiError(ctx, err)
			}
			if a.asJSON() {
				a.printJSON(struct {
					Path  string `json:"path"`
					Bytes int64  `json:"bytes"`
				}{path, resp.Msg.GetBytes()})
			} else {
				a.printf("%s: %s\n", path, size(uint64(max(0, resp.Msg.GetBytes()))))
			}
			return nil
		},
	}
}

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into an empty data directory; the daemon must not run",
		Long: `Put the content of FILE, written by ` + "`shoal backup`" + `, into the data directory.
The daemon of that directory must not run, and the node of the backup must not run
elsewhere: two nodes with one key are one node that contradicts itself.`,
		Example: "  shoal restore ~/shoal-2026-11-21.backup --home ~/.shoal",
		Args:    arguments(1, "FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			home, err := a.homeDir()
			if err != nil {
				return err
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				return usage("", "file %q: %v", args[0], err)
			}
			if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
				return usage("name a file that `shoal backup` wrote", "%s is no readable file", path)
			}
			if a.daemon.Restore == nil {
				return shoal.NewError(shoal.Unsupported, "no_daemon", "this build cannot restore", "")
			}
			if err := a.daemon.Restore(path, home); err != nil {
				return fmt.Errorf("restore %s: %w", path, err)
			}
			if a.asJSON() {
				a.printJSON(struct {
					Home string `json:"home"`
				}{home})
			} else {
				a.printf("restored into %s; start it with `shoal up`\n", home)
			}
			return nil
		},
	}
}
