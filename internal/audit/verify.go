package audit

import (
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Kind is what is wrong with a chain.
type Kind string

const (
	Changed   Kind = "changed"   // a row is not what was written
	Missing   Kind = "missing"   // rows were taken out
	Reordered Kind = "reordered" // a row stands elsewhere
	Cut       Kind = "cut"       // rows were taken off the end
)

// Problem is one break, at a sequence number.
type Problem struct {
	Seq    int64
	Kind   Kind
	Detail string
}

// Anchor is what a chain is known to have passed through: the head that parry tells, or one that its log kept.
type Anchor struct {
	Seq  int64
	Hash string
}

// Report is what became of a verification.
type Report struct {
	Rows     int64 // that were read
	First    int64
	Last     int64
	Hash     string // of the last
	Problems []Problem
}

const (
	window      = 1024 // rows that are looked ahead for one that stands elsewhere
	maxProblems = 100
)

// pruneDetail is the detail of an audit.prune row.
type pruneDetail struct {
	Through int64  `json:"through"`
	Hash    string `json:"hash"`
}

// Verify reads rows in their order. A break does not end it: what follows is held against the hash that stands there. A chain that does not begin
// at 1 must say by whose hash that was pruned what came before, or an anchor must. Problems beyond 100 are left out. The error is that of rows.
func Verify(rows iter.Seq2[Row, error], anchors ...Anchor) (Report, error) {
	v := &verifier{anchors: anchors}
	next, stop := iter.Pull2(rows)
	defer stop()
	for {
		for len(v.ahead) < window && !v.drained {
			r, err, ok := next()
			if err != nil {
				return v.Report, err
			}
			if v.drained = !ok; ok {
				v.ahead = append(v.ahead, r)
			}
		}
		if len(v.ahead) == 0 {
			break
		}
		v.step()
	}
	v.end()
	return v.Report, nil
}

type verifier struct {
	Report
	ahead   []Row
	drained bool
	want    int64 // the sequence number that comes next
	prev    string
	anchors []Anchor
	start   Anchor // what came before the first row
	started bool   // that is known to be true
}

func (v *verifier) problem(seq int64, k Kind, format string, args ...any) {
	if len(v.Problems) < maxProblems {
		v.Problems = append(v.Problems, Problem{seq, k, fmt.Sprintf(format, args...)})
	}
}

func (v *verifier) take() Row {
	r := v.ahead[0]
	v.ahead = v.ahead[1:]
	v.Rows++
	return r
}

// step holds one row against its place.
func (v *verifier) step() {
	if v.Rows == 0 {
		r := &v.ahead[0]
		if r.Seq == 1 && r.Prev != Genesis {
			v.problem(1, Changed, "the first row does not begin a chain")
		}
		v.First, v.want, v.prev = r.Seq, r.Seq, r.Prev
		if r.Seq == 1 {
			v.prev = Genesis
		}
		v.start = Anchor{r.Seq - 1, r.Prev}
		v.started = r.Seq == 1 || slices.Contains(v.anchors, v.start)
	}
	switch i := slices.IndexFunc(v.ahead, func(r Row) bool { return r.Seq == v.want }); {
	case i == 0:
		v.fits()
	case v.ahead[0].Seq < v.want:
		r := v.take()
		v.problem(r.Seq, Reordered, "row %d stands again, behind row %d", r.Seq, v.want-1)
	case i > 0:
		first, moved := v.ahead[0], v.ahead[i]
		v.problem(v.want, Reordered, "row %d stands behind row %d", v.want, first.Seq)
		if v.ahead[0] = moved; first.Seq == v.want+int64(i) { // these two changed places
			v.ahead[i] = first
		} else {
			v.ahead = slices.Insert(slices.Delete(v.ahead, i, i+1), 1, first)
		}
		v.fits()
	default:
		least := slices.MinFunc(v.ahead, func(a, b Row) int { return int(a.Seq - b.Seq) }).Seq
		if least <= v.want { // an older one, behind
			least = v.ahead[0].Seq
		}
		v.problem(v.want, Missing, "%s missing before row %d", these(v.want, least-1), least)
		v.want, v.prev = least, ""
	}
}

// fits holds the row that has the right number against the hash of the one before.
func (v *verifier) fits() {
	r := &v.ahead[0]
	if v.prev == "" { // after a gap the row vouches for itself, if it can
		v.prev = r.Prev
	}
	if v.prev != "" && r.Sum(v.prev) != r.Hash {
		elsewhere := slices.IndexFunc(v.ahead[1:], func(o Row) bool {
			o.Seq = r.Seq
			return o.Sum(v.prev) == o.Hash
		}) + 1
		if elsewhere > 0 {
			o := &v.ahead[elsewhere]
			v.problem(r.Seq, Reordered, "what belongs at row %d stands at row %d", r.Seq, o.Seq)
			*r, *o = *o, *r
			r.Seq, o.Seq = o.Seq, r.Seq
		} else {
			v.problem(r.Seq, Changed, "row %d is not what was written after row %d: it or the hash of that one was changed", r.Seq, r.Seq-1)
		}
	}
	row := v.take()
	v.passed(&row)
	v.want, v.prev, v.Last, v.Hash = row.Seq+1, row.Hash, row.Seq, row.Hash
}

// passed looks whether the row tells of the chain's beginning, or is one that is known.
func (v *verifier) passed(r *Row) {
	if r.Action == "audit.prune" && !v.started {
		var d pruneDetail
		v.started = json.Unmarshal([]byte(r.Detail), &d) == nil && Anchor{d.Through, d.Hash} == v.start
	}
	for _, a := range v.anchors {
		if a.Seq == r.Seq && !strings.EqualFold(a.Hash, r.Hash) {
			v.problem(r.Seq, Changed, "row %d has another hash than was told before: the chain was written anew up to here, or behind", r.Seq)
		}
	}
}

func (v *verifier) end() {
	if v.First > 1 && !v.started {
		v.problem(v.First, Missing, "%s missing, and no row says that they were pruned", these(1, v.First-1))
	}
	known := v.Last
	for _, a := range v.anchors {
		known = max(known, a.Seq)
	}
	if known > v.Last {
		v.problem(v.Last+1, Cut, "the chain ends at row %d, and once reached row %d: %s missing", v.Last, known, these(v.Last+1, known))
	}
	slices.SortStableFunc(v.Problems, func(a, b Problem) int { return int(a.Seq - b.Seq) })
}

func these(from, to int64) string {
	if from == to {
		return fmt.Sprintf("row %d is", from)
	}
	return fmt.Sprintf("rows %d to %d are", from, to)
}
