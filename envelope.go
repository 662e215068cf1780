package shoal

import "time"

// Limits of an envelope (spec/wire.md §3).
const (
	MaxBody  = 256 << 10 // bytes of an envelope's body
	MaxTopic = 64        // bytes of a topic
)

// Envelope is a signed, addressed, durable unit from agent to agent. Its body is
// opaque to whoever carries it.
//
// Order is kept per flow, the triple (From, To, Topic): within one Epoch, Seq counts
// 1, 2, 3 … without gaps. SkipFrom > 0 marks a skip: it carries no body and says that
// the sequence numbers SkipFrom…Seq will never be delivered (they expired, or were
// lost with the sender's disk).
type Envelope struct {
	ID       [16]byte // UUIDv7, made by the sender
	Network  string   // the mesh it belongs to; another mesh refuses it
	From, To AgentID
	Topic    string // which service reads it, such as "shoal.task"
	Epoch    uint64 // random per database, only ever grows; renewed on restore
	Seq      uint64
	SkipFrom uint64
	Created  time.Time // ms precision
	Expires  time.Time // ms precision; not delivered after it
	Body     []byte    // at most MaxBody bytes
}
