package reconcile

import (
	"context"
	"time"

	"github.com/parry/parry/internal/parry"
)

// checkEvery spaces the checks of a firewall that show what simulated rules would do there: a storm of these costs no storm of runs.
const checkEvery = time.Minute

// simulationLines is how much of a diff is kept.
const simulationLines = 50

// unseen tells whether simulated blocks have changed since a check last showed them.
func (s *situation) unseen() bool { return s.simulated > s.state.Simulation.Revision }

// simulating is what a firewall that is simulated wants: a run in check mode whenever something has changed, else nothing. It is never written to;
// an operator may have it read back.
func (s *situation) simulating() decision {
	switch newest := max(s.relevant, s.state.DirtyRev, s.simulated); {
	case s.state.Simulation.RunID == "", newest > s.state.Simulation.Revision:
		if next := s.lastCheck.Add(checkEvery); s.state.Simulation.RunID != "" && s.now.Before(next) {
			return decision{state: LaneSimulated, until: next}
		}
		return decision{do: doCheck}
	case s.state.VerifyRev > 0 && !s.state.ProvedAt.IsZero():
		return decision{do: doVerify}
	}
	return decision{state: LaneSimulated}
}

// simulation is what a check has shown. Which entries these are is known where it is known what is loaded.
func (t *try) simulation(ctx context.Context) *parry.Simulation {
	s := &parry.Simulation{
		RunID: t.run.ID, At: t.run.EndedAt, Revision: t.run.Revision, Entries: len(t.sent.lines), Added: t.run.Got.Added, Removed: t.run.Got.Removed,
		Rejected: len(t.out.Rejected) + len(t.sent.rejects), First: []string{},
	}
	file, _ := t.lastSent(ctx)
	old := keysOfFile(file)
	if old == nil && !t.st.ProvedAt.IsZero() {
		return s
	}
	c := change{known: true, removed: t.sent.missing(old), added: t.sent.fresh(old)}
	d := c.diff()
	s.First, s.Lines = append(s.First, d[:min(len(d), simulationLines)]...), len(d)
	return s
}
