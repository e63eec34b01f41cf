package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

// shownDrift is how many entries of a drift are shown.
const shownDrift = 10

func driftText(p *printer, d *api.Drift) string {
	if d.Since.IsZero() {
		return ""
	}
	var parts []string
	if d.MissingN > 0 {
		parts = append(parts, plural(int64(d.MissingN), "entry missing", "entries missing"))
	}
	if d.ExtraN > 0 {
		parts = append(parts, strconv.Itoa(d.ExtraN)+" that should not be there")
	}
	if d.Exempt {
		parts = append(parts, "other exemptions")
	}
	if d.Unlisted {
		parts = append(parts, "in what, its bundle does not tell")
	}
	return strings.Join(parts, ", ") + ", since " + p.ago(d.Since)
}

func driftLines(d *api.Drift) []string {
	var out []string
	for _, k := range d.Missing {
		out = append(out, "- "+k)
	}
	for _, k := range d.Extra {
		out = append(out, "+ "+k)
	}
	return out[:min(len(out), shownDrift)]
}

func realityText(p *printer, f *api.Firewall) string {
	if f.Reality == api.RealityUnknown && !f.ProvedAt.IsZero() {
		return "unknown; what is told as enforced is as of " + p.ago(f.ProvedAt)
	}
	return string(f.Reality)
}

func (s *shell) firewallEntries() *cobra.Command {
	var params api.ListFirewallEntriesParams
	var address string
	limit := 100
	c := &cobra.Command{
		Use:     "entries NAME",
		Short:   "Show what a firewall held when it was last read, and what each entry dropped",
		Example: "  parry firewalls entries fw-a --address 203.0.113.7",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			params.Limit = &limit
			if address != "" {
				params.Address = &address
			}
			r, err := ask(cl.ListFirewallEntriesWithResponse(c.Context(), args[0], &params))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.loadedList(r.JSON200) })
		},
	}
	c.Flags().StringVar(&address, "address", "", "only entries whose source contains it")
	c.Flags().IntVar(&limit, "limit", limit, "entries at most, up to 1000")
	return c
}

func (p *printer) loadedList(l *api.LoadedList) {
	if l.At.IsZero() {
		p.line("it has not handed over what it holds; its bundle may have no such list")
		return
	}
	p.line("%s, read %s by %s", plural(int64(l.Total), "entry", "entries"), p.ago(l.At), inert(l.RunID))
	p.loaded(l.Items)
	if l.Next != "" {
		p.line("there are more: --limit, --address")
	}
}

func (p *printer) loaded(items []api.LoadedEntry) {
	if len(items) == 0 {
		return
	}
	rows := make([]row, len(items))
	for i, e := range items {
		what := e.Source
		if e.Destination != "" || e.Port != 0 || e.Protocol != "" {
			to := e.Destination
			if to == "" {
				to = "any"
			}
			what += " → " + portText(to, e.Protocol, e.Port, e.Port)
		}
		packets, bytes := "-", "-"
		if e.Packets != nil {
			packets = strconv.FormatInt(*e.Packets, 10)
		}
		if e.Bytes != nil {
			bytes = strconv.FormatInt(*e.Bytes, 10)
		}
		rows[i] = row{cells: []cell{text(what), text(e.Interface), text(packets), text(bytes)}}
		if e.Firewall != "" {
			rows[i].notes = []string{"on " + e.Firewall + ", read " + p.ago(e.At)}
		}
	}
	p.table([]string{"LOADED", "ON", "PACKETS", "BYTES"}, []int{0, 12, 0, 0}, rows)
}
