package api

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/reasons.md")

const (
	moduleRoot  = "../.."
	reasonsFile = moduleRoot + "/docs/reasons.md"
)

// TestReasonsAreDocumented keeps docs/reasons.md what the sources say: each reason that
// is handed to shoal.NewError, there or through a helper that passes it on.
func TestReasonsAreDocumented(t *testing.T) {
	reasons := reasonsInSources(t)
	if len(reasons) < 60 {
		t.Fatalf("found %d reasons, want the whole tree's", len(reasons))
	}
	bySort := slices.Sorted(maps.Keys(reasons))
	for _, name := range bySort {
		if !regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`).MatchString(name) {
			t.Errorf("reason %q (%s) is not in snake case", name, strings.Join(reasons[name].where, ", "))
		}
	}
	want := reasonsPage(reasons)
	if *update {
		if err := os.WriteFile(reasonsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(reasonsFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) == want {
		t.Logf("%d reasons", len(reasons))
		return
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(got)) {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			documented[name] = true
			if reasons[name] == nil {
				t.Errorf("%s is documented, and nowhere in the sources", name)
			}
		}
	}
	for _, name := range bySort {
		if !documented[name] {
			t.Errorf("%s (%s) is not documented", name, strings.Join(reasons[name].where, ", "))
		}
	}
	t.Errorf("docs/reasons.md is not what the sources say; run: go test ./internal/api -run TestReasons -update")
}

// reason is what the sources say about one code.
type reason struct {
	kinds, where []string
	msg, hint    string
}

func reasonsPage(reasons map[string]*reason) string {
	var b strings.Builder
	b.WriteString(`# Reason codes

Every failed call carries a kind, for programs, and a reason code, for scripts: in ` + "`shoal.v1.ErrorInfo`" + ` over the API,
in ` + "`reason`" + ` of the CLI's JSON. Codes do not change their meaning. A task that ended without its worker's word has one, too.
Text in ‹ › varies. This page is generated: ` + "`go test ./internal/api -run TestReasons -update`" + `.

| reason | kind | what happened | what to do | where |
|---|---|---|---|---|
`)
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		r := reasons[name]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", name, strings.Join(r.kinds, ", "), cell(r.msg), cell(r.hint), strings.Join(r.where, ", "))
	}
	return b.String()
}

var verb = regexp.MustCompile(`%[#+]?[0-9]*[a-zA-Z]`)

func cell(s string) string {
	s = verb.ReplaceAllString(s, "‹›")
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}

// reasonsInSources reads every file that is no test.
func reasonsInSources(t *testing.T) map[string]*reason {
	t.Helper()
	packages := map[string][]*ast.File{}
	err := filepath.WalkDir(moduleRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			skip := strings.HasPrefix(d.Name(), ".") && path != moduleRoot || slices.Contains([]string{"testdata", "node_modules", "bench", "gen"}, d.Name())
			if skip {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		packages[dir] = append(packages[dir], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*reason{}
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		rel, err := filepath.Rel(moduleRoot, dir)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(filepath.ToSlash(rel), "internal/")
		if name == "." {
			name = "shoal"
		}
		(&reasonScan{pkg: name, found: found}).scan(packages[dir])
	}
	return found
}

// maker is a function that passes arguments on to shoal.NewError. An index of -1 says
// that the argument is not the caller's; text then has what it is.
type maker struct {
	index [4]int // of kind, reason, msg and hint
	text  [4]string
}

type reasonScan struct {
	pkg    string
	found  map[string]*reason
	makers map[string]maker
}

func (s *reasonScan) scan(files []*ast.File) {
	s.makers = map[string]maker{"NewError": {index: [4]int{0, 1, 2, 3}}}
	for range 3 { // helpers of helpers
		for _, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					s.helper(fn.Name.Name, fn.Type, fn.Body)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool { // bad := func(…) error { … }
				if as, ok := n.(*ast.AssignStmt); ok && len(as.Lhs) == 1 && len(as.Rhs) == 1 {
					if lit, ok := as.Rhs[0].(*ast.FuncLit); ok {
						if id, ok := as.Lhs[0].(*ast.Ident); ok {
							s.helper(id.Name, lit.Type, lit.Body)
						}
					}
				}
				return true
			})
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				s.call(n)
			case *ast.ValueSpec: // reasons of tasks: const ReasonX = "x"
				for i, name := range n.Names {
					if strings.HasPrefix(name.Name, "Reason") && i < len(n.Values) {
						if text, ok := literal(n.Values[i]); ok {
							s.add(text, "", "a task ended for this reason", "")
						}
					}
				}
			}
			return true
		})
	}
}

// helper notes a function whose parameter becomes a reason.
func (s *reasonScan) helper(name string, typ *ast.FuncType, body *ast.BlockStmt) {
	if body == nil || name == "NewError" {
		return
	}
	params := map[string]int{}
	n := 0
	for _, field := range typ.Params.List {
		for _, id := range field.Names {
			params[id.Name] = n
			n++
		}
	}
	ast.Inspect(body, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		inner, args, ok := s.resolve(call)
		if !ok {
			return true
		}
		id, ok := args[1].(*ast.Ident)
		if _, isParam := params[identName(args[1])]; !ok || !isParam {
			return true
		}
		m := maker{index: [4]int{-1, params[id.Name], -1, -1}}
		for i, arg := range args {
			if p, ok := params[identName(arg)]; ok {
				m.index[i] = p
			} else if arg != nil {
				m.text[i] = textOf(arg)
			} else {
				m.text[i] = inner.text[i]
			}
		}
		s.makers[name] = m
		return false
	})
}

// resolve returns what a call hands to NewError; nil where that is fixed.
func (s *reasonScan) resolve(call *ast.CallExpr) (m maker, args [4]ast.Expr, ok bool) {
	name := identName(call.Fun)
	if sel, isSel := call.Fun.(*ast.SelectorExpr); isSel && identName(sel.X) == "shoal" {
		name = sel.Sel.Name
	}
	m, ok = s.makers[name]
	if !ok {
		return m, args, false
	}
	for i, at := range m.index {
		if at >= len(call.Args) {
			return m, args, false
		}
		if at >= 0 {
			args[i] = call.Args[at]
		}
	}
	return m, args, args[1] != nil
}

func (s *reasonScan) call(call *ast.CallExpr) {
	m, args, ok := s.resolve(call)
	if !ok {
		return
	}
	code, ok := literal(args[1])
	if !ok {
		return
	}
	text := m.text
	for i, arg := range args {
		if arg != nil {
			text[i] = textOf(arg)
		}
	}
	s.add(code, text[0], text[2], text[3])
}

func (s *reasonScan) add(code, kind, msg, hint string) {
	r := s.found[code]
	if r == nil {
		r = &reason{}
		s.found[code] = r
	}
	kind = strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(kind, "${1}_$2"))
	r.kinds, r.where = with(r.kinds, kind), with(r.where, s.pkg)
	if r.msg == "" {
		r.msg = msg
	}
	if r.hint == "" {
		r.hint = hint
	}
}

func with(list []string, s string) []string {
	if s == "" || slices.Contains(list, s) {
		return list
	}
	return slices.Sorted(slices.Values(append(list, s)))
}

func identName(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// textOf returns what an expression says, as far as the source knows: a constant's name,
// a literal, the format of a Sprintf, the fixed parts of a sum.
func textOf(e ast.Expr) string {
	if s, ok := literal(e); ok {
		return s
	}
	switch e := e.(type) {
	case *ast.SelectorExpr:
		if identName(e.X) == "shoal" {
			return e.Sel.Name
		}
	case *ast.Ident:
		if e.IsExported() {
			return e.Name
		}
	case *ast.BinaryExpr:
		return textOf(e.X) + textOf(e.Y)
	case *ast.ParenExpr:
		return textOf(e.X)
	case *ast.CallExpr:
		if sel, ok := e.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sprintf" && len(e.Args) > 0 {
			return textOf(e.Args[0])
		}
	}
	return "%v"
}
