// Package ansible runs playbooks against one firewall at a time, over go-ansible, and tells what really happened.
//
// A run inherits nothing: its environment, ansible.cfg, inventory (only the target) and variables (inert strings, mode 0600) are made for
// it in a directory of its own. It is a process group of its own, ended as a whole at its deadline. What happened is decided from
// structured events that an own callback plugin sends over a descriptor, never from the exit code alone: a target that no event speaks of
// is unknown. The exit code, the log and the events are kept for people.
package ansible

import (
	"net/netip"
	"os"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// Host is how one firewall is reached, as the inventory says.
type Host struct {
	Name    string     // ^[a-z0-9][a-z0-9-]*$
	Addr    netip.Addr // unmapped, without zone
	Port    int        // 22 when the inventory has none
	User    string     // empty: the user that parry runs as
	KeyFile string     // absolute; empty: ssh's own default keys
	// Vars are the other connection variables that are passed on: ansible_become, ansible_become_user, ansible_become_method,
	// ansible_python_interpreter, ansible_shell_type, ansible_remote_tmp. Nothing else is.
	Vars map[string]any
	Err  error // why the host cannot be used; nil when it can
}

// Spec is one run.
type Spec struct {
	RunID    parry.RunID
	Host     Host
	Bundle   bundle.Bundle
	Kind     parry.RunKind  // RunVerify runs verify.yml, the others apply.yml
	Vars     map[string]any // extra-vars: nil, bool, numbers, strings, lists and maps of these; strings are never templated
	Desired  []byte         // the desired file's content; nil for none, and parry_desired_file is not set
	Check    bool           // ansible-playbook --check
	Diff     bool           // ansible-playbook --diff
	Deadline time.Duration  // 0: Options.Deadline
	Lock     *os.File       // from LockLane; the child holds it too, so that an orphan keeps the lane. May be nil
}

// Outcome is what a run came to. The proof is as the firewall gave it: whether it equals what was sent is the caller's to judge.
type Outcome struct {
	State    parry.RunState // succeeded: the play ended well with a proof; failed; unknown: ended from outside, or nobody can tell
	Failure  parry.Failure  // empty on success
	Task     string         // the failed task's name
	Message  string         // hostile text, capped at 2 KiB
	Proof    *parry.Proof   // nil when none came
	Rejected []Rejection
	Changed  bool
	Details  map[string]any // the play's `parry` answer as it came: the firewall's known epoch, controller, version …; numbers are json.Number
	Stats    Stats
	RC       int           // exit code, -1 when ended by a signal
	Wall     time.Duration // from start to the last child's end
	CPU      time.Duration // user and system, of the whole tree
	MaxRSS   int64         // bytes, of the largest process
	Dir      string        // the run's directory, absolute
	LogTail  string        // the log's last lines, at most 4 KiB; hostile text
}

// Rejection is one line of the desired file that the firewall cannot take.
type Rejection struct {
	Line int    // 1-based
	Code string // contract 1's reject code
}

// Stats counts the target's tasks as Ansible does.
type Stats struct {
	OK          int `json:"ok"`
	Changed     int `json:"changed"`
	Failures    int `json:"failures"`
	Unreachable int `json:"unreachable"`
	Skipped     int `json:"skipped"`
	Rescued     int `json:"rescued"`
	Ignored     int `json:"ignored"`
}
