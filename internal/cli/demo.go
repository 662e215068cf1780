package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
)

// demoTimeout bounds the demo's work: it takes a few seconds, so more means trouble.
const demoTimeout = 60 * time.Second

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "See three agents on three nodes find each other and work, in seconds",
		Long: `Start three nodes as processes of their own, connected over loopback, and three agents:
a poet that streams its answer, a tailor that asks back, and an editor that hands part of
its work to the poet. At the end the receipts of all tasks are verified on both sides.
Nothing stays behind.`,
		Example: "  shoal demo\n  shoal demo --keep      # and then talk to them\n  shoal demo -o json",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.demo(cmd, keep)
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the nodes up and say how to talk to them, until ctrl-C")
	return c
}

// demo is one run of the demo.
type demo struct {
	app   *app
	mesh  *demoMesh
	tasks []demoTask
	began time.Time
	// subtasks carries what the editor delegated from its handler.
	subtasks chan demoTask
}

// demoTask is one row of the final table.
type demoTask struct {
	from, to *demoNode
	who      string
	skill    string
	result   *agent.Result
	first    time.Duration // until the first piece of text came
	checked  int           // signatures
}

func (a *app) demo(cmd *cobra.Command, keep bool) (err error) {
	d := &demo{app: a, began: time.Now(), subtasks: make(chan demoTask, 1)}
	ctx, cancel := cancelAfter(cmd.Context(), a.timeoutOr(demoTimeout))
	defer cancel()

	if d.mesh, err = newDemoMesh(); err != nil {
		return err
	}
	// Whatever happens, no process and no directory is left; a failure to clean up is
	// the demo's failure, too.
	defer func() { err = errors.Join(err, d.mesh.close()) }()

	if err := d.run(ctx); err != nil {
		if cmd.Context().Err() != nil {
			return errInterrupted
		}
		return err
	}
	if err := d.report(ctx, keep); err != nil {
		return err
	}
	if keep {
		d.howToTalk()
		select {
		case <-cmd.Context().Done():
		case err := <-d.mesh.failed:
			return err
		}
	}
	return nil
}

// say prints a line of progress, for people only. Its arguments are escaped.
func (d *demo) say(format string, args ...any) {
	if d.app.asJSON() {
		return
	}
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = escapeLine(s)
		}
	}
	at := fmt.Sprintf("%6.2f s", time.Since(d.began).Seconds())
	d.app.printf("%s  %s\n", d.app.style(d.app.out, "2", at), fmt.Sprintf(format, args...))
}

// run starts the mesh and sees the work done.
func (d *demo) run(ctx context.Context) error {
	m := d.mesh
	if err := m.up(ctx, d.say); err != nil {
		return err
	}
	if err := m.attach(ctx, d); err != nil {
		return err
	}
	d.say("three agents are attached, each with its own key and signed card: editor, poet, tailor")

	for _, step := range []func(context.Context) error{d.askPoet, d.askTailor, d.askEditor} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.checkReceipts(ctx)
}

// find looks an agent up by capability, again until its card has travelled.
func (d *demo) find(ctx context.Context, from *demoNode, skill string) (agent.Found, error) {
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		found, err := from.client.Find(ctx, skill)
		if err == nil && len(found) > 0 {
			d.say("%s asks who can do %s: %s, %s; card verified, %s", from.name, skill, found[0].Name, string(found[0].DID), span(ms(time.Since(began))))
			return found[0], nil
		}
		if err != nil && shoal.KindOf(err) != shoal.NotFound {
			return agent.Found{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return agent.Found{}, apiError(ctx, ctx.Err())
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// askPoet streams an answer from another node.
func (d *demo) askPoet(ctx context.Context) error {
	from := d.mesh.editor
	poet, err := d.find(ctx, from, "poem")
	if err != nil {
		return err
	}
	d.say("%s hands the poet a task and reads the answer as it is written:", from.name)
	return d.ask(ctx, demoTask{from: from, to: d.mesh.poet, who: "node editor > poet", skill: "poem"},
		agent.Request{To: string(poet.DID), Skill: "poem", Text: "the sea"}, nil)
}

// askTailor is asked back.
func (d *demo) askTailor(ctx context.Context) error {
	from := d.mesh.editor
	tailor, err := d.find(ctx, from, "tailor")
	if err != nil {
		return err
	}
	return d.ask(ctx, demoTask{from: from, to: d.mesh.tailor, who: "node editor > tailor", skill: "tailor"},
		agent.Request{To: string(tailor.DID), Skill: "tailor", Text: "a coat, please"},
		func(question string) string {
			d.say("the tailor asks back: %s — the answer: 42", question)
			return "42"
		})
}

// askEditor has the editor delegate to the poet.
func (d *demo) askEditor(ctx context.Context) error {
	from := d.mesh.tailor
	editor, err := d.find(ctx, from, "edit")
	if err != nil {
		return err
	}
	d.say("%s hands the editor a task; the editor finds the poet and hands on:", from.name)
	err = d.ask(ctx, demoTask{from: from, to: d.mesh.editor, who: "node tailor > editor", skill: "edit"},
		agent.Request{To: string(editor.DID), Skill: "edit", Text: "autumn"}, nil)
	if err != nil {
		return err
	}
	select {
	case sub := <-d.subtasks:
		d.tasks = append(d.tasks, sub)
		return nil
	default:
		return shoal.NewError(shoal.Internal, "demo_failed", "the editor ended without a sub-task", "")
	}
}

// ask sends one task, shows its text as it comes, answers a question and insists on
// COMPLETED.
func (d *demo) ask(ctx context.Context, t demoTask, r agent.Request, answer func(question string) string) error {
	began := time.Now()
	show := &ticker{demo: d}
	r.Stream = func(text string) {
		if t.first == 0 {
			t.first = time.Since(began)
		}
		show.write(text)
	}
	res, err := t.from.client.Send(ctx, r)
	if err == nil && res.State == a2a.TaskStateInputRequired && answer != nil {
		show.end()
		reply := answer(res.Text)
		res, err = t.from.client.ReplyStream(ctx, res.ID, r.Stream, reply)
	}
	show.end()
	if err != nil {
		return err
	}
	if err := res.Err(); err != nil {
		return err
	}
	if !res.Done() {
		return shoal.NewError(shoal.Internal, "demo_failed", "the task "+res.ID+" stands at "+trimState(string(res.State)), "")
	}
	t.result = res
	d.say("%s %s in %s", t.who, trimState(string(res.State)), span(res.TookMS))
	d.tasks = append(d.tasks, t)
	return nil
}

// ticker prints streamed text, indented below the times.
type ticker struct {
	demo    *demo
	midLine bool
}

const tickerMargin = "          | "

func (k *ticker) write(text string) {
	if k.demo.app.asJSON() {
		return
	}
	for line := range strings.Lines(escapeText(text)) {
		if !k.midLine {
			k.demo.app.print(tickerMargin)
		}
		k.demo.app.print(line)
		k.midLine = !strings.HasSuffix(line, "\n")
	}
}

func (k *ticker) end() {
	if k.midLine {
		k.demo.app.print("\n")
		k.midLine = false
	}
}
