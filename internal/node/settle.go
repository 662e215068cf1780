package node

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/identity"
	"github.com/shoalmesh/shoal/internal/mesh"
	"github.com/shoalmesh/shoal/internal/store"
)

// schema is what the node itself remembers: small settings and where peers were.
func schema() store.Schema {
	return store.Schema{Package: "node", Steps: []string{`
CREATE TABLE node_settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE node_peers (target TEXT PRIMARY KEY, joined INTEGER NOT NULL, seen_ms INTEGER NOT NULL);
`}}
}

func (n *node) setting(key string) (value string, err error) {
	err = n.db.View(context.Background(), func(tx *store.Tx) error {
		_, err := tx.One(`SELECT value FROM node_settings WHERE key = ?`, []any{key}, &value)
		return err
	})
	return value, err
}

func (n *node) keep(key, value string) error {
	return n.db.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO node_settings (key, value) VALUES (?, ?)
			ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
		return err
	})
}

func (n *node) openLog(o Options) error {
	level, err := n.cfg.level()
	if err != nil {
		return err
	}
	out := o.Log
	if out == nil {
		out = io.Discard
	}
	n.logs = newLogBook(out)
	n.log = slog.New(slog.NewTextHandler(n.logs, &slog.HandlerOptions{Level: level}))
	return nil
}

// settle finds the network's name: what the operator says, else what the data dir
// remembers, else what the first invite link says. It stays for the life of the data dir.
func (n *node) settle() error {
	kept, err := n.setting("network")
	if err != nil {
		return err
	}
	for _, target := range n.cfg.Join {
		inv, err := mesh.ParseTarget(target)
		if err != nil {
			return err
		}
		if n.cfg.Network == "" && kept == "" && inv.Network != "" {
			n.cfg.Network = inv.Network
		}
	}
	if n.cfg.Network == "" {
		n.cfg.Network = kept
	}
	if n.cfg.Network == "" {
		n.cfg.Network = defaultNetwork
	}
	if kept != "" && kept != n.cfg.Network {
		return shoal.NewError(shoal.Conflict, "other_network", "this node belongs to network "+kept+", not "+n.cfg.Network,
			"use another --home for another network")
	}
	if kept == "" {
		return n.keep("network", n.cfg.Network)
	}
	return nil
}

// openKeys opens the keyring. The database remembers whose it is, so a key that is gone
// or was swapped is an error and never a new identity.
func (n *node) openKeys() error {
	did, err := n.setting("did")
	if err != nil {
		return err
	}
	opts := identity.RingOptions{Fresh: did == ""}
	if n.cfg.PassphraseFile != "" {
		if opts.Passphrase, err = readSecret(n.cfg.PassphraseFile); err != nil {
			return err
		}
	}
	n.ring, err = identity.OpenRing(filepath.Join(n.home, "keys"), opts)
	if err != nil {
		return err
	}
	if did == "" {
		return n.keep("did", string(n.did()))
	}
	if did != string(n.did()) {
		return shoal.NewError(shoal.Corrupt, "key_swapped", "the node key is not the one that this database belongs to ("+did+")",
			"put the right keys/node.key back, or start with an empty --home")
	}
	return nil
}

func runtimeDir() string { return os.Getenv("XDG_RUNTIME_DIR") }
