package cli

import (
	"encoding/json"
	"strings"

	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

func (a *app) taskCommand() *cobra.Command {
	return a.group("task", "Hand work to agents and follow it",
		"  shoal task send --skill summarize \"…\" --wait\n  shoal task list --state working\n  shoal task watch ID",
		a.taskSend(), a.taskGet(), a.taskList(), a.taskWait(), a.taskWatch(),
		a.taskCancel(), a.taskReply(), a.taskReceipt())
}

// taskJSON is a task as every task command prints it. State is spelled as in A2A 1.0,
// artifacts, message and history are A2A's with snake_case names.
type taskJSON struct {
	ID        string            `json:"id"`
	ContextID string            `json:"context_id"`
	State     string            `json:"state"`
	From      string            `json:"from"`
	To        string            `json:"to"`
	Skill     string            `json:"skill,omitempty"`
	Role      string            `json:"role,omitempty"`
	Class     string            `json:"class,omitempty"`
	Attempt   uint32            `json:"attempt,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Delivery  string            `json:"delivery,omitempty"`
	Message   json.RawMessage   `json:"message,omitempty"`
	Artifacts []json.RawMessage `json:"artifacts"`
	History   []json.RawMessage `json:"history,omitempty"`
	CreatedAt string            `json:"created_at,omitempty"`
	UpdatedAt string            `json:"updated_at,omitempty"`
	TookMS    float64           `json:"took_ms"`
	Cursor    uint64            `json:"cursor,omitempty"`
	Created   *bool             `json:"created,omitempty"`
}

func taskOf(r *shoalv1.TaskRecord) taskJSON {
	t := r.GetTask()
	out := taskJSON{
		ID: t.GetId(), ContextID: t.GetContextId(), State: t.GetStatus().GetState().String(), From: r.GetFrom(), To: r.GetTo(),
		Skill: r.GetSkill(), Role: roleWord(r.GetRole()), Class: classWord(r.GetClass()), Attempt: r.GetAttempt(),
		Reason: r.GetReason(), Delivery: r.GetDelivery(), Message: protoJSON(t.GetStatus().GetMessage()),
		Artifacts: []json.RawMessage{}, CreatedAt: stamp(r.GetCreatedAt()), UpdatedAt: stamp(r.GetUpdatedAt()),
		TookMS: r.GetTookMs(), Cursor: r.GetCursor(),
	}
	for _, art := range t.GetArtifacts() {
		out.Artifacts = append(out.Artifacts, protoJSON(art))
	}
	for _, m := range t.GetHistory() {
		out.History = append(out.History, protoJSON(m))
	}
	return out
}

func roleWord(r shoalv1.TaskRole) string {
	switch r {
	case shoalv1.TaskRole_TASK_ROLE_ASKED:
		return "asked"
	case shoalv1.TaskRole_TASK_ROLE_DOING:
		return "doing"
	default:
		return ""
	}
}

func parseRole(s string) shoalv1.TaskRole {
	switch s {
	case "asked":
		return shoalv1.TaskRole_TASK_ROLE_ASKED
	case "doing":
		return shoalv1.TaskRole_TASK_ROLE_DOING
	default:
		return shoalv1.TaskRole_TASK_ROLE_UNSPECIFIED
	}
}

func classWord(c shoalv1.TaskClass) string {
	if c == shoalv1.TaskClass_TASK_CLASS_LIVE {
		return "live"
	}
	return "durable"
}

// stateWord is a state for people: COMPLETED for TASK_STATE_COMPLETED.
func stateWord(s a2apb.TaskState) string {
	return trimState(s.String())
}

func trimState(s string) string { return strings.TrimPrefix(s, "TASK_STATE_") }

// parseState accepts COMPLETED, completed, input-required or TASK_STATE_COMPLETED.
func parseState(s string) (a2apb.TaskState, error) {
	word := strings.ReplaceAll(strings.ToUpper(s), "-", "_")
	word = strings.TrimPrefix(word, "TASK_STATE_")
	if v, ok := a2apb.TaskState_value["TASK_STATE_"+word]; ok && v != 0 {
		return a2apb.TaskState(v), nil
	}
	var words []string
	for v := int32(1); a2apb.TaskState_name[v] != ""; v++ {
		words = append(words, stateWord(a2apb.TaskState(v)))
	}
	return 0, usage(didYouMean(nearest(word, words))+"use one of "+strings.Join(words, ", "), "--state %q is no state", clip(s, 40))
}

func terminal(s a2apb.TaskState) bool {
	switch s {
	case a2apb.TaskState_TASK_STATE_COMPLETED, a2apb.TaskState_TASK_STATE_FAILED,
		a2apb.TaskState_TASK_STATE_CANCELED, a2apb.TaskState_TASK_STATE_REJECTED:
		return true
	default:
		return false
	}
}

func interrupted(s a2apb.TaskState) bool {
	return s == a2apb.TaskState_TASK_STATE_INPUT_REQUIRED || s == a2apb.TaskState_TASK_STATE_AUTH_REQUIRED
}

// settled tells that a task needs no more waiting: it ended, or it is our turn.
func settled(s a2apb.TaskState) bool { return terminal(s) || interrupted(s) }

// outcome is how a command that waited for r ends.
func outcome(r *shoalv1.TaskRecord) error {
	id, why := r.GetTask().GetId(), r.GetReason()
	msg := "task " + id + " ended " + stateWord(r.GetTask().GetStatus().GetState())
	if text := messageText(r.GetTask().GetStatus().GetMessage()); text != "" {
		msg += ": " + clip(text, 2000)
	}
	reason := func(fallback string) string {
		if why != "" {
			return why
		}
		return fallback
	}
	switch s := r.GetTask().GetStatus().GetState(); {
	case s == a2apb.TaskState_TASK_STATE_COMPLETED || interrupted(s):
		return nil
	case s == a2apb.TaskState_TASK_STATE_FAILED:
		return shoal.NewError(shoal.Internal, reason("failed"), msg, "see `shoal task get "+id+"`")
	case s == a2apb.TaskState_TASK_STATE_CANCELED:
		return shoal.NewError(shoal.Internal, reason("canceled"), msg, "")
	case s == a2apb.TaskState_TASK_STATE_REJECTED:
		return shoal.NewError(shoal.Denied, reason("rejected"), msg, "ask another agent, see `shoal find`")
	default:
		return shoal.NewError(shoal.Timeout, "wait_timeout", "task "+id+" is still "+stateWord(s),
			"it goes on: `shoal task wait "+id+"`")
	}
}

// messageText joins the text parts of a message.
func messageText(m *a2apb.Message) string { return partsText(m.GetParts()) }

func partsText(parts []*a2apb.Part) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.GetText())
	}
	return b.String()
}
