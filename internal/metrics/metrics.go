// Package metrics tells Prometheus what a daemon counts, over HTTP.
//
// The daemons count for themselves. For each scrape a Registry asks their functions
// for a snapshot and makes metrics of it; only what has a distribution is
// observed as it happens (Durations). Names follow Prometheus' rules: rpmemfs_ in
// front, the base unit at the end, _total for counters.
package metrics

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

const (
	// snapshotTimeout bounds one snapshot.
	snapshotTimeout = 5 * time.Second
	// maxSeries bounds the series of one metric: shares and holders are named by
	// others, and each name is memory here and in Prometheus for weeks.
	maxSeries = 256
	// maxLabel bounds a label's value in bytes.
	maxLabel = 128
)

// A Registry is all that a daemon tells. It is filled before Run.
type Registry struct {
	registry *prometheus.Registry
	errors   *prometheus.CounterVec // snapshots that failed, by source
	dropped  *prometheus.CounterVec // series left out, by metric
	log      *slog.Logger
}

// New returns a registry with what every program has: its version, its process,
// the Go runtime. A nil log discards.
func New(version string, log *slog.Logger) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{
		registry: prometheus.NewPedanticRegistry(),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rpmemfs_snapshot_errors_total", Help: "Scrapes that lack metrics because their source failed.",
		}, []string{"source"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rpmemfs_dropped_series_total", Help: "Series left out of scrapes because a metric had too many.",
		}, []string{"metric"}),
		log: log,
	}
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rpmemfs_build_info", Help: "1; the label is the version.",
		ConstLabels: prometheus.Labels{"version": label(version)},
	}, func() float64 { return 1 })
	r.registry.MustRegister(info, r.errors, r.dropped,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Durations returns a function that observes a duration in a histogram of 10 µs to
// 10 s. The name has to end in _seconds.
func (r *Registry) Durations(name, help string) func(time.Duration) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(10e-6, 2, 21),
	})
	r.registry.MustRegister(h)
	return func(d time.Duration) { h.Observe(d.Seconds()) }
}

// A Kind is what a number does over time.
type Kind prometheus.ValueType

const (
	Gauge   = Kind(prometheus.GaugeValue)   // goes up and down
	Counter = Kind(prometheus.CounterValue) // only up, from 0 at the daemon's start
)

// A Metric is a number of a snapshot, or with a Label one for each of some names.
type Metric[T any] struct {
	Kind   Kind
	Name   string
	Help   string
	Value  func(T) float64
	Label  string          // empty: Value; otherwise Points
	Points func(T) []Point // the first maxSeries by name are told
}

// A Point is a number of one name.
type Point struct {
	Name  string // the label's value
	Value float64
}

// Add adds metrics of a snapshot that read takes once a scrape. read is called by
// several scrapes at a time. Where it fails its metrics are missing, and the
// source is counted in rpmemfs_snapshot_errors_total.
func Add[T any](r *Registry, source string, read func(context.Context) (T, error), metrics ...Metric[T]) {
	s := &snapshot[T]{registry: r, source: source, read: read, metrics: metrics}
	for _, m := range metrics {
		var labels []string
		if m.Label != "" {
			labels = []string{m.Label}
		}
		s.descs = append(s.descs, prometheus.NewDesc(m.Name, m.Help, labels, nil))
	}
	r.errors.WithLabelValues(source) // 0 is told too
	r.registry.MustRegister(s)
}

// A snapshot is a source of metrics.
type snapshot[T any] struct {
	registry *Registry
	source   string
	read     func(context.Context) (T, error)
	metrics  []Metric[T]
	descs    []*prometheus.Desc // of metrics
}

// Describe implements prometheus.Collector.
func (s *snapshot[T]) Describe(out chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *snapshot[T]) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTimeout)
	defer cancel()
	v, err := s.read(ctx)
	if err != nil {
		s.registry.errors.WithLabelValues(s.source).Inc()
		s.registry.log.Warn("a scrape lacks metrics", "source", s.source, "err", err)
		return
	}
	for i, m := range s.metrics {
		kind := prometheus.ValueType(m.Kind)
		if m.Label == "" {
			out <- prometheus.MustNewConstMetric(s.descs[i], kind, m.Value(v))
			continue
		}
		for _, p := range s.registry.bound(m.Name, m.Points(v)) {
			out <- prometheus.MustNewConstMetric(s.descs[i], kind, p.Value, p.Name)
		}
	}
}

// bound sorts points by name and drops those that are too many, and those whose
// names have become equal to another's: Prometheus takes no name twice.
func (r *Registry) bound(metric string, points []Point) []Point {
	told := make([]Point, len(points))
	for i, p := range points {
		told[i] = Point{label(p.Name), p.Value}
	}
	slices.SortStableFunc(told, func(a, b Point) int { return strings.Compare(a.Name, b.Name) })
	told = slices.CompactFunc(told, func(a, b Point) bool { return a.Name == b.Name })
	told = told[:min(len(told), maxSeries)]
	if dropped := len(points) - len(told); dropped > 0 {
		r.dropped.WithLabelValues(metric).Add(float64(dropped))
	}
	return told
}

// label makes a label's value of any bytes.
func label(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxLabel)], "\uFFFD")
}
