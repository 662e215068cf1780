package cli

import (
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// taskRef names one task. Two askers may use the same id, so the asker and our role can
// be needed to tell which is meant.
type taskRef struct {
	id        string
	requester string
	role      shoalv1.TaskRole
}

// refFlags adds --role and --requester to a command that takes a task's id.
func refFlags(c *cobra.Command) func(a *app, cmd *cobra.Command, id string) (taskRef, error) {
	role := newChoice("", "asked", "doing")
	var requester string
	c.Flags().Var(role, "role", "asked or doing, when this node has both sides (default asked)")
	c.Flags().StringVar(&requester, "requester", "", "DID of who asked, when two used the same id")
	return func(a *app, cmd *cobra.Command, id string) (taskRef, error) {
		ref := taskRef{id: id, requester: requester, role: parseRole(role.value)}
		if err := checkTaskID(id); err != nil {
			return ref, err
		}
		if requester != "" {
			if _, err := shoal.ParseAgentID(requester); err != nil {
				return ref, err
			}
		}
		if requester == "" && a.as != "" && role.value != "doing" {
			agent, err := a.resolve(cmd, a.as, false)
			if err != nil {
				return ref, err
			}
			ref.requester = agent.GetDid()
		}
		return ref, nil
	}
}

// checkTaskID refuses what no task is called.
func checkTaskID(id string) error {
	if len(id) > 255 {
		return usage("see `shoal task list`", "task id %q is too long", clip(id, 40))
	}
	return checkUTF8("task id", id)
}

func (a *app) taskGet() *cobra.Command {
	c := &cobra.Command{
		Use:     "get ID",
		Short:   "Show one task with its messages and artifacts",
		Example: "  shoal task get 019a…\n  shoal task get 019a… -o json | jq .state",
		Args:    arguments(1, "ID"),
	}
	ref := refFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := ref(a, cmd, args[0])
		if err != nil {
			return err
		}
		rec, err := a.getTask(cmd, r)
		if err != nil {
			return err
		}
		if a.asJSON() {
			a.printJSON(taskOf(rec))
		} else {
			a.printTask(rec)
		}
		return nil
	}
	return c
}

func (a *app) getTask(cmd *cobra.Command, ref taskRef) (*shoalv1.TaskRecord, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.tasks.Get(ctx, connect.NewRequest(&shoalv1.GetRequest{Id: ref.id, Requester: ref.requester, Role: ref.role}))
	if err != nil {
		return nil, apiError(ctx, err)
	}
	return resp.Msg.GetTask(), nil
}

func (a *app) printTask(r *shoalv1.TaskRecord) {
	now := time.Now()
	t := r.GetTask()
	state := stateWord(t.GetStatus().GetState())
	if r.GetReason() != "" {
		state += " (" + r.GetReason() + ")"
	}
	a.pairs(
		[2]string{"task", t.GetId()},
		[2]string{"context", t.GetContextId()},
		[2]string{"state", state},
		[2]string{"from", r.GetFrom()},
		[2]string{"to", r.GetTo()},
		[2]string{"skill", r.GetSkill()},
		[2]string{"delivery", r.GetDelivery()},
		[2]string{"created", clock(r.GetCreatedAt(), now)},
		[2]string{"changed", clock(r.GetUpdatedAt(), now)},
		[2]string{"took", span(r.GetTookMs())},
	)
	for _, m := range t.GetHistory() {
		a.block(roleOf(m), m.GetParts())
	}
	if m := t.GetStatus().GetMessage(); m != nil {
		a.block(roleOf(m), m.GetParts())
	}
	for _, art := range t.GetArtifacts() {
		name := art.GetName()
		if name == "" {
			name = art.GetArtifactId()
		}
		a.block("artifact "+name, art.GetParts())
	}
}

func roleOf(m *a2apb.Message) string {
	if m.GetRole() == a2apb.Role_ROLE_AGENT {
		return "agent"
	}
	return "asker"
}

// block prints parts under a heading, indented.
func (a *app) block(heading string, parts []*a2apb.Part) {
	body := escapeText(partsText(parts))
	if body != "" && !strings.HasSuffix(body, "\n") {
		body += "\n"
	}
	body += otherParts(parts)
	a.printf("\n%s\n", a.style(a.out, "1", escapeLine(heading)))
	for line := range strings.Lines(body) {
		a.print("  " + line)
	}
}

func (a *app) taskList() *cobra.Command {
	var state, contextID string
	var limit uint32
	role := newChoice("", "asked", "doing")
	c := &cobra.Command{
		Use:     "list",
		Short:   "List tasks, newest change first",
		Example: "  shoal task list\n  shoal task list --state input-required --role asked\n  shoal task list --limit 1000 -o json | jq -r .id",
		Args:    arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &shoalv1.TaskServiceListRequest{Role: parseRole(role.value), ContextId: contextID}
			if state != "" {
				var err error
				if req.State, err = parseState(state); err != nil {
					return err
				}
			}
			if limit == 0 || limit > 100_000 {
				return usage("", "--limit %d: it must be 1 to 100000", limit)
			}
			if err := checkUTF8("--context", contextID); err != nil {
				return err
			}
			return a.listTasks(cmd, req, int(limit))
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&state, "state", "", "only tasks in this state, such as working or input-required")
	f.Var(role, "role", "only those asked for here, or done here")
	f.StringVar(&contextID, "context", "", "only tasks of this context id")
	f.Uint32Var(&limit, "limit", 50, "at most this many")
	return c
}

// listTasks prints page after page, so that a long list needs no memory in JSON.
func (a *app) listTasks(cmd *cobra.Command, req *shoalv1.TaskServiceListRequest, limit int) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	now := time.Now()
	var rows [][]string
	for n := 0; n < limit; {
		req.PageSize = uint32(min(100, limit-n))
		resp, err := c.tasks.List(ctx, connect.NewRequest(req))
		if err != nil {
			return apiError(ctx, err)
		}
		for _, r := range resp.Msg.GetTasks() {
			if n++; a.asJSON() {
				a.printJSON(taskOf(r))
				continue
			}
			other := r.GetTo()
			if r.GetRole() == shoalv1.TaskRole_TASK_ROLE_DOING {
				other = r.GetFrom()
			}
			rows = append(rows, []string{
				r.GetTask().GetId(), stateWord(r.GetTask().GetStatus().GetState()), roleWord(r.GetRole()), r.GetSkill(),
				clock(r.GetUpdatedAt(), now), span(r.GetTookMs()), other,
			})
		}
		req.PageToken = resp.Msg.GetNextPageToken()
		if req.GetPageToken() == "" || len(resp.Msg.GetTasks()) == 0 {
			break
		}
	}
	if a.asJSON() {
		return nil
	}
	if len(rows) == 0 {
		a.note("no tasks")
		return nil
	}
	a.table([]string{"TASK", "STATE", "ROLE", "SKILL", "CHANGED", "TOOK", "WITH"}, rows)
	return nil
}

func (a *app) taskCancel() *cobra.Command {
	return &cobra.Command{
		Use:     "cancel ID",
		Short:   "Ask the agent to stop",
		Long:    "Ask the agent to stop. The task may still end otherwise, if it was done before.",
		Example: "  shoal task cancel 019a…",
		Args:    arguments(1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTaskID(args[0]); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.tasks.Cancel(ctx, connect.NewRequest(&shoalv1.CancelRequest{Id: args[0]}))
			if err != nil {
				return apiError(ctx, err)
			}
			a.printState(resp.Msg.GetTask())
			return nil
		},
	}
}

// printState prints a task that was changed but not waited for.
func (a *app) printState(r *shoalv1.TaskRecord) {
	if a.asJSON() {
		a.printJSON(taskOf(r))
		return
	}
	a.printf("%s %s\n", escapeLine(r.GetTask().GetId()), stateWord(r.GetTask().GetStatus().GetState()))
}

func (a *app) taskReply() *cobra.Command {
	var data, key string
	var files []string
	c := &cobra.Command{
		Use:     "reply ID [TEXT]",
		Short:   "Answer a task that is waiting for input or authorisation",
		Example: "  shoal task reply 019a… \"size 42\"\n  shoal task reply 019a… --data '{\"size\":42}'",
		Args:    arguments(1, "ID", "TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTaskID(args[0]); err != nil {
				return err
			}
			if err := checkUTF8("--key", key); err != nil {
				return err
			}
			msg, err := a.message(cmd, args[1:], data, files)
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.bounded(cmd)
			defer cancel()
			resp, err := c.tasks.Reply(ctx, connect.NewRequest(&shoalv1.ReplyRequest{Id: args[0], Message: msg, RequestId: key}))
			if err != nil {
				return apiError(ctx, err)
			}
			a.printState(resp.Msg.GetTask())
			return nil
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&data, "data", "", "a JSON value as a part")
	f.StringArrayVar(&files, "file", nil, "a file of at most 64 KiB as a part; may be repeated")
	f.StringVar(&key, "key", "", "idempotency key: the same key answers once")
	return c
}
