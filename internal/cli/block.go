package cli

import (
	"crypto/rand"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/config"
)

func (s *shell) block() *cobra.Command {
	var req api.BlockRequest
	var wait *string
	var proto string
	c := &cobra.Command{
		Use:   "block ADDRESS|PREFIX",
		Short: "Block a source, or refresh its block",
		Long: `Block a source on the firewalls in scope. A repeat refreshes the block: its end
becomes the later one. With --wait the answer tells what the firewalls proved.`,
		Example: `  parry block 203.0.113.7
  parry block 203.0.113.7 --to 198.51.100.10 --port 22 --for 4h \
      --reason "ssh brute force" --wait 30s`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			patience, err := parseWait(wait)
			if err != nil {
				return err
			}
			cl, err := s.client(patience)
			if err != nil {
				return err
			}
			req.Source, req.Protocol = args[0], api.BlockRequestProtocol(proto)
			start := s.Now()
			r, err := ask(cl.CreateBlockWithResponse(c.Context(), &api.CreateBlockParams{Wait: wait, IdempotencyKey: new(rand.Text())}, req))
			if err != nil {
				return err
			}
			var b *api.Block
			for _, v := range []*api.Block{r.JSON200, r.JSON201, r.JSON202} {
				if v != nil {
					b = v
				}
			}
			if b == nil {
				return refused(r.StatusCode(), nil)
			}
			if s.json() {
				err = s.raw(r.Body)
			} else {
				err = s.human(func(p *printer) { p.blockLine(b, wait != nil, s.Now().Sub(start)) })
			}
			if err == nil && wait != nil && (r.StatusCode() == http.StatusAccepted || b.State != "enforced") {
				return &exitError{code: ExitUnproved}
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&req.Destination, "to", "", "only to this destination `address` or prefix")
	f.IntVar(&req.DestinationPort, "port", 0, "only to this destination port")
	f.StringVar(&proto, "proto", "", "only this protocol: tcp, udp, tcp/udp, icmp, sctp, esp, ah, gre")
	f.StringVar(&req.Interface, "interface", "", "on this interface instead of the firewall's default")
	f.StringSliceVar(&req.Firewalls, "on", nil, "`firewalls` or groups, all, or default")
	f.StringVar(&req.TTL, "for", "", "how `long`: 4h, 2d12h, none (without end, needs the right)")
	f.StringVar(&req.Reason, "reason", "", "why")
	f.StringVar(&req.Origin, "origin", "cli", "who saw it")
	f.StringVar(&req.AlertID, "alert-id", "", "the alert's id, kept as evidence")
	f.StringVar(&req.RuleID, "rule-id", "", "the rule's id, kept as evidence")
	f.Var(optional{&wait}, "wait", "wait so `long` for the firewalls' proof (at most 2m); exit 5 without it")
	return c
}

func parseWait(s *string) (time.Duration, error) {
	if s == nil {
		return 0, nil
	}
	d, err := config.ParseDuration(*s)
	if err != nil {
		return 0, fail(ExitUsage, "--wait: %v", err)
	}
	return d, nil
}

// blockLine tells what became of one request.
func (p *printer) blockLine(b *api.Block, waited bool, took time.Duration) {
	p.line("%s  %s", p.paint(bold, inert(b.ID)), matchText(b))
	end := "never expires"
	if !b.ExpiresAt.IsZero() {
		end = "expires in " + p.left(b.ExpiresAt)
	}
	on := p.paint(stateStyle(b.State), inert(string(b.State))) + " on " + strconv.Itoa(b.Enforced) + "/" + strconv.Itoa(b.InScope) + " firewalls"
	if b.State != "enforced" { // the worst state; some firewalls may have it
		on = p.paint(stateStyle(b.State), inert(string(b.State))) + ", enforced on " + strconv.Itoa(b.Enforced) + "/" + strconv.Itoa(b.InScope) + " firewalls"
	}
	if waited {
		on += " after " + short(took)
	}
	offence := ""
	if b.Offence > 1 {
		offence = ", " + p.paint(yellow, "offence "+strconv.Itoa(b.Offence))
	}
	p.line("  %s, %s, request %d%s", on, end, b.Count, offence)
	if b.PromotedFrom > 0 {
		p.line("  promoted: %d of its addresses were asked for", b.PromotedFrom)
	}
	if b.NotPromoted != "" {
		p.line("  not promoted to its prefix: %s", inert(b.NotPromoted))
	}
	if b.Widened != "" {
		p.line("  widened: the firewalls' rules are used up; dropped from the match: %s", inert(b.Widened))
	}
	p.statuses(b)
}

// statuses tells of the firewalls that do not have a block as it should be.
func (p *printer) statuses(b *api.Block) {
	for _, st := range b.Status {
		if st.State == "enforced" || st.State == "lifted" || st.Reason == "" {
			continue
		}
		for i, l := range wrap(inert(st.Name+" "+string(st.State)+": "+st.Reason), p.width-4) {
			p.line("  %s%s", strings.Repeat("  ", min(i, 1)), l)
		}
	}
}

// matchText is "203.0.113.7 → 198.51.100.10:22/tcp".
func matchText(b *api.Block) string {
	if to := targetText(b); to != "" {
		return inert(b.Source) + " → " + to
	}
	return inert(b.Source)
}

func targetText(b *api.Block) string {
	to := b.Destination
	if b.DestinationPort != 0 {
		switch {
		case to == "":
			to = "any"
		case strings.Contains(to, ":"):
			to = "[" + to + "]"
		}
		to += ":" + strconv.Itoa(b.DestinationPort)
	}
	if b.Protocol != "" && b.Protocol != "any" {
		if to == "" {
			to = "any"
		}
		to += "/" + strings.ReplaceAll(b.Protocol, "/", "+")
	}
	if b.Interface != "" {
		to += " on " + b.Interface
	}
	return inert(strings.TrimSpace(to))
}

func (s *shell) unblock() *cobra.Command {
	var wait, grace *string
	var in string
	var forget bool
	var filter unblockFilter
	c := &cobra.Command{
		Use:   "unblock BLOCK|ADDRESS|PREFIX...",
		Short: "End blocks, by id, by source, or all that match a filter",
		Long: `End blocks: those that are named, or, with --source, --within, --origin and so on
and no name, all live ones that match every one of these.

With --grace, or a grace in the configuration, only an operator can have the source
blocked again for so long. With --grace or --forget a block that has ended already will
do: --grace 0 ends a grace.`,
		Example: `  parry unblock 203.0.113.7 --wait 30s
  parry unblock 203.0.113.7 --forget --grace 2h
  parry unblock b-01JD6QW2Z3X4Y5V6T7S8R9Q0PA --in 10m
  parry unblock --within 203.0.113.0/24 --origin ossim --dry-run`,
		RunE: func(c *cobra.Command, args []string) error {
			switch matching := filter.given(c.Flags()); {
			case matching && (len(args) > 0 || in != "" || wait != nil || grace != nil || forget):
				return fail(ExitUsage, "name blocks, or give filters; --wait, --in, --grace and --forget go with names")
			case matching:
				return s.unblockMatching(c, &filter)
			case filter.dry:
				return fail(ExitUsage, "--dry-run goes with a filter: --source, --within, --origin, …")
			case len(args) == 0:
				return fail(ExitUsage, "name a block, an address or a prefix, or give a filter: --source, --within, --origin, …")
			}
			patience, err := parseWait(wait)
			if err != nil {
				return err
			}
			cl, err := s.client(patience)
			if err != nil {
				return err
			}
			var ids []string
			for _, a := range args {
				found, err := s.resolve(c, cl, a, forget || grace != nil)
				if err != nil {
					return err
				}
				ids = append(ids, found...)
			}
			unproved := false
			for _, id := range ids {
				if in != "" {
					r, err := ask(cl.UpdateBlockWithResponse(c.Context(), id, api.BlockUpdate{TTL: in}))
					if err != nil {
						return err
					}
					if err := s.show(r.Body, func(p *printer) { p.blockLine(r.JSON200, false, 0) }); err != nil {
						return err
					}
					continue
				}
				start := s.Now()
				r, err := ask(cl.DeleteBlockWithResponse(c.Context(), id, &api.DeleteBlockParams{Wait: wait, Grace: grace, Forget: &forget}))
				if err != nil {
					return err
				}
				e := r.JSON200
				if e == nil {
					e = r.JSON202
				}
				if e == nil {
					return refused(r.StatusCode(), nil)
				}
				unproved = unproved || wait != nil && (r.StatusCode() == http.StatusAccepted || e.Block.State != "lifted")
				if err := s.show(r.Body, func(p *printer) { p.endedLine(e, wait != nil, s.Now().Sub(start)) }); err != nil {
					return err
				}
			}
			if unproved {
				return &exitError{code: ExitUnproved}
			}
			return nil
		},
	}
	c.Flags().Var(optional{&wait}, "wait", "wait so `long` for the firewalls' proof (at most 2m); exit 5 without it")
	c.Flags().StringVar(&in, "in", "", "end so `long` from now instead of at once: shortens or extends")
	c.Flags().Var(optional{&grace}, "grace", "for so `long` only an operator can have it blocked again; 0: anyone at once")
	c.Flags().BoolVar(&forget, "forget", false, "forget the source's offences")
	c.MarkFlagsMutuallyExclusive("wait", "in")
	filter.register(c.Flags())
	c.MarkFlagsMutuallyExclusive("grace", "in")
	c.MarkFlagsMutuallyExclusive("forget", "in")
	return c
}

// show prints the API's JSON or what f says to people.
func (s *shell) show(body []byte, f func(p *printer)) error {
	if s.json() {
		return s.raw(body)
	}
	return s.human(f)
}

// resolve turns an id, or an address that has live blocks, into ids; the newest one that has ended will do if asked.
func (s *shell) resolve(c *cobra.Command, cl *api.ClientWithResponses, arg string, ended bool) ([]string, error) {
	if strings.HasPrefix(arg, "b-") {
		return []string{arg}, nil
	}
	if _, err := netip.ParseAddr(arg); err != nil {
		if _, err := netip.ParsePrefix(arg); err != nil {
			return nil, fail(ExitUsage, "%q is neither a block's id (b-…) nor an address nor a prefix", arg)
		}
	}
	list, err := s.listBlocks(c, cl, api.ListBlocksParams{Source: &arg}, 0)
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 && ended {
		status := api.ListBlocksParamsStatusEnded
		if list, err = s.listBlocks(c, cl, api.ListBlocksParams{Source: &arg, Status: &status}, 1); err != nil {
			return nil, err
		}
	}
	if len(list.Items) == 0 {
		cover, err := s.listBlocks(c, cl, api.ListBlocksParams{Covering: &arg}, 10)
		if err != nil {
			return nil, err
		}
		text := "no live block of " + arg
		for _, b := range cover.Items {
			text += "\nbut " + b.Source + " covers it: parry unblock " + b.ID
		}
		return nil, fail(ExitNotFound, "%s", text)
	}
	ids := make([]string, len(list.Items))
	for i, b := range list.Items {
		ids[i] = b.ID
	}
	return ids, nil
}

func (p *printer) endedLine(e *api.EndedBlock, waited bool, took time.Duration) {
	b := &e.Block
	p.line("%s  %s", p.paint(bold, inert(b.ID)), matchText(b))
	on := "still on " + strconv.Itoa(b.Enforced) + "/" + strconv.Itoa(b.InScope) + " firewalls"
	if b.Enforced == 0 {
		on = "off " + strconv.Itoa(b.InScope) + "/" + strconv.Itoa(b.InScope) + " firewalls"
	}
	if waited {
		on += " after " + short(took)
	}
	p.line("  %s, %s", p.paint(stateStyle(b.State), inert(string(b.State))), on)
	p.statuses(b)
	p.grace(&e.Offender)
	for i := range e.StillCoveredBy {
		o := &e.StillCoveredBy[i]
		p.line("  %s: %s still covers the source", p.paint(yellow, inert(o.ID)), matchText(o))
	}
}
