package main

import (
	"context"
	"time"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/internal/metrics"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/volume"
)

// addMount adds the metrics of a mount: of its volume, of programs that are attached,
// and whether it may still write. lost tells why it may not; nil: it may.
func (m *metricsServer) addMount(vol *volume.Volume, attached func() []attach.Status, lost func() error) {
	list := append(usageMetrics(
		func(s volume.Status) namespace.Usage { return s.Usage },
		func(s volume.Status) rdmacache.Traffic { return s.Traffic },
	), volumeMetrics...)
	metrics.Add(m.Registry, "volume", vol.Status, list...)

	attachedNow := func(context.Context) ([]attach.Status, error) { return attached(), nil }
	metrics.Add(m.Registry, "attached", attachedNow, attachMetrics...)

	lease := func(context.Context) (bool, error) { return lost() == nil, nil }
	metrics.Add(m.Registry, "lease", lease, metrics.Metric[bool]{
		Kind: metrics.Gauge, Name: "rpmemfs_lease_held", Help: "0 once the mount has lost its lease and can write nothing more.",
		Value: truth,
	})
}

// commits returns what is told how long commits took.
func (m *metricsServer) commits() func(time.Duration) {
	return m.Durations("rpmemfs_commit_seconds", "Commits, from when a program, a timer or a close asks for one until it is durable.")
}

// pauses returns what is told how long attached programs were paused.
func (m *metricsServer) pauses() func(time.Duration) {
	return m.Durations("rpmemfs_pause_seconds", "Pauses of attached programs, from when the last thread came to a restart point until they went on.")
}

// addPages adds the metrics of clean pages in local memory; pages may be nil.
func (m *metricsServer) addPages(pages *rdmacache.Pages) {
	if pages == nil {
		return
	}
	read := func(context.Context) (rdmacache.PagesStats, error) { return pages.Stats(), nil }
	metrics.Add(m.Registry, "pages", read, pagesMetrics...)
}

var pagesMetrics = []metrics.Metric[rdmacache.PagesStats]{
	{
		Kind: metrics.Counter, Name: "rpmemfs_read_pages_total", Help: "Pages that the kernel asked for: found in local memory (hit), on their way for somebody else (merged), fetched (miss).",
		Label: "how", Points: func(s rdmacache.PagesStats) []metrics.Point {
			return []metrics.Point{
				{Name: "hit", Value: float64(s.Hits)},
				{Name: "merged", Value: float64(s.Merged)},
				{Name: "miss", Value: float64(s.Misses)},
			}
		},
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_read_requests_total", Help: "Requests for pages that went to the memory node.",
		Value: func(s rdmacache.PagesStats) float64 { return float64(s.Reads) },
	},
}

var volumeMetrics = []metrics.Metric[volume.Status]{
	{
		Kind: metrics.Gauge, Name: "rpmemfs_pool_volatile", Help: "1 if the pool is lost with the machine.",
		Value: func(s volume.Status) float64 { return truth(s.Medium.Volatile) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_commits_total", Help: "Epochs that made something durable.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.Commits) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_committed_pages_total", Help: "Pages of committed epochs.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.PagesCommitted) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_unchanged_pages_total", Help: "Pages that arrived but equalled what was there.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.PagesUnchanged) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_rollbacks_total", Help: "Open epochs thrown away.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.Rollbacks) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_rolled_back_pages_total", Help: "Pages of epochs thrown away.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.RolledBackPages) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_failed_closes_total", Help: "Last closes whose commit failed.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.FailedCloses) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_dirty_pages", Help: "Pages of open epochs.",
		Value: func(s volume.Status) float64 { return float64(s.DirtyPages) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_epochs_in_flight", Help: "Epochs that were sent and are not known to be durable.",
		Value: func(s volume.Status) float64 { return float64(s.InFlight) },
	},
	{
		Kind: metrics.Counter, Name: "rpmemfs_seals_delayed_total", Help: "Epochs that were sealed later because too many of their file were in flight.",
		Value: func(s volume.Status) float64 { return float64(s.Counters.SealsDelayed) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_open_files", Help: "Files that are open, or were a short while ago.",
		Value: func(s volume.Status) float64 { return float64(s.OpenFiles) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_open_handles", Help: "Open handles of files.",
		Value: func(s volume.Status) float64 { return float64(s.OpenHandles) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_poisoned_files", Help: "Files that take no more commits since one failed.",
		Value: func(s volume.Status) float64 { return float64(s.PoisonedFiles) },
	},
}

// What is summed over attached files falls when one is closed, so these are gauges.
var attachMetrics = []metrics.Metric[[]attach.Status]{
	{
		Kind: metrics.Gauge, Name: "rpmemfs_attached_files", Help: "Files that programs are attached to.",
		Value: func(files []attach.Status) float64 { return float64(len(files)) },
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_attached_programs", Help: "Programs that are attached, once a file.",
		Value: func(files []attach.Status) float64 {
			n := 0
			for _, f := range files {
				n += len(f.Members)
			}
			return float64(n)
		},
	},
	{
		Kind: metrics.Gauge, Name: "rpmemfs_barriers_called_off", Help: "Barriers of the attached files that a thread was late for.",
		Value: func(files []attach.Status) float64 {
			n := uint64(0)
			for _, f := range files {
				n += f.CalledOff
			}
			return float64(n)
		},
	},
}
