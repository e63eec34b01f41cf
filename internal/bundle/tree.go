package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	maxFiles = 10_000
	maxBytes = 64 << 20
)

// walk calls each for every directory and file of a bundle, in lexical order, without what tools leave behind. Links, devices and the like
// are refused: what they mean is not part of the content.
func walk(root string, each func(rel string, info fs.FileInfo) error) error {
	files, size := 0, int64(0)
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == root {
			if !d.IsDir() {
				return fmt.Errorf("%s is no directory", root)
			}
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch name := d.Name(); {
		case d.IsDir() && (name == ".git" || name == "__pycache__"):
			return fs.SkipDir
		case strings.HasSuffix(name, ".pyc"), strings.HasSuffix(name, "~"), strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".swp"):
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory: put the file itself there", rel)
		}
		files++
		if info.Mode().IsRegular() {
			size += info.Size()
		}
		if files > maxFiles || size > maxBytes {
			return fmt.Errorf("it holds more than %d files or %d MiB", maxFiles, maxBytes>>20)
		}
		return each(rel, info)
	})
}

// signature changes whenever anything in a source's tree was touched; it costs a stat per file. A source that somebody else than root and
// owner could change is refused.
func signature(root string, owner int) (string, error) {
	if err := guardPath(root, owner); err != nil {
		return "", err
	}
	h := sha256.New()
	err := walk(root, func(rel string, info fs.FileInfo) error {
		if err := guard(info, owner, rel, "-R ", root); err != nil {
			return err
		}
		st, _ := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(h, "%q %o %d %d %d %d\n", rel, info.Mode(), info.Size(), st.Ino, st.Mtim.Nano(), st.Ctim.Nano())
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// guard refuses a file or directory that others than root and owner could change; flag and target complete the command that mends it.
func guard(info fs.FileInfo, owner int, name, flag, target string) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != owner {
		return fmt.Errorf("%s belongs to uid %d, who is neither root nor parry's user (uid %d): chown %sroot %s", name, st.Uid, owner, flag, target)
	}
	mode, who := info.Mode(), "its group"
	switch {
	case mode&fs.ModeSymlink != 0, mode&0o022 == 0: // a link's mode means nothing
		return nil
	case mode&0o002 != 0:
		who = "everybody"
	}
	return fmt.Errorf("%s can be written by %s: chmod %sgo-w %s", name, who, flag, target)
}

// guardPath looks at a tree's root and at the directories above it, as they are written and as links lead: who may write there can put another
// tree in its place. A directory that only its owner can enter protects what is below.
func guardPath(root string, owner int) error {
	led, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	for _, path := range slices.Compact([]string{root, led}) {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if err := guard(info, owner, path, "-R ", path); err != nil {
			return err
		}
		var above []string
		for dir := path; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
			above = append(above, filepath.Dir(dir))
		}
		for _, dir := range slices.Backward(above) {
			if info, err = os.Lstat(dir); err != nil {
				return err
			}
			if info.Mode()&fs.ModeSticky != 0 { // /tmp: nobody moves what is another's
				continue
			}
			if err := guard(info, owner, dir, "", dir); err != nil {
				return err
			}
			if info.Mode()&(fs.ModeSymlink|0o011) == 0 {
				break
			}
		}
	}
	return nil
}

// digest is the content hash of a tree: names, exec bits and contents.
func digest(root string) (string, error) {
	h := sha256.New()
	err := walk(root, func(rel string, info fs.FileInfo) error {
		if info.IsDir() {
			addHeader(h, rel, info, 0)
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, rel))
		if err != nil {
			return err
		}
		addHeader(h, rel, info, len(b))
		_, _ = h.Write(b)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

func addHeader(h hash.Hash, rel string, info fs.FileInfo, size int) {
	kind := "file"
	switch {
	case info.IsDir():
		kind = "dir"
	case info.Mode()&0o111 != 0:
		kind = "exec"
	}
	fmt.Fprintf(h, "%s %d %s\x00%d\x00", kind, len(rel), filepath.ToSlash(rel), size)
}

// copyTree copies a bundle into an empty directory. Files become read-only. Directories do not: Python keeps compiled plugins there.
func copyTree(from, to string) error {
	return walk(from, func(rel string, info fs.FileInfo) error {
		dst := filepath.Join(to, rel)
		if info.IsDir() {
			return os.Mkdir(dst, 0o755)
		}
		mode := os.FileMode(0o444)
		if info.Mode()&0o111 != 0 {
			mode = 0o555
		}
		return copyFile(filepath.Join(from, rel), dst, mode)
	})
}

func copyFile(from, to string, mode os.FileMode) error {
	// Should a link have been put there meanwhile, it is not followed.
	src, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.LimitReader(src, maxBytes))
	return errors.Join(err, dst.Chmod(mode), dst.Sync(), dst.Close())
}

// replaceFile writes a file as a whole, durably, if it differs.
func replaceFile(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return os.Rename(f.Name(), path)
}
