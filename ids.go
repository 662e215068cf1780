package shoal

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"github.com/mr-tron/base58"
)

// AgentID names an agent: a did:key of an Ed25519 public key, for example
// "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK".
// The zero value names nobody. A value made by [ParseAgentID] or [AgentIDOf] is
// always well formed and canonical, so two ids are equal exactly when their keys are.
type AgentID string

// NodeID names a node: the libp2p peer ID of its Ed25519 key, base58 form
// ("12D3KooW…"). The zero value names nobody.
type NodeID string

const (
	didPrefix = "did:key:z"
	// maxIDLen bounds what is decoded: 34 bytes in base58 are at most 47 characters.
	maxIDLen = 80
)

var (
	// didMulticodec is the varint 0xed (ed25519-pub) of the multicodec table,
	// as the did:key method asks for (W3C CCG did:key v0.7, §3.1).
	didMulticodec = []byte{0xed, 0x01}
	// peerIDPrefix is an identity multihash (0x00) of 36 bytes (0x24) over the
	// protobuf PublicKey{Type: Ed25519, Data: 32 bytes} (libp2p peer-ids spec).
	peerIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}
)

// smallOrder holds the y coordinates of the eight points of small order. A signature
// "by" such a key fits many messages without anybody knowing a private key.
var smallOrder = [...][ed25519.PublicKeySize]byte{
	{},
	{0x01},
	{
		0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
	},
	{
		0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
	},
	{
		0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
	},
}

// CheckKey reports whether pub may be somebody's Ed25519 key: 32 bytes that encode a
// y coordinate below 2^255-19 (so one key has one id) and not a point of small order.
// Whether the point is on the curve shows when a signature is verified.
// It returns an [Invalid] error with reason bad_key otherwise.
func CheckKey(pub ed25519.PublicKey) error {
	if len(pub) != ed25519.PublicKeySize {
		return NewError(Invalid, "bad_key", fmt.Sprintf("a key of %d bytes", len(pub)), "an Ed25519 key has 32 bytes")
	}

	y := [ed25519.PublicKeySize]byte(pub)
	y[31] &= 0x7f // the sign of x
	if y[31] == 0x7f && y[0] >= 0xed && bytes.Count(y[1:31], []byte{0xff}) == 30 {
		return NewError(Invalid, "bad_key", "the key's encoding is not canonical", "")
	}
	for _, weak := range smallOrder {
		if y == weak {
			return NewError(Invalid, "bad_key", "the key is a point of small order", "nobody can own such a key")
		}
	}
	return nil
}

// AgentIDOf returns the id of the agent whose public key is pub (32 bytes that pass
// [CheckKey]; the id of other bytes is one that [ParseAgentID] refuses).
func AgentIDOf(pub ed25519.PublicKey) AgentID {
	return AgentID(didPrefix + base58.Encode(append(bytes.Clone(didMulticodec), pub...)))
}

// NodeIDOf returns the id of the node whose public key is pub, as in [AgentIDOf].
func NodeIDOf(pub ed25519.PublicKey) NodeID {
	return NodeID(base58.Encode(append(bytes.Clone(peerIDPrefix), pub...)))
}

// ParseAgentID checks that s is a did:key of an Ed25519 key in canonical form that
// passes [CheckKey].
// It returns an [Invalid] error with reason bad_did otherwise. A fragment
// ("did:key:z…#z…") is refused: it names a key, not an agent.
func ParseAgentID(s string) (AgentID, error) {
	if _, err := decodeAgentID(s); err != nil {
		return "", err
	}
	return AgentID(s), nil
}

// ParseNodeID checks that s is the peer ID of an Ed25519 key that passes [CheckKey].
// It returns an [Invalid] error with reason bad_peer_id otherwise.
func ParseNodeID(s string) (NodeID, error) {
	if _, err := decodeNodeID(s); err != nil {
		return "", err
	}
	return NodeID(s), nil
}

// PublicKey returns the key that the id encodes, nil for a malformed id.
func (a AgentID) PublicKey() ed25519.PublicKey {
	pub, err := decodeAgentID(string(a))
	if err != nil {
		return nil
	}
	return pub
}

// Node returns the id of the node that has the same key as the agent, which is
// the node whose own agent it is, if there is one; "" for a malformed id.
func (a AgentID) Node() NodeID {
	pub := a.PublicKey()
	if pub == nil {
		return ""
	}
	return NodeIDOf(pub)
}

// PublicKey returns the key that the id encodes, nil for a malformed id.
func (n NodeID) PublicKey() ed25519.PublicKey {
	pub, err := decodeNodeID(string(n))
	if err != nil {
		return nil
	}
	return pub
}

// Agent returns the id of the node's own agent; "" for a malformed id.
func (n NodeID) Agent() AgentID {
	pub := n.PublicKey()
	if pub == nil {
		return ""
	}
	return AgentIDOf(pub)
}

// Short returns the last eight characters, enough for a person to tell agents apart
// in one view. It is never accepted as input.
func (a AgentID) Short() string { return tail(string(a)) }

// Short returns the last eight characters of the id.
func (n NodeID) Short() string { return tail(string(n)) }

func tail(s string) string {
	if len(s) <= 8 {
		return s
	}
	return s[len(s)-8:]
}

func decodeAgentID(s string) (ed25519.PublicKey, error) {
	if len(s) > maxIDLen || len(s) <= len(didPrefix) || s[:len(didPrefix)] != didPrefix {
		return nil, badID("bad_did", "agent id", s, "an agent id looks like did:key:z6Mk…")
	}
	return decodeKey(s[len(didPrefix):], didMulticodec, "bad_did", "agent id", s)
}

func decodeNodeID(s string) (ed25519.PublicKey, error) {
	if len(s) > maxIDLen {
		return nil, badID("bad_peer_id", "peer id", s, "a peer id looks like 12D3KooW…")
	}
	return decodeKey(s, peerIDPrefix, "bad_peer_id", "peer id", s)
}

func decodeKey(b58 string, prefix []byte, reason, what, whole string) (ed25519.PublicKey, error) {
	raw, err := base58.Decode(b58)
	if err != nil || len(raw) != len(prefix)+ed25519.PublicKeySize || !bytes.HasPrefix(raw, prefix) {
		return nil, badID(reason, what, whole, "only Ed25519 keys are accepted")
	}
	// base58 has one spelling for each byte string only if it is re-encoded: leading
	// zeros and the like must not give one key two names.
	if base58.Encode(raw) != b58 {
		return nil, badID(reason, what, whole, "the id is not in canonical form")
	}
	pub := ed25519.PublicKey(raw[len(prefix):])
	if err := CheckKey(pub); err != nil {
		return nil, badID(reason, what, whole, AsError(err).Msg)
	}
	return pub, nil
}

func badID(reason, what, s, hint string) error {
	if len(s) > maxIDLen {
		s = s[:maxIDLen] + "…"
	}
	return NewError(Invalid, reason, fmt.Sprintf("%s %q is malformed", what, s), hint)
}
