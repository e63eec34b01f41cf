package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/parry/parry/internal/app"
	"github.com/parry/parry/internal/config"
)

func (s *shell) serve() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the service",
		Long: `Run the service until SIGTERM or SIGINT, which drains: runs in progress are
finished or ended, nothing accepted is lost. A second one ends at once. SIGHUP
reloads the configuration; a bad one is refused and the old one stays.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path := s.configPath()
			cfg, err := s.loadConfig(path)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" { // a twelfth more accepts for a tenth more memory
				debug.SetGCPercent(200)
			}
			level := new(slog.LevelVar)
			level.Set(app.Level(cfg.Log.Level))
			log := newLogger(s.Err, cfg.Log.Format, level)
			if unknown := config.UnknownEnv(s.Environ); len(unknown) > 0 {
				log.Warn("environment variables that look like settings and are none", "names", strings.Join(unknown, " "))
			}
			a, err := app.New(c.Context(), app.Options{
				Config: cfg, Load: func() (*config.Config, error) { return config.Load(path, s.Environ) }, Logger: log, Level: level,
				Version: s.Version.Version, Commit: s.Version.Commit, Built: s.Version.Built, Now: s.Now,
			})
			if err != nil {
				return fail(ExitError, "%v", err)
			}
			stop := reloadOnHangup(c.Context(), a, log)
			err = errors.Join(a.Run(c.Context()), stop(), a.Close())
			if err != nil {
				return fail(ExitError, "%v", err)
			}
			return nil
		},
	}
}

func (s *shell) loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path, s.Environ)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitError, "%v; write one after configs/parry.yaml, or name another by --config", err)
	}
	if err != nil {
		return nil, fail(ExitError, "%v", err)
	}
	return cfg, nil
}

func newLogger(w interface{ Write([]byte) (int, error) }, format string, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// reloadOnHangup reloads at each SIGHUP until it is stopped.
func reloadOnHangup(ctx context.Context, a *app.App, log *slog.Logger) (stop func() error) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				if err := a.Reload(ctx); err != nil {
					log.Error("reload refused", "err", err)
				}
			}
		}
	}()
	return func() error {
		signal.Stop(hup)
		cancel()
		<-ended
		return nil
	}
}

func (s *shell) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell which parry this is", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := s.Version
			if s.json() {
				return s.rawValue(map[string]string{"version": v.Version, "commit": v.Commit, "built": v.Built, "go": runtime.Version()})
			}
			text := "parry " + v.Version
			if v.Commit != "" {
				text += " (" + v.Commit + ")"
			}
			if v.Built != "" {
				text += ", built " + v.Built
			}
			_, err := fmt.Fprintln(s.Out, text+", "+runtime.Version())
			return err
		},
	}
}

// BuildVersion completes what the linker gave with what the toolchain recorded.
func BuildVersion(v Version) Version {
	if v.Version == "" {
		v.Version = "dev"
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, kv := range bi.Settings {
			switch {
			case kv.Key == "vcs.revision" && v.Commit == "":
				v.Commit = kv.Value[:min(12, len(kv.Value))]
			case kv.Key == "vcs.time" && v.Built == "":
				v.Built = kv.Value
			}
		}
	}
	return v
}
