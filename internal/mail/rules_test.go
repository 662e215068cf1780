package mail_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

func (w *netw) kill(id shoal.NodeID, dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead[id] = dead
}

func (x *node) stats() mail.Stats {
	x.t.Helper()
	st, err := x.box.Stats(context.Background())
	if err != nil {
		x.t.Fatal(err)
	}
	return st
}

// TestExpiredIsSkipped: what expires while its recipient is away goes to the dead letters
// and its service, and leaves no gap that blocks what was posted later.
func TestExpiredIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		cfg := noted()
		var lost []string
		cfg.Undelivered = map[string]mail.UndeliveredFunc{topic: func(tx *store.Tx, env shoal.Envelope, reason string) error {
			lost = append(lost, string(env.Body)+" "+reason)
			return apply(tx, env) // in the transaction that buries it
		}}
		a, b := w.node(t, 1, cfg).up(), w.node(t, 2, noted()).up()
		w.kill(b.key.Node(), true)
		var short []<-chan outcome
		for i := range 3 {
			short = append(short, a.post(b.agent(), topic, fmt.Sprint(i), time.Hour))
		}
		long := a.post(b.agent(), topic, "long", 30*time.Hour)
		short = append(short, a.post(b.agent(), topic, "4", time.Hour)) // the last number
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for _, f := range short {
			a.want(f, mail.Expired, "expired")
		}
		if want := []string{"0 expired", "1 expired", "2 expired", "4 expired"}; !slices.Equal(lost, want) {
			t.Errorf("undelivered %v, want %v", lost, want)
		}
		if got := a.applied(); len(got) != 4 {
			t.Errorf("what UndeliveredFunc wrote: %v, want 4 rows", got)
		}
		dead, next, err := a.box.DeadLetters(context.Background(), "", 3)
		if err != nil || len(dead) != 3 || dead[0].Reason != "expired" || dead[0].Seq != 5 || next == "" {
			t.Errorf("dead letters: %+v, next %q, %v", dead, next, err)
		}
		dead, next, err = a.box.DeadLetters(context.Background(), next, 3)
		if err != nil || len(dead) != 1 || dead[0].Seq != 1 || next != "" {
			t.Errorf("second page: %+v, next %q, %v", dead, next, err)
		}

		// The count of the flow must survive a restart although its last row expired.
		a.down()
		a.up()
		w.kill(b.key.Node(), false)
		a.box.PeerUp(b.key.Node())
		a.want(a.post(b.agent(), topic, "after", 0), mail.Delivered, "")
		if got := b.applied(); !slices.Equal(got, []string{"long", "after"}) {
			t.Errorf("applied %v", got)
		}
		_ = long // its watch ended with the restart
		time.Sleep(time.Minute)
		if n := a.stats().Outbox; n != 0 {
			t.Errorf("%d envelopes left in the outbox", n)
		}
		a.down()
		b.down()
	})
}

// TestRetriesUntilThePeerIsBack: back-off grows, PeerUp cuts it short.
func TestRetriesUntilThePeerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
		w.kill(b.key.Node(), true)
		final := a.post(b.agent(), topic, "x", 0)
		time.Sleep(24 * time.Hour)
		dials := a.stats().Dials
		if dials < 20 || dials > 120 {
			t.Errorf("%d dials in 24 h of absence, want back-off up to 1 h", dials)
		}
		w.kill(b.key.Node(), false)
		a.box.PeerUp(b.key.Node())
		start := time.Now()
		a.want(final, mail.Delivered, "")
		if took := time.Since(start); took > time.Second {
			t.Errorf("delivered %v after PeerUp", took)
		}
		a.down()
		b.down()
	})
}

// TestUnknownRecipientWaits: no card, no route; it is delivered once there is one.
func TestUnknownRecipientWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
		stranger := testKey(t, 9)
		final := a.post(stranger.Agent(), topic, "x", 0)
		time.Sleep(time.Minute)
		b.host(stranger)
		a.want(final, mail.Delivered, "")
		a.down()
		b.down()
	})
}

// TestMovedRecipientIsFound: its old node answers not_here, the router then knows better.
func TestMovedRecipientIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		a, b, c := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up(), w.node(t, 3, noted()).up()
		k := testKey(t, 9)
		b.host(k)
		a.want(a.post(k.Agent(), topic, "1", 0), mail.Delivered, "")
		c.host(k)
		w.mu.Lock()
		delete(b.keys, k.Agent())
		w.mu.Unlock()
		// c does not know the flow's first envelope: it asks, and gets a skip.
		a.want(a.post(k.Agent(), topic, "2", 0), mail.Delivered, "")
		if got := c.applied(); !slices.Equal(got, []string{"2"}) {
			t.Errorf("new node applied %v", got)
		}
		// Mail to others at the old node went on.
		a.want(a.post(b.agent(), topic, "3", 0), mail.Delivered, "")
		a.down()
		b.down()
		c.down()
	})
}

func TestRefusals(t *testing.T) {
	w := newNet()
	var told sync.Map
	fail := map[string]error{
		"invalid":     shoal.NewError(shoal.Invalid, "r_invalid", "", ""),
		"denied":      fmt.Errorf("wrapped: %w", shoal.NewError(shoal.Denied, "r_denied", "", "")),
		"not_found":   shoal.NewError(shoal.NotFound, "r_not_found", "", ""),
		"conflict":    shoal.NewError(shoal.Conflict, "r_conflict", "", ""),
		"unsupported": shoal.NewError(shoal.Unsupported, "", "", ""),
	}
	receiver := mail.Config{Handlers: map[string]mail.Handler{topic: func(tx *store.Tx, env shoal.Envelope) error {
		if err := apply(tx, env); err != nil {
			return err
		}
		return fail[string(env.Body)]
	}}}
	receiver.Admit = func(from, to shoal.AgentID, topic string) error {
		if topic == "test.closed" {
			return shoal.NewError(shoal.Denied, "not_allowed", "", "")
		}
		return nil
	}
	sender := noted()
	sender.Undelivered = map[string]mail.UndeliveredFunc{topic: func(_ *store.Tx, env shoal.Envelope, reason string) error {
		told.Store(string(env.Body), reason)
		return nil
	}}
	a, b := w.node(t, 1, sender).up(), w.node(t, 2, receiver).up()

	finals := map[string]<-chan outcome{}
	for body := range fail {
		finals[body] = a.post(b.agent(), topic, body, 0)
	}
	ok := a.post(b.agent(), topic, "fine", 0)
	closed := []<-chan outcome{a.post(b.agent(), "test.closed", "1", 0), a.post(b.agent(), "test.closed", "2", 0)}
	nobody := a.post(b.agent(), "test.nobody", "1", 0)
	for body, final := range finals {
		want := "r_" + body
		if body == "unsupported" {
			want = "refused" // an error without a reason
		}
		a.want(final, mail.Refused, want)
		if got, _ := told.Load(body); got != want {
			t.Errorf("UndeliveredFunc heard %v of %q, want %q", got, body, want)
		}
	}
	a.want(ok, mail.Delivered, "")
	for _, f := range closed {
		a.want(f, mail.Refused, "not_allowed")
	}
	a.want(nobody, mail.Refused, "unknown_topic")
	if got := b.applied(); !slices.Equal(got, []string{"fine"}) {
		t.Errorf("applied %v: a refusing handler left something", got)
	}
	if st := a.stats(); st.DeadLetters != len(fail)+3 || st.Refused != uint64(len(fail)+3) {
		t.Errorf("%d dead letters, %d refused, want %d", st.DeadLetters, st.Refused, len(fail)+3)
	}
}

// TestTransientFailureHoldsOnlyItsFlow: "later" applies nothing, keeps order, and lets
// other flows pass.
func TestTransientFailureHoldsOnlyItsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		var broken atomic.Bool
		broken.Store(true)
		cfg := mail.Config{Handlers: map[string]mail.Handler{"test.other": apply, topic: func(tx *store.Tx, env shoal.Envelope) error {
			if err := apply(tx, env); err != nil {
				return err
			}
			if broken.Load() {
				return errors.New("disk on fire")
			}
			return nil
		}}}
		a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
		var held <-chan outcome
		for i := range 10 {
			held = a.post(b.agent(), topic, fmt.Sprint(i), 0)
		}
		a.want(a.post(b.agent(), "test.other", "o", 0), mail.Delivered, "")
		time.Sleep(time.Minute)
		if got := b.applied(); !slices.Equal(got, []string{"o"}) {
			t.Errorf("applied %v while the handler fails", got)
		}
		broken.Store(false)
		a.want(held, mail.Delivered, "")
		if got := b.applied(); len(got) != 11 || got[10] != "9" {
			t.Errorf("applied %v", got)
		}
		a.down()
		b.down()
	})
}

// restored replaces x's database by a backup.
func (x *node) restored(backup string) {
	x.t.Helper()
	x.down()
	for _, name := range []string{"shoal.db", "shoal.db-wal", "shoal.db-shm"} {
		os.Remove(filepath.Join(x.dir, name))
	}
	if err := store.Restore(backup, x.dir); err != nil {
		x.t.Fatal(err)
	}
	x.up()
}

func (x *node) backup(name string) string {
	x.t.Helper()
	path := filepath.Join(x.t.TempDir(), name)
	if err := x.db.Backup(context.Background(), path); err != nil {
		x.t.Fatal(err)
	}
	return path
}

// TestRestoredSender: its numbers begin anew in a new epoch; what the backup still had
// queued and was delivered since is not applied twice.
func TestRestoredSender(t *testing.T) {
	w := newNet()
	cfg := quick(noted())
	a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
	a.want(a.post(b.agent(), topic, "1", 0), mail.Delivered, "")
	w.kill(b.key.Node(), true)
	a.box.PeerUp(b.key.Node())
	a.down() // so that the stream is gone
	a.up()
	a.post(b.agent(), topic, "2", 0)
	a.post(b.agent(), topic, "3", 0)
	old := a.backup("a.db")
	w.kill(b.key.Node(), false)
	a.box.PeerUp(b.key.Node())
	a.want(a.post(b.agent(), topic, "4", 0), mail.Delivered, "")
	before := a.db.Epoch()
	a.restored(old)
	if a.db.Epoch() <= before {
		t.Fatalf("epoch %d after a restore, %d before", a.db.Epoch(), before)
	}
	a.want(a.post(b.agent(), topic, "5", 0), mail.Delivered, "")
	a.want(a.post(b.agent(), topic, "6", 0), mail.Delivered, "")
	if got, want := b.applied(), []string{"1", "2", "3", "4", "5", "6"}; !slices.Equal(got, want) {
		t.Errorf("applied %v, want %v", got, want)
	}
	waitFor(t, "empty outbox", func() bool { return a.stats().Outbox == 0 })
}

// TestRestoredReceiver: it asks for what it lost, and gets a skip for what is gone.
func TestRestoredReceiver(t *testing.T) {
	w := newNet()
	cfg := quick(noted())
	a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
	a.want(a.post(b.agent(), topic, "1", 0), mail.Delivered, "")
	old := b.backup("b.db")
	for _, body := range []string{"2", "3", "4"} {
		a.want(a.post(b.agent(), topic, body, 0), mail.Delivered, "")
	}
	waitFor(t, "empty outbox", func() bool { return a.stats().Outbox == 0 })
	b.restored(old)
	a.want(a.post(b.agent(), topic, "5", 0), mail.Delivered, "")
	a.want(a.post(b.agent(), topic, "6", 0), mail.Delivered, "")
	if got, want := b.applied(), []string{"1", "5", "6"}; !slices.Equal(got, want) {
		t.Errorf("applied %v, want %v", got, want)
	}
}

func TestPostChecks(t *testing.T) {
	w := newNet()
	cfg := noted()
	cfg.MaxQueued, cfg.MaxQueuedBytes = 3, 1<<20
	a := w.node(t, 1, cfg).up()
	to := testKey(t, 2).Agent()
	big := make([]byte, shoal.MaxBody)
	for _, c := range []struct {
		name     string
		from, to shoal.AgentID
		topic    string
		body     []byte
		ttl      time.Duration
		want     error
	}{
		{"stranger as sender", to, to, topic, nil, 0, mail.ErrNotHosted},
		{"malformed sender", "did:key:z", to, topic, nil, 0, mail.ErrNotHosted},
		{"malformed recipient", a.agent(), "did:key:zzz", topic, nil, 0, mail.ErrBadRecipient},
		{"no topic", a.agent(), to, "", nil, 0, mail.ErrBadTopic},
		{"upper case topic", a.agent(), to, "Test", nil, 0, mail.ErrBadTopic},
		{"body too large", a.agent(), to, topic, append(big, 0), 0, mail.ErrBodyTooLarge},
		{"negative ttl", a.agent(), to, topic, nil, -1, mail.ErrBadTTL},
		{"ttl too long", a.agent(), to, topic, nil, 31 * 24 * time.Hour, mail.ErrBadTTL},
		{"fine", a.agent(), to, topic, nil, 0, nil},
		{"fine, largest", a.agent(), to, topic, big, 0, nil},
		{"fine, third", a.agent(), to, topic, nil, 0, nil},
		{"one too many", a.agent(), to, topic, nil, 0, mail.ErrOutboxFull},
		{"for somebody else", a.agent(), testKey(t, 3).Agent(), topic, nil, 0, nil},
	} {
		err := a.db.Update(context.Background(), func(tx *store.Tx) error {
			_, err := a.box.Post(tx, c.from, c.to, c.topic, c.body, c.ttl)
			return err
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	// A transaction that is rolled back gives its numbers and its room back.
	boom := errors.New("boom")
	b := testKey(t, 4).Agent()
	for range 10 {
		err := a.db.Update(context.Background(), func(tx *store.Tx) error {
			for range 3 {
				if _, err := a.box.Post(tx, a.agent(), b, topic, nil, 0); err != nil {
					return err
				}
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatalf("post after roll back: %v", err)
		}
	}
	if n := a.stats().Outbox; n != 4 {
		t.Errorf("%d in the outbox, want 4", n)
	}
}

// TestFullInboxWaits: letters beyond the limit stay with their sender.
func TestFullInboxWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		cfg := noted()
		cfg.MaxInbox = 2
		a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
		var last <-chan outcome
		for i := range 4 {
			last = a.post(b.agent(), mail.TopicLetter, fmt.Sprint(i), 0)
		}
		time.Sleep(10 * time.Second)
		ctx := context.Background()
		page, err := b.box.Inbox(ctx, b.agent(), 0, 0)
		if err != nil || len(page) != 2 {
			t.Fatalf("inbox: %d letters, %v, want 2", len(page), err)
		}
		if err := b.box.Ack(ctx, b.agent(), []uint64{page[0].Cursor, page[1].Cursor}); err != nil {
			t.Fatal(err)
		}
		a.want(last, mail.Delivered, "")
		a.down()
		b.down()
	})
}

// TestLazyPostsWaitForCompany: a lazy envelope goes with the next one, or after a moment.
func TestLazyPostsWaitForCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bubbleNet()
		a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
		a.want(a.post(b.agent(), topic, "0", 0), mail.Delivered, "") // the stream is open
		lazy := func(body string) {
			err := a.db.Update(context.Background(), func(tx *store.Tx) error {
				_, err := a.box.PostLazy(tx, a.agent(), b.agent(), topic, []byte(body), 0)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		lazy("1")
		synctest.Wait()
		if got := b.applied(); len(got) != 1 {
			t.Errorf("applied %v at once", got)
		}
		a.want(a.post(b.agent(), topic, "2", 0), mail.Delivered, "")
		lazy("3")
		time.Sleep(time.Second)
		if got := b.applied(); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			t.Errorf("applied %v", got)
		}
		a.down()
		b.down()
	})
}

// TestManyRefusalsInOneTransaction: handlers that refuse before they write cost one roll
// back for a batch, and refuse each envelope by itself.
func TestManyRefusalsInOneTransaction(t *testing.T) {
	w := newNet()
	var runs atomic.Int64
	b := w.node(t, 1, mail.Config{Handlers: map[string]mail.Handler{topic: func(tx *store.Tx, env shoal.Envelope) error {
		runs.Add(1)
		if env.Seq%2 == 0 {
			return errNotToday
		}
		return apply(tx, env)
	}}}).up()
	const n = 600
	seqs := make([]uint64, n)
	for i := range seqs {
		seqs[i] = uint64(i + 1)
	}
	acks := b.deliver(newDraft(testKey(t, 2), b.agent(), seqs...).frame(t))
	refused := 0
	for _, a := range acks {
		if a.GetRefused() == "not_today" && a.GetRefusedSeq()%2 == 0 && a.GetHave() <= a.GetRefusedSeq() {
			refused++
		}
	}
	if refused != n/2 || acks[len(acks)-1].GetHave() != n || len(b.applied()) != n/2 {
		t.Errorf("refused %d, applied %d, have %d, want %d, %d, %d", refused, len(b.applied()), acks[len(acks)-1].GetHave(), n/2, n/2, n)
	}
	if got := runs.Load(); got > n+10 {
		t.Errorf("%d runs of the handler for %d envelopes", got, n)
	}
}
