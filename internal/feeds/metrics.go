package feeds

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics never have an address or a token as a label; feeds are as many as the operator made.
type metrics struct {
	feeds                         *Feeds
	requests                      *prometheus.CounterVec
	entries, age, readers, behind *prometheus.Desc
}

func newMetrics(f *Feeds, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		feeds: f,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parry_feed_requests_total", Help: "Requests for a feed, by status: 304 is a consumer that had it already.",
		}, []string{"feed", "code"}),
		entries: prometheus.NewDesc("parry_feed_entries", "Keys of a feed.", []string{"feed"}, nil),
		readers: prometheus.NewDesc("parry_feed_readers", "Consumers that read a feed in the last 30 days.", []string{"feed"}, nil),
		behind: prometheus.NewDesc("parry_feed_behind_seconds",
			"For how long a feed has differed from what its furthest consumer has; 0 when all are up to date.", []string{"feed"}, nil),
		age: prometheus.NewDesc("parry_feed_age_seconds", "How long ago the feeds were brought up to date.", nil, nil),
	}
	if err := r.Register(m.requests); err != nil {
		return nil, err
	}
	return m, r.Register(m)
}

// Count counts an answer to a request for a feed.
func (f *Feeds) Count(name string, status int) {
	f.mu.RLock()
	known := f.feeds[name] != nil
	f.mu.RUnlock()
	if !known {
		name = "unknown" // a caller cannot make labels
	}
	f.metrics.requests.WithLabelValues(name, strconv.Itoa(status)).Inc()
}

func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.entries, m.age, m.readers, m.behind} {
		c <- d
	}
}

func (m *metrics) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	all, fresh := m.feeds.Status()
	for _, s := range all {
		gauge(m.entries, float64(s.Entries), s.Name)
	}
	now := m.feeds.o.Now()
	if !fresh.IsZero() {
		gauge(m.age, now.Sub(fresh).Seconds())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	readers, err := m.feeds.Readers(ctx)
	if err != nil {
		return // absent rather than wrong
	}
	for _, s := range all {
		count, late := 0, time.Duration(0)
		for _, r := range readers {
			if r.Feed != s.Name {
				continue
			}
			count++
			if !r.Behind.IsZero() {
				late = max(late, now.Sub(r.Behind))
			}
		}
		gauge(m.readers, float64(count), s.Name)
		gauge(m.behind, late.Seconds(), s.Name)
	}
}
