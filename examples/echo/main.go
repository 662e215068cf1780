// Command echo is an agent in ten lines: it answers each task with the task's own words,
// one at a time. It attaches to the daemon of $SHOAL_HOME, else of ~/.shoal.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cfg := agent.Config{Home: os.Getenv("SHOAL_HOME"), Name: "echo", Skills: []shoal.Skill{{ID: "echo"}}}
	err := agent.Run(ctx, cfg, func(_ context.Context, t *agent.Task, w *agent.Writer) error {
		for _, word := range strings.Fields(t.Text()) {
			fmt.Fprint(w, word, " ")
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}
