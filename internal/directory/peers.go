package directory

import (
	"maps"
	"slices"
	"time"

	"github.com/shoalmesh/shoal"
)

const (
	// silentFor is how long a node that did not answer is not asked again in a find: else
	// each find would wait for every dead node.
	silentFor = time.Minute
	// maxSilent bounds the nodes that are remembered as silent.
	maxSilent = 1024
)

// maxPeers bounds the nodes that are remembered as having been connected.
const maxPeers = 128

// peerSet remembers the nodes that came up most recently, latest last. A node in it may
// be gone again: it is a hint whom to ask.
type peerSet struct {
	ids   []shoal.NodeID
	total int

	silent map[shoal.NodeID]time.Time // since when
}

func newPeerSet() *peerSet { return &peerSet{silent: map[shoal.NodeID]time.Time{}} }

func (p *peerSet) add(id shoal.NodeID) {
	if i := slices.Index(p.ids, id); i >= 0 {
		p.ids = slices.Delete(p.ids, i, i+1)
	} else {
		p.total++
	}
	delete(p.silent, id)
	p.ids = append(p.ids, id)
	if len(p.ids) > maxPeers {
		p.ids = slices.Delete(p.ids, 0, 1)
	}
}

// len counts the different nodes seen, also those no longer remembered.
func (p *peerSet) len() int { return p.total }

// latest returns at most n nodes, the latest first.
func (p *peerSet) latest(n int) []shoal.NodeID {
	out := slices.Clone(p.ids[max(0, len(p.ids)-n):])
	slices.Reverse(out)
	return out
}

// heard notes whether a node answered.
func (p *peerSet) heard(id shoal.NodeID, answered bool, now time.Time) {
	delete(p.silent, id)
	if answered {
		return
	}
	if len(p.silent) >= maxSilent {
		maps.DeleteFunc(p.silent, func(_ shoal.NodeID, since time.Time) bool { return now.Sub(since) > silentFor })
	}
	if len(p.silent) < maxSilent {
		p.silent[id] = now
	}
}

func (p *peerSet) isSilent(id shoal.NodeID, now time.Time) bool {
	since, ok := p.silent[id]
	return ok && now.Sub(since) <= silentFor
}
