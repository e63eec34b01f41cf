package lists

import "github.com/prometheus/client_golang/prometheus"

// metrics have the lists' names as labels, which operators give; never a key.
type metrics struct {
	found, misses         prometheus.Counter
	sent, failed, dropped prometheus.Counter

	lists             *Lists
	entries, capacity *prometheus.Desc
}

func newMetrics(r prometheus.Registerer, l *Lists) (*metrics, error) {
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "parry_list_lookups_total", Help: "Keys looked up on an active list, by whether they were on it.",
	}, []string{"result"})
	hits := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "parry_list_hit_lines_total", Help: "Syslog lines about list hits: sent, failed (the server did not take it), dropped (too many waited).",
	}, []string{"outcome"})
	m := &metrics{
		found: lookups.WithLabelValues("found"), misses: lookups.WithLabelValues("missed"),
		sent: hits.WithLabelValues("sent"), failed: hits.WithLabelValues("failed"), dropped: hits.WithLabelValues("dropped"),
		lists:    l,
		entries:  prometheus.NewDesc("parry_list_entries", "Entries in memory.", []string{"list"}, nil),
		capacity: prometheus.NewDesc("parry_list_capacity", "Entries that a list takes.", []string{"list"}, nil),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{lookups, hits, m} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	c <- m.entries
	c <- m.capacity
}

func (m *metrics) Collect(c chan<- prometheus.Metric) {
	for name, x := range *m.lists.set.Load() {
		c <- prometheus.MustNewConstMetric(m.entries, prometheus.GaugeValue, float64(x.size()), name)
		c <- prometheus.MustNewConstMetric(m.capacity, prometheus.GaugeValue, float64(x.definition().Capacity), name)
	}
}
