package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
)

func (s *shell) check() *cobra.Command {
	var offline, sendMail bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell what is wrong before it matters",
		Long: `Look over the configuration, the state directory, the database, the inventory,
the bundles, ssh and rights on every firewall, its table limits and old rules,
the mail server, and the service if it runs. Nothing is changed: firewalls are
read only. Ends with 1 when a line says fail.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var found []app.Finding
			path := s.configPath()
			cfg, err := s.loadConfig(path)
			if err != nil {
				found = append(found, app.Finding{Level: app.Fail, Check: "configuration", Detail: err.Error(), Mend: "correct the file"})
			} else {
				found = append(found, app.Finding{Level: app.OK, Check: "configuration", Detail: path})
				if unknown := config.UnknownEnv(s.Environ); len(unknown) > 0 {
					found = append(found, app.Finding{Level: app.Warn, Check: "environment", Detail: strings.Join(unknown, " ") + ": no such settings",
						Mend: "correct the names, or take them out"})
				}
				found = append(found, app.Check(c.Context(), app.CheckOptions{Config: cfg, Offline: offline, SendMail: sendMail, Now: s.Now})...)
				found = append(found, s.checkService(c.Context(), cfg)...)
			}
			failed := false
			for _, f := range found {
				failed = failed || f.Level == app.Fail
			}
			if s.json() {
				err = s.rawValue(map[string]any{"ok": !failed, "findings": found})
			} else {
				err = s.human(func(p *printer) { p.findings(found) })
			}
			if err == nil && failed {
				return &exitError{code: ExitError}
			}
			return err
		},
	}
	c.Flags().BoolVar(&offline, "offline", false, "leave out what needs the network: firewalls and mail")
	c.Flags().BoolVar(&sendMail, "send-mail", false, "send a test mail")
	return c
}

// checkService asks a running service whether it is ready.
func (s *shell) checkService(ctx context.Context, cfg *config.Config) []app.Finding {
	local := *s
	local.connect = connectFlags{socket: cfg.Socket, timeout: 10 * time.Second}
	cl, err := local.client(0)
	if err != nil {
		return nil
	}
	r, err := cl.GetReadinessWithResponse(ctx)
	if err != nil {
		return []app.Finding{{Level: app.OK, Check: "service", Detail: "not running on " + cfg.Socket}}
	}
	ready := r.JSON200
	if ready == nil {
		ready = r.JSON503
	}
	if ready == nil {
		return []app.Finding{{Level: app.Fail, Check: "service", Detail: r.Status() + " on " + cfg.Socket, Mend: "look into its log"}}
	}
	var out []app.Finding
	for _, p := range ready.Problems {
		level := app.Fail
		if ready.Ready {
			level = app.Warn
		}
		out = append(out, app.Finding{Level: level, Check: "service " + p.Check, Detail: first(p.Detail, "not well")})
	}
	if len(out) == 0 {
		out = append(out, app.Finding{Level: app.OK, Check: "service", Detail: "running and ready"})
	}
	return out
}

func (p *printer) findings(found []app.Finding) {
	width := 0
	for _, f := range found {
		width = max(width, min(24, len(f.Check)))
	}
	for _, f := range found {
		room := max(20, p.width-6-width-2)
		lines := wrap(inert(strings.ReplaceAll(f.Detail, "\n", " ")), room)
		if len(lines) == 0 {
			lines = []string{""}
		}
		check := inert(f.Check)
		p.line("%s%s  %s%s  %s", p.paint(stateStyle(f.Level), string(f.Level)), strings.Repeat(" ", 4-len(f.Level)),
			check, strings.Repeat(" ", max(0, width-len(check))), lines[0])
		indent := strings.Repeat(" ", 6+width+2)
		for _, l := range lines[1:] {
			p.line("%s%s", indent, l)
		}
		for i, l := range wrap(inert(f.Mend), room-2) {
			lead := "→ "
			if i > 0 {
				lead = "  "
			}
			p.line("%s%s%s", indent, lead, l)
		}
	}
}
