package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// checkReceipts verifies each task's receipt as both nodes hold it.
func (d *demo) checkReceipts(ctx context.Context) error {
	for i := range d.tasks {
		t := &d.tasks[i]
		asked, err := countersigned(ctx, t.from, t, shoalv1.TaskRole_TASK_ROLE_ASKED)
		if err != nil {
			return err
		}
		doing, err := countersigned(ctx, t.to, t, shoalv1.TaskRole_TASK_ROLE_DOING)
		if err != nil {
			return err
		}
		for _, r := range []receiptJSON{asked, doing} {
			if _, err := verifyReceipt(r); err != nil {
				return err
			}
			if !r.InputMatches || !r.OutputMatches {
				return shoal.NewError(shoal.Corrupt, "hash_mismatch", "the receipt of task "+t.result.ID+" is about other bytes", "")
			}
			t.checked += 2
		}
		if !bytes.Equal(asked.Body, doing.Body) {
			return shoal.NewError(shoal.Corrupt, "receipts_differ", "the two nodes hold different receipts of task "+t.result.ID, "")
		}
	}
	return nil
}

// countersigned returns the receipt that a node holds once both have signed it: the
// asker's signature travels back by mail after the task has ended.
func countersigned(ctx context.Context, n *demoNode, t *demoTask, role shoalv1.TaskRole) (receiptJSON, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := n.api.tasks.Receipt(ctx, connect.NewRequest(&shoalv1.ReceiptRequest{Id: t.result.ID, Requester: string(t.result.From), Role: role}))
		if err != nil {
			if err = apiError(ctx, err); shoal.KindOf(err) != shoal.Conflict && shoal.KindOf(err) != shoal.NotFound {
				return receiptJSON{}, err // not merely "not yet"
			}
		} else if len(resp.Msg.GetReceipt().GetAskerSignature()) > 0 {
			return receiptOf(resp.Msg.GetReceipt()), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return receiptJSON{}, apiError(ctx, ctx.Err())
		}
	}
}

type demoJSON struct {
	OK                bool           `json:"ok"`
	Nodes             []demoNodeJSON `json:"nodes"`
	Tasks             []demoTaskJSON `json:"tasks"`
	SignaturesChecked int            `json:"signatures_checked"`
	TookMS            float64        `json:"took_ms"`
	Kept              bool           `json:"kept"`
}

type demoNodeJSON struct {
	Name    string  `json:"name"`
	DID     string  `json:"did"`
	PeerID  string  `json:"peer_id"`
	Home    string  `json:"home,omitempty"` // with --keep
	ReadyMS float64 `json:"ready_ms"`
}

type demoTaskJSON struct {
	ID                string  `json:"id"`
	Who               string  `json:"who"`
	From              string  `json:"from"`
	To                string  `json:"to"`
	Skill             string  `json:"skill"`
	State             string  `json:"state"`
	TookMS            float64 `json:"took_ms"`
	FirstTextMS       float64 `json:"first_text_ms"`
	Bytes             int     `json:"bytes"`
	SignaturesChecked int     `json:"signatures_checked"`
}

// report prints the final table, or with -o json the one object.
func (d *demo) report(ctx context.Context, keep bool) error {
	if err := ctx.Err(); err != nil {
		return apiError(ctx, err)
	}
	checked := 0
	for _, t := range d.tasks {
		checked += t.checked
	}
	took := time.Since(d.began)
	if d.app.asJSON() {
		d.app.printJSON(d.summary(took, checked, keep))
		return nil
	}

	var rows [][]string
	for _, t := range d.tasks {
		rows = append(rows, []string{
			t.who, t.skill, trimState(string(t.result.State)), span(t.result.TookMS), span(ms(t.first)),
			strconv.Itoa(len(t.result.Text)), fmt.Sprintf("%d good", t.checked),
		})
	}
	d.app.print("\n")
	d.app.table([]string{"WHO", "WHAT", "STATE", "LATENCY", "FIRST TEXT", "BYTES", "SIGNATURES"}, rows)
	d.app.printf("\n%d tasks, %d signatures on receipts checked, both sides of each; %.1f s in all\n", len(d.tasks), checked, took.Seconds())
	return nil
}

func (d *demo) summary(took time.Duration, checked int, keep bool) demoJSON {
	out := demoJSON{OK: true, SignaturesChecked: checked, TookMS: ms(took.Round(time.Microsecond)), Kept: keep}
	for _, n := range d.mesh.nodes() {
		j := demoNodeJSON{Name: filepath.Base(n.home), DID: n.ready.DID, PeerID: n.ready.PeerID, ReadyMS: n.ready.ReadyMS}
		if keep {
			j.Home = n.home
		}
		out.Nodes = append(out.Nodes, j)
	}
	for _, t := range d.tasks {
		out.Tasks = append(out.Tasks, demoTaskJSON{
			ID: t.result.ID, Who: t.who, From: string(t.result.From), To: string(t.result.To), Skill: t.skill,
			State: string(t.result.State), TookMS: t.result.TookMS, FirstTextMS: ms(t.first.Round(time.Microsecond)),
			Bytes: len(t.result.Text), SignaturesChecked: t.checked,
		})
	}
	return out
}

// howToTalk prints commands that work while the demo's nodes are kept.
func (d *demo) howToTalk() {
	if d.app.asJSON() {
		return
	}
	self, err := os.Executable()
	if err != nil {
		self = "shoal"
	}
	home := d.mesh.editor.home
	d.app.printf(`
The nodes stay up until ctrl-C. In another terminal:
  export SHOAL_HOME=%[2]s
  %[1]s status
  %[1]s find poem
  %[1]s task send --skill poem "rain" --stream
  %[1]s task send --skill tailor "a hat" --wait
  %[1]s task list
`, self, home)
}
