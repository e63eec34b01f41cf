package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) feeds() *cobra.Command {
	var format, scope, value string
	var family, limit, category, score int
	var aggregate bool
	c := &cobra.Command{
		Use:   "feeds [FEED]",
		Short: "Show the feeds and who reads them, or print one",
		Long: `Show the feeds, who reads them, and how far behind each reader is. With a
name (blocks, or a list's) print that feed as its reader gets it.`,
		Example: `  parry feeds
  parry feeds blocks --format geo --family 4 --aggregate`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				if err := onlyWithName(c); err != nil {
					return err
				}
				r, err := ask(cl.ListFeedsWithResponse(c.Context()))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.feedTables(r.JSON200) })
			}
			if s.json() && format == "" {
				format = string(api.FeedFormatJSON)
			}
			return s.download(cl.GetFeed(c.Context(), args[0], &api.GetFeedParams{
				Format: some(api.FeedFormat(format)), Scope: some(api.FeedScope(scope)), Value: some(value), Family: some(family), Limit: some(limit),
				Category: some(category), Score: some(score), Aggregate: some(aggregate),
			}))
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "", "plain, cidr, csv, json, cdb-wazuh, cdb-ossec, iprep, geo or map")
	f.StringVar(&scope, "scope", "", "of blocks: whole, or all, those of one destination or port too")
	f.IntVar(&family, "family", 0, "4 or 6")
	f.BoolVar(&aggregate, "aggregate", false, "the fewest prefixes that cover the same addresses")
	f.IntVar(&limit, "limit", 0, "the newest so many")
	f.StringVar(&value, "value", "", "what stands beside each key in geo, map and the CDB formats")
	f.IntVar(&category, "category", 0, "of iprep: 1 to 59")
	f.IntVar(&score, "score", 0, "of iprep: 1 to 127")
	return c
}

// some is nil for the zero value, which is that of a flag that was not given.
func some[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// onlyWithName refuses flags that say how to print a feed when none is named.
func onlyWithName(c *cobra.Command) error {
	var given []string
	for _, name := range []string{"format", "scope", "family", "aggregate", "limit", "value", "category", "score"} {
		if c.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 0 {
		return fail(ExitUsage, "%s: name the feed", strings.Join(given, " "))
	}
	return nil
}

func (p *printer) feedTables(l *api.FeedList) {
	if l.AsOf.IsZero() {
		p.line("the feeds are being read")
		return
	}
	rows := make([]row, len(l.Feeds))
	for i, f := range l.Feeds {
		rows[i] = row{cells: []cell{styled(bold, f.Name), text(string(f.Type)), text(strconv.Itoa(f.Entries)), text(p.ago(f.ChangedAt))}}
	}
	p.table([]string{"FEED", "TYPE", "ENTRIES", "CHANGED"}, []int{32, 0, 0, 0}, rows)
	if late := p.now.Sub(l.AsOf); late.Minutes() >= 1 {
		p.line("%s", p.paint(red, "the database cannot be read: these are of "+short(late)+" ago"))
	}
	p.line("")
	if len(l.Readers) == 0 {
		p.line("nobody has read them; `parry token create NAME --role feed` makes a token")
		return
	}
	rows = make([]row, len(l.Readers))
	for i, r := range l.Readers {
		behind := cell{"up to date", green}
		if !r.BehindSince.IsZero() {
			behind = cell{short(p.now.Sub(r.BehindSince)), yellow}
		}
		rows[i] = row{
			cells: []cell{styled(bold, r.Token), text(r.Feed), text(r.RemoteAddr), text(p.ago(r.LastRead)), behind},
			notes: []string{inert(strings.ReplaceAll(r.Form, "&", " ")) + "   " + plural(r.Reads, "read", "reads")},
		}
	}
	p.table([]string{"READER", "FEED", "FROM", "READ", "BEHIND"}, []int{24, 24, 0, 0, 0}, rows)
}
