package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// tmpSuffix marks a file that is being written.
const tmpSuffix = ".tmp"

// checkMode refuses what others can read or write, and what is neither a directory
// (want 0700) nor a regular file (want 0600). Windows has no such modes.
func checkMode(path string, want fs.FileMode) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrKeyMissing.With("%s", path)
	}
	if err != nil {
		return fmt.Errorf("check mode: %w", err)
	}
	if dir := want == 0o700; info.IsDir() != dir || !dir && !info.Mode().IsRegular() {
		return ErrKeyDamaged.With("%s is a %s", path, info.Mode().Type())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		e := *ErrModeTooWide.With("%s has mode %04o", path, mode)
		e.Hint = fmt.Sprintf("run: chmod %o %q", want, path)
		return &e
	}
	return nil
}

// makeDir makes the keyring's directory and its parents, if they are not there.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make key directory: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

// readFile reads a whole key file.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, ErrKeyDamaged.With("%s", path).Because(err)
	}
	if len(text) > maxKeyFile {
		return nil, ErrKeyDamaged.With("%s is too long", path)
	}
	return text, nil
}

// writeFile replaces path's content so that after a crash there is the old one or the
// new one, whole.
func writeFile(path string, content []byte) error {
	tmp := path + tmpSuffix
	if err := writeTmp(tmp, content); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write key file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write key file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func writeTmp(tmp string, content []byte) error {
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// syncDir makes a rename or a removal durable. Windows has no such call and keeps its
// directory in a journal.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync key directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
