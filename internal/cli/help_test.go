package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHelpOfEveryCommand compares --help with testdata/help and insists on an example.
func TestHelpOfEveryCommand(t *testing.T) {
	a := &app{format: newChoice("text", "text", "json")}
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.Hidden {
			return
		}
		n++
		path := strings.Fields(c.CommandPath())
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append(path[1:], "--help"), nil, &stdout, &stderr, Daemon{}, func(string) string { return "" })
		if code != exitOK || stderr.Len() > 0 {
			t.Errorf("%v --help: exit code %d, stderr %q", path, code, stderr.String())
		}
		if c.Example == "" || !strings.Contains(stdout.String(), "Examples:") {
			t.Errorf("%v --help has no example", path)
		}
		golden := filepath.Join("testdata", "help", strings.Join(path, "-")+".txt")
		if *update {
			if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, stdout.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || stdout.String() != string(want) {
			t.Errorf("%v --help differs from %s (%v); rewrite with -update. Got:\n%s", path, golden, err, stdout.String())
		}
	}
	walk(a.root())
	t.Logf("%d commands", n)
}
