package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/parry/parry/internal/cli"
	"github.com/parry/parry/internal/portable"
	"github.com/parry/parry/internal/testenv"
)

// TestMain gives the scripts a parry that is this binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"parry": func() {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(int(cli.Execute(ctx, &cli.Env{
			In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ(), Now: time.Now, Version: cli.Version{Version: "1.2.3"},
		}, os.Args[1:])))
	}})
}

// TestScripts runs testdata/*.txtar: each has a site with parry.yaml; `lab NAME` gives it a firewall.
func TestScripts(t *testing.T) {
	t.Parallel()
	_, here, _, _ := runtime.Caller(0)
	repo := filepath.Join(filepath.Dir(here), "..", "..")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			site, err := os.MkdirTemp("", "parry") // short, for the socket
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(site) })
			env.Setenv("SITE", site)
			env.Setenv("REPO", repo)
			env.Setenv("PARRY_CONFIG", filepath.Join(site, "parry.yaml"))
			env.Setenv("HOME", env.WorkDir)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Setenv("LISTEN", ln.Addr().String())
			if err := ln.Close(); err != nil {
				return err
			}
			text := "listen: " + ln.Addr().String() + "\nsocket: parry.sock\nstate_dir: state\nbundles: playbooks" +
				"\nansible: {inventory: inventory.yml, known_hosts: known_hosts}\n"
			if err := testenv.CopyPlaybooks("", filepath.Join(site, "playbooks")); err != nil {
				return err
			}
			for name, text := range map[string]string{"parry.yaml": text, "inventory.yml": "all: {hosts: {}}\n", "known_hosts": ""} {
				if err := os.WriteFile(filepath.Join(site, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":    code,
			"ready":   ready,
			"lab":     func(ts *testscript.TestScript, _ bool, args []string) { lab(t, ts, args) },
			"nowhere": nowhere,
			"width":   width,
			"logged":  logged,
			"signal":  signalService,
			"same":    sameBlocks,

			"samelists": sameLists,
		},
	})
}

// same FILE FILE wants two exports to hold the same live blocks, to the microsecond of their ends.
func sameBlocks(ts *testscript.TestScript, _ bool, args []string) {
	same(ts, args, portable.Blocks, func(b *portable.Block) string {
		b.ID, b.CreatedAt, b.CreatedBy, b.ExportedAt = "", time.Time{}, "", time.Time{}
		return fmt.Sprintf("%+q %v", fmt.Sprintf("%+v", *b), b.ExpiresAt.UnixMicro())
	})
}

// samelists FILE FILE does so for lists and their entries, whose last sight may come out up to a second earlier.
func sameLists(ts *testscript.TestScript, _ bool, args []string) {
	same(ts, args, portable.Entries, func(e *portable.Entry) string {
		e.LastSeen, e.FirstSeen, e.ExportedAt, e.Count, e.PutBy = time.Time{}, time.Time{}, time.Time{}, 0, ""
		return fmt.Sprintf("%+q %v", fmt.Sprintf("%+v", *e), e.ExpiresAt.UnixMicro())
	})
}

func same[R any](ts *testscript.TestScript, files []string, t *portable.Table[R], text func(*R) string) {
	read := func(name string) (out []string) {
		r, err := portable.NewReader(strings.NewReader(ts.ReadFile(name)), t)
		ts.Check(err)
		for {
			row, _, err := r.Next()
			if errors.Is(err, io.EOF) {
				slices.Sort(out)
				return out
			}
			ts.Check(err)
			out = append(out, text(&row))
		}
	}
	if a, b := read(files[0]), read(files[1]); !slices.Equal(a, b) || len(a) == 0 {
		ts.Fatalf("they differ:\n%s\n\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
}

// code N COMMAND... wants that exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got, err := 0, ts.Exec(args[1], args[2:]...)
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// ready waits until the service answers.
func ready(ts *testscript.TestScript, _ bool, _ []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(ts.Getenv("SITE"), "parry.sock"))
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("the service does not answer: %v", err)
		}
	}
}

// signalService sends TERM or HUP to the service.
func signalService(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(filepath.Join(ts.Getenv("SITE"), "state", "parry.lock"))
	ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, map[string]syscall.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP}[args[0]]))
}

// logged PATTERN waits for a line in serve.log.
func logged(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[0])
	for end := time.Now().Add(30 * time.Second); !want.MatchString(ts.ReadFile("serve.log")); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("serve.log has no %s:\n%s", want, ts.ReadFile("serve.log"))
		}
	}
}

// width wants the last command's output to fit 80 columns.
func width(ts *testscript.TestScript, _ bool, _ []string) {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			ts.Fatalf("%d columns: %s", n, line)
		}
	}
}

// lab NAME starts a firewall and lists it in the site's configuration and inventory.
func lab(t *testing.T, ts *testscript.TestScript, args []string) {
	l := testenv.StartLab(t, testenv.LabOptions{Name: args[0]})
	known, err := os.ReadFile(l.KnownHosts)
	ts.Check(err)
	add(ts, "known_hosts", string(known))
	list(ts, l.Name, l.Port, l.User, l.KeyFile)
}

// nowhere NAME lists a firewall at which nobody answers.
func nowhere(ts *testscript.TestScript, _ bool, args []string) {
	list(ts, args[0], 1, "admin", "/nonexistent")
}

func list(ts *testscript.TestScript, name string, port int, user, key string) {
	add(ts, "parry.yaml", "firewalls: [{name: "+name+", groups: [edge]}]\n")
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("SITE"), "inventory.yml"), fmt.Appendf(nil,
		"all: {hosts: {%s: {ansible_host: 127.0.0.1, ansible_port: %d, ansible_user: %s, ansible_ssh_private_key_file: %s}}}\n", name, port, user, key), 0o600))
}

func add(ts *testscript.TestScript, name, text string) {
	f, err := os.OpenFile(filepath.Join(ts.Getenv("SITE"), name), os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	_, err = f.WriteString(text)
	ts.Check(err)
	ts.Check(f.Close())
}
