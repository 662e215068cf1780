package mail_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const topic = "test.note"

func noted() mail.Config {
	return mail.Config{Handlers: map[string]mail.Handler{topic: apply}}
}

func TestDeliversInOrder(t *testing.T) {
	w := newNet()
	a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
	var last <-chan outcome
	var want []string
	for i := range 500 {
		body := fmt.Sprint(i)
		want = append(want, body)
		last = a.post(b.agent(), topic, body, 0)
	}
	a.want(last, mail.Delivered, "")
	if got := b.applied(); !slices.Equal(got, want) {
		t.Errorf("applied %d envelopes %v, want 500 in order", len(got), got)
	}
}

func TestLettersWaitForTheirAgent(t *testing.T) {
	w := newNet()
	a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
	for i := range 3 {
		a.want(a.post(b.agent(), mail.TopicLetter, fmt.Sprint(i), 0), mail.Delivered, "")
	}
	ctx := context.Background()
	page, err := b.box.Inbox(ctx, b.agent(), 0, 2)
	if err != nil || len(page) != 2 || string(page[1].Body) != "1" || page[0].From != a.agent() {
		t.Fatalf("first page: %+v, %v", page, err)
	}
	if err := b.box.Ack(ctx, b.agent(), []uint64{page[0].Cursor, 999}); err != nil {
		t.Fatal(err)
	}
	page, err = b.box.Inbox(ctx, b.agent(), 0, 0)
	if err != nil || len(page) != 2 || string(page[0].Body) != "1" {
		t.Errorf("after ack: %+v, %v", page, err)
	}
}

func TestLocalDelivery(t *testing.T) {
	w := newNet()
	cfg := mail.Config{Handlers: map[string]mail.Handler{topic: apply}}
	a := w.node(t, 1, cfg)
	// A handler that posts on: 5 hops between two agents of one node.
	other := testKey(t, 2)
	a.host(other)
	a.cfg.Handlers["test.hop"] = func(tx *store.Tx, env shoal.Envelope) error {
		if len(env.Body) == 5 {
			return apply(tx, env)
		}
		_, err := a.box.Post(tx, env.To, env.From, "test.hop", append(env.Body, 'x'), 0)
		return err
	}
	a.up()
	var last <-chan outcome
	for i := range 100 {
		last = a.post(other.Agent(), topic, fmt.Sprint(i), 0)
	}
	a.want(last, mail.Delivered, "")
	if got := a.applied(); len(got) != 100 || got[99] != "99" {
		t.Errorf("applied %v", got)
	}
	a.post(other.Agent(), "test.hop", "", 0)
	waitFor(t, "five hops", func() bool { got := a.applied(); return got[len(got)-1] == "xxxxx" })
}
