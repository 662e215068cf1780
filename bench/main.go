// Command bench measures Shoal's speed beside what the machine can do at best.
//
// Each figure stands beside its floor (or its peer), measured in the same run and in
// turns with it, window by window, so that a busy machine slows both. It spawns two real
// daemons with shipped defaults. README.md says how to read the output.
//
// It promises the names of issue 2's table in its JSON. It is a module of its own, so
// peers such as NATS stay out of the product, and may use Shoal's internal packages.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

func main() {
	if sock := os.Getenv(echoEnv); sock != "" {
		exitOn(serveEcho(sock))
		return
	}
	var o options
	var asJSON bool
	flag.BoolVar(&asJSON, "json", false, "one JSON object a line")
	flag.BoolVar(&o.quick, "quick", false, "a short run that fails only when a figure misses its bound by ten times")
	flag.Func("only", "figure to measure; may be repeated or comma-separated", func(s string) error {
		o.only = append(o.only, strings.Split(s, ",")...)
		return o.check()
	})
	flag.StringVar(&o.prof, "prof", "", "run the daemons inside this process and write CPU profiles into this directory")
	flag.StringVar(&o.dir, "dir", "", "where the homes and the floor's file are put (default: a temporary directory)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := printer(table{os.Stdout})
	if asJSON {
		out = lines{json.NewEncoder(os.Stdout)}
	}
	began := time.Now()
	failed, err := run(ctx, o, out)
	exitOn(err)
	fmt.Fprintf(os.Stderr, "bench took %v\n", time.Since(began).Round(100*time.Millisecond))
	if o.quick && failed {
		exitOn(errors.New("a figure misses its bound by ten times"))
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options is what the command line says.
type options struct {
	quick bool
	only  []string
	prof  string
	dir   string
}

// names are those of the table, in its order.
var names = []string{"task_durable", "task_live", "mail_vs_jetstream", "mail_vs_store", "token", "find_warm", "find_cached", "start", "rss", "binary"}

func (o options) check() error {
	for _, n := range o.only {
		if !slices.Contains(names, n) {
			return fmt.Errorf("unknown figure %q; there are %s", n, strings.Join(names, ", "))
		}
	}
	return nil
}

// wants reports whether one of the figures is to be measured.
func (o options) wants(any ...string) bool {
	return len(o.only) == 0 || slices.ContainsFunc(any, func(n string) bool { return slices.Contains(o.only, n) })
}

// windows is how many times a figure and its floor take turns.
func (o options) windows() int {
	if o.quick {
		return 3
	}
	return 9
}

// span is how long one of them is measured in a window.
func (o options) span() time.Duration {
	if o.quick {
		return 250 * time.Millisecond
	}
	return 800 * time.Millisecond
}

// Figure is one line of the output. Dir "max" means that Ratio must not be above Must,
// "min" not below. Ratio is P50/Floor; a figure with an absolute bound has Floor 1.
type Figure struct {
	Name  string  `json:"name"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"`
	Ratio float64 `json:"ratio"`
	Must  float64 `json:"must"`
	Dir   string  `json:"dir"`
	Pass  bool    `json:"pass"`

	note string // for people: N, and what the floor is
}

func (f *Figure) judge() {
	f.Ratio = f.P50 / f.Floor
	f.Pass = f.Ratio <= f.Must
	if f.Dir == "min" {
		f.Pass = f.Ratio >= f.Must
	}
}

// hopeless reports whether a figure misses its bound by ten times.
func (f *Figure) hopeless() bool {
	if f.Dir == "min" {
		return f.Ratio < f.Must/10
	}
	return f.Ratio > f.Must*10
}

// printer shows figures to people or to programs.
type printer interface {
	figure(Figure)
	remark(format string, args ...any) // for the record, not a figure
}

type lines struct{ enc *json.Encoder }

func (l lines) figure(f Figure) { _ = l.enc.Encode(f) }

func (l lines) remark(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

type table struct{ w io.Writer }

func (t table) figure(f Figure) {
	verdict := "ok"
	if !f.Pass {
		verdict = "SHORT"
	}
	sign := "<="
	if f.Dir == "min" {
		sign = ">="
	}
	fmt.Fprintf(t.w, "%-18s p50 %9.5g  p99 %9.5g %-4s floor %9.5g  ratio %6.3g must %s %-4g %-5s %s\n",
		f.Name, f.P50, f.P99, f.Unit, f.Floor, f.Ratio, sign, f.Must, verdict, f.note)
}

func (t table) remark(format string, args ...any) { fmt.Fprintf(t.w, "  "+format+"\n", args...) }
