package task

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/proto"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/store"
	"github.com/shoalmesh/shoal/internal/store/storetest"
)

var errTakeBack = errors.New("take back")

// attempt hands an envelope to a node and takes back whatever it did; applied tells
// whether the node's rows changed.
func (n *testNode) attempt(t *testing.T, env shoal.Envelope) (applied bool, err error) {
	t.Helper()
	_ = n.db.Update(context.Background(), func(tx *store.Tx) error {
		before := dump(t, tx)
		err = n.Receive(tx, env)
		applied = err == nil && dump(t, tx) != before
		return errTakeBack
	})
	return applied, err
}

func dump(t *testing.T, tx *store.Tx) (all string) {
	t.Helper()
	err := tx.Each(`SELECT role || requester || id || state || attempt || queued || held || canceling || n || peer_n || hex(coalesce(receipt, '')) FROM tasks ORDER BY row`, nil,
		func(scan func(...any) error) error {
			var s string
			err := scan(&s)
			all += s + "\n"
			return err
		})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Each forged envelope is one mutation of a control that is accepted.
func TestOnlyPartiesMoveATask(t *testing.T) {
	w := newWorld(t)
	asker, doer, rogue := w.node(1), w.node(2, echo), w.node(3, echo)
	doer.attach(1)

	task := asker.submit(t, Request{To: doer.agent(), Skill: "echo"})
	a := <-doer.workers.started
	doer.report(t, a, a2a.TaskStateInputRequired)
	asker.wait(t, task.Key.ID)
	id := string(task.Key.ID)
	done, err := encodeStatus(a2a.TaskStateCompleted, nil, now())
	if err != nil {
		t.Fatal(err)
	}
	submitted, _ := encodeStatus(a2a.TaskStateSubmitted, nil, now())
	msg, err := encodeMessage(text("go on"))
	if err != nil {
		t.Fatal(err)
	}
	event := func(f func(*wire.TaskEvent)) *wire.TaskMail {
		ev := &wire.TaskEvent{N: 99, Status: done, Attempt: 1}
		f(ev)
		return &wire.TaskMail{TaskId: id, Body: &wire.TaskMail_Event{Event: ev}}
	}
	plain := func(*wire.TaskEvent) {}
	input := &wire.TaskMail{TaskId: id, Body: &wire.TaskMail_Input{Input: &wire.TaskInput{Message: msg}}}
	cancel := &wire.TaskMail{TaskId: id, Body: &wire.TaskMail_Cancel{Cancel: &wire.TaskCancel{}}}

	forged, accepted, controls := 0, 0, 0
	for _, c := range []struct {
		name     string
		node     *testNode
		from, to shoal.AgentID
		mail     *wire.TaskMail
		want     bool
	}{
		{"control: the doer's event", asker, doer.agent(), asker.agent(), event(plain), true},
		{"event of another agent", asker, rogue.agent(), asker.agent(), event(plain), false},
		{"event of the asker itself", asker, asker.agent(), asker.agent(), event(plain), false},
		{"event for another requester", asker, doer.agent(), rogue.agent(), event(plain), false},
		{"event sent to the doer", doer, doer.agent(), doer.agent(), event(plain), false},
		{"event with an old number", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.N = 1 }), false},
		{"event with number 0", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.N = 0 }), false},
		{"event back to SUBMITTED", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.Status = submitted }), false},
		{"event that says nothing", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.Status = nil }), false},
		{"event with a broken status", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.Status = []byte{0xff} }), false},
		{"event with a broken artifact", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.Artifacts = [][]byte{{0xff}} }), false},
		{"event with an artifact without id", asker, doer.agent(), asker.agent(), event(func(e *wire.TaskEvent) { e.Artifacts = [][]byte{{}} }), false},
		{"control: the asker's reply", doer, asker.agent(), doer.agent(), input, true},
		{"reply of another agent", doer, rogue.agent(), doer.agent(), input, false},
		{"reply of the doer itself", doer, doer.agent(), doer.agent(), input, false},
		{"reply to another agent", doer, asker.agent(), rogue.agent(), input, false},
		{"reply without parts", doer, asker.agent(), doer.agent(), &wire.TaskMail{TaskId: id, Body: &wire.TaskMail_Input{Input: &wire.TaskInput{}}}, false},
		{"control: the asker's cancel", doer, asker.agent(), doer.agent(), cancel, true},
		{"cancel of another agent", doer, rogue.agent(), doer.agent(), cancel, false},
		{"cancel of another task", doer, asker.agent(), doer.agent(), &wire.TaskMail{TaskId: id + "x", Body: cancel.Body}, false},
		{"cancel without task id", doer, asker.agent(), doer.agent(), &wire.TaskMail{Body: cancel.Body}, false},
		{"no body", doer, asker.agent(), doer.agent(), &wire.TaskMail{TaskId: id}, false},
	} {
		env := shoal.Envelope{Network: "test", From: c.from, To: c.to, Topic: Topic, Body: encodeMail(c.mail)}
		got, err := c.node.attempt(t, env)
		switch {
		case c.want:
			controls++
		case got:
			accepted++
			fallthrough
		default:
			forged++
		}
		if got != c.want {
			t.Errorf("%s: applied %v (%v), want %v", c.name, got, err, c.want)
		}
		if !c.want && err != nil && shoal.KindOf(err) == shoal.Internal {
			t.Errorf("%s: refused without a reason: %v", c.name, err)
		}
	}
	t.Logf("accepted %d of %d forged, beside %d controls", accepted, forged, controls)
}

func TestForgedReceiptIsNotCountersigned(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(1)
	task := asker.submit(t, Request{To: doer.agent(), Skill: "echo"})
	a := <-doer.workers.started
	doer.mu.Lock()
	doer.drop = func(shoal.Envelope) bool { return true } // the test delivers the end itself
	doer.mu.Unlock()
	doer.report(t, a, a2a.TaskStateCompleted, artifact("x", "out"))
	doer.mu.Lock()
	end := doer.sent[len(doer.sent)-1]
	doer.mu.Unlock()

	resign := func(f func(*wire.ReceiptBody, *wire.SignedReceipt)) []byte {
		var m wire.TaskMail
		if err := proto.Unmarshal(end.Body, &m); err != nil {
			t.Fatal(err)
		}
		s, b, err := openReceipt(m.GetEvent().GetReceipt())
		if err != nil {
			t.Fatal(err)
		}
		f(b, s)
		if s.Body != nil {
			s.Body, _ = deterministic.Marshal(b)
		}
		if s.DoerSignature != nil && len(s.DoerSignature) == 64 {
			s.DoerSignature = doer.key.Sign(identity.DomainReceipt, "test", s.Body)
		}
		m.GetEvent().Receipt, _ = deterministic.Marshal(s)
		return encodeMail(&m)
	}
	countersigns := func(body []byte) (signed, ended bool) {
		_ = asker.db.Update(context.Background(), func(tx *store.Tx) error {
			env := end
			env.Body = body
			if err := asker.Receive(tx, env); err != nil {
				t.Errorf("the end itself was refused: %v", err)
			}
			r, err := loadRow(tx, Asked, task.Key)
			if err != nil {
				t.Error(err)
			}
			signed, ended = len(r.receipt) > 0, r.state.Terminal()
			return errTakeBack
		})
		return signed, ended
	}
	if signed, ended := countersigns(resign(func(*wire.ReceiptBody, *wire.SignedReceipt) {})); !signed || !ended {
		t.Fatal("the control was not countersigned")
	}
	forged := map[string]func(*wire.ReceiptBody, *wire.SignedReceipt){
		"version":      func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Version = 2 },
		"network":      func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Network = "other" },
		"requester":    func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Requester = doer.key.Public() },
		"doer":         func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Doer = asker.key.Public() },
		"task id":      func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.TaskId += "x" },
		"skill":        func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Skill = "other" },
		"input hash":   func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.InputHash[0] ^= 1 },
		"output hash":  func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.OutputHash[31] ^= 1 },
		"state":        func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.State = 4 },
		"class":        func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.Class = 1 },
		"price":        func(b *wire.ReceiptBody, _ *wire.SignedReceipt) { b.PriceMicro = 1 },
		"no signature": func(_ *wire.ReceiptBody, s *wire.SignedReceipt) { s.DoerSignature = nil },
		"cut signature": func(_ *wire.ReceiptBody, s *wire.SignedReceipt) {
			s.DoerSignature = s.DoerSignature[:63]
		},
		"no body": func(_ *wire.ReceiptBody, s *wire.SignedReceipt) { s.Body = nil },
	}
	for name, f := range forged {
		if signed, ended := countersigns(resign(f)); signed || !ended {
			t.Errorf("%s: countersigned %v, task ended %v", name, signed, ended)
		}
	}
	t.Logf("countersigned 0 of %d forged receipts", len(forged))
}

func TestBadRequests(t *testing.T) {
	asker, doer := pair(t, echo)
	big := text(string(make([]byte, maxBody+1)))
	for _, c := range []struct {
		name   string
		change func(*Request)
		reason string
	}{
		{"no message", func(r *Request) { r.Message = nil }, "bad_message"},
		{"no parts", func(r *Request) { r.Message = &a2a.Message{} }, "bad_message"},
		{"nobody to ask", func(r *Request) { r.To, r.Skill = "", "" }, "no_receiver"},
		{"bad did", func(r *Request) { r.To = "did:web:x" }, "bad_did"},
		{"bad skill", func(r *Request) { r.Skill = "Not A Skill" }, "bad_capability"},
		{"asker not hosted here", func(r *Request) { r.From = doer.agent() }, "unknown_agent"},
		{"long key", func(r *Request) { r.IdempotencyKey = string(make([]byte, 129)) }, "bad_key"},
		{"key not UTF-8", func(r *Request) { r.IdempotencyKey = "\xff" }, "bad_key"},
		{"context not UTF-8", func(r *Request) { r.ContextID = "\xff" }, "bad_context"},
		{"deadline in the past", func(r *Request) { r.Timeout = -1 }, "deadline_passed"},
		{"ttl in the past", func(r *Request) { r.TTL = -1 }, "deadline_passed"},
		{"too large", func(r *Request) { r.Message = big }, "message_too_large"},
	} {
		req := Request{From: asker.agent(), To: doer.agent(), Skill: "echo", Message: text("x")}
		c.change(&req)
		_, _, err := asker.Submit(context.Background(), req)
		if e := shoal.AsError(err); err == nil || e.Reason != c.reason || e.Hint == "" {
			t.Errorf("%s: %v, want reason %s and a hint", c.name, err, c.reason)
		}
	}
	if n, err := asker.Open(context.Background()); n != 0 || err != nil {
		t.Errorf("%d tasks were made of bad requests, %v", n, err)
	}
	for _, c := range []struct {
		name   string
		report shoal.Report
		reason string
	}{
		{"nothing", shoal.Report{}, "empty_report"},
		{"SUBMITTED", shoal.Report{State: a2a.TaskStateSubmitted}, "illegal_transition"},
		{"artifact without id", shoal.Report{Artifacts: []*a2a.Artifact{artifact("", "x")}}, "bad_message"},
		{"artifact without parts", shoal.Report{Artifacts: []*a2a.Artifact{{ID: "a"}}}, "bad_message"},
		{"too large", shoal.Report{Artifacts: []*a2a.Artifact{artifact("a", string(make([]byte, maxBody+1)))}}, "message_too_large"},
		{"unknown task", shoal.Report{State: a2a.TaskStateCompleted}, "unknown_task"},
	} {
		c.report.Key = shoal.TaskKey{Requester: asker.agent(), ID: "none"}
		if _, err := doer.Report(context.Background(), c.report); shoal.AsError(err) == nil || shoal.AsError(err).Reason != c.reason {
			t.Errorf("report %s: %v, want %s", c.name, err, c.reason)
		}
	}
}

// FuzzReceive feeds bodies of every kind to an engine with a task of each role.
func FuzzReceive(f *testing.F) {
	w := newWorld(f)
	asker := w.node(1, echo)
	status, _ := encodeStatus(a2a.TaskStateWorking, text("x"), now())
	msg, _ := encodeMessage(text("hello"))
	art, _ := encodeArtifact(artifact("a", "b"))
	for _, m := range []*wire.TaskMail{
		{TaskId: "t", Body: &wire.TaskMail_Offer{Offer: &wire.TaskOffer{Message: msg, Skill: "echo", TimeoutMs: 5}}},
		{TaskId: "t", Body: &wire.TaskMail_Event{Event: &wire.TaskEvent{N: 2, Status: status, Artifacts: [][]byte{art}}}},
		{TaskId: "t", Body: &wire.TaskMail_Input{Input: &wire.TaskInput{Message: msg}}},
		{TaskId: "t", Body: &wire.TaskMail_Cancel{Cancel: &wire.TaskCancel{}}},
		{TaskId: "t", Body: &wire.TaskMail_Countersigned{Countersigned: &wire.Countersigned{Receipt: []byte{10, 1, 0}}}},
	} {
		f.Add(encodeMail(m))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_ = asker.db.Update(context.Background(), func(tx *store.Tx) error {
			_ = asker.Receive(tx, shoal.Envelope{From: asker.agent(), To: asker.agent(), Topic: Topic, Body: body})
			return errTakeBack
		})
	})
}

// A crash between commit and delivery is a restart of the engine on the same rows.
func TestRestartSettlesWhatWasOpen(t *testing.T) {
	raw := make([]byte, 32)
	raw[0] = 9
	key, err := identity.FromSeed(raw)
	if err != nil {
		t.Fatal(err)
	}
	db := storetest.Open(t, Schema())
	asked := shoal.AgentIDOf(key.Public())
	insert := func(r row) {
		t.Helper()
		r.message, _ = encodeMessage(text("x"))
		r.key.Requester, r.doer, r.skill = asked, asked, "echo"
		err := db.Update(context.Background(), func(tx *store.Tx) error {
			fresh := r
			return insertSubmitted(tx, &fresh, "", nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	insert(row{machine: machine{role: Doing, state: a2a.TaskStateWorking, attempt: 1, held: true}, key: shoal.TaskKey{ID: "held"}})
	insert(row{machine: machine{role: Doing, state: a2a.TaskStateSubmitted, queued: true}, key: shoal.TaskKey{ID: "queued"}})
	insert(row{machine: machine{role: Doing, state: a2a.TaskStateInputRequired, attempt: 1, held: true}, key: shoal.TaskKey{ID: "asking"}})
	insert(row{machine: machine{role: Asked, state: a2a.TaskStateSubmitted}, class: shoal.Live, key: shoal.TaskKey{ID: "live"}})

	w := newWorld(t)
	n := &testNode{w: w, key: key, db: db, box: make(chan post, 100)}
	n.workers = &fakeWorkers{skills: []shoal.Skill{echo}, slots: 1, held: map[shoal.TaskKey]bool{}, started: make(chan shoal.Assignment, 10), told: make(chan told, 10)}
	n.Engine, err = New(Config{Network: "test"}, Deps{DB: db, Outbox: n, Workers: n.workers, Agents: n, Mesh: n, Keys: n, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.workers.engine = n.Engine
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	if a := <-n.workers.started; a.Key.ID != "queued" || a.Attempt != 1 {
		t.Errorf("started %+v", a)
	}
	for id, want := range map[a2a.TaskID]struct {
		role   Role
		state  a2a.TaskState
		reason string
	}{
		"held":   {Doing, a2a.TaskStateFailed, ReasonWorkerLost},
		"live":   {Asked, a2a.TaskStateFailed, ReasonOutcomeUnknown},
		"asking": {Doing, a2a.TaskStateInputRequired, ""},
	} {
		got, err := n.Wait(context.Background(), Ref{ID: id, Requester: asked, Role: want.role})
		if err != nil || got.State != want.state || got.Reason != want.reason {
			t.Errorf("%s: %s %q %v, want %v", id, got.State, got.Reason, err, want)
		}
	}
}
