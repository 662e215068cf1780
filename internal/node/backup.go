package node

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shoalmesh/shoal"
	"github.com/shoalmesh/shoal/internal/store"
)

// A backup is a tar: "shoal-backup" with the format's version first, then the database
// as a consistent copy, then the key files as they are (sealed ones stay sealed).
const (
	backupMark    = "shoal-backup"
	backupVersion = "1\n"
	maxKeyFile    = 64 << 10
)

// backup writes a backup of a running node to path, which must not exist.
func backup(ctx context.Context, db *store.DB, home, path string) (n int64, err error) {
	if !filepath.IsAbs(path) {
		return 0, shoal.NewError(shoal.Invalid, "bad_path", "the backup path "+path+" is not absolute", "give an absolute path")
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".shoal-backup-")
	if err != nil {
		return 0, shoal.NewError(shoal.Invalid, "bad_path", "the backup cannot be written beside "+path, "choose a directory that exists and has room").Because(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	copied := filepath.Join(tmp, "shoal.db")
	if err := db.Backup(ctx, copied); err != nil {
		return 0, err
	}
	// O_EXCL: a backup never replaces anything.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if os.IsExist(err) {
			return 0, shoal.NewError(shoal.Conflict, "file_exists", path+" exists", "choose another name").Because(err)
		}
		return 0, fmt.Errorf("create backup: %w", err)
	}
	defer f.Close()
	if n, err = writeBackup(f, copied, filepath.Join(home, "keys")); err != nil {
		return 0, errors.Join(err, os.Remove(path))
	}
	return n, nil
}

func writeBackup(f *os.File, db, keys string) (int64, error) {
	w := tar.NewWriter(f)
	err := addBytes(w, backupMark, []byte(backupVersion))
	if err == nil {
		err = addFile(w, "shoal.db", db)
	}
	entries, lsErr := os.ReadDir(keys)
	err = errors.Join(err, lsErr)
	for _, e := range entries {
		if err == nil && e.Type().IsRegular() {
			err = addFile(w, "keys/"+e.Name(), filepath.Join(keys, e.Name()))
		}
	}
	if err := errors.Join(err, w.Close(), f.Sync()); err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	return f.Seek(0, io.SeekEnd)
}

func addBytes(w *tar.Writer, name string, content []byte) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func addFile(w *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: 0o600, Size: fi.Size(), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// Restore puts a backup's content into home, which must hold no data. Flows get a new
// epoch, so peers do not take old sequence numbers for new ones.
func Restore(file, home string) (err error) {
	if err := openHome(home); err != nil {
		return err
	}
	have, err := hasData(home)
	if err != nil {
		return err
	}
	if have {
		return shoal.NewError(shoal.Conflict, "home_not_empty", home+" holds a node already", "restore into an empty --home")
	}
	f, err := os.Open(file)
	if err != nil {
		return shoal.NewError(shoal.NotFound, "no_backup", "the backup "+file+" cannot be read", "check the path").Because(err)
	}
	defer f.Close()
	tmp, err := os.MkdirTemp(home, ".restore-")
	if err != nil {
		return fmt.Errorf("make restore dir: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	keys, err := unpack(f, tmp)
	if err != nil {
		return shoal.NewError(shoal.Corrupt, "bad_backup", "the backup "+file+" is damaged or not a backup", "use a file that `shoal backup` wrote").Because(err)
	}
	// Keys first: a database without its key would be an error, a key without a database is not.
	if err := os.MkdirAll(filepath.Join(home, "keys"), 0o700); err != nil {
		return err
	}
	for _, k := range keys {
		if err := os.Rename(filepath.Join(tmp, k), filepath.Join(home, "keys", k)); err != nil {
			return err
		}
	}
	return store.Restore(filepath.Join(tmp, "shoal.db"), home)
}

// unpack checks a backup and writes its files into dir under their base names. Only the
// names that a backup has are taken: nothing in the tar chooses a path.
func unpack(r io.Reader, dir string) (keys []string, err error) {
	t := tar.NewReader(r)
	h, err := t.Next()
	if err != nil || h.Name != backupMark || h.Size != int64(len(backupVersion)) {
		return nil, errors.Join(errors.New("it does not begin as a backup"), err)
	}
	mark, err := io.ReadAll(t)
	if err != nil || string(mark) != backupVersion {
		return nil, fmt.Errorf("its version %q is not known", mark)
	}
	seen := []string{}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		base, isKey := strings.CutPrefix(h.Name, "keys/")
		ok := h.Typeflag == tar.TypeReg && !slices.Contains(seen, h.Name) && len(seen) < 1<<17
		if isKey {
			ok = ok && filepath.IsLocal(base) && filepath.Base(base) == base && h.Size <= maxKeyFile
			keys = append(keys, base)
		} else {
			ok = ok && h.Name == "shoal.db"
		}
		if !ok {
			return nil, fmt.Errorf("entry %q does not belong there", h.Name)
		}
		seen = append(seen, h.Name)
		if err := unpackFile(filepath.Join(dir, filepath.Base(h.Name)), t); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(seen, "shoal.db") || !slices.Contains(keys, "node.key") {
		return nil, errors.New("the database or the node's key is missing")
	}
	return keys, nil
}

func unpackFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
