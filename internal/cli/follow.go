package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// eventJSON is one event of --stream and watch. Exactly one of status, artifact, chunk
// and task is there; only status and artifact have a cursor.
type eventJSON struct {
	Cursor   uint64          `json:"cursor,omitempty"`
	At       string          `json:"at,omitempty"`
	Status   json.RawMessage `json:"status,omitempty"`
	Artifact json.RawMessage `json:"artifact,omitempty"`
	Chunk    *chunkJSON      `json:"chunk,omitempty"`
	Task     *taskJSON       `json:"task,omitempty"`
}

type chunkJSON struct {
	ArtifactID string `json:"artifact_id"`
	Offset     int64  `json:"offset"`
	Text       string `json:"text"`
}

func eventOf(ev *shoalv1.WatchResponse) (eventJSON, bool) {
	out := eventJSON{Cursor: ev.GetCursor(), At: stamp(ev.GetAt())}
	switch e := ev.GetEvent().(type) {
	case *shoalv1.WatchResponse_Status:
		out.Status = protoJSON(e.Status)
	case *shoalv1.WatchResponse_Artifact:
		out.Artifact = protoJSON(e.Artifact)
	case *shoalv1.WatchResponse_Chunk:
		out.Chunk = &chunkJSON{e.Chunk.GetArtifactId(), e.Chunk.GetOffset(), e.Chunk.GetText()}
	case *shoalv1.WatchResponse_Task:
		out.Task = taskPointer(e.Task)
	default:
		return out, false // a heartbeat, or an event of a later version
	}
	return out, true
}

// follow prints a task's events after a cursor until it ended or, unless all is set,
// needs an answer. It ends as outcome says.
func (a *app) follow(cmd *cobra.Command, c *client, ref taskRef, after uint64, all bool) error {
	ctx, cancel := a.unbounded(cmd)
	defer cancel()
	stream, err := c.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: ref.id, Requester: ref.requester, Role: ref.role, After: after}))
	if err != nil {
		return a.goesOn(apiError(ctx, err), ref.id)
	}
	defer hangUp(cancel, stream)

	v := newViewer(a, all)
	for stream.Receive() {
		ev := stream.Msg()
		if a.asJSON() {
			if out, ok := eventOf(ev); ok {
				a.printJSON(out)
			}
		} else {
			v.show(ev)
		}
		if a.outErr != nil {
			return a.outErr
		}
		if r := ev.GetTask(); r != nil {
			v.end(r)
			return outcome(r)
		}
		if s := ev.GetStatus().GetState(); interrupted(s) && !all && v.upToDate(ctx, c, ref, ev.GetCursor()) {
			v.end(v.record)
			return outcome(v.record)
		}
	}
	v.newline()
	if err := stream.Err(); err != nil {
		return a.goesOn(apiError(ctx, err), ref.id)
	}
	return shoal.NewError(shoal.Unavailable, "stream_ended", "the daemon ended the stream before the task did", "it goes on: `shoal task watch "+ref.id+"`")
}

// goesOn tells of a time-out or ctrl-C that the task is not over with the command.
func (a *app) goesOn(err error, id string) error {
	e := shoal.AsError(err)
	if e.Kind == shoal.Timeout || errors.Is(e, errInterrupted) {
		return shoal.NewError(e.Kind, e.Reason, e.Msg, "the task goes on: `shoal task wait "+id+"`")
	}
	return err
}

// viewer shows events to a person: text as it comes, without repeating.
type viewer struct {
	app       *app
	all       bool // show states, too
	answers   map[string]*answer
	midLine   bool
	lastState a2apb.TaskState
	record    *shoalv1.TaskRecord
	now       func() time.Time
}

func newViewer(a *app, all bool) *viewer {
	return &viewer{app: a, all: all, answers: map[string]*answer{}, now: time.Now}
}

// upToDate tells whether the interruption at cursor is still how the task stands: a
// replayed question may have been answered long ago.
func (v *viewer) upToDate(ctx context.Context, c *client, ref taskRef, cursor uint64) bool {
	resp, err := c.tasks.Get(ctx, connect.NewRequest(&shoalv1.GetRequest{Id: ref.id, Requester: ref.requester, Role: ref.role}))
	if err != nil {
		return false
	}
	v.record = resp.Msg.GetTask()
	return interrupted(v.record.GetTask().GetStatus().GetState()) && v.record.GetCursor() <= cursor
}

func (v *viewer) show(ev *shoalv1.WatchResponse) {
	switch e := ev.GetEvent().(type) {
	case *shoalv1.WatchResponse_Chunk:
		v.write(v.answer(e.Chunk.GetArtifactId()).chunk(e.Chunk.GetOffset(), e.Chunk.GetText()))
	case *shoalv1.WatchResponse_Artifact:
		v.artifact(e.Artifact)
	case *shoalv1.WatchResponse_Status:
		v.status(e.Status)
	}
}

func (v *viewer) answer(id string) *answer {
	if v.answers[id] == nil {
		v.answers[id] = &answer{}
	}
	return v.answers[id]
}

func (v *viewer) write(text string) {
	if text == "" {
		return
	}
	v.app.print(escapeText(text))
	v.midLine = !strings.HasSuffix(text, "\n")
}

func (v *viewer) newline() {
	if v.midLine {
		v.app.print("\n")
		v.midLine = false
	}
}

// artifact prints what of a durable artifact was not streamed.
func (v *viewer) artifact(art *a2apb.Artifact) {
	text := partsText(art.GetParts())
	rest, differs := v.answer(art.GetArtifactId()).finish(text)
	if differs {
		v.newline()
		v.app.note("the answer was replaced:")
	}
	v.write(rest)
	if other := otherParts(art.GetParts()); other != "" {
		v.newline()
		v.app.print(other)
	}
}

func (v *viewer) status(s *a2apb.TaskStatus) {
	state := s.GetState()
	if state == v.lastState && s.GetMessage() == nil {
		return
	}
	v.lastState = state
	switch {
	case v.all:
		v.newline()
		line := clock(s.GetTimestamp(), v.now()) + "  " + stateWord(state)
		if text := messageText(s.GetMessage()); text != "" {
			line += "  " + escapeLine(clip(text, 2000))
		}
		v.app.print(line + "\n")
	case state == a2apb.TaskState_TASK_STATE_WORKING && s.GetMessage() != nil && isTerminal(v.app.err):
		v.newline()
		v.app.note("… %s", escapeLine(clip(messageText(s.GetMessage()), 2000)))
	}
}

// end closes what was shown with one line about the whole task.
func (v *viewer) end(r *shoalv1.TaskRecord) {
	if v.app.asJSON() {
		if v.record != nil {
			v.app.printJSON(eventJSON{Task: taskPointer(r)})
		}
		return
	}
	for _, art := range r.GetTask().GetArtifacts() { // what no event brought
		if seen := v.answers[art.GetArtifactId()]; seen == nil || !seen.done {
			v.artifact(art)
		}
	}
	v.newline()
	v.app.conclude(r)
}

// conclude prints on stderr how a task stands and, if it is our turn, what to do.
func (a *app) conclude(r *shoalv1.TaskRecord) {
	t := r.GetTask()
	state := t.GetStatus().GetState()
	if interrupted(state) {
		if q := messageText(t.GetStatus().GetMessage()); q != "" {
			a.print(escapeText(strings.TrimRight(q, "\n")) + "\n")
		}
		a.note("task %s is %s: answer with `shoal task reply %s TEXT`", escapeLine(t.GetId()), stateWord(state), escapeLine(t.GetId()))
		return
	}
	if state == a2apb.TaskState_TASK_STATE_COMPLETED {
		a.note("task %s %s in %s by %s", escapeLine(t.GetId()), stateWord(state), span(r.GetTookMs()), escapeLine(r.GetTo()))
	}
}

// printOutcome prints the result of a task that was waited for.
func (a *app) printOutcome(r *shoalv1.TaskRecord, sent *shoalv1.SendResponse) {
	if a.asJSON() {
		t := taskOf(r)
		if sent != nil {
			created := sent.GetCreated()
			t.Created = &created
		}
		a.printJSON(t)
		return
	}
	for _, art := range r.GetTask().GetArtifacts() {
		if text := partsText(art.GetParts()); text != "" {
			a.print(escapeText(strings.TrimRight(text, "\n")) + "\n")
		}
		a.print(otherParts(art.GetParts()))
	}
	if settled(r.GetTask().GetStatus().GetState()) {
		a.conclude(r)
	}
}

// otherParts describes what is not text, one line each.
func otherParts(parts []*a2apb.Part) string {
	var b strings.Builder
	for _, p := range parts {
		switch c := p.GetContent().(type) {
		case *a2apb.Part_Data:
			fmt.Fprintf(&b, "%s\n", escapeJSON(protoJSON(c.Data)))
		case *a2apb.Part_Raw:
			fmt.Fprintf(&b, "[file %s %s %s: -o json holds it]\n", escapeLine(orDash(p.GetFilename())), escapeLine(orDash(p.GetMediaType())), size(uint64(len(c.Raw))))
		case *a2apb.Part_Url:
			fmt.Fprintf(&b, "[link %s]\n", escapeLine(c.Url))
		}
	}
	return b.String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
