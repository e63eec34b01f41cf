package cli

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/config"
)

// panicLook is how often the firewalls are looked at while they are being emptied.
const panicLook = 500 * time.Millisecond

func (s *shell) panic() *cobra.Command {
	var req api.PanicRequest
	var off, yes bool
	wait := "30s"
	c := &cobra.Command{
		Use:   "panic [NAME...]",
		Short: "Empty the firewalls now, and keep them empty until --off",
		Long: `Empty all firewalls, or those that are named (groups, too), prove it, and keep
them empty. Holds, backoffs and approvals do not stop it; a firewall that cannot be
reached is emptied as soon as it answers. Requests are accepted meanwhile and wait.

Blocks stay, and come back with --off. With --end those end that mean none but these
firewalls. Exit 5 says that not every firewall has proved yet that it is empty.`,
		Example: `  parry panic --yes --reason "blocks our own customers"
  parry panic fw-a --yes
  parry panic --off`,
		RunE: func(c *cobra.Command, args []string) error {
			patience, err := config.ParseDuration(wait)
			if err != nil {
				return fail(ExitUsage, "--wait: %v", err)
			}
			if !off && !yes {
				on := "all firewalls"
				if len(args) > 0 {
					on = strings.Join(args, ", ")
				}
				return fail(ExitUsage, "every block is lifted from %s, at once, and none is applied until `parry panic --off`; repeat with --yes if that is meant", on)
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if off {
				var p api.EndPanicParams
				if len(args) > 0 {
					p.Firewalls = new(strings.Join(args, ","))
				}
				r, err := ask(cl.EndPanicWithResponse(c.Context(), &p))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) {
					p.line("the panic is over: what stands comes back")
					p.firewallTable(r.JSON202.Firewalls)
				})
			}
			req.Firewalls = args
			r, err := ask(cl.PanicWithResponse(c.Context(), req))
			if err != nil {
				return withoutParry(err)
			}
			body, out := r.Body, r.JSON202
			if patience > 0 && !s.json() {
				if err := s.human(func(p *printer) { p.panicHead(out, args) }); err != nil {
					return err
				}
			}
			empty, err := s.untilEmpty(c.Context(), cl, out, patience)
			if err != nil {
				return err
			}
			if patience > 0 && s.json() {
				err = s.rawValue(out)
			} else {
				err = s.show(body, func(p *printer) {
					if patience == 0 {
						p.panicHead(out, args)
					}
					p.firewallTable(out.Firewalls)
				})
			}
			if err == nil && !empty && patience > 0 {
				return &exitError{code: ExitUnproved}
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&req.Reason, "reason", "", "why, for the others")
	f.BoolVar(&req.End, "end", false, "end the blocks, too: they do not come back")
	f.BoolVar(&off, "off", false, "it is over: let what stands come back")
	f.BoolVar(&yes, "yes", false, "do it without asking")
	f.StringVar(&wait, "wait", wait, "wait so `long` for the firewalls' proof; 0s: not at all")
	c.MarkFlagsMutuallyExclusive("off", "reason")
	c.MarkFlagsMutuallyExclusive("off", "end")
	return c
}

// withoutParry adds to an error of a panic what to do when parry cannot.
func withoutParry(err error) error {
	var e *exitError
	if errors.As(err, &e) && (e.code == ExitUnreachable || e.code == ExitError) {
		return fail(e.code, "%s\nnothing was done. Without parry and its database, on the Ansible host, for each firewall:\n"+
			"ansible-playbook -i INVENTORY BUNDLES/pfsense/flush.yml --limit NAME   (docs/OPERATIONS.md, Emergency)", e.text)
	}
	return err
}

// untilEmpty looks at the firewalls of a panic until all have proved that they are empty, or the time is over. Those that are gone from the
// configuration are not waited for: parry does not reach them.
func (s *shell) untilEmpty(ctx context.Context, cl *api.ClientWithResponses, out *api.Panic, d time.Duration) (bool, error) {
	isEmpty := func(f api.Firewall) bool { return f.Hold.Empty || !f.Listed }
	for end := time.Now().Add(d); ; {
		empty := !slices.ContainsFunc(out.Firewalls, func(f api.Firewall) bool { return !isEmpty(f) })
		if empty || !time.Now().Before(end) {
			return empty, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(panicLook):
		}
		r, err := ask(cl.ListFirewallsWithResponse(ctx))
		if err != nil {
			return false, err
		}
		out.Firewalls = slices.DeleteFunc(r.JSON200.Items, func(f api.Firewall) bool {
			return !slices.ContainsFunc(out.Firewalls, func(was api.Firewall) bool { return was.Name == f.Name })
		})
	}
}

func (p *printer) panicHead(out *api.Panic, names []string) {
	on := "all firewalls"
	if len(names) > 0 {
		on = inert(strings.Join(names, ", "))
	}
	p.line("%s nothing is to be blocked on %s any more", p.paint(red, "PANIC:"), on)
	if out.EndedBlocks > 0 {
		p.line("  %s ended and will not come back; others do with: parry panic --off", plural(int64(out.EndedBlocks), "block was", "blocks were"))
	} else {
		p.line("  the blocks stay, and come back with: parry panic --off")
	}
}

// panicLine warns above a table of firewalls while some are in panic.
func (p *printer) panicLine(items []api.Firewall) {
	in, empty := 0, 0
	for i := range items {
		if items[i].Hold.Kind == api.HoldKindPanic {
			in++
			if items[i].Hold.Empty {
				empty++
			}
		}
	}
	if in > 0 {
		p.line("%s %s of %d, %d proved empty; over with: parry panic --off", p.paint(red, "PANIC on"), strconv.Itoa(in), len(items), empty)
	}
}
