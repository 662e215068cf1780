package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	shoal "github.com/shoalmesh/shoal"
)

// A key file is text, so that a person can tell what it is and copy it:
//
//	shoal-key v1
//	id did:key:z6Mk…
//	seed 64 hex digits
//	sha256 64 hex digits, of the lines above
//
// Sealed, the same text is the content of an age file.
const (
	keyMagic    = "shoal-key v1\n"
	ageMagic    = "age-encryption.org/v1\n"
	maxKeyFile  = 4 << 10
	maxWork     = 20 // log2 of scrypt's N that we are ready to compute: 1 GiB
	defaultWork = 18 // age's own default, about a second and 256 MiB
)

// formatKey returns the content of k's key file.
func formatKey(k Key) []byte {
	var b bytes.Buffer
	b.WriteString(keyMagic)
	fmt.Fprintf(&b, "id %s\nseed %x\n", k.agent, k.private.Seed())
	fmt.Fprintf(&b, "sha256 %x\n", sha256.Sum256(b.Bytes()))
	return b.Bytes()
}

// parseKey is the inverse of formatKey and accepts nothing else. Its errors do not
// quote the content.
func parseKey(text []byte) (Key, error) {
	if !bytes.HasPrefix(text, []byte(keyMagic)) {
		return Key{}, fmt.Errorf("it does not begin with %q", strings.TrimSpace(keyMagic))
	}
	end := bytes.LastIndex(text, []byte("sha256 "))
	if end < 0 || len(text) != end+len("sha256 ")+2*sha256.Size+1 {
		return Key{}, errors.New("it is cut short or too long")
	}
	if sum := fmt.Sprintf("%x\n", sha256.Sum256(text[:end])); string(text[end+len("sha256 "):]) != sum {
		return Key{}, errors.New("its checksum is wrong")
	}

	_, rest, ok := bytes.Cut(text[:end], []byte("\nseed "))
	if !ok || len(rest) != 2*ed25519.SeedSize+1 {
		return Key{}, errors.New("it has no seed")
	}
	seed, err := hex.DecodeString(string(rest[:2*ed25519.SeedSize]))
	if err != nil {
		return Key{}, errors.New("its seed is not hex")
	}
	k, err := FromSeed(seed)
	if err != nil {
		return Key{}, err
	}
	if !bytes.Equal(formatKey(k), text) {
		return Key{}, errors.New("its id is not that of its seed")
	}
	return k, nil
}

// seal is what key files are encrypted to: an X25519 identity whose own file is
// encrypted with the passphrase. So the passphrase costs one scrypt at start however
// many agents there are, none for a new agent, and is not kept in memory.
type seal struct{ identity *age.X25519Identity }

// newSeal returns a fresh seal and its file's content under passphrase.
func newSeal(passphrase []byte, work int) (*seal, []byte, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, nil, err
	}
	s := &seal{identity: identity}
	file, err := s.file(passphrase, work)
	return s, file, err
}

// file returns the content of the seal's file under passphrase.
func (s *seal) file(passphrase []byte, work int) ([]byte, error) {
	recipient, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return nil, err
	}
	recipient.SetWorkFactor(work)
	return encrypt([]byte(s.identity.String()+"\n"), recipient)
}

// openSeal is the inverse of seal.file. A wrong passphrase is [errWrongPassphrase].
func openSeal(file, passphrase []byte) (*seal, error) {
	identity, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, errWrongPassphrase // an empty one
	}
	identity.SetMaxWorkFactor(maxWork)
	text, err := decrypt(file, identity)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		return nil, errWrongPassphrase
	}
	if err != nil {
		return nil, err
	}
	line, ok := strings.CutSuffix(string(text), "\n")
	if !ok {
		return nil, errors.New("it holds no age key")
	}
	x, err := age.ParseX25519Identity(line)
	if err != nil {
		return nil, errors.New("it holds no age key")
	}
	return &seal{identity: x}, nil
}

var errWrongPassphrase = errors.New("wrong passphrase")

func (s *seal) encrypt(text []byte) ([]byte, error) { return encrypt(text, s.identity.Recipient()) }

func (s *seal) decrypt(file []byte) ([]byte, error) { return decrypt(file, s.identity) }

func encrypt(text []byte, to age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func decrypt(file []byte, with age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(file), with)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, errors.New("it is too long")
	}
	return text, nil
}

func isSealed(file []byte) bool { return bytes.HasPrefix(file, []byte(ageMagic)) }

// agentFile returns the name of the file that holds an agent's key. The part of the id
// after "did:key:" is safe in a file name everywhere.
func agentFile(id shoal.AgentID) string {
	return agentPrefix + strings.TrimPrefix(string(id), "did:key:") + keySuffix
}
