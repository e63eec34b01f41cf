package cli

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func (s *shell) firewalls() *cobra.Command {
	c := &cobra.Command{
		Use:     "firewalls [NAME]",
		Aliases: []string{"firewall"},
		Short:   "Show how the firewalls stand, and act on one",
		Example: `  parry firewalls
  parry firewalls fw-a
  parry firewalls retire fw-a --yes`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				r, err := ask(cl.GetFirewallWithResponse(c.Context(), args[0]))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.firewallDetail(r.JSON200) })
			}
			r, err := ask(cl.ListFirewallsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) {
				p.panicLine(r.JSON200.Items)
				p.firewallTable(r.JSON200.Items)
			})
		},
	}
	type answer = func(ctx context.Context, cl *api.ClientWithResponses, name string) ([]byte, *api.Firewall, error)
	act := func(use, short, danger string, do answer, aliases ...string) {
		var yes bool
		a := &cobra.Command{
			Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1), Aliases: aliases,
			RunE: func(c *cobra.Command, args []string) error {
				if danger != "" && !yes {
					return fail(ExitUsage, "%s; repeat with --yes if that is meant", strings.ReplaceAll(danger, "NAME", args[0]))
				}
				cl, err := s.client(0)
				if err != nil {
					return err
				}
				body, fw, err := do(c.Context(), cl, args[0])
				if err != nil {
					return err
				}
				return s.show(body, func(p *printer) { p.firewallTable([]api.Firewall{*fw}) })
			},
		}
		if danger != "" {
			a.Flags().BoolVar(&yes, "yes", false, "do it without asking")
		}
		c.AddCommand(a)
	}
	act("retire", "Empty a firewall, prove it, and forget it", "every block is lifted from NAME, and parry forgets it",
		func(ctx context.Context, cl *api.ClientWithResponses, name string) ([]byte, *api.Firewall, error) {
			r, err := ask(cl.RetireFirewallWithResponse(ctx, name))
			if err != nil {
				return nil, nil, err
			}
			return r.Body, r.JSON202, nil
		})
	act("adopt", "Let the next run take a firewall over", "NAME is taken over from whoever controls it, and entries that this parry does not know are removed",
		func(ctx context.Context, cl *api.ClientWithResponses, name string) ([]byte, *api.Firewall, error) {
			r, err := ask(cl.AdoptFirewallWithResponse(ctx, name))
			if err != nil {
				return nil, nil, err
			}
			return r.Body, r.JSON202, nil
		})
	act("approve", "Approve the change that waits on a firewall; parry approvals shows it", "the change that waits on NAME is made",
		func(ctx context.Context, cl *api.ClientWithResponses, name string) ([]byte, *api.Firewall, error) {
			r, err := ask(cl.ApproveFirewallWithResponse(ctx, name))
			if err != nil {
				return nil, nil, err
			}
			return r.Body, r.JSON202, nil
		})
	act("verify", "Read a firewall back, now, also while it backs off", "",
		func(ctx context.Context, cl *api.ClientWithResponses, name string) ([]byte, *api.Firewall, error) {
			r, err := ask(cl.VerifyFirewallWithResponse(ctx, name))
			if err != nil {
				return nil, nil, err
			}
			return r.Body, r.JSON202, nil
		}, "retry")
	c.AddCommand(s.firewallEntries())
	return c
}

func (p *printer) firewallTable(items []api.Firewall) {
	if len(items) == 0 {
		p.line("no firewalls; list them under firewalls: in the configuration")
		return
	}
	rows := make([]row, len(items))
	for i := range items {
		f := &items[i]
		proved := p.ago(f.ProvedAt)
		if proved == "" {
			proved = "never"
		}
		entries := "-"
		if f.Proof.Sha256 != "" {
			entries = strconv.Itoa(f.Proof.Count)
		}
		bundle := strings.TrimSpace(f.Bundle + " " + f.Used.Version + " " + digest(f.Used.Digest))
		var notes []string
		if f.PinnedBy != "" {
			notes = append(notes, "pinned to "+inert(digest(f.Pin))+" by "+inert(f.PinnedBy))
		}
		if !f.Incident.Since.IsZero() {
			notes = append(notes, failingText(p, &f.Incident)+inertPrefix(": ", f.Incident.Message))
		}
		if f.Approval != "" {
			notes = append(notes, "a change waits for a word: parry approvals "+inert(f.Approval))
		}
		if f.Simulate {
			notes = append(notes, inert(simulationText(p, f)))
		}
		if !f.Hold.Since.IsZero() {
			notes = append(notes, holdText(p, f.Hold))
		}
		rows[i] = row{
			cells: []cell{styled(bold, f.Name), state(f.State), text(entries), text(proved), text(bundle)},
			notes: notes,
		}
	}
	p.table([]string{"FIREWALL", "STATE", "ENTRIES", "PROVED", "BUNDLE"}, []int{24, 0, 0, 0, 0}, rows)
}

// simulationText says what a simulated firewall would become, or what simulated rules would do on one.
func simulationText(p *printer, f *api.Firewall) string {
	x := &f.Simulation
	switch {
	case x.RunID == "" && f.Simulate:
		return "nothing is applied; no check has run yet"
	case x.RunID == "":
		return ""
	}
	return "would add " + strconv.Itoa(x.Added) + ", remove " + strconv.Itoa(x.Removed) + ", hold " + plural(int64(x.Entries), "entry", "entries") + ", " +
		strconv.Itoa(x.Rejected) + " rejected; " + p.ago(x.At) + ": parry runs " + x.RunID + " --log"
}

func inertPrefix(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + inert(s)
}

func holdText(p *printer, h api.Hold) string {
	s := "held " + p.ago(h.Since) + " by " + inert(h.By)
	switch h.Kind {
	case api.HoldKindPanic:
		s = "panic " + p.ago(h.Since) + " by " + inert(h.By) + ", not empty yet"
		if h.Empty {
			s = strings.TrimSuffix(s, "not empty yet") + "proved empty"
		}
	case api.HoldKindFlush:
		s = "emptied " + inert(h.By) + ", noticed " + p.ago(h.Since) + "; when it may be filled again: parry firewalls adopt"
	}
	if !h.Until.IsZero() {
		s += ", for another " + p.left(h.Until)
	}
	return s + inertPrefix(": ", h.Reason)
}

func failingText(p *printer, i *api.Incident) string {
	s := inert(i.Failure) + " since " + short(p.now.Sub(i.Since)) + ", " + plural(int64(i.Attempts), "try", "tries")
	if !i.NextTry.IsZero() {
		if d := i.NextTry.Sub(p.now); d > 0 {
			s += ", next in " + short(d)
		} else {
			s += ", trying"
		}
	}
	return s
}

func (p *printer) firewallDetail(f *api.Firewall) {
	p.line("%s  %s", p.paint(bold, inert(f.Name)), p.paint(stateStyle(f.State), inert(string(f.State))))
	var words []string
	for _, w := range []struct {
		on   bool
		text string
	}{{!f.Listed, "not in the configuration"}, {f.Retiring, "being emptied"}, {f.Adopt, "to be taken over"}, {f.Approved, "may make the change that was asked for"}} {
		if w.on {
			words = append(words, w.text)
		}
	}
	hold, incident, message, proof := "", "", "", ""
	if !f.Hold.Since.IsZero() {
		hold = holdText(p, f.Hold)
	}
	if !f.Incident.Since.IsZero() {
		incident, message = failingText(p, &f.Incident), f.Incident.Message
	}
	if f.Proof.Sha256 != "" {
		proof = plural(int64(f.Proof.Count), "entry", "entries") + " in " + plural(int64(f.Proof.Rules), "rule", "rules")
		if f.Proof.Capacity > 0 {
			proof += ", room for " + strconv.Itoa(f.Proof.Capacity)
		}
		if f.Proof.ExemptSha256 != "" {
			proof += ", behind " + plural(int64(f.Proof.ExemptCount), "exemption", "exemptions")
		}
		proof += ", " + p.ago(f.ProvedAt)
	}
	bundle, pinned, commit := strings.TrimSpace(f.Bundle+" "+f.Used.Version+" "+f.Used.Digest), "", f.Used.Commit
	if f.Pin != "" {
		pinned = f.Pin + " by " + f.PinnedBy
	}
	if f.Canary {
		bundle += ", canary"
	}
	p.fields(
		text("  notes"), text(strings.Join(words, ", ")),
		text("  held"), cell{hold, yellow},
		text("  failing"), cell{incident, red},
		text("  message"), text(message),
		text("  approval"), text(f.Approval),
		text("  drifted"), cell{driftText(p, &f.Drift), red},
		text("  reality"), text(realityText(p, f)),
		text("  simulated"), text(simulationText(p, f)),
		text("  proof"), text(proof),
		text("  sha256"), text(f.Proof.Sha256),
		text("  lane"), text(f.Phase),
		text("  groups"), text(strings.Join(f.Groups, ", ")),
		text("  bundle"), text(bundle),
		text("  commit"), text(commit),
		text("  pinned to"), cell{inert(pinned), yellow},
		text("  interface"), text(f.Interface),
		text("  max rules"), text(strconv.Itoa(f.MaxRules)),
		text("  revision"), text(strconv.FormatInt(f.AppliedRevision, 10)+", dirty "+strconv.FormatInt(f.DirtyRevision, 10)+", epoch "+strconv.FormatInt(f.Epoch, 10)),
		text("  last run"), text(f.LastRun),
	)
	if lines := driftLines(&f.Drift); len(lines) > 0 {
		p.line("")
		p.line("differs from what was proved (- is missing, + should not be there)")
		for _, l := range lines {
			p.line("  %s", inert(l))
		}
	}
	if fs := f.Facts; len(fs.Addresses)+len(fs.Gateways)+len(fs.Resolvers) > 0 {
		p.line("")
		p.line("says of itself (never blocked)")
		p.fields(
			text("  addresses"), text(firstOf(fs.Addresses)),
			text("  gateways"), text(firstOf(fs.Gateways)),
			text("  resolvers"), text(firstOf(fs.Resolvers)),
		)
	}
	if all := f.Facts.Forwards; len(all) > 0 {
		rows := make([]row, min(len(all), shownFacts))
		for i, w := range all[:len(rows)] {
			rows[i] = row{cells: []cell{text(portText(w.Destination, w.Protocol, w.Port, w.PortEnd)), text(portText(w.To, "", w.ToPort, w.ToPort+w.PortEnd-w.Port))}}
		}
		p.line("")
		p.table([]string{"FORWARDS", "TO"}, []int{0, 0}, rows)
		if n := len(all) - len(rows); n > 0 {
			p.line("and %d more: -o json shows all", n)
		}
	}
	p.diff(f.Simulation.First, f.Simulation.Lines)
	if len(f.Rejects) > 0 {
		rows := make([]row, len(f.Rejects))
		for i, r := range f.Rejects {
			rows[i] = row{cells: []cell{text(r.BlockID), styled(red, r.Code), text(p.ago(r.At))}}
		}
		p.line("")
		p.table([]string{"REJECTED", "WHY", "SINCE"}, []int{0, 28, 0}, rows)
	}
}

const shownFacts = 50 // of each kind: a firewall may tell more than a thousand

func firstOf(all []string) string {
	if n := len(all) - shownFacts; n > 0 {
		return strings.Join(all[:shownFacts], ", ") + " and " + strconv.Itoa(n) + " more"
	}
	return strings.Join(all, ", ")
}

// portText writes an address with its ports: "198.51.100.10:8000-8010/tcp".
func portText(address, protocol string, port, end int) string {
	if port > 0 {
		ports := strconv.Itoa(port)
		if end > port {
			ports += "-" + strconv.Itoa(end)
		}
		address = net.JoinHostPort(address, ports)
	}
	if protocol != "" {
		address += "/" + protocol
	}
	return address
}

func (s *shell) hold() *cobra.Command {
	var off, all bool
	var req api.HoldRequest
	var until string
	c := &cobra.Command{
		Use:   "hold NAME | --all",
		Short: "Stop applying to firewalls while accepting goes on",
		Example: `  parry hold fw-a --reason "maintenance" --for 2h
  parry hold --all
  parry hold --off --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return fail(ExitUsage, "name one firewall, or give --all")
			}
			if until != "" {
				var err error
				if req.Until, err = time.Parse(time.RFC3339, until); err != nil {
					return fail(ExitUsage, "--until: write a time such as 2026-11-28T15:00:00Z, or --for 2h")
				}
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			ctx := c.Context()
			var body []byte
			var items []api.Firewall
			switch {
			case all && off:
				r, err := ask(cl.ReleaseAllWithResponse(ctx))
				if err != nil {
					return err
				}
				body, items = r.Body, r.JSON200.Items
			case all:
				r, err := ask(cl.HoldAllWithResponse(ctx, req))
				if err != nil {
					return err
				}
				body, items = r.Body, r.JSON200.Items
			case off:
				r, err := ask(cl.ReleaseFirewallWithResponse(ctx, args[0]))
				if err != nil {
					return err
				}
				body, items = r.Body, []api.Firewall{*r.JSON200}
			default:
				r, err := ask(cl.HoldFirewallWithResponse(ctx, args[0], req))
				if err != nil {
					return err
				}
				body, items = r.Body, []api.Firewall{*r.JSON200}
			}
			return s.show(body, func(p *printer) { p.firewallTable(items) })
		},
	}
	f := c.Flags()
	f.BoolVar(&off, "off", false, "go on applying")
	f.BoolVar(&all, "all", false, "every firewall; stands beside the firewalls' own holds")
	f.StringVar(&req.Reason, "reason", "", "why, for the others")
	f.StringVar(&req.For, "for", "", "it ends by itself after so `long`: 30m, 2h, 1d")
	f.StringVar(&until, "until", "", "it ends by itself at this `time`: 2026-11-28T15:00:00Z")
	c.MarkFlagsMutuallyExclusive("off", "reason")
	c.MarkFlagsMutuallyExclusive("off", "for", "until")
	return c
}
