package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/portable"
)

func (s *shell) export() *cobra.Command {
	c := &cobra.Command{
		Use: "export", Short: "Write blocks, exemptions or lists out, for parry import", Args: cobra.NoArgs,
		Long: `Write what stands here as JSON lines, or as CSV for a spreadsheet, to standard
output. parry import reads both.`,
		Example: `  parry export blocks >blocks.json
  parry export blocks --origin ossim --format csv >blocks.csv
  parry export exemptions >exemptions.json`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(s.exportBlocks(), s.exportExemptions(), s.exportLists())
	return c
}

func formatFlag(c *cobra.Command, f *string) {
	c.Flags().StringVar(f, "format", string(portable.JSON), "json (one row a line) or csv")
}

func parseFormat(s string) (portable.Format, error) {
	for _, f := range portable.Formats {
		if s == string(f) {
			return f, nil
		}
	}
	return "", fail(ExitUsage, "--format %q is not known; write json or csv", s)
}

func (s *shell) exportBlocks() *cobra.Command {
	var q api.ListBlocksParams
	var on []string
	var format string
	c := &cobra.Command{
		Use: "blocks", Short: "Write the live blocks out", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := parseFormat(format)
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			if len(on) > 0 {
				q.Firewalls = new(strings.Join(on, ","))
			}
			return exportTo(s, f, portable.Blocks, func(write func(*portable.Block) error) error {
				return eachBlock(c, cl, q, func(b *api.Block) error {
					if b.Simulated { // an import would make a real one of it
						return nil
					}
					return write(portableBlock(b))
				})
			})
		},
	}
	f := c.Flags()
	formatFlag(c, &format)
	f.Var(optional{&q.Within}, "in", "whose source lies in this `prefix`")
	f.StringSliceVar(&on, "on", nil, "with exactly this selector of `firewalls`")
	f.Var(optional{&q.Origin}, "origin", "with this origin")
	f.Var(optional{&q.CreatedBy}, "by", "made by this `token`")
	return c
}

func portableBlock(b *api.Block) *portable.Block {
	p := &portable.Block{
		Source: b.Source, Destination: b.Destination, DestinationPort: b.DestinationPort, Protocol: b.Protocol, Interface: b.Interface,
		Firewalls: b.Firewalls, ExpiresAt: b.ExpiresAt, Reason: b.Reason, Origin: b.Origin, ID: b.ID, CreatedAt: b.CreatedAt, CreatedBy: b.CreatedBy,
	}
	if b.ExpiresAt.IsZero() {
		p.TTL = noEnd
	}
	return p
}

const noEnd = "none" // a block's ttl

func (s *shell) exportExemptions() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "exemptions", Short: "Write the exemptions out that were made by request", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := parseFormat(format)
			if err != nil {
				return err
			}
			cl, err := s.client(0)
			if err != nil {
				return err
			}
			return exportTo(s, f, portable.Exemptions, func(write func(*portable.Exemption) error) error {
				r, err := ask(cl.ListExemptionsWithResponse(c.Context()))
				if err != nil {
					return err
				}
				for i := range r.JSON200.Items {
					x := &r.JSON200.Items[i]
					if x.Source != api.ExemptionSourceAPI {
						continue // the other parry has a configuration of its own, and finds for itself
					}
					err := write(&portable.Exemption{
						Prefix: x.Prefix, Reason: x.Reason, ExpiresAt: x.ExpiresAt, ID: x.ID, CreatedAt: x.CreatedAt, CreatedBy: x.CreatedBy,
					})
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	formatFlag(c, &format)
	return c
}

// exportTo writes the rows that each gives.
func exportTo[R any](s *shell, f portable.Format, t *portable.Table[R], each func(write func(*R) error) error) error {
	w, err := portable.NewWriter(s.Out, f, t, s.Now())
	if err != nil {
		return err
	}
	if err := each(w.Write); err != nil {
		return err
	}
	return w.Close()
}

// eachBlock follows the pages to the end.
func eachBlock(c *cobra.Command, cl *api.ClientWithResponses, q api.ListBlocksParams, f func(*api.Block) error) error {
	q.Limit = new(page)
	for {
		r, err := ask(cl.ListBlocksWithResponse(c.Context(), &q))
		if err != nil {
			return err
		}
		for i := range r.JSON200.Items {
			if err := f(&r.JSON200.Items[i]); err != nil {
				return err
			}
		}
		if r.JSON200.Next == "" {
			return nil
		}
		q.Cursor = &r.JSON200.Next
	}
}
