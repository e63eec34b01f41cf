package parry

import "time"

// ApprovalState is where an approval stands. At most one of a firewall is open: waiting, approved or denied.
type ApprovalState string

const (
	ApprovalWaiting    ApprovalState = "waiting"    // for somebody to decide
	ApprovalApproved   ApprovalState = "approved"   // the next run may make this change
	ApprovalDenied     ApprovalState = "denied"     // the firewall stays as it is until the change is another
	ApprovalApplied    ApprovalState = "applied"    // approved and made
	ApprovalGone       ApprovalState = "gone"       // there is no such change any more
	ApprovalSuperseded ApprovalState = "superseded" // by one of a larger change
	ApprovalExpired    ApprovalState = "expired"    // nobody decided, or it was not used, in time; asked anew if the change stands
)

// Open tells whether it still decides what runs may do.
func (s ApprovalState) Open() bool {
	return s == ApprovalWaiting || s == ApprovalApproved || s == ApprovalDenied
}

// ApprovalStates lists every state.
var ApprovalStates = []ApprovalState{ApprovalWaiting, ApprovalApproved, ApprovalDenied, ApprovalApplied, ApprovalGone, ApprovalSuperseded, ApprovalExpired}

// Approval is a change that is too large to be made without somebody's word, and that word.
type Approval struct {
	ID        ApprovalID
	Firewall  string
	State     ApprovalState
	Why       string // it is asked for
	Revision  Revision
	CreatedAt time.Time
	ExpiresAt time.Time // while waiting or approved
	Of        int       // entries that were sent last
	Removed   int       // of these would be removed although no block of theirs has ended
	Ended     int       // would be removed because their blocks have ended
	Added     int
	Known     bool     // which entries they are; else the approval is of their number
	First     []string // the first lines of Diff
	DecidedBy string
	DecidedAt time.Time
	Reason    string // of the decision: inert text
}

// Diff is a change entry by entry: "- KEY" for what would be removed although no block of its has ended, "+ KEY" for what would be added.
type Diff []string

// Decision is somebody's word on an approval.
type Decision struct {
	Approve bool
	By      string
	Reason  string // inert text
	Until   time.Time
}

// OpenApproval is what a firewall's state tells of its open approval; the zero value: there is none.
type OpenApproval struct {
	ID        ApprovalID
	State     ApprovalState
	ExpiresAt time.Time
}

// Due tells whether it is too old to count.
func (o OpenApproval) Due(now time.Time) bool {
	return o.State != ApprovalDenied && !o.ExpiresAt.IsZero() && !now.Before(o.ExpiresAt)
}

// ApprovalFilter narrows a listing; zero fields do not.
type ApprovalFilter struct {
	Firewall string
	Open     bool // only open ones
	Limit    int  // 1…1000
	Cursor   string
}
