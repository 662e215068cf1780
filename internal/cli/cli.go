// Package cli is the shoal command: one grammar, NOUN VERB [ARGS] [--flags], over the
// daemon's local API.
//
// It promises what scripts rely on (docs/design/cli.md): stdout carries results only,
// diagnostics go to stderr, the exit code says how it ended, -o json is stable, and
// nothing that a peer wrote reaches a terminal unescaped. It holds no state and opens
// no data dir: apart from starting a daemon it is a client of the API like any SDK.
//
// cmd/shoal calls [Main] and hands it the daemon as a func; this package calls gen, the
// root package and, for the demo's three agents, package agent.
package cli

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
)

// Daemon is what the command line needs of the daemon that it cannot ask over the API:
// to be one.
type Daemon struct {
	// Run runs a daemon until ctx ends or it fails; ready is called once, when the
	// socket and HTTP accept. It returns nil when it stopped in order.
	Run func(ctx context.Context, o UpOptions, ready func(Ready)) error
	// Restore puts a backup file's content into home, where no daemon may run.
	Restore func(file, home string) error
	// Version is printed by `shoal version`.
	Version string
}

// UpOptions are the flags of `shoal up`. An empty field means the config file's value,
// else the default.
type UpOptions struct {
	Home           string   // absolute
	Listen         string   // HOST:PORT of the mesh, UDP and TCP; ":0" picks a free port
	HTTP           string   // HOST:PORT of the loopback HTTP, or "off"
	Join           []string // invite links and multiaddrs
	PSKFile        string
	ConfigFile     string
	PassphraseFile string // opens sealed keys
	RequireToken   bool   // ask for the token on loopback HTTP, too
	LogLevel       string // "debug", "info", "warn" or "error"
	Log            io.Writer
}

// Ready says that a daemon accepts calls: the ready line of `up -o json`.
type Ready struct {
	DID     string   `json:"did"`
	PeerID  string   `json:"peer_id"`
	Addrs   []string `json:"addrs"` // full multiaddrs with /p2p/, good for --join
	HTTP    string   `json:"http"`  // URL; empty when off
	Socket  string   `json:"socket"`
	ReadyMS float64  `json:"ready_ms"`
}

// Main runs the command that args name (without the program's own name) and returns its
// exit code, 0 to 7 as docs/design/cli.md says. It ends early when ctx does. It may be
// called concurrently.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, d Daemon) int {
	return run(ctx, args, stdin, stdout, stderr, d, os.Getenv)
}

// run is Main with an environment of the caller's choice.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, d Daemon, getenv func(string) string) int {
	a := &app{args: args, in: stdin, out: stdout, err: stderr, daemon: d, getenv: getenv, format: newChoice("text", "text", "json")}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)

	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.outErr
	}
	if err == nil {
		return exitOK
	}
	a.report(err)
	return exitCode(err)
}

// app is one run of the command: its streams and the flags every command has.
type app struct {
	args     []string
	in       io.Reader
	out, err io.Writer
	outErr   error // first failure to write results
	daemon   Daemon
	getenv   func(string) string

	format  *choice
	timeout duration
	home    string
	as      string
}

func (a *app) asJSON() bool { return a.format.value == "json" }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "shoal",
		Short: "Put your AI agents on a peer-to-peer mesh",
		Long: `Shoal runs next to your AI agents and puts them on a peer-to-peer mesh, where they
find each other by capability, hand each other work and stream the results.`,
		Example: `  shoal up                                      start the daemon here
  shoal up --join LINK                          and join somebody's mesh
  shoal find summarize                          who can do it?
  shoal task send --skill summarize "…" --wait  hand over work
  shoal demo                                    see three agents work, in seconds`,
		Args:              cobra.ArbitraryArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(a.flagError)
	root.SetHelpCommand(a.helpCommand())
	root.SetUsageTemplate(usageTemplate)

	f := root.PersistentFlags()
	f.SortFlags = false
	f.VarP(a.format, "output", "o", "text, or json: one object, one per line for lists and streams")
	f.Var(&a.timeout, "timeout", "give up after this long, such as 10s or 2m (default 30s; waiting and watching: none)")
	f.StringVar(&a.home, "home", "", "data directory of the daemon (default $SHOAL_HOME, else ~/.shoal)")
	f.StringVar(&a.as, "as", "", "act as this hosted agent, a DID or its name (default the node's own)")
	f.BoolP("help", "h", false, "show this help")

	root.AddGroup(&cobra.Group{ID: "node", Title: "The node:"}, &cobra.Group{ID: "work", Title: "Agents and their work:"}, &cobra.Group{ID: "more", Title: "More:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("node", a.upCommand(), a.downCommand(), a.statusCommand(), a.idCommand(), a.inviteCommand(),
		a.peersCommand(), a.pingCommand(), a.logsCommand(), a.backupCommand(), a.restoreCommand())
	add("work", a.findCommand(), a.agentCommand(), a.cardCommand(), a.taskCommand())
	add("more", a.demoCommand(), a.versionCommand(), a.completionCommand())
	completeChoices(root)
	return root
}

// defaultTimeout bounds a call that only asks the local daemon or, like find, the mesh.
const defaultTimeout = 30 * time.Second

// bounded returns the command's context with --timeout, 30 s without one.
func (a *app) bounded(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	d := a.timeoutOr(defaultTimeout)
	return context.WithTimeoutCause(cmd.Context(), d, tooLate(d))
}

// unbounded returns the command's context with --timeout, if there is one. It has no
// deadline that a call would pass on: who ends a stream at the end of its time, we or the
// daemon, would be chance, and with it how the command ends.
func (a *app) unbounded(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return cancelAfter(cmd.Context(), a.timeoutOr(0))
}

func cancelAfter(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if d == 0 {
		return ctx, func() { cancel(nil) }
	}
	timer := time.AfterFunc(d, func() { cancel(tooLate(d)) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}

func (a *app) timeoutOr(fallback time.Duration) time.Duration {
	if a.timeout > 0 {
		return time.Duration(a.timeout)
	}
	return fallback
}

func tooLate(d time.Duration) error {
	return shoal.NewError(shoal.Timeout, "timeout", "no answer within "+d.String(), "allow more with --timeout")
}
