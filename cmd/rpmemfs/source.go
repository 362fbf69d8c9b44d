package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/nodeurl"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A source is what a mount shows: a pool of its own, or a share of a memory node.
type source interface {
	volume.Pool
	conn() rdmacache.Conn
	// done is closed when the mount may write no more; why tells the reason. It is
	// nil for a pool of its own.
	done() <-chan struct{}
	why() error
	// readAhead is how many bytes the kernel should ask for ahead of a program; 0 is
	// its own choice.
	readAhead() int
	// rdma is what the data path has counted, if it is over RDMA and writes.
	rdma() (verbs.Stats, bool)
	close() error
}

// farAhead hides the round trips of a network: with the kernel's own 128 KiB a cold
// sequential read waits for one after the other (docs/rationale.md).
const farAhead = 512 << 10

// defaultCache is what a mount of a memory node keeps of clean pages, in bytes.
const defaultCache = 64 << 20

// pages returns what keeps clean pages; nil where the pool is in this process, and nobody
// asked for it.
func (o *options) pages() *rdmacache.Pages {
	switch {
	case o.cache.set && (o.remote() || o.cache.byteSize > 0):
		return rdmacache.NewPages(int64(o.cache.byteSize))
	case o.remote():
		return rdmacache.NewPages(defaultCache)
	}
	return nil
}

// remote reports whether the source is a memory node.
func (o *options) remote() bool { return nodeurl.Is(o.pool) }

// openSource opens what the mount shows.
func (o *options) openSource(ctx context.Context, log *slog.Logger) (source, error) {
	if o.remote() {
		return o.dialNode(ctx, log)
	}
	pool, err := o.openPool(log)
	if err != nil {
		return nil, err
	}
	return &embedded{Pool: pool, c: inproc.Dial(pool)}, nil
}

// embedded is a pool that the daemon has to itself.
type embedded struct {
	*memnode.Pool
	c rdmacache.Conn
}

func (e *embedded) conn() rdmacache.Conn  { return e.c }
func (e *embedded) done() <-chan struct{} { return nil }
func (e *embedded) why() error            { return nil }
func (e *embedded) readAhead() int        { return 0 }

func (e *embedded) rdma() (verbs.Stats, bool) { return verbs.Stats{}, false }

func (e *embedded) close() error { return errors.Join(e.c.Close(), e.Pool.Close()) }

// leased is a share of a memory node: with its lease, or of a session that only reads.
type leased struct {
	nodePool
	holder *remote.Pool    // nil: it only reads
	reader *remote.Reader  // nil: it has the lease
	root   namespace.Inode // as it was when the session began
}

// A nodePool is a pool over a session: a remote.Pool or a remote.Reader.
type nodePool interface {
	volume.Pool
	Conn() rdmacache.Conn
	Done() <-chan struct{}
	Err() error
	Close() error
	Share() string
	Lease() time.Duration
	Transport() string
}

// Inode is that of the memory node. The top of the mount can be looked at when the
// lease is over too: else nobody could ask the mount what is wrong with it.
func (l leased) Inode(ctx context.Context, ino namespace.Ino) (namespace.Inode, error) {
	n, err := l.nodePool.Inode(ctx, ino)
	if ino == namespace.Root && errors.Is(err, rdmacache.ErrFenced) {
		return l.root, nil
	}
	return n, err
}

func (l leased) conn() rdmacache.Conn  { return l.Conn() }
func (l leased) done() <-chan struct{} { return l.Done() }
func (l leased) why() error            { return l.Err() }
func (l leased) readAhead() int        { return farAhead }
func (l leased) close() error          { return l.Close() }

func (l leased) rdma() (verbs.Stats, bool) {
	if l.holder == nil {
		return verbs.Stats{}, false
	}
	return l.holder.RDMA()
}

// dialNode takes the lease of a share, or opens it to read beside whoever has that.
func (o *options) dialNode(ctx context.Context, log *slog.Logger) (source, error) {
	u, err := nodeurl.Parse(o.pool)
	if err != nil {
		return nil, err
	}
	tls, err := o.tls.ClientConfig()
	if err != nil {
		return nil, err
	}
	if tls != nil {
		tls.ServerName = u.Host
	}
	var nic verbs.NIC
	if u.RDMA {
		if nic, err = verbs.Open(); err != nil {
			return nil, fmt.Errorf("%s: %w", u, err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	cfg := remote.Config{
		Address:   u.Address(),
		TLS:       tls,
		Share:     u.Share,
		Create:    !o.readOnly,
		Steal:     o.steal,
		Wait:      o.wait,
		Lease:     o.lease,
		Patience:  o.patience,
		Heartbeat: o.heartbeat,
		NIC:       nic,
		Queues:    o.queuePairs,
		Holder:    fmt.Sprintf("%s:%s", host, o.mountpoint),
		Log:       log,
	}
	var l leased
	if o.readOnly {
		l.reader, err = remote.DialReader(ctx, cfg)
		l.nodePool = l.reader
	} else {
		l.holder, err = remote.Dial(ctx, cfg)
		l.nodePool = l.holder
	}
	if errors.Is(err, remote.ErrUnavailable) {
		err = fmt.Errorf("%w; is 'rpmemfs serve' running there, and do both ends use TLS, with certificates of one authority?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	if l.root, err = l.nodePool.Inode(ctx, namespace.Root); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", u, err), l.Close())
	}
	return l, nil
}

// shared returns the source as one that somebody else may write; nil: nobody does.
func (d *daemon) shared() volume.Shared {
	if l, ok := d.source.(leased); ok && l.reader != nil {
		return l.reader
	}
	return nil
}

// serveReaders does for readers of the share, on other nodes, what only the holder of
// its lease can. Of a reader it keeps the session going.
func (d *daemon) serveReaders(ctx context.Context) error {
	l, ok := d.source.(leased)
	switch {
	case !ok:
	case l.reader != nil:
		l.reader.Run(ctx, d.volume.Renew)
	default:
		return l.holder.Watch(ctx, d.volume)
	}
	return nil
}

// watchLease says when the lease is over. The mount stays, and answers EIO.
func (d *daemon) watchLease(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.source.done():
	}
	d.log.Error("the lease is lost: nothing can be written or committed here any more, and what was not committed is gone; unmount, and mount again", "source", d.o.pool, "why", d.source.why())
	return nil
}
