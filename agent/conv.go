package agent

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// pbTask converts what of a task is given. The SDK converts whole tasks only, so its
// parts ride in one.
func pbTask(t a2a.Task) (*a2apb.Task, error) {
	for _, m := range t.History {
		if err := checkParts(m.Parts); err != nil {
			return nil, err
		}
	}
	for _, a := range t.Artifacts {
		if err := checkParts(a.Parts); err != nil {
			return nil, err
		}
	}
	pb, err := pbconv.ToProtoTask(&t)
	if err != nil {
		return nil, badMessage(err.Error())
	}
	return pb, nil
}

func pbMessage(m *a2a.Message) (*a2apb.Message, error) {
	pb, err := pbTask(a2a.Task{History: []*a2a.Message{m}})
	if err != nil {
		return nil, err
	}
	return pb.GetHistory()[0], nil
}

// checkParts refuses what the SDK's conversion would panic on or say too little about.
func checkParts(parts []*a2a.Part) error {
	for i, p := range parts {
		if p == nil || p.Content == nil {
			return badMessage(fmt.Sprintf("part %d is empty", i))
		}
		if text, ok := p.Content.(a2a.Text); ok && !utf8.ValidString(string(text)) {
			return badMessage(fmt.Sprintf("part %d is not valid UTF-8", i))
		}
	}
	return nil
}

func badMessage(msg string) *shoal.Error {
	return shoal.NewError(shoal.Invalid, "bad_message", msg,
		"parts are text in UTF-8, raw bytes, a URL, or a JSON object")
}

func fromStatus(pb *a2apb.TaskStatus) (a2a.TaskStatus, error) {
	t, err := pbconv.FromProtoTask(&a2apb.Task{Id: "-", ContextId: "-", Status: pb})
	if err != nil {
		return a2a.TaskStatus{}, badAnswer(err)
	}
	return t.Status, nil
}

func fromArtifacts(pbs []*a2apb.Artifact) ([]*a2a.Artifact, error) {
	t, err := pbconv.FromProtoTask(&a2apb.Task{
		Id: "-", ContextId: "-", Status: &a2apb.TaskStatus{}, Artifacts: pbs,
	})
	if err != nil {
		return nil, badAnswer(err)
	}
	return t.Artifacts, nil
}

func fromMessages(pbs []*a2apb.Message) ([]*a2a.Message, error) {
	out := make([]*a2a.Message, 0, len(pbs))
	for _, pb := range pbs {
		m, err := pbconv.FromProtoMessage(pb)
		if err != nil {
			return nil, badAnswer(err)
		}
		if m != nil {
			out = append(out, m)
		}
	}
	return out, nil
}

func badAnswer(err error) *shoal.Error {
	return shoal.NewError(shoal.Corrupt, "bad_answer", "the daemon sent something malformed",
		"are agent and daemon of the same version?").Because(err)
}

func fromTime(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return ts.AsTime()
}

func pbSkills(skills []shoal.Skill) []*shoalv1.Skill {
	out := make([]*shoalv1.Skill, len(skills))
	for i, s := range skills {
		out[i] = &shoalv1.Skill{
			Id: s.ID, Name: s.Name, Description: s.Description,
			Tags: s.Tags, Examples: s.Examples, Idempotent: s.Idempotent,
		}
	}
	return out
}

// partsText joins the text parts, one after another with a newline between.
func partsText(parts []*a2a.Part) string {
	var texts []string
	for _, p := range parts {
		if p == nil {
			continue
		}
		if t, ok := p.Content.(a2a.Text); ok {
			texts = append(texts, string(t))
		}
	}
	return strings.Join(texts, "\n")
}

func messageText(m *a2a.Message) string {
	if m == nil {
		return ""
	}
	return partsText(m.Parts)
}

func interrupted(s a2a.TaskState) bool {
	return s == a2a.TaskStateInputRequired || s == a2a.TaskStateAuthRequired
}
