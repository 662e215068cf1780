// Package identity holds keys and everything that is signed with them: domain-separated
// signatures, hash trees over envelopes, signed agent cards, DHT records, rotation and
// revocation statements, and the keyring on disk (spec/records.md is the norm).
//
// It promises that what it verifies is what was signed, byte for byte, by the key that
// the identifier itself encodes; that no signature of one domain or network passes in
// another; and that a damaged or missing key file is an error, never a new identity.
//
// It does not fetch keys, trust certificates, or know whether a key's owner is honest,
// and its files are no defence against a process of the same user.
// Packages mesh, directory, mail, task and worker call it; it calls nothing of ours but
// the root package and the wire codec.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"

	shoal "github.com/shoalmesh/shoal"
)

// ErrBadSignature says that a signature does not fit its key, domain, network and
// message, or that the key is one that nobody can own.
var ErrBadSignature = shoal.NewError(shoal.Invalid, "bad_signature", "the signature does not verify",
	"it was altered on its way, or signed by another key or for another network")

// Domain says what kind of thing a signature is for. A signature of one domain never
// verifies in another. At most 255 bytes.
type Domain string

// The domains in use (spec/records.md §2).
const (
	DomainEnvelope   Domain = "shoal/envelope/v1"
	DomainReceipt    Domain = "shoal/receipt/v1"
	DomainRecord     Domain = "shoal/record/v1"
	DomainRotation   Domain = "shoal/rotation/v1"
	DomainRevocation Domain = "shoal/revocation/v1"
)

// signingPrefix starts every signing input. Its newline keeps it apart from a JWS
// (base64url and a dot) and from libp2p's own prefixes.
const signingPrefix = "shoal-signature-v1\n"

// Key is an Ed25519 key pair, of a node or of an agent. It is a value that may be
// copied and used from many goroutines. The zero value is useless: it names nobody and
// must not sign. Printing or logging a Key shows its public id only.
type Key struct {
	private ed25519.PrivateKey
	agent   shoal.AgentID
	node    shoal.NodeID
}

// Generate returns a new key from the system's randomness.
func Generate() (Key, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return Key{}, fmt.Errorf("generate key: %w", err)
	}
	return FromSeed(seed[:])
}

// FromSeed returns the key that the 32-byte seed (RFC 8032's private key) makes.
// The seed is not retained. It returns an Invalid error, reason bad_seed, for any
// other length.
func FromSeed(seed []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, shoal.NewError(shoal.Invalid, "bad_seed",
			fmt.Sprintf("a seed of %d bytes", len(seed)), "a seed has 32 bytes")
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	return Key{private: private, agent: shoal.AgentIDOf(public), node: shoal.NodeIDOf(public)}, nil
}

// Agent returns the key's did:key, "" for the zero Key.
func (k Key) Agent() shoal.AgentID { return k.agent }

// Node returns the key's libp2p peer ID, "" for the zero Key.
func (k Key) Node() shoal.NodeID { return k.node }

// Public returns the public key, 32 bytes, not to be changed; nil for the zero Key.
func (k Key) Public() ed25519.PublicKey {
	if k.private == nil {
		return nil
	}
	return k.private.Public().(ed25519.PublicKey)
}

// Private returns the private key, not to be changed. Only package mesh has a use for
// it: libp2p authenticates connections with it.
func (k Key) Private() ed25519.PrivateKey { return k.private }

// String returns the key's public id.
func (k Key) String() string { return string(k.agent) }

// Format writes the key's public id whatever the verb, so that no "%+v" or "%#v" of a
// struct around a Key ever prints the private half.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, string(k.agent)) }

// Sign returns the 64-byte signature of msg for one domain and one network; network is
// "" where the thing signed belongs to none. It panics if the domain or the network is
// longer than 255 bytes, or k is the zero Key: both are our own mistakes.
func (k Key) Sign(d Domain, network string, msg []byte) []byte {
	input, err := signingInput(d, network, msg)
	if err != nil {
		panic("identity: " + err.Error())
	}
	return k.signRaw(input)
}

// Verify checks that sig is the signature of msg by pub for this domain and network.
// All of them may come from anybody. It returns an error that is [ErrBadSignature]:
// also for a key of small order or in non-canonical form, and for a signature in any
// other form than the one that Sign makes (RFC 8032 §5.1.7, S below the group order).
func Verify(pub ed25519.PublicKey, d Domain, network string, msg, sig []byte) error {
	input, err := signingInput(d, network, msg)
	if err != nil {
		return ErrBadSignature.Because(err)
	}
	return verifyInput(pub, input, sig)
}

func verifyInput(pub ed25519.PublicKey, input, sig []byte) error {
	if len(sig) != ed25519.SignatureSize {
		return ErrBadSignature.With("%d bytes", len(sig))
	}
	if err := shoal.CheckKey(pub); err != nil {
		return ErrBadSignature.Because(err)
	}
	if !ed25519.Verify(pub, input, sig) {
		return ErrBadSignature
	}
	return nil
}

// signingInput returns what is signed in place of msg: the prefix, then domain and
// network with a length byte each, then msg. Two different triples never share it.
func signingInput(d Domain, network string, msg []byte) ([]byte, error) {
	const longest = 255
	if len(d) > longest || len(network) > longest {
		return nil, fmt.Errorf("domain of %d bytes, network of %d: at most %d", len(d), len(network), longest)
	}

	b := make([]byte, 0, len(signingPrefix)+2+len(d)+len(network)+len(msg))
	b = append(b, signingPrefix...)
	b = append(b, byte(len(d)))
	b = append(b, d...)
	b = append(b, byte(len(network)))
	b = append(b, network...)
	return append(b, msg...), nil
}

// signRaw signs input as it is; callers build it so that it cannot be taken for
// anything else.
func (k Key) signRaw(input []byte) []byte { return ed25519.Sign(k.private, input) }
