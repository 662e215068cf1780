// Package archtest holds the picture of docs/design/0001-layers.md as a test: who may
// import whom. A new edge needs a line in the table below, so a reviewer sees it.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/shoalmesh/shoal"

// allowed maps a package (path below the module, "" is the root) to the packages of ours
// that its non-test files may import. A package that is not named here fails the test.
var allowed = map[string][]string{
	"":                         {},
	"internal/gen/wire":        {},
	"gen/shoal/v1":             {},
	"internal/identity":        {"", "internal/gen/wire"},
	"internal/store":           {""},
	"internal/httpguard":       {""},
	"internal/mesh":            {"", "internal/identity", "internal/gen/wire"},
	"internal/directory":       {"", "internal/store", "internal/identity", "internal/gen/wire"},
	"internal/mail":            {"", "internal/store", "internal/identity", "internal/gen/wire"},
	"internal/task":            {"", "internal/store", "internal/identity", "internal/gen/wire"},
	"internal/worker":          {"", "internal/store", "internal/identity"},
	"internal/api":             {"", "internal/directory", "internal/mail", "internal/task", "internal/worker", "internal/httpguard", "gen/shoal/v1", "gen/shoal/v1/shoalv1connect"},
	"agent":                    {"", "gen/shoal/v1", "gen/shoal/v1/shoalv1connect"},
	"internal/cli":             {"", "gen/shoal/v1", "gen/shoal/v1/shoalv1connect", "agent"}, // agent: the demo's three agents are written with it
	"internal/node":            nil,                                                          // the only one that may import every internal package below it
	"cmd/shoal":                {"", "internal/cli", "internal/node"},
	"internal/archtest":        {},
	"examples/echo":            {"", "agent"},
	"internal/store/storetest": {"internal/store"},
	"internal/mesh/meshtest":   {"", "internal/identity", "internal/mesh", "internal/gen/wire"},
}

// nodeMay is the list for internal/node.
var nodeMay = []string{
	"", "internal/identity", "internal/store", "internal/mesh", "internal/directory", "internal/mail",
	"internal/task", "internal/worker", "internal/api", "internal/httpguard",
}

// confined maps an import path prefix to the packages that may import it, non-test files only.
var confined = map[string][]string{
	"github.com/libp2p/":                 {"internal/mesh", "internal/mesh/meshtest"},
	"github.com/multiformats/":           {"internal/mesh", "internal/mesh/meshtest"},
	"github.com/ipfs/":                   {"internal/mesh", "internal/mesh/meshtest"},
	"database/sql":                       {"internal/store"},
	"modernc.org/":                       {"internal/store"},
	"connectrpc.com/":                    {"internal/api", "internal/cli", "agent", "gen/shoal/v1/shoalv1connect"},
	"google.golang.org/grpc":             {"internal/api"},
	"github.com/spf13/":                  {"internal/cli"},
	"filippo.io/age":                     {"internal/identity"},
	"github.com/gowebpki/jcs":            {"internal/identity"},
	"github.com/mr-tron/base58":          {""},
	"github.com/prometheus/":             {"internal/node", "internal/api"},
	"go.opentelemetry.io/otel/sdk":       {"internal/node"},
	"go.opentelemetry.io/otel/exporters": {"internal/node"},
}

// source is one Go file with its imports.
type source struct {
	pkg, file string
	imports   []string
	test      bool
}

// sources reads the files themselves: a cached build must not hide a broken layer.
func sources(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return filepath.SkipDir // a module of its own, such as bench
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		s := source{pkg: filepath.ToSlash(rel), file: path, test: strings.HasSuffix(name, "_test.go")}
		if s.pkg == "." {
			s.pkg = ""
		}
		for _, imp := range f.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("read %d files, want the whole tree", len(out))
	}
	return out
}

// ours returns the path below the module, and whether it is one of ours.
func ours(imp string) (string, bool) {
	if imp == module {
		return "", true
	}
	return strings.CutPrefix(imp, module+"/")
}

func TestImportsFollowTheLayers(t *testing.T) {
	edges := 0
	for _, s := range sources(t) {
		if s.test || strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		may, known := allowed[s.pkg]
		if strings.HasPrefix(s.pkg, "gen/") {
			may, known = []string{"gen/shoal/v1"}, true
		}
		if s.pkg == "internal/node" {
			may = nodeMay
		}
		if !known {
			t.Errorf("%s: package %q is not in the table of archtest: place it in a layer first", s.file, s.pkg)
			continue
		}
		for _, imp := range s.imports {
			rel, own := ours(imp)
			if !own {
				continue
			}
			edges++
			if !slices.Contains(may, rel) {
				t.Errorf("%s imports %q: package %q may import only %q", s.file, rel, s.pkg, may)
			}
		}
	}
	t.Logf("checked %d edges", edges)
}

func TestLibrariesStayInTheirPackage(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		for _, imp := range s.imports {
			for prefix, owners := range confined {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(owners, s.pkg) {
					t.Errorf("%s imports %s: only %q may", s.file, imp, owners)
				}
			}
		}
	}
}

// Only node may be a hub: a file of another package that needs more than five of ours is
// turning into one.
func TestNoSecondHub(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.pkg == "internal/node" || strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		n := 0
		for _, imp := range s.imports {
			if rel, own := ours(imp); own && rel != "" && !strings.HasPrefix(rel, "gen/") && !strings.HasPrefix(rel, "internal/gen/") {
				n++
			}
		}
		if n > 5 {
			t.Errorf("%s imports %d packages of ours, at most 5", s.file, n)
		}
	}
}

// Environment and flags are read at the edge only.
func TestEnvironmentIsReadAtTheEdge(t *testing.T) {
	edge := []string{"internal/cli", "internal/node", "cmd/shoal"}
	for _, s := range sources(t) {
		if s.test || slices.Contains(edge, s.pkg) || strings.HasPrefix(s.pkg, "examples/") || strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		raw, err := os.ReadFile(s.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"os.Getenv(", "os.LookupEnv(", "os.Exit(", "flag.Parse("} {
			if strings.Contains(string(raw), call) {
				t.Errorf("%s calls %s: only %q may", s.file, call, edge)
			}
		}
	}
}
