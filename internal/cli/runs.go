package cli

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) runs() *cobra.Command {
	var q api.ListRunsParams
	var st string
	var showLog, showEvents bool
	limit := 20
	c := &cobra.Command{
		Use:   "runs [RUN]",
		Short: "List the runs, or show one with its log",
		Example: `  parry runs --firewall fw-a --state failed
  parry runs r-01JD6QW2Z3X4Y5V6T7S8R9Q0PA --log`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && (showLog || showEvents) {
				return fail(ExitUsage, "--log and --events are of one run: name it")
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			switch {
			case showLog:
				return s.download(cl.GetRunLog(c.Context(), args[0]))
			case showEvents:
				return s.download(cl.GetRunEvents(c.Context(), args[0]))
			case len(args) == 1:
				r, err := ask(cl.GetRunWithResponse(c.Context(), args[0]))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.runDetail(r.JSON200) })
			}
			if st != "" {
				q.State = new(api.RunState(st))
			}
			list, err := s.listRuns(c, cl, q, limit)
			if err != nil {
				return err
			}
			if s.json() {
				return s.rawValue(list)
			}
			return s.human(func(p *printer) { p.runTable(list.Items) })
		},
	}
	f := c.Flags()
	f.Var(optional{&q.Firewall}, "firewall", "on this firewall")
	f.StringVar(&st, "state", "", "running, succeeded, failed or unknown")
	f.IntVar(&limit, "limit", limit, "at most so many; 0 is all")
	f.BoolVar(&showLog, "log", false, "what Ansible wrote")
	f.BoolVar(&showEvents, "events", false, "what Ansible did, one JSON document a line")
	c.MarkFlagsMutuallyExclusive("log", "events")
	return c
}

func (s *shell) listRuns(c *cobra.Command, cl *api.ClientWithResponses, q api.ListRunsParams, limit int) (*api.RunPage, error) {
	out := &api.RunPage{Items: []api.Run{}}
	for {
		q.Limit = new(page)
		if limit > 0 {
			q.Limit = new(min(page, limit-len(out.Items)))
		}
		r, err := ask(cl.ListRunsWithResponse(c.Context(), &q))
		if err != nil {
			return nil, err
		}
		out.Items, out.Next = append(out.Items, r.JSON200.Items...), r.JSON200.Next
		if out.Next == "" || limit > 0 && len(out.Items) >= limit {
			return out, nil
		}
		q.Cursor = new(out.Next)
	}
}

func (p *printer) runTable(items []api.Run) {
	if len(items) == 0 {
		p.line("no runs")
		return
	}
	rows := make([]row, len(items))
	for i := range items {
		r := &items[i]
		took := "-"
		if !r.EndedAt.IsZero() {
			took = short(r.EndedAt.Sub(r.StartedAt))
		}
		note := ""
		if r.Failure != "" {
			note = inert(r.Failure) + inertPrefix(": ", r.Message)
		}
		rows[i] = row{
			cells: []cell{text(r.ID), text(r.Firewall), text(string(r.Kind)), state(r.State), text(p.ago(r.StartedAt)), text(took)},
			notes: []string{note},
		}
	}
	p.table([]string{"RUN", "FIREWALL", "KIND", "STATE", "STARTED", "TOOK"}, []int{0, 12, 0, 0, 0, 0}, rows)
}

func (p *printer) runDetail(r *api.Run) {
	p.line("%s  %s of %s  %s", p.paint(bold, inert(r.ID)), inert(string(r.Kind)), inert(r.Firewall), p.paint(stateStyle(r.State), inert(string(r.State))))
	took := ""
	if !r.EndedAt.IsZero() {
		took = short(r.EndedAt.Sub(r.StartedAt))
	}
	proof := func(x api.Proof) string {
		if x.Sha256 == "" {
			return ""
		}
		return strconv.Itoa(x.Count) + " entries, " + x.Sha256
	}
	changed := ""
	if r.Got.Added+r.Got.Removed > 0 {
		changed = "+" + strconv.Itoa(r.Got.Added) + " -" + strconv.Itoa(r.Got.Removed)
	}
	p.fields(
		text("  failure"), cell{inert(r.Failure), red},
		text("  task"), text(r.Task),
		text("  message"), text(r.Message),
		text("  started"), text(p.ago(r.StartedAt)+", "+stamp(r.StartedAt)),
		text("  took"), text(took),
		text("  sent"), text(strconv.Itoa(r.Sent)+" entries at revision "+strconv.FormatInt(r.Revision, 10)+", epoch "+strconv.FormatInt(r.Epoch, 10)),
		text("  rejected"), text(strings.TrimPrefix(strconv.Itoa(r.Rejected), "0")),
		text("  wanted"), text(proof(r.Want)),
		text("  proved"), text(proof(r.Got)),
		text("  changed"), text(changed),
		text("  bundle"), text(strings.TrimSpace(r.Bundle.Name+" "+r.Bundle.Version+" "+r.Bundle.Digest)),
		text("  commit"), text(r.Bundle.Commit),
	)
	p.line("  %s", p.paint(dim, "parry runs "+inert(r.ID)+" --log"))
	if r.Command != "" { // whole, to be copied
		p.line("  %s\n%s", p.paint(dim, "exactly the same again, by hand:"), inert(r.Command))
	}
	if r.CheckCommand != "" {
		p.line("  %s\n%s", p.paint(dim, "what that would change:"), inert(r.CheckCommand))
	}
}

func (s *shell) exempt() *cobra.Command {
	c := &cobra.Command{
		Use: "exempt", Short: "Keep the never-block list", Args: cobra.NoArgs,
		Example: `  parry exempt add 198.51.100.0/24 --reason "our own range"
  parry exempt list`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "Show everything that is never blocked", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ListExemptionsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.exemptionTable(r.JSON200.Items) })
		},
	})
	var req api.ExemptionRequest
	add := &cobra.Command{
		Use: "add ADDRESS|PREFIX", Short: "Never block a prefix; ends live blocks that overlap it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			req.Prefix = args[0]
			r, err := ask(cl.CreateExemptionWithResponse(c.Context(), req))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) {
				p.exemptionTable([]api.Exemption{r.JSON201.Exemption})
				if n := len(r.JSON201.EndedBlocks); n > 0 {
					p.line("%s ended: %s", plural(int64(n), "block", "blocks"), cut(inert(strings.Join(r.JSON201.EndedBlocks, " ")), 60))
				}
			})
		},
	}
	add.Flags().StringVar(&req.Reason, "reason", "", "why, for the others (required)")
	add.Flags().StringVar(&req.TTL, "for", "", "how `long`: 4h, 30d; left out is without end")
	_ = add.MarkFlagRequired("reason")
	c.AddCommand(add)
	c.AddCommand(&cobra.Command{
		Use: "remove ID|PREFIX", Short: "Take an exemption out; only those made by request", Args: cobra.ExactArgs(1), Aliases: []string{"rm"},
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			id := args[0]
			if !strings.Contains(id, "-") { // an address or prefix: the service tells why one that it did not make stays
				r, err := ask(cl.ListExemptionsWithResponse(c.Context()))
				if err != nil {
					return err
				}
				found := ""
				for _, e := range r.JSON200.Items {
					if e.Prefix == id && (found == "" || e.Source == "api") {
						found = e.ID
					}
				}
				if found == "" {
					return fail(ExitNotFound, "no exemption is of %q", id)
				}
				id = found
			}
			r, err := ask(cl.DeleteExemptionWithResponse(c.Context(), id))
			if err != nil {
				return err
			}
			return s.done(r.StatusCode(), "taken out: "+args[0])
		},
	})
	return c
}

// done tells that something without an answer of its own was done.
func (s *shell) done(status int, what string) error {
	if status != http.StatusNoContent && status != http.StatusOK {
		return refused(status, nil)
	}
	if s.json() {
		return nil
	}
	return s.human(func(p *printer) { p.line("%s", inert(what)) })
}

func (p *printer) exemptionTable(items []api.Exemption) {
	rows := make([]row, len(items))
	for i, e := range items {
		end := ""
		if !e.ExpiresAt.IsZero() {
			end = p.left(e.ExpiresAt)
		}
		rows[i] = row{cells: []cell{styled(bold, e.Prefix), text(string(e.Source)), text(end), text(e.Reason)}}
		if e.Source == "api" {
			rows[i].notes = []string{inert(e.ID + " by " + e.CreatedBy)}
		}
	}
	p.table([]string{"PREFIX", "FROM", "ENDS", "REASON"}, []int{18, 0, 0, 0}, rows)
}
