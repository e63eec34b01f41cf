package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) token() *cobra.Command {
	c := &cobra.Command{
		Use: "token", Short: "Make, list, resume and revoke tokens", Args: cobra.NoArgs,
		Example: `  parry token create ossim --role trigger --from 192.0.2.10 --max-ttl 24h
  parry token list
  parry token resume ossim
  parry token revoke ossim`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var req api.TokenRequest
	var role string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a token; its secret is printed this once", Args: cobra.ExactArgs(1),
		Long: `Make a token. The secret alone goes to standard output, so that it can be sent
into a file:  parry token create ossim --role trigger > ossim.token`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			req.Name, req.Role = args[0], api.Role(role)
			r, err := ask(cl.CreateTokenWithResponse(c.Context(), req))
			if err != nil {
				return err
			}
			if s.json() {
				return s.raw(r.Body)
			}
			out := *s.Env
			out.Out = s.Err
			told := shell{Env: &out}
			if err := told.human(func(p *printer) {
				t := r.JSON201.Token
				p.line("token %s made, role %s, %s. Its secret is shown this once:", inert(t.Name), inert(string(t.Role)), inert(t.ID))
			}); err != nil {
				return err
			}
			_, err = s.Out.Write([]byte(inert(r.JSON201.Secret) + "\n"))
			return err
		},
	}
	f := create.Flags()
	f.StringVar(&role, "role", "trigger", "feed, trigger, reader, auditor, operator, approver or admin")
	f.StringVar(&req.TTL, "for", "", "valid so `long`; left out is without end")
	f.StringSliceVar(&req.Sources, "from", nil, "only from these `addresses` and prefixes")
	f.StringSliceVar(&req.Firewalls, "on", nil, "may name only these `firewalls` and groups")
	f.StringVar(&req.MaxTTL, "max-ttl", "", "longest block that it may ask for")
	f.IntVar(&req.Rate, "rate", 0, "block requests a minute; 0 is the configuration's")
	c.AddCommand(create)
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "Show every token", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ListTokensWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.tokenTable(r.JSON200.Items) })
		},
	})
	c.AddCommand(&cobra.Command{
		Use: "resume ID|NAME", Short: "Put a suspended token back into use", Args: cobra.ExactArgs(1),
		Long: `Put a token back into use that parry suspended because it kept asking for blocks
of what is never blocked. Find out why first: parry token list, parry audit.`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ResumeTokenWithResponse(c.Context(), args[0]))
			if err != nil {
				return err
			}
			return s.done(r.StatusCode(), "in use again: "+args[0])
		},
	})
	c.AddCommand(&cobra.Command{
		Use: "revoke ID|NAME", Short: "Revoke a token at once", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			id := args[0]
			if !strings.HasPrefix(id, "t-") {
				r, err := ask(cl.ListTokensWithResponse(c.Context()))
				if err != nil {
					return err
				}
				var ids []string
				for _, t := range r.JSON200.Items {
					if t.Name == id && t.RevokedAt.IsZero() {
						ids = append(ids, t.ID)
					}
				}
				switch len(ids) {
				case 0:
					return fail(ExitNotFound, "no valid token is named %q", args[0])
				case 1:
					id = ids[0]
				default:
					return fail(ExitUsage, "several tokens are named %q; name one by its id: %s", args[0], strings.Join(ids, " "))
				}
			}
			r, err := ask(cl.RevokeTokenWithResponse(c.Context(), id))
			if err != nil {
				return err
			}
			return s.done(r.StatusCode(), "revoked: "+args[0])
		},
	})
	return c
}

func (p *printer) tokenTable(items []api.Token) {
	if len(items) == 0 {
		p.line("no tokens; `parry token create NAME` makes one")
		return
	}
	rows := make([]row, len(items))
	for i, t := range items {
		status := cell{"valid", green}
		switch {
		case !t.RevokedAt.IsZero():
			status = cell{"revoked", red}
		case t.SuspendedUntil.After(p.now):
			status = cell{"suspended, " + p.left(t.SuspendedUntil) + " left", red}
		case !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(p.now):
			status = cell{"expired", red}
		case !t.ExpiresAt.IsZero():
			status = cell{p.left(t.ExpiresAt) + " left", green}
		}
		why := ""
		if t.SuspendedUntil.After(p.now) && t.RevokedAt.IsZero() {
			why = inert(t.SuspendedWhy)
		}
		used := p.ago(t.LastUsed)
		if used == "" {
			used = "never"
		}
		notes := []string{inert(t.ID)}
		if len(t.Sources) > 0 {
			notes = append(notes, "from "+inert(strings.Join(t.Sources, " ")))
		}
		if len(t.Firewalls) > 0 {
			notes = append(notes, "on "+inert(strings.Join(t.Firewalls, " ")))
		}
		if t.MaxTTL != "" {
			notes = append(notes, "at most "+inert(t.MaxTTL))
		}
		rows[i] = row{
			cells: []cell{styled(bold, t.Name), text(string(t.Role)), status, text(used)},
			notes: []string{strings.Join(notes, "   "), why},
		}
	}
	p.table([]string{"TOKEN", "ROLE", "STATUS", "USED"}, []int{24, 0, 0, 0}, rows)
}
