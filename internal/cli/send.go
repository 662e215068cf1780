package cli

import (
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// sendFlags are the flags of `task send`.
type sendFlags struct {
	to, skill, data, key, context string
	files                         []string
	deadline, ttl                 duration
	live, durable, wait, stream   bool
}

func (a *app) taskSend() *cobra.Command {
	var s sendFlags
	c := &cobra.Command{
		Use:   "send (--to AGENT | --skill CAPABILITY) [TEXT]",
		Short: "Hand over a task",
		Long: `Hand a task to an agent, or to any that offers the skill. TEXT, --data and --file are
its parts, at least one of them; TEXT "-" is read from stdin.

Without --wait or --stream it returns as soon as the task is on disk; the task goes on,
whether or not the agent can be reached now. With --wait the exit code is 0 for COMPLETED
and for a task that needs an answer (its state says so), 1 for FAILED and CANCELED, 4 for
REJECTED, 5 when --timeout has passed (the task goes on).`,
		Example: `  shoal task send --skill summarize "long text" --wait
  shoal task send --to did:key:z6Mk… --file page.png --data '{"lang":"de"}'
  git diff | shoal task send --skill review - --stream`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.check(cmd); err != nil {
				return err
			}
			msg, err := a.message(cmd, args, s.data, s.files)
			if err != nil {
				return err
			}
			req := &shoalv1.SendRequest{
				As: a.as, To: s.to, Skill: s.skill, Message: msg, RequestId: s.key, ContextId: s.context,
				TimeoutMs: s.deadline.ms(), TtlMs: s.ttl.ms(),
			}
			if s.live {
				req.Class = shoalv1.TaskClass_TASK_CLASS_LIVE
			}
			return a.send(cmd, req, s)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&s.to, "to", "", "the agent: a DID, or the name of one hosted here")
	f.StringVar(&s.skill, "skill", "", "the skill; without --to any agent that offers it, the nearest first")
	f.StringVar(&s.data, "data", "", "a JSON value as a part")
	f.StringArrayVar(&s.files, "file", nil, "a file of at most 64 KiB as a part; may be repeated")
	f.StringVar(&s.key, "key", "", "idempotency key: the same key gives the same task")
	f.StringVar(&s.context, "context", "", "context id of an earlier task that this one belongs to")
	f.Var(&s.deadline, "deadline", "how long the work may take, such as 90s (default 10m)")
	f.Var(&s.ttl, "ttl", "how long to try to reach the agent, such as 2h (default 7d)")
	f.BoolVar(&s.live, "live", false, "fastest: nothing on disk before the answer")
	f.BoolVar(&s.durable, "durable", false, "every state on disk on both sides (the default)")
	f.BoolVar(&s.wait, "wait", false, "wait until it ended or needs an answer, and print the result")
	f.BoolVar(&s.stream, "stream", false, "print the answer as it comes")
	return c
}

func (s *sendFlags) check(cmd *cobra.Command) error {
	if s.to == "" && s.skill == "" {
		return usage("see `shoal task send --help`", "say who: --to AGENT or --skill CAPABILITY")
	}
	if s.to != "" {
		if err := checkAgent(s.to); err != nil {
			return err
		}
	}
	if s.skill != "" {
		name, err := shoal.ParseCapability(s.skill)
		if err != nil {
			return err
		}
		s.skill = name
	}
	if err := checkUTF8("--key", s.key); err != nil {
		return err
	}
	if err := checkUTF8("--context", s.context); err != nil {
		return err
	}
	return oneOf(cmd, "live", "durable")
}

// waitGrace is how much longer than the daemon we wait for its answer "not yet".
const waitGrace = 3 * time.Second

func (a *app) send(cmd *cobra.Command, req *shoalv1.SendRequest, s sendFlags) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	started := time.Now()
	sendCtx, cancel := a.bounded(cmd)
	defer cancel()
	if s.wait && !s.stream {
		req.Wait, req.WaitMs = true, a.timeout.ms()
		grace := time.Duration(0)
		if a.timeout > 0 {
			grace = waitGrace
		}
		sendCtx, cancel = cancelAfter(cmd.Context(), a.timeoutOr(0)+grace)
		defer cancel()
	}
	resp, err := c.tasks.Send(sendCtx, connect.NewRequest(req))
	if err != nil {
		return apiError(sendCtx, err)
	}

	r := resp.Msg.GetTask()
	switch {
	case s.stream:
		if a.timeout > 0 {
			a.timeout = duration(max(time.Millisecond, time.Duration(a.timeout)-time.Since(started)))
		}
		if a.asJSON() {
			a.printJSON(eventJSON{Task: taskPointer(r)})
		}
		return a.follow(cmd, c, taskRef{id: r.GetTask().GetId(), requester: r.GetFrom(), role: shoalv1.TaskRole_TASK_ROLE_ASKED}, 0, false)
	case s.wait:
		a.printOutcome(r, resp.Msg)
		return outcome(r)
	case a.asJSON():
		t := taskOf(r)
		created := resp.Msg.GetCreated()
		t.Created = &created
		a.printJSON(t)
		return nil
	default:
		a.print(escapeLine(r.GetTask().GetId()) + "\n")
		a.note("%s to %s; follow it with `shoal task watch %s`", stateWord(r.GetTask().GetStatus().GetState()), escapeLine(r.GetTo()), escapeLine(r.GetTask().GetId()))
		return nil
	}
}

func taskPointer(r *shoalv1.TaskRecord) *taskJSON {
	t := taskOf(r)
	return &t
}
