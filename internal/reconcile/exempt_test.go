package reconcile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/parry"
)

// exempting runs f in a world of fw-a, whose bundle takes exemptions, once it is idle with 198.51.100.1 exempt.
func exempting(t *testing.T, f func(w *world, fw *firewall)) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.mu.Lock()
		w.flags = func(m *bundle.Manifest) { m.Exemptions = true }
		w.mu.Unlock()
		w.exempts("198.51.100.1")
		w.put("203.0.113.7")
		w.idle("fw-a")
		w.exempted("198.51.100.1\n", 2*exemptEvery)
		f(w, w.firewall("fw-a"))
	})
}

// exempts makes these the never-block list, as a change of the configuration would.
func (w *world) exempts(all ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exempt = nil
	for _, s := range all {
		w.exempt = append(w.exempt, pfx(s))
	}
}

// exempted waits until the firewall is proved to have these exemptions.
func (w *world) exempted(want string, within time.Duration) {
	w.t.Helper()
	sum := sumOf(nil)
	if want != "" {
		sum = sumOf(strings.Split(strings.TrimSuffix(want, "\n"), "\n"))
	}
	w.within(within, "the exemptions are "+want, func() bool {
		got := ""
		w.firewall("fw-a").set(func(f *firewall) { got = f.exempt })
		return got == want && w.state("fw-a").Proof.ExemptSHA256 == sum
	})
}

func (w *world) applies() (n int) {
	w.t.Helper()
	for _, r := range w.runs("fw-a") {
		if r.Kind == parry.RunApply {
			n++
		}
	}
	return n
}

func TestExemptFile_isCanonicalWithoutNestedOnes(t *testing.T) {
	t.Parallel()
	var all []netip.Prefix
	for _, s := range []string{"203.0.113.128/25", "10.0.0.0/8", "2001:db8::1", "10.1.2.3", "203.0.113.0/24", "198.51.100.7", "2001:db8::/64", "9.0.0.0/8", "198.51.100.7"} {
		all = append(all, pfx(s))
	}
	f := parry.NewExemptFile(all)
	if want := "10.0.0.0/8\n198.51.100.7\n2001:db8::/64\n203.0.113.0/24\n9.0.0.0/8\n"; string(f.Text) != want || f.Count != 5 {
		t.Errorf("got %d: %q, want %q", f.Count, f.Text, want)
	}
	if got, want := f.SHA256, sumOf(strings.Split(strings.TrimSuffix(string(f.Text), "\n"), "\n")); got != want {
		t.Errorf("sum %s, want %s", got, want)
	}
	if f := parry.NewExemptFile(nil); f.Text == nil || len(f.Text) > 0 || f.SHA256 != sumOf(nil) {
		t.Errorf("no exemptions are %+v, and must not be taken for none told", f)
	}
}

func TestExemptions_manyChangesMakeOneRunAndABlocksRunTakesThemAlong(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		before := w.applies()
		w.exempts("198.51.100.1", "198.51.100.2")
		time.Sleep(5 * time.Second)
		w.exempts("198.51.100.2", "198.51.100.3", "198.51.100.0/24")
		w.exempted("198.51.100.0/24\n", time.Minute)
		if n := w.applies() - before; n != 1 {
			t.Errorf("%d runs for two changes that gathered", n)
		}
		w.exempts("192.0.2.0/24")
		id := w.put("203.0.113.8")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.exempted("192.0.2.0/24\n", 0)
		if n := w.applies() - before; n != 2 {
			t.Errorf("%d runs, want one more: the block's", n)
		}
		time.Sleep(10 * time.Minute)
		if n := w.applies() - before; n != 2 {
			t.Errorf("%d runs although nothing changed any more", n)
		}
	})
}

func TestExemptions_thatComeAndGoCostARunAMinuteAtMost(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		time.Sleep(exemptEvery)
		before := w.applies()
		for i := range 300 { // ten minutes
			w.exempts("198.51.100.1", fmt.Sprintf("192.0.2.%d", i%200))
			time.Sleep(2 * time.Second)
		}
		if n := w.applies() - before; n < 8 || n > 11 {
			t.Errorf("%d runs in ten minutes", n)
		}
	})
}

func TestExemptions_areDriftWhenTheFirewallHasOthers(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		fw.set(func(f *firewall) { f.exempt = "203.0.113.7\n" }) // by hand: the block is no use any more
		w.must(w.store.SetVerify(w.ctx, "fw-a"))
		w.within(time.Minute, "it is put right", func() bool {
			st := w.state("fw-a")
			return st.VerifyRev == 0 && st.Converged(0) && !st.Incident.Open()
		})
		w.exempted("198.51.100.1\n", 0)
		told := ""
		for _, r := range w.runs("fw-a") {
			told += r.Message
		}
		if !strings.Contains(told, "1 exemptions (") || !strings.Contains(told, "proved were 1") {
			t.Errorf("the runs say %q", told)
		}
	})
}

func TestExemptions_thatAreNotProvedDoNotCount(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		fw.set(func(f *firewall) { f.noExempt = true })
		id := w.put("203.0.113.8")
		w.becomes(id, "fw-a", parry.StateDegraded)
		if st := w.state("fw-a"); st.Incident.Failure != parry.FailProof || !strings.Contains(st.Incident.Message, "does not tell which exemptions") {
			t.Errorf("got %+v", st.Incident)
		}
		fw.set(func(f *firewall) { f.noExempt = false })
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}

func TestExemptions_goWhenTheFirewallIsRetired(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		w.must(w.store.SetRetiring(w.ctx, "fw-a"))
		w.within(time.Minute, "it is forgotten", func() bool {
			_, err := w.store.FirewallState(w.ctx, "fw-a")
			return parry.KindOf(err) == parry.KindNotFound
		})
		fw.set(func(f *firewall) {
			if f.exempt != "" || len(f.held) > 0 {
				t.Errorf("left behind: %q, %v", f.exempt, f.held)
			}
		})
	})
}

func TestExemptions_goInAPanicAndComeBackWithTheBlocks(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		w.must(w.store.Panic(w.ctx, nil, parry.Hold{Kind: parry.HoldPanic, By: "anna", Since: time.Now()}))
		w.within(time.Minute, "it is empty", func() bool { return w.status("fw-a").State == LanePanic })
		fw.set(func(f *firewall) {
			if f.exempt != "" || len(f.held) > 0 {
				t.Errorf("left behind: %q, %v", f.exempt, f.held)
			}
		})
		before := fw.count()
		w.exempts("198.51.100.9")
		time.Sleep(10 * time.Minute)
		if n := fw.count() - before; n != 0 {
			t.Errorf("%d runs in a panic for exemptions", n)
		}
		w.must(w.store.EndPanic(w.ctx, nil, "anna"))
		w.exempted("198.51.100.9\n", time.Minute)
	})
}

func TestExemptions_aBundleThatTakesNoneIsLeftAlone(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.exempts("198.51.100.1")
		w.put("203.0.113.7")
		w.idle("fw-a")
		before := w.applies()
		w.exempts("198.51.100.2")
		time.Sleep(10 * time.Minute)
		if n := w.applies() - before; n != 0 {
			t.Errorf("%d runs for exemptions that it does not take", n)
		}
		for _, s := range w.firewall("fw-a").runs {
			if s.Exempt != nil {
				t.Errorf("it was given %q", s.Exempt)
			}
		}
	})
}

// A block of what was exempt until now is enforced only with the exemption gone from the firewall.
func TestExemptions_oneThatRanOutGoesWithTheBlockThatFollows(t *testing.T) {
	exempting(t, func(w *world, fw *firewall) {
		w.exempts()
		id := w.put("198.51.100.1")
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.exempted("", 0)
	})
}
