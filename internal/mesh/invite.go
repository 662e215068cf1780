package mesh

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoalmesh/shoal"
)

const (
	inviteScheme   = "shoal:"
	inviteVersion  = 1
	maxInviteLen   = 4096 // characters of a link
	maxInviteBody  = 3000 // bytes of it before base64 and check sum
	maxInviteNodes = 8
	maxInviteAddrs = 8 // of one node
	maxAddrLen     = 255
	inviteSumLen   = 4
)

// Invite is what a node needs to join a network: its name and where some of its nodes
// are. As a string it is a link to paste, "shoal:…".
type Invite struct {
	Network string   // "" means any: the invite was a plain multiaddr
	Addrs   []string // multiaddrs with /p2p/<NodeID>
}

// String returns the link. It is not for people to read: a letter changed by mistake is
// noticed. Addresses that are malformed or beyond the limits (8 nodes, 8 addresses each,
// 3000 bytes) are left out; an invite to a network whose name is malformed is "". Form: "shoal:" base64url(version=1, u8 len network, network, nodes,
// first four bytes of the SHA-256 of all that), where nodes is u8 count and for each node
// its 32-byte key, u8 count and for each address u8 length and the binary multiaddr
// without /p2p/.
func (i Invite) String() string {
	if checkNetwork(i.Network) != nil {
		return ""
	}
	type node struct {
		pub   ed25519.PublicKey
		addrs [][]byte
	}
	var nodes []*node
	size := 3 + len(i.Network)
	for _, s := range i.Addrs {
		at, pub, err := splitAddr(s)
		if err != nil || len(at.Bytes()) > maxAddrLen || size+34+1+len(at.Bytes()) > maxInviteBody {
			continue
		}
		var n *node
		for _, have := range nodes {
			if have.pub.Equal(pub) {
				n = have
			}
		}
		if n == nil {
			if len(nodes) == maxInviteNodes {
				continue
			}
			n = &node{pub: pub}
			nodes = append(nodes, n)
			size += 34
		}
		if len(n.addrs) < maxInviteAddrs {
			n.addrs = append(n.addrs, at.Bytes())
			size += 1 + len(at.Bytes())
		}
	}
	b := []byte{inviteVersion, byte(len(i.Network))}
	b = append(b, i.Network...)
	b = append(b, byte(len(nodes)))
	for _, n := range nodes {
		b = append(b, n.pub...)
		b = append(b, byte(len(n.addrs)))
		for _, a := range n.addrs {
			b = append(b, byte(len(a)))
			b = append(b, a...)
		}
	}
	sum := sha256.Sum256(b)
	return inviteScheme + base64.RawURLEncoding.EncodeToString(append(b, sum[:inviteSumLen]...))
}

func badInvite(format string, args ...any) *shoal.Error {
	return shoal.NewError(shoal.Invalid, "bad_invite", "invite link: "+fmt.Sprintf(format, args...),
		"copy the whole line that `shoal invite` prints")
}

// ParseInvite is the inverse of [Invite.String]. It returns [shoal.Invalid] errors with
// reason bad_invite, or [shoal.Unsupported] with reason invite_version for a link made by
// a newer version.
func ParseInvite(link string) (Invite, error) {
	text, ok := strings.CutPrefix(link, inviteScheme)
	if !ok {
		return Invite{}, badInvite("it does not start with %q", inviteScheme)
	}
	if len(link) > maxInviteLen {
		return Invite{}, badInvite("%d characters, more than %d", len(link), maxInviteLen)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Invite{}, badInvite("it holds a character that does not belong").Because(err)
	}
	if len(b) < 1+inviteSumLen {
		return Invite{}, badInvite("it is cut off")
	}
	if b[0] != inviteVersion {
		return Invite{}, shoal.NewError(shoal.Unsupported, "invite_version",
			fmt.Sprintf("the invite link has version %d", b[0]), "use a newer shoal")
	}
	body, sum := b[:len(b)-inviteSumLen], b[len(b)-inviteSumLen:]
	if want := sha256.Sum256(body); string(sum) != string(want[:inviteSumLen]) {
		return Invite{}, badInvite("it was altered or cut off")
	}
	inv, err := parseInviteBody(&cursor{b: body[1:]})
	if err != nil {
		return Invite{}, err
	}
	// One spelling for one invite, so that links can be compared.
	if inv.String() != link {
		return Invite{}, badInvite("it is not in canonical form")
	}
	return inv, nil
}

func parseInviteBody(c *cursor) (Invite, error) {
	inv := Invite{Network: string(c.take(c.byte()))}
	nodes := c.byte()
	if nodes > maxInviteNodes {
		return Invite{}, badInvite("%d nodes, more than %d", nodes, maxInviteNodes)
	}
	for range nodes {
		pub := c.take(ed25519.PublicKeySize)
		count := c.byte()
		if count > maxInviteAddrs {
			return Invite{}, badInvite("%d addresses of one node, more than %d", count, maxInviteAddrs)
		}
		for range count {
			raw := c.take(c.byte())
			if c.short {
				break
			}
			at, err := ma.NewMultiaddrBytes(raw)
			if err != nil {
				return Invite{}, badInvite("an address is malformed").Because(err)
			}
			s := at.String() + "/p2p/" + string(shoal.NodeIDOf(pub))
			if _, _, err := splitAddr(s); err != nil {
				return Invite{}, badInvite("an address is malformed").Because(err)
			}
			inv.Addrs = append(inv.Addrs, s)
		}
	}
	switch {
	case c.short:
		return Invite{}, badInvite("it is cut off")
	case len(c.b) > 0:
		return Invite{}, badInvite("%d bytes too many", len(c.b))
	case len(inv.Addrs) == 0:
		return Invite{}, badInvite("it names no node")
	}
	if err := checkNetwork(inv.Network); err != nil {
		return Invite{}, badInvite("the network's name is malformed").Because(err)
	}
	return inv, nil
}

// cursor reads a byte slice; what is missing reads as zero and sets short.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.short, c.b = true, nil
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) byte() int {
	if b := c.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

// ParseTarget reads what a user gives as "where to join": an invite link or a multiaddr
// that ends in /p2p/<NodeID>; for the latter the network is "". Space around it is
// ignored. It returns ParseInvite's errors, or [shoal.Invalid] with reason bad_address.
func ParseTarget(s string) (Invite, error) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, inviteScheme) {
		return ParseInvite(s)
	}
	if !strings.HasPrefix(s, "/") || len(s) > maxInviteLen {
		return Invite{}, badAddr(s)
	}
	if _, _, err := splitAddr(s); err != nil {
		return Invite{}, err
	}
	return Invite{Addrs: []string{s}}, nil
}

func badAddr(s string) *shoal.Error {
	return shoal.NewError(shoal.Invalid, "bad_address", fmt.Sprintf("address %q is malformed", clip(s)),
		"give an invite link (shoal:…) or /ip4/ADDR/udp/PORT/quic-v1/p2p/NODEID")
}

// splitAddr splits a multiaddr into where and who.
func splitAddr(s string) (ma.Multiaddr, ed25519.PublicKey, error) {
	full, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, nil, badAddr(s).Because(err)
	}
	ai, err := peer.AddrInfoFromP2pAddr(full)
	if err != nil {
		return nil, nil, badAddr(s).Because(err)
	}
	if len(ai.Addrs) != 1 || pathOf(ai.Addrs[0]) == "" {
		return nil, nil, badAddr(s)
	}
	pub := nodeOf(ai.ID).PublicKey()
	if pub == nil {
		return nil, nil, badAddr(s).With("only Ed25519 keys are accepted")
	}
	return ai.Addrs[0], pub, nil
}
