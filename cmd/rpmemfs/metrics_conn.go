package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/metrics"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A meteredConn counts what passes a Conn. A flush is what a commit waits for: one
// for each commit, unless the log is cut.
type meteredConn struct {
	rdmacache.Conn
	flushed func(time.Duration)
	read    func(time.Duration)

	// Each publishes only itself.
	written, readBytes atomic.Uint64
	flushing           atomic.Int64
	failed             atomic.Uint64
}

// meter returns conn with its metrics added.
func (m *metricsServer) meter(conn rdmacache.Conn) rdmacache.Conn {
	c := &meteredConn{
		Conn:    conn,
		flushed: m.Durations("rpmemfs_flush_seconds", "From a commit's flush until it is durable."),
		read:    m.Durations("rpmemfs_read_seconds", "Reads from the pool, as page faults wait for them."),
	}
	self := func(context.Context) (*meteredConn, error) { return c, nil }
	metrics.Add(m.Registry, "connection", self,
		metrics.Metric[*meteredConn]{
			Kind: metrics.Counter, Name: "rpmemfs_pushed_bytes_total", Help: "Written to the pool by this mount.",
			Value: func(c *meteredConn) float64 { return float64(c.written.Load()) },
		},
		metrics.Metric[*meteredConn]{
			Kind: metrics.Counter, Name: "rpmemfs_read_bytes_total", Help: "Read from the pool by this mount.",
			Value: func(c *meteredConn) float64 { return float64(c.readBytes.Load()) },
		},
		metrics.Metric[*meteredConn]{
			Kind: metrics.Gauge, Name: "rpmemfs_flushes_in_flight", Help: "Commits that wait to be durable.",
			Value: func(c *meteredConn) float64 { return float64(c.flushing.Load()) },
		},
		metrics.Metric[*meteredConn]{
			Kind: metrics.Counter, Name: "rpmemfs_pool_errors_total", Help: "Reads, writes and flushes of the pool that failed.",
			Value: func(c *meteredConn) float64 { return float64(c.failed.Load()) },
		},
	)
	return c
}

// Read implements region.Device.
func (c *meteredConn) Read(ctx context.Context, p []byte, off int64) error {
	begun := time.Now()
	err := c.Conn.Read(ctx, p, off)
	c.read(time.Since(begun))
	c.readBytes.Add(uint64(len(p)))
	return c.count(err)
}

// Write implements region.Device.
func (c *meteredConn) Write(ctx context.Context, p []byte, off int64) error {
	c.written.Add(uint64(len(p)))
	return c.count(c.Conn.Write(ctx, p, off))
}

// Flush implements region.Device.
func (c *meteredConn) Flush(ctx context.Context) error {
	c.flushing.Add(1)
	begun := time.Now()
	err := c.Conn.Flush(ctx)
	c.flushed(time.Since(begun))
	c.flushing.Add(-1)
	return c.count(err)
}

func (c *meteredConn) count(err error) error {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.failed.Add(1)
	}
	return err
}
