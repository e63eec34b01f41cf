package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parry/parry/internal/bundle"
	"github.com/parry/parry/internal/nat"
	"github.com/parry/parry/internal/parry"
)

func portForward(from string, proto parry.Protocol, port uint16, to string, toPort uint16) parry.PortForward {
	return parry.PortForward{
		Destination: netip.MustParseAddr(from), Protocol: proto, Port: port, PortEnd: port, To: netip.MustParseAddr(to), ToPort: toPort,
	}
}

func at(destination string, proto parry.Protocol, port uint16) func(*parry.Admission) {
	return func(a *parry.Admission) {
		if destination != "" {
			a.Key.Destination = pfx(destination)
		}
		a.Key.Protocol, a.Key.Port = proto, port
	}
}

// forwarding runs f in a world of fw-a, whose bundle sees destinations after port forwarding and which forwards its 443.
func forwarding(t *testing.T, f func(w *world, fw *firewall)) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.mu.Lock()
		w.flags = func(m *bundle.Manifest) { m.AfterNAT, m.Facts = true, true }
		w.mu.Unlock()
		fw := w.firewall("fw-a")
		fw.set(func(f *firewall) {
			f.facts = &parry.FirewallFacts{Forwards: []parry.PortForward{portForward("198.51.100.1", parry.ProtoTCP, 443, "10.0.0.5", 8443)}}
			f.reject["203.0.113.9 198.51.100.1 "] = "destination_is_firewall"
		})
		w.put("192.0.2.1")
		w.idle("fw-a")
		w.within(time.Minute, "the forwards are known", func() bool { return w.state("fw-a").FactsRev > 0 })
		f(w, fw)
	})
}

// holds waits until the firewall holds exactly these entries beside the first one.
func (w *world) holds(want ...string) {
	w.t.Helper()
	want = append(want, "192.0.2.1 - - - wan")
	slices.Sort(want)
	w.within(2*time.Minute, "fw-a holds "+strings.Join(want, ", "), func() bool {
		return slices.Equal(w.firewall("fw-a").holds(), want) && w.status("fw-a").State == LaneIdle
	})
}

func TestNAT_aPublicDestinationBecomesWhatIsBehindIt(t *testing.T) {
	forwarding(t, func(w *world, fw *firewall) {
		before := w.applies()
		id := w.put("203.0.113.7", at("198.51.100.1", parry.ProtoTCPUDP, 443))
		w.becomes(id, "fw-a", parry.StateEnforced)
		w.holds("203.0.113.7 10.0.0.5 tcp 8443 wan")
		if n := w.applies() - before; n != 1 {
			t.Errorf("%d runs for one block", n)
		}
		b, err := w.store.Block(w.ctx, id)
		w.must(err)
		if b.Destination != pfx("198.51.100.1") || b.Port != 443 {
			t.Errorf("the block keeps what was asked for, and has %+v", b.Key)
		}
		same := w.put("203.0.113.7", at("10.0.0.5", parry.ProtoTCP, 8443)) // the same by its inside address
		w.becomes(same, "fw-a", parry.StateEnforced)
		w.holds("203.0.113.7 10.0.0.5 tcp 8443 wan")
		if n := w.applies() - before; n != 1 {
			t.Errorf("%d runs, and what both blocks become is the same entry", n)
		}
		other := w.put("203.0.113.9", at("198.51.100.1", parry.ProtoTCP, 22))
		w.becomes(other, "fw-a", parry.StateRejected) // nothing forwards it, and it is the firewall's own
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}

func TestNAT_whenTheForwardsChangeTheEntriesFollow(t *testing.T) {
	forwarding(t, func(w *world, fw *firewall) {
		var ids []parry.BlockID
		var want []string
		for i := range 40 { // more than an unexplained removal may be
			source := fmt.Sprintf("203.0.113.%d", 100+i)
			ids = append(ids, w.put(source, at("198.51.100.1", parry.ProtoTCP, 443)))
			want = append(want, source+" 10.0.0.%d tcp 8443 wan")
		}
		inside := func(n int) (out []string) {
			for _, s := range want {
				out = append(out, fmt.Sprintf(s, n))
			}
			return out
		}
		w.becomes(ids[39], "fw-a", parry.StateEnforced)
		w.holds(inside(5)...)
		verify := func(to string) {
			fw.set(func(f *firewall) {
				f.facts = &parry.FirewallFacts{Forwards: []parry.PortForward{portForward("198.51.100.1", parry.ProtoTCP, 443, to, 8443),
					portForward("198.51.100.77", parry.ProtoTCP, 443, "10.7.7.7", uint16(w.applies()))}}
			})
			w.must(w.store.SetVerify(w.ctx, "fw-a"))
			w.within(time.Minute, "it was read", func() bool { return w.state("fw-a").VerifyRev == 0 })
		}
		verify("10.0.0.6")
		w.holds(inside(6)...)
		w.becomes(ids[0], "fw-a", parry.StateEnforced)
		before := w.applies()
		verify("10.0.0.6") // another forward changed, of which no block is
		w.idle("fw-a")
		if n := w.applies() - before; n != 0 {
			t.Errorf("%d runs for a forward that no block means", n)
		}
		w.restart(nil) // the lane reads what it knew from the store
		w.idle("fw-a")
		w.holds(inside(6)...)
		if st := w.state("fw-a"); st.Incident.Open() {
			t.Errorf("got %+v", st.Incident)
		}
	})
}

func TestNAT_theConfigurationWinsAndCanTurnTheFirewallsOff(t *testing.T) {
	forwarding(t, func(w *world, fw *firewall) {
		id := w.put("203.0.113.7", at("198.51.100.1", parry.ProtoTCP, 443))
		w.holds("203.0.113.7 10.0.0.5 tcp 8443 wan")
		w.configure(parry.NAT{Forwards: []parry.PortForward{portForward("198.51.100.1", parry.ProtoTCP, 443, "10.0.0.7", 443)}})
		w.holds("203.0.113.7 10.0.0.7 tcp 443 wan")
		w.configure(parry.NAT{IgnoreItsOwn: true})
		w.holds("203.0.113.7 198.51.100.1 tcp 443 wan")
		w.becomes(id, "fw-a", parry.StateEnforced)
	})
}

// configure gives fw-a these forwards, as a changed configuration does.
func (w *world) configure(n parry.NAT) {
	w.t.Helper()
	w.mu.Lock()
	fleet := *w.fleet
	fleet.Firewalls = slices.Clone(fleet.Firewalls)
	fleet.Firewalls[0].NAT = n
	fleet.Firewalls[0].Digest += "x"
	w.fleet = &fleet
	w.mu.Unlock()
	w.must(w.store.SyncFirewalls(w.ctx, fleet.Firewalls))
	w.r.Reload()
}

func TestNAT_aBundleThatFiltersBeforeItGetsWhatWasAskedOrConfigured(t *testing.T) {
	forwarding(t, func(w *world, fw *firewall) {
		w.mu.Lock()
		w.flags, w.digest = nil, strings.Repeat("b", 64)
		w.mu.Unlock()
		w.r.Reload()
		w.put("203.0.113.7", at("198.51.100.1", parry.ProtoTCP, 443))
		w.holds("203.0.113.7 198.51.100.1 tcp 443 wan")
		w.configure(parry.NAT{Forwards: []parry.PortForward{portForward("198.51.100.1", parry.ProtoTCP, 443, "10.0.0.7", 443)}})
		w.holds("203.0.113.7 10.0.0.7 tcp 443 wan")
	})
}

func TestRender_rejectsOfForwardedEntriesComeBackToTheirBlocks(t *testing.T) {
	t.Parallel()
	r := testRenderer()
	var many []parry.PortForward
	for i := range nat.Most + 1 {
		many = append(many, portForward("198.51.100.3", parry.ProtoTCP, uint16(1000+i), fmt.Sprintf("10.0.3.%d", i), 22))
	}
	r.nat = nat.New(nil, append(many,
		portForward("198.51.100.1", parry.ProtoTCP, 443, "10.0.0.5", 8443), portForward("198.51.100.1", parry.ProtoTCP, 80, "10.0.0.5", 8080),
		portForward("198.51.100.2", parry.ProtoTCP, 443, "10.0.0.5", 8443)))
	src, first, second, third := pfx("203.0.113.7"), pfx("198.51.100.1"), pfx("198.51.100.2"), pfx("198.51.100.3")
	out := r.render(1, []standing{
		block(1, parry.Match{Source: src, Destination: first}),
		block(2, parry.Match{Source: src, Destination: second, Protocol: parry.ProtoTCP, Port: 443}),
		block(3, parry.Match{Source: src, Destination: third}),
		block(4, parry.Match{Source: src, Protocol: parry.ProtoTCP, Port: 443}),
		block(5, parry.Match{Source: pfx("203.0.113.0/24"), Destination: pfx("10.0.0.5"), Protocol: parry.ProtoTCP, Port: 8080}),
	})
	// 2 is the same as one of 1's; 5 covers the other one of 1's; 4 stays beside what it means inside
	want := []string{"203.0.113.0/24 10.0.0.5 tcp 8080 wan", "203.0.113.7 - tcp 443 wan", "203.0.113.7 10.0.0.5 tcp 8443 wan"}
	if got := keysOf(out); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := out.lines[2].blocks(), []parry.BlockID{"b-000001", "b-000002", "b-000004"}; !slices.Equal(got, want) {
		t.Errorf("a reject of the third line is of %v, want %v", got, want)
	}
	if len(out.rejects) != 1 || out.rejects["b-000003"] != rejectForwards {
		t.Errorf("rejects %v", out.rejects)
	}
}
