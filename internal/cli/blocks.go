package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) blocks() *cobra.Command {
	var q api.ListBlocksParams
	var on []string
	var ended, all bool
	limit := 100
	c := &cobra.Command{
		Use:   "blocks [BLOCK]",
		Short: "List blocks, or show one with its requests",
		Example: `  parry blocks --within 8h
  parry blocks --in 203.0.113.0/24 --origin ossim
  parry blocks b-01JD6QW2Z3X4Y5V6T7S8R9Q0PA`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return s.oneBlock(c, cl, args[0])
			}
			switch {
			case all:
				q.Status = new(api.ListBlocksParamsStatusAll)
			case ended:
				q.Status = new(api.ListBlocksParamsStatusEnded)
			}
			if len(on) > 0 {
				q.Firewalls = new(strings.Join(on, ","))
			}
			list, err := s.listBlocks(c, cl, q, limit)
			if err != nil {
				return err
			}
			if s.json() {
				return s.rawValue(list)
			}
			return s.human(func(p *printer) {
				if len(list.Items) == 0 {
					p.line("no blocks")
					return
				}
				p.blockTable(list.Items)
				if list.Next != "" {
					p.line("%s", p.paint(dim, "there are more; see --limit and the filters"))
				}
			})
		},
	}
	f := c.Flags()
	f.Var(optional{&q.Source}, "source", "of exactly this `address` or prefix")
	f.Var(optional{&q.Covering}, "covering", "whose source contains this `address` or prefix")
	f.Var(optional{&q.Within}, "in", "whose source lies in this `prefix`")
	f.StringSliceVar(&on, "on", nil, "with exactly this selector of `firewalls`")
	f.Var(optional{&q.Origin}, "origin", "with this origin")
	f.Var(optional{&q.CreatedBy}, "by", "made by this `token`")
	f.Var(optional{&q.ExpiresWithin}, "within", "that expire within this `duration`")
	f.BoolVar(&ended, "ended", false, "those that ended")
	f.BoolVar(&all, "all", false, "live and ended")
	f.IntVar(&limit, "limit", limit, "at most so many; 0 is all")
	c.MarkFlagsMutuallyExclusive("ended", "all")
	return c
}

const page = 1000

// listBlocks follows the pages until limit (0: to the end).
func (s *shell) listBlocks(c *cobra.Command, cl *api.ClientWithResponses, q api.ListBlocksParams, limit int) (*api.BlockPage, error) {
	out := &api.BlockPage{Items: []api.Block{}}
	for {
		q.Limit = new(page)
		if limit > 0 {
			q.Limit = new(min(page, limit-len(out.Items)))
		}
		r, err := ask(cl.ListBlocksWithResponse(c.Context(), &q))
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

func (p *printer) blockTable(blocks []api.Block) {
	rows := make([]row, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		left := p.left(b.ExpiresAt)
		if !b.EndedAt.IsZero() {
			left = string(b.EndReason)
		}
		var notes []string
		if to := targetText(b); to != "" {
			notes = append(notes, "→ "+to)
		}
		if b.Offence > 1 {
			notes = append(notes, "offence "+strconv.Itoa(b.Offence))
		}
		if why := inert(strings.Trim(b.Origin+": "+b.Reason, ": ")); why != "" {
			notes = append(notes, why)
		}
		rows[i] = row{
			cells: []cell{
				text(b.ID), styled(bold, b.Source), state(b.State), text(strconv.Itoa(b.Enforced) + "/" + strconv.Itoa(b.InScope)), text(left),
			},
			notes: []string{strings.Join(notes, "   ")},
		}
	}
	p.table([]string{"BLOCK", "SOURCE", "STATE", "ON", "EXPIRES"}, []int{0, 18, 0, 7, 8}, rows)
}

func (s *shell) oneBlock(c *cobra.Command, cl *api.ClientWithResponses, id string) error {
	r, err := ask(cl.GetBlockWithResponse(c.Context(), id))
	if err != nil {
		return err
	}
	if s.json() {
		return s.raw(r.Body)
	}
	e, err := ask(cl.ListBlockRequestsWithResponse(c.Context(), id, &api.ListBlockRequestsParams{Limit: new(10)}))
	if err != nil {
		return err
	}
	return s.human(func(p *printer) {
		p.blockDetail(r.JSON200)
		p.evidence(e.JSON200.Items)
	})
}

func (p *printer) blockDetail(b *api.Block) {
	p.line("%s  %s", p.paint(bold, inert(b.ID)), matchText(b))
	end := p.left(b.ExpiresAt)
	if !b.ExpiresAt.IsZero() {
		end = "in " + end + ", " + stamp(b.ExpiresAt)
	}
	ended := ""
	if !b.EndedAt.IsZero() {
		end = ""
		ended = p.ago(b.EndedAt) + ", " + string(b.EndReason)
		if b.EndedBy != "" {
			ended += " by " + b.EndedBy
		}
	}
	p.fields(
		text("  state"), state(b.State),
		text("  firewalls"), text(strings.Join(b.Firewalls, ", ")+" ("+strconv.Itoa(b.Enforced)+"/"+strconv.Itoa(b.InScope)+")"),
		text("  made"), text(p.ago(b.CreatedAt)+" by "+b.CreatedBy),
		text("  expires"), text(end),
		text("  ended"), text(ended),
		text("  requests"), text(strconv.FormatInt(b.Count, 10)),
		text("  origin"), text(b.Origin),
		text("  reason"), text(b.Reason),
		text("  widened"), text(b.Widened),
		text("  offence"), text(offenceText(b.Offence)),
		text("  promoted"), text(promotedText(b)),
	)
	for _, st := range b.Status {
		why := ""
		if st.Reason != "" {
			why = "  " + inert(st.Reason)
		}
		p.line("  %s %s%s", inert(st.Name), p.paint(stateStyle(st.State), inert(string(st.State))), why)
		for _, to := range st.Becomes {
			dst := to.Destination
			if dst == "" {
				dst = "any"
			}
			p.line("    there → %s", inert(portText(dst, to.Protocol, to.DestinationPort, 0)))
		}
		for _, l := range wrap(inert(st.Hint), p.width-4) {
			p.line("    %s", p.paint(dim, l))
		}
	}
}

func (p *printer) evidence(items []api.Evidence) {
	if len(items) == 0 {
		return
	}
	rows := make([]row, len(items))
	for i, e := range items {
		var notes []string
		if e.Source != "" {
			notes = append(notes, "for "+inert(e.Source))
		}
		if e.AlertID != "" {
			notes = append(notes, "alert "+inert(e.AlertID))
		}
		if e.RuleID != "" {
			notes = append(notes, "rule "+inert(e.RuleID))
		}
		if e.Reason != "" {
			notes = append(notes, inert(e.Reason))
		}
		rows[i] = row{
			cells: []cell{text(strconv.FormatInt(e.N, 10)), text(p.ago(e.ReceivedAt)), text(e.Token), text(e.RemoteAddr), text(e.Origin)},
			notes: []string{strings.Join(notes, "   ")},
		}
	}
	p.line("")
	p.table([]string{"REQUEST", "WHEN", "TOKEN", "FROM", "ORIGIN"}, []int{0, 0, 16, 15, 24}, rows)
}

func (s *shell) explain() *cobra.Command {
	return &cobra.Command{
		Use:     "explain ADDRESS|PREFIX",
		Short:   "Tell what stands for or against an address",
		Example: "  parry explain 203.0.113.7",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ExplainWithResponse(c.Context(), &api.ExplainParams{Address: args[0]}))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.explanation(r.JSON200) })
		},
	}
}

func (p *printer) explanation(e *api.Explanation) {
	addr := p.paint(bold, inert(e.Address))
	real := 0
	for i := range e.Blocks {
		if !e.Blocks[i].Simulated {
			real++
		}
	}
	switch {
	case e.Special != "":
		p.line("%s is never blocked: it lies in %s", addr, inert(e.Special))
	case len(e.Exemptions) > 0:
		p.line("%s is never blocked: %s", addr, plural(int64(len(e.Exemptions)), "exemption overlaps it", "exemptions overlap it"))
	case real == 0 && len(e.Blocks) > 0:
		p.line("%s is not blocked; %s for rules that are only simulated", addr, plural(int64(len(e.Blocks)), "block would be", "blocks would be"))
	case len(e.Blocks) > real:
		p.line("%s is blocked by %s, and would be by %d more of rules that are only simulated", addr, plural(int64(real), "block", "blocks"), len(e.Blocks)-real)
	case real > 0:
		p.line("%s is blocked by %s", addr, plural(int64(real), "block", "blocks"))
	default:
		p.line("%s is not blocked, and nothing speaks against blocking it", addr)
	}
	if len(e.Exemptions) > 0 {
		p.line("")
		p.exemptionTable(e.Exemptions)
	}
	if len(e.Lists) > 0 {
		p.line("\n%s", p.paint(dim, "On active lists:"))
		p.entries(e.Lists, true)
	}
	p.offender(&e.Offender)
	for i := range e.Blocks {
		p.line("")
		p.blockDetail(&e.Blocks[i])
		var mine []api.Evidence
		for _, r := range e.Requests {
			if r.BlockID == e.Blocks[i].ID {
				mine = append(mine, r)
			}
		}
		p.evidence(mine)
	}
	if len(e.Loaded) > 0 {
		p.line("\n%s", p.paint(dim, "Loaded on firewalls, with what it dropped:"))
		p.loaded(e.Loaded)
	}
	if len(e.Ended) > 0 {
		p.line("\n%s", p.paint(dim, "Ended before:"))
		p.blockTable(e.Ended)
	}
}

// offender tells of a source's offences, if there are any that count.
func (p *printer) offender(o *api.Offender) {
	if o.Offences > 0 {
		what := plural(int64(o.Offences), "offence", "offences") + ", the last one " + p.ago(o.LastAt)
		if o.Rungs > 0 {
			what += ", rung " + strconv.Itoa(o.Rung) + " of " + strconv.Itoa(o.Rungs)
		}
		p.line("%s: %s", inert(o.Source), what)
		next := "  offence " + strconv.Itoa(o.NextOffence) + " would be blocked for " + inert(o.NextTTL)
		if !o.FallsAt.IsZero() {
			next += "; a rung is lost in " + p.left(o.FallsAt)
		}
		p.line("%s", next)
	}
	p.grace(o)
}

func (p *printer) grace(o *api.Offender) {
	if !o.GraceUntil.IsZero() {
		p.line("  %s until %s, given by %s:", p.paint(yellow, "grace"), stamp(o.GraceUntil), inert(o.GraceBy))
		p.line("    only an operator can have %s blocked again", inert(o.GraceOf))
	}
}

// offenceText is the number of an offence that is not the first.
func offenceText(n int) string {
	if n < 2 {
		return ""
	}
	return strconv.Itoa(n)
}

func promotedText(b *api.Block) string {
	if b.PromotedFrom == 0 {
		return ""
	}
	return strconv.Itoa(b.PromotedFrom) + " of its addresses were asked for"
}
