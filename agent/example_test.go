package agent_test

import (
	"context"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
)

// An agent in ten lines: its answer is streamed word by word.
func ExampleRun() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cfg := agent.Config{Name: "shouter", Skills: []shoal.Skill{{ID: "shout", Idempotent: true}}}
	err := agent.Run(ctx, cfg, func(_ context.Context, t *agent.Task, w *agent.Writer) error {
		for _, word := range strings.Fields(t.Text()) {
			fmt.Fprint(w, strings.ToUpper(word), " ")
		}
		return nil
	})
	fmt.Println(err)
}

// A handler asks back, and hands a part of its work to another agent.
func ExampleWriter_Ask() {
	handler := func(ctx context.Context, t *agent.Task, w *agent.Writer) error {
		if t.Text() == "" {
			return agent.Reject("empty", "there is nothing to translate")
		}
		answer, err := w.Ask(ctx, "into which language?")
		if err != nil {
			return err
		}
		part, err := t.Node.Send(ctx, agent.Request{
			Skill: "translate", Text: t.Text(), Parts: answer.Parts,
			Stream: func(s string) { fmt.Fprint(w, s) },
		})
		if err != nil {
			return err
		}
		return part.Err()
	}
	_ = agent.Run(context.Background(), agent.Config{Skills: []shoal.Skill{{ID: "translate-for-me"}}}, handler)
}

// A program delegates a task and answers what the other agent asks.
func ExampleClient_Send() {
	ctx := context.Background()
	node, err := agent.Dial("") // the daemon of ~/.shoal
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	res, err := node.Send(ctx, agent.Request{Skill: "shout", Text: "hello", Key: "order-17"})
	for err == nil && !res.Done() {
		fmt.Println("the agent asks:", res.Text)
		res, err = node.Reply(ctx, res.ID, "yes")
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.State, res.Text)
}
