package reconcile

import (
	"context"
	"sync"
	"time"

	"github.com/parry/parry/internal/parry"
)

// panicEvery is how often a firewall that is in panic and not empty yet is tried, whatever its backoff. One that refuses parry's key is tried as
// slowly as ever, because it would lock parry out.
const panicEvery = 10 * time.Second

// panicking decides for a firewall that is to be empty: no hold, backoff or approval keeps it from being emptied; what needs an adopt still
// does. Once it is empty it is read on schedule, and emptied again should it hold something.
func (s *situation) panicking() decision {
	in := &s.state.Incident
	nextVerify := s.lastVerify.Add(s.verifyEvery)
	d := decision{do: doVerify}
	switch {
	case s.probation: // of the run that emptied it
	case !s.state.Emptied(), in.Failure == parry.FailProof:
		d.do = doEmpty
	case in.Open(), s.uncertain, !s.verified, s.state.VerifyRev > 0, !s.now.Before(nextVerify):
	default:
		return decision{state: LanePanic, until: nextVerify}
	}
	word := s.state.VerifyRev > s.triedVerify
	switch {
	case !in.Open():
		return d
	case in.Failure.NeedsAdopt():
		if s.state.Adopt && !s.wordUsed || s.lifted {
			return d
		}
		if d.do = doVerify; s.now.Before(in.NextTry) && !word {
			return decision{state: LaneSuspended, until: in.NextTry}
		}
		return d
	case in.Failure == parry.FailApproval, !s.now.Before(in.NextTry), s.state.DirtyRev > s.triedDirty, word:
		return d
	case in.Failure.Pace() == parry.PaceSlow:
		return decision{state: LaneBackoff, until: in.NextTry}
	}
	if next := s.lastTry.Add(panicEvery); s.now.Before(next) {
		return decision{state: LaneBackoff, until: earliest(next, in.NextTry)}
	}
	return d
}

// queue waits for a slot. A panic ends the wait of a run that is for anything else: it is not to stand behind that.
func (l *lane) queue(ctx context.Context, st *parry.FirewallState, do todo) (release func(), err error) {
	if do == doEmpty {
		return l.r.slots.acquire(ctx, st.Incident.Open(), true)
	}
	qctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-qctx.Done():
				return
			case <-l.wake:
				if now, err := l.r.o.Store.FirewallState(qctx, l.name); err == nil && now.PanicRev > st.PanicRev {
					cancel()
				}
			}
		}
	})
	release, err = l.r.slots.acquire(qctx, st.Incident.Open(), false)
	cancel()
	wg.Wait()
	return release, err
}
