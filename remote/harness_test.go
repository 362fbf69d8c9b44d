package remote_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/loopback"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/node"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/remote"
)

var ctx = context.Background()

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// Leases. A machine may stand still for a second, or be busy for as long.
const (
	// long is for sessions that are not to lose theirs. It is renewed so seldom that nobody
	// learns of anything by that within patience.
	long = 2 * time.Minute
	// short is for those that are to lose it, and have something to do before.
	short = 3 * time.Second
	// often is how often a session asks that is to learn of its end.
	often = 300 * time.Millisecond
)

// host is the address of this test's memory nodes.
var host = loopback.Host()

// A memoryNode is a node.Server on a pool directory that survives it.
type memoryNode struct {
	testing.TB
	dir           string
	lease         time.Duration
	tls           *tls.Config
	control, data string    // addresses, the same after each start
	nic           verbs.NIC // nil: no RDMA
	rdma          string    // address, as those above
	persistence   verbs.Persistence

	pool   *memnode.Pool // while it runs, as the next
	server *node.Server
	stop   func()
}

// newNode starts a memory node on a new pool.
func newNode(t testing.TB, lease time.Duration) *memoryNode {
	t.Helper()
	n := &memoryNode{TB: t, lease: lease}
	n.create()
	return n
}

// create makes the pool and starts the memory node.
func (n *memoryNode) create() {
	n.Helper()
	if n.dir == "" {
		n.dir = n.TempDir()
	}
	n.dir = filepath.Join(n.dir, "pool")
	if n.nic != nil && n.rdma == "" {
		n.rdma = host + ":0"
	}
	if err := memnode.Create(n.dir, memnode.CreateOptions{SizeBytes: 64 << 20}); err != nil {
		n.Fatal(err)
	}
	n.control, n.data = host+":0", host+":0"
	n.start()
	n.Cleanup(func() {
		if n.stop != nil {
			n.stop()
		}
	})
}

func (n *memoryNode) start() {
	n.Helper()
	pool, err := memnode.Open(n.dir, memnode.Options{KeepOrphans: true})
	if err != nil {
		n.Fatal(err)
	}
	control, data := n.listen(&n.control), n.listen(&n.data)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	cfg := node.Config{Pool: pool, Lease: n.lease, TLS: n.tls, Persistence: n.persistence}
	if n.nic != nil {
		if cfg.RDMA, err = n.nic.Listen(n.rdma); err != nil {
			n.Fatal(err)
		}
		n.rdma = cfg.RDMA.Addr().String()
	}
	server := node.NewServer(cfg)
	go func() { done <- server.Run(ctx, control, data) }()
	n.pool, n.server = pool, server
	n.stop = func() {
		n.stop = nil
		cancel()
		if err := <-done; err != nil {
			n.Errorf("serve: %v", err)
		}
		if err := pool.Close(); err != nil {
			n.Error(err)
		}
	}
}

func (n *memoryNode) listen(address *string) net.Listener {
	n.Helper()
	l, err := net.Listen("tcp", *address)
	if err != nil {
		n.Fatal(err)
	}
	*address = l.Addr().String()
	return l
}

func (n *memoryNode) restart() {
	n.Helper()
	n.stop()
	n.start()
}

// A path is a way to a memory node that the test can disturb.
type path struct{ control, data *proxy }

// path makes proxies at an address of their own, on the same ports: the
// memory node tells clients the port of its data path, not the host.
func (n *memoryNode) path() path { return n.pathTo(n.data) }

// pathTo is path with a data path of the test's own.
func (n *memoryNode) pathTo(data string) path {
	n.Helper()
	at := loopback.Host()
	before := func(address, target string) *proxy {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			n.Fatal(err)
		}
		return newProxy(n.TB, net.JoinHostPort(at, port), target)
	}
	return path{before(n.control, n.control), before(n.data, data)}
}

func (p path) set(w weather) {
	p.control.set(w)
	p.data.set(w)
}

func (p path) cut() {
	p.control.cut()
	p.data.cut()
}

func (p path) address() string { return p.control.listener.Addr().String() }

// open opens a session and closes it at the test's end.
func (n *memoryNode) open(cfg remote.Config) *remote.Pool {
	n.Helper()
	if cfg.Address == "" {
		cfg.Address = n.control
	}
	p, err := remote.Dial(ctx, cfg)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, remote.ErrClosed) && !errors.Is(err, rdmacache.ErrFenced) {
			n.Errorf("close: %v", err)
		}
	})
	return p
}

// over waits until a session is over.
func over(t *testing.T, p *remote.Pool) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatalf("the session is not over after %v", patience)
	}
	if err := p.Err(); !errors.Is(err, rdmacache.ErrFenced) {
		t.Fatalf("got %v, want %v", err, rdmacache.ErrFenced)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}
