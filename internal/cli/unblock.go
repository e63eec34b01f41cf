package cli

import (
	"bufio"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/parry/parry/api"
)

const askBeyond = 10 // blocks that a filter may end without being asked about

// unblockFilter is unblock's other form: what matches instead of what is named.
type unblockFilter struct {
	params   api.DeleteBlocksParams
	on       []string
	port     int
	expires  string
	dry, yes bool
}

func (u *unblockFilter) register(f *pflag.FlagSet) {
	f.Var(optional{&u.params.Source}, "source", "end blocks of exactly this `address` or prefix")
	f.Var(optional{&u.params.Within}, "within", "whose source lies in this `prefix`")
	f.Var(optional{&u.params.Covering}, "covering", "whose source contains this `address` or prefix")
	f.Var(optional{&u.params.Destination}, "to", "with exactly this destination `address` or prefix")
	f.IntVar(&u.port, "port", 0, "with this destination port")
	f.StringSliceVar(&u.on, "on", nil, "with exactly this selector of `firewalls`")
	f.Var(optional{&u.params.Origin}, "origin", "with this origin")
	f.Var(optional{&u.params.CreatedBy}, "by", "made by this `token`")
	f.StringVar(&u.expires, "expires-by", "", "that expire until this `time`, 2006-01-02T15:04:05Z")
	f.BoolVar(&u.dry, "dry-run", false, "only tell what the filter would end")
	f.BoolVar(&u.yes, "yes", false, "end many without asking")
}

// given tells whether any of the flags that filter is there.
func (u *unblockFilter) given(f *pflag.FlagSet) bool {
	for _, name := range []string{"source", "within", "covering", "to", "port", "on", "origin", "by", "expires-by"} {
		if f.Changed(name) {
			return true
		}
	}
	return false
}

func (s *shell) unblockMatching(c *cobra.Command, u *unblockFilter) error {
	q, f := &u.params, c.Flags()
	if f.Changed("port") {
		q.DestinationPort = &u.port
	}
	if f.Changed("on") {
		q.Firewalls = new(strings.Join(u.on, ","))
	}
	if f.Changed("expires-by") {
		at, err := time.Parse(time.RFC3339, u.expires)
		if err != nil {
			return fail(ExitUsage, "--expires-by %q: write a time such as 2006-01-02T15:04:05Z", u.expires)
		}
		q.ExpiresBy = &at
	}
	cl, err := s.client(time.Minute)
	if err != nil {
		return err
	}
	q.DryRun = new(true)
	plan, err := ask(cl.DeleteBlocksWithResponse(c.Context(), q))
	if err != nil {
		return err
	}
	n := plan.JSON200.Matched
	if u.dry {
		return s.show(plan.Body, func(p *printer) {
			p.line("%s would be ended", plural(n, "block", "blocks"))
			for _, id := range plan.JSON200.Blocks {
				p.line("  %s", inert(id))
			}
			if more := n - int64(len(plan.JSON200.Blocks)); more > 0 {
				p.line("  and %d more", more)
			}
		})
	}
	if n == 0 {
		return fail(ExitNotFound, "no live block matches")
	}
	if n > askBeyond && !u.yes {
		if err := s.confirm("End " + plural(n, "block", "blocks") + "?"); err != nil {
			return err
		}
	}
	q.DryRun = nil
	r, err := ask(cl.DeleteBlocksWithResponse(c.Context(), q))
	if err != nil {
		return err
	}
	return s.show(r.Body, func(p *printer) { p.line("%s ended", plural(r.JSON200.Ended, "block", "blocks")) })
}

// confirm asks whoever sits at the terminal; where nobody does, the answer is no.
func (s *shell) confirm(question string) error {
	in, ok := s.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return fail(ExitUsage, "%s Repeat with --yes if that is meant", question)
	}
	if _, err := s.Err.Write([]byte(question + " [y/N] ")); err != nil {
		return err
	}
	answer, _ := bufio.NewReader(in).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return fail(ExitError, "nothing was ended")
	}
	return nil
}
