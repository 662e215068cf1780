package mail_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

var seedFlag = flag.Uint64("mail.seed", 0, "seed of the random tests; 0 draws one")

// chance is a seeded source that goroutines share; what they draw depends on their order.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newChance(t testing.TB) *chance {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-mail.seed=%d", seed)
	return &chance{r: rand.New(rand.NewPCG(seed, 1))}
}

func (c *chance) n(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

// faulty is the dialling end of a stream on which frames (each is one Write) get lost,
// doubled, swapped, and the stream cut, also in the middle of a frame.
type faulty struct {
	net.Conn
	c    *chance
	held []byte
}

func (f *faulty) Write(p []byte) (int, error) {
	switch f.c.n(20) {
	case 0: // lost
		return len(p), nil
	case 1: // twice
		if _, err := f.Conn.Write(p); err != nil {
			return 0, err
		}
	case 2: // after the next
		if f.held == nil {
			f.held = slices.Clone(p)
			return len(p), nil
		}
	case 3: // cut
		if f.c.n(3) == 0 {
			f.Conn.Write(p[:f.c.n(len(p))])
			f.Conn.Close()
			return 0, errors.New("cut")
		}
	}
	n, err := f.Conn.Write(p)
	if held := f.held; held != nil && err == nil {
		f.held = nil
		_, err = f.Conn.Write(held)
	}
	return n, err
}

func (f *faulty) Read(p []byte) (int, error) {
	if f.c.n(100) == 0 {
		f.Conn.Close()
	}
	return f.Conn.Read(p)
}

// quick retries so fast that tests with real time end soon.
func quick(cfg mail.Config) mail.Config {
	cfg.RetryMin, cfg.RetryMax = time.Millisecond, 20*time.Millisecond
	cfg.AckTimeout = 100 * time.Millisecond
	return cfg
}

var errNotToday = shoal.NewError(shoal.Denied, "not_today", "no", "")

// TestFaultyStreamsApplyOnce: whatever happens to streams and handlers, each envelope is
// applied once, in order, or its sender hears that it was refused.
func TestFaultyStreamsApplyOnce(t *testing.T) {
	const each = 400
	c := newChance(t)
	w := newNet()
	w.wrap = func(conn net.Conn) net.Conn { return &faulty{Conn: conn, c: c} }
	moody := func(tx *store.Tx, env shoal.Envelope) error {
		// A write before the refusal, which must leave no trace.
		if err := apply(tx, env); err != nil {
			return err
		}
		switch {
		case env.Body[len(env.Body)-1] == '7':
			return errNotToday
		case c.n(50) == 0:
			return errors.New("not now")
		}
		return nil
	}
	cfg := quick(mail.Config{Handlers: map[string]mail.Handler{"test.a": moody, "test.b": moody}})
	a, b := w.node(t, 1, cfg), w.node(t, 2, cfg)
	second := testKey(t, 3)
	a.host(second)
	a.up()
	b.up()

	type flow struct {
		from  shoal.AgentID
		topic string
	}
	want := map[flow][]string{}
	finals := map[string]<-chan outcome{}
	refused := 0
	for i := range each {
		for _, f := range []flow{{a.agent(), "test.a"}, {a.agent(), "test.b"}, {second.Agent(), "test.a"}} {
			body := fmt.Sprintf("%s %s %d", f.from.Short(), f.topic, i)
			finals[body] = a.postAs(f.from, b.agent(), f.topic, body, 0)
			if i%10 == 7 {
				refused++
			} else {
				want[f] = append(want[f], body)
			}
		}
	}
	for body, final := range finals {
		if body[len(body)-1] == '7' {
			a.want(final, mail.Refused, "not_today")
		} else {
			a.want(final, mail.Delivered, "")
		}
	}
	got := map[flow][]string{}
	err := b.db.View(context.Background(), func(tx *store.Tx) error {
		clear(got)
		return tx.Each(`SELECT sender, topic, body FROM applied ORDER BY id`, nil, func(scan func(...any) error) error {
			var from, topic string
			var body []byte
			err := scan(&from, &topic, &body)
			f := flow{shoal.AgentID(from), topic}
			got[f] = append(got[f], string(body))
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for f := range want {
		if !slices.Equal(got[f], want[f]) {
			t.Errorf("flow %s %s: applied %d envelopes, want %d in order\n%v", f.from.Short(), f.topic, len(got[f]), len(want[f]), got[f])
		}
	}
	for body, final := range finals {
		if len(final) > 0 {
			t.Errorf("%q ended twice", body)
		}
	}
	st, err := a.box.Stats(context.Background())
	if err != nil || st.DeadLetters != refused {
		t.Errorf("%d dead letters, want %d (%v)", st.DeadLetters, refused, err)
	}
	waitFor(t, "empty outbox", func() bool {
		st, err := a.box.Stats(context.Background())
		return err == nil && st.Outbox == 0
	})
	t.Logf("%d envelopes, %d refused; sent %d in %d frames over %d dials", 3*each, refused, st.SentEnvelopes, st.SentFrames, st.Dials)
}

// TestRestartsLoseNothing: both nodes are cut off in the middle of what they do, at random
// points, and come back; what a committed Post stored is applied once, in order. (Real
// kills are test/e2e's.)
func TestRestartsLoseNothing(t *testing.T) {
	c := newChance(t)
	w := newNet()
	cfg := quick(noted())
	a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
	ctx := context.Background()
	var want []string
	restarts := 0
	for i := 0; i < 2000; i++ {
		body := fmt.Sprint(i)
		err := a.db.Update(ctx, func(tx *store.Tx) error {
			_, err := a.box.Post(tx, a.agent(), b.agent(), topic, []byte(body), 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, body)
		switch c.n(80) {
		case 0:
			a.down()
			a.up()
			restarts++
		case 1:
			b.down()
			b.up()
			restarts++
			a.box.PeerUp(b.key.Node())
		}
	}
	waitFor(t, "all applied", func() bool { return len(b.applied()) >= len(want) })
	if got := b.applied(); !slices.Equal(got, want) {
		t.Errorf("applied %d envelopes, want %d in order: %v", len(got), len(want), got)
	}
	t.Logf("%d restarts", restarts)
}
