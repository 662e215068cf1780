package task

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/a2aproject/a2a-go/v2/a2apb/v1/pbconv"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
)

// Messages, statuses and artifacts are kept and hashed as the bytes that were carried
// (lf.a2a.v1 protobuf); they are decoded only to be shown.

var deterministic = proto.MarshalOptions{Deterministic: true}

// encodeMessage returns the wire bytes of m.
func encodeMessage(m *a2a.Message) ([]byte, error) {
	resp, err := pbconv.ToProtoSendMessageResponse(m)
	if err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	return deterministic.Marshal(resp.GetMessage())
}

func decodeMessage(raw []byte) (*a2a.Message, error) {
	var pb a2apb.Message
	if err := proto.Unmarshal(raw, &pb); err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	m, err := pbconv.FromProtoMessage(&pb)
	if err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	if len(m.Parts) == 0 {
		return nil, ErrBadMessage
	}
	return m, nil
}

func encodeArtifact(a *a2a.Artifact) ([]byte, error) {
	// The SDK converts artifacts only inside an update event; its ids are not used here.
	resp, err := pbconv.ToProtoStreamResponse(&a2a.TaskArtifactUpdateEvent{TaskID: "-", ContextID: "-", Artifact: a})
	if err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	return deterministic.Marshal(resp.GetArtifactUpdate().GetArtifact())
}

func decodeArtifact(raw []byte) (*a2a.Artifact, error) {
	var pb a2apb.Artifact
	if err := proto.Unmarshal(raw, &pb); err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	ev, err := pbconv.FromProtoStreamResponse(&a2apb.StreamResponse{Payload: &a2apb.StreamResponse_ArtifactUpdate{
		ArtifactUpdate: &a2apb.TaskArtifactUpdateEvent{TaskId: "-", ContextId: "-", Artifact: &pb},
	}})
	if err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	up, ok := ev.(*a2a.TaskArtifactUpdateEvent)
	if !ok || up.Artifact == nil || up.Artifact.ID == "" {
		return nil, ErrBadMessage.With("an artifact needs an id")
	}
	return up.Artifact, nil
}

// encodeStatus builds the wire bytes of a status; msg may be nil.
func encodeStatus(state a2a.TaskState, msg *a2a.Message, at time.Time) ([]byte, error) {
	pb := &a2apb.TaskStatus{State: stateToPB(state), Timestamp: timestamppb.New(at.Truncate(time.Millisecond))}
	if msg != nil {
		resp, err := pbconv.ToProtoSendMessageResponse(msg)
		if err != nil {
			return nil, ErrBadMessage.Because(err)
		}
		pb.Message = resp.GetMessage()
	}
	return deterministic.Marshal(pb)
}

// status is a decoded TaskStatus.
type status struct {
	state a2a.TaskState
	msg   *a2a.Message
	at    time.Time
}

func decodeStatus(raw []byte) (status, error) {
	var pb a2apb.TaskStatus
	if err := proto.Unmarshal(raw, &pb); err != nil {
		return status{}, ErrBadMessage.Because(err)
	}
	s := status{state: stateFromPB(pb.GetState()), at: pb.GetTimestamp().AsTime()}
	if s.state == a2a.TaskStateUnspecified {
		return status{}, ErrBadMessage.With("unknown task state %d", pb.GetState())
	}
	if pb.GetMessage() != nil {
		m, err := pbconv.FromProtoMessage(pb.GetMessage())
		if err != nil {
			return status{}, ErrBadMessage.Because(err)
		}
		s.msg = m
	}
	return s, nil
}

func stateToPB(s a2a.TaskState) a2apb.TaskState {
	return a2apb.TaskState(a2apb.TaskState_value[string(s)])
}

func stateFromPB(s a2apb.TaskState) a2a.TaskState {
	name, ok := a2apb.TaskState_name[int32(s)]
	if !ok || s == a2apb.TaskState_TASK_STATE_UNSPECIFIED {
		return a2a.TaskStateUnspecified
	}
	return a2a.TaskState(name)
}

// encodeMail builds an envelope's body.
func encodeMail(m *wire.TaskMail) []byte {
	raw, err := deterministic.Marshal(m)
	if err != nil {
		panic("task: marshal of our own message: " + err.Error()) // only invalid UTF-8, checked at the edge
	}
	return raw
}

// outputHash is SHA-256 over the artifacts in order of first appearance and the final
// status, as carried: u32be(len) || bytes for each artifact, then ff ff ff ff, then
// u32be(len) || bytes of the status (spec/records.md §5).
func outputHash(artifacts [][]byte, finalStatus []byte) [32]byte {
	h := sha256.New()
	put := func(b []byte) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	for _, a := range artifacts {
		put(a)
	}
	h.Write([]byte{0xff, 0xff, 0xff, 0xff})
	put(finalStatus)
	return [32]byte(h.Sum(nil))
}

// requestHash fingerprints a request, so that an idempotency key used for something
// else is noticed. Ids that are made anew for each call do not count.
func requestHash(to shoal.AgentID, skill string, message []byte) ([]byte, error) {
	var pb a2apb.Message
	if err := proto.Unmarshal(message, &pb); err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	pb.MessageId, pb.ContextId, pb.TaskId = "", "", ""
	raw, err := deterministic.Marshal(&pb)
	if err != nil {
		return nil, ErrBadMessage.Because(err)
	}
	sum := sha256.Sum256([]byte(string(to) + "\x00" + skill + "\x00" + string(raw)))
	return sum[:], nil
}

// artifactID reads an artifact's id without decoding the rest.
func artifactID(raw []byte) string {
	var pb a2apb.Artifact
	if proto.Unmarshal(raw, &pb) != nil {
		return ""
	}
	return pb.GetArtifactId()
}

func stateNumber(n int32) a2apb.TaskState { return a2apb.TaskState(n) }

func taskID(s string) a2a.TaskID { return a2a.TaskID(s) }
