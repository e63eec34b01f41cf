package httpapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

const benchEntries = 100_000

// benchKey is the i-th address of the list; every other one asked for is on it.
func benchKey(i int64) string { return fmt.Sprintf("45.%d.%d.%d", i>>16&255, i>>8&255, i&255) }

// fillList puts 100,000 addresses on a list named bad, as a SIEM leaves them there, and gives the memory that they take, in bytes.
func fillList(b *testing.B, be *bench, lt parry.ListType) uint64 {
	b.Helper()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what lies in pools goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	ctx := context.Background()
	if _, err := be.lists.Create(ctx, parry.List{Name: "bad", Type: lt, TTL: time.Hour, Refresh: parry.RefreshLastSeen, Capacity: benchEntries}); err != nil {
		b.Fatal(err)
	}
	before := heap()
	for part := range slices.Chunk(make([]parry.ListPut, benchEntries), maxEntries) {
		l, err := be.lists.Get("bad")
		if err != nil {
			b.Fatal(err)
		}
		for i := range part {
			part[i] = parry.ListPut{Key: benchKey(int64(l.Entries+i) * 2), SeenAt: time.Now(), Comment: "sshd: brute force trying to get access to the system.",
				AlertID: fmt.Sprintf("1756721472.%d", l.Entries+i), RuleID: "5712", Origin: "wazuh", By: "siem"}
		}
		if _, err := be.lists.Put(ctx, "bad", part); err != nil {
			b.Fatal(err)
		}
	}
	return heap() - before
}

// BenchmarkLookup asks for one address after the other, over TLS as parry serves it, of a list of 100,000 (one half is on it), and of all lists. The
// clients are on the same cores. put/ is the same while a batch of 10,000 is put every second. MiB is what the list takes in memory.
func BenchmarkLookup(b *testing.B) {
	for _, c := range []struct {
		name, path string
		t          parry.ListType
		puts       bool
	}{
		{"ip", "/api/v1/lists/bad/lookup?key=", parry.ListIP, false},
		{"cidr", "/api/v1/lists/bad/lookup?key=", parry.ListCIDR, false},
		{"all", "/api/v1/lookup?key=", parry.ListIP, false},
		{"put", "/api/v1/lists/bad/lookup?key=", parry.ListIP, true},
	} {
		be := newBench(b, func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil)) })
		bytes := fillList(b, be, c.t)
		for _, clients := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/clients=%d", c.name, clients), func(b *testing.B) {
				if c.puts {
					defer putMeanwhile(b, be)()
				}
				lookups(b, listen(b, be.server, be.tokens[parry.RoleReader]), c.path, clients)
				b.ReportMetric(float64(bytes)/(1<<20), "MiB")
			})
		}
	}
}

func lookups(b *testing.B, l *benchListener, path string, clients int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	took := make([][]time.Duration, clients)
	gets := make([]func(key string) (int, error), clients)
	for c := range clients {
		gets[c] = l.get(path)
	}
	b.ResetTimer()
	for c := range clients {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				key := benchKey(n * 7919 % (2 * benchEntries))
				start := time.Now()
				if status, err := gets[c](key); err != nil || status != http.StatusOK {
					b.Errorf("got %d, %v", status, err)
					return
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return
	}
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "lookups/s")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
}

// get is a lean client that asks for a path and what is appended to it.
func (l *benchListener) get(path string) func(key string) (int, error) {
	conn, err := tls.Dial("tcp", l.addr, l.tls)
	if err != nil {
		l.b.Fatal(err)
	}
	l.b.Cleanup(func() { conn.Close() })
	tail := " HTTP/1.1\r\nHost: " + l.addr + "\r\nAuthorization: Bearer " + l.token + "\r\n\r\n"
	var out []byte
	in := bufio.NewReader(conn)
	return func(key string) (int, error) {
		out = append(append(append(append(out[:0], "GET "...), path...), key...), tail...)
		if _, err := conn.Write(out); err != nil {
			return 0, err
		}
		return readStatus(in)
	}
}

// putMeanwhile refreshes 10,000 entries a second until the returned function is called.
func putMeanwhile(b *testing.B, be *bench) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := int64(0); ; i++ {
			puts := make([]parry.ListPut, maxEntries)
			for j := range puts {
				puts[j] = parry.ListPut{Key: benchKey((i*maxEntries + int64(j)) % benchEntries * 2), SeenAt: time.Now(), Comment: strconv.Itoa(j & 7)}
			}
			if _, err := be.lists.Put(context.Background(), "bad", puts); err != nil {
				b.Error(err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}
