package feeds

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

// full is n blocks of single addresses, in no order, among which neighbours are rare.
func full(n int) []Entry {
	out := make([]Entry, n)
	for i := range out {
		x := uint32(i) * 2654435761
		out[i] = Entry{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}), 32),
			First:  noon.Unix(), Last: noon.Unix() + int64(i), Expires: noon.Unix() + 3600, Count: 3, Comment: "ssh brute force",
		}
	}
	return out
}

// BenchmarkFeedRender is what the first reader of a changed feed of 100,000 addresses waits for.
func BenchmarkFeedRender(b *testing.B) {
	s := snap(Blocks, parry.ListCIDR, full(100_000))
	for name, q := range map[string]Query{
		"plain": {}, "aggregate": {Aggregate: true}, "limit=50000": {Limit: 50_000}, "csv": {Format: CSV}, "json": {Format: JSON}, "cdb-wazuh": {Format: CDBWazuh},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.ReportMetric(float64(len(rendered(b, s, q).Body)), "bytes")
			}
		})
	}
	b.Run("gzip", func(b *testing.B) {
		r := rendered(b, s, Query{})
		for b.Loop() {
			b.ReportMetric(float64(len(compress(r.Body))), "bytes")
		}
	})
}

// BenchmarkFeedRefresh is a snapshot after one of 100,000 blocks changed.
func BenchmarkFeedRefresh(b *testing.B) {
	f, m := setup(b, Options{})
	for i, e := range full(100_000) {
		id := parry.BlockID(e.Prefix.String())
		m.blocks[id] = parry.Block{ID: id, Key: parry.Key{Match: parry.Match{Source: e.Prefix}}, Rev: parry.Revision(i + 1), CreatedAt: time.Now()}
		m.written[id] = parry.Revision(i + 1)
	}
	m.rev = 100_000
	f.o.Store = &quick{memory: m}
	for b.Loop() {
		if err := f.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// quick gives one changed block at a time after the first read, so that the store costs nothing.
type quick struct {
	*memory
	read bool
}

func (q *quick) Changes(ctx context.Context, since parry.Revision) (parry.Changes, error) {
	if !q.read {
		q.read = true
		return q.memory.Changes(ctx, since)
	}
	b := parry.Block{ID: "b-new", Rev: since + 1, Key: parry.Key{Match: parry.Match{Source: netip.MustParsePrefix("192.0.2.1/32")}}, Count: int64(since)}
	return parry.Changes{Revision: since + 1, Blocks: []parry.Block{b}}, nil
}
