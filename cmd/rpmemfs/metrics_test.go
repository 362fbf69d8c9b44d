package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/volume"
)

// runMetrics serves m while the test runs and returns a function that scrapes it.
func runMetrics(t *testing.T, m *metricsServer) (scrape func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() string {
		t.Helper()
		code, body := get(t, "http://"+m.listener.Addr().String()+"/metrics")
		if code != 200 {
			t.Errorf("got status %d: %s", code, body)
		}
		return body
	}
}

func newPool(t *testing.T, opts memnode.Options) *memnode.Pool {
	t.Helper()
	pool, _, err := memnode.OpenOrCreate(filepath.Join(t.TempDir(), "pool"), memnode.CreateOptions{SizeBytes: 16 << 20}, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return pool
}

// expectMetrics compares lines of a scrape.
func expectMetrics(t *testing.T, body string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(body, "\n"+line+"\n") {
			name := regexp.MustCompile(`^\w+`).FindString(line)
			t.Errorf("got %q, want %q", regexp.MustCompile(`(?m)^`+name+`\b.*`).FindAllString(body, -1), line)
		}
	}
}

// brokenConn fails where it is told to.
type brokenConn struct {
	rdmacache.Conn
	err error
}

func (b *brokenConn) Flush(ctx context.Context) error {
	if b.err != nil {
		return b.err
	}
	return b.Conn.Flush(ctx)
}

// A mount tells what passes its connection, what its volume counts, and when its
// lease is lost.
func TestMountMetrics(t *testing.T) {
	m, err := listenMetrics("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(t, memnode.Options{})
	broken := &brokenConn{Conn: inproc.Dial(pool)}
	conn := m.meter(broken)
	vol := volume.New(volume.Config{Pool: pool, Conn: conn, Committed: m.commits()})
	defer func() {
		if err := errors.Join(vol.Close(context.Background()), conn.Close()); err != nil {
			t.Error(err)
		}
	}()
	var lost error
	attached := []attach.Status{{CalledOff: 3, Members: make([]attach.Member, 2)}, {Members: make([]attach.Member, 1)}}
	m.addMount(vol, func() []attach.Status { return attached }, func() error { return lost })
	scrape := runMetrics(t, m)

	ctx := t.Context()
	page := make([]byte, rdmacache.PageSize)
	if err := errors.Join(conn.Write(ctx, page, 2*rdmacache.PageSize), conn.Flush(ctx), conn.Read(ctx, page, 2*rdmacache.PageSize)); err != nil {
		t.Fatal(err)
	}
	broken.err = errors.New("broken")
	if err := conn.Flush(ctx); !errors.Is(err, broken.err) {
		t.Errorf("flush: got %v", err)
	}
	broken.err = context.Canceled
	if err := conn.Flush(ctx); !errors.Is(err, broken.err) {
		t.Errorf("flush: got %v", err)
	}
	broken.err = nil
	expectMetrics(t, scrape(),
		"rpmemfs_pushed_bytes_total 4096", "rpmemfs_read_bytes_total 4096", "rpmemfs_flush_seconds_count 3", "rpmemfs_read_seconds_count 1",
		"rpmemfs_pool_errors_total 1", "rpmemfs_flushes_in_flight 0", "rpmemfs_pool_size_bytes 1.677312e+07", "rpmemfs_commits_total 0",
		"rpmemfs_attached_files 2", "rpmemfs_attached_programs 3", "rpmemfs_barriers_called_off 3",
		"rpmemfs_lease_held 1", `rpmemfs_snapshot_errors_total{source="volume"} 0`)
	a, err := vol.Create(ctx, namespace.Root, "file", namespace.Inode{Mode: unix.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	h, err := vol.Open(ctx, a.Ino)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if _, err := h.Write(ctx, []byte(text), 0, rdmacache.FromWrite); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(h.Sync(ctx), h.Sync(ctx)); err != nil { // the second has nothing to do
			t.Fatal(err)
		}
	}
	h.Release(ctx)
	expectMetrics(t, scrape(), "rpmemfs_commits_total 2", "rpmemfs_commit_seconds_count 2")
	lost = rdmacache.ErrFenced
	expectMetrics(t, scrape(), "rpmemfs_lease_held 0")
}

func TestRDMAMetrics(t *testing.T) {
	m, err := listenMetrics("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	m.addRDMA((&embedded{}).rdma) // has none
	m.addRDMA(func() (verbs.Stats, bool) {
		return verbs.Stats{Posts: 1, RecvPosts: 2, Polls: 3, Waits: 4, RoundTrips: 5, Commits: 6, Connections: 7}, true
	})
	expectMetrics(t, runMetrics(t, m)(), "rpmemfs_rdma_calls_total 10", "rpmemfs_rdma_round_trips_total 5",
		"rpmemfs_rdma_commits_total 6", "rpmemfs_rdma_connections_total 7")
}

// A memory node tells of its shares and who has them.
func TestNodeMetrics(t *testing.T) {
	m, err := listenMetrics("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(t, memnode.Options{KeepOrphans: true})
	stats := node.Stats{Readers: 10, Refused: 11, Failed: 12, Strangers: 8, Dropped: 9, Waiting: 1, Granted: 2, KeptAlive: 3, Expired: 4, Stolen: 5, Closed: 6, Ended: 7}
	m.addNode(pool, func() node.Stats { return stats })
	scrape := runMetrics(t, m)
	share, err := pool.MakeShare(t.Context(), "web", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.MakeShare(t.Context(), "free", 0); err != nil {
		t.Fatal(err)
	}
	lease, err := pool.GrantLease(t.Context(), memnode.Lease{Share: share.Ino, Session: [16]byte{1}, Holder: "h", Timeout: 10e9})
	if err != nil {
		t.Fatal(err)
	}
	body := scrape()
	expectMetrics(t, body, "rpmemfs_shares 2", "rpmemfs_leases 1", `rpmemfs_share_quota_bytes{share="web"} 1.048576e+06`,
		`rpmemfs_share_used_bytes{share="free"} 0`, `rpmemfs_snapshot_errors_total{source="pool"} 0`)
	if lease.Generation != 2 {
		t.Errorf("generation %d", lease.Generation)
	}
	expectMetrics(t, body, "rpmemfs_lease_waiters 1", "rpmemfs_leases_granted_total 2", "rpmemfs_lease_renewals_total 3",
		`rpmemfs_leases_ended_total{how="expired"} 4`, `rpmemfs_leases_ended_total{how="stolen"} 5`,
		`rpmemfs_leases_ended_total{how="closed"} 6`, `rpmemfs_leases_ended_total{how="operator"} 7`,
		"rpmemfs_readers 10", `rpmemfs_data_errors_total{how="refused"} 11`, `rpmemfs_data_errors_total{how="failed"} 12`, "rpmemfs_strangers 8", "rpmemfs_connections_dropped_total 9")
	expectMetrics(t, body, `rpmemfs_lease_generation{share="web"} 2`)
	if strings.Contains(body, `rpmemfs_share_quota_bytes{share="free"}`) {
		t.Error("a share without a quota has one")
	}
}

func TestListenMetricsFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listenMetrics(l.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), "--metrics 127.0.0.1:") {
		t.Errorf("got %v, want an error of an address in use", err)
	}
}
