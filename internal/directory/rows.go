package directory

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// Schema returns the tables of the directory.
//
// directory_hosted has the agents of this node, also withdrawn ones, whose sequence
// numbers must go on. directory_known has the newest card seen of every other agent;
// its rows outlive the cards, as pins against older ones.
func Schema() store.Schema {
	return store.Schema{Package: "directory", Steps: []string{`
CREATE TABLE directory_hosted (
	did       TEXT PRIMARY KEY,
	seq       INTEGER NOT NULL,
	spec      BLOB NOT NULL,    -- JSON of shoal.AgentSpec
	raw       BLOB NOT NULL,    -- the signed card
	record    BLOB NOT NULL,    -- the signed DHT record around it
	withdrawn INTEGER NOT NULL
) STRICT;
CREATE TABLE directory_known (
	did         TEXT PRIMARY KEY,
	seq         INTEGER NOT NULL,
	raw         BLOB NOT NULL,
	node        TEXT NOT NULL,
	not_after   INTEGER NOT NULL, -- Unix seconds
	verified_at INTEGER NOT NULL  -- Unix seconds
) STRICT;
CREATE INDEX directory_known_age ON directory_known (verified_at);
`}}
}

const (
	// maxRows bounds the pins: 100,000 rows of 1.5 KB are 150 MB at worst.
	maxRows = 100_000
	// saveBatch is how many cards one transaction writes, loadBatch how many one reads.
	saveBatch = 256
	loadBatch = 256
)

func (d *Directory) saveHosted(ctx context.Context, h *hosted) error {
	spec, err := json.Marshal(h.spec)
	if err != nil {
		return fmt.Errorf("encode spec of %s: %w", h.spec.ID, err)
	}
	return d.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO directory_hosted (did, seq, spec, raw, record, withdrawn)
			VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (did) DO UPDATE SET
			seq = excluded.seq, spec = excluded.spec, raw = excluded.raw,
			record = excluded.record, withdrawn = excluded.withdrawn`,
			string(h.spec.ID), int64(h.card.Seq), spec, h.card.Raw, h.record, h.card.withdrawn)
		return err
	})
}

// loadHosted reads the hosted agents. Their cards may have expired while the node was
// off; the publisher signs new ones.
func (d *Directory) loadHosted(ctx context.Context) error {
	return d.db.View(ctx, func(tx *store.Tx) error {
		return tx.Each(`SELECT spec, raw, record FROM directory_hosted`, nil, func(scan func(...any) error) error {
			var spec, raw, record []byte
			if err := scan(&spec, &raw, &record); err != nil {
				return err
			}
			h := &hosted{record: record}
			if err := json.Unmarshal(spec, &h.spec); err != nil {
				return damaged("hosted agent", err)
			}
			card, err := openTimeless(raw, d.cfg.Network)
			if err != nil {
				return damaged("card of "+string(h.spec.ID), err)
			}
			h.setCard(card)
			d.local[h.spec.ID] = h
			return nil
		})
	})
}

func damaged(what string, err error) error {
	return shoal.NewError(shoal.Corrupt, "db_corrupt", "directory: the database's "+what+" is damaged",
		"restore a backup with `shoal restore`").Because(err)
}

// pin returns the sequence number and bytes' hash of the newest card of id ever seen,
// from memory or from the database.
func (d *Directory) pin(ctx context.Context, id shoal.AgentID) (seq uint64, sum digest, found bool, err error) {
	if c, ok := d.known.pinned(id); ok {
		return c.Seq, digestOf(c.Raw), true, nil
	}
	err = d.db.View(ctx, func(tx *store.Tx) error {
		var n int64
		var raw []byte
		found, err = tx.One(`SELECT seq, raw FROM directory_known WHERE did = ?`, []any{string(id)}, &n, &raw)
		seq, sum = uint64(n), digestOf(raw)
		return err
	})
	if err != nil {
		return 0, sum, false, fmt.Errorf("look up what is known of %s: %w", id, err)
	}
	return seq, sum, found, nil
}

// runKeeper fills the memory with the cards of the last run, then writes down new ones
// as they come and throws out old ones. Cards seen in the last moment before a crash
// are forgotten with their pins.
func (d *Directory) runKeeper(ctx context.Context) error {
	if err := d.loadKnown(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	sweep := time.NewTicker(10 * time.Minute)
	defer sweep.Stop()
	for {
		if err := d.save(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("known cards not written", "err", err)
		}
		select {
		case <-d.flushing:
		case <-sweep.C:
			d.known.sweep(time.Now())
			if err := d.prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
				d.log.Warn("old cards not removed", "err", err)
			}
		case <-ctx.Done():
			return d.saveLast(ctx)
		}
	}
}

// saveLast writes what came in just before the end. The context has ended already, so
// it has a time of its own.
func (d *Directory) saveLast(ctx context.Context) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := d.save(last); err != nil {
		return fmt.Errorf("write known cards: %w", err)
	}
	return ctx.Err()
}

func (d *Directory) save(ctx context.Context) error {
	for {
		cards := d.known.takeUnsaved(saveBatch)
		if len(cards) == 0 {
			return nil
		}
		err := d.db.Update(ctx, func(tx *store.Tx) error {
			for _, c := range cards {
				_, err := tx.Exec(`INSERT INTO directory_known (did, seq, raw, node, not_after, verified_at)
					VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (did) DO UPDATE SET
					seq = excluded.seq, raw = excluded.raw, node = excluded.node,
					not_after = excluded.not_after, verified_at = excluded.verified_at
					WHERE excluded.seq > directory_known.seq`,
					string(c.Agent), int64(c.Seq), c.Raw, string(c.Node), c.NotAfter.Unix(), c.VerifiedAt.Unix())
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		d.known.saved(cards)
	}
}

// prune removes pins that protect nothing any more: every card with a lower sequence
// number was signed earlier and has lived out its at most [MaxLife] too.
func (d *Directory) prune(ctx context.Context, now time.Time) error {
	return d.db.Update(ctx, func(tx *store.Tx) error {
		gone := now.Add(-MaxLife - 2*Tolerance).Unix()
		if _, err := tx.Exec(`DELETE FROM directory_known WHERE not_after < ?`, gone); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM directory_known WHERE did IN (
			SELECT did FROM directory_known ORDER BY verified_at DESC LIMIT -1 OFFSET ?)`, maxRows)
		return err
	})
}

// loadKnown reads the most recent cards, verifying each again: the file may have been
// edited, and signatures cost less than doubt.
func (d *Directory) loadKnown(ctx context.Context) error {
	var after int64 = 1<<63 - 1
	last := ""
	for n := 0; n < d.cfg.MaxKnown; {
		raws := make([][]byte, 0, loadBatch)
		err := d.db.View(ctx, func(tx *store.Tx) error {
			return tx.Each(`SELECT did, raw, verified_at FROM directory_known
				WHERE (verified_at, did) < (?, ?) ORDER BY verified_at DESC, did DESC LIMIT ?`,
				[]any{after, last, loadBatch}, func(scan func(...any) error) error {
					var raw []byte
					if err := scan(&last, &raw, &after); err != nil {
						return err
					}
					raws = append(raws, raw)
					return nil
				})
		})
		if err != nil {
			return fmt.Errorf("read known cards: %w", err)
		}
		for _, raw := range raws {
			d.reload(raw)
		}
		if n += len(raws); len(raws) < loadBatch || ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (d *Directory) reload(raw []byte) {
	c, err := openCard(raw, d.cfg.Network, time.Now())
	if err != nil {
		return // expired, or not what was written; the row stays as a pin
	}
	c.VerifiedAt = c.NotBefore // nobody has confirmed it in this run
	if err := d.known.adopt(&c, digestOf(raw), "", false); err != nil {
		d.log.Debug("known card not loaded", "agent", c.Agent, "err", err)
	}
}
