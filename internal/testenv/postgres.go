package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresBin is where Debian's package postgresql-15 keeps the server.
const postgresBin = "/usr/lib/postgresql/15/bin"

// PostgresOptions say what kind of server a test needs.
type PostgresOptions struct {
	Durable bool // fsync, as a benchmark needs it; tests are quicker without
}

// cluster is a server that this test binary started, once for each kind of PostgresOptions.
type cluster struct {
	start     func() error
	dir       string
	databases atomic.Int64
	stdin     *os.File // held open: the server ends when this process does, however that ends
}

var clusters = [2]*cluster{newCluster(false), newCluster(true)}

func newCluster(durable bool) *cluster {
	c := &cluster{}
	c.start = sync.OnceValue(func() error { return c.run(durable) })
	return c
}

// Postgres gives the connection string of a fresh database on a server of this test binary's own. Without Debian's postgresql-15 the test is
// skipped, or fails where CI is set.
func Postgres(tb testing.TB, o PostgresOptions) string {
	tb.Helper()
	if _, err := os.Stat(postgresBin + "/initdb"); err != nil {
		if os.Getenv("CI") != "" {
			tb.Fatalf("PostgreSQL is missing: %v; apt-get install postgresql-15", err)
		}
		tb.Skipf("PostgreSQL is missing: %v; apt-get install postgresql-15", err)
	}
	c := clusters[0]
	if o.Durable {
		c = clusters[1]
	}
	if err := c.start(); err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := "test" + strconv.FormatInt(c.databases.Add(1), 10)
	conn, err := pgx.Connect(ctx, c.dsn("postgres"))
	if err != nil {
		tb.Fatalf("connect to PostgreSQL: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		tb.Fatalf("create a database: %v", err)
	}
	return c.dsn(name)
}

func (c *cluster) dsn(database string) string {
	return fmt.Sprintf("host=%s user=postgres dbname=%s", c.dir, database)
}

// supervise runs the server until standard input ends, then ends it at once and removes its files.
const supervise = `"$1/postgres" -D "$2/data" >"$2/log" 2>&1 & p=$!
cat >/dev/null
kill -QUIT $p; wait $p; rm -rf "$2"`

func (c *cluster) run(durable bool) (err error) {
	if c.dir, err = os.MkdirTemp("", "parry-pg-"); err != nil {
		return err
	}
	attr := &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for the test, the supervisor must live to clean up
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(c.dir, uid, gid); err != nil {
			return err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(c.dir, "data")
	initdb := exec.Command(postgresBin+"/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
	initdb.SysProcAttr = attr
	initdb.Dir = c.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	conf := fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nmax_connections = 500\nshared_buffers = '128MB'\n", c.dir)
	if !durable {
		conf += "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nautovacuum = off\n"
	}
	f, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(conf); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	sh := exec.Command("/bin/sh", "-c", supervise, "sh", postgresBin, c.dir)
	sh.Stdin, sh.SysProcAttr, sh.Dir = in, attr, c.dir
	if err := sh.Start(); err != nil {
		return err
	}
	c.stdin = out
	_ = in.Close()
	return c.await()
}

func (c *cluster) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.dsn("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			return fmt.Errorf("%w; its log: %s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
