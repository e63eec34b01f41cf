package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/portable"
)

const (
	importers   = 64  // rows on their way at once
	toldRows    = 100 // refused rows that people are told of
	keptRows    = 10_000
	importWait  = 10 * time.Minute // for one row, with all its tries
	importFiles = "read JSON lines or CSV as parry export writes them; - is standard input"
)

// outcome is what became of a row.
type outcome int

const (
	rowCreated outcome = iota
	rowRefreshed
	rowUnchanged // it was imported before
	rowLifted    // ended here since it was exported
	rowOver      // its time is over
	rowRefused
	outcomes
)

var outcomeNames = [outcomes]string{"created", "refreshed", "unchanged", "lifted", "over", "refused"}

// rowProblem is a row that was refused.
type rowProblem struct {
	Line  int    `json:"line"`
	Row   string `json:"row,omitempty"` // its source, prefix or key
	Error string `json:"error"`
}

// importReport counts what became of the rows.
type importReport struct {
	Rows     int64
	Counts   [outcomes]int64
	DryRun   bool
	Took     time.Duration
	Problems []rowProblem // the first keptRows, by line
}

func (r *importReport) MarshalJSON() ([]byte, error) {
	m := map[string]any{"rows": r.Rows, "dry_run": r.DryRun, "seconds": r.Took.Round(time.Millisecond).Seconds(), "problems": r.Problems}
	for i, name := range outcomeNames {
		m[name] = r.Counts[i]
	}
	return json.Marshal(m)
}

func (s *shell) imports() *cobra.Command {
	c := &cobra.Command{
		Use: "import", Short: "Take in what parry export wrote", Args: cobra.NoArgs,
		Long: `Take in what parry export wrote, or rows written by hand. A row that is refused is
told with its line, and the others go on; the exit code is 1 then. What was
imported before changes nothing, so an import that was cut off is run again.`,
		Example: `  parry import blocks blocks.json --dry-run
  parry import blocks blocks.csv --on edge
  parry export blocks | ssh other parry import blocks -`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(s.importBlocks(), s.importExemptions(), s.importLists())
	return c
}

// blockImport is how rows become block requests.
type blockImport struct {
	on         []string
	again, dry bool
}

func (s *shell) importBlocks() *cobra.Command {
	var o blockImport
	c := &cobra.Command{
		Use: "blocks FILE|-", Short: "Ask for the blocks of a file, until the times that they had", Args: cobra.ExactArgs(1),
		Long: `Ask for the blocks of a file, each until the time that it had where it was
exported. A block that has been lifted here since then stays lifted, but with
--again. Refused are rows that policy, rights or the firewalls here stand against.

` + importFiles + `. A row written by hand needs its source;
ttl is how long, none is without end.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.patientClient(c.Context())
			if err != nil {
				return err
			}
			run := ""
			if o.again {
				run = rand.Text()
			}
			return importFrom(s, c, args[0], portable.Blocks, importers, 1, o.dry, one(func(b *portable.Block) string { return b.Source },
				func(ctx context.Context, b *portable.Block) (outcome, error) {
					req, over := o.request(b, s.Now())
					if over {
						return rowOver, nil
					}
					return importBlock(ctx, cl, &req, run, o.dry)
				}))
		},
	}
	f := c.Flags()
	f.BoolVar(&o.dry, "dry-run", false, "only tell what the service would do")
	f.BoolVar(&o.again, "again", false, "also what was lifted here since it was exported")
	f.StringSliceVar(&o.on, "on", nil, "on these `firewalls` or groups, whatever the file says")
	return c
}

// request asks for a row's block. Its end is exact: the lifetime is whole seconds, and the event's time is where they begin. That lies right
// before the export, so that the same row is the same request each time, and older than what was lifted since; with --again right after now.
func (o *blockImport) request(b *portable.Block, now time.Time) (req api.BlockRequest, over bool) {
	req = api.BlockRequest{
		Source: b.Source, Destination: b.Destination, DestinationPort: b.DestinationPort, Protocol: api.BlockRequestProtocol(b.Protocol),
		Interface: b.Interface, Firewalls: b.Firewalls, TTL: b.TTL, Reason: b.Reason, Origin: b.Origin,
	}
	if len(o.on) > 0 {
		req.Firewalls = o.on
	}
	exported := b.ExportedAt
	if o.again || exported.After(now) {
		exported = time.Time{}
	}
	if b.ExpiresAt.IsZero() {
		if b.TTL == noEnd {
			req.EventTime = exported
		}
		return req, false // by hand, its time begins now
	}
	lasts := b.ExpiresAt.Sub(now).Truncate(time.Second)
	if lasts <= 0 {
		return req, true
	}
	if !exported.IsZero() {
		lasts = (b.ExpiresAt.Sub(exported) + time.Second - 1).Truncate(time.Second)
	}
	req.TTL, req.EventTime = fmt.Sprint(int64(lasts/time.Second)), b.ExpiresAt.Add(-lasts)
	return req, false
}

// importBlock sends one request. Its idempotency key is what it asks for, in this run where there is one.
func importBlock(ctx context.Context, cl *api.ClientWithResponses, req *api.BlockRequest, run string, dry bool) (outcome, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return rowRefused, err
	}
	sum := sha256.Sum256(append([]byte(run), body...))
	params := &api.CreateBlockParams{IdempotencyKey: new("import-" + hex.EncodeToString(sum[:16]))}
	if dry {
		params.DryRun = &dry
	}
	r, err := answered(cl.CreateBlockWithResponse(ctx, params, *req))
	switch {
	case err != nil:
		return rowRefused, err
	case r.StatusCode() == http.StatusCreated, r.StatusCode() == http.StatusNoContent:
		return rowCreated, nil
	case r.JSON200 == nil:
		return rowRefused, refused(r.StatusCode(), nil)
	case !r.JSON200.EndedAt.IsZero() && !dry:
		return rowLifted, nil
	case r.HTTPResponse.Header.Get("Idempotency-Replayed") == "true":
		return rowUnchanged, nil
	}
	return rowRefreshed, nil
}

func (s *shell) importExemptions() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "exemptions FILE|-", Short: "Add the exemptions of a file", Args: cobra.ExactArgs(1),
		Long: `Add the exemptions of a file. One whose prefix is exempt here for as long already
changes nothing. Each ends the live blocks that it overlaps.

` + importFiles + `. A row written by hand needs its prefix
and reason.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.patientClient(c.Context())
			if err != nil {
				return err
			}
			list, err := ask(cl.ListExemptionsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			have := map[string]time.Time{} // until when; the zero time is without end
			for _, x := range list.JSON200.Items {
				if until, ok := have[x.Prefix]; x.Source == api.ExemptionSourceAPI && (!ok || longer(x.ExpiresAt, until)) {
					have[x.Prefix] = x.ExpiresAt
				}
			}
			return importFrom(s, c, args[0], portable.Exemptions, 1, 1, dry, one(func(x *portable.Exemption) string { return x.Prefix },
				func(ctx context.Context, x *portable.Exemption) (outcome, error) {
					return importExemption(ctx, cl, x, have, s.Now(), dry)
				}))
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be added")
	return c
}

func importExemption(ctx context.Context, cl *api.ClientWithResponses, x *portable.Exemption, have map[string]time.Time, now time.Time, dry bool) (outcome, error) {
	prefix := canonical(x.Prefix)
	until, known := have[prefix]
	switch {
	case !x.ExpiresAt.IsZero() && !x.ExpiresAt.After(now):
		return rowOver, nil
	case known && !longer(x.ExpiresAt, until):
		return rowUnchanged, nil
	case !dry:
		_, err := answered(cl.CreateExemptionWithResponse(ctx, api.ExemptionRequest{Prefix: x.Prefix, Reason: x.Reason, ExpiresAt: x.ExpiresAt}))
		if err != nil {
			return rowRefused, err
		}
	}
	have[prefix] = x.ExpiresAt
	if known {
		return rowRefreshed, nil
	}
	return rowCreated, nil
}

// longer compares two ends, of which zero is none.
func longer(a, b time.Time) bool { return !b.IsZero() && (a.IsZero() || a.After(b)) }

// canonical writes an address or prefix as the API does; what is neither stays as it is, to be refused there.
func canonical(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String()
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return parry.FormatPrefix(p.Masked())
	}
	return s
}

// rowError is the service's refusal of one row; other errors end an import.
type rowError struct{ text string }

func (e *rowError) Error() string { return e.text }

// answered tells a refusal that is about the row from one that every row would meet.
func answered[R reply](r R, err error) (R, error) {
	if err != nil {
		return r, unreachable(err)
	}
	_, err = ask(r, nil)
	code := r.StatusCode()
	if err == nil || code == http.StatusUnauthorized || code >= 500 || r.GetApplicationProblemJSONDefault() == nil {
		return r, err
	}
	return r, &rowError{strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// sender carries out some rows and reports each.
type sender[R any] func(ctx context.Context, rows []numbered[R], tell func(line int, what string, got outcome, err error)) error

// one is a sender that takes each row by itself. what names a row to people.
func one[R any](what func(*R) string, send func(context.Context, *R) (outcome, error)) sender[R] {
	return func(ctx context.Context, rows []numbered[R], tell func(int, string, outcome, error)) error {
		for i := range rows {
			got, err := send(ctx, &rows[i].row)
			var refused *rowError
			if err != nil && !errors.As(err, &refused) {
				return err
			}
			tell(rows[i].line, what(&rows[i].row), got, err)
		}
		return nil
	}
}

// importFrom sends every row of a file, in batches of which so many are on their way at once, and reports.
func importFrom[R any](s *shell, c *cobra.Command, name string, t *portable.Table[R], workers, batch int, dry bool, send sender[R]) error {
	in := s.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fail(ExitUsage, "%v", err)
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	rows, err := portable.NewReader(in, t)
	if err != nil {
		return fail(ExitUsage, "%s: %v", name, err)
	}
	i := &importer[R]{report: importReport{DryRun: dry, Problems: []rowProblem{}}, send: send, batch: batch}
	start := s.Now()
	stopped := i.run(c.Context(), rows, workers)
	i.report.Took = s.Now().Sub(start)
	slices.SortFunc(i.report.Problems, func(a, b rowProblem) int { return a.Line - b.Line })
	if err := s.showImport(&i.report); err != nil {
		return err
	}
	switch {
	case stopped != nil:
		var e *exitError
		if !errors.As(stopped, &e) {
			e = &exitError{code: ExitError}
		}
		return fail(e.code, "the import stopped: %v\nwhat came before is in; run it again when that is mended", stopped)
	case i.report.Counts[rowRefused] > 0:
		return &exitError{code: ExitError}
	}
	return nil
}

// importer is one import on its way.
type importer[R any] struct {
	send  sender[R]
	batch int

	mu     sync.Mutex
	report importReport
}

type numbered[R any] struct {
	row  R
	line int
}

// run sends the rows until the end, or until an error that is not about one row.
func (i *importer[R]) run(ctx context.Context, rows *portable.Reader[R], workers int) error {
	g, ctx := errgroup.WithContext(ctx)
	batches := make(chan []numbered[R])
	g.Go(func() error {
		defer close(batches)
		return i.read(ctx, rows, batches)
	})
	for range workers {
		g.Go(func() error {
			for b := range batches {
				if err := i.send(ctx, b, i.count); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (i *importer[R]) read(ctx context.Context, rows *portable.Reader[R], batches chan<- []numbered[R]) error {
	var b []numbered[R]
	flush := func() {
		if len(b) > 0 {
			select {
			case batches <- b:
			case <-ctx.Done():
			}
			b = nil
		}
	}
	defer flush()
	for ctx.Err() == nil {
		row, line, err := rows.Next()
		var bad *portable.RowError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &bad):
			i.count(line, "", rowRefused, err)
			continue
		case err != nil:
			return fmt.Errorf("line %d: %w", line, err)
		}
		if b = append(b, numbered[R]{row, line}); len(b) >= i.batch {
			flush()
		}
	}
	return nil
}

func (i *importer[R]) count(line int, what string, got outcome, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.report.Rows++
	i.report.Counts[got]++
	if err != nil && len(i.report.Problems) < keptRows {
		i.report.Problems = append(i.report.Problems, rowProblem{line, what, err.Error()})
	}
}

func (s *shell) showImport(r *importReport) error {
	if s.json() {
		return s.rawValue(r)
	}
	told := *s.Env
	told.Out = s.Err
	if err := (&shell{Env: &told}).human(func(p *printer) {
		for n, x := range r.Problems {
			if n == toldRows {
				p.line("and %d more", r.Counts[rowRefused]-toldRows)
				break
			}
			p.line("line %d: %s%s", x.Line, inertSuffix(x.Row, ": "), inert(x.Error))
		}
	}); err != nil {
		return err
	}
	return s.human(func(p *printer) { p.line("%s", r.summary()) })
}

func inertSuffix(s, suffix string) string {
	if s == "" {
		return ""
	}
	return inert(s) + suffix
}

func (r *importReport) summary() string {
	text := plural(r.Rows, "row", "rows") + ": "
	if r.DryRun {
		text = "dry run, nothing was done: " + text
	}
	parts := []string{}
	for n, name := range outcomeNames {
		if r.Counts[n] > 0 || n == int(rowCreated) {
			parts = append(parts, fmt.Sprint(r.Counts[n], " ", name))
		}
	}
	text += strings.Join(parts, ", ") + ", in " + short(r.Took)
	if sec := r.Took.Seconds(); sec >= 1 {
		text += fmt.Sprintf(" (%.0f/s)", float64(r.Rows)/sec)
	}
	return text
}
