package mesh

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
)

func valueKey(s string) ds.Key { return ds.NewKey("/shoal/" + b32.EncodeToString([]byte(s))) }

func providerEntry(key, who string) ds.Key {
	return ds.NewKey("/providers/" + b32.EncodeToString([]byte(key)) + "/" + b32.EncodeToString([]byte(who)))
}

func queryKeys(t *testing.T, s *bounded, prefix string) []string {
	t.Helper()
	res, err := s.Query(t.Context(), dsq.Query{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	all, err := res.Rest()
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, e := range all {
		keys = append(keys, e.Key)
	}
	slices.Sort(keys)
	return keys
}

// TestStoreIsAMapWithinItsLimit compares random operations with a plain map.
func TestStoreIsAMapWithinItsLimit(t *testing.T) {
	s, model := newBounded(peer.ID("me"), 1<<30), make(map[ds.Key]string)
	r := rand.New(rand.NewPCG(1, 1))
	ctx := t.Context()
	for range 20_000 {
		k := valueKey(fmt.Sprint(r.IntN(50)))
		if r.IntN(2) == 0 {
			k = providerEntry(fmt.Sprint(r.IntN(5)), []string{"a", "b", "me"}[r.IntN(3)])
		}
		switch r.IntN(4) {
		case 0:
			s.Delete(ctx, k)
			delete(model, k)
		case 1:
			got, err := s.Get(ctx, k)
			want, ok := model[k]
			if string(got) != want || (err == nil) != ok {
				t.Fatalf("Get(%s) = %q, %v, want %q, %v", k, got, err, want, ok)
			}
		default:
			v := fmt.Sprint(r.IntN(1000))
			s.Put(ctx, k, []byte(v))
			model[k] = v
		}
	}
	var used int64
	for k, v := range model {
		if !strings.HasSuffix(k.String(), s.suffix) {
			used += cost(k, []byte(v))
		}
	}
	if s.used != used {
		t.Errorf("used = %d, want %d", s.used, used)
	}
	for _, prefix := range []string{"", "/", "/shoal", "/providers/", "/providers/" + b32.EncodeToString([]byte("3"))} {
		var want []string
		clean := ds.NewKey(prefix).String()
		for k := range model {
			if clean == "/" || strings.HasPrefix(k.String(), clean+"/") {
				want = append(want, k.String())
			}
		}
		slices.Sort(want)
		if got := queryKeys(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("Query(%q) = %v, want %v", prefix, got, want)
		}
	}
}

func TestFullStoreKeepsItsOwnAndTheNear(t *testing.T) {
	const limit = 1 << 20
	s := newBounded(peer.ID("me"), limit)
	ctx := t.Context()
	own := valueKey("own")
	ours{s}.Put(ctx, own, make([]byte, 100))
	provided := providerEntry("cap", "me")
	s.Put(ctx, provided, []byte{1})
	home := sha256.Sum256([]byte("me"))
	var nearest string // of all that is put below
	var near byte = 255
	for i := range 5_000 {
		k := fmt.Sprint("victim", i)
		if d := sha256.Sum256([]byte(k)); d[0]^home[0] < near {
			nearest, near = k, d[0]^home[0]
		}
		s.Put(ctx, valueKey(k), make([]byte, 1000))
		if s.used > limit {
			t.Fatalf("used = %d, more than the limit", s.used)
		}
	}
	for _, k := range []ds.Key{own, provided, valueKey(nearest)} {
		if ok, _ := s.Has(ctx, k); !ok {
			t.Errorf("%s was evicted", k)
		}
	}
	if n := len(queryKeys(t, s, "/shoal")); n > 1001 || n < 500 {
		t.Errorf("%d entries are left, want near %d", n, limit/1200)
	}
}
