package httpguard

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/shoalmesh/shoal"
)

const (
	tokenBytes  = 32  // 256 bits of chance
	maxTokenLen = 512 // longer ones are refused before they are hashed
)

// Token is a secret that callers must know. It keeps only the secret's hash, so it
// cannot be printed by mistake. The zero value matches nothing.
type Token struct {
	sum [sha256.Size]byte
	set bool
}

// TokenOf returns the Token whose secret is s; the zero Token if s is empty.
func TokenOf(s string) Token {
	if s == "" {
		return Token{}
	}
	return Token{sum: sha256.Sum256([]byte(s)), set: true}
}

// Matches reports whether s is the secret. Its time does not depend on where s
// differs: hashes are compared, in constant time.
func (t Token) Matches(s string) bool {
	if !t.set || s == "" || len(s) > maxTokenLen {
		return false
	}
	sum := sha256.Sum256([]byte(s))
	return subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1
}

// ErrTokenFile says that the token file cannot be used as it is.
var ErrTokenFile = shoal.NewError(shoal.Corrupt, "token_file_damaged", "the token file is damaged",
	"remove it; a new one is made at the next start")

// OpenToken returns the secret kept in the file at path, which it makes if there is
// none: 256 random bits as 43 characters of base64url, mode 0600. A file that others
// may read, or that holds no such secret ([ErrTokenFile]), is an error. The caller
// holds the data dir's lock.
func OpenToken(path string) (string, error) {
	secret, err := readToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := createToken(path); err != nil {
		return "", err
	}
	return readToken(path)
}

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open token file: %w", err)
	}
	defer f.Close()

	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("stat token file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", ErrTokenFile.With("%s is no regular file", path)
	}
	// Windows has no such modes; there the data dir's ACL protects the file.
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return "", shoal.NewError(shoal.Denied, "token_file_open",
			fmt.Sprintf("token file %s is open to others (mode %04o)", path, mode), "run `chmod 600 "+path+"`")
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxTokenLen))
	if err != nil {
		return "", fmt.Errorf("read token file: %w", err)
	}
	secret := strings.TrimSpace(string(raw))
	if b, err := base64.RawURLEncoding.Strict().DecodeString(secret); err != nil || len(b) != tokenBytes {
		return "", ErrTokenFile.With("%s", path)
	}
	return secret, nil
}

// createToken writes the file aside and renames it, so that a crash leaves no half
// token. The caller's lock on the data dir keeps a second daemon from doing the same.
func createToken(path string) error {
	var secret [tokenBytes]byte
	rand.Read(secret[:])                                      // never fails (crypto/rand)
	tmp, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return fmt.Errorf("make token file: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already if all went well

	_, err = tmp.WriteString(base64.RawURLEncoding.EncodeToString(secret[:]) + "\n")
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write token file: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("place token file: %w", err)
	}
	return nil
}
