package identity

import (
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	shoal "github.com/shoalmesh/shoal"
)

// testKey returns the key whose seed is n in every byte.
func testKey(t testing.TB, n byte) Key {
	t.Helper()
	var seed [32]byte
	for i := range seed {
		seed[i] = n
	}
	k, err := FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestStraightLine(t *testing.T) {
	k := testKey(t, 1)
	raw, err := SignCard(&a2a.AgentCard{Name: "bob", SupportedInterfaces: []*a2a.AgentInterface{a2a.NewAgentInterface("libp2p:/p2p/x", "x")}}, k)
	if err != nil {
		t.Fatal(err)
	}
	c, id, err := VerifyCard(raw)
	if err != nil || id != k.Agent() || c.Name != "bob" {
		t.Fatal(string(raw), c, id, err)
	}
	now := time.Unix(1000, 0)
	rec, err := SignRecord(k, "n", shoal.Record{Kind: "card", Owner: k.Agent(), Seq: 1, NotBefore: now, NotAfter: now.Add(time.Hour), Value: raw})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRecord("n", rec, now); err != nil {
		t.Fatal(err)
	}
	for _, pass := range []string{"", "hunter2"} {
		dir := t.TempDir() + "/keys"
		r, err := OpenRing(dir, RingOptions{Fresh: true, Passphrase: []byte(pass), WorkFactor: 4})
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.NewAgent()
		if err != nil {
			t.Fatal(err)
		}
		r2, err := OpenRing(dir, RingOptions{Passphrase: []byte(pass)})
		if err != nil {
			t.Fatal(err)
		}
		if r2.Node().Agent() != r.Node().Agent() || len(r2.Agents()) != 1 || r2.Agents()[0] != a.Agent() {
			t.Fatal("lost")
		}
	}
}
