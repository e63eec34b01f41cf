package reconcile

import (
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// calm is a situation in which there is nothing to do.
func calm() situation {
	return situation{
		now:      noon,
		state:    parry.FirewallState{Name: "fw-a", Listed: true, AppliedRev: 10, DirtyRev: 5, ProvedAt: noon.Add(-time.Minute)},
		relevant: 10, any: 10, verified: true, lastTry: noon.Add(-time.Minute), lastVerify: noon.Add(-time.Minute), triedRelevant: 10, triedDirty: 5,
		verifyEvery: 15 * time.Minute, earlyAfter: 30 * time.Second, advanceEvery: 30 * time.Second, reconsiderAfter: 5 * time.Second,
	}
}

func failing(f parry.Failure) situation {
	s := calm()
	s.relevant, s.triedRelevant = 11, 11
	s.state.Incident = parry.Incident{Since: noon.Add(-time.Hour), Failure: f, NextTry: noon.Add(time.Minute), Attempts: 3}
	return s
}

func TestDecide(t *testing.T) {
	t.Parallel()
	with := func(s situation, change ...func(*situation)) situation {
		for _, c := range change {
			c(&s)
		}
		return s
	}
	held := func(s *situation) { s.state.Hold.Since = noon }
	pending := func(s *situation) { s.relevant = 11 }
	newer := func(s *situation) { s.relevant = 12 }
	later := func(s *situation) { s.now = s.now.Add(2 * time.Minute) }
	dirtied := func(s *situation) { s.state.DirtyRev = 12 }
	fresh := func(s *situation) { s.fresh = true }
	adopt := func(s *situation) { s.state.Adopt = true }
	approved := func(s *situation) { s.state.Approval = parry.OpenApproval{ID: "a-1", State: parry.ApprovalApproved} }
	inPanic := func(s *situation) {
		s.state.PanicRev, s.state.DirtyRev, s.state.Hold = 20, 20, parry.Hold{Kind: parry.HoldPanic, Since: noon}
	}
	sim := func(s *situation) { s.state.Simulate = true }
	seen := func(s *situation) { s.state.Simulation = parry.Simulation{RunID: "r-1", Revision: 30} }
	emptied := func(s *situation) { s.state.EmptiedRev, s.state.DirtyRev, s.triedDirty = 21, 21, 21 }
	tried := func(s *situation) { s.triedDirty = 20 }
	waiting := func(s *situation) {
		s.state.Approval = parry.OpenApproval{ID: "a-1", State: parry.ApprovalWaiting, ExpiresAt: noon.Add(time.Hour)}
	}
	asked := func(s *situation) { s.state.VerifyRev = 13 }
	askedBefore := func(s *situation) { s.state.VerifyRev, s.triedVerify = 13, 13 }
	justTried := func(s *situation) { s.lastTry = s.now.Add(-time.Second) }
	for name, c := range map[string]struct {
		s     situation
		do    todo
		state LaneState
		until time.Time
	}{
		"nothing to do: until the next verify":  {calm(), doWait, LaneIdle, noon.Add(14 * time.Minute)},
		"a change":                              {with(calm(), pending), doApply, "", time.Time{}},
		"dirty":                                 {with(calm(), dirtied), doApply, "", time.Time{}},
		"never proved":                          {with(calm(), func(s *situation) { s.state.ProvedAt = time.Time{} }), doApply, "", time.Time{}},
		"not verified since the lane was taken": {with(calm(), func(s *situation) { s.verified = false }), doVerify, "", time.Time{}},
		"not verified, but a change: the apply proves":  {with(calm(), pending, func(s *situation) { s.verified = false }), doApply, "", time.Time{}},
		"the last run ended from outside":               {with(calm(), func(s *situation) { s.uncertain = true }), doVerify, "", time.Time{}},
		"verify is due":                                 {with(calm(), func(s *situation) { s.now = noon.Add(15 * time.Minute) }), doVerify, "", time.Time{}},
		"a read-back is asked for":                      {with(calm(), asked), doVerify, "", time.Time{}},
		"a read-back is asked for while a change waits": {with(calm(), pending, asked), doApply, "", time.Time{}},
		"a read-back is asked for, held":                {with(calm(), held, asked), doWait, LaneHeld, time.Time{}},
		"failing: an asked read-back tries at once":     {with(failing(parry.FailUnreachable), justTried, asked), doApply, "", time.Time{}},
		"failing: but only once":                        {with(failing(parry.FailUnreachable), justTried, askedBefore), doWait, LaneBackoff, noon.Add(time.Minute)},
		"authentication: an asked read-back is a try":   {with(failing(parry.FailAuthentication), asked), doApply, "", time.Time{}},
		"foreign: an asked read-back looks at once":     {with(failing(parry.FailForeignController), asked), doVerify, "", time.Time{}},
		"an apply waits for its verify":                 {with(calm(), pending, func(s *situation) { s.probation = true }), doVerify, "", time.Time{}},
		"a change elsewhere":                            {with(calm(), func(s *situation) { s.any = 12 }), doAdvance, "", time.Time{}},
		"a change elsewhere, just advanced": {with(calm(), func(s *situation) { s.any, s.lastAdvance = 12, noon }), doWait, LaneIdle,
			noon.Add(30 * time.Second)},
		"retiring":                                           {with(calm(), func(s *situation) { s.state.Retiring = true }), doRetire, "", time.Time{}},
		"retiring, emptied and to be confirmed":              {with(calm(), pending, func(s *situation) { s.state.Retiring, s.probation = true, true }), doVerify, "", time.Time{}},
		"held: not even a verify":                            {with(calm(), held, pending, func(s *situation) { s.verified = false }), doWait, LaneHeld, time.Time{}},
		"held and retiring":                                  {with(calm(), held, func(s *situation) { s.state.Retiring = true }), doWait, LaneHeld, time.Time{}},
		"failing: waits":                                     {failing(parry.FailUnreachable), doWait, LaneBackoff, noon.Add(time.Minute)},
		"failing: tries in time":                             {with(failing(parry.FailUnreachable), later), doApply, "", time.Time{}},
		"failing: a change tries early":                      {with(failing(parry.FailUnreachable), newer), doApply, "", time.Time{}},
		"failing: not at once again":                         {with(failing(parry.FailUnreachable), newer, justTried), doWait, LaneBackoff, noon.Add(29 * time.Second)},
		"failing: a restart tries":                           {with(failing(parry.FailUnreachable), fresh), doApply, "", time.Time{}},
		"failing, nothing left to apply":                     {with(failing(parry.FailUnreachable), later, func(s *situation) { s.relevant = 10 }), doVerify, "", time.Time{}},
		"authentication: a change does not try early":        {with(failing(parry.FailAuthentication), newer), doWait, LaneBackoff, noon.Add(time.Minute)},
		"authentication: nor does a restart":                 {with(failing(parry.FailAuthentication), fresh), doWait, LaneBackoff, noon.Add(time.Minute)},
		"authentication: an operator's retry does":           {with(failing(parry.FailAuthentication), dirtied), doApply, "", time.Time{}},
		"simulated: a check, and no apply":                   {with(calm(), pending, sim), doCheck, "", time.Time{}},
		"simulated: nothing has changed":                     {with(calm(), pending, sim, seen), doWait, LaneSimulated, time.Time{}},
		"simulated: dirty":                                   {with(calm(), sim, seen, func(s *situation) { s.state.DirtyRev = 40 }), doCheck, "", time.Time{}},
		"simulated: not even verified":                       {with(calm(), sim, seen, later, func(s *situation) { s.verified = false }), doWait, LaneSimulated, time.Time{}},
		"simulated: one asks for a read-back":                {with(calm(), sim, seen, asked), doVerify, "", time.Time{}},
		"simulated: a storm costs a run a minute":            {with(calm(), sim, seen, func(s *situation) { s.relevant, s.lastCheck = 40, noon }), doWait, LaneSimulated, noon.Add(time.Minute)},
		"simulated: failing":                                 {with(failing(parry.FailUnreachable), sim, seen, later), doCheck, "", time.Time{}},
		"simulated: held":                                    {with(calm(), sim, held, pending), doWait, LaneHeld, time.Time{}},
		"simulated: in panic":                                {with(calm(), sim, inPanic), doEmpty, "", time.Time{}},
		"a simulated rule: shown when nothing else is to do": {with(calm(), func(s *situation) { s.simulated = 12 }), doCheck, "", time.Time{}},
		"a simulated rule: after what is real":               {with(calm(), pending, func(s *situation) { s.simulated = 12 }), doApply, "", time.Time{}},
		"a simulated rule: shown a minute ago":               {with(calm(), func(s *situation) { s.simulated, s.lastCheck = 12, noon }), doWait, LaneIdle, noon.Add(time.Minute)},
		"panic: a hold makes no odds":                        {with(calm(), held, inPanic), doEmpty, "", time.Time{}},
		"panic: nor does an approval":                        {with(failing(parry.FailApproval), inPanic, tried), doEmpty, "", time.Time{}},
		"panic: a new one knows no backoff":                  {with(failing(parry.FailUnreachable), justTried, inPanic), doEmpty, "", time.Time{}},
		"panic: nor a slow one":                              {with(failing(parry.FailAuthentication), justTried, inPanic), doEmpty, "", time.Time{}},
		"panic: tried often":                                 {with(failing(parry.FailUnreachable), justTried, inPanic, tried), doWait, LaneBackoff, noon.Add(9 * time.Second)},
		"panic: and again":                                   {with(failing(parry.FailUnreachable), inPanic, tried), doEmpty, "", time.Time{}},
		"panic: but not where the key is refused":            {with(failing(parry.FailAuthentication), inPanic, tried), doWait, LaneBackoff, noon.Add(time.Minute)},
		"panic: what must be adopted must be":                {with(failing(parry.FailForeignController), inPanic), doWait, LaneSuspended, noon.Add(time.Minute)},
		"panic: adopted":                                     {with(failing(parry.FailForeignController), inPanic, adopt), doEmpty, "", time.Time{}},
		"panic: emptied and to be confirmed":                 {with(calm(), inPanic, func(s *situation) { s.probation = true }), doVerify, "", time.Time{}},
		"panic: empty":                                       {with(calm(), pending, inPanic, emptied), doWait, LanePanic, noon.Add(14 * time.Minute)},
		"panic: empty, read on schedule":                     {with(calm(), inPanic, emptied, func(s *situation) { s.now = noon.Add(15 * time.Minute) }), doVerify, "", time.Time{}},
		"panic: empty, holds something":                      {with(failing(parry.FailProof), inPanic, emptied, later), doEmpty, "", time.Time{}},
		"panic: empty, did not answer":                       {with(failing(parry.FailUnreachable), inPanic, emptied, later), doVerify, "", time.Time{}},
		"panic: called again":                                {with(calm(), inPanic, emptied, func(s *situation) { s.state.PanicRev = 30 }), doEmpty, "", time.Time{}},
		"panic: before retiring":                             {with(calm(), inPanic, func(s *situation) { s.state.Retiring = true }), doEmpty, "", time.Time{}},
		"foreign: waits for the word":                        {failing(parry.FailForeignController), doWait, LaneSuspended, noon.Add(time.Minute)},
		"foreign: only looks":                                {with(failing(parry.FailForeignController), later), doVerify, "", time.Time{}},
		"foreign: a change and a restart make no odds":       {with(failing(parry.FailForeignController), newer, fresh, dirtied), doWait, LaneSuspended, noon.Add(time.Minute)},
		"foreign: the word":                                  {with(failing(parry.FailForeignController), adopt), doApply, "", time.Time{}},
		"foreign: the word was used in vain":                 {with(failing(parry.FailForeignController), adopt, func(s *situation) { s.wordUsed = true }), doWait, LaneSuspended, noon.Add(time.Minute)},
		"foreign: mended by hand":                            {with(failing(parry.FailForeignController), func(s *situation) { s.lifted = true }), doApply, "", time.Time{}},
		"approval: waits without a timer":                    {with(failing(parry.FailApproval), later), doWait, LaneApproval, time.Time{}},
		"approval: the word":                                 {with(failing(parry.FailApproval), approved), doApply, "", time.Time{}},
		"approval: waits for a decision until it is too old": {with(failing(parry.FailApproval), waiting), doWait, LaneApproval, noon.Add(time.Hour)},
		"approval: too old":                                  {with(failing(parry.FailApproval), waiting, func(s *situation) { s.now = noon.Add(time.Hour) }), doApply, "", time.Time{}},
		"approval: denied for good": {with(failing(parry.FailApproval), later, func(s *situation) {
			s.state.Approval = parry.OpenApproval{ID: "a-1", State: parry.ApprovalDenied, ExpiresAt: noon}
		}), doWait, LaneApproval, time.Time{}},
		"approval: a change is looked at":      {with(failing(parry.FailApproval), newer), doApply, "", time.Time{}},
		"approval: a storm is not":             {with(failing(parry.FailApproval), newer, justTried), doWait, LaneApproval, noon.Add(4 * time.Second)},
		"approval: nothing to remove any more": {with(failing(parry.FailApproval), later, func(s *situation) { s.relevant = 10 }), doVerify, "", time.Time{}},
	} {
		got := decide(c.s)
		if want := (decision{c.do, c.state, c.until}); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestBackoff_growsIsCappedAndJittered(t *testing.T) {
	t.Parallel()
	var b Backoff
	b.setDefaults()
	for _, c := range []struct {
		pace parry.Pace
		n    int
		r    float64
		want time.Duration
	}{
		{parry.PaceUsual, 1, 0.5, 2 * time.Second}, {parry.PaceUsual, 1, 0, 1600 * time.Millisecond}, {parry.PaceUsual, 4, 0.5, 16 * time.Second},
		{parry.PaceUsual, 1000, 0.999, 5 * time.Minute}, {parry.PaceSlow, 1, 0.5, 5 * time.Minute}, {parry.PaceSlow, 9, 0.5, time.Hour},
		{parry.PaceQuick, 1, 0.5, time.Second}, {parry.PaceQuick, 9, 0.5, 30 * time.Second},
	} {
		if got := b.after(c.pace, c.n, c.r); got != c.want {
			t.Errorf("%s, failure %d, jitter %v: %v, want %v", c.pace, c.n, c.r, got, c.want)
		}
	}
}

func TestBackoff_aConfiguredPauseIsNotCutShort(t *testing.T) {
	t.Parallel()
	b := Backoff{SlowMin: 6 * time.Hour}
	b.setDefaults()
	for _, n := range []int{1, 2, 9} {
		if got, want := b.after(parry.PaceSlow, n, 0.5), 6*time.Hour; got != want {
			t.Errorf("failure %d: %v, want %v", n, got, want)
		}
	}
}
