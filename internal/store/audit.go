package store

import (
	"context"
	"database/sql"
	"maps"
	"net/netip"
	"strconv"
	"time"

	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

const (
	maxDetail = 4 << 10 // bytes of a row's detail
	maxObject = 512
	someIDs   = 10 // ids in a row that is about many
)

// auditRow is a row whose place in the chain is not known yet.
type auditRow struct {
	at int64
	audit.Row
}

// audit has the transaction leave a row of what it does. Who asked is who stands behind the context of the operation ([parry.WithActor]; parry
// itself for nobody); detail becomes a JSON object, nil for none: only what its fields say goes in, cut to 4 KiB, so that it may hold a caller's
// words. A new kind of change needs no more than its [parry.Action] and this call in the function that it gives to [Store.write]. When that
// function returns a refusal, the row is not written.
func (t *tx) audit(what parry.Action, object string, detail any) {
	t.auditBy(t.by, what, object, "done", detail)
}

func (t *tx) auditBy(by *parry.Actor, what parry.Action, object, outcome string, detail any) {
	if t.timeText == "" || !t.at.Equal(t.timed) {
		t.timed, t.timeText = t.at, audit.FormatTime(t.at)
	}
	r := auditRow{at: micros(t.at), Row: audit.Row{
		Time: t.timeText, Actor: by.Name, TokenID: string(by.Token), Role: string(by.Role), Action: string(what),
		Object: audit.Plain(object, maxObject), Outcome: outcome, Detail: auditDetail(detail), RequestID: by.RequestID,
	}}
	switch {
	case by.Remote.IsValid():
		r.Remote = by.Remote.String()
	case by.Name != parry.ActorName:
		r.Remote = "socket"
	}
	t.audits = append(t.audits, r)
}

// auditDetail writes a detail. One that is too long is cut, as the text that it then is.
func auditDetail(v any) string {
	if v == nil {
		return ""
	}
	s := toJSON(v)
	for most := maxDetail; len(s) > maxDetail; most -= maxDetail / 4 {
		s = toJSON(map[string]string{"cut": audit.Plain(s, most)})
	}
	if s == "{}" {
		return ""
	}
	return s
}

// blockDetail is what an audit row says of a block.
type blockDetail struct {
	Source      string          `json:"source"`
	Destination string          `json:"destination,omitempty"`
	Protocol    parry.Protocol  `json:"protocol,omitempty"`
	Port        uint16          `json:"port,omitempty"`
	Interface   string          `json:"interface,omitempty"`
	Firewalls   string          `json:"firewalls"`
	Expires     string          `json:"expires,omitempty"` // empty: without end
	Was         string          `json:"was,omitempty"`     // the end before
	Requests    int64           `json:"requests,omitempty"`
	Origin      string          `json:"origin,omitempty"`
	AlertID     string          `json:"alert_id,omitempty"`
	RuleID      string          `json:"rule_id,omitempty"`
	Reason      string          `json:"reason,omitempty"`
	Widened     string          `json:"widened,omitempty"`
	Promoted    int             `json:"promoted_from,omitempty"`
	GraceEnded  bool            `json:"grace_ended,omitempty"`
	Grace       string          `json:"grace,omitempty"`
	Forget      bool            `json:"forget,omitempty"`
	EndReason   parry.EndReason `json:"end_reason,omitempty"`
}

func detailOf(b *parry.Block) blockDetail {
	d := blockDetail{
		Source: parry.FormatPrefix(b.Source), Protocol: b.Protocol, Port: b.Port, Interface: b.Interface, Firewalls: string(b.Selector),
		Expires: auditTime(b.ExpiresAt), Requests: b.Count, Widened: b.Widened, Promoted: b.Promoted, EndReason: b.EndReason,
	}
	if b.Destination.IsValid() {
		d.Destination = parry.FormatPrefix(b.Destination)
	}
	return d
}

// audit notes what became of a request. A block that is refreshed again and again leaves a row a minute of each caller, with how many requests it has
// had until then: each of them is evidence of the block anyway.
func (a *admitter) audit(p *put, b *block, created, graceEnded bool) {
	what := parry.ActBlockRefresh
	switch {
	case !b.Live():
		what = parry.ActBlockEvidence
	case created:
		what = parry.ActBlockAdd
	}
	if !created && !graceEnded && !a.t.toTell(what, string(b.ID), p.by) {
		return
	}
	d := detailOf(&b.Block)
	q := &p.Request
	d.Origin, d.AlertID, d.RuleID, d.Reason = audit.Plain(q.Origin, 64), audit.Plain(q.AlertID, 128), audit.Plain(q.RuleID, 64), audit.Plain(q.Reason, 256)
	d.GraceEnded = graceEnded
	a.t.at = a.t.now
	a.t.auditBy(p.by, what, string(b.ID), "done", d)
}

// auditPut notes what was put on a list. Of a SIEM, which puts all day long, one row a minute does: each entry says who put it.
func (t *tx) auditPut(list string, puts []parry.ListPut, done *parry.ListDone) {
	byHand := t.by.Role.Can(parry.RightEditLists)
	if !byHand && !t.toTell(parry.ActListPut, list, t.by) {
		return
	}
	keys := make([]string, min(len(puts), someIDs))
	for i := range keys {
		keys[i] = audit.Plain(puts[i].Key, 128)
	}
	t.audit(parry.ActListPut, list, map[string]any{"added": done.Added, "refreshed": done.Refreshed, "late": done.Late, "count": len(puts), "first": keys})
}

func (t *tx) auditRun(r *parry.Run) {
	t.auditBy(parry.Itself, parry.ActRunEnd, r.Firewall, string(r.State), struct {
		Run      parry.RunID    `json:"run"`
		Kind     parry.RunKind  `json:"kind"`
		Failure  parry.Failure  `json:"failure,omitempty"`
		Message  string         `json:"message,omitempty"`
		Revision parry.Revision `json:"revision"`
		Sent     int            `json:"sent"`
		Rejected int            `json:"rejected,omitempty"`
		Added    int            `json:"added,omitempty"`
		Removed  int            `json:"removed,omitempty"`
		Proof    string         `json:"proof,omitempty"`
		Bundle   string         `json:"bundle,omitempty"`
		Digest   string         `json:"digest,omitempty"`
	}{r.ID, r.Kind, r.Failure, audit.Plain(r.Message, 256), r.Revision, r.Sent, r.Rejected, r.Got.Added, r.Got.Removed, r.Got.SHA256, r.Bundle.Name,
		r.Bundle.Digest})
}

func auditTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return audit.FormatTime(t)
}

// graceDetail is what a word says of the source's grace.
func graceDetail(l parry.Lift) string {
	switch {
	case l.Grace > 0:
		return parry.FormatTTL(l.Grace)
	case l.Grace == 0:
		return "ended"
	}
	return ""
}

type exemptionDetail struct {
	Prefix  string                `json:"prefix"`
	Expires string                `json:"expires,omitempty"`
	Source  parry.ExemptionSource `json:"source"`
	Reason  string                `json:"reason"`
}

func exemptionOf(x *parry.Exemption) exemptionDetail {
	return exemptionDetail{parry.FormatPrefix(x.Prefix), auditTime(x.ExpiresAt), x.Source, audit.Plain(x.Reason, 256)}
}

type filterDetail struct {
	Source    string `json:"source,omitempty"`
	Covering  string `json:"covering,omitempty"`
	Within    string `json:"within,omitempty"`
	Firewalls string `json:"firewalls,omitempty"`
	Origin    string `json:"origin,omitempty"`
	CreatedBy string `json:"created_by,omitempty"`
	ExpiresBy string `json:"expires_by,omitempty"`
}

func filterOf(f *parry.BlockFilter) filterDetail {
	text := func(p netip.Prefix) string {
		if !p.IsValid() {
			return ""
		}
		return parry.FormatPrefix(p)
	}
	return filterDetail{
		text(f.Source), text(f.Covering), text(f.Within), string(f.Selector), audit.Plain(f.Origin, 64), audit.Plain(f.CreatedBy, 64),
		auditTime(f.ExpiresBy),
	}
}

// manyDetail is what an audit row says of many at once.
type manyDetail struct {
	Count int      `json:"count"`
	First []string `json:"first,omitempty"`
}

func many[T ~string](ids []T) manyDetail {
	d := manyDetail{Count: len(ids), First: make([]string, min(len(ids), someIDs))}
	for i := range d.First {
		d.First[i] = string(ids[i])
	}
	return d
}

// telling is what a caller can do again and again without end, each time alike: it leaves a row once a minute.
type telling struct {
	what   parry.Action
	object string
	token  parry.TokenID
	minute int64
}

// toTell tells whether such a row is due.
func (t *tx) toTell(what parry.Action, object string, by *parry.Actor) bool {
	k := telling{what, object, by.Token, t.now.Unix() / 60}
	if t.w.told[k] || t.told[k] {
		return false
	}
	if t.told == nil {
		t.told = map[telling]bool{}
	}
	t.told[k] = true
	return true
}

// remember keeps what a transaction that is committed has told, for as long as its minute lasts.
func (w *writer) remember(t *tx) {
	if minute := t.now.Unix() / 60; len(t.told) > 0 && w.minute != minute {
		clear(w.told)
		w.minute = minute
	}
	maps.Copy(w.told, t.told)
}

// writeAudit puts the transaction's rows at the end of the chain.
func (t *tx) writeAudit() error {
	if len(t.audits) == 0 {
		return nil
	}
	rows := make([]any, 0, 12*len(t.audits))
	for i := range t.audits {
		r := &t.audits[i]
		r.Seq = t.auditSeq + 1
		r.Hash = r.Sum(t.auditHash)
		t.auditSeq, t.auditHash = r.Seq, r.Hash
		rows = append(rows, r.Seq, r.at, r.Actor, r.TokenID, r.Role, r.Remote, r.Action, r.Object, r.Outcome, r.Detail, r.RequestID, r.Hash)
	}
	return t.insert(`INSERT INTO audit (seq, at, actor, token_id, role, remote, action, object, outcome, detail, request_id, hash) VALUES `, 12, rows, ``)
}

// audited tells whether an operation that is tried again had left a row: its first try was committed, although the answer was lost.
func (t *tx) audited(r *auditRow) (yes bool, err error) {
	err = t.query(`SELECT 1 FROM audit WHERE at = $1 AND token_id = $2 AND action = $3 AND object = $4 AND request_id = $5`,
		[]any{r.at, r.TokenID, r.Action, r.Object, r.RequestID}, func(*sql.Rows) error { yes = true; return nil })
	return yes, err
}

// Audit writes rows of what no writing transaction of its own causes. One without an actor is by the context's.
func (s *Store) Audit(ctx context.Context, events ...parry.AuditEvent) error {
	return s.write(ctx, "write the audit", func(t *tx) error {
		for _, e := range events {
			by, outcome := e.Actor, e.Outcome
			if by == nil {
				by = t.by
			}
			if outcome == "" {
				outcome = "done"
			}
			t.auditBy(by, e.Action, e.Object, outcome, e.Detail)
		}
		return nil
	})
}

// AuditHead tells where the chain ends, and where it begins.
func (s *Store) AuditHead(ctx context.Context) (h parry.AuditHead, err error) {
	var last int64
	var hash string
	err = s.reads.QueryRowContext(ctx, `SELECT s.audit_seq, s.audit_hash, s.audit_base, coalesce(a.seq, s.audit_base), coalesce(a.hash, s.audit_base_hash)
		FROM state s LEFT JOIN audit a ON a.seq = (SELECT max(seq) FROM audit WHERE seq > (SELECT audit_base FROM state)) WHERE s.one = 1`).
		Scan(&h.Seq, &h.Hash, &h.Base, &last, &hash)
	h.Tail = last == h.Seq && hash == h.Hash
	return h, s.wrap(err, "read the head of the audit")
}

const auditQuery = `SELECT a.seq, a.at, a.actor, a.token_id, a.role, a.remote, a.action, a.object, a.outcome, a.detail, a.request_id, a.hash,
	coalesce(p.hash, CASE WHEN a.seq = s.audit_base + 1 THEN s.audit_base_hash ELSE '' END)
	FROM audit a JOIN state s ON s.one = 1 LEFT JOIN audit p ON p.seq = a.seq - 1`

func scanAudit(r *sql.Rows) (a audit.Row, err error) {
	var at int64
	err = r.Scan(&a.Seq, &at, &a.Actor, &a.TokenID, &a.Role, &a.Remote, &a.Action, &a.Object, &a.Outcome, &a.Detail, &a.RequestID, &a.Hash, &a.Prev)
	a.Time = audit.FormatTime(time.UnixMicro(at))
	return a, err
}

// AuditRows lists the audit.
func (s *Store) AuditRows(ctx context.Context, f parry.AuditFilter) (p parry.Page[audit.Row], err error) {
	n := pageLimit(f.Limit)
	at, err := readCursor('u', f.Cursor)
	if err != nil {
		return p, err
	}
	var w where
	w.add(`a.seq > %s`, f.After)
	w.conds = append(w.conds, `a.seq > s.audit_base`)
	if at != "" {
		seq, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return p, parry.Invalid("?cursor", "this is no cursor of this listing; take it as the page before gave it, or leave it out to start anew")
		}
		if f.Oldest {
			w.add(`a.seq > %s`, seq)
		} else {
			w.add(`a.seq < %s`, seq)
		}
	}
	if f.Actor != "" {
		w.add(`(a.actor = %s OR a.token_id = %s)`, f.Actor, f.Actor)
	}
	if f.Action != "" {
		w.add(`(a.action = %s OR substr(a.action, 1, %s) = %s)`, f.Action, int64(len(f.Action)+1), f.Action+".")
	}
	if f.Object != "" {
		w.add(`a.object = %s`, f.Object)
	}
	if !f.Since.IsZero() {
		w.add(`a.at >= %s`, micros(f.Since))
	}
	if !f.Until.IsZero() {
		w.add(`a.at < %s`, micros(f.Until))
	}
	order := ` ORDER BY a.seq DESC`
	if f.Oldest {
		order = ` ORDER BY a.seq`
	}
	p.Items, err = collect(ctx, s.reads, auditQuery+w.String()+order+` LIMIT `+strconv.Itoa(n+1), w.args, scanAudit)
	if len(p.Items) > n {
		p.Items = p.Items[:n]
		p.Next = cursor('u', strconv.FormatInt(p.Items[n-1].Seq, 10))
	}
	return p, s.wrap(err, "list the audit")
}

// pruneAudit takes off the beginning of the chain what is older. First one row says so and moves the base, so that what is left can be verified, then
// the rows go, in small transactions.
func (s *Store) pruneAudit(ctx context.Context, before time.Time) (total int64, err error) {
	err = s.write(ctx, "prune the audit", func(t *tx) error {
		var base, through int64
		var hash string
		if err := t.row(`SELECT audit_base FROM state WHERE one = 1`, nil, &base); err != nil {
			return err
		}
		// The last one before the first that is young enough: the clock may have been set back in between.
		err := t.row(`SELECT coalesce((SELECT min(seq) FROM audit WHERE at >= $1), $2) - 1`, []any{micros(before), t.auditSeq + 1}, &through)
		if err != nil || through <= base {
			return err
		}
		if err := t.row(`SELECT hash FROM audit WHERE seq = $1`, []any{through}, &hash); err != nil {
			return err
		}
		t.audit(parry.ActPrune, "", struct {
			Rows    int64  `json:"rows"`
			Through int64  `json:"through"`
			Hash    string `json:"hash"`
			Before  string `json:"before"`
		}{through - base, through, hash, audit.FormatTime(before)})
		return t.exec(`UPDATE state SET audit_base = $1, audit_base_hash = $2 WHERE one = 1`, through, hash)
	})
	for n := int64(endBatch); err == nil && n == endBatch; total += n {
		err = s.write(ctx, "prune the audit", func(t *tx) (err error) {
			n, err = t.execN(`DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE seq <= (SELECT audit_base FROM state WHERE one = 1) ORDER BY seq LIMIT $1)`,
				int64(endBatch))
			return err
		})
	}
	return total, err
}
