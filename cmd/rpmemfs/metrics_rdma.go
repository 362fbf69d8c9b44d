package main

import (
	"context"

	"github.com/rpmemfs/rpmemfs/internal/metrics"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// addRDMA adds the metrics of a data path over RDMA, if it is one.
func (m *metricsServer) addRDMA(stats func() (verbs.Stats, bool)) {
	if _, ok := stats(); !ok {
		return
	}
	read := func(context.Context) (verbs.Stats, error) {
		s, _ := stats() // it stays what it is
		return s, nil
	}
	metrics.Add(m.Registry, "rdma", read, rdmaMetrics...)
}

var rdmaMetrics = []metrics.Metric[verbs.Stats]{
	{
		Kind: metrics.Counter, Name: "rpmemfs_rdma_round_trips_total", Help: "What somebody had to wait for: reads, and what makes writes persistent.",
		Value: func(s verbs.Stats) float64 { return float64(s.RoundTrips) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_rdma_commits_total", Help: "Flushes; callers who share one count once.",
		Value: func(s verbs.Stats) float64 { return float64(s.Commits) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_rdma_calls_total", Help: "Calls into rdma-core.",
		Value: func(s verbs.Stats) float64 { return float64(s.Crossings()) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_rdma_connections_total", Help: "Queue pairs that were made; those after the first ones replace broken ones.",
		Value: func(s verbs.Stats) float64 { return float64(s.Connections) },
	},
}
