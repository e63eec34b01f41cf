// Package cli is parry's command line: one cobra tree, in which everything but serve, check and version talks to the service through the
// client of package api, over the local unix socket or to a remote server.
//
// What people read is laid out for 80 columns; `-o json` prints the API's own JSON. Text that callers or firewalls wrote is shown inert:
// control characters come out as escapes. The exit code says what happened: see [ExitCode].
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parry/parry/internal/config"
)

// ExitCode is what the process ends with.
type ExitCode int

const (
	ExitOK          ExitCode = 0
	ExitError       ExitCode = 1
	ExitUsage       ExitCode = 2 // wrong flags or arguments, by the command line's or the service's judgement
	ExitNotFound    ExitCode = 3
	ExitRefused     ExitCode = 4 // by policy: an exemption, a limit
	ExitUnproved    ExitCode = 5 // accepted, but not proved in time
	ExitUnreachable ExitCode = 6 // the service cannot be reached
)

// exitError carries an exit code. An empty text says that all was said already.
type exitError struct {
	code ExitCode
	text string
}

func (e *exitError) Error() string { return e.text }

func fail(code ExitCode, format string, args ...any) error {
	return &exitError{code, fmt.Sprintf(format, args...)}
}

// Env is the world around the command line, so that tests can bring their own.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Environ  []string // as os.Environ gives it
	Now      func() time.Time
	Version  Version
}

// Version names a build; main fills it in from the linker.
type Version struct {
	Version, Commit, Built string
}

func (e *Env) get(name string) string {
	for i := len(e.Environ) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(e.Environ[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// Execute runs one command line, without the program's name.
func Execute(ctx context.Context, env *Env, args []string) ExitCode {
	root := newRoot(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	code := ExitUsage // cobra's own errors are all about flags and arguments
	var e *exitError
	var ce *config.Error
	switch {
	case errors.As(err, &e):
		code = e.code
	case errors.As(err, &ce):
		code = ExitError
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(env.Err, "parry: "+strings.ReplaceAll(strings.TrimRight(inertLines(text), "\n"), "\n", "\n  "))
	}
	return code
}

// shell is what every command shares: the environment and the persistent flags.
type shell struct {
	*Env
	connect connectFlags
	output  string
	config  string
}

func newRoot(env *Env) *cobra.Command {
	s := &shell{Env: env}
	root := &cobra.Command{
		Use:           "parry",
		Short:         "Block addresses on firewalls, and prove it",
		SilenceUsage:  true,
		SilenceErrors: true,
		Long: `parry turns block requests into firewall blocks that the firewalls prove.

Commands talk to the service over its unix socket, or to --server with a token.
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 refused by policy,
5 accepted but not proved in time, 6 service unreachable.`,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			switch {
			case s.output == "human", s.output == "json", s.output == "csv" && c.Annotations["csv"] != "":
				return nil
			case s.output == "csv":
				return fmt.Errorf("--output csv is not for %s; write human or json", c.CommandPath())
			}
			return fmt.Errorf("--output %q is not known; write human or json", s.output)
		},
	}
	root.SetUsageTemplate(strings.NewReplacer(".LocalFlags.FlagUsages", ".LocalFlags.FlagUsagesWrapped 80",
		".InheritedFlags.FlagUsages", ".InheritedFlags.FlagUsagesWrapped 80").Replace(root.UsageTemplate()))
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	f := root.PersistentFlags()
	f.StringVarP(&s.output, "output", "o", "human", "human, or json as the API gives it")
	f.StringVar(&s.config, "config", "", "configuration `file` of serve and check (PARRY_CONFIG, "+config.DefaultPath+")")
	s.connect.register(f)
	root.AddCommand(s.serve(), s.block(), s.unblock(), s.blocks(), s.explain(), s.firewalls(), s.bundles(), s.runs(), s.exempt(), s.hooks(), s.hold(), s.panic(), s.approvals(), s.lists(), s.feeds(), s.notify(),
		s.export(), s.imports(), s.token(), s.audit(), s.check(), s.version())
	return root
}

// configPath is the service's configuration file: the flag's, the environment's, or the usual one.
func (s *shell) configPath() string {
	if s.config != "" {
		return s.config
	}
	if p := s.get("PARRY_CONFIG"); p != "" {
		return p
	}
	return config.DefaultPath
}

func (s *shell) json() bool { return s.output == "json" }

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
