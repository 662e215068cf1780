package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) taskWait() *cobra.Command {
	c := &cobra.Command{
		Use:   "wait ID",
		Short: "Wait until a task ended or needs an answer, and print the result",
		Long: `Wait until a task ended or needs an answer, and print it. The exit code is as with
` + "`shoal task send --wait`" + `.`,
		Example: "  shoal task wait 019a… --timeout 1m",
		Args:    arguments(1, "ID"),
	}
	ref := refFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := ref(a, cmd, args[0])
		if err != nil {
			return err
		}
		rec, err := a.await(cmd, r)
		if err != nil {
			return a.goesOn(err, r.id)
		}
		a.printOutcome(rec, nil)
		return outcome(rec)
	}
	return c
}

// await returns the task once it is settled. It reads the task, then its events after
// what it read, so nothing falls between.
func (a *app) await(cmd *cobra.Command, ref taskRef) (*shoalv1.TaskRecord, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.unbounded(cmd)
	defer cancel()
	for {
		got, err := c.tasks.Get(ctx, connect.NewRequest(&shoalv1.GetRequest{Id: ref.id, Requester: ref.requester, Role: ref.role}))
		if err != nil {
			return nil, apiError(ctx, err)
		}
		rec := got.Msg.GetTask()
		if settled(rec.GetTask().GetStatus().GetState()) {
			return rec, nil
		}

		changed, err := awaitChange(ctx, c, ref, rec.GetCursor())
		if err != nil {
			return nil, apiError(ctx, err)
		}
		if !changed {
			return nil, shoal.NewError(shoal.Unavailable, "stream_ended", "the daemon ended the stream before the task did", "it goes on: `shoal task wait "+ref.id+"`")
		}
	}
}

// awaitChange tells whether an event after the cursor may have settled the task; false
// means that the stream ended early.
func awaitChange(ctx context.Context, c *client, ref taskRef, after uint64) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: ref.id, Requester: ref.requester, Role: ref.role, After: after}))
	if err != nil {
		cancel()
		return false, err
	}
	defer hangUp(cancel, stream)
	for stream.Receive() {
		if ev := stream.Msg(); ev.GetTask() != nil || settled(ev.GetStatus().GetState()) {
			return true, nil
		}
	}
	return false, stream.Err()
}

func (a *app) taskWatch() *cobra.Command {
	var after uint64
	c := &cobra.Command{
		Use:   "watch ID",
		Short: "Print a task's events, those that were and those that come, until it ended",
		Long: `Print a task's events from the start, or after a cursor, until it ended. Pieces of
text appear as the agent writes them. The exit code is as with ` + "`shoal task send --wait`" + `.`,
		Example: "  shoal task watch 019a…\n  shoal task watch 019a… --after 3 -o json",
		Args:    arguments(1, "ID"),
	}
	ref := refFlags(c)
	c.Flags().Uint64Var(&after, "after", 0, "only events after this cursor")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := ref(a, cmd, args[0])
		if err != nil {
			return err
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		return a.follow(cmd, client, r, after, true)
	}
	return c
}
