package directory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
)

func TestPublishedAgentsAreFoundByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		var nodes []*node
		var want []string
		for i := range 12 {
			n := newNode(t, mesh, nodeName(i))
			name := fmt.Sprintf("ocr-%02d", i)
			n.agent(name, "ocr", fmt.Sprintf("only-%02d", i))
			nodes, want = append(nodes, n), append(want, name)
		}
		settleDown()
		for i, n := range nodes {
			// The node's own agent comes first.
			own := append([]string{want[i]}, append(append([]string{}, want[:i]...), want[i+1:]...)...)
			wantNames(t, nodeName(i)+" finds ocr", n.find("a2a:v1:cap:ocr", false), own...)
			other := (i + 5) % len(nodes)
			wantNames(t, nodeName(i)+" finds one", n.find(fmt.Sprintf("only-%02d", other), false), want[other])
			wantNames(t, nodeName(i)+" finds none", n.find("no-such-thing", false))
			id := nodes[other].dir.Local()[0].Agent
			c, err := n.dir.Resolve(t.Context(), id, true)
			if err != nil || c.Agent != id || c.Node != nodes[other].key.Node() || c.Name != want[other] {
				t.Errorf("resolve: got %s on %s, %v", c.Agent, c.Node, err)
			}
		}
		wantNames(t, "limit", nodes[0].query(Query{Capability: "ocr", Limit: 3}), want[:3]...)
	})
}

func TestFindByText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		a.agent("Reader", "ocr", "translate")
		a.agent("Writer", "poem")
		settleDown()
		wantNames(t, "nothing known yet", b.query(Query{Text: "reader"}))
		b.find("ocr", false)
		b.find("poem", false)
		for text, want := range map[string][]string{
			"agent":          {"Reader", "Writer"},
			"READER":         {"Reader"},
			"tag-ocr":        {"Reader"},
			"does translate": {"Reader"},
			"reader poem":    {},
			"  writer  ":     {"Writer"},
		} {
			wantNames(t, text, b.query(Query{Text: text}), want...)
		}
		wantNames(t, "both", b.query(Query{Capability: "ocr", Text: "reader"}), "Reader")
		wantNames(t, "both, no match", b.query(Query{Capability: "ocr", Text: "writer"}))
		wantNames(t, "own agents too", a.query(Query{Text: "poem"}), "Writer")
	})
}

func TestConnectedNodesFindEachOtherWithoutDHT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		broken := func(m Mesh) Mesh { return noDHT{m} }
		a.rerun(broken)
		b.rerun(broken)
		id := a.agent("echo", "echo")
		wantNames(t, "find", b.find("echo", false), "echo")
		other := a.agent("other", "other")
		if c, err := b.dir.Resolve(t.Context(), other, false); err != nil || c.Name != "other" {
			t.Errorf("resolve: %v, %v", c.Name, err)
		}
		_, err := b.dir.Resolve(t.Context(), testKey(t, "nobody").Agent(), false)
		wantErr(t, "resolve nobody", err, ErrUnknownAgent)
		if n, err := a.dir.Refresh(t.Context(), id); n != 0 || !errors.Is(err, errNoDHT) {
			t.Errorf("refresh: %d, %v", n, err)
		}
		if got, want := a.dir.Stats(), (Stats{Hosted: 2}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		a.via = nil
		a.restart()
		if got, want := a.dir.Stats(), (Stats{Hosted: 2, Published: 2}); got != want {
			t.Errorf("stats with a DHT %+v, want %+v", got, want)
		}
	})
}

func TestRecordIsPutBackOnNodeThatLostIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		id := a.agent("echo", "echo")
		settleDown()
		time.Sleep(10 * time.Minute)
		b.restart()
		a.stop()
		if _, err := b.mesh.GetRecord(t.Context(), "card", id); err != nil {
			t.Errorf("record: %v", err)
		}
		if nodes, err := b.mesh.Providers(t.Context(), "a2a:v1:cap:echo", 5); err != nil || len(nodes) != 1 {
			t.Errorf("providers: %v, %v", nodes, err)
		}
	})
}

func TestAgentsOfSilentHostsComeLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b, c := newNode(t, mesh, "a"), newNode(t, mesh, "b"), newNode(t, mesh, "c")
		a.agent("alpha", "echo")
		b.agent("beta", "echo")
		settleDown()
		wantNames(t, "both there", c.find("echo", false), "alpha", "beta")
		a.stop()
		time.Sleep(time.Second)
		wantNames(t, "one off", c.find("echo", true), "beta", "alpha")
		a.start()
		synctest.Wait()
		time.Sleep(10 * time.Second) // it was silent, but has come up since
		c.dir.finds.put("echo", time.Now(), nil)
		wantNames(t, "back", c.find("echo", false), "alpha", "beta")
	})
}

func TestLateJoinerFindsWhatExists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a := newNode(t, mesh, "a")
		a.agent("echo", "echo") // alone: cannot be published yet
		time.Sleep(37 * time.Minute)
		b := newNode(t, mesh, "b")
		settleDown()
		wantNames(t, "the first peer", b.find("echo", false), "echo")
		time.Sleep(30 * time.Hour)
		c := newNode(t, mesh, "c")
		synctest.Wait()
		wantNames(t, "a late joiner", c.find("echo", false), "echo")
		wantNames(t, "the first peer, later", b.find("echo", false), "echo")
	})
}

func TestRestartedNodeGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		id := a.agent("echo", "echo")
		settleDown()
		wantNames(t, "before", b.find("echo", false), "echo")
		before, _ := b.dir.Knows(id)

		a.restart()
		if got := a.dir.Local(); len(got) != 1 || got[0].Agent != id || !got[0].Local {
			t.Fatalf("hosted agents after restart: %v", got)
		}
		wantNames(t, "asker stayed", b.find("echo", true), "echo")
		if n, err := a.dir.Refresh(t.Context(), ""); n != 1 || err != nil {
			t.Fatalf("refresh: %d, %v", n, err)
		}
		wantNames(t, "refreshed", b.find("echo", true), "echo")
		after, _ := b.dir.Knows(id)
		if after.Seq <= before.Seq {
			t.Errorf("sequence number %d after %d", after.Seq, before.Seq)
		}

		// The asker restarts with nobody to ask, and still knows.
		a.stop()
		b.restart()
		if c, ok := b.dir.Knows(id); !ok || c.Seq != after.Seq {
			t.Errorf("after its restart the asker knows %v %v", c.Seq, ok)
		}
		wantNames(t, "from disk", b.find("echo", false), "echo")
	})
}

func TestRestartedAgentsAreFoundAgainAfterAllNodesRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b, c := newNode(t, mesh, "a"), newNode(t, mesh, "b"), newNode(t, mesh, "c")
		a.agent("echo", "echo")
		settleDown()
		for _, n := range []*node{a, b, c} {
			n.restart() // and what it held for the DHT is gone
		}
		settleDown()
		for _, n := range []*node{b, c} {
			providers, err := n.mesh.Providers(t.Context(), "a2a:v1:cap:echo", 10)
			if err != nil || len(providers) != 1 {
				t.Errorf("providers: %v, %v", providers, err)
			}
			wantNames(t, "find", n.find("echo", false), "echo")
		}
	})
}

func TestWithdrawnAgentIsGoneForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b, c := newNode(t, mesh, "a"), newNode(t, mesh, "b"), newNode(t, mesh, "c")
		id := a.agent("echo", "echo")
		a.agent("other", "echo")
		settleDown()
		wantNames(t, "before", b.find("echo", false), "echo", "other")
		if err := a.dir.Withdraw(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := a.dir.Withdraw(t.Context(), id); err != nil {
			t.Errorf("withdraw twice: %v", err)
		}
		settleDown()
		wantNames(t, "the host", a.find("echo", false), "other")
		wantNames(t, "who knew it, fresh", b.find("echo", true), "other")
		wantNames(t, "who knew it", b.find("echo", false), "other")
		wantNames(t, "who did not", c.find("echo", false), "other")
		for _, n := range []*node{a, b, c} {
			_, err := n.dir.Resolve(t.Context(), id, false)
			wantErr(t, "resolve", err, ErrWithdrawn)
		}
		raw := signCard(t, testKey(t, "agent echo"), time.Now(), func(p *params) { p.Seq = 1 }, "echo")
		_, _ = a.dir.accept(t.Context(), raw, "", id)
		_, err := a.dir.Resolve(t.Context(), id, false)
		wantErr(t, "resolve after an old card came to the host", err, ErrWithdrawn)
		a.stop() // the tombstone is in the DHT
		d := newNode(t, mesh, "d")
		_, err = d.dir.Resolve(t.Context(), id, false)
		wantErr(t, "late joiner's resolve", err, ErrWithdrawn)

		// The agent may come back, above its tombstone.
		a.start()
		settleDown()
		a.agent("echo", "echo")
		settleDown()
		wantNames(t, "back", d.find("echo", true), "echo", "other")
		wantErr(t, "withdraw a stranger", a.dir.Withdraw(t.Context(), testKey(t, "stranger").Agent()), ErrNotHosted)
	})
}

func TestCardsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		id := a.agent("echo", "echo")
		settleDown()
		time.Sleep(50 * time.Hour) // refreshed meanwhile
		wantNames(t, "kept fresh", b.find("echo", false), "echo")
		c, _ := b.dir.Knows(id)
		if life := time.Until(c.NotAfter); life < 22*time.Hour {
			t.Errorf("card of a running node has only %s left", life)
		}
		a.stop()
		time.Sleep(time.Until(c.NotAfter.Add(Tolerance)) - 10*time.Second)
		wantNames(t, "within the tolerance", b.find("echo", true), "echo")
		time.Sleep(time.Until(c.NotAfter.Add(Tolerance)) + 1)
		for _, fresh := range []bool{false, true} {
			wantNames(t, "expired", b.find("echo", fresh))
			wantNames(t, "expired, text", b.query(Query{Text: "echo"}))
			_, err := b.dir.Resolve(t.Context(), id, fresh)
			wantErr(t, "resolve", err, ErrExpired)
		}
		if _, ok := b.dir.Knows(id); ok {
			t.Error("an expired card is still known")
		}

		// The host comes back from a long sleep: its own card has expired too.
		time.Sleep(100 * time.Hour)
		a.start()
		settleDown()
		wantNames(t, "back", b.find("echo", false), "echo")
	})
}

func TestFindIsCachedThenWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		a.agent("one", "echo")
		settleDown()
		mesh.SetLatency(100 * time.Millisecond)
		took := func() time.Duration {
			start := time.Now()
			b.find("echo", false)
			return time.Since(start)
		}
		if took() == 0 {
			t.Error("the first find asked nobody")
		}
		a.agent("two", "echo")
		now := func(what string, want ...string) {
			t.Helper()
			start := time.Now()
			wantNames(t, what, b.find("echo", false), want...)
			if d := time.Since(start); d != 0 {
				t.Errorf("%s: took %s", what, d)
			}
		}
		time.Sleep(recheck)
		now("cached", "one")
		time.Sleep(3 * time.Second)
		now("not asked behind yet", "one")
		time.Sleep(3 * time.Second)
		now("asked behind", "one", "two")
		a.agent("three", "echo")
		time.Sleep(b.dir.cfg.CacheFor + 3*time.Second)
		now("warm", "one", "two")
		time.Sleep(3 * time.Second)
		now("asked behind again", "one", "three", "two")
		time.Sleep(b.dir.cfg.WarmFor + 3*time.Second)
		if took() == 0 {
			t.Error("a cold find asked nobody")
		}
	})
}

// A look-up in the DHT ends only when the last node on its way has answered or timed
// out; the nodes it has found by then are not made to wait.
func TestSlowLookupDoesNotHoldUpFind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		b.rerun(func(m Mesh) Mesh { return dragging{m} })
		id := a.agent("echo", "echo")
		settleDown()
		took := func(what string, want time.Duration, do func()) {
			t.Helper()
			start := time.Now()
			if do(); time.Since(start) != want {
				t.Errorf("%s took %s, want %s", what, time.Since(start), want)
			}
		}
		took("find", quickLookup, func() { wantNames(t, "find", b.find("echo", false), "echo") })
		took("fresh find", b.dir.cfg.LookupTimeout, func() { wantNames(t, "find", b.find("echo", true), "echo") })
		took("find nobody", quickLookup+b.dir.cfg.LookupTimeout, func() { wantNames(t, "find", b.find("nobody", false)) })
		took("resolve", b.dir.cfg.LookupTimeout, func() {
			if _, err := b.dir.Resolve(t.Context(), id, true); err != nil {
				t.Error(err)
			}
		})
		c := newNode(t, mesh, "c")
		c.rerun(func(m Mesh) Mesh { return dragging{m} })
		took("resolve a stranger", quickLookup, func() {
			if _, err := c.dir.Resolve(t.Context(), id, false); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestAgentMovesToAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b, c := newNode(t, mesh, "a"), newNode(t, mesh, "b"), newNode(t, mesh, "c")
		id := a.agent("echo", "echo")
		settleDown()
		if host, err := c.dir.Host(t.Context(), id); err != nil || host != a.key.Node() {
			t.Fatalf("host %s, %v", host, err)
		}
		if err := a.dir.Withdraw(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		settleDown()
		b.agent("echo", "echo")
		settleDown()
		wantNames(t, "the old host", a.find("echo", true), "echo")
		wantNames(t, "a third", c.find("echo", true), "echo")
		for _, n := range []*node{a, c} {
			if host, err := n.dir.Host(t.Context(), id); err != nil || host != b.key.Node() {
				t.Errorf("host %s, %v, want the new one", host, err)
			}
		}
	})
}

func TestHostOfNodesOwnAgentNeedsNoCard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		if host, err := b.dir.Host(t.Context(), a.key.Agent()); err != nil || host != a.key.Node() {
			t.Errorf("host %s, %v", host, err)
		}
		if host, err := a.dir.Host(t.Context(), a.key.Agent()); err != nil || host != a.key.Node() {
			t.Errorf("own host %s, %v", host, err)
		}
		_, err := b.dir.Host(t.Context(), testKey(t, "nobody").Agent())
		wantErr(t, "host of nobody", err, ErrUnknownAgent)
		_, err = b.dir.Host(t.Context(), "did:key:zJunk")
		if shoal.KindOf(err) != shoal.Invalid {
			t.Errorf("host of junk: %v", err)
		}
		a.stop()
		_, err = b.dir.Host(t.Context(), a.key.Agent())
		wantErr(t, "host of a node that is off", err, ErrUnknownAgent)
	})
}

func TestRefusedPublisherGoesAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		id := a.agent("echo", "echo")
		settleDown()
		// What the agent published before its node was restored from a backup.
		c, _ := a.dir.Knows(id)
		key := testKey(t, "agent echo")
		ahead := c.Seq + 1_000_000_000
		raw := signCard(t, key, time.Now(), func(p *params) { p.Seq, p.Node = ahead, a.key.Node() }, "echo")
		putRecord(t, b, key, raw, ahead)
		if _, err := a.dir.Refresh(t.Context(), id); err == nil {
			t.Error("refresh below what is known succeeded")
		}
		time.Sleep(2 * time.Hour)
		got, err := b.dir.Resolve(t.Context(), id, true)
		if err != nil || got.Seq <= ahead || got.Name != "echo" {
			t.Errorf("got %s seq %d, %v; want more than %d", got.Name, got.Seq, err, ahead)
		}
	})
}

func TestDeadNodeDelaysOnlyTheFirstFind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b := newNode(t, mesh, "a"), newNode(t, mesh, "b")
		a.agent("echo", "echo")
		settleDown()
		liar(t, mesh, "dead", "echo", func(ctx context.Context, c net.Conn) { <-ctx.Done(); c.Close() })
		took := func(fresh bool) time.Duration {
			time.Sleep(31 * time.Second)
			b.dir.finds.put("echo", time.Now(), nil) // forget the answer
			start := time.Now()
			wantNames(t, "find", b.find("echo", fresh), "echo")
			return time.Since(start)
		}
		if d := took(false); d != b.dir.cfg.NodeTimeout {
			t.Errorf("the first find took %s", d)
		}
		if d := took(false); d != 0 {
			t.Errorf("the second find took %s", d)
		}
		if d := took(true); d != b.dir.cfg.NodeTimeout {
			t.Errorf("a fresh find took %s, it should ask the dead node again", d)
		}
	})
}

func TestMovedAgentIsFollowedBehindTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := meshtest.New(1)
		a, b, c := newNode(t, mesh, "a"), newNode(t, mesh, "b"), newNode(t, mesh, "c")
		c.rerun(func(m Mesh) Mesh { return slowRecords{m} }) // the old host answers first
		id := a.agent("echo", "echo")
		settleDown()
		if _, err := c.dir.Resolve(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
		if err := a.dir.Withdraw(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.agent("echo", "echo")
		settleDown()
		time.Sleep(2 * time.Hour)
		if host, _ := c.dir.Host(t.Context(), id); host != a.key.Node() {
			t.Errorf("the first answer is %s, want the host that is known", host)
		}
		time.Sleep(5 * time.Second)
		if host, _ := c.dir.Host(t.Context(), id); host != b.key.Node() {
			t.Errorf("the second answer is %s, want the new host", host)
		}
		if got, want := b.dir.Stats(), (Stats{Hosted: 1, Published: 1}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}
