package directory

import (
	"slices"

	"github.com/shoalmesh/shoal"
)

// maxPeers bounds the nodes that are remembered as having been connected.
const maxPeers = 128

// peerSet remembers the nodes that came up most recently, latest last. A node in it may
// be gone again: it is a hint whom to ask.
type peerSet struct {
	ids   []shoal.NodeID
	total int
}

func newPeerSet() *peerSet { return &peerSet{} }

func (p *peerSet) add(id shoal.NodeID) {
	if i := slices.Index(p.ids, id); i >= 0 {
		p.ids = slices.Delete(p.ids, i, i+1)
	} else {
		p.total++
	}
	p.ids = append(p.ids, id)
	if len(p.ids) > maxPeers {
		p.ids = slices.Delete(p.ids, 0, 1)
	}
}

func (p *peerSet) has(id shoal.NodeID) bool { return slices.Contains(p.ids, id) }

// len counts the different nodes seen, also those no longer remembered.
func (p *peerSet) len() int { return p.total }

// latest returns at most n nodes, the latest first.
func (p *peerSet) latest(n int) []shoal.NodeID {
	out := slices.Clone(p.ids[max(0, len(p.ids)-n):])
	slices.Reverse(out)
	return out
}
