package node

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A key is 32 bytes of text with a line break after it, or any 32 bytes, even if the last
// of them is one.
func TestReadPSK(t *testing.T) {
	text := bytes.Repeat([]byte("k"), 32)
	raw := append(bytes.Repeat([]byte{7}, 31), '\n')
	for name, c := range map[string]struct{ file, want []byte }{
		"text":       {append(bytes.Clone(text), '\n'), text},
		"text, CRLF": {append(bytes.Clone(text), '\r', '\n'), text},
		"bare":       {text, text},
		"raw":        {raw, raw},
		"short":      {text[:31], text[:31]},
	} {
		path := filepath.Join(t.TempDir(), "psk")
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readPSK(path); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
	if modesCount {
		path := filepath.Join(t.TempDir(), "psk")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil { // a node's start narrows the umask
			t.Fatal(err)
		}
		if _, err := readPSK(path); err == nil {
			t.Error("a key that others may read was taken")
		}
	}
}
