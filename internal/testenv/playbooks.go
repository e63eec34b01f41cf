package testenv

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Playbooks copies this repository's bundles into the test's directory and returns where they are. parry refuses bundles that others than
// their owner could change, and a checkout under umask 002 is such.
func Playbooks(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "playbooks")
	if err := CopyPlaybooks("", dir); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// CopyPlaybooks copies one of this repository's bundles, or under the name "" the directory that holds them all, and takes the copy and the
// directory that it lies in from everybody but their owner.
func CopyPlaybooks(name, to string) error {
	_, here, _, _ := runtime.Caller(0)
	if err := os.CopyFS(to, os.DirFS(filepath.Join(filepath.Dir(here), "..", "..", "playbooks", name))); err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Dir(to), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(path, info.Mode().Perm()&^0o022)
	})
}
