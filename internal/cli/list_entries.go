package cli

import (
	"bufio"
	"encoding/csv"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

const (
	keyBatch  = 10_000 // keys in one request
	maxKeys   = 1_000_000
	maxKeyLen = 1024
)

// keys gives the arguments, with "-" standing for the lines of standard input; empty lines and those that begin with "#" are passed over.
func (s *shell) keys(args []string) (out []string, err error) {
	for _, a := range args {
		if a != "-" {
			out = append(out, a)
			continue
		}
		lines := bufio.NewScanner(s.In)
		lines.Buffer(make([]byte, 0, 4096), 4*maxKeyLen)
		for lines.Scan() {
			k := strings.TrimSpace(lines.Text())
			if k == "" || k[0] == '#' {
				continue
			}
			if len(out) == maxKeys {
				return nil, fail(ExitUsage, "there are more than %d keys: give them in parts", maxKeys)
			}
			out = append(out, k)
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			return nil, fail(ExitUsage, "line %d is longer than a key can be", len(out)+1)
		} else if err != nil {
			return nil, fail(ExitError, "read the keys: %v", err)
		}
	}
	if len(out) == 0 {
		return nil, fail(ExitUsage, "there is no key: give some, or - and one a line")
	}
	return out, nil
}

func (s *shell) listsAdd() *cobra.Command {
	var e api.ListEntryPut
	c := &cobra.Command{
		Use:   "add LIST KEY...|-",
		Short: "Put keys on a list, or refresh them",
		Long: `Put keys on a list, or refresh them; "-" reads one a line. Up to 10,000 are put
at once, all or none; what was put before stays when a later part is refused.`,
		Example: `  parry lists add bruteforce 203.0.113.7 --for 12h --comment "ssh brute force"
  parry lists add bruteforce - <addresses`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := s.keys(args[1:])
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			sum := api.ListPutResult{List: args[0]}
			for part := range slices.Chunk(keys, keyBatch) {
				entries := make([]api.ListEntryPut, len(part))
				for i, k := range part {
					entries[i] = e
					entries[i].Key = k
				}
				r, err := ask(cl.PutEntriesWithResponse(c.Context(), args[0], api.ListEntryBatch{Entries: entries}))
				if err != nil {
					return s.inPart(err, sum.Added+sum.Refreshed+sum.Late)
				}
				sum.Added, sum.Refreshed, sum.Late = sum.Added+r.JSON200.Added, sum.Refreshed+r.JSON200.Refreshed, sum.Late+r.JSON200.Late
			}
			if s.json() {
				return s.rawValue(sum)
			}
			return s.human(func(p *printer) {
				p.line("%s: %d added, %d refreshed", p.paint(bold, inert(args[0])), sum.Added, sum.Refreshed)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&e.TTL, "for", "", "how long: a `duration`, or none where the list allows that")
	f.StringVar(&e.Comment, "comment", "", "why")
	f.StringVar(&e.Origin, "origin", "", "who saw it")
	f.StringVar(&e.RuleID, "rule", "", "the rule that saw it")
	f.StringVar(&e.AlertID, "alert", "", "the alert that it comes from")
	return c
}

// inPart says what was put before an error.
func (s *shell) inPart(err error, done int) error {
	var e *exitError
	if done == 0 || !errors.As(err, &e) {
		return err
	}
	return fail(e.code, "%s\nthe first %d keys were put", e.text, done)
}

func (s *shell) listsRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove LIST KEY...|-",
		Short:   "Take keys off a list",
		Example: "  parry lists remove bruteforce 203.0.113.7",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := s.keys(args[1:])
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			removed, missing := 0, []string{}
			for _, k := range keys {
				_, err := ask(cl.DeleteEntryWithResponse(c.Context(), args[0], &api.DeleteEntryParams{Key: k}))
				var e *exitError
				switch {
				case err == nil:
					removed++
				case errors.As(err, &e) && e.code == ExitNotFound:
					missing = append(missing, e.text)
				default:
					return err
				}
			}
			if !s.json() {
				if err := s.human(func(p *printer) { p.line("%s: %d removed", p.paint(bold, inert(args[0])), removed) }); err != nil {
					return err
				}
			}
			if len(missing) > 0 {
				return fail(ExitNotFound, "%s", strings.Join(missing, "\n"))
			}
			return nil
		},
	}
}

func (s *shell) listsLookup() *cobra.Command {
	var on string
	c := &cobra.Command{
		Use:   "lookup KEY...|-",
		Short: "Tell which lists keys are on",
		Long: `Tell which lists keys are on; "-" reads one a line. Ends with 3 when none of
them is on any. A hit may be told to the syslog server, as any other.`,
		Example: `  parry lists lookup 203.0.113.7
  parry lists lookup --on bruteforce - <addresses -o csv`,
		Args:        cobra.MinimumNArgs(1),
		Annotations: givesCSV,
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := s.keys(args)
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			answers := make([]api.Lookup, 0, len(keys))
			if on == "" {
				for _, k := range keys {
					r, err := ask(cl.LookupWithResponse(c.Context(), &api.LookupParams{Key: k}))
					if err != nil {
						return err
					}
					answers = append(answers, *r.JSON200)
				}
			}
			for part := range slices.Chunk(keys, keyBatch) {
				if on == "" {
					break
				}
				r, err := ask(cl.LookupManyOnListWithResponse(c.Context(), on, api.ListKeys{Keys: part}))
				if err != nil {
					return err
				}
				for _, l := range r.JSON200.Items {
					a := api.Lookup{Key: l.Key, Found: l.Found, Entries: []api.ListEntry{}}
					if l.Found {
						a.Entries = append(a.Entries, l.Entry)
					}
					answers = append(answers, a)
				}
			}
			return s.lookups(answers)
		},
	}
	c.Flags().StringVar(&on, "on", "", "on this `list` only")
	return c
}

func (s *shell) lookups(answers []api.Lookup) (err error) {
	var found []api.ListEntry
	var none []string
	for _, a := range answers {
		found = append(found, a.Entries...)
		if !a.Found {
			none = append(none, a.Key)
		}
	}
	switch s.output {
	case "json":
		err = s.rawValue(answers)
	case "csv":
		err = s.entriesCSV(found)
	default:
		err = s.human(func(p *printer) {
			if len(found) > 0 {
				p.entries(found, true)
			}
			for _, k := range none[:min(len(none), 20)] {
				p.line("%s is on no list", p.paint(bold, inert(k)))
			}
			if more := len(none) - 20; more > 0 {
				p.line("and %d more", more)
			}
		})
	}
	if err == nil && len(found) == 0 {
		return &exitError{code: ExitNotFound}
	}
	return err
}

// givesCSV marks commands that take -o csv.
var givesCSV = map[string]string{"csv": "yes"}

// entriesCSV writes entries with a line of names. A cell that a spreadsheet would take for a formula begins with an apostrophe.
func (s *shell) entriesCSV(items []api.ListEntry) error {
	w := csv.NewWriter(s.Out)
	write := func(cells ...string) {
		for i, c := range cells {
			if c != "" && strings.ContainsRune("=+-@\t\r\n'", rune(c[0])) {
				cells[i] = "'" + c
			}
		}
		_ = w.Write(cells) // told by Error
	}
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	write("list", "type", "key", "count", "first_seen", "last_seen", "expires_at", "sources", "comment", "alert_id", "rule_id", "put_by")
	for i := range items {
		e := &items[i]
		write(e.List, string(e.Type), e.Key, strconv.FormatInt(e.Count, 10), stamp(e.FirstSeen), stamp(e.LastSeen), stamp(e.ExpiresAt),
			strings.Join(e.Sources, " "), e.Comment, e.AlertID, e.RuleID, e.PutBy)
	}
	w.Flush()
	if err := w.Error(); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return nil
}
