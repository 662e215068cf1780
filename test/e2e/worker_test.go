//go:build e2e

package e2e

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// worker is an agent program in the test process, attached until stop or the test's end.
type worker struct {
	did  string
	stop func()
}

// attach runs h as an agent of d and waits until it is attached.
func attach(t *testing.T, d *daemon, cfg agent.Config, h agent.HandlerFunc) *worker {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	attached, done := make(chan string, 64), make(chan struct{})
	cfg.Home = d.home
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.OnReady = func(did string) {
		select {
		case attached <- did:
		default:
		}
	}
	go func() {
		defer close(done)
		if err := agent.Run(ctx, cfg, h); err != nil {
			t.Errorf("agent %q: %v", cfg.Name, err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	select {
	case did := <-attached:
		return &worker{did, stop}
	case <-time.After(15 * time.Second):
		t.Fatalf("agent %q is not attached to %s after 15 s", cfg.Name, d.name)
		return nil
	}
}

func skills(ids ...string) (out []shoal.Skill) {
	for _, id := range ids {
		out = append(out, shoal.Skill{ID: id, Name: id, Description: "for a test"})
	}
	return out
}

// echo answers with what it was asked.
func echo(_ context.Context, t *agent.Task, w *agent.Writer) error {
	_, err := w.WriteString(t.Text())
	return err
}

func textMessage(s string) *a2apb.Message {
	return &a2apb.Message{Role: a2apb.Role_ROLE_USER, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: s}}}}
}

func stateOf(r *shoalv1.TaskRecord) a2apb.TaskState { return r.GetTask().GetStatus().GetState() }

func terminal(s a2apb.TaskState) bool {
	switch s {
	case a2apb.TaskState_TASK_STATE_COMPLETED, a2apb.TaskState_TASK_STATE_FAILED,
		a2apb.TaskState_TASK_STATE_CANCELED, a2apb.TaskState_TASK_STATE_REJECTED:
		return true
	}
	return false
}

// roundTrip sends one task from d and waits until it is COMPLETED.
func roundTrip(t *testing.T, d *daemon, to, skill, text string) *shoalv1.TaskRecord {
	t.Helper()
	resp, err := d.tasks.Send(ctxFor(t, 30*time.Second), connect.NewRequest(&shoalv1.SendRequest{
		To: to, Skill: skill, Message: textMessage(text), Wait: true, WaitMs: 25_000,
	}))
	if err != nil {
		t.Fatalf("task from %s to %s: %v", d.name, to, err)
	}
	if got := stateOf(resp.Msg.GetTask()); got != a2apb.TaskState_TASK_STATE_COMPLETED {
		t.Fatalf("task from %s is %v (%s), want COMPLETED", d.name, got, resp.Msg.GetTask().GetReason())
	}
	return resp.Msg.GetTask()
}
