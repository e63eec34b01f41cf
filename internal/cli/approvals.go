package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) approvals() *cobra.Command {
	var all, diff bool
	c := &cobra.Command{
		Use:     "approvals [APPROVAL]",
		Aliases: []string{"approval"},
		Short:   "Look at changes that need somebody's word, and decide",
		Long: `A run that would change too much is not begun: it asks. Nothing is applied to its
firewall until the change is approved, or is another one. An approval is for the change
that it shows; a larger one is asked for anew.`,
		Example: `  parry approvals
  parry approvals a-01JD6QW2Z3X4Y5V6T7S8R9Q0PA --diff
  parry approvals approve a-01JD6QW2Z3X4Y5V6T7S8R9Q0PA --reason "group was renamed"`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			switch {
			case diff && len(args) == 0:
				return fail(ExitUsage, "--diff is of one approval: name it")
			case diff:
				return s.download(cl.GetApprovalDiff(c.Context(), args[0], nil))
			case len(args) == 1:
				r, err := ask(cl.GetApprovalWithResponse(c.Context(), args[0]))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.approvalDetail(r.JSON200) })
			}
			status := api.ListApprovalsParamsStatusOpen
			if all {
				status = api.ListApprovalsParamsStatusAll
			}
			r, err := ask(cl.ListApprovalsWithResponse(c.Context(), &api.ListApprovalsParams{Status: &status}))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.approvalTable(r.JSON200.Items) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that are open no more")
	c.Flags().BoolVar(&diff, "diff", false, "all that would change, an entry a line")
	for _, w := range []struct {
		use, short string
		approve    bool
	}{{"approve", "Let the next run make this change", true}, {"deny", "Leave the firewall as it is, until the change is another", false}} {
		var req api.DecisionRequest
		d := &cobra.Command{
			Use: w.use + " APPROVAL", Short: w.short, Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := s.client(0)
				if err != nil {
					return err
				}
				if w.approve {
					r, err := ask(cl.ApproveWithResponse(c.Context(), args[0], req))
					if err != nil {
						return err
					}
					return s.show(r.Body, func(p *printer) { p.approvalTable([]api.Approval{*r.JSON200}) })
				}
				r, err := ask(cl.DenyWithResponse(c.Context(), args[0], req))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.approvalTable([]api.Approval{*r.JSON200}) })
			},
		}
		d.Flags().StringVar(&req.Reason, "reason", "", "why, for the others")
		c.AddCommand(d)
	}
	return c
}

func (p *printer) approvalTable(items []api.Approval) {
	if len(items) == 0 {
		p.line("no change waits for a word")
		return
	}
	rows := make([]row, len(items))
	for i := range items {
		a := &items[i]
		rows[i] = row{cells: []cell{styled(bold, a.ID), text(a.Firewall), state(a.State), text("-" + strconv.Itoa(a.Removed) + " +" + strconv.Itoa(a.Added)), text(p.ago(a.CreatedAt))},
			notes: []string{inert(a.Why), decidedText(p, a)}}
	}
	p.table([]string{"APPROVAL", "FIREWALL", "STATE", "CHANGE", "ASKED"}, []int{0, 12, 0, 0, 0}, rows)
}

func decidedText(p *printer, a *api.Approval) string {
	if a.DecidedAt.IsZero() {
		return ""
	}
	return "decided " + p.ago(a.DecidedAt) + " by " + inert(a.DecidedBy) + inertPrefix(": ", a.Reason)
}

func (p *printer) approvalDetail(a *api.Approval) {
	p.line("%s  %s", p.paint(bold, inert(a.ID)), p.paint(stateStyle(a.State), inert(string(a.State))))
	until := ""
	if !a.ExpiresAt.IsZero() {
		until = p.left(a.ExpiresAt)
	}
	p.fields(
		text("  firewall"), text(a.Firewall),
		text("  why"), text(a.Why),
		text("  asked"), text(p.ago(a.CreatedAt)+", "+stamp(a.CreatedAt)),
		text("  for another"), text(until),
		text("  decided"), cell{text: decidedText(p, a)},
		text("  change"), text("of "+plural(int64(a.Of), "entry", "entries")+", "+strconv.Itoa(a.Removed)+" removed for no known reason, "+
			strconv.Itoa(a.Ended)+" whose blocks have ended, "+strconv.Itoa(a.Added)+" added"),
	)
	p.diff(a.First, a.Removed+a.Added)
	if a.State == "waiting" || a.State == "denied" {
		p.line("  %s", p.paint(dim, "parry approvals "+inert(a.ID)+" --diff; approve, or deny"))
	}
}

// diff writes the first of n lines of what would change.
func (p *printer) diff(first []string, n int) {
	for _, l := range first {
		st := green
		if strings.HasPrefix(l, "-") {
			st = red
		}
		for i, part := range wrap(inert(l), p.width-4) {
			p.line("  %s%s", strings.Repeat("  ", min(i, 1)), p.paint(st, part))
		}
	}
	if more := n - len(first); more > 0 && len(first) > 0 {
		p.line("  … and %d more", more)
	}
}
