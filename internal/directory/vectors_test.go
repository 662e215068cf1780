package directory

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
)

var update = flag.Bool("update", false, "rewrite spec/vectors/card.json")

const vectorFile = "../../spec/vectors/card.json"

// cardVectors is spec/vectors/card.json.
type cardVectors struct {
	About   string       `json:"about"`
	Network string       `json:"network"`
	Now     time.Time    `json:"now"`
	Agent   string       `json:"agent"` // that is asked for
	Node    string       `json:"node"`
	Control string       `json:"control"` // accepted at now
	Cards   []cardVector `json:"cards"`   // each judged on its own, after the control
}

type cardVector struct {
	Name   string `json:"name"`
	Card   string `json:"card"`   // the bytes, which are text
	Reason string `json:"reason"` // of the refusal; "" is accepted
}

func buildVectors(t *testing.T) cardVectors {
	victim, other := testKey(t, "victim"), testKey(t, "other")
	now := time.UnixMilli(944444444000).UTC()
	v := cardVectors{
		About:   "Vectors of spec/card.md. Made by: go test ./internal/directory -update",
		Network: testNet, Now: now, Agent: string(victim.Agent()), Node: string(victim.Node()),
		Control: string(signCard(t, victim, now, nil, "ocr")),
	}
	good := func(name string, change func(*params), skills ...string) {
		v.Cards = append(v.Cards, cardVector{Name: name, Card: string(signCard(t, victim, now, change, skills...))})
	}
	good("higher sequence number", func(p *params) { p.Seq++ }, "ocr", "pay")
	good("just expired", func(p *params) {
		p.Seq++
		p.NotBefore, p.NotAfter = now.Add(-time.Hour), now.Add(-Tolerance+time.Second)
	})
	good("not valid yet, within the tolerance", func(p *params) {
		p.Seq++
		p.NotBefore, p.NotAfter = now.Add(Tolerance), now.Add(time.Hour)
	})
	good("tombstone", func(p *params) { p.Seq++; p.Withdrawn = true })
	good("another host", func(p *params) { p.Seq++; p.Node = other.Node() }, "ocr")
	for _, f := range forgeries(t, victim, other, []byte(v.Control), now) {
		v.Cards = append(v.Cards, cardVector{Name: f.name, Card: string(f.raw), Reason: f.reason})
	}
	return v
}

func TestVectors(t *testing.T) {
	built, err := json.MarshalIndent(buildVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	built = append(built, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, built, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, built) {
		t.Error("spec/vectors/card.json is not what the code makes: run go test ./internal/directory -update and read the diff")
	}
	var v cardVectors
	if err := json.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	control, err := openCard([]byte(v.Control), v.Network, v.Now)
	if err != nil || string(control.Agent) != v.Agent || string(control.Node) != v.Node {
		t.Fatalf("control: %v on %v, %v", control.Agent, control.Node, err)
	}
	reasons := map[string]int{}
	for _, c := range v.Cards {
		reason := judge(v, control, []byte(c.Card))
		if reasons[reason]++; reason != c.Reason {
			t.Errorf("%s: got %q, want %q", c.Name, reason, c.Reason)
		}
	}
	t.Logf("%d vectors by reason: %v", len(v.Cards), reasons)
}

// judge is §4 of spec/card.md for one card after the control.
func judge(v cardVectors, control Card, raw []byte) string {
	c, err := openCard(raw, v.Network, v.Now)
	if err == nil && string(c.Agent) != v.Agent {
		err = ErrWrongAgent
	}
	if err == nil {
		err = newer(c.Seq, digestOf(raw), control.Seq, digestOf(control.Raw))
	}
	if err == nil {
		return ""
	}
	return shoal.AsError(err).Reason
}
