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
	Kind     parry.RunKind  // RunVerify runs verify.yml, the others apply.yml; RunCheck in check mode with --diff
	Vars     map[string]any // extra-vars: nil, bool, numbers, strings, lists and maps of these; strings are never templated
	Desired  []byte         // the desired file's content, empty but not nil for nothing blocked; none goes to a RunVerify
	Exempt   []byte         // the exempt file's content; nil: the run changes nothing about exemptions. Not for a RunVerify
	Check    bool           // ansible-playbook --check, as a RunCheck always is
	Diff     bool           // ansible-playbook --diff
	Deadline time.Duration  // 0: Options.Deadline
	Lock     *os.File       // from LockLane; the child holds it too, so that an orphan keeps the lane. May be nil
}

// Outcome is what a run came to. The proof is as the firewall gave it: whether it equals what was sent is the caller's to judge.
type Outcome struct {
	State    parry.RunState `json:"state"`             // succeeded: ended well with a proof; failed; unknown: nobody can tell what was done
	Failure  parry.Failure  `json:"failure,omitempty"` // empty on success
	Task     string         `json:"task,omitempty"`    // the failed task's name
	Message  string         `json:"message,omitempty"` // hostile text, at most 2 KiB
	Proof    *parry.Proof   `json:"proof,omitempty"`   // nil when none came
	Rejected []Rejection    `json:"rejected,omitempty"`
	Changed  bool           `json:"changed"`
	// Details is the play's answer as it came, without its rejects and facts: the failure code, the epoch and controller that the firewall knows,
	// its version …; numbers are json.Number.
	Details map[string]any `json:"details,omitempty"`
	// Facts are those of a verify; nil when none came.
	Facts *parry.FirewallFacts `json:"facts,omitempty"`
	// Loaded is what a verify read back entry by entry, contract 1's loaded file as it was written: hostile text of at most 64 MiB.
	// Nil when the bundle writes none.
	Loaded  []byte        `json:"-"`
	Stats   Stats         `json:"stats"`
	RC      int           `json:"rc"`      // exit code, -1 when a signal ended it
	Wall    time.Duration `json:"wall_ns"` // from start until the last process was gone
	CPU     time.Duration `json:"cpu_ns"`  // user and system, of all processes that were waited for
	MaxRSS  int64         `json:"max_rss"` // bytes, of ansible-playbook's first process
	Warm    bool          `json:"warm"`    // over the warm ssh master
	Command string        `json:"command"` // how to repeat it by hand, for a shell
	Dir     string        `json:"-"`       // the run's directory, absolute
	LogTail string        `json:"-"`       // the log's end, at most 4 KiB; hostile text
}

// Rejection is one line of the desired file that the firewall cannot take.
type Rejection struct {
	Line int    `json:"line"` // 1-based
	Code string `json:"code"` // contract 1's reject code
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
