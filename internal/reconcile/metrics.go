package reconcile

import (
	"cmp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parry/parry/internal/parry"
)

// metrics are the reconciler's, as one collector. Labels are firewalls, kinds, states and failures, never addresses.
type metrics struct {
	r       *Reconciler
	runs    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	accept  *prometheus.HistogramVec
	proven  *prometheus.GaugeVec
	drifts  *prometheus.CounterVec

	lane, reality, blocks, clock *prometheus.Desc
}

func newMetrics(r *Reconciler) *metrics {
	return &metrics{
		r: r,
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parry_runs_total", Help: "Finished playbook runs; result is succeeded or the failure's name.",
		}, []string{"firewall", "kind", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "parry_run_duration_seconds", Help: "Time that playbook runs took.", Buckets: []float64{.25, .5, 1, 2, 4, 8, 15, 30, 60, 120, 300},
		}, []string{"firewall", "kind"}),
		accept: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "parry_enforcement_seconds", Help: "Time from a block's acceptance to its proof on a firewall.",
			Buckets: []float64{.5, 1, 2, 4, 8, 15, 30, 60, 300, 900, 3600},
		}, []string{"firewall"}),
		proven: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "parry_firewall_proved_timestamp_seconds", Help: "When the firewall last proved what it holds.",
		}, []string{"firewall"}),
		drifts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "parry_firewall_drifts_total", Help: "Verifies that read something else than was proved.",
		}, []string{"firewall"}),
		reality: prometheus.NewDesc("parry_firewall_reality", "1 for what is known of what the firewall holds: ok, drifted or unknown.", []string{"firewall", "reality"}, nil),
		lane:    prometheus.NewDesc("parry_lane_state", "1 for the state that the firewall's lane is in.", []string{"firewall", "state"}, nil),
		blocks:  prometheus.NewDesc("parry_firewall_blocks", "Live blocks meant for the firewall, by state.", []string{"firewall", "state"}, nil),
		clock:   prometheus.NewDesc("parry_expiry_held", "1 while expiry is held because the clock was set.", nil, nil),
	}
}

func (m *metrics) vecs() []prometheus.Collector {
	return []prometheus.Collector{m.runs, m.seconds, m.accept, m.proven, m.drifts}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, v := range m.vecs() {
		v.Describe(c)
	}
	c <- m.lane
	c <- m.reality
	c <- m.blocks
	c <- m.clock
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	for _, v := range m.vecs() {
		v.Collect(c)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range m.r.Status() {
		for _, state := range LaneStates {
			v := 0.0
			if s.State == state {
				v = 1
			}
			gauge(m.lane, v, s.Firewall, string(state))
		}
		for _, r := range []parry.Reality{parry.RealityOK, parry.RealityDrifted, parry.RealityUnknown} {
			v := 0.0
			if s.Reality == r {
				v = 1
			}
			gauge(m.reality, v, s.Firewall, string(r))
		}
		gauge(m.blocks, float64(s.Enforced), s.Firewall, "enforced")
		gauge(m.blocks, float64(s.Pending), s.Firewall, "pending")
		gauge(m.blocks, float64(s.Rejected), s.Firewall, "rejected")
	}
	held := 0.0
	if m.r.ClockHeld() != nil {
		held = 1
	}
	gauge(m.clock, held)
}

// ran counts a finished run.
func (m *metrics) ran(r *parry.Run) {
	m.runs.WithLabelValues(r.Firewall, string(r.Kind), cmp.Or(string(r.Failure), string(parry.RunSucceeded))).Inc()
	m.seconds.WithLabelValues(r.Firewall, string(r.Kind)).Observe(r.EndedAt.Sub(r.StartedAt).Seconds())
	if r.State == parry.RunSucceeded && r.Kind != parry.RunCheck {
		m.proven.WithLabelValues(r.Firewall).Set(float64(r.EndedAt.UnixMilli()) / 1000)
	}
}

// forget drops a firewall's series.
func (m *metrics) forget(firewall string) {
	l := prometheus.Labels{"firewall": firewall}
	m.runs.DeletePartialMatch(l)
	m.seconds.DeletePartialMatch(l)
	m.accept.DeletePartialMatch(l)
	m.proven.DeletePartialMatch(l)
}

// proved observes how long the blocks of revisions in (from, to] have waited for their proof.
func (m *metrics) proved(firewall string, v *view, s *scope, from, to parry.Revision, at time.Time) {
	h := m.accept.WithLabelValues(firewall)
	v.between(s, from, to, func(b *standing) {
		h.Observe(max(0, float64(at.UnixMilli()-b.created)/1000))
	})
}
