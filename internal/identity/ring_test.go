package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	shoal "github.com/shoalmesh/shoal"
)

const testWork = 2 // scrypt in microseconds

// newRing makes a ring of one node and one agent in a directory of its own.
func newRing(t testing.TB, passphrase string) (dir string, r *Ring, agent Key) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "keys")
	r, err := OpenRing(dir, RingOptions{Fresh: true, Passphrase: []byte(passphrase), WorkFactor: testWork})
	if err != nil {
		t.Fatal(err)
	}
	if agent, err = r.NewAgent(); err != nil {
		t.Fatal(err)
	}
	return dir, r, agent
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fileNames lists dir, so that a test can say that nothing was added or lost.
func fileNames(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRingComesBackAsItWas(t *testing.T) {
	for _, passphrase := range []string{"", "correct horse"} {
		dir, r, agent := newRing(t, passphrase)
		second, err := r.NewAgent()
		if err != nil {
			t.Fatal(err)
		}
		again, err := OpenRing(dir, RingOptions{Passphrase: []byte(passphrase)})
		if err != nil {
			t.Fatal(err)
		}
		want := []shoal.AgentID{agent.Agent(), second.Agent()}
		slices.Sort(want)
		if again.Node().Node() != r.Node().Node() || !slices.Equal(again.Agents(), want) {
			t.Errorf("passphrase %q: got %s %v, want %s %v", passphrase, again.Node(), again.Agents(), r.Node(), want)
		}
		k, ok := again.Key(agent.Agent())
		if !ok || !bytes.Equal(k.Private(), agent.Private()) {
			t.Errorf("passphrase %q: the agent's key is another", passphrase)
		}
		if k, ok := again.Key(r.Node().Agent()); !ok || k.Node() != r.Node().Node() {
			t.Errorf("passphrase %q: the node's own agent has no key", passphrase)
		}
		for _, name := range fileNames(t, dir) {
			seed := agent.Private().Seed()
			text := read(t, filepath.Join(dir, name))
			clear := bytes.Contains(text, seed) || bytes.Contains(text, []byte(hex.EncodeToString(seed)))
			if clear != (passphrase == "" && name == agentFile(agent.Agent())) {
				t.Errorf("passphrase %q: %s holds the agent's seed in clear: %v", passphrase, name, clear)
			}
		}
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes on Windows")
	}
	dir, _, _ := newRing(t, "pass")
	for _, path := range append([]string{dir}, fileNames(t, dir)...) {
		want := os.FileMode(0o600)
		if path == dir {
			want = 0o700
		} else {
			path = filepath.Join(dir, path)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
		for _, wide := range []os.FileMode{want | 0o040, want | 0o004, want | 0o020, want | 0o777} {
			if err := os.Chmod(path, wide); err != nil {
				t.Fatal(err)
			}
			_, err := OpenRing(dir, RingOptions{Passphrase: []byte("pass")})
			hint := fmt.Sprintf("run: chmod %o %q", want, path)
			if !errors.Is(err, ErrModeTooWide) || shoal.AsError(err).Hint != hint {
				t.Errorf("%s with mode %o: got %v, hint %q; want hint %q", path, wide, err, shoal.AsError(err).Hint, hint)
			}
		}
		if err := os.Chmod(path, want); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedRingIsNeverANewIdentity tries each way to lose or damage a file, opens
// with and without Fresh, and checks that no file was made or changed.
func TestDamagedRingIsNeverANewIdentity(t *testing.T) {
	remove := func(name string) func(*testing.T, string, Key) {
		return func(t *testing.T, dir string, _ Key) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	change := func(name string, f func([]byte) []byte) func(*testing.T, string, Key) {
		return func(t *testing.T, dir string, _ Key) {
			path := filepath.Join(dir, name)
			write(t, path, f(read(t, path)))
		}
	}
	agentOf := func(f func(path string) error) func(*testing.T, string, Key) {
		return func(t *testing.T, dir string, agent Key) {
			if err := f(filepath.Join(dir, agentFile(agent.Agent()))); err != nil {
				t.Fatal(err)
			}
		}
	}
	empty := func([]byte) []byte { return nil }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	last := func(b []byte) []byte { return b[:len(b)-1] }
	zeros := func(b []byte) []byte { return make([]byte, len(b)) }
	more := func(b []byte) []byte { return append(b, '\n') }
	long := func(b []byte) []byte { return append(b, make([]byte, maxKeyFile)...) }

	for _, passphrase := range []string{"", "pass"} {
		for name, damage := range map[string]func(*testing.T, string, Key){
			"node.key is gone":        remove(nodeFile),
			"node.key is empty":       change(nodeFile, empty),
			"node.key is cut":         change(nodeFile, half),
			"node.key lacks a byte":   change(nodeFile, last),
			"node.key is zeros":       change(nodeFile, zeros),
			"node.key has more":       change(nodeFile, more),
			"node.key is too long":    change(nodeFile, long),
			"an agent's key is empty": agentOf(func(p string) error { return os.WriteFile(p, nil, 0o600) }),
			"an agent's key is under another's name": agentOf(func(p string) error {
				return os.Rename(p, filepath.Join(filepath.Dir(p), agentFile(testKey(t, 9).Agent())))
			}),
			"an agent's key is a directory": agentOf(func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }),
			"an agent's key is a link": agentOf(func(p string) error {
				return errors.Join(os.Rename(p, p+".real"), os.Symlink(p+".real", p))
			}),
		} {
			t.Run(name+passphrase, func(t *testing.T) {
				dir, _, agent := newRing(t, passphrase)
				damage(t, dir, agent)
				before := fileNames(t, dir)
				for _, fresh := range []bool{false, true} {
					r, err := OpenRing(dir, RingOptions{Passphrase: []byte(passphrase), Fresh: fresh})
					if r != nil || shoal.KindOf(err) != shoal.Corrupt {
						t.Errorf("fresh %v: got %v, %v; want a Corrupt error", fresh, r, err)
					}
				}
				if after := fileNames(t, dir); !slices.Equal(before, after) {
					t.Errorf("files were %v, now %v", before, after)
				}
			})
		}
	}
}

func TestMissingRingIsMadeOnlyWhenFresh(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	if _, err := OpenRing(dir, RingOptions{}); !errors.Is(err, ErrKeyMissing) {
		t.Errorf("no directory: got %v, want %v", err, ErrKeyMissing)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, passphrase := range []string{"", "pass"} {
		if _, err := OpenRing(dir, RingOptions{Passphrase: []byte(passphrase)}); !errors.Is(err, ErrKeyMissing) {
			t.Errorf("empty directory, passphrase %q: got %v, want %v", passphrase, err, ErrKeyMissing)
		}
	}
	if names := fileNames(t, dir); len(names) > 0 {
		t.Errorf("it made %v", names)
	}
	if _, err := OpenRing(dir, RingOptions{Fresh: true}); err != nil {
		t.Error(err)
	}
}

// TestKeyFileWithAFlippedBitIsRefused is about the text: sealed files are age's.
func TestKeyFileWithAFlippedBitIsRefused(t *testing.T) {
	text := formatKey(testKey(t, 1))
	if _, err := parseKey(text); err != nil {
		t.Fatal(err)
	}
	a := attack(t)
	flips(text, 1, func(bit int, forged []byte) {
		_, err := parseKey(forged)
		a.add(err, "bit %d: %s", bit, forged)
	})
	for n := range text {
		_, err := parseKey(text[:n])
		a.add(err, "%d bytes", n)
	}
}

// TestKeyFileThatIsWellSummedIsStillChecked: the checksum is no secret.
func TestKeyFileThatIsWellSummedIsStillChecked(t *testing.T) {
	k, other := testKey(t, 0xab), testKey(t, 2)
	text := string(formatKey(k))
	sum := func(lines string) []byte {
		lines = lines[:strings.Index(lines, "sha256 ")]
		return fmt.Appendf([]byte(lines), "sha256 %x\n", sha256.Sum256([]byte(lines)))
	}
	if !bytes.Equal(sum(text), []byte(text)) {
		t.Fatal("the control is not what formatKey makes")
	}
	a := attack(t)
	for name, lines := range map[string]string{
		"id of another":     strings.Replace(text, string(k.Agent()), string(other.Agent()), 1),
		"seed in capitals":  strings.Replace(text, "abab", "ABAB", 1),
		"a line more":       strings.Replace(text, "id ", "note x\nid ", 1),
		"a space more":      strings.Replace(text, "id ", "id  ", 1),
		"another version":   strings.Replace(text, "v1", "v2", 1),
		"seed is not hex":   strings.Replace(text, "abab", "xyxy", 1),
		"no seed":           strings.Replace(text, "seed", "sead", 1),
		"a carriage return": strings.Replace(text, "\nseed", "\r\nseed", 1),
	} {
		_, err := parseKey(sum(lines))
		a.add(err, "%s", name)
	}
}

func TestSealedFileWithAFlippedBitIsRefused(t *testing.T) {
	s, file, err := newSeal([]byte("pass"), testWork)
	if err != nil {
		t.Fatal(err)
	}
	key, err := s.encrypt(formatKey(testKey(t, 1)))
	if err != nil {
		t.Fatal(err)
	}
	a := attack(t)
	flips(key, 13, func(bit int, forged []byte) {
		text, err := s.decrypt(forged)
		if err == nil {
			_, err = parseKey(text)
		}
		a.add(err, "bit %d of a key", bit)
	})
	// A flipped digit of the work factor may ask for a gigabyte: skip that line.
	body := bytes.IndexByte(file[len(ageMagic):], '\n') + len(ageMagic)
	flips(file[body:], 13, func(bit int, forged []byte) {
		_, err := openSeal(append(slices.Clone(file[:body]), forged...), []byte("pass"))
		a.add(err, "bit %d of the seal", bit)
	})
}

func TestSealNeedsItsPassphrase(t *testing.T) {
	dir, r, _ := newRing(t, "pass")
	for _, wrong := range []string{"", "Pass", "pass ", "pass\n"} {
		if _, err := OpenRing(dir, RingOptions{Passphrase: []byte(wrong)}); !errors.Is(err, ErrPassphrase) {
			t.Errorf("passphrase %q: got %v, want %v", wrong, err, ErrPassphrase)
		}
	}
	if err := r.ChangePassphrase([]byte("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRing(dir, RingOptions{Passphrase: []byte("pass")}); !errors.Is(err, ErrPassphrase) {
		t.Errorf("the old passphrase: got %v, want %v", err, ErrPassphrase)
	}
	if again, err := OpenRing(dir, RingOptions{Passphrase: []byte("other")}); err != nil || again.Node().Node() != r.Node().Node() {
		t.Errorf("the new passphrase: %v", err)
	}
	if err := r.ChangePassphrase(nil); !errors.Is(err, ErrPassphrase) {
		t.Errorf("an empty passphrase: got %v, want %v", err, ErrPassphrase)
	}
}

func TestLostSealIsNotReplaced(t *testing.T) {
	dir, _, _ := newRing(t, "pass")
	if err := os.Remove(filepath.Join(dir, sealFile)); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []RingOptions{{}, {Passphrase: []byte("pass")}, {Passphrase: []byte("pass"), Fresh: true}} {
		if _, err := OpenRing(dir, opts); !errors.Is(err, ErrKeyMissing) || !strings.Contains(err.Error(), sealFile) {
			t.Errorf("%+v: got %v, want %v about %s", opts, err, ErrKeyMissing, sealFile)
		}
	}
}

// TestPassphraseSealsWhatIsInTheClear also covers a sealing that was interrupted after
// each of its files.
func TestPassphraseSealsWhatIsInTheClear(t *testing.T) {
	dir, r, agent := newRing(t, "")
	clear := map[string][]byte{}
	for _, name := range fileNames(t, dir) {
		clear[name] = read(t, filepath.Join(dir, name))
	}
	opts := RingOptions{Passphrase: []byte("pass"), WorkFactor: testWork}
	for _, interrupted := range []string{"", nodeFile, agentFile(agent.Agent())} {
		if interrupted != "" {
			write(t, filepath.Join(dir, interrupted), clear[interrupted])
		}
		again, err := OpenRing(dir, opts)
		if err != nil || again.Node().Node() != r.Node().Node() || len(again.Agents()) != 1 {
			t.Fatalf("%s in clear: %v", interrupted, err)
		}
		for name := range clear {
			if !isSealed(read(t, filepath.Join(dir, name))) {
				t.Errorf("%s is still in the clear", name)
			}
		}
	}
}

func TestUnfinishedWriteIsForgotten(t *testing.T) {
	dir, r, agent := newRing(t, "")
	tmp := filepath.Join(dir, agentFile(testKey(t, 9).Agent())+tmpSuffix)
	write(t, tmp, []byte("half a k"))
	write(t, filepath.Join(dir, "shoal.db"), []byte("not ours"))
	again, err := OpenRing(dir, RingOptions{})
	if err != nil || again.Node().Node() != r.Node().Node() || !slices.Equal(again.Agents(), []shoal.AgentID{agent.Agent()}) {
		t.Fatal(err)
	}
	if names := fileNames(t, dir); slices.Contains(names, filepath.Base(tmp)) || !slices.Contains(names, "shoal.db") {
		t.Errorf("files are %v", names)
	}
}

func TestRemoveIsForGood(t *testing.T) {
	dir, r, agent := newRing(t, "")
	if err := r.Remove(r.Node().Agent()); !errors.Is(err, ErrNodeKey) {
		t.Errorf("node's own agent: got %v, want %v", err, ErrNodeKey)
	}
	if err := r.Remove(agent.Agent()); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(agent.Agent()); !errors.Is(err, ErrUnknownAgent) {
		t.Errorf("twice: got %v, want %v", err, ErrUnknownAgent)
	}
	again, err := OpenRing(dir, RingOptions{})
	if err != nil || len(again.Agents())+len(r.Agents()) != 0 {
		t.Errorf("got %v and %v, %v; want none", again.Agents(), r.Agents(), err)
	}
}

func TestRingIsSafeForConcurrentUse(t *testing.T) {
	dir, r, agent := newRing(t, "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				k, err := r.NewAgent()
				if err != nil {
					t.Error(err)
					return
				}
				if _, ok := r.Key(k.Agent()); !ok || len(r.Agents()) == 0 {
					t.Error("a new agent has no key")
				}
				if err := r.Remove(k.Agent()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if again, err := OpenRing(dir, RingOptions{}); err != nil || !slices.Equal(again.Agents(), []shoal.AgentID{agent.Agent()}) {
		t.Errorf("got %v, %v; want %s alone", again.Agents(), err, agent)
	}
}

func TestNothingPrintsAPrivateKey(t *testing.T) {
	k := testKey(t, 0xa7)
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		fmt.Fprintf(&b, verb+"\n", k)
		fmt.Fprintf(&b, verb+"\n", &k)
		fmt.Fprintf(&b, verb+"\n", struct{ K Key }{k})
		fmt.Fprintf(&b, verb+"\n", []Key{k})
	}
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "key", k)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "key", k)
	if err := json.NewEncoder(&b).Encode(map[string]any{"k": k}); err != nil {
		t.Fatal(err)
	}
	_, err := parseKey(append(formatKey(k), 'x'))
	fmt.Fprintln(&b, err)

	out := strings.ToLower(b.String())
	for _, secret := range []string{"a7a7", "167 167", "p6en", "\xa7\xa7"} {
		if strings.Contains(out, secret) {
			t.Errorf("%q is in the output:\n%s", secret, out)
		}
	}
	if !strings.Contains(b.String(), string(k.Agent())) {
		t.Errorf("the public id is not in the output:\n%s", out)
	}
}

func TestSeedHas32Bytes(t *testing.T) {
	for _, n := range []int{0, 31, 33, 64} {
		if _, err := FromSeed(make([]byte, n)); reasonOf(err) != "bad_seed" {
			t.Errorf("%d bytes: got %v, want bad_seed", n, err)
		}
	}
}
