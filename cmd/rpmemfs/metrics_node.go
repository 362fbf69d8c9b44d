package main

import (
	"context"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/metrics"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A nodeState is what a memory node tells of itself in one scrape.
type nodeState struct {
	usage   namespace.Usage
	traffic rdmacache.Traffic
	medium  rdmacache.Medium
	shares  []memnode.Share
	leases  []memnode.Lease
	names   map[namespace.Ino]string // of shares
	now     time.Time
}

// addNode adds the metrics of a pool that is served, and of the sessions.
func (m *metricsServer) addNode(pool *memnode.Pool, stats func() node.Stats) {
	read := func(ctx context.Context) (nodeState, error) {
		s := nodeState{
			traffic: pool.Traffic(), medium: pool.Medium(), now: time.Now(),
			names: map[namespace.Ino]string{namespace.Root: nodepb.WholePool},
		}
		var err error
		if s.usage, err = pool.Usage(ctx); err != nil {
			return s, err
		}
		if s.shares, err = pool.Shares(ctx); err != nil {
			return s, err
		}
		for _, share := range s.shares {
			s.names[share.Ino] = share.Name
		}
		s.leases, err = pool.Leases(ctx)
		return s, err
	}
	list := append(usageMetrics(
		func(s nodeState) namespace.Usage { return s.usage },
		func(s nodeState) rdmacache.Traffic { return s.traffic },
	), nodeMetrics...)
	metrics.Add(m.Registry, "pool", read, list...)

	sessions := func(context.Context) (node.Stats, error) { return stats(), nil }
	metrics.Add(m.Registry, "sessions", sessions, sessionMetrics...)
}

var sessionMetrics = []metrics.Metric[node.Stats]{
	{
		Kind: metrics.Gauge, Name: "rpmemfs_lease_waiters", Help: "Callers that wait for a lease.",
		Value: func(s node.Stats) float64 { return float64(s.Waiting) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_readers", Help: "Sessions that only read.",
		Value: func(s node.Stats) float64 { return float64(s.Readers) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_data_errors_total", Help: "Reads, writes and flushes of data: refused, because the session had no right to them, or no more; failed otherwise.",
		Label: "how", Points: func(s node.Stats) []metrics.Point {
			return []metrics.Point{
				{Name: "failed", Value: float64(s.Failed)},
				{Name: "refused", Value: float64(s.Refused)},
			}
		},
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_strangers", Help: "Connections that have not shown yet who they are.",
		Value: func(s node.Stats) float64 { return float64(s.Strangers) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_connections_dropped_total", Help: "Connections that were cut to make room for others.",
		Value: func(s node.Stats) float64 { return float64(s.Dropped) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_leases_granted_total", Help: "Leases granted.",
		Value: func(s node.Stats) float64 { return float64(s.Granted) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_lease_renewals_total", Help: "Times that a holder kept its lease alive.",
		Value: func(s node.Stats) float64 { return float64(s.KeptAlive) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_leases_ended_total", Help: "Leases that ended: closed by their holder, expired in silence, stolen by the next, ended by an operator.",
		Label: "how", Points: func(s node.Stats) []metrics.Point {
			return []metrics.Point{
				{Name: "closed", Value: float64(s.Closed)},
				{Name: "expired", Value: float64(s.Expired)},
				{Name: "operator", Value: float64(s.Ended)},
				{Name: "stolen", Value: float64(s.Stolen)},
			}
		},
	},
}

var nodeMetrics = []metrics.Metric[nodeState]{
	{
		Kind: metrics.Gauge, Name: "rpmemfs_pool_volatile", Help: "1 if the pool is lost with the machine.",
		Value: func(s nodeState) float64 { return truth(s.medium.Volatile) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_shares", Help: "Shares of the pool.",
		Value: func(s nodeState) float64 { return float64(len(s.shares)) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_leases", Help: "Leases that are held.",
		Value: func(s nodeState) float64 { return float64(len(s.leases)) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_lease_age_seconds", Help: "Since the lease of the share was granted; missing: nobody has it. The whole pool is /.",
		Label: "share", Points: func(s nodeState) []metrics.Point {
			var points []metrics.Point
			for _, l := range s.leases {
				points = append(points, metrics.Point{Name: s.names[l.Share], Value: s.now.Sub(time.Unix(0, l.Granted)).Seconds()})
			}
			return points
		},
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_lease_generation", Help: "Generation of the lease of the share: rises with each.",
		Label: "share", Points: func(s nodeState) []metrics.Point {
			var points []metrics.Point
			for _, l := range s.leases {
				points = append(points, metrics.Point{Name: s.names[l.Share], Value: float64(l.Generation)})
			}
			return points
		},
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_share_used_bytes", Help: "Granted to the files of the share.",
		Label: "share", Points: func(s nodeState) []metrics.Point {
			var points []metrics.Point
			for _, share := range s.shares {
				points = append(points, metrics.Point{Name: share.Name, Value: float64(share.UsedBytes)})
			}
			return points
		},
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_share_quota_bytes", Help: "Quota of the share; missing: none.",
		Label: "share", Points: func(s nodeState) []metrics.Point {
			var points []metrics.Point
			for _, share := range s.shares {
				if share.Quota > 0 {
					points = append(points, metrics.Point{Name: share.Name, Value: float64(share.Quota)})
				}
			}
			return points
		},
	},
}
