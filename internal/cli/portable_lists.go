package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/portable"
)

const listBatch = 1000 // rows that are put at once

func (s *shell) exportLists() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "lists [NAME...]", Short: "Write active lists out with what stands on them",
		Long: `Write all active lists out, or those that are named, with what stands on them.
Lists of the configuration come without their definition: the other parry has a
configuration of its own.`,
		RunE: func(c *cobra.Command, args []string) error {
			f, err := parseFormat(format)
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			lists, err := ask(cl.ListListsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			for _, name := range args {
				if !slices.ContainsFunc(lists.JSON200.Items, func(l api.ActiveList) bool { return l.Name == name }) {
					return fail(ExitNotFound, "there is no list %q", name)
				}
			}
			return exportTo(s, f, portable.Entries, func(write func(*portable.Entry) error) error {
				for i := range lists.JSON200.Items {
					l := &lists.JSON200.Items[i]
					if len(args) > 0 && !slices.Contains(args, l.Name) {
						continue
					}
					if l.Source == api.ActiveListSourceAPI {
						if err := write(portableList(l)); err != nil {
							return err
						}
					}
					if err := eachEntry(c.Context(), cl, l.Name, func(e *api.ListEntry) error { return write(portableEntry(e)) }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	formatFlag(c, &format)
	return c
}

func portableList(l *api.ActiveList) *portable.Entry {
	return &portable.Entry{
		List: l.Name, Type: string(l.Type), TTL: l.TTL, MaxTTL: l.MaxTTL, Refresh: l.Refresh, Capacity: int(l.Capacity), Comment: l.Comment,
		Subdomains: l.Subdomains, HitSyslog: l.OnHit.Syslog, HitEvery: l.OnHit.Every,
	}
}

func portableEntry(e *api.ListEntry) *portable.Entry {
	p := &portable.Entry{
		List: e.List, Type: string(e.Type), Key: e.Key, ExpiresAt: e.ExpiresAt, LastSeen: e.LastSeen, Comment: e.Comment, AlertID: e.AlertID, RuleID: e.RuleID,
		Count: int(e.Count), FirstSeen: e.FirstSeen, PutBy: e.PutBy,
	}
	if e.ExpiresAt.IsZero() {
		p.TTL = noEnd
	}
	if len(e.Sources) > 0 {
		p.Origin = e.Sources[0]
	}
	return p
}

func eachEntry(ctx context.Context, cl *api.ClientWithResponses, list string, f func(*api.ListEntry) error) error {
	q := api.ListEntriesParams{Limit: new(page)}
	for {
		r, err := ask(cl.ListEntriesWithResponse(ctx, list, &q))
		if err != nil {
			return err
		}
		for i := range r.JSON200.Items {
			if err := f(&r.JSON200.Items[i]); err != nil {
				return err
			}
		}
		if r.JSON200.Next == "" {
			return nil
		}
		q.Cursor = &r.JSON200.Next
	}
}

func (s *shell) importLists() *cobra.Command {
	o := &listImport{known: map[string]*knownList{}, now: s.Now}
	c := &cobra.Command{
		Use: "lists FILE|-", Short: "Make the lists of a file, and put its entries on them", Args: cobra.ExactArgs(1),
		Long: `Make the lists of a file where there are none of their names, and put its entries
on them, each until the time that it had. An entry that is on its list with as
late a sight and end changes nothing; counts begin anew.

` + importFiles + `. A row written by hand needs its
list (or --list) and key.`,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.cl, err = s.patientClient(c.Context()); err != nil {
				return err
			}
			lists, err := ask(o.cl.ListListsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			for _, l := range lists.JSON200.Items {
				o.known[l.Name] = &knownList{typ: string(l.Type)}
			}
			return importFrom(s, c, args[0], portable.Entries, 1, listBatch, o.dry, o.send)
		},
	}
	c.Flags().BoolVar(&o.dry, "dry-run", false, "only tell what would be put; the keys themselves are not checked")
	c.Flags().StringVar(&o.list, "list", "", "put rows that name no list on this one")
	return c
}

// listImport is one import of lists; its rows come in order.
type listImport struct {
	cl    *api.ClientWithResponses
	known map[string]*knownList
	now   func() time.Time
	dry   bool
	list  string
}

// knownList is a list here. Its entries are read when the first of them is asked for.
type knownList struct {
	typ     string
	planned bool // in a dry run: it would be made
	entries map[string]sight
}

type sight struct{ last, until time.Time } // until: zero is without end

// send makes lists, and puts runs of entries of one list.
func (o *listImport) send(ctx context.Context, rows []numbered[portable.Entry], tell func(int, string, outcome, error)) error {
	for i := range rows {
		if r := &rows[i].row; r.List == "" {
			r.List = o.list
		}
	}
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[0].row.Key != "" && rows[n].row.Key != "" && rows[n].row.List == rows[0].row.List {
			n++
		}
		part := rows[:n]
		rows = rows[n:]
		var err error
		if part[0].row.Key == "" {
			err = one(name, o.make)(ctx, part, tell)
		} else {
			err = o.put(ctx, part, tell)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func name(e *portable.Entry) string { return cmp.Or(e.Key, e.List) }

// make makes a list where there is none of its name.
func (o *listImport) make(ctx context.Context, l *portable.Entry) (outcome, error) {
	if have := o.known[l.List]; have != nil {
		if have.typ != l.Type {
			return rowRefused, &rowError{fmt.Sprintf("there is a list %s of type %s, not %s", l.List, have.typ, l.Type)}
		}
		return rowUnchanged, nil
	}
	if !o.dry {
		req := api.ActiveListRequest{
			Name: l.List, Type: api.ListType(l.Type), TTL: l.TTL, MaxTTL: l.MaxTTL, Refresh: api.ActiveListRequestRefresh(l.Refresh), Capacity: l.Capacity,
			Comment: l.Comment, Subdomains: l.Subdomains, OnHit: api.ListOnHit{Syslog: l.HitSyslog, Every: l.HitEvery},
		}
		if _, err := answered(o.cl.CreateListWithResponse(ctx, req)); err != nil {
			return rowRefused, err
		}
	}
	o.known[l.List] = &knownList{typ: l.Type, planned: o.dry, entries: map[string]sight{}}
	return rowCreated, nil
}

// put puts entries of one list: all at once, and one by one when the service takes not all of them.
func (o *listImport) put(ctx context.Context, rows []numbered[portable.Entry], tell func(int, string, outcome, error)) error {
	list := rows[0].row.List
	have, err := o.entries(ctx, list)
	if err != nil {
		var row *rowError
		if !errors.As(err, &row) {
			return err
		}
		for i := range rows {
			tell(rows[i].line, rows[i].row.Key, rowRefused, err)
		}
		return nil
	}
	var fresh []numbered[portable.Entry]
	var puts []api.ListEntryPut
	for i := range rows {
		e := &rows[i].row
		p, over := entryPut(e, o.now())
		at, known := have[e.Key]
		switch {
		case over:
			tell(rows[i].line, e.Key, rowOver, nil)
		case known && !p.SeenAt.IsZero() && !p.SeenAt.After(at.last) && !longer(e.ExpiresAt, at.until):
			tell(rows[i].line, e.Key, rowUnchanged, nil)
		case o.dry && known:
			tell(rows[i].line, e.Key, rowRefreshed, nil)
		case o.dry:
			tell(rows[i].line, e.Key, rowCreated, nil)
		default:
			fresh, puts = append(fresh, rows[i]), append(puts, p)
		}
	}
	if len(puts) == 0 {
		return nil
	}
	r, err := answered(o.cl.PutEntriesWithResponse(ctx, list, api.ListEntryBatch{Entries: puts}))
	var refused *rowError
	switch {
	case errors.As(err, &refused):
		i := -1
		return one(name, func(ctx context.Context, e *portable.Entry) (outcome, error) {
			i++
			return o.putOne(ctx, list, &puts[i])
		})(ctx, fresh, tell)
	case err != nil:
		return err
	case r.JSON200 == nil:
		return refusedAnswer(r.StatusCode())
	}
	for n, got := range map[outcome]int{rowCreated: r.JSON200.Added, rowRefreshed: r.JSON200.Refreshed, rowLifted: r.JSON200.Late} {
		for range got {
			tell(0, "", n, nil)
		}
	}
	return nil
}

func refusedAnswer(status int) error { return refused(status, nil) }

func (o *listImport) putOne(ctx context.Context, list string, p *api.ListEntryPut) (outcome, error) {
	r, err := answered(o.cl.PutEntryWithResponse(ctx, list, *p))
	switch {
	case err != nil:
		return rowRefused, err
	case r.JSON201 != nil:
		return rowCreated, nil
	case r.JSON200 == nil:
		return rowRefused, refusedAnswer(r.StatusCode())
	case r.JSON200.Late > 0:
		return rowLifted, nil
	}
	return rowRefreshed, nil
}

// entries is what stands on a list here.
func (o *listImport) entries(ctx context.Context, list string) (map[string]sight, error) {
	have := o.known[list]
	if have == nil {
		return nil, &rowError{fmt.Sprintf("there is no list %q here: make it, or list it in the configuration", list)}
	}
	if have.entries == nil {
		m := map[string]sight{}
		if err := eachEntry(ctx, o.cl, list, func(e *api.ListEntry) error { m[e.Key] = sight{e.LastSeen, e.ExpiresAt}; return nil }); err != nil {
			return nil, err
		}
		have.entries = m
	}
	return have.entries, nil
}

// entryPut is a row as the API takes it; over tells that its time has passed. Its end is exact, as a block's is: the sight lies up to a second
// before the row's.
func entryPut(e *portable.Entry, now time.Time) (p api.ListEntryPut, over bool) {
	p = api.ListEntryPut{Key: e.Key, TTL: e.TTL, SeenAt: e.LastSeen, Comment: e.Comment, AlertID: e.AlertID, RuleID: e.RuleID, Origin: e.Origin}
	if e.ExpiresAt.IsZero() {
		return p, false
	}
	from := e.LastSeen
	if from.IsZero() || from.After(now) {
		from = now
	}
	if !e.ExpiresAt.After(now) {
		return p, true
	}
	lasts := (e.ExpiresAt.Sub(from) + time.Second - 1).Truncate(time.Second)
	p.TTL, p.SeenAt = fmt.Sprint(int64(lasts/time.Second)), e.ExpiresAt.Add(-lasts)
	return p, false
}
