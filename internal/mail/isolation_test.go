package mail_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal/internal/mail"
	"github.com/shoalmesh/shoal/internal/store"
)

// queueFor posts n envelopes for an agent that nobody reaches.
func (x *node) queueFor(to int, n int) {
	x.t.Helper()
	agent := testKey(x.t, to).Agent()
	err := x.db.Update(context.Background(), func(tx *store.Tx) error {
		for range n {
			if _, err := x.box.Post(tx, x.agent(), agent, topic, make([]byte, 1024), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		x.t.Fatal(err)
	}
}

// roundTrips is the median time of n envelopes, one after the other.
func (x *node) roundTrips(to *node, n int) time.Duration {
	x.t.Helper()
	var took []time.Duration
	for range n {
		start := time.Now()
		x.want(x.post(to.agent(), topic, "ping", 0), mail.Delivered, "")
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[n/2]
}

// TestDeadPeersSlowNobody: 5,000 envelopes for one dead peer and mail for 500 more, whose
// dials hang, change nothing for a live one.
func TestDeadPeersSlowNobody(t *testing.T) {
	const dead = 500
	w := newNet()
	a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
	w.mu.Lock()
	w.hang = true
	for i := range dead + 1 {
		k := testKey(t, 100+i)
		w.hosts[k.Agent()] = k.Node()
	}
	w.mu.Unlock()
	alone := a.roundTrips(b, 100)
	goroutines := runtime.NumGoroutine()
	a.queueFor(100, 5000)
	for i := range dead {
		a.queueFor(101+i, 1)
	}
	waitFor(t, "dials", func() bool { return a.stats().Dials > 200 })
	crowded := a.roundTrips(b, 100)
	t.Logf("median %v alone, %v beside %d dead peers; %d goroutines before, %d now", alone, crowded, dead+1, goroutines, runtime.NumGoroutine())
	// The disk is shared and the machine busy; a dead peer in the way costs seconds.
	if limit := 5*alone + 50*time.Millisecond; crowded > limit {
		t.Errorf("median %v beside dead peers, %v alone", crowded, alone)
	}
	// A fresh stream is not in the queue behind those that hang.
	c := w.node(t, 3, noted()).up()
	start := time.Now()
	a.want(a.post(c.agent(), topic, "first", 0), mail.Delivered, "")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("first envelope to a live node took %v", took)
	}
}

// TestManyDeadPeersCostLittle: peers that stay away have no goroutine and no body in
// memory, and are all served when they are back.
func TestManyDeadPeersCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		w := bubbleNet()
		a, b := w.node(t, 1, noted()).up(), w.node(t, 2, noted()).up()
		goroutines := runtime.NumGoroutine()
		w.hang = true
		for i := range n {
			k := testKey(t, 100+i)
			w.mu.Lock()
			w.hosts[k.Agent()] = k.Node()
			w.mu.Unlock()
			a.queueFor(100+i, 3)
		}
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if got := runtime.NumGoroutine(); got > goroutines+40 {
			t.Errorf("%d goroutines beside %d dead peers, %d before", got, n, goroutines)
		}
		// All those agents move to b.
		for i := range n {
			b.host(testKey(t, 100+i))
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if got := len(b.applied()); got != 3*n {
			t.Errorf("applied %d, want %d", got, 3*n)
		}
		if st := a.stats(); st.Outbox != 0 {
			t.Errorf("%d left in the outbox", st.Outbox)
		}
		a.down()
		b.down()
	})
}

// TestQueuesBeyondMemory: what does not fit in memory is read from the outbox, in order.
func TestQueuesBeyondMemory(t *testing.T) {
	w := newNet()
	cfg := quick(noted())
	cfg.Memory = 64 << 10
	a, b := w.node(t, 1, cfg).up(), w.node(t, 2, cfg).up()
	w.kill(b.key.Node(), true)
	var want []string
	var last <-chan outcome
	for i := range 300 {
		body := fmt.Sprintf("%d %01000d", i, i)
		want = append(want, body)
		last = a.post(b.agent(), topic, body, 0)
	}
	w.kill(b.key.Node(), false)
	a.box.PeerUp(b.key.Node())
	for i := 300; i < 600; i++ {
		body := fmt.Sprintf("%d %01000d", i, i)
		want = append(want, body)
		last = a.post(b.agent(), topic, body, 0)
	}
	a.want(last, mail.Delivered, "")
	if got := b.applied(); !slices.Equal(got, want) {
		t.Errorf("applied %d, want %d in order", len(got), len(want))
	}
}

// TestStrangersFillNothing: flows beyond the limit are told to wait, known ones go on.
func TestStrangersFillNothing(t *testing.T) {
	w := newNet()
	cfg := noted()
	cfg.MaxFlows = 2
	b := w.node(t, 1, cfg).up()
	for i := range 4 {
		acks := b.deliver(newDraft(testKey(t, 10+i), b.agent(), 1).frame(t))
		if len(acks) != 1 || acks[0].GetLater() != (i >= 2) {
			t.Errorf("stranger %d: %v", i, acks)
		}
	}
	acks := b.deliver(newDraft(testKey(t, 10), b.agent(), 2).frame(t))
	if len(acks) != 1 || acks[0].GetHave() != 2 {
		t.Errorf("known flow: %v", acks)
	}
}
