package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/audit"
	"github.com/parry/parry/internal/parry"
)

func (s *shell) audit() *cobra.Command {
	var q api.ListAuditParams
	var since, until string
	limit := 50
	c := &cobra.Command{
		Use: "audit", Short: "Show who did what; verify and export it", Args: cobra.NoArgs,
		Example: `  parry audit --actor anna --since 24h
  parry audit --action token --limit 0
  parry audit verify
  parry audit export >audit.jsonl; parry audit verify audit.jsonl`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if q.Since, err = s.moment("--since", since); err != nil {
				return err
			}
			if q.Until, err = s.moment("--until", until); err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			out := &api.AuditPage{Items: []api.AuditRow{}}
			for {
				q.Limit = new(page)
				if limit > 0 {
					q.Limit = new(min(page, limit-len(out.Items)))
				}
				r, err := ask(cl.ListAuditWithResponse(c.Context(), &q))
				if err != nil {
					return err
				}
				out.Items, out.Next = append(out.Items, r.JSON200.Items...), r.JSON200.Next
				if out.Next == "" || limit > 0 && len(out.Items) >= limit {
					break
				}
				q.Cursor = new(out.Next)
			}
			if s.json() {
				return s.rawValue(out)
			}
			return s.human(func(p *printer) { p.auditTable(out.Items) })
		},
	}
	f := c.Flags()
	f.Var(optional{&q.Actor}, "actor", "by this `name` or token's id")
	f.Var(optional{&q.Action}, "action", "this `action`, or all of a noun: block.end, block")
	f.Var(optional{&q.Object}, "object", "on this `object`: a block's id, a firewall's name")
	f.StringVar(&since, "since", "", "not before this `time`, or so long ago: 24h, 2026-03-01T12:00:00Z")
	f.StringVar(&until, "until", "", "before this `time`, or so long ago")
	f.IntVar(&limit, "limit", limit, "at most so many; 0 is all")
	c.AddCommand(s.auditVerify(), s.auditExport())
	return c
}

// moment reads a time, or how long ago it was.
func (s *shell) moment(flag, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return &t, nil
	}
	d, err := parry.ParseTTL(text)
	if err != nil {
		return nil, fail(ExitUsage, "%s %q: write a time such as 2026-03-01T12:00:00Z, or how long ago: 24h", flag, text)
	}
	return new(s.Now().Add(-d)), nil
}

func (p *printer) auditTable(items []api.AuditRow) {
	if len(items) == 0 {
		p.line("no rows")
		return
	}
	rows := make([]row, len(items))
	for i := range items {
		r := &items[i]
		when := r.Time
		if t, err := time.Parse(time.RFC3339, r.Time); err == nil {
			when = t.Format("01-02 15:04:05")
		}
		outcome := text(r.Outcome)
		switch r.Outcome {
		case "done", "succeeded":
			outcome.style = green
		default:
			outcome.style = red
		}
		note := r.Object
		if r.Remote != "" && r.Remote != "socket" {
			note += "  from " + r.Remote
		}
		if r.Detail != "" {
			note += "  " + r.Detail
		}
		rows[i] = row{
			cells: []cell{text(strconv.FormatInt(r.Seq, 10)), text(when), styled(bold, r.Actor), text(r.Action), outcome},
			notes: []string{inert(strings.TrimSpace(note))},
		}
	}
	p.table([]string{"ROW", "UTC", "WHO", "DID", "OUTCOME"}, []int{0, 0, 20, 0, 0}, rows)
}

// exportWithin is how long an export may take beside the usual patience.
const exportWithin = time.Hour

func (s *shell) auditExport() *cobra.Command {
	var q api.ExportAuditParams
	var after int64
	c := &cobra.Command{
		Use: "export", Short: "Write the whole chain out, one JSON document a line", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := s.client(exportWithin)
			if err != nil {
				return err
			}
			if after != 0 {
				q.After = &after
			}
			return s.download(cl.ExportAudit(c.Context(), &q))
		},
	}
	c.Flags().Int64Var(&after, "after", 0, "only rows after this `number`")
	return c
}

func (s *shell) auditVerify() *cobra.Command {
	var told []string
	c := &cobra.Command{
		Use: "verify [FILE]", Short: "Find out whether the audit was touched", Args: cobra.MaximumNArgs(1),
		Long: `Fetch the chain and hold it against its head, or verify an exported FILE ("-" is
standard input) without the service. A break is named, and the exit code is 1.

Whoever can write to parry's database can write the whole chain anew. Heads that
parry logged ("audit head") cannot be changed there: give one or more by --head.`,
		Example: `  parry audit verify --head 4711:8d1f…
  parry audit verify audit.jsonl --head 4711:8d1f…`,
		RunE: func(c *cobra.Command, args []string) error {
			var anchors []audit.Anchor
			for _, t := range told {
				seq, hash, ok := strings.Cut(t, ":")
				n, err := strconv.ParseInt(seq, 10, 64)
				if !ok || err != nil || len(hash) != len(audit.Genesis) {
					return fail(ExitUsage, "--head %q: write a row's number, a colon and its hash, as the log has them", t)
				}
				anchors = append(anchors, audit.Anchor{Seq: n, Hash: strings.ToLower(hash)})
			}
			in := s.In
			switch {
			case len(args) == 0:
				cl, err := s.client(exportWithin)
				if err != nil {
					return err
				}
				head, err := ask(cl.GetAuditHeadWithResponse(c.Context()))
				if err != nil {
					return err
				}
				if h := head.JSON200; h.Seq > 0 {
					anchors = append(anchors, audit.Anchor{Seq: h.Seq, Hash: h.Hash})
				}
				r, err := cl.ExportAudit(c.Context(), &api.ExportAuditParams{})
				if err != nil {
					return unreachable(err)
				}
				defer r.Body.Close() //nolint:errcheck // read only
				if err := downloadable(r); err != nil {
					return err
				}
				in = r.Body
			case args[0] != "-":
				f, err := os.Open(args[0])
				if err != nil {
					return fail(ExitError, "%v", err)
				}
				defer f.Close() //nolint:errcheck // read only
				in = f
			}
			rep, err := audit.Verify(auditLines(in), anchors...)
			if err != nil {
				return fail(ExitError, "%v", err)
			}
			if err := s.verified(&rep); err != nil {
				return err
			}
			if n := len(rep.Problems); n > 0 {
				return fail(ExitError, "the chain is broken in %s", plural(int64(n), "place", "places"))
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&told, "head", nil, "`SEQ:HASH` that the chain must pass through, from the log or a note of yours")
	return c
}

// verified tells what was found.
func (s *shell) verified(rep *audit.Report) error {
	if s.json() {
		type problem struct {
			Seq    int64  `json:"seq"`
			Kind   string `json:"kind"`
			Detail string `json:"detail"`
		}
		problems := []problem{}
		for _, p := range rep.Problems {
			problems = append(problems, problem{p.Seq, string(p.Kind), p.Detail})
		}
		return s.rawValue(map[string]any{"rows": rep.Rows, "first": rep.First, "last": rep.Last, "hash": rep.Hash, "whole": len(problems) == 0, "problems": problems})
	}
	return s.human(func(p *printer) {
		for _, b := range rep.Problems {
			p.line("%s  row %d: %s", p.paint(red, inert(string(b.Kind))), b.Seq, inert(b.Detail))
		}
		switch {
		case rep.Rows == 0 && len(rep.Problems) == 0:
			p.line("there are no rows")
		case len(rep.Problems) == 0:
			p.line("%s  %s, %d to %d", p.paint(green, "whole"), plural(rep.Rows, "row", "rows"), rep.First, rep.Last)
			p.line("head  %d:%s", rep.Last, inert(rep.Hash))
		}
	})
}

// auditLines reads an export.
func auditLines(in io.Reader) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		lines := bufio.NewReaderSize(in, 64<<10)
		for n := 1; ; n++ {
			line, err := lines.ReadBytes('\n')
			if len(line) == 0 && errors.Is(err, io.EOF) {
				return
			}
			var r audit.Row
			if err != nil && !errors.Is(err, io.EOF) {
				err = fmt.Errorf("read line %d: %w", n, err)
			} else if err = json.Unmarshal(line, &r); err != nil || r.Seq < 1 || len(r.Hash) != len(audit.Genesis) {
				err = errors.Join(fmt.Errorf("line %d is no row of an export", n), err)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
