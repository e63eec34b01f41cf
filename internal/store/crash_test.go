package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
	"github.com/parry/parry/internal/store"
)

// writeUntilKilled is the process that TestKill starts: it puts without end and prints each acknowledged request.
func writeUntilKilled(arg string) int {
	driver, at, _ := strings.Cut(arg, " ")
	o := store.Options{Driver: driver, Path: at, DSN: at}
	s, err := store.Open(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var mu sync.Mutex
	for c := range 16 {
		go func() {
			for i := 0; ; i++ {
				a := distinct(time.Now().UnixMicro() & 0xffffff)
				a.Key = at2(c, i%500) // so that some refresh
				r, err := s.Put(context.Background(), a)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(r.Block.ID, a.Request.ID, r.Block.Count) // one write, so whole lines
				mu.Unlock()
			}
		}()
	}
	select {}
}

func at2(a, b int) parry.Key { return at(fmt.Sprintf("10.%d.%d.%d", a, b/256, b%256)) }

// A writer is killed in the middle of its commits, again and again: what it acknowledged is there, and the counts are true.
// PARRY_KILLS sets how often.
func TestKill_noAcknowledgedRequestIsLost(t *testing.T) {
	t.Parallel()
	kills := 5
	if n, err := strconv.Atoi(os.Getenv("PARRY_KILLS")); err == nil {
		kills = n
	}
	for _, eng := range engines {
		t.Run(eng.name, func(t *testing.T) {
			t.Parallel()
			o := eng.open(t)
			for i := range kills {
				acked := killAfter(t, o, 200+i*137)
				e := &env{T: t, opts: o, clock: &clock{now: time.Now()}}
				e.eventually("the killed writer's lock is free", func() bool {
					s, err := store.Open(t.Context(), o)
					if errors.Is(err, store.ErrLocked) {
						return false
					}
					e.ok(err)
					e.Store = s
					return true
				})
				checkAcknowledged(e, acked)
				e.ok(e.Close())
			}
		})
	}
}

// killAfter lets a writer acknowledge so many requests, kills it, and gives all that it acknowledged.
func killAfter(t *testing.T, o store.Options, n int) (lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PARRY_TEST_WRITER="+o.Driver+" "+o.Path+o.DSN)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, strings.TrimSpace(line)); len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(lines) < n {
		t.Fatalf("the writer ended by itself after %d acknowledged requests: %v", len(lines), err)
	}
	return lines
}

func checkAcknowledged(e *env, lines []string) {
	e.Helper()
	counts := map[parry.BlockID]int64{}
	for _, l := range lines {
		var block, request string
		var count int64
		_, err := fmt.Sscan(l, &block, &request, &count)
		e.ok(err)
		counts[parry.BlockID(block)] = max(counts[parry.BlockID(block)], count)
	}
	for id, n := range counts {
		if got := e.block(id).Count; got < n {
			e.Fatalf("block %s: count %d, but %d were acknowledged", id, got, n)
		}
	}
	c, err := e.Counts(e.Context())
	e.ok(err)
	var live, ended int64
	e.ok(e.raw().QueryRow(`SELECT count(CASE WHEN end_rev = 0 THEN 1 END), count(CASE WHEN end_rev > 0 THEN 1 END) FROM blocks`).Scan(&live, &ended))
	same(e, "live", c.LiveBlocks, live)
	same(e, "ended", c.EndedBlocks, ended)
	e.whole()
}

func TestOpen_damagedFileIsRefused(t *testing.T) {
	t.Parallel()
	e := newEnv(t, engines[0].open(t))
	for i := range 200 {
		e.put(e.ask(fmt.Sprintf("203.0.113.%d", i)))
	}
	e.ok(e.Close())
	f, err := os.OpenFile(e.opts.Path, os.O_RDWR, 0)
	e.ok(err)
	st, err := f.Stat()
	e.ok(err)
	for at := int64(4096); at < st.Size(); at += 4096 {
		_, err = f.WriteAt([]byte(strings.Repeat("damage", 100)), at)
		e.ok(err)
	}
	e.ok(f.Close())
	before, err := os.ReadFile(e.opts.Path)
	e.ok(err)
	_, err = store.Open(t.Context(), e.opts)
	if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("got %v, want ErrDamaged with what to do", err)
	}
	after, err := os.ReadFile(e.opts.Path)
	e.ok(err)
	same(e, "left as it was", string(after) == string(before), true)
	e.ok(os.WriteFile(e.opts.Path, []byte(strings.Repeat("no database at all ", 500)), 0o600))
	if _, err = store.Open(t.Context(), e.opts); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("got %v, want ErrDamaged", err)
	}
}

func TestOpen_newerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	for _, eng := range engines {
		t.Run(eng.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, eng.open(t))
			e.ok(e.Close())
			_, err := e.raw().Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, $1)`, true)
			e.ok(err)
			if _, err = store.Open(t.Context(), e.opts); !errors.Is(err, store.ErrNewer) {
				t.Fatalf("got %v, want ErrNewer", err)
			}
		})
	}
}

// The disk is full: nothing is accepted until there is room, and what was accepted stays.
func TestPut_fullDiskIsUnavailable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("needs root to mount a small disk: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	e := newEnv(t, store.Options{Path: filepath.Join(dir, "parry.db")})
	t.Cleanup(func() { _ = e.Close() })
	var accepted []parry.BlockID
	var full error
	for i := 0; full == nil && i < 20_000; i++ {
		a := e.askFor(at2(0, i), time.Hour)
		a.Request.Reason = strings.Repeat("x", 2000)
		r, err := e.Put(t.Context(), a)
		if full = err; err == nil {
			accepted = append(accepted, r.Block.ID)
		}
	}
	e.wantKind(full, parry.KindUnavailable)
	e.ok(exec.Command("mount", "-o", "remount,size=16m", dir).Run())
	accepted = append(accepted, e.put(e.ask("203.0.113.7")).Block.ID)
	for _, id := range accepted {
		e.block(id)
	}
	c, err := e.Counts(t.Context())
	e.ok(err)
	same(e, "live", c.LiveBlocks, int64(len(accepted)))
}
