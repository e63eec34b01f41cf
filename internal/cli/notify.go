package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
)

func (s *shell) notify() *cobra.Command {
	c := &cobra.Command{
		Use:   "notify",
		Short: "Show the channels that tell people, or try one",
		Long: `Show every channel with what waits for it, its last delivery and its last
failure. Channels are configured under mail: and channels:.`,
		Example: `  parry notify
  parry notify test soc-chat`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			r, err := ask(cl.ListChannelsWithResponse(c.Context()))
			if err != nil {
				return err
			}
			return s.show(r.Body, func(p *printer) { p.channelTable(r.JSON200.Items) })
		},
	}
	c.AddCommand(&cobra.Command{
		Use:   "test CHANNEL",
		Short: "Send a test through a channel, and tell what the other side answered",
		Long: `Send a test through a channel at once, past what waits, and tell what the
other side answered. Ends with 1 when it was not delivered.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := s.client(2 * time.Minute)
			if err != nil {
				return err
			}
			r, err := ask(cl.TestChannelWithResponse(c.Context(), args[0]))
			if err != nil {
				return err
			}
			t := r.JSON200
			took := time.Duration(t.Milliseconds) * time.Millisecond
			if err := s.show(r.Body, func(p *printer) {
				if t.Delivered {
					p.line("%s  %s in %s: %s", p.paint(green, "delivered"), inert(args[0]), took, inert(t.Answer))
				}
			}); err != nil {
				return err
			}
			if !t.Delivered {
				return fail(ExitError, "not delivered: %s", t.Answer)
			}
			return nil
		},
	})
	return c
}

func (p *printer) channelTable(items []api.Channel) {
	if len(items) == 0 {
		p.line("no channels: nobody is told when a firewall fails; see mail: and channels: in the configuration")
		return
	}
	rows := make([]row, len(items))
	for i, ch := range items {
		status := cell{"ok", green}
		switch {
		case ch.Failing > 0:
			status = cell{"failing", red}
		case ch.Waiting > 0:
			status = cell{"waiting", yellow}
		case ch.DeliveredAt.IsZero():
			status = cell{"unused", dim}
		}
		waiting := strconv.FormatInt(ch.Waiting, 10)
		if ch.Waiting > 0 {
			waiting += ", oldest " + p.ago(ch.Oldest)
		}
		delivered := p.ago(ch.DeliveredAt)
		if delivered == "" {
			delivered = "never"
		}
		events := "hears of " + strings.Join(ch.Events, " ")
		if ch.MinSeverity != "info" {
			events += ", " + ch.MinSeverity + " and above"
		}
		rows[i] = row{cells: []cell{styled(bold, ch.Name), text(ch.Type), status, text(delivered), text(waiting)}, notes: wrap(inert(events), p.width-2)}
		if ch.LastError != "" {
			rows[i].notes = append(rows[i].notes, p.ago(ch.FailedAt)+": "+inert(ch.LastError))
		}
	}
	p.table([]string{"CHANNEL", "TYPE", "STATUS", "DELIVERED", "WAITING"}, []int{24, 0, 0, 0, 0}, rows)
}
