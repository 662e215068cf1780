package mesh

import (
	"crypto/sha256"
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// seedKey returns the same key each time, for seeds of fuzz tests.
func seedKey(t testing.TB, b byte) identity.Key {
	t.Helper()
	k, err := identity.FromSeed([]byte(strings.Repeat(string(b), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sampleInvite(t testing.TB) Invite {
	a, b := string(seedKey(t, 'a').Node()), string(seedKey(t, 'b').Node())
	return Invite{Network: "main", Addrs: []string{
		"/ip4/203.0.113.7/udp/4420/quic-v1/p2p/" + a,
		"/ip4/203.0.113.7/tcp/4420/p2p/" + a,
		"/ip6/2001:db8::1/udp/4420/quic-v1/p2p/" + b,
		"/dns4/node.example.org/tcp/4420/p2p/" + b,
	}}
}

// relink wraps bytes as a link with a good check sum.
func relink(body []byte) string {
	sum := sha256.Sum256(body)
	return "shoal:" + base64.RawURLEncoding.EncodeToString(append(slices.Clone(body), sum[:4]...))
}

func TestInviteRoundTrip(t *testing.T) {
	inv := sampleInvite(t)
	link := inv.String()
	got, err := ParseInvite(link)
	if err != nil || !reflect.DeepEqual(got, inv) {
		t.Errorf("ParseInvite = %+v, %v, want %+v", got, err, inv)
	}
	if got, err = ParseTarget("  " + link + "\n"); err != nil || !reflect.DeepEqual(got, inv) {
		t.Errorf("ParseTarget = %+v, %v", got, err)
	}
	if len(link) > 240 {
		t.Errorf("the link has %d characters", len(link))
	}
	addr := inv.Addrs[0]
	if got, err = ParseTarget(addr); err != nil || got.Network != "" || !slices.Equal(got.Addrs, []string{addr}) {
		t.Errorf("ParseTarget of an address = %+v, %v", got, err)
	}
	if s := (Invite{Network: "No Such"}).String(); s != "" {
		t.Errorf("link of a malformed network = %q", s)
	}
}

func TestInviteKeepsWithinItsLimits(t *testing.T) {
	inv := Invite{Network: strings.Repeat("n", 64)}
	for i := range 20 {
		id := string(seedKey(t, byte(i)).Node())
		for range 20 {
			inv.Addrs = append(inv.Addrs, "/ip6/2001:db8::ffff:ffff:ffff/udp/65535/quic-v1/p2p/"+id)
		}
	}
	inv.Addrs = append(inv.Addrs, "nonsense")
	link := inv.String()
	got, err := ParseInvite(link)
	if err != nil || len(got.Addrs) != maxInviteNodes*maxInviteAddrs {
		t.Errorf("%d addresses, %v, of a link of %d characters, want 64", len(got.Addrs), err, len(link))
	}
}

// TestBadInvites: each link is one change away from a good one.
func TestBadInvites(t *testing.T) {
	inv := sampleInvite(t)
	link := inv.String()
	b, err := base64.RawURLEncoding.DecodeString(link[len("shoal:"):])
	if err != nil {
		t.Fatal(err)
	}
	body := b[:len(b)-4]
	if relink(body) != link {
		t.Fatal("relink does not make the control")
	}
	change := func(i int, v byte) []byte { c := slices.Clone(body); c[i] = v; return c }
	nodes := 2 + len(inv.Network) // index of the node count
	cases := map[string]string{
		"empty":           "",
		"other scheme":    "shoal2:" + link[6:],
		"upper case":      "SHOAL:" + link[6:],
		"nothing after":   "shoal:",
		"cut":             link[:len(link)-1],
		"letter added":    link + "A",
		"space inside":    link[:20] + " " + link[20:],
		"padding":         link + "=",
		"too long":        "shoal:" + strings.Repeat("A", maxInviteLen),
		"huge network":    relink(change(1, 255)),
		"empty network":   relink(change(1, 0)),
		"bad network":     relink(change(2, 'M')),
		"no nodes":        relink(body[:nodes+1][:nodes]),
		"nodes 0":         relink(append(slices.Clone(body[:nodes]), 0)),
		"nodes 255":       relink(change(nodes, 255)),
		"one node fewer":  relink(change(nodes, 1)),
		"one node more":   relink(change(nodes, 3)),
		"addresses 255":   relink(change(nodes+33, 255)),
		"addresses 0":     relink(change(nodes+33, 0)),
		"address cut":     relink(body[:len(body)-1]),
		"huge address":    relink(change(nodes+34, 255)),
		"unknown proto":   relink(change(nodes+35, 0x7f)),
		"byte at the end": relink(append(slices.Clone(body), 0)),
	}
	for i := range link[6:] { // one letter altered
		c := []byte(link)
		if c[6+i]++; c[6+i] == '{' || c[6+i] == '[' || c[6+i] == ':' {
			c[6+i] = 'B'
		}
		cases["letter "+string(rune('0'+i%10))+link[:i]] = string(c)
	}
	for name, s := range cases {
		got, err := ParseInvite(s)
		e := shoal.AsError(err)
		if err == nil || e.Reason != "bad_invite" && e.Reason != "invite_version" || e.Hint == "" {
			t.Errorf("%s: ParseInvite = %+v, %v, want bad_invite with a hint", name, got, err)
		}
	}
	if _, err := ParseInvite(relink(change(0, 2))); shoal.AsError(err).Reason != "invite_version" {
		t.Errorf("version 2 = %v, want invite_version", err)
	}
	t.Logf("accepted 0 of %d", len(cases)+1)
}

func FuzzParseTarget(f *testing.F) {
	inv := sampleInvite(f)
	f.Add(inv.String())
	for _, a := range inv.Addrs {
		f.Add(a)
	}
	b, _ := base64.RawURLEncoding.DecodeString(inv.String()[6:])
	f.Add(relink(append(b[:len(b)-4], 1)))
	f.Add("shoal:")
	f.Add("/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
	f.Add("/p2p/" + string(seedKey(f, 'a').Node()) + "/p2p-circuit/p2p/" + string(seedKey(f, 'b').Node()))
	cfg := Config{}.withDefaults()
	f.Fuzz(func(t *testing.T, s string) {
		inv, err := ParseTarget(s)
		if err != nil {
			if e := shoal.AsError(err); e.Kind != shoal.Invalid && e.Kind != shoal.Unsupported || e.Hint == "" {
				t.Fatalf("ParseTarget(%q) = %v, %v without a hint", s, e.Kind, err)
			}
			return
		}
		if len(inv.Addrs) == 0 || len(inv.Addrs) > 64 {
			t.Fatalf("%d addresses", len(inv.Addrs))
		}
		inv.Network = cfg.Network
		if _, err := cfg.peers(inv.Addrs); err != nil {
			t.Fatalf("ParseTarget accepted %q, Join does not: %v", s, err)
		}
	})
}

// FuzzInviteBody fuzzes behind the check sum.
func FuzzInviteBody(f *testing.F) {
	b, _ := base64.RawURLEncoding.DecodeString(sampleInvite(f).String()[6:])
	f.Add(b[:len(b)-4])
	f.Add([]byte{1, 4, 'm', 'a', 'i', 'n', 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		link := relink(body)
		inv, err := ParseInvite(link)
		if err == nil && inv.String() != link {
			t.Fatalf("%q is accepted, but printed as %q", link, inv.String())
		}
	})
}

func TestListenAddrs(t *testing.T) {
	for in, want := range map[string]string{
		"0.0.0.0:4420":       "/ip4/0.0.0.0/udp/4420/quic-v1 /ip4/0.0.0.0/tcp/4420",
		":0":                 "/ip4/0.0.0.0/udp/0/quic-v1 /ip4/0.0.0.0/tcp/0",
		"localhost:1":        "/ip4/127.0.0.1/udp/1/quic-v1 /ip4/127.0.0.1/tcp/1",
		"[::1]:65535":        "/ip6/::1/udp/65535/quic-v1 /ip6/::1/tcp/65535",
		"[::ffff:1.2.3.4]:9": "/ip4/1.2.3.4/udp/9/quic-v1 /ip4/1.2.3.4/tcp/9",
	} {
		got, err := ListenAddrs(in)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("ListenAddrs(%q) = %q, %v, want %q", in, got, err, want)
		}
		if err := (Config{Listen: got}).withDefaults().validate(); err != nil {
			t.Errorf("ListenAddrs(%q) is not accepted: %v", in, err)
		}
	}
	for _, in := range []string{"", "4420", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:http", "host:1", "[fe80::1%eth0]:1", "1.2.3:1", "/ip4/1.2.3.4/tcp/1"} {
		if got, err := ListenAddrs(in); shoal.AsError(err).Reason != "bad_listen" {
			t.Errorf("ListenAddrs(%q) = %v, %v, want bad_listen", in, got, err)
		}
	}
}

func TestBadConfigs(t *testing.T) {
	for reason, c := range map[string]Config{
		"bad_network":    {Network: "Main"},
		"bad_network ":   {Network: strings.Repeat("x", 65)},
		"bad_network  ":  {Network: "a/b"},
		"bad_psk":        {PSK: []byte("short")},
		"bad_listen":     {Listen: []string{"1.2.3.4:5"}},
		"bad_listen ":    {Listen: []string{"/ip4/1.2.3.4/udp/5"}},
		"bad_listen  ":   {Listen: []string{"/ip4/1.2.3.4/udp/5/quic-v1/webtransport"}},
		"bad_listen   ":  {Listen: []string{"/ip4/1.2.3.4/udp/5/quic-v1"}, PSK: make([]byte, 32)},
		"bad_listen    ": {Listen: make([]string, 17)},
		"bad_address":    {Bootstrap: []string{"host:1"}},
		"bad_invite":     {Bootstrap: []string{"shoal:x"}},
		"bad_bootstrap":  {Bootstrap: make([]string, 65)},
		"wrong_network":  {Network: "other", Bootstrap: []string{sampleInvite(t).String()}},
		"bad_timeout":    {RetryMin: 2, RetryMax: 1},
		"bad_timeout ":   {DialTimeout: -1},
		"bad_limits":     {Limits: Limits{PeersLow: 1000}},
		"bad_limits ":    {Limits: Limits{StreamsPerPeer: -1}},
	} {
		_, err := New(c, newKey(t), testLog(t))
		if e := shoal.AsError(err); e.Kind != shoal.Invalid || e.Reason != strings.TrimSpace(reason) || e.Hint == "" {
			t.Errorf("New(%+v) = %v (%v), want %s with a hint", c, err, e.Kind, reason)
		}
	}
}
