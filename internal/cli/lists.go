package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) lists() *cobra.Command {
	c := &cobra.Command{
		Use:   "lists",
		Short: "Show, fill and ask the active lists",
		Long: `Show, fill and ask the active lists. Without a command all lists are shown.
-o csv works with show and lookup.`,
		Example: `  parry lists
  parry lists create bruteforce --type ip --ttl 24h
  parry lists add bruteforce 203.0.113.7 --for 12h --comment "ssh brute force"
  parry lists lookup 203.0.113.7`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ListListsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.lists(r.JSON200.Items) })
		},
	}
	c.AddCommand(s.listsShow(), s.listsCreate(), s.listsDelete(), s.listsAdd(), s.listsRemove(), s.listsLookup())
	return c
}

func (p *printer) lists(items []api.ActiveList) {
	if len(items) == 0 {
		p.line("no lists; `parry lists create` makes one, or the configuration's lists")
		return
	}
	rows := make([]row, len(items))
	for i := range items {
		l := &items[i]
		notes := []string{inert(l.Refresh) + ", at most " + inert(l.MaxTTL)}
		if l.MaxTTL == "none" {
			notes[0] = inert(l.Refresh) + ", for as long as asked"
		}
		if l.Subdomains {
			notes = append(notes, "with subdomains")
		}
		if l.OnHit.Syslog {
			notes = append(notes, "tells hits")
		}
		switch {
		case l.Blocks.TTL != "":
			notes = append(notes, "blocks last "+inert(l.Blocks.TTL))
		case l.Blocks.Instead != "":
			notes = append(notes, "instead of a block: "+inert(l.Blocks.Instead))
		}
		if l.Comment != "" {
			notes = append(notes, inert(l.Comment))
		}
		fill := strconv.Itoa(l.Entries) + "/" + strconv.FormatInt(l.Capacity, 10)
		st := plain
		if int64(l.Entries) >= l.Capacity {
			st = red
		}
		rows[i] = row{
			cells: []cell{styled(bold, l.Name), text(string(l.Type)), styled(st, fill), text(l.TTL), text(string(l.Source))},
			notes: []string{strings.Join(notes, "; ")},
		}
	}
	p.table([]string{"LIST", "TYPE", "ENTRIES", "TTL", "FROM"}, []int{32, 0, 0, 0, 0}, rows)
}

func (s *shell) listsShow() *cobra.Command {
	var q api.ListEntriesParams
	var within, origin, rule, seen, expires string
	limit := 100
	c := &cobra.Command{
		Use:         "show LIST",
		Short:       "Show what stands on a list",
		Example:     "  parry lists show bruteforce --seen 1h --origin wazuh\n  parry lists show bruteforce --limit 0 -o csv >bruteforce.csv",
		Args:        cobra.ExactArgs(1),
		Annotations: givesCSV,
		RunE: func(c *cobra.Command, args []string) error {
			q.Within, q.Origin, q.RuleID, q.SeenWithin, q.ExpiresWithin = some(within), some(origin), some(rule), some(seen), some(expires)
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			out := &api.ListEntryPage{Items: []api.ListEntry{}}
			for more := true; more; {
				n := page
				if limit > 0 {
					n = min(page, limit-len(out.Items))
				}
				q.Limit = &n
				r, err := ask(cl.ListEntriesWithResponse(c.Context(), args[0], &q))
				if err != nil {
					return err
				}
				out.Items, out.Next = append(out.Items, r.JSON200.Items...), r.JSON200.Next
				q.Cursor = &out.Next
				more = out.Next != "" && (limit == 0 || len(out.Items) < limit)
			}
			switch s.output {
			case "json":
				return s.rawValue(out)
			case "csv":
				return s.entriesCSV(out.Items)
			}
			return s.human(func(p *printer) {
				if len(out.Items) == 0 {
					p.line("nothing")
					return
				}
				p.entries(out.Items, false)
				if out.Next != "" {
					p.line("%s", p.paint(dim, "there are more; see --limit and the filters"))
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&within, "in", "", "that lie in this `prefix`")
	f.StringVar(&origin, "origin", "", "with this `origin` among their sources")
	f.StringVar(&rule, "rule", "", "with this `rule`")
	f.StringVar(&seen, "seen", "", "last seen within this `duration`")
	f.StringVar(&expires, "within", "", "that run out within this `duration`")
	f.IntVar(&limit, "limit", limit, "at most so many; 0 is all")
	return c
}

// entries lays entries out, with their lists where they are of several.
func (p *printer) entries(items []api.ListEntry, lists bool) {
	head, caps := []string{"KEY", "COUNT", "LAST SEEN", "EXPIRES", "SOURCES"}, []int{39, 0, 0, 8, 0}
	if lists {
		head, caps = append([]string{"LIST"}, head...), append([]int{24}, caps...)
	}
	rows := make([]row, len(items))
	for i := range items {
		e := &items[i]
		cells := []cell{styled(bold, e.Key), text(strconv.FormatInt(e.Count, 10)), text(p.ago(e.LastSeen)), text(p.left(e.ExpiresAt)),
			text(strings.Join(e.Sources, " "))}
		if lists {
			cells = append([]cell{text(e.List)}, cells...)
		}
		var notes []string
		if e.RuleID != "" {
			notes = append(notes, "rule "+inert(e.RuleID))
		}
		if e.AlertID != "" {
			notes = append(notes, "alert "+inert(e.AlertID))
		}
		if e.Comment != "" {
			notes = append(notes, inert(e.Comment))
		}
		rows[i] = row{cells: cells, notes: []string{strings.Join(notes, "   ")}}
	}
	p.table(head, caps, rows)
}

func (s *shell) listsCreate() *cobra.Command {
	var req api.ActiveListRequest
	var kind, refresh string
	c := &cobra.Command{
		Use:   "create LIST",
		Short: "Make a list",
		Example: `  parry lists create bruteforce --type ip --ttl 24h --max-ttl 30d
  parry lists create phishing --type domain --subdomains --refresh never-shorten`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req.Name, req.Type, req.Refresh = args[0], api.ListType(kind), api.ActiveListRequestRefresh(refresh)
			req.OnHit.Syslog = req.OnHit.Syslog || req.OnHit.Every != ""
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.CreateListWithResponse(c.Context(), req))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.lists([]api.ActiveList{*r.JSON201}) })
		},
	}
	f := c.Flags()
	f.StringVar(&kind, "type", "", "ip, cidr, user, domain or asn")
	f.StringVar(&req.TTL, "ttl", "", "of an entry that names none: a `duration`, or none (24h)")
	f.StringVar(&req.MaxTTL, "max-ttl", "", "the longest that an entry may ask for: a `duration`, or none (30d)")
	f.StringVar(&refresh, "refresh", "", "last-seen, first-seen or never-shorten (last-seen)")
	f.IntVar(&req.Capacity, "capacity", 0, "entries at most (100000)")
	f.StringVar(&req.Comment, "comment", "", "what it is for")
	f.BoolVar(&req.Subdomains, "subdomains", false, "of type domain: an entry stands for every name below it too")
	f.BoolVar(&req.OnHit.Syslog, "tell", false, "tell hits to the syslog server")
	f.StringVar(&req.OnHit.Every, "every", "", "tell of one entry not more often than this `duration` (1m)")
	_ = c.MarkFlagRequired("type")
	return c
}

func (s *shell) listsDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete LIST",
		Short: "Take a list away with all that is on it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if _, err = ask(cl.DeleteListWithResponse(c.Context(), args[0])); err != nil {
				return err
			}
			if s.json() {
				return nil
			}
			return s.human(func(p *printer) { p.line("deleted %s", inert(args[0])) })
		},
	}
}
