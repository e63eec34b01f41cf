package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/parry"
)

// reportLines is how many blocks a report names; the others are counted.
const reportLines = 20

func (t *try) notification(id, incident parry.NotificationID, kind parry.NotificationKind, r parry.Report) parry.Notification {
	sev := parry.SeverityOf(kind)
	return parry.Notification{
		ID: id, Kind: kind, Severity: sev, Firewall: t.name, Incident: incident, CreatedAt: t.now(), Channels: t.r.o.Channels.To(kind, sev), Report: r,
	}
}

// report fills in what every kind tells.
func (t *try) report() parry.Report {
	r := parry.Report{
		Firewall: t.name, RunID: t.run.ID, Bundle: t.run.Bundle, Revision: t.run.Revision, Controller: t.r.o.Controller,
	}
	if t.host.Addr.IsValid() {
		r.Host = net.JoinHostPort(t.host.Addr.String(), strconv.Itoa(cmp.Or(t.host.Port, 22)))
	}
	return r
}

func (t *try) failureReport(ctx context.Context, in *parry.Incident) parry.Report {
	r := t.report()
	r.Since, r.Failure, r.Task, r.Message, r.Hint = in.Since, in.Failure, t.run.Task, in.Message, parry.Hint(in.Failure)
	if a := t.asks; a != nil {
		r.Approval, r.Change, r.ChangeN = a.ID, t.diff[:min(len(t.diff), reportLines)], len(t.diff)
		r.Hint += fmt.Sprintf(" See it whole: parry approvals %s --diff. Then: parry approvals approve %s, or deny.", a.ID, a.ID)
	}
	r.Attempts, r.NextTry, r.LogTail, r.Command = in.Attempts, in.NextTry, t.out.LogTail, t.command()
	if d := t.st.Drift; d.Open() {
		r.Drift = d.Lines(reportLines)
	}
	t.blocks(ctx, &r, t.st.AppliedRev, t.st.DirtyRev > t.st.AppliedRev || t.st.ProvedAt.IsZero() || t.st.Incident.Failure == parry.FailProof ||
		in.Failure == parry.FailProof && t.run.Kind == parry.RunVerify || in.Failure == parry.FailFlushed)
	return r
}

func (t *try) recoveryReport(ctx context.Context, in *parry.Incident) parry.Report {
	r := t.report()
	r.Since, r.Until, r.Failure, r.Message, r.Attempts = in.Since, t.run.EndedAt, in.Failure, in.Message, in.Attempts
	r.Drift = t.st.Drift.Lines(reportLines)
	t.blocks(ctx, &r, t.run.Revision, false)
	return r
}

func (t *try) rejectReport(ctx context.Context, fresh map[parry.BlockID]string) parry.Report {
	r := t.report()
	r.Since, r.RejectsN = t.run.EndedAt, len(fresh)
	ids := slices.Sorted(maps.Keys(fresh))
	for _, id := range ids[:min(len(ids), reportLines)] {
		what := string(id)
		if b, ok := t.r.view.block(id); ok {
			what += " " + describe(b.Match)
		}
		r.Rejects = append(r.Rejects, what+": "+fresh[id])
	}
	t.blocks(ctx, &r, t.run.Revision, false)
	return r
}

// blocks counts what is in force at an applied revision, and names what is not, oldest first, and what has ended and is not lifted; all is
// unproved when the firewall is dirty.
func (t *try) blocks(ctx context.Context, r *parry.Report, applied parry.Revision, dirty bool) {
	all, _ := t.r.view.in(t.sc)
	rejected := t.rejects
	if rejected == nil {
		rejected = t.mem.rejected
	}
	var waiting []standing
	for _, b := range all {
		if _, no := rejected[b.id]; no {
			continue
		}
		if dirty || b.rev > applied {
			waiting = append(waiting, b)
		} else {
			r.Enforced++
		}
	}
	slices.SortFunc(waiting, func(a, b standing) int {
		return cmp.Or(cmp.Compare(a.rev, b.rev), strings.Compare(string(a.id), string(b.id)))
	})
	for _, b := range waiting[:min(len(waiting), reportLines)] {
		r.Waiting = append(r.Waiting, b.line())
	}
	r.WaitingN = len(waiting)
	if applied == 0 || dirty && r.Failure == parry.FailFlushed { // nothing stands there
		return
	}
	ch, err := t.r.o.Store.Changes(ctx, applied)
	if err != nil {
		return // the report goes out without those that still have to be lifted
	}
	for i := range ch.Blocks {
		b := &ch.Blocks[i]
		if _, no := rejected[b.ID]; no || b.Live() || b.Simulated || b.Rev > applied || b.EndRev <= applied || !t.sc.has(b.Selector) {
			continue
		}
		if r.LiftingN++; len(r.Lifting) < reportLines {
			r.Lifting = append(r.Lifting, fmt.Sprintf("%s %s", b.ID, describe(b.Match)))
		}
	}
}

// line names a block for people, with what sets it apart: "b-… 203.0.113.0/24 (offence 2, of 5 sources)".
func (b *standing) line() string {
	var notes []string
	if b.offence > 1 {
		notes = append(notes, fmt.Sprintf("offence %d", b.offence))
	}
	if b.promoted > 0 {
		notes = append(notes, fmt.Sprintf("of %d sources", b.promoted))
	}
	s := string(b.id) + " " + describe(b.Match)
	if len(notes) > 0 {
		s += " (" + strings.Join(notes, ", ") + ")"
	}
	return s
}

// describe writes a match for people: "203.0.113.7 → 198.51.100.10:22/tcp on wan".
func describe(m parry.Match) string {
	var b strings.Builder
	b.WriteString(parry.FormatPrefix(m.Source))
	if m.Destination.IsValid() || m.Port != 0 || m.Protocol != parry.ProtoAny {
		b.WriteString(" → ")
		dst := "any"
		if m.Destination.IsValid() {
			dst = parry.FormatPrefix(m.Destination)
		}
		if m.Port != 0 {
			dst = net.JoinHostPort(dst, strconv.Itoa(int(m.Port)))
		}
		b.WriteString(dst)
		if m.Protocol != parry.ProtoAny {
			b.WriteString("/" + string(m.Protocol))
		}
	}
	if m.Interface != "" {
		b.WriteString(" on " + m.Interface)
	}
	return b.String()
}

// command is how to run the same by hand, with the run's own files.
func (t *try) command() string {
	if t.out.Dir == "" || t.bundle.Dir == "" {
		return ""
	}
	return ansible.ByHand(t.r.o.Playbook, t.out.Dir, t.bundle.Dir, t.run.Kind, t.run.Revision, false)
}
