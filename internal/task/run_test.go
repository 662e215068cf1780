package task

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/gen/wire"
	"github.com/shoalmesh/shoal/internal/store"
)

// A busy machine may start mail and workers before Run has looked at the last run's
// tasks: what was handed to a worker of this run is not lost, what the last run held is.
func TestRecoveryLeavesTasksOfThisRunAlone(t *testing.T) {
	asker, doer := pair(t, echo)
	doer.attach(2)
	old := asker.submit(t, Request{To: doer.agent(), Skill: "echo"})
	<-doer.workers.started

	// The same database under a second engine, whose Run has not come to it yet.
	next, err := New(Config{Network: "test"}, Deps{
		DB: doer.db, Outbox: doer, Workers: doer.workers, Agents: doer, Mesh: doer, Keys: doer,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := encodeMessage(text("new"))
	if err != nil {
		t.Fatal(err)
	}
	key := shoal.TaskKey{Requester: asker.agent(), ID: "new"}
	offer := encodeMail(&wire.TaskMail{TaskId: string(key.ID), Body: &wire.TaskMail_Offer{Offer: &wire.TaskOffer{Skill: "echo", Message: msg}}})
	err = doer.db.Update(context.Background(), func(tx *store.Tx) error {
		return next.Receive(tx, shoal.Envelope{From: asker.agent(), To: doer.agent(), Topic: Topic, Body: offer})
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-doer.workers.started:
		if a.Key != key {
			t.Fatalf("started %v, want %v", a.Key, key)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the new task is not started")
	}

	if err := next.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, gone := next.queue.take()
	if len(gone) != 1 || gone[0].key != old.Key {
		t.Errorf("given up as lost: %v, want only the last run's %v", gone, old.Key)
	}
	got, err := next.Get(context.Background(), Ref{ID: "new", Role: Doing})
	if err != nil || got.State != a2a.TaskStateWorking {
		t.Errorf("the new task is %v, %v", got.State, err)
	}
}
