package task

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
)

var update = flag.Bool("update", false, "rewrite testdata and spec/vectors")

var allStates = []a2a.TaskState{
	a2a.TaskStateSubmitted, a2a.TaskStateWorking, a2a.TaskStateInputRequired, a2a.TaskStateAuthRequired,
	a2a.TaskStateCompleted, a2a.TaskStateFailed, a2a.TaskStateCanceled, a2a.TaskStateRejected,
}

var inputNames = []string{"start", "report", "lost", "unseen", "deadline", "cancel", "reply", "event", "undelivered", "unknown"}

var effectNames = []string{"record", "tell", "sign", "countersign", "assign", "queue", "pass_input", "pass_cancel", "release", "ask_cancel", "send_input", "grace"}

func (e effects) String() string {
	var out []string
	for i, n := range effectNames {
		if e&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, " ")
}

func short(s a2a.TaskState) string { return strings.TrimPrefix(string(s), "TASK_STATE_") }

func long(s string) a2a.TaskState {
	if s == "-" || s == "" {
		return a2a.TaskStateUnspecified
	}
	return a2a.TaskState("TASK_STATE_" + s)
}

// TestStories replays whole lives of tasks. Each file of testdata begins with the role;
// a line is "input [state] [idempotent] [reason=…]", and the line under it what came of it.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("stories: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(raw))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(raw) {
				t.Errorf("got:\n%s\nwant:\n%s", got, raw)
			}
		})
	}
}

func replay(t *testing.T, script string) string {
	var out strings.Builder
	m := machine{state: a2a.TaskStateSubmitted}
	lines := bufio.NewScanner(strings.NewReader(script))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "    "):
			continue // what came of it is written anew
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
			continue
		case line == "asked":
			m.role = Asked
			fmt.Fprintln(&out, line)
			continue
		case line == "doing":
			m.role, m.queued = Doing, true
			fmt.Fprintln(&out, line)
			continue
		}
		fmt.Fprintln(&out, line)
		next, eff, err := step(m, parseInput(t, line))
		if err != nil {
			fmt.Fprintf(&out, "    refused: %s\n", shoal.AsError(err).Reason)
			continue
		}
		m = next
		fmt.Fprintf(&out, "    %s%s | %s\n", short(m.state), flags(m), eff)
	}
	return out.String()
}

func parseInput(t *testing.T, line string) input {
	words := strings.Fields(line)
	k := slices.Index(inputNames, words[0])
	if k < 0 {
		t.Fatalf("unknown input %q", line)
	}
	in := input{kind: inputKind(k)}
	for _, w := range words[1:] {
		if r, ok := strings.CutPrefix(w, "reason="); ok {
			in.reason = r
		} else if w == "idempotent" {
			in.idempotent = true
		} else {
			in.state = long(w)
		}
	}
	return in
}

func flags(m machine) string {
	s := fmt.Sprintf(" attempt %d", m.attempt)
	for _, f := range []struct {
		on   bool
		name string
	}{{m.queued, "queued"}, {m.held, "held"}, {m.canceling, "canceling"}} {
		if f.on {
			s += " " + f.name
		}
	}
	if m.reason != "" {
		s += " reason=" + m.reason
	}
	return s
}

// TestRandomLives drives machines of both roles with random inputs and checks what must
// hold whatever happens: no step leaves a terminal state, a worker holds at most what was
// started, a refused step changes nothing, and the doer signs exactly once.
func TestRandomLives(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	steps, refused := 0, 0
	for range 20_000 {
		m := machine{role: Asked, state: a2a.TaskStateSubmitted}
		if rng.IntN(2) == 0 {
			m = machine{role: Doing, state: a2a.TaskStateSubmitted, queued: true}
		}
		signed := 0
		for range 30 {
			in := input{kind: inputKind(rng.IntN(len(inputNames))), state: allStates[rng.IntN(len(allStates))], idempotent: rng.IntN(2) == 0}
			if rng.IntN(4) == 0 {
				in.state = a2a.TaskStateUnspecified
			}
			before := m
			next, eff, err := step(m, in)
			steps++
			if err != nil {
				refused++
				if next != before {
					t.Fatalf("seed %d: refused %v changed %+v to %+v", seed, in, before, next)
				}
				if before.state.Terminal() != errors.Is(err, ErrTerminal) {
					t.Fatalf("seed %d: %+v %v: %v", seed, before, in, err)
				}
				continue
			}
			m = next
			if before.state.Terminal() {
				t.Fatalf("seed %d: left %s by %v", seed, before.state, in)
			}
			if eff&doSign != 0 {
				signed++
			}
			switch {
			case m.held && m.queued,
				m.state.Terminal() && (m.held || m.queued),
				m.role == Asked && (m.held || m.queued || m.attempt != 0),
				eff&doAssign != 0 && m.attempt != before.attempt+1,
				m.attempt > before.attempt && eff&doAssign == 0,
				m.state != before.state && eff&doRecord == 0,
				m.state == a2a.TaskStateSubmitted && before.state != a2a.TaskStateSubmitted:
				t.Fatalf("seed %d: %+v by %+v became %+v with %s", seed, before, in, m, eff)
			}
		}
		if want := m.role == Doing && m.state.Terminal(); want != (signed == 1) {
			t.Fatalf("seed %d: %+v signed %d times", seed, m, signed)
		}
	}
	t.Logf("%d steps, %d refused, 0 of them changed anything", steps, refused)
}

// vector is a case of spec/vectors/task-states.json.
type vector struct {
	Machine vectorMachine  `json:"machine"`
	Input   vectorInput    `json:"input"`
	After   *vectorMachine `json:"after,omitempty"`
	Error   string         `json:"error,omitempty"`
}

type vectorMachine struct {
	Role      string `json:"role"`
	State     string `json:"state"`
	Attempt   int    `json:"attempt"`
	Queued    bool   `json:"queued"`
	Held      bool   `json:"held"`
	Canceling bool   `json:"canceling"`
	Reason    string `json:"reason,omitempty"`
}

type vectorInput struct {
	Kind       string `json:"kind"`
	State      string `json:"state,omitempty"`
	Idempotent bool   `json:"idempotent,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

func toVector(m machine) vectorMachine {
	role := "asked"
	if m.role == Doing {
		role = "doing"
	}
	return vectorMachine{role, string(m.state), m.attempt, m.queued, m.held, m.canceling, m.reason}
}

func (v vectorMachine) machine() machine {
	m := machine{role: Asked, state: a2a.TaskState(v.State), attempt: v.Attempt, queued: v.Queued, held: v.Held, canceling: v.Canceling, reason: v.Reason}
	if v.Role == "doing" {
		m.role = Doing
	}
	return m
}

// TestVectors runs spec/vectors/task-states.json, which other languages run, too: every
// machine that can come up, every input. -update writes the file anew from the code;
// the review of its diff is the check.
func TestVectors(t *testing.T) {
	path := filepath.Join("..", "..", "spec", "vectors", "task-states.json")
	if *update {
		raw, err := json.MarshalIndent(makeVectors(), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 300 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for _, v := range vectors {
		k := slices.Index(inputNames, v.Input.Kind)
		if k < 0 {
			t.Fatalf("unknown input %q", v.Input.Kind)
		}
		got, _, err := step(v.Machine.machine(), input{inputKind(k), a2a.TaskState(v.Input.State), v.Input.Idempotent, v.Input.Reason})
		if err != nil {
			if shoal.AsError(err).Reason != v.Error {
				t.Errorf("%+v by %+v: %v, want %+v %s", v.Machine, v.Input, err, v.After, v.Error)
			}
			continue
		}
		if v.After == nil || toVector(got) != *v.After {
			t.Errorf("%+v by %+v: %+v, want %+v %s", v.Machine, v.Input, toVector(got), v.After, v.Error)
		}
	}
	t.Logf("%d vectors", len(vectors))
}

func makeVectors() []vector {
	var machines []machine
	for _, s := range allStates {
		machines = append(machines, machine{role: Asked, state: s}, machine{role: Asked, state: s, canceling: true})
	}
	machines = append(machines,
		machine{role: Doing, state: a2a.TaskStateSubmitted, queued: true},
		machine{role: Doing, state: a2a.TaskStateWorking, attempt: 1, held: true},
		machine{role: Doing, state: a2a.TaskStateWorking, attempt: 1, held: true, canceling: true},
		machine{role: Doing, state: a2a.TaskStateWorking, attempt: 1, queued: true},
		machine{role: Doing, state: a2a.TaskStateInputRequired, attempt: 1, held: true},
		machine{role: Doing, state: a2a.TaskStateInputRequired, attempt: 1},
		machine{role: Doing, state: a2a.TaskStateAuthRequired, attempt: 2, held: true},
		machine{role: Doing, state: a2a.TaskStateCompleted, attempt: 1},
	)
	inputs := []vectorInput{
		{Kind: "start"},
		{Kind: "lost"},
		{Kind: "lost", Idempotent: true},
		{Kind: "unseen"},
		{Kind: "deadline"},
		{Kind: "cancel"},
		{Kind: "reply"},
		{Kind: "undelivered", Reason: "expired"},
		{Kind: "undelivered", Reason: "unknown_skill"},
		{Kind: "unknown"},
		{Kind: "report"},
		{Kind: "event"},
	}
	for _, s := range allStates {
		inputs = append(inputs, vectorInput{Kind: "report", State: string(s)}, vectorInput{Kind: "event", State: string(s)})
	}
	var out []vector
	for _, m := range machines {
		for _, in := range inputs {
			v := vector{Machine: toVector(m), Input: in}
			got, _, err := step(m, input{inputKind(slices.Index(inputNames, in.Kind)), a2a.TaskState(in.State), in.Idempotent, in.Reason})
			if err != nil {
				v.Error = shoal.AsError(err).Reason
			} else {
				after := toVector(got)
				v.After = &after
			}
			out = append(out, v)
		}
	}
	return out
}
