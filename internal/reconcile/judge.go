package reconcile

import (
	"encoding/json"
	"fmt"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/parry"
)

// verdict is what a run came to, by parry's own judgement.
type verdict struct {
	state    parry.RunState
	failure  parry.Failure
	message  string
	want     parry.Proof    // SHA256 and Count only
	rejected map[int]string // line index → code
	known    int64          // the epoch that the firewall knows, when it said so
	differs  bool           // a verify read other entries or exemptions than were proved
	drift    *parry.Drift   // what these are
}

func (v *verdict) fail(f parry.Failure, format string, args ...any) {
	v.state, v.failure, v.message = parry.RunFailed, f, fmt.Sprintf(format, args...)
}

// fromOutcome takes over what the runner tells.
func fromOutcome(out *ansible.Outcome) verdict {
	v := verdict{state: out.State, failure: out.Failure, message: out.Message, known: whole(out.Details["epoch"])}
	switch {
	case out.State != parry.RunSucceeded && out.Failure == "":
		v.failure = parry.FailTask
	case out.State == parry.RunSucceeded && out.Proof == nil:
		v.fail(parry.FailNoProof, "the play ended without a proof")
	}
	return v
}

// whole reads a whole number of an answer, 0 when it is none.
func whole(v any) int64 {
	switch n := v.(type) {
	case json.Number:
		e, _ := n.Int64()
		return e
	case float64:
		return int64(n)
	case int64:
		return n
	case int:
		return int64(n)
	}
	return 0
}

// judgeApply holds a run's proof against what was sent less what was rejected.
func judgeApply(out *ansible.Outcome, sent *rendering, exempt *parry.ExemptFile, run *parry.Run, controller string) verdict {
	v := fromOutcome(out)
	v.want = parry.Proof{SHA256: sent.sum, Count: len(sent.lines)}
	if exempt != nil {
		v.want.ExemptSHA256, v.want.ExemptCount = exempt.SHA256, exempt.Count
	}
	if v.state != parry.RunSucceeded {
		return v
	}
	skip := make(map[int]bool, len(out.Rejected))
	if len(out.Rejected) > 0 {
		v.rejected = make(map[int]string, len(out.Rejected))
		for _, r := range out.Rejected {
			if r.Line < 1 || r.Line > len(sent.lines) {
				v.fail(parry.FailProof, "the firewall rejected line %d of %d", r.Line, len(sent.lines))
				return v
			}
			if skip[r.Line-1] = true; !sent.lapsed(r, run.EndedAt) {
				v.rejected[r.Line-1] = r.Code
			}
		}
		v.want.SHA256, v.want.Count = sent.sumWithout(skip), len(sent.lines)-len(skip)
	}
	got := out.Proof
	if got.SHA256 != v.want.SHA256 && sent.ends != nil {
		if _, ok := less(sent.without(skip), got, run.EndedAt); ok {
			v.want.SHA256, v.want.Count = got.SHA256, got.Count
		}
	}
	switch {
	case got.Controller != controller:
		v.fail(parry.FailForeignController, "the proof is of controller %q", got.Controller)
	case got.Epoch != run.Epoch:
		v.fail(parry.FailStaleEpoch, "the proof is of epoch %d, this run's is %d", got.Epoch, run.Epoch)
		v.known = got.Epoch
	case got.RunID != string(run.ID):
		v.fail(parry.FailProof, "the proof is of run %q", got.RunID)
	case got.SHA256 != v.want.SHA256 || got.Count != v.want.Count:
		v.fail(parry.FailProof, "the firewall holds %d entries (%.12s), sent less rejected are %d (%.12s)",
			got.Count, got.SHA256, v.want.Count, v.want.SHA256)
	default:
		v.exempts(got, "sent")
	}
	return v
}

// exempts holds the exemptions ahead of the firewall's drops against those that are wanted, where it takes any.
func (v *verdict) exempts(got *parry.Proof, how string) {
	switch want := &v.want; {
	case want.ExemptSHA256 == "" || got.ExemptSHA256 == want.ExemptSHA256:
	case got.ExemptSHA256 == "":
		v.fail(parry.FailProof, "the firewall does not tell which exemptions stand ahead of its drops, %s were %d (%.12s)", how, want.ExemptCount, want.ExemptSHA256)
	default:
		v.fail(parry.FailProof, "%d exemptions (%.12s) stand ahead of the firewall's drops, %s were %d (%.12s)",
			got.ExemptCount, got.ExemptSHA256, how, want.ExemptCount, want.ExemptSHA256)
	}
}

// judgeVerify holds what a verify read back against what was proved before; sent is the highest revision that parry knows to have sent. An empty controller is a firewall that has lost its state,
// which the entries tell. With identity it is only asked which machine answers, and in what state, before the first change to it.
func judgeVerify(out *ansible.Outcome, want parry.Proof, run *parry.Run, sent parry.Revision, controller string, identity bool) verdict {
	v := fromOutcome(out)
	v.want = parry.Proof{SHA256: want.SHA256, Count: want.Count, ExemptSHA256: want.ExemptSHA256, ExemptCount: want.ExemptCount}
	if v.state != parry.RunSucceeded {
		return v
	}
	got := out.Proof
	held, _ := out.Details["held"].(bool)
	revision := parry.Revision(whole(out.Details["revision"]))
	switch {
	case held:
		v.fail(parry.FailFlushed, "flush.yml emptied the firewall and left a hold")
	case got.RunID != string(run.ID):
		v.fail(parry.FailProof, "the proof is of run %q", got.RunID)
	case got.Controller != "" && got.Controller != controller:
		v.fail(parry.FailForeignController, "the firewall belongs to controller %q", got.Controller)
	case got.Epoch > run.Epoch:
		v.fail(parry.FailStaleEpoch, "the firewall knows epoch %d, this controller's is %d", got.Epoch, run.Epoch)
		v.known = got.Epoch
	case got.Controller != "" && revision > sent:
		v.fail(parry.FailStaleRevision, "the firewall was brought to revision %d, this database knows of %d at most", revision, sent)
	case identity:
	case got.SHA256 != want.SHA256 || got.Count != want.Count:
		v.fail(parry.FailProof, "the firewall holds %d entries (%.12s), proved were %d (%.12s)",
			got.Count, got.SHA256, want.Count, want.SHA256)
		v.differs = true
	default:
		v.exempts(got, "proved")
		v.differs = v.failure != ""
	}
	return v
}
