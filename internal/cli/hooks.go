package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) hooks() *cobra.Command {
	c := &cobra.Command{
		Use: "hooks", Short: "Try what SIEMs send by themselves", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(s.hooksTest())
	return c
}

func (s *shell) hooksTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE|-",
		Short: "Show what an alert of Wazuh would do, and why, without doing it",
		Long: `Show what an alert of Wazuh would do, and why, without doing it: the service
holds it against its own exemptions, policy, agents and hooks.wazuh, and writes
nothing. The file holds one alert, as in alerts.json, or an active response's
whole message. Ends with 4 when there would be no block.`,
		Example: `  tail -n 1 /var/ossec/logs/alerts/alerts.json | parry hooks test -
  parry hooks test alert.json -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			alert, err := s.readInput(args[0])
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			dry := true
			r, err := ask(cl.HookWazuhWithBodyWithResponse(c.Context(), &api.HookWazuhParams{DryRun: &dry}, "application/json", bytes.NewReader(alert)))
			if err != nil {
				return err
			}
			d := r.JSON200
			if d == nil {
				return refused(r.StatusCode(), nil)
			}
			if err := s.show(r.Body, func(p *printer) { p.hookDecision(d) }); err != nil {
				return err
			}
			if d.Decision != api.HookDecisionDecisionBlock {
				return &exitError{code: ExitRefused}
			}
			return nil
		},
	}
}

// readInput reads a file, or standard input for "-".
func (s *shell) readInput(name string) ([]byte, error) {
	if name == "-" {
		b, err := io.ReadAll(io.LimitReader(s.In, maxInput))
		if err != nil {
			return nil, fail(ExitUsage, "read standard input: %v", err)
		}
		return b, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fail(ExitUsage, "%v", err)
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxInput))
	if err != nil {
		return nil, fail(ExitUsage, "%v", err)
	}
	return b, nil
}

// maxInput is beyond what the service takes, so that the service tells that it is too much.
const maxInput = 1 << 20

// hookDecision tells what an alert says, and what would come of it.
func (p *printer) hookDecision(d *api.HookDecision) {
	a := &d.Alert
	field := func(name, value string) {
		if value == "" {
			return
		}
		for i, l := range wrap(inert(value), p.width-10) {
			if i > 0 {
				name = ""
			}
			p.line("%s%s", p.paint(dim, fmt.Sprintf("%-10s", name)), cut(l, p.width-10))
		}
	}
	field("source", first(a.Source, "none"))
	field("found in", a.FoundIn)
	rule := a.RuleID
	if a.RuleLevel > 0 {
		rule += " (level " + strconv.Itoa(a.RuleLevel) + ")"
	}
	field("rule", strings.TrimSpace(rule+" "+a.Description))
	agent := a.Agent
	if a.AgentID != "" {
		agent = strings.TrimSpace(agent + " (" + a.AgentID + ")")
	}
	field("agent", agent)
	field("alert", a.ID)
	if !a.EventTime.IsZero() {
		field("event", a.EventTime.UTC().Format("2006-01-02 15:04:05 MST")+", "+p.ago(a.EventTime))
	}
	switch {
	case d.Decision != api.HookDecisionDecisionBlock:
		field("ignored", string(d.Reason)+": "+d.Detail)
	case d.Block.ID != "":
		field("would", "refresh "+d.Block.ID+" on "+strings.Join(d.Firewalls, ", ")+" for "+d.TTL)
	default:
		field("would", "block "+a.Source+" on "+strings.Join(d.Firewalls, ", ")+" for "+d.TTL)
	}
}
