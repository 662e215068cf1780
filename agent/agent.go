// Package agent makes a Go program an agent of the mesh in ten lines, and lets it ask
// other agents for work.
//
//	agent.Run(ctx, agent.Config{Name: "echo", Skills: []shoal.Skill{{ID: "echo"}}},
//		func(ctx context.Context, t *agent.Task, w *agent.Writer) error {
//			_, err := w.WriteString(t.Text())
//			return err
//		})
//
// [Run] attaches the handler to the daemon of this machine and keeps it attached
// through restarts of the daemon. What a handler writes is streamed to whoever watches
// the task, and reported whole and durably when the handler returns. [Dial] gives a
// [Client] that delegates tasks, follows them and finds agents.
//
// It promises that a handler's panic fails one task and not the program, and that Run
// returns only after all handlers have. It does not keep anything across a restart of
// the program: the daemon does, and hands lost work over or fails it, as the skill says.
// It speaks the local API (gen/shoal/v1) over the daemon's socket and uses nothing else
// of Shoal.
package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/shoalmesh/shoal"
)

// Config says who the agent is and how it works. Only Skills is needed.
type Config struct {
	// Home is the daemon's data directory. Default ~/.shoal.
	Home string
	// Socket is the daemon's socket, if not the one in Home.
	Socket string

	// Name names the agent on its node: a new name makes a new agent with its own key,
	// a known one attaches to it, also by DID. "" is the node's own agent.
	Name        string
	Description string
	Skills      []shoal.Skill

	// Concurrency is how many handlers run at once, 1 to 1024. Default 1. A handler
	// that waits in [Writer.Ask] does not count.
	Concurrency int
	// Ephemeral withdraws the agent's card when its last worker leaves.
	Ephemeral bool
	// Heartbeat, if not zero, lets the daemon give the agent up when it was silent for
	// so long, although the connection stands: for programs that may hang.
	Heartbeat time.Duration

	// OnReady is called each time the agent has been attached, with its DID.
	OnReady func(did string)
	// Log gets what Run heals by itself: lost connections, panics. Default slog.Default().
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
	if c.OnReady == nil {
		c.OnReady = func(string) {}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

const maxConcurrency = 1024 // as the daemon's limit

func (c Config) validate() error {
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		return shoal.NewError(shoal.Invalid, "bad_concurrency", "concurrency is out of range", "use 1 to 1024")
	}
	if c.Heartbeat < 0 || c.Heartbeat > 0 && c.Heartbeat < minHeartbeat {
		return shoal.NewError(shoal.Invalid, "bad_heartbeat", "heartbeat is too short", "use 0 (off) or at least 100ms")
	}
	for _, s := range c.Skills {
		if _, err := shoal.ParseCapability(s.ID); err != nil {
			return err
		}
	}
	return nil
}

// HandlerFunc does one task. What it writes to w is the answer; it may ask the
// requester back, add artifacts, and delegate further through t.Node.
//
// Returning nil reports the task COMPLETED, an error FAILED with the error's text,
// [Reject] REJECTED. Its ctx ends when the asker cancels (then CANCELED is reported,
// unless the handler returns nil), when the connection to the daemon is lost (then
// nothing can be reported) and when Run's ctx ends (then returning nil still completes
// the task; otherwise the daemon treats it as lost). context.Cause tells which.
type HandlerFunc func(ctx context.Context, t *Task, w *Writer) error

const (
	minHeartbeat = 100 * time.Millisecond

	// A restarting daemon is back within two seconds; more than five between tries
	// would be felt by whoever waits.
	firstRetry = 50 * time.Millisecond
	maxRetry   = 5 * time.Second
)

// Run attaches h as the agent that cfg describes and does its tasks until ctx ends;
// then it returns nil, after all handlers have returned. It reconnects when the daemon
// restarts or is not there yet. It returns an error, a [*shoal.Error], only when trying
// again cannot help: a bad configuration, or the daemon refuses the agent.
func Run(ctx context.Context, cfg Config, h HandlerFunc) error {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return err
	}
	where := cfg.Socket
	if where == "" {
		where = cfg.Home
	}
	client, err := Dial(where)
	if err != nil {
		return err
	}
	defer client.Close()
	r := &runner{cfg: cfg, handler: h, client: client, slots: make(chan struct{}, cfg.Concurrency)}
	defer r.handlers.Wait()

	for delay := firstRetry; ; delay = min(2*delay, maxRetry) {
		attached, err := r.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case lasting(err) && !attached, removed(err):
			return err
		case attached:
			delay = firstRetry
		}
		cfg.Log.Warn("agent is not attached; trying again", "agent", cfg.Name, "err", err)
		if !pause(ctx, delay/2+rand.N(delay)) {
			return nil
		}
	}
}

// removed reports whether somebody removed the agent: attaching again would make a new
// one of the same name.
func removed(err error) bool {
	e := shoal.AsError(err)
	return e != nil && e.Reason == "agent_removed"
}

// pause waits for d; it returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
