package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// print writes a result to stdout and remembers the first failure: a full disk behind
// `>` must not look like success.
func (a *app) print(s string) {
	if _, err := io.WriteString(a.out, s); err != nil && a.outErr == nil {
		a.outErr = fmt.Errorf("write the result: %w", err)
	}
}

func (a *app) printf(format string, args ...any) { a.print(fmt.Sprintf(format, args...)) }

// printJSON writes v as one line.
func (a *app) printJSON(v any) {
	line, err := marshalJSON(v)
	if err != nil {
		if a.outErr == nil {
			a.outErr = fmt.Errorf("encode the result: %w", err)
		}
		return
	}
	a.print(string(line) + "\n")
}

// note writes a diagnostic to stderr, but not in JSON mode, where nobody reads it.
func (a *app) note(format string, args ...any) {
	if !a.asJSON() {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// marshalJSON encodes v in one line that is safe to print on a terminal.
func marshalJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return escapeJSON(bytes.TrimRight(buf.Bytes(), "\n")), nil
}

// protoJSON is an A2A message in the CLI's manner: snake_case, compact. protojson alone
// puts in spaces at random, so that nobody compares its output.
func protoJSON(m proto.Message) json.RawMessage {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil // an Any of unknown type: A2A messages hold none
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, raw); err != nil {
		return nil
	}
	return buf.Bytes()
}

// stamp is a time in JSON: RFC 3339 in UTC to the millisecond; nil is left out.
func stamp(ts *timestamppb.Timestamp) string {
	if ts == nil || !ts.IsValid() {
		return ""
	}
	return ts.AsTime().UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// clock is a time for people: local, without the date if it is today's.
func clock(ts *timestamppb.Timestamp, now time.Time) string {
	if ts == nil || !ts.IsValid() {
		return "-"
	}
	t := ts.AsTime().In(now.Location())
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// span is a duration for people, from milliseconds.
func span(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	switch {
	case d <= 0:
		return "-"
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", ms)
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

// size is a number of bytes for people.
func size(n uint64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	default:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	}
}

// table prints rows under a header, columns aligned. Cells are escaped here, so callers
// pass them as they came.
func (a *app) table(header []string, rows [][]string) {
	var buf bytes.Buffer
	w := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
	line := func(cells []string) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, escapeLine(c))
		}
		fmt.Fprintln(w)
	}
	if header != nil {
		line(header)
	}
	for _, r := range rows {
		line(r)
	}
	_ = w.Flush() // a bytes.Buffer does not fail
	for l := range strings.Lines(buf.String()) {
		a.print(strings.TrimRight(l, " \n") + "\n")
	}
}

// pairs prints "name  value" lines and leaves out those without a value.
func (a *app) pairs(pairs ...[2]string) {
	var rows [][]string
	for _, p := range pairs {
		if p[1] != "" {
			rows = append(rows, []string{p[0], p[1]})
		}
	}
	a.table(nil, rows)
}

// isTerminal tells whether w is a person's screen.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// style colours s for w with an SGR code, if w is a terminal and nobody objects
// (https://no-color.org). s must be escaped already.
func (a *app) style(w io.Writer, sgr, s string) string {
	if !isTerminal(w) || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}
