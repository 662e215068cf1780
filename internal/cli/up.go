package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) upCommand() *cobra.Command {
	var o UpOptions
	var detach, untilEOF bool
	level := newChoice("", "debug", "info", "warn", "error")
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the daemon: in the foreground, or with -d detached",
		Long: `Start the daemon of the data directory and, with --join, connect it to a mesh.

It stays in the foreground until ctrl-C; with -d it goes on alone and logs to shoal.log
in the data directory. With -o json the first line of stdout is the ready line:
{"did","peer_id","addrs":[…],"http","socket","ready_ms"}.`,
		Example: `  shoal up
  shoal up -d --join "shoal:…"
  shoal up --home /tmp/a --listen 127.0.0.1:0 --http off -o json`,
		Args: arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.LogLevel = level.value
			home, err := a.homeDir()
			if err != nil {
				return err
			}
			o.Home, o.Log = home, a.err
			if err := checkUp(o); err != nil {
				return err
			}
			if detach {
				return a.upDetached(cmd, o)
			}
			ctx := cmd.Context()
			if untilEOF {
				var stop context.CancelFunc
				ctx, stop = a.untilEOF(ctx)
				defer stop()
			}
			return a.upHere(ctx, o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.Listen, "listen", "", "where other nodes reach this one, HOST:PORT, both UDP and TCP (default :4420; port 0 picks a free one)")
	f.StringVar(&o.HTTP, "http", "", "where programs on this machine reach it, HOST:PORT or off (default 127.0.0.1:7420)")
	f.StringArrayVar(&o.Join, "join", nil, "join the mesh of this invite link or multiaddr; may be repeated")
	f.StringVar(&o.PSKFile, "psk", "", "file with the pre-shared key of a private network")
	f.BoolVar(&o.RequireToken, "require-token", false, "ask everybody on loopback HTTP for the token")
	f.StringVar(&o.ConfigFile, "config", "", "configuration file, TOML")
	f.StringVar(&o.PassphraseFile, "passphrase-file", "", "file with the passphrase of sealed keys")
	f.Var(level, "log-level", "how much to log (default info)")
	f.BoolVarP(&detach, "detach", "d", false, "go on in the background, once ready")
	f.BoolVar(&untilEOF, "until-eof", false, "stop when stdin ends")
	if err := f.MarkHidden("until-eof"); err != nil {
		panic(err) // the flag is one line above
	}
	return c
}

// untilEOF returns a context that also ends with stdin: whoever holds the other end of
// that pipe, such as the demo, cannot leave a daemon behind, not even when it is killed.
func (a *app) untilEOF(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		// Nobody can wait for a read of stdin; it ends with the process at the latest.
		_, _ = io.Copy(io.Discard, a.in)
		cancel()
	}()
	return ctx, cancel
}

// checkUp refuses what can be seen to be wrong before anything starts.
func checkUp(o UpOptions) error {
	if err := checkHostPort("--listen", o.Listen); err != nil {
		return err
	}
	if o.HTTP != "off" {
		if err := checkHostPort("--http", o.HTTP); err != nil {
			return err
		}
	}
	for _, j := range o.Join {
		if !strings.HasPrefix(j, "shoal:") && !strings.HasPrefix(j, "/") {
			return usage("paste the line that `shoal invite` prints, or a multiaddr /ip4/…/p2p/12D3KooW…",
				"--join %q is neither an invite link nor a multiaddr", clip(j, 80))
		}
		if strings.HasPrefix(j, "/") && !strings.Contains(j, "/p2p/") {
			return usage("add /p2p/ and the peer id that `shoal id` prints there", "--join %q does not say whom to expect", clip(j, 80))
		}
	}
	for _, file := range [][2]string{{"--psk", o.PSKFile}, {"--config", o.ConfigFile}, {"--passphrase-file", o.PassphraseFile}} {
		if file[1] != "" && !exists(file[1]) {
			return usage("", "%s: there is no file %q", file[0], file[1])
		}
	}
	return nil
}

func checkHostPort(flag, s string) error {
	if s == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(port, 10, 16); err == nil && strconv.FormatUint(n, 10) == port {
			return nil
		}
	}
	return usage("write HOST:PORT such as 127.0.0.1:7420; port 0 picks a free one", "%s %q is no address", flag, clip(s, 80))
}

// upHere runs the daemon until ctx ends.
func (a *app) upHere(ctx context.Context, o UpOptions) error {
	if a.daemon.Run == nil {
		return shoal.NewError(shoal.Unsupported, "no_daemon", "this build has no daemon", "")
	}
	var said sync.WaitGroup
	defer said.Wait()
	err := a.daemon.Run(ctx, o, func(r Ready) {
		r.Addrs = list(r.Addrs)
		if a.asJSON() {
			a.printJSON(r)
			return
		}
		// The invite comes over the API, which must not wait for this callback.
		said.Go(func() { a.printReady(ctx, o.Home, r) })
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // ctrl-C, perhaps before it was ready
	}
	return err
}

// printReady tells a person what runs and what to do next.
func (a *app) printReady(ctx context.Context, home string, r Ready) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, link, alone := newClient(home), "", ""
	if resp, err := c.node.Status(ctx, connect.NewRequest(&shoalv1.StatusRequest{})); err == nil && resp.Msg.GetState() == "alone" {
		alone = "alone: no peer yet\n"
	}
	if resp, err := c.node.Invite(ctx, connect.NewRequest(&shoalv1.InviteRequest{})); err == nil {
		link = resp.Msg.GetLink()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "shoal is up, ready in %s\n", span(r.ReadyMS))
	fmt.Fprintf(&b, "  did      %s\n", escapeLine(r.DID))
	for _, addr := range r.Addrs {
		fmt.Fprintf(&b, "  listens  %s\n", escapeLine(addr))
	}
	if r.HTTP != "" {
		fmt.Fprintf(&b, "  http     %s\n", escapeLine(r.HTTP))
	}
	fmt.Fprintf(&b, "  socket   %s\n", escapeLine(r.Socket))
	b.WriteString(alone)
	if link != "" {
		fmt.Fprintf(&b, "let others join with\n  shoal up --join %s\n", escapeLine(link))
	}
	a.print(b.String())
}
