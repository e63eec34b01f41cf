// Package bundle loads, checks, snapshots and pins playbook bundles: versioned directories of playbooks for one kind of firewall.
//
// A bundle's source directory may be edited at any time, so that nothing runs from it. [Library.Refresh] copies it by content hash into
// the state directory, checks the copy, and only then makes it current; a bad edit is reported and the last good copy stays. A run names
// the copy by its digest, and a firewall can be pinned to an older one.
package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/parry"
)

// Playbooks are the files that every bundle holds, besides bundle.yml.
var Playbooks = [...]string{"apply.yml", "verify.yml", "flush.yml"}

// Bundle is one checked copy of a bundle, named by its content.
type Bundle struct {
	parry.BundleRef
	Dir      string // absolute; holds Playbooks
	Manifest Manifest
}

// Hold keeps the copy from being pruned until the file is closed, here and in every child that inherited it.
func (b *Bundle) Hold() (*os.File, error) {
	f, err := os.Open(b.Dir)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", b.Name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("bundle %s: %s is being removed: %w", b.Name, b.Dir, err), f.Close())
	}
	if _, err := os.Stat(b.Dir); err != nil { // pruned between the two
		return nil, errors.Join(fmt.Errorf("bundle %s: %w", b.Name, err), f.Close())
	}
	return f, nil
}
