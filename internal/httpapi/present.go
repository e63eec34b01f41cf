package httpapi

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

// picture is what blocks are looked at with: the fleet as it is configured, and each firewall's state.
type picture struct {
	fleet   *parry.Fleet
	states  map[string]*parry.FirewallState
	becomes func(*parry.Firewall, parry.Match) []parry.Match // as Options.Becomes
}

// picture reads the firewalls' states from the store.
func (s *Server) picture(ctx context.Context) (picture, error) {
	states, err := s.o.Store.Firewalls(ctx)
	if err != nil {
		return picture{}, err
	}
	p := picture{fleet: s.o.Fleet(), becomes: s.o.Becomes, states: make(map[string]*parry.FirewallState, len(states))}
	for i := range states {
		p.states[states[i].Name] = &states[i]
	}
	return p, nil
}

// recent keeps a picture for a moment. It serves only the answer to a block that was made just now: that is newer than every run in the
// picture, so an old picture cannot call it enforced.
type recent struct {
	mu   sync.Mutex
	p    picture
	from time.Time
}

const recentFor = 200 * time.Millisecond

func (s *Server) recentPicture(ctx context.Context) (picture, error) {
	s.recent.mu.Lock()
	defer s.recent.mu.Unlock()
	if age := time.Since(s.recent.from); age < recentFor && s.recent.p.fleet == s.o.Fleet() {
		return s.recent.p, nil
	}
	p, err := s.picture(ctx)
	if err == nil {
		s.recent.p, s.recent.from = p, time.Now()
	}
	return p, err
}

// present shows a block under a picture. rejects are those of the block.
func (p picture) present(b *parry.Block, rejects []parry.Reject) api.Block {
	out := api.Block{
		ID: string(b.ID), Source: parry.FormatPrefix(b.Source), Protocol: string(b.Protocol), DestinationPort: int(b.Port), Interface: b.Interface,
		Firewalls: b.Selector.Names(), Status: []api.BlockStatus{},
		CreatedAt: b.CreatedAt.UTC(), ExpiresAt: utc(b.ExpiresAt), LastAt: utc(b.LastAt), EndedAt: utc(b.EndedAt), EndReason: api.BlockEndReason(b.EndReason),
		EndedBy: b.EndedBy, Count: b.Count, Reason: b.Reason, Origin: b.Origin, CreatedBy: b.CreatedBy, Widened: b.Widened,
		Offence: b.Offence, PromotedFrom: b.Promoted, Simulated: b.Simulated,
	}
	if b.Destination.IsValid() {
		out.Destination = parry.FormatPrefix(b.Destination)
	}
	worst := parry.StateEnforced
	if !b.Live() {
		worst = parry.StateLifted
	}
	scope := p.fleet.Scope(b.Selector)
	if len(scope) == 0 && b.Live() {
		worst = parry.StatePending
	}
	out.InScope = len(scope)
	for _, fw := range scope {
		state := p.states[fw.Name]
		if state == nil {
			state = &parry.FirewallState{Name: fw.Name} // configured, not yet known to the store
		}
		var reject *parry.Reject
		for i := range rejects {
			if rejects[i].Firewall == fw.Name && rejects[i].BlockID == b.ID {
				reject = &rejects[i]
			}
		}
		on := api.BlockStatus{Name: fw.Name}
		st := parry.Derive(b, state, reject != nil)
		on.State = api.BlockState(st)
		switch {
		case st == parry.StateSimulated && b.Simulated:
			on.Reason = "only simulated rules have asked for it"
		case st == parry.StateSimulated, st == parry.StateLifting && state.Simulate:
			on.Reason = "the firewall is simulated"
		case st == parry.StateRejected:
			on.Reason, on.Hint = reject.Code, parry.RejectHint(reject.Code)
		case (st == parry.StateHeld || st == parry.StateLifting) && state.Brake().Held():
			on.Reason = state.Brake().String()
		case st == parry.StateDrifted && state.Incident.Failure != parry.FailProof, (st == parry.StateDegraded || st == parry.StateLifting) && state.Incident.Open():
			on.Reason = string(state.Incident.Failure)
		}
		if p.becomes != nil && (b.Destination.IsValid() || b.Port != 0) {
			on.Becomes = presentMatches(p.becomes(fw, b.Match))
		}
		if st == parry.StateEnforced || st == parry.StateLifting {
			out.Enforced++
		}
		if alarm[st] > alarm[worst] {
			worst = st
		}
		out.Status = append(out.Status, on)
	}
	out.State = api.BlockState(worst)
	return out
}

func presentMatches(all []parry.Match) (out []api.Target) {
	for _, m := range all {
		t := api.Target{Protocol: string(m.Protocol), DestinationPort: int(m.Port)}
		if m.Destination.IsValid() {
			t.Destination = parry.FormatPrefix(m.Destination)
		}
		out = append(out, t)
	}
	return out
}

// alarm orders states by how much they ask for attention.
var alarm = map[parry.State]int{
	parry.StateEnforced: 0, parry.StateSimulated: 1, parry.StatePending: 2, parry.StateHeld: 3, parry.StateRejected: 4, parry.StateDegraded: 5, parry.StateDrifted: 6,
	parry.StateLifted: 0, parry.StateLifting: 1,
}

// settled tells whether waiting longer makes no sense: no firewall is just about to take the block, or to lift it.
func settled(b *api.Block) bool {
	for _, on := range b.Status {
		switch parry.State(on.State) {
		case parry.StatePending:
			return false
		case parry.StateLifting, parry.StateDrifted:
			if on.Reason == "" { // else it is held, or failing
				return false
			}
		}
	}
	return len(b.Status) > 0 || parry.State(b.State) != parry.StatePending
}

// show reads what it takes to present blocks as they are now.
func (s *Server) show(ctx context.Context, blocks ...parry.Block) ([]api.Block, error) {
	p, err := s.picture(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the firewalls: %w", err)
	}
	return s.showIn(ctx, p, blocks)
}

func (s *Server) showIn(ctx context.Context, p picture, blocks []parry.Block) ([]api.Block, error) {
	out := make([]api.Block, len(blocks))
	if len(blocks) == 0 {
		return out, nil
	}
	ids := make([]parry.BlockID, len(blocks))
	for i := range blocks {
		ids[i] = blocks[i].ID
	}
	all, err := s.o.Store.Rejects(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("read the rejects: %w", err)
	}
	byBlock := map[parry.BlockID][]parry.Reject{}
	for _, r := range all {
		byBlock[r.BlockID] = append(byBlock[r.BlockID], r)
	}
	for i := range blocks {
		out[i] = p.present(&blocks[i], byBlock[blocks[i].ID])
	}
	return out, nil
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func presentRequest(r *parry.Request) api.Evidence {
	out := api.Evidence{
		ID: string(r.ID), BlockID: string(r.BlockID), N: r.N, ReceivedAt: r.ReceivedAt.UTC(), EventTime: utc(r.EventTime), TTL: noEnd, Token: r.TokenName,
		RemoteAddr: addr(r.RemoteAddr), Origin: r.Origin, AlertID: r.AlertID, RuleID: r.RuleID, Reason: r.Reason,
	}
	if r.Source.IsValid() {
		out.Source = parry.FormatPrefix(r.Source)
	}
	if r.TTL > 0 {
		out.TTL = parry.FormatTTL(r.TTL)
	}
	return out
}
