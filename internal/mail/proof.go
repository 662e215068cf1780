package mail

import (
	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
)

// Proof shows, to anybody and without the rest of its frame, that an agent wrote an
// envelope: its header as carried, its place in the frame's hash tree, and the signature
// over the tree's root (spec/records.md §3). The header holds the body's hash.
type Proof struct {
	Header       []byte
	Index, Count int
	Path         [][32]byte // lowest first, at most 10 for a frame
	Root         [32]byte   // what is signed
	Signature    []byte
}

// Prove returns the proof of envelope i of a frame, given as carried without its length
// prefix. It does not check the frame.
func Prove(frame []byte, i int) (Proof, error) {
	envs, sig, err := parseFrame(frame)
	if err != nil {
		return Proof{}, badProof(err)
	}
	if i < 0 || i >= len(envs) {
		return Proof{}, shoal.NewError(shoal.NotFound, "no_such_envelope", "the frame has no such envelope", "")
	}
	leaves := make([][32]byte, len(envs))
	for j, e := range envs {
		leaves[j] = identity.LeafHash(e.header)
	}
	return Proof{
		Header: envs[i].header, Index: i, Count: len(envs),
		Path: identity.TreeProof(leaves, i), Root: identity.TreeRoot(leaves), Signature: sig,
	}, nil
}

// Verify checks that the sender named in the header signed it for network, and that body
// is its body. It returns the envelope, which keeps body. It says nothing about times.
func (p Proof) Verify(network string, body []byte) (shoal.Envelope, error) {
	var h header
	err := bad("malformed", "%d envelopes, path of %d", p.Count, len(p.Path))
	if p.Count <= maxEnvelopes && len(p.Path) <= 10 {
		h, err = parseHeader(p.Header)
	}
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return shoal.Envelope{}, badProof(err)
	}
	if h.network != network {
		return shoal.Envelope{}, identity.ErrWrongNetwork
	}
	leaf := identity.LeafHash(p.Header)
	if !identity.VerifyProof(p.Root, leaf, p.Index, p.Count, p.Path) || !h.bodyMatches(body) {
		return shoal.Envelope{}, badProof(bad("wrong_body", "body or path does not fit"))
	}
	if err := identity.Verify(h.from[:], identity.DomainEnvelope, network, p.Root[:], p.Signature); err != nil {
		return shoal.Envelope{}, err
	}
	e := inbound{header: h, body: body, sender: shoal.AgentIDOf(h.from[:]), recipient: shoal.AgentIDOf(h.to[:])}
	return e.envelope(), nil
}

func badProof(err error) error {
	return shoal.NewError(shoal.Invalid, "bad_proof", "the proof of an envelope is malformed", "").Because(err)
}
