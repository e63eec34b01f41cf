package audit_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/parry/parry/internal/audit"
)

// chain makes n rows that follow each other.
func chain(n int) []audit.Row {
	prev, rows := audit.Genesis, make([]audit.Row, n)
	for i := range rows {
		rows[i] = audit.Row{
			Seq: int64(i + 1), Time: audit.FormatTime(time.Date(2026, 3, 1, 12, 0, i, 0, time.UTC)), Actor: "anna", TokenID: "t-1", Role: "operator",
			Remote: "192.0.2.7", Action: "block.end", Object: fmt.Sprint("b-", i), Outcome: "done", Detail: `{"source":"203.0.113.7"}`, Prev: prev,
		}
		rows[i].Hash = rows[i].Sum(prev)
		prev = rows[i].Hash
	}
	return rows
}

// relink gives rows the prev that the store would show: the hash of the row that stands before.
func relink(rows []audit.Row) {
	for i := range rows {
		switch {
		case i > 0 && rows[i-1].Seq == rows[i].Seq-1:
			rows[i].Prev = rows[i-1].Hash
		case rows[i].Seq > 1:
			rows[i].Prev = ""
		}
	}
}

func seq(rows []audit.Row) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func TestVerify_wholeChain(t *testing.T) {
	t.Parallel()
	rows := chain(3000)
	got, err := audit.Verify(seq(rows), audit.Anchor{Seq: 3000, Hash: rows[2999].Hash}, audit.Anchor{Seq: 7, Hash: rows[6].Hash})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(audit.Report{Rows: 3000, First: 1, Last: 3000, Hash: rows[2999].Hash}, got); diff != "" {
		t.Error(diff)
	}
}

func TestVerify_namesTheBreak(t *testing.T) {
	t.Parallel()
	type found struct {
		Seq  int64
		Kind audit.Kind
	}
	for name, c := range map[string]struct {
		do   func(rows []audit.Row) []audit.Row
		want []found
	}{
		"a changed row":    {func(r []audit.Row) []audit.Row { r[4].Actor = "mallory"; return r }, []found{{5, audit.Changed}}},
		"a changed detail": {func(r []audit.Row) []audit.Row { r[4].Detail = `{"source":"203.0.113.8"}`; return r }, []found{{5, audit.Changed}}},
		"a changed time":   {func(r []audit.Row) []audit.Row { r[4].Time = audit.FormatTime(time.Time{}); return r }, []found{{5, audit.Changed}}},
		"text moved to its neighbour": {func(r []audit.Row) []audit.Row {
			r[4].Object, r[4].Outcome = r[4].Object+r[4].Outcome, ""
			return r
		}, []found{{5, audit.Changed}}},
		"a changed row with a hash that fits": {func(r []audit.Row) []audit.Row {
			r[4].Actor = "mallory"
			r[4].Hash = r[4].Sum(r[3].Hash)
			return r
		}, []found{{6, audit.Changed}}},
		"a row taken out":         {func(r []audit.Row) []audit.Row { return slices.Delete(r, 4, 5) }, []found{{5, audit.Missing}}},
		"many rows taken out":     {func(r []audit.Row) []audit.Row { return slices.Delete(r, 4, 11) }, []found{{5, audit.Missing}}},
		"lines swapped":           {func(r []audit.Row) []audit.Row { r[4], r[5] = r[5], r[4]; return r }, []found{{5, audit.Reordered}}},
		"lines far apart swapped": {func(r []audit.Row) []audit.Row { r[4], r[12] = r[12], r[4]; return r }, []found{{5, audit.Reordered}}},
		"a line moved": {func(r []audit.Row) []audit.Row {
			five := r[4]
			return slices.Insert(slices.Delete(r, 4, 5), 9, five)
		}, []found{{5, audit.Reordered}}},
		"contents swapped": {func(r []audit.Row) []audit.Row {
			r[4], r[9] = r[9], r[4]
			r[4].Seq, r[9].Seq = 5, 10
			return r
		}, []found{{5, audit.Reordered}}},
		"a row twice":         {func(r []audit.Row) []audit.Row { return slices.Insert(r, 7, r[3]) }, []found{{4, audit.Reordered}}},
		"the end cut off":     {func(r []audit.Row) []audit.Row { return r[:15] }, []found{{16, audit.Cut}}},
		"the beginning taken": {func(r []audit.Row) []audit.Row { return r[3:] }, []found{{4, audit.Missing}}},
		"all taken":           {func(r []audit.Row) []audit.Row { return nil }, []found{{1, audit.Cut}}},
		"two breaks":          {func(r []audit.Row) []audit.Row { r[2].Actor = "x"; return slices.Delete(r, 9, 10) }, []found{{3, audit.Changed}, {10, audit.Missing}}},
		"written anew from some row on": {func(r []audit.Row) []audit.Row {
			r[4].Actor = "mallory"
			for i := 4; i < len(r); i++ {
				r[i].Prev = r[i-1].Hash
				r[i].Hash = r[i].Sum(r[i-1].Hash)
			}
			return r
		}, []found{{20, audit.Changed}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rows := chain(20)
			head := audit.Anchor{Seq: 20, Hash: rows[19].Hash}
			rows = c.do(rows)
			relink(rows)
			got, err := audit.Verify(seq(rows), head)
			if err != nil {
				t.Fatal(err)
			}
			var have []found
			for _, p := range got.Problems {
				have = append(have, found{p.Seq, p.Kind})
			}
			if diff := cmp.Diff(c.want, have); diff != "" {
				t.Error(diff, got.Problems)
			}
		})
	}
}

// Whatever one does to one row, it shows.
func TestVerify_everyRowAndFieldCounts(t *testing.T) {
	t.Parallel()
	for i := range 12 {
		for field, change := range map[string]func(*audit.Row){
			"time": func(r *audit.Row) { r.Time += "0" }, "actor": func(r *audit.Row) { r.Actor = "" }, "token": func(r *audit.Row) { r.TokenID += "x" },
			"role": func(r *audit.Row) { r.Role = "admin" }, "remote": func(r *audit.Row) { r.Remote = "socket" },
			"action": func(r *audit.Row) { r.Action += "s" }, "object": func(r *audit.Row) { r.Object = "b-x" }, "outcome": func(r *audit.Row) { r.Outcome = "" },
			"detail": func(r *audit.Row) { r.Detail = "" }, "request": func(r *audit.Row) { r.RequestID = "q" }, "hash": func(r *audit.Row) { r.Hash = audit.Genesis },
		} {
			rows := chain(12)
			head := audit.Anchor{Seq: 12, Hash: rows[11].Hash}
			change(&rows[i])
			relink(rows)
			if got, err := audit.Verify(seq(rows), head); err != nil || len(got.Problems) == 0 || got.Problems[0].Seq != int64(i+1) {
				t.Errorf("row %d, %s: %v, %v", i+1, field, got.Problems, err)
			}
		}
	}
}

func TestVerify_prunedChainNeedsItsRow(t *testing.T) {
	t.Parallel()
	rows := chain(20)
	r := &rows[19]
	r.Action, r.Actor, r.Detail = "audit.prune", "parry", fmt.Sprintf(`{"rows":8,"through":8,"hash":"%s"}`, rows[7].Hash)
	r.Hash = r.Sum(r.Prev)
	if got, err := audit.Verify(seq(rows[8:])); err != nil || len(got.Problems) > 0 || got.First != 9 {
		t.Errorf("pruned as the chain says: %+v, %v", got, err)
	}
	if got, err := audit.Verify(seq(rows[9:])); err != nil || len(got.Problems) != 1 || got.Problems[0].Kind != audit.Missing {
		t.Errorf("pruned by somebody: %+v, %v", got, err)
	}
	if got, err := audit.Verify(seq(rows[9:19]), audit.Anchor{Seq: 9, Hash: rows[8].Hash}); err != nil || len(got.Problems) > 0 {
		t.Errorf("a part, with the hash of what comes before: %+v, %v", got, err)
	}
}

func TestVerify_errorsOfTheReaderAreItsOwn(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	_, err := audit.Verify(func(yield func(audit.Row, error) bool) { yield(audit.Row{}, broken) })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"ssh brute force": "ssh brute force", "a\x00b\nc\x1b[31m": "a�b�c�[31m", "\xff\xfe": "�", "a\u202eb": "a�b", "日本語日本語": "日本語", "": "",
	} {
		if got := audit.Plain(in, 16); got != want && !(utf8.ValidString(got) && strings.HasPrefix(got, want)) || len(got) > 16 {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := audit.Plain("ääää", 5); got != "ää" {
		t.Errorf("cut within a letter: %q", got)
	}
}
