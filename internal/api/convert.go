package api

import (
	"fmt"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/task"
)

// Decoding: what a client sent becomes A2A's Go types, checked.

func taskID(s string) a2a.TaskID { return a2a.TaskID(s) }

// decodeMessage checks and converts a message. Its id is made if there is none; a
// missing role becomes role. pb is changed.
func decodeMessage(field string, pb *a2apb.Message, role a2apb.Role) (*a2a.Message, error) {
	if pb == nil {
		return nil, missing(field, `give a message with parts, such as {"parts":[{"text":"hello"}]}`)
	}
	if pb.GetRole() == a2apb.Role_ROLE_UNSPECIFIED {
		pb.Role = role
	}
	if pb.GetRole() != a2apb.Role_ROLE_USER && pb.GetRole() != a2apb.Role_ROLE_AGENT {
		return nil, badEnum(field+".role", int32(pb.GetRole()), "ROLE_USER or ROLE_AGENT")
	}
	if pb.GetMessageId() == "" {
		pb.MessageId = a2a.NewMessageID()
	}
	ids := append([]string{pb.GetMessageId(), pb.GetContextId(), pb.GetTaskId()}, pb.GetReferenceTaskIds()...)
	if err := checkIDs(field, ids, pb.GetExtensions()); err != nil {
		return nil, err
	}
	if err := checkMetadata(field+".metadata", pb.GetMetadata()); err != nil {
		return nil, err
	}
	if err := checkParts(field, pb.GetParts()); err != nil {
		return nil, err
	}
	m, err := pbconv.FromProtoMessage(pb)
	if err != nil {
		return nil, errBadRequest.Because(err)
	}
	return m, nil
}

// decodeArtifact checks and converts an artifact; its id is made if there is none.
func decodeArtifact(field string, pb *a2apb.Artifact) (*a2a.Artifact, error) {
	if pb.GetArtifactId() == "" {
		pb.ArtifactId = string(a2a.NewArtifactID())
	}
	if err := checkIDs(field, []string{pb.GetArtifactId()}, pb.GetExtensions()); err != nil {
		return nil, err
	}
	if err := checkWord(field+".name", pb.GetName(), 2*maxIDLen, true); err != nil {
		return nil, err
	}
	if err := checkProse(field+".description", pb.GetDescription()); err != nil {
		return nil, err
	}
	if err := checkMetadata(field+".metadata", pb.GetMetadata()); err != nil {
		return nil, err
	}
	if err := checkParts(field, pb.GetParts()); err != nil {
		return nil, err
	}
	ev, err := pbconv.FromProtoStreamResponse(&a2apb.StreamResponse{Payload: &a2apb.StreamResponse_ArtifactUpdate{
		ArtifactUpdate: &a2apb.TaskArtifactUpdateEvent{Artifact: pb},
	}})
	if err != nil {
		return nil, errBadRequest.Because(err)
	}
	return ev.(*a2a.TaskArtifactUpdateEvent).Artifact, nil
}

func checkIDs(field string, ids, extensions []string) error {
	if len(ids) > maxParts || len(extensions) > maxExtensions {
		return invalid("too_many", "at most 1024 ids and 32 extensions are allowed", "%s refers to too many things", field)
	}
	for _, id := range ids {
		if err := checkID(field+" id", id); err != nil {
			return err
		}
	}
	for _, ext := range extensions {
		if err := checkWord(field+".extensions", ext, maxText, false); err != nil {
			return err
		}
	}
	return nil
}

func checkParts(field string, parts []*a2apb.Part) error {
	if len(parts) == 0 {
		return missing(field+".parts", `give at least one part, such as {"text":"hello"}`)
	}
	if len(parts) > maxParts {
		return invalid("too_many", fmt.Sprintf("at most %d are allowed", maxParts), "%s has %d parts", field, len(parts))
	}
	for i, p := range parts {
		if err := checkPart(fmt.Sprintf("%s.parts[%d]", field, i), p); err != nil {
			return err
		}
	}
	return nil
}

func checkPart(field string, p *a2apb.Part) error {
	if err := checkWord(field+".filename", p.GetFilename(), 255, true); err != nil {
		return err
	}
	if err := checkWord(field+".media_type", p.GetMediaType(), 255, true); err != nil {
		return err
	}
	if err := checkMetadata(field+".metadata", p.GetMetadata()); err != nil {
		return err
	}
	switch c := p.GetContent().(type) {
	case *a2apb.Part_Text, *a2apb.Part_Raw:
		return nil
	case *a2apb.Part_Url:
		if c.Url == "" {
			return missing(field+".url", "give the address of the content")
		}
		return checkWord(field+".url", c.Url, 8<<10, false)
	case *a2apb.Part_Data:
		// The SDK's conversions know objects only: they would turn a list into {}.
		if _, ok := c.Data.GetKind().(*structpb.Value_StructValue); !ok {
			return invalid("data_not_object", `wrap it, such as {"data":{"items":[…]}}`, "%s.data is no JSON object", field)
		}
		if tooDeep(c.Data, maxDepth) {
			return tooDeepError(field + ".data")
		}
		return nil
	}
	return missing(field+" content", "a part has one of text, raw, data and url")
}

func checkMetadata(field string, m *structpb.Struct) error {
	if m == nil {
		return nil
	}
	if size := proto.Size(m); size > maxMetadata {
		return invalid("field_too_long", fmt.Sprintf("at most %d bytes are allowed; big content belongs into a part", maxMetadata),
			"%s has %d bytes", field, size)
	}
	if tooDeep(structpb.NewStructValue(m), maxDepth) {
		return tooDeepError(field)
	}
	return nil
}

func tooDeepError(field string) error {
	return invalid("nesting_too_deep", fmt.Sprintf("nest at most %d levels", maxDepth), "%s is nested too deeply", field)
}

// tooDeep reports whether v has more than levels levels of objects and lists. It looks
// no deeper than that, whatever the sender built.
func tooDeep(v *structpb.Value, levels int) bool {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		for _, f := range k.StructValue.GetFields() {
			if levels > 0 && tooDeep(f, levels-1) {
				return true
			}
		}
		return levels == 0
	case *structpb.Value_ListValue:
		for _, f := range k.ListValue.GetValues() {
			if levels > 0 && tooDeep(f, levels-1) {
				return true
			}
		}
		return levels == 0
	}
	return false
}

func stateOf(s a2apb.TaskState) (a2a.TaskState, error) {
	name, ok := a2apb.TaskState_name[int32(s)]
	if !ok {
		return "", badEnum("state", int32(s), "TASK_STATE_COMPLETED or another of the eight states")
	}
	if s == a2apb.TaskState_TASK_STATE_UNSPECIFIED {
		return a2a.TaskStateUnspecified, nil
	}
	return a2a.TaskState(name), nil
}

// Encoding: what a service returned becomes what is sent. It fails only for values that
// the services should not hold.

func encodeMessage(m *a2a.Message) (*a2apb.Message, error) {
	if m == nil {
		return nil, nil
	}
	resp, err := pbconv.ToProtoSendMessageResponse(m)
	return resp.GetMessage(), err
}

func encodeMessages(ms []*a2a.Message) ([]*a2apb.Message, error) {
	out := make([]*a2apb.Message, 0, len(ms))
	for _, m := range ms {
		pb, err := encodeMessage(m)
		if err != nil {
			return nil, err
		}
		out = append(out, pb)
	}
	return out, nil
}

func encodeArtifact(a *a2a.Artifact) (*a2apb.Artifact, error) {
	resp, err := pbconv.ToProtoStreamResponse(&a2a.TaskArtifactUpdateEvent{Artifact: a})
	return resp.GetArtifactUpdate().GetArtifact(), err
}

func encodeStatus(s *a2a.TaskStatus) (*a2apb.TaskStatus, error) {
	resp, err := pbconv.ToProtoStreamResponse(&a2a.TaskStatusUpdateEvent{Status: *s})
	return resp.GetStatusUpdate().GetStatus(), err
}

func encodeState(s a2a.TaskState) a2apb.TaskState {
	return a2apb.TaskState(a2apb.TaskState_value[string(s)])
}

func encodeTask(t task.Task) (*shoalv1.TaskRecord, error) {
	pb, err := pbconv.ToProtoTask(t.A2A())
	if err != nil {
		return nil, fmt.Errorf("encode task %s: %w", t.Key.ID, err)
	}
	out := &shoalv1.TaskRecord{
		Task: pb, From: string(t.Key.Requester), To: string(t.Doer), Skill: t.Skill,
		Role: shoalv1.TaskRole(t.Role), Class: encodeClass(t.Class), Attempt: uint32(max(t.Attempt, 0)),
		Reason: t.Reason, CreatedAt: stamp(t.Created), UpdatedAt: stamp(t.Updated),
		Delivery: t.Delivery, Cursor: t.Cursor,
	}
	if t.Terminal() && t.StatusAt.After(t.Created) {
		out.TookMs = float64(t.StatusAt.Sub(t.Created).Microseconds()) / 1e3
	}
	return out, nil
}

func encodeClass(c shoal.Class) shoalv1.TaskClass {
	if c == shoal.Live {
		return shoalv1.TaskClass_TASK_CLASS_LIVE
	}
	return shoalv1.TaskClass_TASK_CLASS_DURABLE
}

// stamp leaves the zero time out.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func millisOf(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func count[N int | int64](n N) uint32 {
	return uint32(min(max(n, 0), 1<<32-1))
}
