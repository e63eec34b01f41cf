package parry

import "time"

// Failure names why a run did not count. Each is a value of the runs' metric and the subject of a mail.
type Failure string

const (
	FailUnreachable       Failure = "unreachable"        // no connection
	FailAuthentication    Failure = "authentication"     // ssh refused the key: retried slowly
	FailHostKey           Failure = "host_key"           // the host key is not the pinned one
	FailTimeout           Failure = "timeout"            // ended at its deadline; what it did is unknown
	FailCancelled         Failure = "cancelled"          // ended by a shutdown; what it did is unknown
	FailPlaybook          Failure = "playbook"           // YAML, a missing module: Ansible did not get to the firewall
	FailInventory         Failure = "inventory"          // the host is missing from the inventory, or has no address
	FailTask              Failure = "task"               // a task failed without a name for it
	FailProof             Failure = "proof_mismatch"     // the firewall holds something else than was sent
	FailNoProof           Failure = "no_proof"           // the play ended without one
	FailStaleEpoch        Failure = "stale_epoch"        // the firewall knows a higher epoch: a restored database
	FailStaleRevision     Failure = "stale_revision"     // the firewall was brought to a later revision: a restored database
	FailForeignController Failure = "foreign_controller" // another controller's id
	FailDuplicateMachine  Failure = "duplicate_machine"  // another firewall's name has the same machine
	FailFlushed           Failure = "flushed"            // flush.yml left a hold
	FailBusy              Failure = "busy"               // the firewall's own lock is held
	FailPFRefused         Failure = "pf_refused"         // the ruleset did not load and was rolled back
	FailConfigChanged     Failure = "config_changed"     // the firewall's configuration changed meanwhile
	FailStructure         Failure = "structure_missing"  // a secondary without the primary's structure
	FailCapacity          Failure = "capacity"
	FailBundle            Failure = "bundle"            // the bundle cannot be used
	FailApproval          Failure = "approval_required" // the run would remove many entries for no known reason
	FailOrphan            Failure = "orphan"            // a run of a controller that was killed is still on
	FailInternal          Failure = "internal"
)

// RunKind is what a run was for.
type RunKind string

const (
	RunApply  RunKind = "apply"
	RunVerify RunKind = "verify"
	RunRetire RunKind = "retire" // apply with nothing desired
	RunPanic  RunKind = "panic"  // apply with nothing desired, as long as a panic is on
	RunCheck  RunKind = "check"  // apply in check mode: shows what it would change
)

// RunState is where a run stands.
type RunState string

const (
	RunRunning   RunState = "running"
	RunSucceeded RunState = "succeeded" // its proof matched
	RunFailed    RunState = "failed"    // the firewall is as it was, or says itself what it holds
	RunUnknown   RunState = "unknown"   // ended from outside: to be verified
)

// BundleRef names the playbooks of a run.
type BundleRef struct {
	Name    string
	Version string
	Digest  string // SHA-256 hex of the snapshot
	Commit  string // git commit of the source directory, empty without one
}

// Run is one playbook execution against one firewall.
type Run struct {
	ID        RunID
	Firewall  string
	Kind      RunKind
	State     RunState
	Failure   Failure // empty on success
	Task      string  // the failed task
	Message   string  // hostile text, capped
	Revision  Revision
	Epoch     int64
	StartedAt time.Time
	EndedAt   time.Time
	Bundle    BundleRef
	Sent      int
	Rejected  int
	Want      Proof // only SHA256 and Count: what was sent less what was rejected
	Got       Proof
	Dir       string // below the state directory: inputs, events, log
}

// SentRevision is what the run may have brought its firewall to, 0 when it cannot have changed anything.
func (r *Run) SentRevision() Revision {
	if r.Kind == RunVerify || r.Kind == RunCheck || r.State == RunFailed && r.Failure.Refused() {
		return 0
	}
	return r.Revision
}

// FinishRun is all that ends a run, stored in one transaction.
type FinishRun struct {
	Run           Run
	Applied       bool // Run.Revision becomes the firewall's applied revision, Got its proof
	Rejects       []Reject
	SetRejects    bool           // Rejects replace the firewall's; else they stay
	Dirty         bool           // a drift was seen: the firewall's dirty revision is raised
	Drift         *Drift         // that drift; nil leaves the firewall's, and a run that counts ends it
	Loaded        *Loaded        // what a verify read, in place of what was read before
	MachineID     string         // as the run told it; empty: it did not get so far
	Digest        string         // of the firewall that was run against, when that is proved now; else empty
	Incident      Incident       // the firewall's from now on; zero closes it
	ClearWords    bool           // Adopt was used
	Approval      *Approval      // asked for by this run, with its diff; it takes the place of the firewall's open one
	ApprovalDiff  Diff           // of Approval
	ApprovalUsed  ApprovalID     // the approved change was made
	Simulation    *Simulation    // what a check showed
	ApprovalGone  bool           // there is no change any more that needs one
	VerifyUsed    Revision       // the word to read back that this run followed; a newer one stays
	Facts         *FirewallFacts // what the firewall says of itself from now on; nil: as before
	Tried         *Tried         // what the run has shown of a new version of its bundle; nil: nothing
	Retired       bool           // emptied and proved: forget the firewall
	Emptied       bool           // emptied by a panic and proved: what ended up to Run.Revision is lifted, nothing that stands is in force
	Notifications []Notification
}

// Report is what an admin must know, complete when it is written so that a channel needs nothing else.
type Report struct {
	Firewall   string    `json:"firewall"` // of a panic: "all firewalls", or names
	Host       string    `json:"host"`     // address:port
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until,omitzero"` // of a recovery
	Failure    Failure   `json:"failure,omitempty"`
	Task       string    `json:"task,omitempty"`
	Message    string    `json:"message,omitempty"`
	Hint       string    `json:"hint,omitempty"` // what to do
	Attempts   int       `json:"attempts,omitempty"`
	NextTry    time.Time `json:"next_try,omitzero"`
	Waiting    []string  `json:"waiting,omitempty"` // the first blocks that are not in force, one line each
	WaitingN   int       `json:"waiting_n"`         // how many in all
	Lifting    []string  `json:"lifting,omitempty"` // the first blocks that have ended and are not lifted yet; in rows of earlier versions these are among Waiting
	LiftingN   int       `json:"lifting_n,omitempty"`
	Enforced   int       `json:"enforced"`
	Rejects    []string  `json:"rejects,omitempty"` // block, code
	RejectsN   int       `json:"rejects_n,omitempty"`
	RunID      RunID     `json:"run_id,omitempty"`
	Bundle     BundleRef `json:"bundle,omitzero"`
	Drift      []string  `json:"drift,omitempty"`    // of a drift that was found and repaired: "- ENTRY" was missing, "+ ENTRY" was not ours
	LogTail    string    `json:"log_tail,omitempty"` // hostile text
	Command    string    `json:"command,omitempty"`  // how to run it by hand
	Revision   Revision  `json:"revision"`
	Controller string    `json:"controller,omitempty"`
	By         string    `json:"by,omitempty"` // whose word it was; of a panic

	Approval ApprovalID `json:"approval,omitempty"` // that is asked for
	Change   []string   `json:"change,omitempty"`   // the first lines of what would change
	ChangeN  int        `json:"change_n,omitempty"` // how many lines in all
}

// Changes is what happened to the desired state after a revision.
type Changes struct {
	Revision Revision // read in the same snapshot
	Blocks   []Block  // each block whose row changed after the revision asked for; all live ones when that was 0
}

// RunFilter narrows a listing of runs; zero fields do not.
type RunFilter struct {
	Firewall string
	State    RunState
	Limit    int // 1…1000
	Cursor   string
}

// Retention is what Prune keeps. Zero fields prune nothing.
type Retention struct {
	EndedBlocks time.Duration // ended and lifted everywhere for so long
	Runs        time.Duration
	RunCount    int // the newest of each firewall stay within Runs, at most so many
	Idempotency time.Duration
	Outbox      time.Duration // delivered ones
	Offences    time.Duration // of offenders without a block or grace for so long
	Audit       time.Duration
}

// Pruned counts what Prune took out.
type Pruned struct {
	Blocks, Runs, Keys, Notifications, ListEntries, Offenders, AuditRows, Approvals int64
}

// Counts is a cheap picture for metrics and readiness.
type Counts struct {
	LiveBlocks    int64
	EndedBlocks   int64
	Undelivered   int64
	OldestUnsent  time.Time
	OverdueBlocks int64 // due and not ended yet

	SuspendedTokens int64
}
