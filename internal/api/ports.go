package api

import (
	"context"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/directory"
	"github.com/shoalmesh/shoal/internal/task"
	"github.com/shoalmesh/shoal/internal/worker"
)

// What the API needs of the services behind it. All methods are called concurrently,
// with arguments that have been checked; their errors are passed on as they are.

// Node is the daemon, as NodeService shows it.
type Node interface {
	Status(ctx context.Context) (Status, error)
	Peers(ctx context.Context) ([]Peer, error)
	// Ping measures a round trip; an Unavailable or Timeout error means unreachable.
	Ping(ctx context.Context, node shoal.NodeID) (path string, rtt time.Duration, err error)
	Invite(ctx context.Context) (link string, err error)
	// Join connects to the nodes that an invite link or a multiaddr names, now and
	// after restarts, and returns those that answered.
	Join(ctx context.Context, target string) ([]shoal.NodeID, error)
}

// Admin is what stops, copies and reads the daemon.
type Admin interface {
	// Shutdown begins to stop the daemon and returns at once.
	Shutdown(ctx context.Context) error
	// Backup writes a copy to path, which must not exist, and returns its size.
	Backup(ctx context.Context, path string) (bytes int64, err error)
	// Logs emits the last tail lines; with follow also those that come, until ctx ends
	// or emit fails.
	Logs(ctx context.Context, tail int, follow bool, emit func(line string) error) error
}

// Agents are the agents hosted here.
type Agents interface {
	// Lookup returns the hosted agent with that DID or name; "" is the node's own. Its
	// unknown_agent error names the nearest.
	Lookup(nameOrDID string) (shoal.AgentID, error)
	Agents() []worker.AgentInfo
	Remove(ctx context.Context, id shoal.AgentID) error
}

// Directory knows the agents of the mesh.
type Directory interface {
	Resolve(ctx context.Context, id shoal.AgentID, fresh bool) (directory.Card, error)
	Find(ctx context.Context, q directory.Query) ([]directory.Card, error)
	// Refresh publishes the card of a hosted agent again, "" for all.
	Refresh(ctx context.Context, id shoal.AgentID) (published int, err error)
	Host(ctx context.Context, id shoal.AgentID) (shoal.NodeID, error)
	// Knows returns what is known without asking anybody.
	Knows(id shoal.AgentID) (directory.Card, bool)
}

// Tasks starts tasks and follows them; [task.Engine] is one.
type Tasks interface {
	Submit(ctx context.Context, req task.Request) (t task.Task, created bool, err error)
	Get(ctx context.Context, ref task.Ref) (task.Task, error)
	List(ctx context.Context, f task.Filter) (tasks []task.Task, next string, err error)
	Watch(ctx context.Context, ref task.Ref, after uint64, emit func(task.Event) error) error
	Wait(ctx context.Context, ref task.Ref) (task.Task, error)
}

// Steps are what the asker can do to a task, and its proof; [task.Engine] is one.
type Steps interface {
	Cancel(ctx context.Context, ref task.Ref) (task.Task, error)
	Reply(ctx context.Context, ref task.Ref, msg *a2a.Message, requestID string) (task.Task, error)
	Receipt(ctx context.Context, ref task.Ref) (task.SignedReceipt, error)
}

// Workers is where programs attach to do an agent's work; [PoolWorkers] makes one.
type Workers interface {
	// Attach checks the spec, and is the only judge of it.
	Attach(ctx context.Context, spec worker.AttachSpec) (Session, error)
	// Report passes on what a worker says of a task that its session holds; else it
	// returns a Denied error with reason not_assigned.
	Report(ctx context.Context, session string, r shoal.Report) (n uint64, err error)
	Heartbeat(session string) error
}

// Session is one attached worker; [worker.Session] is one.
type Session interface {
	ID() string
	Agent() shoal.AgentSpec
	// Next waits for the next event; its error ends the attachment.
	Next(ctx context.Context) (worker.Event, error)
	// Close detaches the worker. It may be called twice.
	Close()
}

// PoolWorkers returns pool as [Workers].
func PoolWorkers(pool *worker.Pool) Workers { return poolWorkers{pool} }

type poolWorkers struct{ *worker.Pool }

func (p poolWorkers) Attach(ctx context.Context, spec worker.AttachSpec) (Session, error) {
	s, err := p.Pool.Attach(ctx, spec)
	if err != nil {
		return nil, err // not a typed nil
	}
	return s, nil
}

// Mail carries letters: opaque durable envelopes of topic "shoal.letter".
type Mail interface {
	// Post stores letters, in order and in as few transactions as it can. Each has its
	// own outcome in the slice that is returned, which is as long as letters.
	Post(ctx context.Context, letters []Letter) []Posted
	// Inbox returns at most limit letters after the cursor, oldest first.
	Inbox(ctx context.Context, agent shoal.AgentID, after uint64, limit int) ([]Received, error)
	Ack(ctx context.Context, agent shoal.AgentID, cursors []uint64) error
	DeadLetters(ctx context.Context, after string, limit int) (letters []DeadLetter, next string, err error)
}

// Status is the daemon's state.
type Status struct {
	Agent         shoal.AgentID
	Node          shoal.NodeID
	Network       string
	Addrs         []string // full multiaddrs with /p2p/
	HTTP, Socket  string
	Home          string
	State         string   // "alone", "connected" or "degraded"
	Problems      []string // why degraded, each with what to do
	Peers, Agents int
	Outbox        int // envelopes on their way
	DeadLetters   int
	TasksOpen     int
	Started       time.Time
	RSS           uint64 // bytes
}

// Peer is a connected node.
type Peer struct {
	ID        shoal.NodeID
	Addr      string
	Direction string // "in" or "out"
	Path      string // "quic", "tcp", "ws" or "relay"
	RTT       time.Duration
}

// Letter is a letter to be posted.
type Letter struct {
	From, To shoal.AgentID
	Body     []byte
	TTL      time.Duration // 0: mail's default
	// Done is called once after the letter was stored, when it is "delivered",
	// "expired" or "refused" (then with a reason code). It does not block.
	Done func(state, reason string)
}

// Posted is what became of a letter: stored under ID, or Err.
type Posted struct {
	ID  string
	Err error
}

// Received is a letter in an inbox.
type Received struct {
	Cursor            uint64
	ID                string
	From, To          shoal.AgentID
	Body              []byte
	Created, Received time.Time
}

// DeadLetter is an envelope that was given up.
type DeadLetter struct {
	ID            string
	From, To      shoal.AgentID
	Topic         string
	Seq           uint64
	Reason        string
	Created, Dead time.Time
}
