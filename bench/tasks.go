package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// tasks is a client of a and an agent on b.
type tasks struct {
	a, b   *api
	did    string
	tokens *tokens
	stop   func() error
}

// openTasks attaches the agent: skill "echo" gives the text back, "drip" writes tokens
// when told to.
func openTasks(ctx context.Context, p *pair) (*tasks, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &tasks{a: dialAPI(p.a.ready.Socket), b: dialAPI(p.b.ready.Socket), tokens: newTokens()}
	ready := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Run(ctx, agent.Config{
			Home: p.b.home, Name: "echo", Skills: []shoal.Skill{{ID: "echo"}, {ID: "drip"}}, Concurrency: 4,
			OnReady: func(did string) {
				select {
				case ready <- did:
				default: // attached again
				}
			}, Log: slog.New(slog.DiscardHandler),
		}, t.handle)
	}()
	t.stop = func() error {
		cancel()
		t.a.close()
		t.b.close()
		return <-ended
	}
	select {
	case t.did = <-ready:
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("attach: %w", errors.Join(err, errors.New("the agent ended")))
	}
	return t, nil
}

func (t *tasks) handle(ctx context.Context, task *agent.Task, w *agent.Writer) error {
	if task.Skill == "drip" {
		return t.tokens.write(ctx, w)
	}
	_, err := w.WriteString(task.Text())
	return err
}

var text = strings.Repeat("x", payload)

// send makes one round trip.
func (t *tasks) send(ctx context.Context, class shoalv1.TaskClass) error {
	resp, err := t.a.tasks.Send(ctx, connect.NewRequest(&shoalv1.SendRequest{
		To: t.did, Skill: "echo", Class: class, Wait: true,
		Message: &a2apb.Message{Role: a2apb.Role_ROLE_USER, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: text}}}},
	}))
	if err != nil {
		return err
	}
	got := resp.Msg.GetTask().GetTask()
	if state := got.GetStatus().GetState(); state != a2apb.TaskState_TASK_STATE_COMPLETED {
		return fmt.Errorf("the task ended as %v: %v", state, resp.Msg.GetTask().GetReason())
	}
	if len(got.GetArtifacts()) != 1 || got.GetArtifacts()[0].GetParts()[0].GetText() != text {
		return errors.New("the answer is not the text that was sent")
	}
	return nil
}

// measureTasks lets the figures about tasks take turns with their floors.
func (b *bench) measureTasks(ctx context.Context, p *pair) (err error) {
	t, err := openTasks(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	d, err := openDisk(b.path("floor"))
	if err != nil {
		return err
	}
	defer d.f.Close()
	w, err := openWire(ctx)
	if err != nil {
		return err
	}
	defer w.stop()
	h, err := b.openHop(ctx)
	if err != nil {
		return err
	}
	defer h.stop()

	parts := map[string]func() error{
		"fdatasync": d.commit,
		"quic":      w.rtt,
		"stream":    func() error { return w.newStream(ctx) },
		"call":      func() error { return t.a.call(ctx) },
		"hop":       h.roundTrip,
	}
	if b.wants("task_durable") {
		parts["task_durable"] = func() error { return t.send(ctx, shoalv1.TaskClass_TASK_CLASS_DURABLE) }
	}
	if b.wants("task_live") {
		parts["task_live"] = func() error { return t.send(ctx, shoalv1.TaskClass_TASK_CLASS_LIVE) }
	}
	if b.wants("token") {
		parts["token"] = nil // measured by its own clock
	}
	got, used, err := b.takeTurns(ctx, p, t, parts)
	if err != nil {
		return err
	}
	b.showTasks(got, used)
	return nil
}

// order is the turn of each: floors around what they are the floors of.
var order = []string{"fdatasync", "quic", "stream", "call", "hop", "task_durable", "task_live", "token"}

// takeTurns measures all parts in each window. used is the processors' time per durable task.
func (b *bench) takeTurns(ctx context.Context, p *pair, t *tasks, parts map[string]func() error) (map[string]*series, *series, error) {
	got, used := map[string]*series{}, &series{}
	for i := range b.windows() + 1 {
		for _, name := range order {
			op, ok := parts[name]
			if !ok {
				continue
			}
			stopProf, err := b.profile(name, i)
			if err != nil {
				return nil, nil, err
			}
			before := p.a.cpu() + p.b.cpu()
			var window []float64
			if name == "token" {
				window, err = t.drip(ctx, b.span())
			} else {
				window, err = timed(ctx, b.span(), op)
			}
			stopProf()
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", name, err)
			}
			if i == 0 {
				continue // warming up
			}
			if got[name] == nil {
				got[name] = &series{}
			}
			got[name].add(window)
			if name == "task_durable" {
				used.add([]float64{micros(p.a.cpu()+p.b.cpu()-before) / float64(len(window))})
			}
		}
	}
	return got, used, nil
}

func (b *bench) showTasks(got map[string]*series, used *series) {
	sync, quic, stream, call, hop := got["fdatasync"].p50(), got["quic"].p50(), got["stream"].p50(), got["call"].p50(), got["hop"].p50()/2
	b.remark("fdatasync p50 %.0f us (p99 %.0f, N %d); QUIC 1 KiB round trip %.1f us (N %d), on a new stream %.1f us (N %d)",
		sync, got["fdatasync"].p99(), got["fdatasync"].n(), quic, got["quic"].n(), stream, got["stream"].n())
	b.remark("API call %.1f us (N %d), one hop of a token %.1f us (N %d)", call, got["call"].n(), hop, got["hop"].n())
	if s := got["task_durable"]; s != nil {
		b.show(Figure{
			Name: "task_durable", P50: s.p50(), P99: s.p99(), Unit: "us", Floor: 2*sync + quic, Must: 6, Dir: "max",
			note: fmt.Sprintf("N %d; floor 2 fdatasync + QUIC round trip; CPU of both daemons %.0f us/op", s.n(), used.p50()),
		})
	}
	if s := got["task_live"]; s != nil {
		b.show(Figure{
			Name: "task_live", P50: s.p50(), P99: s.p99(), Unit: "us", Floor: stream + 3*call, Must: 4, Dir: "max",
			note: fmt.Sprintf("N %d; floor new QUIC stream + 3 API calls", s.n()),
		})
	}
	if s := got["token"]; s != nil {
		// 3 x RTT + 2 hops is the bound; as a ratio to it, must is 1.
		b.show(Figure{
			Name: "token", P50: s.p50(), P99: s.p99(), Unit: "us", Floor: 3*quic + 2*hop, Must: 1, Dir: "max",
			note: fmt.Sprintf("N %d; floor 3 QUIC round trips + 2 API hops", s.n()),
		})
	}
}

// tokens carries the times at which tokens are written from the agent to the watcher,
// which are both in this process.
type tokens struct {
	wanted chan chan written // the handler answers each with what its write did; nil ends it
	read   chan time.Time    // when the watcher had the token
	ended  chan error        // the watch is over
}

type written struct {
	at  time.Time
	err error
}

// maxTokens keeps the answer of a window well below what an answer may hold.
const maxTokens = 1000

func newTokens() *tokens {
	return &tokens{wanted: make(chan chan written), read: make(chan time.Time, 1), ended: make(chan error, 1)}
}

// write is the handler: one token for each that is wanted.
func (k *tokens) write(ctx context.Context, w *agent.Writer) error {
	token := strings.Repeat("t", tokenLen)
	for {
		select {
		case tell := <-k.wanted:
			if tell == nil {
				return nil
			}
			now := time.Now()
			_, err := w.WriteString(token)
			tell <- written{now, err}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drip starts a task that drips, watches it, and measures each token for about span. The
// next token is written once the one before has been read.
func (t *tasks) drip(ctx context.Context, span time.Duration) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, span+20*time.Second)
	defer cancel()
	k := t.tokens
	if err := t.openDrip(ctx); err != nil {
		return nil, err
	}
	var out []float64
	tell := make(chan written, 1)
	for end := time.Now().Add(span); time.Now().Before(end) && len(out) < maxTokens; {
		took, err := k.one(ctx, tell)
		if err != nil {
			return nil, err
		}
		out = append(out, micros(took))
	}
	select {
	case k.wanted <- nil:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return out, <-k.ended
}

func (k *tokens) one(ctx context.Context, tell chan written) (time.Duration, error) {
	select {
	case k.wanted <- tell:
	case err := <-k.ended:
		return 0, errors.Join(errors.New("the watch ended early"), err)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	wrote := <-tell
	if wrote.err != nil {
		return 0, wrote.err
	}
	select {
	case read := <-k.read:
		return read.Sub(wrote.at), nil
	case err := <-k.ended:
		return 0, errors.Join(errors.New("the watch ended early"), err)
	case <-ctx.Done():
		return 0, errors.Join(errors.New("a token was lost"), ctx.Err())
	}
}

// openDrip returns once the task is watched and a token has come through, so that the
// stream between the nodes is open.
func (t *tasks) openDrip(ctx context.Context) error {
	resp, err := t.a.tasks.Send(ctx, connect.NewRequest(&shoalv1.SendRequest{
		To: t.did, Skill: "drip",
		Message: &a2apb.Message{Role: a2apb.Role_ROLE_USER, Parts: []*a2apb.Part{{Content: &a2apb.Part_Text{Text: "go"}}}},
	}))
	if err != nil {
		return err
	}
	stream, err := t.a.tasks.Watch(ctx, connect.NewRequest(&shoalv1.WatchRequest{Id: resp.Msg.GetTask().GetTask().GetId()}))
	if err != nil {
		return err
	}
	go func() { t.tokens.ended <- t.tokens.watch(ctx, stream) }()
	_, err = t.tokens.one(ctx, make(chan written, 1))
	return err
}

// watch notes when each token was read, until the task has ended.
func (k *tokens) watch(ctx context.Context, stream *connect.ServerStreamForClient[shoalv1.WatchResponse]) error {
	defer stream.Close()
	for stream.Receive() {
		now := time.Now()
		switch e := stream.Msg().GetEvent().(type) {
		case *shoalv1.WatchResponse_Chunk:
			select {
			case k.read <- now:
			case <-ctx.Done():
				return ctx.Err()
			}
		case *shoalv1.WatchResponse_Task:
			if s := e.Task.GetTask().GetStatus().GetState(); s != a2apb.TaskState_TASK_STATE_COMPLETED {
				return fmt.Errorf("the task ended as %v", s)
			}
			return nil
		}
	}
	return errors.Join(errors.New("the watch broke"), stream.Err())
}
