package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
)

// attach runs the three agents and returns when the daemons know them.
func (m *demoMesh) attach(ctx context.Context, d *demo) error {
	// Agents outlive the time-out of the work: --keep talks to them.
	agents, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stopAgents = stop
	attached := make(chan struct{}, 3)
	for _, a := range []struct {
		node    *demoNode
		name    string
		about   string
		skill   shoal.Skill
		handler agent.HandlerFunc
	}{
		{m.poet, "poet", "writes short poems, word by word", shoal.Skill{ID: "poem", Name: "Poem", Description: "A short poem about the text", Idempotent: true}, poet},
		{m.tailor, "tailor", "makes clothes that fit", shoal.Skill{ID: "tailor", Name: "Tailor", Description: "Clothes, made to measure"}, tailor},
		{m.editor, "editor", "has others write, and makes a page of it", shoal.Skill{ID: "edit", Name: "Edit", Description: "A page with a poem about the text"}, d.editor},
	} {
		cfg := agent.Config{
			Home: a.node.home, Name: a.name, Description: a.about, Skills: []shoal.Skill{a.skill}, Concurrency: 8,
			OnReady: func(string) { attached <- struct{}{} }, Log: slog.New(slog.DiscardHandler),
		}
		m.agents.Go(func() {
			if err := agent.Run(agents, cfg, a.handler); err != nil {
				m.failed <- fmt.Errorf("agent %s: %w", cfg.Name, err)
			}
		})
	}
	for range 3 {
		select {
		case <-attached:
		case err := <-m.failed:
			return err
		case <-ctx.Done():
			return apiError(ctx, ctx.Err())
		}
	}
	return nil
}

// poet streams a poem, one word at a time.
func poet(ctx context.Context, t *agent.Task, w *agent.Writer) error {
	about := strings.TrimSpace(t.Text())
	if about == "" {
		return agent.Reject("no_subject", "say what the poem is about")
	}
	poem := "They asked me for a word on " + about + ":\nit came, it went, and so did I;\nwhat two have signed will not be lost,\nand nobody need wonder why."
	const pace = 25 * time.Millisecond // slow enough to see
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for word := range strings.SplitAfterSeq(poem, " ") {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := w.WriteString(word); err != nil {
			return err
		}
	}
	return nil
}

// tailor asks for a size before it works.
func tailor(ctx context.Context, t *agent.Task, w *agent.Writer) error {
	answer, err := w.Ask(ctx, "Which size do you wear?")
	if err != nil {
		return err
	}
	var size strings.Builder
	for _, p := range answer.Parts {
		if text, ok := p.Content.(a2a.Text); ok {
			size.WriteString(string(text))
		}
	}
	_, err = fmt.Fprintf(w, "Measured for %q in size %s; ready on Friday.", t.Text(), strings.TrimSpace(size.String()))
	return err
}

// editor finds a poet through its own node, hands the subject on and frames the answer
// while it comes.
func (d *demo) editor(ctx context.Context, t *agent.Task, w *agent.Writer) error {
	poets, err := t.Node.Find(ctx, "poem")
	if err != nil {
		return err
	}
	if len(poets) == 0 {
		return agent.Reject("no_poet", "nobody here writes poems")
	}
	began := time.Now()
	sub := demoTask{from: d.mesh.editor, to: d.mesh.poet, who: "editor > poet", skill: "poem"}
	if _, err := fmt.Fprintf(w, "* %s *\n", strings.ToUpper(t.Text())); err != nil {
		return err
	}
	sub.result, err = t.Node.Send(ctx, agent.Request{
		To: string(poets[0].DID), Skill: "poem", Text: t.Text(),
		Stream: func(text string) {
			if sub.first == 0 {
				sub.first = time.Since(began)
			}
			_, _ = w.WriteString(text) // a failure shows when the handler returns
		},
	})
	if err != nil {
		return err
	}
	if err := sub.result.Err(); err != nil {
		return err
	}
	select {
	case d.subtasks <- sub:
	default: // --keep: nobody counts any more
	}
	_, err = fmt.Fprintf(w, "\n* set by the editor, written by %s *", poets[0].Name)
	return err
}
