package directory

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoalmesh/shoal/internal/mesh/meshtest"
)

// fiftyNodes returns a node that knows 50 others with one agent each.
func fiftyNodes(b *testing.B, change ...func(*Config)) *node {
	b.Helper()
	net := meshtest.New(1)
	asker := newNode(b, net, "asker", change...)
	for i := range 50 {
		n := newNode(b, net, nodeName(i))
		n.agent(fmt.Sprintf("ocr-%02d", i), "ocr")
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		cards, err := asker.dir.Find(b.Context(), Query{Capability: "ocr", Limit: 100, Fresh: true})
		if err != nil {
			b.Fatal(err)
		}
		if len(cards) == 50 {
			return asker
		}
		if time.Since(start) > 30*time.Second {
			b.Fatalf("only %d of 50 agents were found", len(cards))
		}
	}
}

func benchFind(b *testing.B, q Query, change ...func(*Config)) {
	asker := fiftyNodes(b, change...)
	for b.Loop() {
		if cards, err := asker.dir.Find(b.Context(), q); err != nil || len(cards) != 50 {
			b.Fatalf("%d cards, %v", len(cards), err)
		}
	}
}

// BenchmarkFindCached is find_cached: asked within CacheFor.
func BenchmarkFindCached(b *testing.B) {
	benchFind(b, Query{Capability: "ocr", Limit: 100})
}

// BenchmarkFindWarm50 is find_warm: answered from the cards of 50 nodes while these are
// asked again behind it.
func BenchmarkFindWarm50(b *testing.B) {
	benchFind(b, Query{Capability: "ocr", Limit: 100}, func(c *Config) { c.CacheFor, c.WarmFor = 1, time.Hour })
}

// BenchmarkFindFresh50 asks all 50 nodes before it answers; their cards are known.
func BenchmarkFindFresh50(b *testing.B) {
	benchFind(b, Query{Capability: "ocr", Limit: 100, Fresh: true})
}

// BenchmarkAcceptKnown is what a card costs that is known already, AcceptNew what the
// signature costs.
func BenchmarkAcceptKnown(b *testing.B) {
	asker := newNode(b, meshtest.New(1), "asker")
	key := testKey(b, "victim")
	raw := signCard(b, key, time.Now(), nil, "ocr")
	for b.Loop() {
		if _, err := asker.dir.accept(b.Context(), raw, key.Node(), ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAcceptNew(b *testing.B) {
	raw := signCard(b, testKey(b, "victim"), time.Now(), nil, "ocr")
	for b.Loop() {
		if _, err := openCard(raw, testNet, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFindText looks through 1,000 cards.
func BenchmarkFindText(b *testing.B) {
	r := newRegistry(10_000)
	now := time.Now()
	for i := range 1000 {
		key := testKey(b, fmt.Sprint("agent ", i))
		raw := signCard(b, key, now, nil, "ocr", fmt.Sprint("skill-", i))
		c, err := openCard(raw, testNet, now)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.adopt(&c, digestOf(raw), key.Node(), false); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got := r.withWords([]string{"skill-500"}, now); len(got) != 1 {
			b.Fatal(len(got))
		}
	}
}
