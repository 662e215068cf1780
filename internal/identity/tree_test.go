package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"
)

func testLeaves(n int) [][32]byte {
	leaves := make([][32]byte, n)
	for i := range leaves {
		leaves[i] = LeafHash(binary.BigEndian.AppendUint32(nil, uint32(i)))
	}
	return leaves
}

// specRoot is RFC 6962 §2.1 as it is written there.
func specRoot(leaves [][32]byte) [32]byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	l, r := specRoot(leaves[:k]), specRoot(leaves[k:])
	return sha256.Sum256(slices.Concat([]byte{1}, l[:], r[:]))
}

func TestTreeIsThatOfRFC6962(t *testing.T) {
	for n := 1; n <= 130; n++ {
		leaves := testLeaves(n)
		want := specRoot(leaves)
		if got := TreeRoot(leaves); got != want {
			t.Fatalf("TreeRoot of %d: got %x, want %x", n, got, want)
		}
		if got := NewTree(leaves).Root(); got != want {
			t.Fatalf("NewTree of %d: got %x, want %x", n, got, want)
		}
		if !slices.Equal(leaves, testLeaves(n)) {
			t.Fatalf("TreeRoot changed its %d leaves", n)
		}
	}
	if got, want := TreeRoot(nil), sha256.Sum256(nil); got != want || NewTree(nil).Root() != want {
		t.Errorf("empty tree: got %x, want %x", got, want)
	}
}

func TestEachLeafIsProvedAtItsPlaceOnly(t *testing.T) {
	a := attack(t)
	refuse := func(ok bool, format string, args ...any) {
		t.Helper()
		var err error
		if !ok {
			err = ErrBadSignature
		}
		a.add(err, format, args...)
	}
	for n := 1; n <= 34; n++ {
		leaves := testLeaves(n)
		tree := NewTree(leaves)
		root := tree.Root()
		for i := range n {
			proof := tree.Proof(i)
			if !VerifyProof(root, leaves[i], i, n, proof) || !slices.Equal(proof, TreeProof(leaves, i)) {
				t.Fatalf("proof %d of %d does not verify", i, n)
			}
			for j := range n {
				if j != i {
					refuse(VerifyProof(root, leaves[i], j, n, proof), "leaf %d as %d of %d", i, j, n)
					refuse(VerifyProof(root, leaves[j], i, n, proof), "leaf %d in place of %d of %d", j, i, n)
				}
			}
			refuse(VerifyProof(root, leaves[i], i, n, append(slices.Clone(proof), root)), "a proof too long")
			if len(proof) > 0 {
				refuse(VerifyProof(root, leaves[i], i, n, proof[:len(proof)-1]), "a proof too short")
				forged := slices.Clone(proof)
				forged[i%len(proof)][i%32] ^= 1
				refuse(VerifyProof(root, leaves[i], i, n, forged), "a flipped bit")
			}
			refuse(VerifyProof(root, leaves[i], -1, n, proof), "index -1")
			refuse(VerifyProof(root, leaves[i], n, n, proof), "index n")
		}
		// An inner node offered as a leaf: its data would be two hashes.
		if n == 4 {
			level := tree.levels[1]
			data := slices.Concat(leaves[0][:], leaves[1][:])
			refuse(VerifyProof(root, LeafHash(data), 0, 2, [][32]byte{level[1]}), "an inner node as a leaf")
		}
	}
	leaf, extra := testLeaves(2)[0], testLeaves(2)[1]
	refuse(VerifyProof(innerHash(extra, leaf), leaf, 0, 1, [][32]byte{extra}), "a tree of one with a sibling")

	if VerifyProof(sha256.Sum256(nil), sha256.Sum256(nil), 0, 0, nil) || NewTree(testLeaves(3)).Proof(3) != nil || NewTree(nil).Proof(0) != nil {
		t.Error("something is proved about a leaf that is not there")
	}
}
