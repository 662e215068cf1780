package shoal

import (
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
)

// TaskKey names a task everywhere: the asker makes the id, so two askers may use the
// same id without meaning the same task.
type TaskKey struct {
	Requester AgentID
	ID        a2a.TaskID
}

// Class says how a task is kept (docs/design/0004-two-classes.md).
type Class uint8

const (
	// Durable tasks have every state on disk on both sides before it is acknowledged.
	Durable Class = iota
	// Live tasks ride one direct stream and are committed after the answer.
	Live
)

// String returns "durable" or "live".
func (c Class) String() string {
	if c == Live {
		return "live"
	}
	return "durable"
}

// Assignment is one attempt at a task, handed to a worker. Message and History are
// not to be changed by the receiver.
type Assignment struct {
	Key       TaskKey
	Agent     AgentID // who is to do it
	ContextID string
	Skill     string
	Attempt   int // 1 for the first
	Class     Class
	Message   *a2a.Message
	History   []*a2a.Message // earlier turns, oldest first
	Deadline  time.Time      // when the engine fails it; zero means none
}

// Report is what a worker says about its assignment: artifacts and then a state, both
// durable in one step, or a chunk.
type Report struct {
	Key     TaskKey
	Agent   AgentID
	Attempt int

	State   a2a.TaskState // a new state, with Message if there is one
	Message *a2a.Message

	Artifacts []*a2a.Artifact // whole artifacts; each replaces one with the same id

	Chunk *Chunk // a piece of text that may be lost; the durable artifact holds all
}

// Chunk is a piece of a streamed artifact. Offset counts the bytes of the artifact's
// text before it, so a reader can join pieces from two sources.
type Chunk struct {
	ArtifactID string
	Offset     int64
	Text       string
}

// Receipt says what was asked, delivered and when. Hashes are SHA-256 over the bytes
// as they were carried (spec/records.md §5). The doer signs it, the asker countersigns.
type Receipt struct {
	Network    string
	Key        TaskKey
	Doer       AgentID
	Skill      string
	InputHash  [32]byte
	OutputHash [32]byte
	State      a2a.TaskState // terminal
	Attempt    int
	Class      Class
	Submitted  time.Time // when the doer accepted it
	Started    time.Time // zero if it never started
	Finished   time.Time
	Price      Amount
}
