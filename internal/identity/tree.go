package identity

import "crypto/sha256"

// Prefixes keep a leaf from being read as an inner node (RFC 6962 §2.1).
const (
	leafPrefix  = 0x00
	innerPrefix = 0x01
)

// LeafHash returns the hash of one leaf of a tree: SHA-256 over 0x00 and data. For an
// envelope, data is the header as carried (spec/records.md §3).
func LeafHash(data []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte{leafPrefix})
	h.Write(data)
	return [32]byte(h.Sum(nil))
}

// Tree is a hash tree of the shape of RFC 6962: its left part is the largest full tree
// with fewer leaves than the whole. It does not change once built.
type Tree struct {
	levels [][][32]byte // the leaves first, the root last
}

// NewTree builds the tree over the given leaf hashes, at least one, which it keeps and
// which must not be changed afterwards.
func NewTree(leaves [][32]byte) Tree {
	t := Tree{levels: [][][32]byte{leaves}}
	for level := leaves; len(level) > 1; {
		next := make([][32]byte, 0, (len(level)+1)/2)
		level = appendParents(next, level)
		t.levels = append(t.levels, level)
	}
	return t
}

// Root returns the tree's root; SHA-256 of nothing for a tree without leaves.
func (t Tree) Root() [32]byte {
	if len(t.levels) == 0 || len(t.levels[0]) == 0 {
		return sha256.Sum256(nil)
	}
	return t.levels[len(t.levels)-1][0]
}

// Proof returns the hashes that lead from leaf i to the root, lowest first; nil if
// there is no leaf i, and for the only leaf of a tree.
func (t Tree) Proof(i int) [][32]byte {
	if len(t.levels) == 0 || i < 0 || i >= len(t.levels[0]) {
		return nil
	}
	var proof [][32]byte
	for _, level := range t.levels {
		if sibling := i ^ 1; sibling < len(level) {
			proof = append(proof, level[sibling])
		}
		i /= 2
	}
	return proof
}

// TreeRoot returns the root of the tree over leaves without keeping the tree.
func TreeRoot(leaves [][32]byte) [32]byte {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	}
	// One buffer serves all levels: a parent is written at or before the place of its
	// left child, which has been read.
	level := appendParents(make([][32]byte, 0, (len(leaves)+1)/2), leaves)
	for len(level) > 1 {
		level = appendParents(level[:0], level)
	}
	return level[0]
}

// TreeProof returns the proof of leaf i, as in [Tree.Proof].
func TreeProof(leaves [][32]byte, i int) [][32]byte { return NewTree(leaves).Proof(i) }

// VerifyProof reports whether proof leads from leaf number i of n to root
// (RFC 9162 §2.1.3.2). All of them may come from anybody.
func VerifyProof(root, leaf [32]byte, i, n int, proof [][32]byte) bool {
	if i < 0 || i >= n {
		return false
	}
	hash, last := leaf, n-1 // i and last: this node and the level's last one
	for _, sibling := range proof {
		if last == 0 {
			return false
		}
		if i%2 == 1 || i == last {
			hash = innerHash(sibling, hash)
			for i%2 == 0 && i != 0 { // levels on which the node had no sibling
				i, last = i/2, last/2
			}
		} else {
			hash = innerHash(hash, sibling)
		}
		i, last = i/2, last/2
	}
	return last == 0 && hash == root
}

// appendParents appends the next level up; a last node without sibling moves up as it is.
func appendParents(next, level [][32]byte) [][32]byte {
	for i := 0; i+1 < len(level); i += 2 {
		next = append(next, innerHash(level[i], level[i+1]))
	}
	if len(level)%2 == 1 {
		next = append(next, level[len(level)-1])
	}
	return next
}

func innerHash(left, right [32]byte) [32]byte {
	var b [1 + 2*sha256.Size]byte
	b[0] = innerPrefix
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}
