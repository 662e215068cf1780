package agent

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/gen/shoal/v1/shoalv1connect"
)

// Client speaks to one daemon as one of the agents it hosts; at first as the node's
// own. Its errors are [*shoal.Error]. It is safe for concurrent use, and all copies
// made by [Client.As] share their connections, which are opened when needed and again
// after the daemon restarted.
type Client struct {
	as      string
	ways    transports
	agents  shoalv1connect.AgentServiceClient
	tasks   shoalv1connect.TaskServiceClient
	workers shoalv1connect.WorkerServiceClient
	duplex  shoalv1connect.WorkerServiceClient // for ReportStream
}

// Dial returns a client of the daemon whose home or socket is given; "" means the home
// ~/.shoal. It does not connect: the first call does, and fails with reason
// daemon_unreachable if nobody answers. Dial itself fails only if the path can name no
// socket. Call [Client.Close] when done.
func Dial(homeOrSocket string) (*Client, error) {
	p, err := parsePlace(homeOrSocket)
	if err != nil {
		return nil, err
	}
	return newClient(p), nil
}

func newClient(p place) *Client {
	ways := p.transports()
	hc := &http.Client{Transport: ways.calls}
	opts := callOptions()
	return &Client{
		ways:    ways,
		agents:  shoalv1connect.NewAgentServiceClient(hc, baseURL, opts...),
		tasks:   shoalv1connect.NewTaskServiceClient(hc, baseURL, opts...),
		workers: shoalv1connect.NewWorkerServiceClient(hc, baseURL, opts...),
		duplex:  shoalv1connect.NewWorkerServiceClient(&http.Client{Transport: ways.duplex}, baseURL, opts...),
	}
}

// As returns a client that asks as the given hosted agent (DID or name), over the same
// connections.
func (c *Client) As(agent string) *Client {
	d := *c
	d.as = agent
	return &d
}

// Close closes the connections once the calls on them have ended.
func (c *Client) Close() { c.ways.close() }

// Found is an agent as the daemon knows it.
type Found struct {
	DID         shoal.AgentID
	Name        string // chosen by the agent's owner: not unique on the mesh
	Description string
	Skills      []string
	Node        shoal.NodeID
	VerifiedAt  time.Time // when its card's signature was last checked
	Local       bool
}

// Find returns agents that offer a capability, best first, at most 20.
func (c *Client) Find(ctx context.Context, capability string) ([]Found, error) {
	resp, err := c.agents.Find(ctx, connect.NewRequest(&shoalv1.FindRequest{Capability: capability}))
	if err != nil {
		return nil, asError(ctx, err)
	}
	found := make([]Found, 0, len(resp.Msg.GetAgents()))
	for _, a := range resp.Msg.GetAgents() {
		found = append(found, Found{
			DID: shoal.AgentID(a.GetDid()), Name: a.GetName(), Description: a.GetDescription(),
			Skills: a.GetSkills(), Node: shoal.NodeID(a.GetNode()),
			VerifiedAt: fromTime(a.GetVerifiedAt()), Local: a.GetLocal(),
		})
	}
	return found, nil
}

// Result is a task as it stands: ended, waiting for an answer, or (from [Client.Get])
// still going.
type Result struct {
	ID        string
	State     a2a.TaskState
	From, To  shoal.AgentID
	Text      string       // the text of all artifacts; if there is none, of Message
	Message   *a2a.Message // what the doer said with its state: a question, an error; may be nil
	Reason    string       // why FAILED or REJECTED: a stable code
	Artifacts []*a2a.Artifact
	Attempt   int
	TookMS    float64 // from creation to a terminal state; 0 until then

	cursor uint64
}

// Done reports whether the task has reached a terminal state.
func (r *Result) Done() bool { return r.State.Terminal() }

// Err returns nil unless the task ended other than COMPLETED; then an error that says
// how, with the doer's text.
func (r *Result) Err() error {
	if !r.Done() || r.State == a2a.TaskStateCompleted {
		return nil
	}
	reason := r.Reason
	if reason == "" {
		reason = map[a2a.TaskState]string{
			a2a.TaskStateFailed: "task_failed", a2a.TaskStateRejected: "task_rejected",
			a2a.TaskStateCanceled: "task_canceled",
		}[r.State]
	}
	text := messageText(r.Message)
	if text == "" {
		text = "the task ended as " + string(r.State)
	}
	return shoal.NewError(shoal.Conflict, reason, text, "")
}

func newResult(rec *shoalv1.TaskRecord) (*Result, error) {
	t := rec.GetTask()
	status, err := fromStatus(t.GetStatus())
	if err != nil {
		return nil, err
	}
	artifacts, err := fromArtifacts(t.GetArtifacts())
	if err != nil {
		return nil, err
	}
	r := &Result{
		ID: t.GetId(), State: status.State, From: shoal.AgentID(rec.GetFrom()), To: shoal.AgentID(rec.GetTo()),
		Message: status.Message, Reason: rec.GetReason(), Artifacts: artifacts,
		Attempt: int(rec.GetAttempt()), TookMS: rec.GetTookMs(), cursor: rec.GetCursor(),
	}
	var parts []*a2a.Part
	for _, a := range artifacts {
		parts = append(parts, a.Parts...)
	}
	if r.Text = partsText(parts); r.Text == "" || interrupted(r.State) {
		if said := messageText(status.Message); said != "" {
			r.Text = said
		}
	}
	return r, nil
}

// Get returns a task as this node knows it.
func (c *Client) Get(ctx context.Context, id string) (*Result, error) {
	resp, err := c.tasks.Get(ctx, connect.NewRequest(&shoalv1.GetRequest{Id: id}))
	if err != nil {
		return nil, asError(ctx, err)
	}
	return newResult(resp.Msg.GetTask())
}

// Cancel asks the doer of a task to stop, and returns the task as it then stands.
func (c *Client) Cancel(ctx context.Context, id string) (*Result, error) {
	resp, err := c.tasks.Cancel(ctx, connect.NewRequest(&shoalv1.CancelRequest{Id: id}))
	if err != nil {
		return nil, asError(ctx, err)
	}
	return newResult(resp.Msg.GetTask())
}
