//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

const (
	kills       = 100 // at fraction 1
	submitters  = 6
	slots       = 8               // tasks that the worker does at once
	maxReady    = 2 * time.Second // from exec to ready after a kill
	minInFlight = 0.9             // of the kills must have work in flight
)

// TestKillsLoseNothing kills asker and doer in turn with work in flight. What Send
// acknowledged is known and terminal at the end, nothing was started twice, and both
// sides hold the same countersigned receipts.
func TestKillsLoseNothing(t *testing.T) {
	n := scaled(kills, 4)
	rng := rand.New(rand.NewPCG(seed, 1))
	a, b := startDaemon(t, "asker"), startDaemon(t, "doer")
	a.join(b)
	starts := newStartsFile(t)
	w := attach(t, b, agent.Config{Name: "worker", Skills: skills("work"), Concurrency: slots}, starts.work)

	load := startLoad(t, a, w.did)
	r := killRounds(t, n, rng, a, b, load)
	load.end()
	tasks := drain(t, a, load.acked())
	checkOutcome(t, a, b, load, tasks, starts.read(), r)
}

// rounds is what the kills were like.
type rounds struct {
	n, busy     int
	ofDoer      int
	inFlight    []int
	readyMS     []float64 // process start to ready line, after each kill
	saidReadyMS []float64
}

func killRounds(t *testing.T, n int, rng *rand.Rand, a, b *daemon, load *load) rounds {
	t.Helper()
	r := rounds{n: n}
	for i := range n {
		victim := a
		if i%2 == 1 {
			victim, r.ofDoer = b, r.ofDoer+1
		}
		waitForWork(t, a, load)
		time.Sleep(time.Duration(rng.IntN(250)) * time.Millisecond)
		var open int
		within(2*time.Second, func() (met bool) { // between two bursts there may be nothing for a moment
			var err error
			if open, err = a.tasksOpen(ctxFor(t, 10*time.Second)); err != nil {
				t.Fatalf("status of the asker: %v", err)
			}
			return open > 0
		})
		victim.kill()
		r.inFlight = append(r.inFlight, open)
		if open > 0 {
			r.busy++
		}
		victim.start()
		r.readyMS = append(r.readyMS, victim.wallMS)
		r.saidReadyMS = append(r.saidReadyMS, victim.ready.ReadyMS)
	}
	return r
}

// waitForWork waits until tasks have come to an end since the last kill: the link stands
// again, so this kill meets work of its own.
func waitForWork(t *testing.T, a *daemon, load *load) {
	t.Helper()
	before := load.finished()
	eventually(t, 30*time.Second, "a task ends after a restart", func() bool { return load.finished() > before })
}

// load is a set of submitters: each sends a few tasks under keys of their own, repeats
// what failed under the same key, and waits for the ends before it sends more.
type load struct {
	t    *testing.T
	a    *daemon
	to   string
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	ids    map[string]string // key → task id, once Send has returned it
	ends   map[string]bool   // keys seen terminal
	other  []string          // keys that were answered with a second id
	errors int
}

func startLoad(t *testing.T, a *daemon, to string) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{t: t, a: a, to: to, stop: stop, ids: map[string]string{}, ends: map[string]bool{}}
	for i := range submitters {
		l.wg.Go(func() { l.submit(ctx, i) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() { l.stop(); l.wg.Wait() }

func (l *load) submit(ctx context.Context, who int) {
	rng := rand.New(rand.NewPCG(seed, uint64(100+who)))
	for n := 0; ctx.Err() == nil; {
		var keys []string
		for range 1 + rng.IntN(3) {
			n++
			keys = append(keys, fmt.Sprintf("key-%d-%d", who, n))
		}
		for _, k := range keys {
			l.send(ctx, k, false)
		}
		for _, k := range keys {
			for ctx.Err() == nil && !l.send(ctx, k, true) {
			}
		}
	}
}

// send sends the task of a key until the daemon acknowledges it, and reports whether it
// is terminal. With wait it waits a moment for that.
func (l *load) send(ctx context.Context, key string, wait bool) bool {
	req := &shoalv1.SendRequest{To: l.to, Skill: "work", Message: textMessage(key), RequestId: key, Wait: wait, WaitMs: 1000}
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := l.a.tasks.Send(call, connect.NewRequest(req))
		cancel()
		if err == nil {
			end := terminal(stateOf(resp.Msg.GetTask()))
			l.note(key, resp.Msg.GetTask().GetTask().GetId(), end)
			return end
		}
		if ctx.Err() == nil {
			l.failed(key, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return false
}

func (l *load) failed(key string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors++
	// A dead daemon refuses connections or cuts them; anything else is an answer of a
	// living one, which has no reason to refuse.
	if c := connect.CodeOf(err); c != connect.CodeUnavailable && c != connect.CodeDeadlineExceeded && c != connect.CodeCanceled && !cut(err) {
		l.t.Errorf("send %s: %v", key, err)
	}
}

// cut reports whether err says that a connection ended in the middle of a call.
func cut(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnknown || !connect.IsWireError(err)
}

func (l *load) note(key, id string, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.ids[key]; before != "" && before != id {
		l.other = append(l.other, key)
	}
	l.ids[key] = id
	if end {
		l.ends[key] = true
	}
}

func (l *load) finished() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ends)
}

// acked returns the ids that Send returned, by key.
func (l *load) acked() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]string, len(l.ids))
	for k, id := range l.ids {
		out[k] = id
	}
	return out
}

// drain waits until each acknowledged task is terminal at the asker, and returns what is
// known of them by key; a task that is not known is missing there.
func drain(t *testing.T, a *daemon, acked map[string]string) map[string]*shoalv1.TaskRecord {
	t.Helper()
	found := map[string]*shoalv1.TaskRecord{}
	end := time.Now().Add(60 * time.Second)
	for key, id := range acked {
		for {
			rec, err := getTask(a, id, "", shoalv1.TaskRole_TASK_ROLE_ASKED)
			if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
				t.Fatalf("get task %s: %v", id, err)
			}
			if err == nil {
				found[key] = rec
			}
			if err != nil || terminal(stateOf(rec)) || time.Now().After(end) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return found
}

func getTask(d *daemon, id, requester string, role shoalv1.TaskRole) (*shoalv1.TaskRecord, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := d.tasks.Get(ctx, connect.NewRequest(&shoalv1.GetRequest{Id: id, Requester: requester, Role: role}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetTask(), nil
}

// checkOutcome counts every way in which the promise could be broken, and prints each
// count beside the number tried.
func checkOutcome(t *testing.T, a, b *daemon, load *load, tasks map[string]*shoalv1.TaskRecord, starts map[string]int, r rounds) {
	t.Helper()
	acked := load.acked()
	var completed, workerLost, lost, unended, failed, disagree, noStart int
	for key, id := range acked {
		rec := tasks[key]
		switch {
		case rec == nil:
			lost++
			t.Errorf("%s: task %s was acknowledged and is not known", key, id)
			continue
		case !terminal(stateOf(rec)):
			unended++
			t.Errorf("%s: task %s is still %v", key, id, stateOf(rec))
			continue
		case stateOf(rec) == a2apb.TaskState_TASK_STATE_COMPLETED:
			completed++
			if starts[key] == 0 {
				noStart++
				t.Errorf("%s: COMPLETED, but no worker has started it", key)
			}
		case stateOf(rec) == a2apb.TaskState_TASK_STATE_FAILED && rec.GetReason() == "worker_lost":
			workerLost++
		default:
			failed++
			t.Errorf("%s: task %s is %v (%s)", key, id, stateOf(rec), rec.GetReason())
		}
		theirs, err := getTask(b, id, a.ready.DID, shoalv1.TaskRole_TASK_ROLE_DOING)
		if err != nil || stateOf(theirs) != stateOf(rec) {
			disagree++
			t.Errorf("%s: task %s is %v at the asker and %v (%v) at the doer", key, id, stateOf(rec), stateOf(theirs), err)
		}
	}
	twice := 0
	for key, n := range starts {
		if n > 1 {
			twice++
			t.Errorf("%s: started %d times", key, n)
		}
	}
	receipts, bad := checkReceipts(t, a, b, tasks)

	// Each kill of the doer's daemon loses at most what its worker was doing then.
	if most := r.ofDoer * slots; workerLost > most {
		t.Errorf("worker_lost: %d, at most %d tasks can have been under way at %d kills", workerLost, most, r.ofDoer)
	}
	if float64(r.busy) < minInFlight*float64(r.n) {
		t.Errorf("work in flight at %d of %d kills, want %.0f %%", r.busy, r.n, 100*minInFlight)
	}
	if slow := slices.Max(r.readyMS); slow > float64(maxReady.Milliseconds()) {
		t.Errorf("a restart took %.0f ms until ready, at most %v", slow, maxReady)
	}
	t.Logf("seed %d: %d kills (-9), %d of the asker, %d of the doer; work in flight at %d of %d, tasks in flight at each: %v",
		seed, r.n, r.n-r.ofDoer, r.ofDoer, r.busy, r.n, r.inFlight)
	t.Logf("restart to ready: p50 %.0f ms, max %.0f ms of %d (the daemon itself says p50 %.0f, max %.0f)",
		quantile(r.readyMS, 0.5), slices.Max(r.readyMS), r.n, quantile(r.saidReadyMS, 0.5), slices.Max(r.saidReadyMS))
	t.Logf("acknowledged %d: COMPLETED %d, FAILED worker_lost %d (allowed), otherwise failed %d, not ended %d, lost %d of %d; Send answered an error %d times",
		len(acked), completed, workerLost, failed, unended, lost, len(acked), load.errors)
	t.Logf("keys answered with a second task %d of %d; started twice %d of %d; COMPLETED without a start %d of %d",
		len(load.other), len(acked), twice, len(starts), noStart, completed)
	t.Logf("state differs between the sides %d of %d; receipts: countersigned on both sides and identical %d of %d, disagreements %d",
		disagree, len(acked), receipts, completed, bad)
	if len(load.other) > 0 {
		t.Errorf("keys answered with a second task: %q", load.other)
	}
	if completed == 0 {
		t.Error("no task was COMPLETED: nothing was tested")
	}
}

// checkReceipts compares the receipts of COMPLETED tasks on both sides; the asker's
// signature reaches the doer by mail, so the last ones may take a moment.
func checkReceipts(t *testing.T, a, b *daemon, tasks map[string]*shoalv1.TaskRecord) (good, bad int) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for key, rec := range tasks {
		if stateOf(rec) != a2apb.TaskState_TASK_STATE_COMPLETED {
			continue
		}
		id := rec.GetTask().GetId()
		err := sameReceipt(a, b, id)
		for err != nil && time.Now().Before(end) {
			time.Sleep(50 * time.Millisecond)
			err = sameReceipt(a, b, id)
		}
		if err != nil {
			bad++
			t.Errorf("%s: receipt of task %s: %v", key, id, err)
			continue
		}
		good++
	}
	return good, bad
}

func sameReceipt(a, b *daemon, id string) error {
	ours, err := receiptOf(a, id, "", shoalv1.TaskRole_TASK_ROLE_ASKED)
	if err != nil {
		return fmt.Errorf("at the asker: %w", err)
	}
	theirs, err := receiptOf(b, id, a.ready.DID, shoalv1.TaskRole_TASK_ROLE_DOING)
	if err != nil {
		return fmt.Errorf("at the doer: %w", err)
	}
	switch {
	case len(ours.GetAskerSignature()) == 0 || len(theirs.GetAskerSignature()) == 0:
		return errors.New("not countersigned on both sides")
	case !bytes.Equal(ours.GetBody(), theirs.GetBody()), !bytes.Equal(ours.GetDoerSignature(), theirs.GetDoerSignature()),
		!bytes.Equal(ours.GetAskerSignature(), theirs.GetAskerSignature()):
		return errors.New("the two sides hold different ones")
	case !ours.GetInputMatches() || !ours.GetOutputMatches() || !theirs.GetInputMatches() || !theirs.GetOutputMatches():
		return errors.New("it is about other bytes than the node holds")
	}
	_, err = shoal.VerifyReceipt(ours.GetBody(), ours.GetDoerSignature(), ours.GetAskerSignature(), "main")
	return err
}

func receiptOf(d *daemon, id, requester string, role shoalv1.TaskRole) (*shoalv1.Receipt, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := d.tasks.Receipt(ctx, connect.NewRequest(&shoalv1.ReceiptRequest{Id: id, Requester: requester, Role: role}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetReceipt(), nil
}

// startsFile is what the worker writes outside of Shoal: a line for each start, on disk
// before the work begins.
type startsFile struct {
	t    *testing.T
	mu   sync.Mutex
	file *os.File
}

func newStartsFile(t *testing.T) *startsFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "starts"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &startsFile{t: t, file: f}
}

// work is the handler: it notes the start, works a few ms and answers.
func (s *startsFile) work(ctx context.Context, t *agent.Task, w *agent.Writer) error {
	s.mu.Lock()
	_, err := fmt.Fprintf(s.file, "%s %s %d\n", t.Text(), t.ID, t.Attempt)
	err = errors.Join(err, s.file.Sync())
	s.mu.Unlock()
	if err != nil {
		s.t.Errorf("note a start: %v", err)
		return err
	}
	select {
	case <-time.After(time.Duration(2+rand.IntN(8)) * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = w.WriteString("done " + t.Text())
	return err
}

// read counts the starts of each key.
func (s *startsFile) read() map[string]int {
	s.t.Helper()
	raw, err := os.ReadFile(s.file.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	starts := map[string]int{}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			s.t.Fatalf("starts file has the line %q", line)
		}
		starts[fields[0]]++
	}
	return starts
}

// quantile returns the q-quantile of values, 0 for none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
