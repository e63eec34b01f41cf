package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/ansible"
	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// What parry itself does with a verify of 100,000 entries: one that reads what was proved, and one that does not.
func BenchmarkVerify_100000Loaded(b *testing.B) {
	const n = 100_000
	var text, file strings.Builder
	keys := make([]string, 0, n)
	blocks := map[parry.BlockID]standing{}
	now := time.Now()
	for i := range n {
		a := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		m := parry.Match{Source: pfx(a), Interface: "wan"}
		keys = append(keys, string(parry.Entry{Match: m}.AppendKey(nil)))
		id := parry.NewBlockID(now)
		blocks[id] = standing{Key: parry.Key{Match: parry.Match{Source: pfx(a)}, Selector: parry.SelectAll}, id: id, rev: 1, expires: now.Unix() + 3600}
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&text, "%s %d 12345 678901\n", k, now.Unix()+3600)
		fmt.Fprintf(&file, "%s %d\n", k, now.Unix()+3600)
	}
	proof := &parry.Proof{SHA256: sumOf(keys), Count: n}
	fw := &parry.Firewall{Name: "fw-a", Interface: "wan"}
	fleet := &parry.Fleet{Firewalls: []parry.Firewall{*fw}, Default: parry.SelectAll}
	r := &Reconciler{o: Options{Now: time.Now}, view: &view{blocks: blocks}}
	manifest := *testRenderer().manifest
	manifest.Timeouts, manifest.Loaded = true, true
	fresh := func(loaded string, got *parry.Proof) *try {
		l := &lane{r: r, log: slog.New(slog.DiscardHandler)}
		l.mem.sent, l.mem.refused = []byte(file.String()), map[int]bool{}
		return &try{
			lane: l, st: &parry.FirewallState{AppliedRev: 1, Proof: *proof, ProvedAt: now}, fw: fw, sc: newScope(fleet, fw),
			bundle: bundle.Bundle{Manifest: manifest},
			run:    parry.Run{Kind: parry.RunVerify, Got: *got},
			out:    &ansible.Outcome{State: parry.RunSucceeded, Proof: got, Loaded: []byte(loaded)},
		}
	}
	for _, start := range []bool{false, true} {
		b.Run(map[bool]string{false: "as proved", true: "as proved, after a start"}[start], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				t := fresh(text.String(), proof)
				if !start {
					t.mem.ends.sent = map[parry.BlockID]int64{}
				}
				if v := t.judgeRead(context.Background(), *proof); v.failure != "" {
					b.Fatal(v.message)
				}
				t.recallEnds(context.Background())
			}
		})
	}
	b.Run("1000 missing", func(b *testing.B) {
		b.ReportAllocs()
		_, less, _ := strings.Cut(text.String(), keys[1000])
		got := &parry.Proof{SHA256: sumOf(keys[1000:]), Count: n - 1000}
		for b.Loop() {
			v := fresh(keys[1000]+less, got).judgeRead(context.Background(), *proof)
			if v.drift == nil || v.drift.MissingN != 1000 || len(v.drift.Blocks) != 1000 {
				b.Fatalf("%d missing, %d blocks, %+v", v.drift.MissingN, len(v.drift.Blocks), v)
			}
		}
	})
}
