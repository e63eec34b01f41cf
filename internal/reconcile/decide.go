package reconcile

import (
	"time"

	"github.com/parry/parry/internal/parry"
)

// LaneState is what a lane is doing, for people and metrics.
type LaneState string

const (
	LaneStarting  LaneState = "starting"
	LaneStandby   LaneState = "standby"   // another replica has the lane
	LaneOrphan    LaneState = "orphan"    // a killed controller's run is still on
	LaneIdle      LaneState = "idle"      // all is applied and proved
	LaneGathering LaneState = "gathering" // changes keep coming; the next run takes them together
	LaneQueued    LaneState = "queued"    // waits for one of the bounded runs
	LaneRunning   LaneState = "running"
	LaneBackoff   LaneState = "backoff"   // failed, tries again at a time
	LaneSuspended LaneState = "suspended" // waits for an operator's adopt
	LaneApproval  LaneState = "approval"  // waits for an operator's approve
	LaneHeld      LaneState = "held"
	LaneSimulated LaneState = "simulated" // has shown what would change, and changes nothing
	LanePanic     LaneState = "panic"     // is empty, and kept so
	LaneRetired   LaneState = "retired"
)

// LaneStates lists every state.
var LaneStates = []LaneState{LaneStarting, LaneStandby, LaneOrphan, LaneIdle, LaneGathering, LaneQueued, LaneRunning, LaneBackoff,
	LaneSuspended, LaneApproval, LaneHeld, LaneSimulated, LanePanic, LaneRetired}

// todo is what a lane does next.
type todo int

const (
	doWait todo = iota
	doAdvance
	doApply
	doVerify
	doRetire
	doEmpty
	doCheck
)

// situation is all that a decision is made from.
type situation struct {
	now      time.Time
	state    parry.FirewallState
	relevant parry.Revision // the newest change that concerns the firewall
	any      parry.Revision // the newest of all; the applied revision follows it, since retention keeps what ended after it

	fresh     bool // nothing was tried since the lane was taken
	verified  bool // the firewall was read since the lane was taken
	unread    bool // not since its address or settings became what they are: it may be another machine
	uncertain bool // the last run ended from outside
	probation bool // an apply waits for a verify to confirm it
	lifted    bool // a verify went through although an adopt was needed: somebody mended it by hand
	wordUsed  bool // the last try had the operator's adopt already

	lastTry, lastVerify, lastAdvance time.Time
	triedRelevant, triedDirty        parry.Revision // as they stood at the last try
	triedVerify                      parry.Revision
	exemptDue, endsDue               time.Time      // as the lane's
	simulated                        parry.Revision // the newest change of simulated blocks that concerns the firewall
	lastCheck                        time.Time

	verifyEvery, earlyAfter, advanceEvery, reconsiderAfter time.Duration
}

// decision is what to do now, or what to wait for: a zero until waits for a wake only.
type decision struct {
	do    todo
	state LaneState
	until time.Time
}

func (s *situation) dirty() bool { return s.state.DirtyRev > s.state.AppliedRev }

// pending tells whether the firewall may differ from what is desired.
func (s *situation) pending() bool {
	return s.state.ProvedAt.IsZero() || s.dirty() || s.relevant > s.state.AppliedRev
}

// exempts tells whether other exemptions are to be sent now.
func (s *situation) exempts() bool { return !s.exemptDue.IsZero() && !s.now.Before(s.exemptDue) }

// shifts tells whether ends that moved are to be sent now.
func (s *situation) shifts() bool { return !s.endsDue.IsZero() && !s.now.Before(s.endsDue) }

// want is what would be done if nothing had failed.
func (s *situation) want() decision {
	nextVerify := s.lastVerify.Add(s.verifyEvery)
	switch {
	case s.state.Retiring && s.probation: // of the run that emptied it, or of one before
		return decision{do: doVerify}
	case s.state.Retiring:
		return decision{do: doRetire}
	case s.state.Simulate:
		return s.simulating()
	case s.probation, s.unread && (!s.state.Adopt || !s.state.Incident.Failure.NeedsAdopt()):
		return decision{do: doVerify}
	case s.pending(), s.shifts():
		return decision{do: doApply}
	case s.uncertain, !s.verified, s.state.VerifyRev > 0, !s.now.Before(nextVerify):
		return decision{do: doVerify}
	case s.exempts():
		return decision{do: doApply}
	}
	until := nextVerify
	if !s.exemptDue.IsZero() {
		until = earliest(until, s.exemptDue)
	}
	if !s.endsDue.IsZero() {
		until = earliest(until, s.endsDue)
	}
	if s.unseen() {
		next := s.lastCheck.Add(checkEvery)
		if !s.now.Before(next) {
			return decision{do: doCheck}
		}
		until = earliest(until, next)
	}
	if s.state.AppliedRev < s.any {
		next := s.lastAdvance.Add(s.advanceEvery)
		if !s.now.Before(next) {
			return decision{do: doAdvance}
		}
		until = earliest(until, next)
	}
	return decision{state: LaneIdle, until: until}
}

// decide is a lane's whole policy. A panic comes first, then a hold: a firewall that is held is not even read.
func decide(s situation) decision {
	if s.state.PanicRev > 0 {
		return s.panicking()
	}
	if s.state.Hold.Held() {
		return decision{state: LaneHeld}
	}
	d := s.want()
	in := &s.state.Incident
	if !in.Open() {
		return d
	}
	if d.do == doWait || d.do == doAdvance {
		d = decision{do: doVerify} // nothing is left to apply: the incident ends when the firewall answers well
		if s.state.Simulate && !in.Failure.NeedsAdopt() {
			d.do = doCheck
		}
	}
	word := s.state.VerifyRev > s.triedVerify
	changed := s.relevant > s.triedRelevant || s.state.DirtyRev > s.triedDirty || word
	switch {
	case in.Failure == parry.FailApproval && d.do == doApply:
		// Nothing but a change or the word can make a difference; during a storm not every change is looked at. An approval that is too old
		// is asked for anew.
		open := s.state.Approval
		if open.State == parry.ApprovalApproved || s.fresh || open.Due(s.now) {
			return d
		}
		if next := s.lastTry.Add(s.reconsiderAfter); changed && s.now.Before(next) {
			return decision{state: LaneApproval, until: next}
		}
		if changed {
			return d
		}
		if open.State == parry.ApprovalWaiting {
			return decision{state: LaneApproval, until: open.ExpiresAt}
		}
		return decision{state: LaneApproval}
	case in.Failure.NeedsAdopt():
		if s.state.Adopt && !s.wordUsed || s.lifted {
			return d
		}
		if d.do = doVerify; s.now.Before(in.NextTry) && !word {
			return decision{state: LaneSuspended, until: in.NextTry}
		}
		return d
	}
	slow := in.Failure.Pace() == parry.PaceSlow
	switch {
	case !s.now.Before(in.NextTry), s.fresh && !slow, s.state.DirtyRev > s.triedDirty, word:
		return d
	case s.relevant > s.triedRelevant && !slow:
		// A change may bring the next try forward, but a storm does not hammer a dead firewall.
		early := s.lastTry.Add(s.earlyAfter)
		if !s.now.Before(early) {
			return d
		}
		return decision{state: LaneBackoff, until: earliest(early, in.NextTry)}
	}
	return decision{state: LaneBackoff, until: in.NextTry}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
