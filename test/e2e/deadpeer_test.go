//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
	"github.com/shoalmesh/shoal/internal/identity"
)

const (
	deadTasks   = 5000 // at fraction 1
	liveSamples = 1000 // at fraction 1
	maxSlowdown = 3.0  // of the median, beside a dead peer's queue
)

// TestDeadPeerSlowsNobody queues tasks for an agent whose node was killed, and some for
// an agent that nobody knows. Tasks for a live agent take as long as before; when the
// dead node is back, every task queued for it reaches it and ends.
func TestDeadPeerSlowsNobody(t *testing.T) {
	n, samples := scaled(deadTasks, 100), scaled(liveSamples, 50)
	a, live, dead := startDaemon(t, "asker"), startDaemon(t, "live"), startDaemon(t, "dead")
	a.join(live)
	a.join(dead)
	liveAgent := attach(t, live, agent.Config{Name: "live", Skills: skills("work"), Concurrency: 4}, echo)
	var done atomic.Int64
	deadAgent := attach(t, dead, agent.Config{Name: "dead", Skills: skills("work"), Concurrency: 64},
		func(ctx context.Context, task *agent.Task, w *agent.Writer) error {
			done.Add(1)
			return echo(ctx, task, w)
		})
	roundTrip(t, a, deadAgent.did, "work", "the asker knows where it lives")
	timeTasks(t, a, liveAgent.did, 20) // warm

	before := timeTasks(t, a, liveAgent.did, samples)
	dead.kill()
	began := time.Now()
	ids := queueFor(t, a, deadAgent.did, n)
	queueing := time.Since(began)
	unknown := max(1, n/10)
	queueFor(t, a, unknownDID(t), unknown)
	during := timeTasks(t, a, liveAgent.did, samples)

	status, err := a.node.Status(ctxFor(t, 10*time.Second), connect.NewRequest(&shoalv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if got := status.Msg.GetOutbox(); got < uint64(n) {
		t.Errorf("%d envelopes wait, want all %d: the peer is not dead", got, n)
	}
	ratio := quantile(during, 0.5) / quantile(before, 0.5)
	t.Logf("%d tasks queued for a dead peer in %v (%.2f ms each, 8 at a time) and %d for an agent that nobody knows; %d envelopes wait",
		n, queueing.Round(time.Millisecond), queueing.Seconds()*1000/float64(n), unknown, status.Msg.GetOutbox())
	t.Logf("durable task to a live peer, N=%d each: before p50 %.1f ms, p99 %.1f ms; beside the queue p50 %.1f ms, p99 %.1f ms; ratio %.2f, at most %.0f",
		samples, quantile(before, 0.5), quantile(before, 0.99), quantile(during, 0.5), quantile(during, 0.99), ratio, maxSlowdown)
	if ratio > maxSlowdown {
		t.Errorf("beside a dead peer's queue a task takes %.2f times as long, at most %.0f", ratio, maxSlowdown)
	}

	done.Store(0)
	dead.start()
	back := time.Now()
	undone := n
	within(3*time.Minute, func() bool {
		open, err := a.tasksOpen(ctxFor(t, 10*time.Second))
		undone = open
		return err == nil && open == unknown
	})
	completed := 0
	for _, id := range ids {
		rec, err := getTask(a, id, "", shoalv1.TaskRole_TASK_ROLE_ASKED)
		if err == nil && stateOf(rec) == a2apb.TaskState_TASK_STATE_COMPLETED {
			completed++
		}
	}
	t.Logf("back after kill -9: COMPLETED %d of %d in %v, still open %d of %d, handler ran %d times",
		completed, n, time.Since(back).Round(time.Millisecond), undone-unknown, n, done.Load())
	if completed != n || done.Load() != int64(n) {
		t.Errorf("COMPLETED %d, handler ran %d times, want %d", completed, done.Load(), n)
	}
}

// unknownDID is an agent that has no node.
func unknownDID(t *testing.T) string {
	t.Helper()
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return string(k.Agent())
}

// timeTasks returns how many ms each of n tasks took, one after the other.
func timeTasks(t *testing.T, d *daemon, to string, n int) []float64 {
	t.Helper()
	var took []float64
	for i := range n {
		began := time.Now()
		roundTrip(t, d, to, "work", fmt.Sprint("sample ", i))
		took = append(took, float64(time.Since(began).Microseconds())/1000)
	}
	return took
}

// queueFor sends n tasks without waiting for their ends and returns their ids.
func queueFor(t *testing.T, d *daemon, to string, n int) []string {
	t.Helper()
	ids := make([]string, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				resp, err := d.tasks.Send(ctx, connect.NewRequest(&shoalv1.SendRequest{
					To: to, Skill: "work", Message: textMessage(fmt.Sprint("queued ", i)),
				}))
				cancel()
				if err != nil {
					t.Errorf("queue task %d: %v", i, err)
					return
				}
				ids[i] = resp.Msg.GetTask().GetTask().GetId()
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return ids
}
