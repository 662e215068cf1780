//go:build e2e

package interop

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// step is a line of a ```console block that begins with "$ ", and the lines below it that
// the command must print.
type step struct {
	command string
	want    []string
}

func blocks(text, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

func steps(t *testing.T, file string) []step {
	t.Helper()
	var out []step
	for _, block := range blocks(readFile(t, file), "console") {
		for line := range strings.Lines(block) {
			line = strings.TrimRight(line, "\n")
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				out = append(out, step{command: command})
			} else if len(out) == 0 {
				t.Fatalf("%s: a block begins with output: %q", file, line)
			} else {
				last := &out[len(out)-1]
				last.want = append(last.want, line)
			}
		}
	}
	return out
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(repo, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// missing returns the lines of want that out does not hold in order. In want, … stands
// for anything, and one blank for any number.
func missing(out, want []string) []string {
	text := strings.Join(out, "\n")
	for i, line := range want {
		words := strings.Fields(line)
		for j, w := range words {
			words[j] = strings.ReplaceAll(regexp.QuoteMeta(w), "…", `[\s\S]*?`)
		}
		loc := regexp.MustCompile(strings.Join(words, `\s*`)).FindStringIndex(text)
		if loc == nil {
			return want[i:]
		}
		text = text[loc[1]:]
	}
	return nil
}

func TestREADME(t *testing.T) { runPage(t, "README.md", 16) }

func TestRunPage(t *testing.T) { runPage(t, "docs/ops/run.md", 10) }

// runPage runs a page's commands one after the other in one shell, as a person would.
// `go run ./cmd/shoal` is the binary under test, and `make` has already been run.
func runPage(t *testing.T, page string, least int) {
	home := tempHome(t)
	sh := startShell(t, home)
	all := steps(t, page)
	if len(all) < least {
		t.Fatalf("only %d commands in %s", len(all), page)
	}
	for _, st := range all {
		began := time.Now()
		command := runnable(t, home, st.command)
		if command == "" {
			continue
		}
		out, code := sh.run(command)
		// The agent was started in the background just now, and `go run` compiles.
		for deadline := began.Add(commandTimeout); code == 3 && strings.HasPrefix(command, "shoal find") && time.Now().Before(deadline); {
			time.Sleep(200 * time.Millisecond)
			out, code = sh.run(command)
		}
		t.Logf("$ %s  (%v)\n%s", command, time.Since(began).Round(time.Millisecond), strings.Join(out, "\n"))
		if code != 0 {
			t.Fatalf("$ %s\nexit code %d", st.command, code)
		}
		if lost := missing(out, st.want); lost != nil {
			t.Fatalf("$ %s\ndid not print, in this order: %q", st.command, lost)
		}
	}
	t.Logf("%d commands", len(all))
}

// runnable is the command as the test runs it; "" if `make test` has done it already.
func runnable(t *testing.T, home, command string) string {
	if strings.HasPrefix(command, "make ") {
		return ""
	}
	command = strings.Replace(command, "go run ./cmd/shoal ", "shoal ", 1)
	// Ann's daemon takes another port than the one in the README if that is busy.
	if url := "http://127.0.0.1:7420"; strings.Contains(command, url) {
		status := struct{ HTTP string }{}
		call(t, filepath.Join(home, "ann", "shoal.sock"), "shoal.v1.NodeService/Status", `{}`, &status)
		if status.HTTP != url {
			t.Logf("port 7420 is busy on this machine: %s instead", status.HTTP)
		}
		command = strings.ReplaceAll(command, url, status.HTTP)
	}
	return command
}

// TestREADMEShowsTheExample: the Go code in the README is the one that is compiled.
func TestREADMEShowsTheExample(t *testing.T) {
	shown := blocks(readFile(t, "README.md"), "go")
	if len(shown) != 1 || !strings.HasSuffix(readFile(t, "examples/echo/main.go"), shown[0]) {
		t.Errorf("the README's Go block is not the end of examples/echo/main.go")
	}
}

// TestDocsLinksExist: what the README and the pages for operators point at is there.
func TestDocsLinksExist(t *testing.T) {
	n := 0
	for _, page := range []string{"README.md", "CONTRIBUTING.md", "docs/ops/run.md", "docs/ops/config.md"} {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(readFile(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			if _, err := os.Stat(filepath.Join(repo, filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	if lines := strings.Count(readFile(t, "README.md"), "\n"); lines > 120 {
		t.Errorf("README.md has %d lines, 120 are allowed", lines)
	}
	t.Logf("%d links", n)
}

// TestRunPageNamesRealReasons: each code in the table of troubles is one of reasons.md.
func TestRunPageNamesRealReasons(t *testing.T) {
	_, table, _ := strings.Cut(readFile(t, "docs/ops/run.md"), "## When something is wrong")
	known := readFile(t, "docs/reasons.md")
	codes := regexp.MustCompile("`([a-z]+(?:_[a-z]+)+)`").FindAllStringSubmatch(table, -1)
	for _, c := range codes {
		if !strings.Contains(known, "| `"+c[1]+"` |") {
			t.Errorf("docs/ops/run.md: there is no reason %s", c[1])
		}
	}
	if len(codes) < 5 {
		t.Errorf("%d codes found", len(codes))
	}
}

// TestMissing: the comparison that TestREADME stands on can fail.
func TestMissing(t *testing.T) {
	out := []string{"NAME  SKILLS", "echo  echo    12:00  did:key:z6MkX", "", "done"}
	for _, c := range []struct {
		want []string
		ok   bool
	}{
		{nil, true},
		{[]string{"echo echo … did:key:z6Mk…", "done"}, true},
		{[]string{"done", "echo"}, false},
		{[]string{"echo … did:web"}, false},
		{[]string{"12.00"}, false},
	} {
		if got := missing(out, c.want) == nil; got != c.ok {
			t.Errorf("%q: found %v, want %v", c.want, got, c.ok)
		}
	}
}
