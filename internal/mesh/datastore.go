package mesh

import (
	"context"
	"sync"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
)

// newBounded returns the DHT's store, in memory.
func newBounded(self peer.ID, limit int64) ds.Batching {
	return ds.NewMapDatastore() // TODO bound
}

var _ = sync.Mutex{}
var _ = dsq.Query{}
var _ context.Context
