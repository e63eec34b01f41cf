// Command parry blocks addresses on firewalls, and proves it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/parry/parry/internal/cli"
)

// Set by the linker: -X main.version=1.0.0 -X main.commit=… -X main.built=…
var version, commit, built string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the first asks, a second one ends the process at once
	os.Exit(int(cli.Execute(ctx, &cli.Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ(), Now: time.Now,
		Version: cli.BuildVersion(cli.Version{Version: version, Commit: commit, Built: built}),
	}, os.Args[1:])))
}
