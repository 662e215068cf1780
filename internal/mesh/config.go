package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoalmesh/shoal"
)

// DefaultListen is where a node listens when nothing is configured, for [ListenAddrs].
const DefaultListen = "0.0.0.0:4420"

// DefaultNetwork is the network of a node that names none.
const DefaultNetwork = "main"

const (
	maxRemembered  = 64 // peers that are kept connected on purpose
	maxListenAddrs = 16
	pskSize        = 32
)

// Config says how a node takes part in a mesh. The zero value of a field is its default.
type Config struct {
	// Network is the mesh's name: 1 to 64 of a-z, 0-9, '.', '_', '-'. Nodes of other
	// networks are refused. Default "main".
	Network string

	// Listen holds the multiaddrs to listen on, see [ListenAddrs]. Default: UDP (QUIC v1)
	// and TCP on 0.0.0.0:4420. An empty, non-nil slice means not to listen at all.
	Listen []string

	// Bootstrap holds invite links and multiaddrs of peers that the node keeps connected
	// while it runs; at most 64.
	Bootstrap []string

	// PSK is a pre-shared key of 32 bytes that makes the network private. QUIC cannot
	// carry it, so such a node speaks TCP only. Default none.
	PSK []byte

	// OnPeer is told about each peer of this network that came (after it identified
	// itself) or went. A peer that comes over a new connection before the old one is
	// known to be dead, as after a crash, is told as up again. It is called from Run's
	// goroutine and must not block.
	OnPeer func(id shoal.NodeID, up bool)

	// DialTimeout bounds Dial, Ping and each attempt to connect. Default 10s.
	DialTimeout time.Duration

	// LookupTimeout bounds a put, get, provide or find in the DHT. Longer finds more
	// behind slow peers. Default 10s.
	LookupTimeout time.Duration

	// SettleTimeout is how long a DHT operation waits for a first peer that is
	// connected to enter the routing table. Default 3s.
	SettleTimeout time.Duration

	// RetryMin and RetryMax bound the pause before a lost peer is dialed again; it
	// doubles each time, with jitter of one half. Default 500ms and 1m.
	RetryMin, RetryMax time.Duration

	// Limits bound what peers can make the node hold.
	Limits Limits

	// options are added to the host's, for simulated networks in tests.
	options []libp2p.Option
	// simulated says that Listen names addresses of a simulated network.
	simulated bool
}

// Limits bound connections, streams and stored records. The zero value of a field is its
// default. Sources: security design §5.
type Limits struct {
	Conns          int   // all connections; default 512
	ConnsIn        int   // inbound connections; default 256
	ConnsPerIP     int   // from one IPv4 address or IPv6 /64, loopback excepted; default 8
	PeersLow       int   // idle connections are cut down to this …; default 96
	PeersHigh      int   // … when there are more than this; default 192
	StreamsIn      int   // all inbound streams; default 2048
	StreamsPerPeer int   // each way with one peer; default 64
	RecordBytes    int64 // of others' records and provider entries; default 16 MiB
}

func (c Config) withDefaults() Config {
	set(&c.Network, DefaultNetwork)
	if c.Listen == nil {
		c.Listen, _ = ListenAddrs(DefaultListen)
	}
	set(&c.DialTimeout, 10*time.Second)
	set(&c.LookupTimeout, 10*time.Second)
	set(&c.SettleTimeout, 3*time.Second)
	set(&c.RetryMin, 500*time.Millisecond)
	set(&c.RetryMax, time.Minute)
	l := &c.Limits
	set(&l.Conns, 512)
	set(&l.ConnsIn, 256)
	set(&l.ConnsPerIP, 8)
	set(&l.PeersLow, 96)
	set(&l.PeersHigh, 192)
	set(&l.StreamsIn, 2048)
	set(&l.StreamsPerPeer, 64)
	set(&l.RecordBytes, 16<<20)
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	if err := checkNetwork(c.Network); err != nil {
		return err
	}
	if len(c.PSK) != 0 && len(c.PSK) != pskSize {
		return shoal.NewError(shoal.Invalid, "bad_psk",
			fmt.Sprintf("the pre-shared key has %d bytes", len(c.PSK)), "it must have 32")
	}
	if len(c.Listen) > maxListenAddrs {
		return shoal.NewError(shoal.Invalid, "bad_listen",
			fmt.Sprintf("%d listen addresses", len(c.Listen)), "at most 16")
	}
	if _, err := c.listen(); err != nil {
		return err
	}
	if len(c.Bootstrap) > maxRemembered {
		return shoal.NewError(shoal.Invalid, "bad_bootstrap",
			fmt.Sprintf("%d bootstrap peers", len(c.Bootstrap)), "at most 64")
	}
	if _, err := c.peers(c.Bootstrap); err != nil {
		return err
	}
	if c.RetryMin < 0 || c.RetryMax < c.RetryMin || c.DialTimeout < 0 || c.LookupTimeout < 0 || c.SettleTimeout < 0 {
		return shoal.NewError(shoal.Invalid, "bad_timeout", "a mesh time-out is out of order",
			"time-outs are positive and retry_max is at least retry_min")
	}
	l := c.Limits
	if min(l.Conns, l.ConnsIn, l.ConnsPerIP, l.PeersLow, l.StreamsIn, l.StreamsPerPeer) < 0 || l.RecordBytes < 0 || l.PeersHigh < l.PeersLow {
		return shoal.NewError(shoal.Invalid, "bad_limits", "a mesh limit is out of order",
			"limits are positive and peers_high is at least peers_low")
	}
	return nil
}

// checkNetwork refuses a name that could be mistaken for another or break a protocol id.
func checkNetwork(name string) error {
	ok := len(name) >= 1 && len(name) <= 64
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return shoal.NewError(shoal.Invalid, "bad_network", fmt.Sprintf("network name %q is malformed", clip(name)),
			"use 1 to 64 of a-z, 0-9, '.', '_', '-'")
	}
	return nil
}

// listen parses c.Listen and drops QUIC where a pre-shared key forbids it.
func (c Config) listen() ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	for _, s := range c.Listen {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, badListen(s).Because(err)
		}
		switch pathOf(a) {
		case "tcp":
		case "quic":
			if len(c.PSK) > 0 {
				continue
			}
		default:
			return nil, badListen(s)
		}
		out = append(out, a)
	}
	if len(out) == 0 && len(c.Listen) > 0 {
		return nil, shoal.NewError(shoal.Invalid, "bad_listen", "a private network listens on TCP only",
			"add a TCP listen address, or listen on HOST:PORT")
	}
	return out, nil
}

func badListen(s string) *shoal.Error {
	return shoal.NewError(shoal.Invalid, "bad_listen", fmt.Sprintf("listen address %q is malformed", clip(s)),
		"use HOST:PORT, /ip4/…/udp/PORT/quic-v1 or /ip4/…/tcp/PORT")
}

// ListenAddrs turns "HOST:PORT" into the two multiaddrs to listen on, QUIC first. HOST is
// an IP address, "localhost" or empty for all IPv4 addresses; PORT may be 0.
// It returns an [shoal.Invalid] error with reason bad_listen.
func ListenAddrs(hostport string) ([]string, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, badListen(hostport).Because(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, badListen(hostport)
	}
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" {
		return nil, badListen(hostport)
	}
	kind := "ip4"
	if ip = ip.Unmap(); ip.Is6() {
		kind = "ip6"
	}
	return []string{
		fmt.Sprintf("/%s/%s/udp/%d/quic-v1", kind, ip, n),
		fmt.Sprintf("/%s/%s/tcp/%d", kind, ip, n),
	}, nil
}

// clip shortens foreign text for a message.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return s[:80] + "…"
}
