package cli

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

const shortDigest = 12

func digest(d string) string { return d[:min(len(d), shortDigest)] }

func (s *shell) bundles() *cobra.Command {
	var list *cobra.Command
	c := &cobra.Command{
		Use: "bundles", Aliases: []string{"bundle"}, Short: "Show the playbooks' versions, and choose among them", Args: cobra.NoArgs,
		Example: `  parry bundles
  parry bundles diff
  parry bundles check --firewall fw-a
  parry bundles rollback
  parry bundles use 0f3a9c --firewall fw-a
  parry bundles use current`,
		RunE: func(c *cobra.Command, args []string) error { return list.RunE(c, args) },
	}
	list = &cobra.Command{
		Use: "list [NAME]", Aliases: []string{"ls"}, Short: "Show the copies that are kept, and who has which", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				r, err := ask(cl.GetBundleWithResponse(c.Context(), args[0]))
				if err != nil {
					return err
				}
				return s.show(r.Body, func(p *printer) { p.bundleDetail(r.JSON200) })
			}
			r, err := ask(cl.ListBundlesWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) {
				for i := range r.JSON200.Items {
					if i > 0 {
						p.line("")
					}
					p.bundleDetail(&r.JSON200.Items[i])
				}
			})
		},
	}
	c.AddCommand(list, s.bundleDiff(), s.bundleCheck(), s.bundleUse(), s.bundleRollback())
	return c
}

// bundleName is the bundle that is meant: the one named, a firewall's, the one that has a copy whose digest begins so, or the only one.
func (s *shell) bundleName(ctx context.Context, cl *api.ClientWithResponses, named, firewall, prefix string) (string, error) {
	if named != "" {
		return named, nil
	}
	if firewall != "" {
		r, err := ask(cl.GetFirewallWithResponse(ctx, firewall))
		if err != nil {
			return "", err
		}
		return r.JSON200.Bundle, nil
	}
	r, err := ask(cl.ListBundlesWithResponse(ctx))
	if err != nil {
		return "", err
	}
	var all, have []string
	for _, b := range r.JSON200.Items {
		all = append(all, b.Name)
		if slices.ContainsFunc(b.Copies, func(c api.BundleCopy) bool { return prefix != "" && strings.HasPrefix(c.Digest, prefix) }) {
			have = append(have, b.Name)
		}
	}
	switch {
	case len(have) == 1:
		return have[0], nil
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", fail(ExitNotFound, "no firewall uses a bundle")
	}
	return "", fail(ExitUsage, "there are several bundles; name one with --bundle: %s", strings.Join(all, ", "))
}

func (s *shell) bundleDiff() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "diff [FROM [TO]]", Short: "Show how copies differ; without TO, from what is in the source", Args: cobra.MaximumNArgs(2),
		Long: "FROM and TO are beginnings of digests, or `current`, which is also what leaving FROM out means.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			var q api.DiffBundleParams
			prefix := ""
			for i, a := range args {
				*[]**string{&q.From, &q.To}[i] = &args[i]
				if prefix == "" && a != "current" {
					prefix = a
				}
			}
			of, err := s.bundleName(c.Context(), cl, name, "", prefix)
			if err != nil {
				return err
			}
			r, err := ask(cl.DiffBundleWithResponse(c.Context(), of, &q))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) {
				for line := range strings.Lines(r.JSON200.Diff) {
					line = inert(strings.TrimSuffix(line, "\n"))
					st := plain
					switch {
					case strings.HasPrefix(line, "+"):
						st = green
					case strings.HasPrefix(line, "-"):
						st = red
					case strings.HasPrefix(line, "@@"):
						st = dim
					}
					p.line("%s", p.paint(st, line))
				}
				switch {
				case !r.JSON200.Whole:
					p.line("more differs than is shown")
				case r.JSON200.Diff == "":
					p.line("no difference")
				}
			})
		},
	}
	c.Flags().StringVar(&name, "bundle", "", "of this `NAME`, where there are several")
	return c
}

func (s *shell) bundleCheck() *cobra.Command {
	var req api.BundleCheckRequest
	wait := 5 * time.Minute
	c := &cobra.Command{
		Use: "check [NAME]", Short: "Take an edit over now, and say what is wrong with it", Args: cobra.MaximumNArgs(1),
		Long: `Take an edit over now, and say what is wrong with it.

With --firewall it is also run there in check mode, which changes nothing; the log
of that run shows what would change.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(5 * time.Minute)
			if err != nil {
				return err
			}
			name, err := s.bundleName(c.Context(), cl, strings.Join(args, ""), req.Firewall, "")
			if err != nil {
				return err
			}
			r, err := ask(cl.CheckBundleWithResponse(c.Context(), name, req))
			if err != nil {
				return err
			}
			got := r.JSON200
			if got.Run == "" {
				if err := s.show(r.Body, func(p *printer) { p.bundleChecked(got) }); err != nil {
					return err
				}
			} else {
				if !s.json() {
					if err := s.human(func(p *printer) { p.bundleChecked(got) }); err != nil {
						return err
					}
				}
				return s.follow(c.Context(), cl, got.Run, wait)
			}
			if len(got.Problems) > 0 {
				return &exitError{code: ExitError}
			}
			return nil
		},
	}
	c.Flags().StringVar(&req.Firewall, "firewall", "", "run it in check mode against this `NAME`")
	c.Flags().DurationVar(&wait, "wait", wait, "how long for that run")
	return c
}

// follow waits for a run that was asked for and shows it with its log.
func (s *shell) follow(ctx context.Context, cl *api.ClientWithResponses, id string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		r, err := cl.GetRunWithResponse(ctx, id)
		switch {
		case ctx.Err() != nil:
			return fail(ExitUnproved, "the run has not ended within %s; `parry runs %s --log` shows it when it has", wait, id)
		case err != nil:
			return unreachable(err)
		case r.JSON200 != nil && r.JSON200.State != api.RunStateRunning:
			if s.json() {
				err = s.raw(r.Body)
			} else if err = s.download(cl.GetRunLog(ctx, id)); err != nil {
				err = s.human(func(p *printer) { p.runDetail(r.JSON200) }) // nothing was executed
			} else {
				err = s.human(func(p *printer) { p.runTable([]api.Run{*r.JSON200}) })
			}
			if err == nil && r.JSON200.State != api.RunStateSucceeded {
				err = &exitError{code: ExitError}
			}
			return err
		case r.JSON200 == nil && r.StatusCode() != http.StatusNotFound: // else its lane has not come to it yet
			_, err := ask(r, nil)
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (s *shell) bundleUse() *cobra.Command {
	var name string
	var req api.BundleUseRequest
	c := &cobra.Command{
		Use: "use DIGEST|current", Short: "Have firewalls stay on a copy, or follow again", Args: cobra.ExactArgs(1),
		Long: `Have firewalls stay on a copy, until "current" lets them follow the bundle again.
The configuration's pin holds before. For a bundle with a canary a word for all is
the canary's pass as well.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			prefix := args[0]
			if req.Digest = prefix; prefix == "current" {
				prefix = ""
			}
			of, err := s.bundleName(c.Context(), cl, name, req.Firewall, prefix)
			if err != nil {
				return err
			}
			r, err := ask(cl.UseBundleWithResponse(c.Context(), of, req))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.bundleChosen(of, r.JSON200) })
		},
	}
	c.Flags().StringVar(&name, "bundle", "", "of this `NAME`, where there are several")
	c.Flags().StringVar(&req.Firewall, "firewall", "", "this `NAME` only; every one of the bundle when left out")
	return c
}

func (s *shell) bundleRollback() *cobra.Command {
	var req api.BundleCheckRequest
	c := &cobra.Command{
		Use: "rollback [NAME]", Short: "Go back to the version before, and stay there", Args: cobra.MaximumNArgs(1),
		Long: `Go back to the newest older copy that a firewall has proved, and stay there until
"parry bundles use current".`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			of, err := s.bundleName(c.Context(), cl, strings.Join(args, ""), req.Firewall, "")
			if err != nil {
				return err
			}
			r, err := ask(cl.RollBackBundleWithResponse(c.Context(), of, req))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.bundleChosen(of, r.JSON200) })
		},
	}
	c.Flags().StringVar(&req.Firewall, "firewall", "", "this `NAME` only; every one of the bundle when left out")
	return c
}

// version names a copy for people: "1.2.0 0f3a9c123456 at 9fceb02d0ae5".
func version(b *api.Bundle) string {
	if b.Digest == "" {
		return ""
	}
	s := b.Version + " " + digest(b.Digest)
	if b.Commit != "" {
		s += " at " + commit(b.Commit)
	}
	return s
}

// commit shortens a commit and keeps what says that the directory differed from it.
func commit(c string) string {
	if plain, ok := strings.CutSuffix(c, "-dirty"); ok {
		return digest(plain) + "-dirty"
	}
	return digest(c)
}

func (p *printer) bundleDetail(b *api.BundleDetail) {
	p.line("%s  %s", p.paint(bold, inert(b.Name)), inert(version(&b.Current)))
	pin, release := "", ""
	if b.Pin.Digest != "" {
		pin = b.Pin.Version + " " + digest(b.Pin.Digest) + " for all, by " + b.Pin.By + ", " + p.ago(b.Pin.At)
	}
	if r := b.Release; r.Digest != "" {
		if release = r.Version + " " + digest(r.Digest) + ", " + p.ago(r.At); r.By != "" {
			release += ", by " + r.By
		}
	}
	p.fields(
		text("  source"), text(b.Source),
		text("  newest edit"), cell{inert(b.Problem), red},
		text("  waits"), cell{inert(strings.Join(b.Waits, "; ")), yellow},
		text("  pinned"), cell{inert(pin), yellow},
		text("  release"), text(release),
	)
	rows := make([]row, len(b.Copies))
	for i := range b.Copies {
		c := &b.Copies[i]
		var marks []string
		if c.Current {
			marks = append(marks, "current")
		}
		if c.Proved {
			marks = append(marks, "proved")
		}
		rows[i] = row{cells: []cell{styled(bold, digest(c.Digest)), text(c.Version), text(commit(c.Commit)), text(p.ago(c.TakenAt)), text(strings.Join(marks, ", ")),
			text(strings.Join(c.UsedBy, " "))}}
	}
	if len(rows) > 0 {
		p.table([]string{"DIGEST", "VERSION", "COMMIT", "TAKEN", "", "USED BY"}, []int{0, 12, 0, 0, 0, 0}, rows)
	}
	for _, fw := range b.Firewalls {
		words := ""
		switch {
		case fw.PinnedBy != "":
			words = "is pinned to " + digest(fw.Next) + " by " + fw.PinnedBy
		case fw.Used.Digest != fw.Next && fw.Next != "":
			words = "takes " + digest(fw.Next) + " with its next run"
		}
		if fw.Canary {
			words = strings.TrimSuffix("is the canary, "+words, ", ")
		}
		if words != "" {
			p.line("  %s", inert(fw.Name+" "+words))
		}
	}
}

func (p *printer) bundleChecked(b *api.BundleChecked) {
	for _, problem := range b.Problems {
		p.line("%s", p.paint(red, inertLines(problem)))
	}
	switch {
	case b.Bundle.Digest == "":
	case len(b.Problems) > 0:
		p.line("%s goes on", inert(b.Bundle.Name+" "+version(&b.Bundle)))
	default:
		p.line("%s  %s", p.paint(green, "ok"), inert(b.Bundle.Name+" "+version(&b.Bundle)))
	}
}

func (p *printer) bundleChosen(name string, b *api.BundleChosen) {
	who := "no firewall"
	if len(b.Affects) > 0 {
		who = strings.Join(b.Affects, " ")
	}
	switch {
	case b.Bundle.Digest == "":
		p.line("%s follows bundle %s again", inert(who), inert(name))
	case b.Proved:
		p.line("%s %s on %s until `parry bundles use current`", inert(name), inert(version(&b.Bundle)), inert(who))
	default:
		p.line("%s %s on %s until `parry bundles use current`; no run that is kept has proved it", inert(name), inert(version(&b.Bundle)), inert(who))
	}
	for _, s := range b.Stay {
		p.line("  not %s", inert(s))
	}
}
