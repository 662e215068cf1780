package identity

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	shoal "github.com/shoalmesh/shoal"
)

// Files of a keyring.
const (
	nodeFile    = "node.key"
	sealFile    = "seal.age"
	agentPrefix = "agent-"
	keySuffix   = ".key"
)

// Errors of keyrings. Each comes with the file it is about in its message.
var (
	ErrKeyMissing = shoal.NewError(shoal.Corrupt, "key_missing", "a key file is missing",
		"restore it from a backup; a new key would be a new identity")
	ErrKeyDamaged = shoal.NewError(shoal.Corrupt, "key_damaged", "a key file is damaged",
		"restore it from a backup; a new key would be a new identity")
	ErrModeTooWide = shoal.NewError(shoal.Denied, "mode_too_wide", "others can read the keys", "")
	ErrPassphrase  = shoal.NewError(shoal.Denied, "passphrase", "the keys cannot be unsealed",
		"give the passphrase with --passphrase-file")
	ErrUnknownAgent = shoal.NewError(shoal.NotFound, "unknown_agent", "no such key in this keyring", "")
	ErrNodeKey      = shoal.NewError(shoal.Conflict, "node_key", "the node's own key cannot be removed", "")
)

// RingOptions says how a keyring is opened.
type RingOptions struct {
	// Passphrase opens a sealed keyring, and seals one that is in the clear (which
	// does not erase old copies from the disk). Empty: the keys are in the clear. The
	// caller may wipe it after OpenRing.
	Passphrase []byte
	// Fresh allows a new node key where there is no key at all. Say so only if there
	// is no other data of this node: a node that lost its key must not go on as another.
	Fresh bool
	// WorkFactor is log2 of scrypt's N for a new seal: each step doubles the time and
	// the memory of a guess, and of a start. Default 18, about 1 s and 256 MiB.
	WorkFactor int
}

// Ring is a node's keys: its own and those of the agents it hosts, each in a file of a
// directory that belongs to one process at a time. Safe for concurrent use.
type Ring struct {
	dir  string
	seal *seal // nil: in the clear
	work int   // log2 of scrypt's N for a new seal
	node Key

	mu   sync.RWMutex
	keys map[shoal.AgentID]Key // the node's too
}

// OpenRing opens the keyring in dir, which is made if opts.Fresh. It returns
// [ErrKeyMissing] or [ErrKeyDamaged], [ErrModeTooWide] with the chmod to run as hint,
// or [ErrPassphrase]; never a new identity beside existing keys.
func OpenRing(dir string, opts RingOptions) (*Ring, error) {
	if opts.Fresh {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	names, err := listKeys(dir)
	if err != nil {
		return nil, err
	}
	r := &Ring{dir: dir, work: cmp.Or(opts.WorkFactor, defaultWork), keys: make(map[shoal.AgentID]Key)}
	if err := r.openSeal(opts, names); err != nil {
		return nil, err
	}
	if !slices.Contains(names, nodeFile) {
		// Agents' keys without the node's are the remains of a ring, not a fresh one.
		if !opts.Fresh || len(names) > 0 && !slices.Equal(names, []string{sealFile}) {
			return nil, ErrKeyMissing.With("%s", filepath.Join(dir, nodeFile))
		}
		return r, r.createNode()
	}
	for _, name := range names {
		if name == sealFile {
			continue
		}
		if err := r.load(name); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Node returns the node's key, which is also the key of its own agent.
func (r *Ring) Node() Key { return r.node }

// Key returns the key of an agent of this node, its own agent included.
func (r *Ring) Key(id shoal.AgentID) (Key, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	k, ok := r.keys[id]
	return k, ok
}

// Agents returns the ids of the agents that have a key here, without the node's own
// agent, in order of id.
func (r *Ring) Agents() []shoal.AgentID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ids := make([]shoal.AgentID, 0, len(r.keys))
	for id := range r.keys {
		if id != r.node.agent {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// NewAgent makes a key for a new agent; it is on the disk when NewAgent returns.
func (r *Ring) NewAgent() (Key, error) {
	k, err := Generate()
	if err != nil {
		return Key{}, err
	}
	if err := r.write(agentFile(k.agent), k); err != nil {
		return Key{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[k.agent] = k
	return k, nil
}

// Remove deletes an agent's key for good. It returns [ErrUnknownAgent], or
// [ErrNodeKey] for the node's own agent.
func (r *Ring) Remove(id shoal.AgentID) error {
	if id == r.node.agent {
		return ErrNodeKey
	}
	if _, ok := r.Key(id); !ok {
		return ErrUnknownAgent.With("%s", id)
	}
	// The file first: a key that is gone from memory but not from the disk would come
	// back with the next start.
	if err := os.Remove(filepath.Join(r.dir, agentFile(id))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove key: %w", err)
	}
	if err := syncDir(r.dir); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.keys, id)
	return nil
}

// ChangePassphrase seals the keyring anew, from now on under passphrase. It returns
// [ErrPassphrase] for a keyring that is in the clear: open that with a passphrase.
func (r *Ring) ChangePassphrase(passphrase []byte) error {
	if r.seal == nil || len(passphrase) == 0 {
		return ErrPassphrase.With("%s is not sealed, or the new passphrase is empty", r.dir)
	}
	file, err := r.seal.file(passphrase, r.work)
	if err != nil {
		return fmt.Errorf("seal keys: %w", err)
	}
	return writeFile(filepath.Join(r.dir, sealFile), file)
}

// openSeal opens or makes the seal that opts and the files call for.
func (r *Ring) openSeal(opts RingOptions, names []string) error {
	path := filepath.Join(r.dir, sealFile)
	switch sealed, given := slices.Contains(names, sealFile), len(opts.Passphrase) > 0; {
	case sealed && !given:
		return ErrPassphrase.With("%s is sealed with a passphrase and none was given", r.dir)
	case sealed:
		return r.readSeal(path, opts.Passphrase)
	case !given:
		return nil
	case !opts.Fresh && !slices.Contains(names, nodeFile):
		return nil // there is nothing to seal: the missing key is the better complaint
	}

	// A key file that is sealed already had a seal that is now lost.
	for _, name := range names {
		file, err := readFile(filepath.Join(r.dir, name))
		if err != nil {
			return err
		}
		if isSealed(file) {
			return ErrKeyMissing.With("%s, which unseals %s", path, name)
		}
	}
	s, file, err := newSeal(opts.Passphrase, r.work)
	if err != nil {
		return fmt.Errorf("seal keys: %w", err)
	}
	r.seal = s
	return writeFile(path, file)
}

func (r *Ring) readSeal(path string, passphrase []byte) error {
	file, err := readFile(path)
	if err != nil {
		return err
	}
	r.seal, err = openSeal(file, passphrase)
	if errors.Is(err, errWrongPassphrase) {
		return ErrPassphrase.With("wrong passphrase for %s", path)
	}
	if err != nil {
		return ErrKeyDamaged.With("%s", path).Because(err)
	}
	return nil
}

// load reads one key file into the ring, and seals it if the ring is sealed and it is not.
func (r *Ring) load(name string) error {
	path := filepath.Join(r.dir, name)
	text, err := readFile(path)
	if err != nil {
		return err
	}
	sealed := isSealed(text)
	if sealed {
		if r.seal == nil {
			return ErrKeyMissing.With("%s, which unseals %s", filepath.Join(r.dir, sealFile), name)
		}
		if text, err = r.seal.decrypt(text); err != nil {
			return ErrKeyDamaged.With("%s", path).Because(err)
		}
	}
	k, err := parseKey(text)
	if err != nil {
		return ErrKeyDamaged.With("%s", path).Because(err)
	}
	if name != nodeFile && name != agentFile(k.agent) {
		return ErrKeyDamaged.With("%s holds the key of %s", path, k.agent)
	}

	if r.seal != nil && !sealed {
		if err := r.write(name, k); err != nil {
			return err
		}
	}
	if name == nodeFile {
		r.node = k
	}
	r.keys[k.agent] = k
	return nil
}

func (r *Ring) createNode() error {
	k, err := Generate()
	if err != nil {
		return err
	}
	if err := r.write(nodeFile, k); err != nil {
		return err
	}
	r.node, r.keys[k.agent] = k, k
	return nil
}

func (r *Ring) write(name string, k Key) error {
	text := formatKey(k)
	if r.seal != nil {
		var err error
		if text, err = r.seal.encrypt(text); err != nil {
			return fmt.Errorf("seal key: %w", err)
		}
	}
	return writeFile(filepath.Join(r.dir, name), text)
}

// listKeys returns the names of the keyring's files, sorted, after it has removed what
// an interrupted write left behind and checked the modes of all.
func listKeys(dir string) ([]string, error) {
	if err := checkMode(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read key directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		whole := strings.TrimSuffix(name, tmpSuffix)
		ours := whole == nodeFile || whole == sealFile ||
			strings.HasPrefix(whole, agentPrefix) && strings.HasSuffix(whole, keySuffix)
		switch {
		case !ours:
			continue
		case whole != name:
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("remove unfinished key file: %w", err)
			}
			continue
		}
		if err := checkMode(filepath.Join(dir, name), 0o600); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
