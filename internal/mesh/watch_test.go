package mesh

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoalmesh/shoal"
)

func quick(c *Config) { c.RetryMin, c.RetryMax = 10*time.Millisecond, 50*time.Millisecond }

// at makes a node listen where another one did.
func at(addrs []string) func(*Config) {
	return func(c *Config) {
		c.Listen = nil
		for _, a := range addrs {
			where, _, _ := strings.Cut(a, "/p2p/")
			c.Listen = append(c.Listen, where)
		}
	}
}

func TestPeerComesBackAfterARestart(t *testing.T) {
	ka := newKey(t)
	a := start(t, ka, nil)
	b := start(t, newKey(t), quick)
	echo(t, a, echoProto)
	echo(t, b, echoProto)
	addrs := a.Addrs()
	if _, err := b.Join(t.Context(), addrs); err != nil {
		t.Fatal(err)
	}
	b.want(t, "up "+string(a.ID()))
	for range 3 {
		a.stop()
		b.want(t, "down "+string(a.ID()))
		a = start(t, ka, at(addrs))
		echo(t, a, echoProto)
		b.want(t, "up "+string(a.ID()))
		a.want(t, "up "+string(b.ID()))
		for _, pair := range [][2]*testNode{{a, b}, {b, a}} {
			if got, err := say(t.Context(), pair[0], pair[1].ID(), echoProto, "back"); got != "back" || err != nil {
				t.Errorf("echo after the restart = %q, %v", got, err)
			}
		}
	}
}

func TestBootstrapPeerThatComesLater(t *testing.T) {
	ka := newKey(t)
	a := start(t, ka, nil)
	addrs, link := a.Addrs(), a.Invite().String()
	a.stop()
	b := start(t, newKey(t), func(c *Config) { quick(c); c.DialTimeout = time.Second; c.Bootstrap = []string{link, addrs[0]} })
	if _, err := b.Join(t.Context(), []string{link}); shoal.KindOf(err) != shoal.Unavailable {
		t.Errorf("join a node that is down = %v, want unavailable", err)
	}
	a = start(t, ka, at(addrs))
	b.want(t, "up "+string(a.ID()))
	if p := b.Peers(); len(p) != 1 || p[0].ID != a.ID() || p[0].Direction != "out" || p[0].Path == "" {
		t.Errorf("Peers = %+v, want a, out, with a path", p)
	}
	a.want(t, "up "+string(b.ID()))
	if p := a.Peers(); len(p) != 1 || p[0].ID != b.ID() || p[0].Direction != "in" {
		t.Errorf("Peers = %+v, want b, in", p)
	}
	if err := b.PutRecord(t.Context(), card(t, b.key, 1)); err != nil {
		t.Errorf("put after the bootstrap: %v", err)
	}
}

func TestOtherNetworksAreTurnedAway(t *testing.T) {
	a := start(t, newKey(t), nil)
	other := start(t, newKey(t), func(c *Config) { c.Network = "other" })
	if _, err := other.Join(t.Context(), []string{a.Invite().String()}); !errors.Is(err, ErrWrongNetwork) {
		t.Errorf("join by link = %v, want wrong_network", err)
	}
	if _, err := other.Join(t.Context(), a.Addrs()); !errors.Is(err, ErrWrongNetwork) {
		t.Errorf("join by address = %v, want wrong_network", err)
	}
	if p := slices.Concat(a.Peers(), other.Peers()); len(p) != 0 {
		t.Errorf("peers = %v, want none", p)
	}
	select {
	case e := <-a.events:
		t.Errorf("OnPeer told %q of another network's node", e)
	default:
	}
}

func TestJoinErrors(t *testing.T) {
	a := start(t, newKey(t), nil)
	stranger := string(newKey(t).Node())
	for in, reason := range map[string]string{
		"":                                     "bad_address",
		"hello":                                "bad_address",
		"/ip4/127.0.0.1/tcp/1":                 "bad_address",
		"/ip4/127.0.0.1/p2p/" + stranger:       "bad_address",
		"/ip4/127.0.0.1/udp/1/p2p/" + stranger: "bad_address",
		"shoal:":                               "bad_invite",
		a.Addrs()[0]:                           "join_failed", // itself
	} {
		if _, err := a.Join(t.Context(), []string{in}); shoal.AsError(err).Reason != reason {
			t.Errorf("Join(%q) = %v, want %s", in, err, reason)
		}
	}
	if _, err := a.Join(t.Context(), nil); shoal.AsError(err).Reason != "no_address" {
		t.Errorf("Join of nothing = %v", err)
	}
}

func TestBusyPort(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		a := start(t, newKey(t), nil)
		addrs := a.Addrs()
		var mine []string
		for _, s := range addrs {
			if strings.Contains(s, "/"+network+"/") {
				where, _, _ := strings.Cut(s, "/p2p/")
				mine = append(mine, where)
			}
		}
		m, err := New(Config{Listen: mine}, newKey(t), testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Bind(); !errors.Is(err, ErrPortBusy) {
			t.Errorf("Bind on a busy %s port = %v, want port_busy", network, err)
			m.Close()
		}
	}
	m, err := New(Config{Listen: []string{"/ip4/192.0.2.1/tcp/4420"}}, newKey(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Bind(); shoal.AsError(err).Reason != "bad_listen" {
		t.Errorf("Bind on a foreign address = %v, want bad_listen", err)
		m.Close()
	}
}

func TestPortZeroIsOneNumber(t *testing.T) {
	a := start(t, newKey(t), nil)
	var ports []string
	for _, s := range a.Addrs() {
		parts := strings.Split(s, "/")
		ports = append(ports, parts[4])
	}
	if len(ports) != 2 || ports[0] != ports[1] || ports[0] == "0" {
		t.Errorf("Addrs = %v, want udp and tcp with one port", a.Addrs())
	}
	// A TCP port taken by somebody else: UDP's number must not decide.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if n, err := freePort("udp4", "127.0.0.1"); err != nil || n == l.Addr().(*net.TCPAddr).Port {
		t.Errorf("freePort = %d, %v", n, err)
	}
}
