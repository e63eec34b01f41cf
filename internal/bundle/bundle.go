// Package bundle loads, checks, snapshots and pins playbook bundles: versioned directories of playbooks for one kind of firewall.
//
// A bundle's source directory may be edited at any time, so that nothing runs from it. [Library.Refresh] copies it by content hash into
// the state directory, checks the copy, and only then makes it current; a bad edit is reported and the last good copy stays. A run names
// the copy by its digest, and a firewall can be pinned to an older one.
package bundle

import (
	"context"
	"log/slog"

	"github.com/parry/parry/internal/parry"
)

// Bundle is one checked, read-only copy of a bundle.
type Bundle struct {
	parry.BundleRef
	Dir      string // absolute; holds apply.yml, verify.yml, flush.yml
	Manifest Manifest
}

// Options of a Library. Root, StateDir and Check are required.
type Options struct {
	Root     string // the directory that holds the bundles' source directories
	StateDir string // copies go to StateDir/bundles/NAME/DIGEST
	// Check looks a copy over before it becomes current: a syntax check by Ansible.
	Check  func(ctx context.Context, dir string) error
	Keep   int // older copies kept besides those that are current or in use; 0 is 5
	Logger *slog.Logger
}
