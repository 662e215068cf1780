package cli

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoalmesh/shoal"
)

// choice is a flag that takes one of a few words.
type choice struct {
	value string
	words []string
}

func newChoice(value string, words ...string) *choice { return &choice{value, words} }

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.words, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return errors.New("use one of " + strings.Join(c.words, ", "))
	}
	c.value = s
	return nil
}

// completeChoices lets the shell complete the words of every choice below c.
func completeChoices(c *cobra.Command) {
	complete := func(f *pflag.Flag) {
		if words, ok := f.Value.(*choice); ok {
			if err := c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(words.words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)); err != nil {
				panic(err) // a flag twice in one command
			}
		}
	}
	c.LocalNonPersistentFlags().VisitAll(complete)
	c.PersistentFlags().VisitAll(complete)
	for _, sub := range c.Commands() {
		completeChoices(sub)
	}
}

// duration is a flag such as 90s, 10m, 1h30m or 7d: positive, at most ten years.
type duration time.Duration

func (d *duration) Type() string { return "duration" }

func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

func (d *duration) Set(s string) error {
	const most = 10 * 365 * 24 * time.Hour
	v, err := time.ParseDuration(s)
	if days, isDays := strings.CutSuffix(s, "d"); isDays {
		var n float64
		n, err = strconv.ParseFloat(days, 64)
		if err == nil && !(n > 0 && n <= most.Hours()/24) {
			return errors.New("it must be more than 0 and at most ten years")
		}
		v = time.Duration(n * 24 * float64(time.Hour))
	}
	if err != nil {
		return errors.New("write it like 500ms, 90s, 10m, 2h or 7d")
	}
	if v <= 0 || v > most {
		return errors.New("it must be more than 0 and at most ten years")
	}
	*d = duration(v)
	return nil
}

// ms is the flag in the API's unit, rounded up so that a short one is not "none".
func (d duration) ms() int64 {
	return int64((time.Duration(d) + time.Millisecond - 1) / time.Millisecond)
}

// group makes the command of a noun: it only holds its verbs.
func (a *app) group(noun, short, example string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:     noun,
		Short:   short,
		Example: example,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.unknownCommand(cmd, args[0])
			}
			return usage("its verbs are "+strings.Join(verbNames(cmd), ", "), "%s needs a verb", cmd.CommandPath())
		},
	}
	c.AddCommand(verbs...)
	return c
}

// unknownCommand is the error for a noun or verb that does not exist.
func (a *app) unknownCommand(parent *cobra.Command, typed string) error {
	what := "verb"
	if !parent.HasParent() {
		what = "command"
	}
	names := verbNames(parent)
	hint := didYouMean(nearest(typed, names))
	if hint == "" && what == "verb" {
		hint = "its verbs are " + strings.Join(names, ", ") + "; "
	}
	return usage(hint+"see `"+parent.CommandPath()+" --help`", "unknown %s %q for %q", what, typed, parent.CommandPath())
}

func verbNames(parent *cobra.Command) []string {
	var names []string
	for _, c := range parent.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	slices.Sort(names)
	return names
}

// flagError explains a flag that does not exist or has a wrong value.
func (a *app) flagError(cmd *cobra.Command, err error) error {
	// `shoal task sned --to bob`: the verb is what is wrong, not the flag.
	if cmd.HasSubCommands() {
		if typed := a.wordAfter(cmd); typed != "" && !slices.Contains(verbNames(cmd), typed) {
			return a.unknownCommand(cmd, typed)
		}
	}
	see := "see `" + cmd.CommandPath() + " --help`"
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return usage(see, "unknown flag -%s for %q", name, cmd.CommandPath())
		}
		return usage(didYouMean(nearestFlags(cmd, name))+see, "unknown flag --%s for %q", name, cmd.CommandPath())
	case errors.As(err, &missing):
		return usage(see, "flag --%s needs a value", missing.GetFlag().Name)
	case errors.As(err, &invalid):
		return usage(see, "--%s %q: %v", invalid.GetFlag().Name, clip(invalid.GetValue(), 80), numberError(errors.Unwrap(invalid)))
	default:
		return usage(see, "%v", err)
	}
}

// numberError replaces strconv's words by a person's.
func numberError(err error) error {
	if errors.Is(err, strconv.ErrSyntax) || errors.Is(err, strconv.ErrRange) {
		return errors.New("it is not a whole number in range")
	}
	return err
}

// wordAfter returns the first argument after the words of cmd's path that is no flag.
func (a *app) wordAfter(cmd *cobra.Command) string {
	skip := strings.Fields(cmd.CommandPath())[1:]
	for _, arg := range a.args {
		switch {
		case strings.HasPrefix(arg, "-"):
		case len(skip) > 0 && arg == skip[0]:
			skip = skip[1:]
		case len(skip) == 0:
			return arg
		}
	}
	return ""
}

func nearestFlags(cmd *cobra.Command, typed string) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near := nearest(typed, names)
	for i, n := range near {
		near[i] = "--" + n
	}
	return near
}

// arguments returns a check of the number of arguments; names says what they are, the
// first min of them required.
func arguments(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		see := "see `" + cmd.CommandPath() + " --help`"
		if len(args) < least {
			return usage(see, "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):least], " and "))
		}
		if len(args) > len(names) {
			takes := "takes no argument"
			if len(names) > 0 {
				takes = "takes only " + strings.Join(names, " and ")
				see = "put text with spaces into quotes; " + see
			}
			return usage(see, "%s %s, but there is also %q", cmd.CommandPath(), takes, clip(args[len(names)], 40))
		}
		for i, arg := range args {
			if strings.TrimSpace(arg) == "" {
				return usage(see, "%s is empty", names[i])
			}
		}
		return nil
	}
}

// clip cuts s to n bytes for a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// oneOf refuses two flags that exclude each other.
func oneOf(cmd *cobra.Command, names ...string) error {
	var set []string
	for _, n := range names {
		if cmd.Flags().Changed(n) {
			set = append(set, "--"+n)
		}
	}
	if len(set) > 1 {
		return usage("see `"+cmd.CommandPath()+" --help`", "%s cannot go together", strings.Join(set, " and "))
	}
	return nil
}

// looksLikeDID tells a DID from a name, which the daemon has to look up.
func looksLikeDID(s string) bool { return strings.HasPrefix(s, "did:") }

// checkAgent refuses early what can be no agent, so that a mistyped DID gets the root
// package's hint and not "not found".
func checkAgent(s string) error {
	if looksLikeDID(s) {
		_, err := shoal.ParseAgentID(s)
		return err
	}
	if len(s) > 64 {
		return usage("an agent is a did:key:z6Mk… or a name", "agent %q is longer than a name can be", clip(s, 70))
	}
	return checkUTF8("agent", s)
}

// checkUTF8 refuses arguments that JSON and protobuf could not carry.
func checkUTF8(what, s string) error {
	if strings.ToValidUTF8(s, "") != s {
		return usage("", "%s is not UTF-8 text", what)
	}
	return nil
}

// helpCommand is `shoal help [NOUN [VERB]]`.
func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show help for a command",
		Example: "  shoal help task send",
		Hidden:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target := cmd.Root()
			for _, word := range args {
				next, _, err := target.Find([]string{word})
				if err != nil || next == target {
					return a.unknownCommand(target, word)
				}
				target = next
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
	}
}

// usageTemplate is cobra's, without what nobody reads.
const usageTemplate = `Usage:{{if .HasAvailableSubCommands}}
  {{.CommandPath}} {{if .HasParent}}VERB{{else}}COMMAND{{end}} [flags]{{else}}
  {{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Verbs:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if (and (eq .GroupID $group.ID) .IsAvailableCommand)}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}{{if .HasParent}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{end}}

Flags of every command:
{{.Root.PersistentFlags.FlagUsages | trimTrailingWhitespaces}}
`
