package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/policy"
)

func (s *Server) presentFirewall(st *parry.FirewallState, b parry.BundleFirewall) api.Firewall {
	out := api.Firewall{
		Name: st.Name, State: condition(st), Listed: st.Listed, Groups: []string{}, Retiring: st.Retiring, Simulate: st.Simulate, Adopt: st.Adopt, Approval: string(st.Approval.ID), Approved: st.Approval.State == parry.ApprovalApproved,
		Reality: api.Reality(st.Reality(s.o.Now(), s.o.Reading)), AppliedRevision: int64(st.AppliedRev), DirtyRevision: int64(st.DirtyRev), Epoch: st.Epoch, ProvedAt: utc(st.ProvedAt), LastRun: string(st.LastRun),
	}
	if fw, ok := s.o.Fleet().Firewall(st.Name); ok {
		out.Groups = append(out.Groups, fw.Groups...)
		out.Bundle, out.Interface, out.MaxRules, out.Canary = fw.Bundle, fw.Interface, fw.MaxRules, fw.Canary
		out.Used, out.Pin = presentBundle(b.Used), fw.Pin
		if out.PinnedBy = b.Choice.PinnedBy; out.PinnedBy != "" {
			out.Pin = b.Choice.Digest
		}
	}
	if s.o.Phase != nil {
		out.Phase = s.o.Phase(st.Name)
	}
	if h := st.Brake(); h.Held() {
		out.Hold = api.Hold{Kind: api.HoldKind(h.Kind), By: h.By, Reason: h.Reason, Since: h.Since.UTC(), Until: utc(h.Until), Empty: st.Emptied()}
	}
	if x := st.Simulation; x.RunID != "" {
		out.Simulation = api.Simulation{
			RunID: string(x.RunID), At: x.At.UTC(), Entries: x.Entries, Added: x.Added, Removed: x.Removed, Rejected: x.Rejected, First: x.First, Lines: x.Lines,
		}
	}
	if i := st.Incident; i.Open() {
		out.Incident = api.Incident{
			ID: string(i.ID), Since: i.Since.UTC(), Failure: string(i.Failure), Message: i.Message, Attempts: i.Attempts, NextTry: utc(i.NextTry),
		}
	}
	if st.Drift.Open() {
		out.Drift = presentDrift(&st.Drift)
	}
	if !st.ProvedAt.IsZero() {
		out.Proof = presentProof(st.Proof)
	}
	return out
}

// have is which copies of their bundles the firewalls have.
func (s *Server) have(c *gin.Context) (map[string]parry.BundleFirewall, error) {
	if s.o.Bundles == nil {
		return nil, nil
	}
	return s.o.Bundles.Firewalls(c.Request.Context())
}

// condition sums a firewall's state up. Blocks that were accepted since its last run are not looked at: their own states tell.
func condition(st *parry.FirewallState) api.FirewallCondition {
	switch {
	case !st.Listed && !st.Retiring:
		return api.FirewallConditionUnlisted
	case st.PanicRev > 0:
		return api.FirewallConditionPanic
	case st.Retiring:
		return api.FirewallConditionRetiring
	case st.Brake().Held():
		return api.FirewallConditionHeld
	case st.Simulate && !st.Incident.Open():
		return api.FirewallConditionSimulated
	case st.Incident.Open():
		return api.FirewallConditionFailing
	case st.DirtyRev > st.AppliedRev || st.ProvedAt.IsZero():
		return api.FirewallConditionPending
	default:
		return api.FirewallConditionProved
	}
}

func presentProof(p parry.Proof) api.Proof {
	return api.Proof{
		Sha256: p.SHA256, Count: p.Count, Added: p.Added, Removed: p.Removed, Rules: p.Rules, Capacity: p.Capacity, Epoch: p.Epoch,
		Controller: p.Controller, MachineID: p.MachineID, RunID: p.RunID, ExemptSha256: p.ExemptSHA256, ExemptCount: p.ExemptCount,
	}
}

func presentFacts(f parry.FirewallFacts) api.FirewallFacts {
	addrs := func(all []netip.Addr) []string {
		out := make([]string, len(all))
		for i, a := range all {
			out[i] = a.String()
		}
		return out
	}
	out := api.FirewallFacts{Addresses: addrs(f.Addresses), Gateways: addrs(f.Gateways), Resolvers: addrs(f.Resolvers), Forwards: []api.PortForward{}}
	for _, w := range f.Forwards {
		out.Forwards = append(out.Forwards, api.PortForward{
			Destination: w.Destination.String(), Protocol: string(w.Protocol), Port: int(w.Port), PortEnd: int(w.PortEnd), To: w.To.String(), ToPort: int(w.ToPort),
		})
	}
	return out
}

func (s *Server) ListFirewalls(c *gin.Context) { s.answerFirewalls(c) }

func (s *Server) answerFirewalls(c *gin.Context) {
	states, err := s.o.Store.Firewalls(c.Request.Context())
	if err != nil {
		s.fail(c, err)
		return
	}
	have, err := s.have(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	out := api.FirewallList{Items: make([]api.Firewall, len(states))}
	for i := range states {
		out.Items[i] = s.presentFirewall(&states[i], have[states[i].Name])
	}
	s.answer(c, http.StatusOK, out)
}

func (s *Server) GetFirewall(c *gin.Context, name api.FirewallName) {
	s.answerFirewall(c, http.StatusOK, name)
}

func (s *Server) answerFirewall(c *gin.Context, status int, name string) {
	st, err := s.o.Store.FirewallState(c.Request.Context(), name)
	if err != nil {
		s.fail(c, err)
		return
	}
	rejects, err := s.o.Store.FirewallRejects(c.Request.Context(), name)
	if err != nil {
		s.fail(c, err)
		return
	}
	have, err := s.have(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	out := s.presentFirewall(&st, have[name])
	if st.FactsRev > 0 {
		facts, err := s.o.Store.Facts(c.Request.Context())
		if err != nil {
			s.fail(c, err)
			return
		}
		out.Facts = presentFacts(facts[name])
	}
	for _, r := range rejects {
		out.Rejects = append(out.Rejects, api.Reject{BlockID: string(r.BlockID), Code: r.Code, RunID: string(r.RunID), At: r.At.UTC()})
	}
	s.answer(c, status, out)
}

// mayTouch tells whether the caller's token lets it change a firewall, or all of them under the name "".
func (s *Server) mayTouch(c *gin.Context, name string) error {
	sel := parry.SelectAll
	if name != "" {
		if _, err := s.o.Store.FirewallState(c.Request.Context(), name); err != nil {
			return err
		}
		sel = parry.Selector(name)
	}
	if err := policy.MayName(principal(c), s.o.Fleet(), sel); err != nil {
		return parry.Errorf(parry.KindForbidden, "%s", err)
	}
	return nil
}

var holdFields = []field[api.HoldRequest]{
	{"reason", func(r *api.HoldRequest, v value) { r.Reason = v.str() }},
	{"for", func(r *api.HoldRequest, v value) { r.For = v.duration() }},
	{"until", func(r *api.HoldRequest, v value) { r.Until = v.time() }},
}

// holdEnd is when a hold ends by itself, zero for never.
func holdEnd(req *api.HoldRequest, now time.Time) (time.Time, error) {
	switch {
	case req.For != "" && !req.Until.IsZero():
		return time.Time{}, parry.Invalid("", "give either for or until, or neither: then the hold stands until it is released")
	case req.For != "":
		d, err := parry.ParseTTL(req.For)
		if err != nil {
			return time.Time{}, parry.Invalid("/for", "%s", err)
		}
		return now.Add(d), nil
	case !req.Until.IsZero() && !req.Until.After(now):
		return time.Time{}, parry.Invalid("/until", "%s is not in the future; to release the hold now, delete it", req.Until.Format(time.RFC3339))
	}
	return req.Until, nil
}

// setHold holds or releases one firewall, or all of them under the name "".
func (s *Server) setHold(c *gin.Context, name string, hold bool) error {
	var h parry.Hold
	if hold {
		var req api.HoldRequest
		if err := decode(s, c, &req, holdFields, false); err != nil {
			return err
		}
		h = parry.Hold{By: principal(c).Token.Name, Reason: req.Reason, Since: s.o.Now()}
		var err error
		if h.Until, err = holdEnd(&req, h.Since); err != nil {
			return err
		}
	}
	if err := s.mayTouch(c, name); err != nil {
		return err
	}
	return s.o.Store.SetHold(c.Request.Context(), name, h)
}

func (s *Server) hold(c *gin.Context, name string, hold bool) {
	if err := s.setHold(c, name, hold); err != nil {
		s.fail(c, err)
		return
	}
	if name == "" {
		s.answerFirewalls(c)
	} else {
		s.answerFirewall(c, http.StatusOK, name)
	}
}

func (s *Server) HoldFirewall(c *gin.Context, name api.FirewallName)    { s.hold(c, name, true) }
func (s *Server) ReleaseFirewall(c *gin.Context, name api.FirewallName) { s.hold(c, name, false) }
func (s *Server) HoldAll(c *gin.Context)                                { s.hold(c, "", true) }
func (s *Server) ReleaseAll(c *gin.Context)                             { s.hold(c, "", false) }

// order passes an operator's word on to a firewall's lane. One that is no longer listed has none.
func (s *Server) order(c *gin.Context, name string, give func(ctx context.Context, name string) error) {
	err := s.mayTouch(c, name)
	if err == nil {
		err = s.listed(c, name)
	}
	if err == nil {
		err = give(c.Request.Context(), name)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.answerFirewall(c, http.StatusAccepted, name)
}

func (s *Server) listed(c *gin.Context, name string) error {
	st, err := s.o.Store.FirewallState(c.Request.Context(), name)
	if err == nil && !st.Listed {
		err = parry.Errorf(parry.KindConflict, "%s is gone from the configuration, so parry does not reach it: list it again and reload parry first", name)
	}
	return err
}

func (s *Server) RetireFirewall(c *gin.Context, name api.FirewallName) {
	s.order(c, name, s.o.Store.SetRetiring)
}
func (s *Server) AdoptFirewall(c *gin.Context, name api.FirewallName) {
	s.order(c, name, s.o.Store.SetAdopt)
}
func (s *Server) ApproveFirewall(c *gin.Context, name api.FirewallName) {
	s.order(c, name, func(ctx context.Context, name string) error {
		st, err := s.o.Store.FirewallState(ctx, name)
		if err == nil && st.Approval.ID == "" {
			err = parry.Errorf(parry.KindConflict, "no change of %s waits for approval", name)
		}
		if err == nil {
			_, err = s.decide(c, st.Approval.ID, true, "")
		}
		return err
	})
}
func (s *Server) VerifyFirewall(c *gin.Context, name api.FirewallName) {
	s.order(c, name, s.o.Store.SetVerify)
}

// firewallsCheck is a line of /readyz: what waits for an operator.
func (s *Server) firewallsCheck(ctx context.Context) []string {
	states, err := s.o.Store.Firewalls(ctx)
	if err != nil {
		return nil // the database's own line tells
	}
	var out []string
	for _, st := range states {
		switch {
		case !st.Listed && st.Proof.Count > 0:
			out = append(out, st.Name+" is gone from the configuration and may still hold entries: list it again, then parry firewalls retire "+st.Name)
		case st.Emptied():
			out = append(out, st.Name+" is "+st.Hold.String()+"; empty and held: parry panic --off")
		case st.PanicRev > 0 && st.Incident.Open():
			out = append(out, st.Name+" is "+st.Hold.String()+"; NOT empty yet, it is failing: "+string(st.Incident.Failure))
		case st.PanicRev > 0:
			out = append(out, st.Name+" is "+st.Hold.String()+"; being emptied")
		case st.Brake().Kind == parry.HoldFlush:
			out = append(out, st.Name+" was "+st.Brake().String()+" and stays empty; when it may be filled again: parry firewalls adopt "+st.Name)
		case st.Incident.Failure == parry.FailApproval && st.Approval.ID != "":
			out = append(out, st.Name+" waits for approval: parry approvals "+string(st.Approval.ID))
		case st.Incident.Open() && st.Hold.Held():
			out = append(out, st.Name+" is failing: "+string(st.Incident.Failure)+", and "+st.Hold.String())
		case st.Incident.Open():
			out = append(out, st.Name+" is failing: "+string(st.Incident.Failure))
		case st.Simulate && !st.Hold.Held():
			out = append(out, st.Name+" is simulated: nothing is applied to it")
		case st.Hold.Held():
			out = append(out, st.Name+" is "+st.Hold.String())
		case st.Listed && st.Reality(s.o.Now(), s.o.Reading) == parry.RealityUnknown:
			out = append(out, unread(&st))
		}
	}
	slices.Sort(out)
	return out
}
