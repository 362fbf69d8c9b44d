package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/rpmemfs/rpmemfs/internal/metrics"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A metricsServer is what --metrics asks for: a registry, and where it listens.
type metricsServer struct {
	*metrics.Registry
	listener net.Listener
}

// listenMetrics opens the listener of --metrics. Who gets the server calls run, or
// closes the listener.
func listenMetrics(address string, log *slog.Logger) (*metricsServer, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", address, err)
	}
	return &metricsServer{metrics.New(version(), log), l}, nil
}

// run serves until ctx is done, and closes the listener.
func (m *metricsServer) run(ctx context.Context, health func(context.Context) error) error {
	return m.Run(ctx, m.listener, health)
}

// usageMetrics are those of a pool, or share, and its medium. T has both.
func usageMetrics[T any](usage func(T) namespace.Usage, traffic func(T) rdmacache.Traffic) []metrics.Metric[T] {
	return []metrics.Metric[T]{
		{
			Kind: metrics.Gauge, Name: "rpmemfs_pool_size_bytes", Help: "Size of the pool, or quota of the share.",
			Value: func(v T) float64 { return float64(usage(v).Slots) * region.PageSize },
		},
		{
			Kind: metrics.Gauge, Name: "rpmemfs_pool_free_bytes", Help: "Of the size, not granted to any file.",
			Value: func(v T) float64 { return float64(usage(v).FreeSlots) * region.PageSize },
		},
		{
			Kind: metrics.Gauge, Name: "rpmemfs_pool_inodes", Help: "Inodes in use.",
			Value: func(v T) float64 { return float64(usage(v).Inodes) },
		},
		{
			Kind: metrics.Counter, Name: "rpmemfs_medium_written_bytes_total", Help: "Written to the pool's medium, the directory apart.",
			Value: func(v T) float64 { return float64(traffic(v).BytesWritten) },
		},
		{
			Kind: metrics.Counter, Name: "rpmemfs_medium_flushes_total", Help: "Flushes of the pool's medium, which concurrent commits share.",
			Value: func(v T) float64 { return float64(traffic(v).Flushes) },
		},
	}
}

// truth is a bool as a metric.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
