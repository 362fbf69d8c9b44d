// Package memnode is the memory node: it owns the persistent bytes of a pool and
// the directory of its regions.
//
// A pool is a directory of the host:
//
//	meta.db  names, attributes, extents, checkpoints, shares, leases, requests (go.etcd.io/bbolt)
//	data     slots of 4 KiB: a file, on DAX or not, or a link to a device
//	lock     locked by whoever has the pool open; holds its pid
//
// The memory node is passive on the data path. It grants extents of slots to
// regions ahead of need; package region reads, writes and flushes them through
// ReadAt, WriteAt and Flush, which know of nothing but bounds. What a region has
// in its slots is its own business; that no two regions have one slot, unless
// they are of one family, is the pool's.
//
// A change of the directory is one transaction of meta.db: atomic, and durable
// when the call returns. What a transaction refers to in data (a new region's
// superblock) is flushed before it commits; slots become free after the
// transaction that takes them from their owner. So a crash anywhere leaves
// either the old or the new directory, and every slot in it is valid.
//
// Opening for writing raises the pool's generation, by which regions tell the
// records of one writer from those of the next, and reaps inodes without names.
//
// A pool that others reach is divided into shares: directories in its root, each the
// unit of isolation, of quota and of leases. GrantLease records who may write a share,
// with a generation of its own. A View is the pool as that session sees it, its Fence
// the session's way to the bytes. When the lease is over, Fence.End and then EndLease
// keep everything of the session that is still under way from the next one's share.
// WithRequest makes a change of a View one that can be asked for again.
package memnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// Pool is an open pool. It is safe for concurrent use; changes of the directory
// run one after the other. Errors of damage match ErrCorrupt.
//
// Lock order: a transaction of meta, then mu. mu is never held across I/O.
type Pool struct {
	directory // the whole pool's; immutable

	media      media.Media // immutable, owned
	meta       metaStore   // immutable, owned
	lock       *os.File    // immutable, owned; nil where there is no directory
	log        *slog.Logger
	now        func() time.Time
	id         uuid
	slots      uint64
	sizeBytes  int64
	generation uint64
	medium     rdmacache.Medium
	readOnly   bool
	serving    bool // opened by a memory node: shares have owners of their own

	closed atomic.Bool // stored once; publishes only itself

	mu   sync.Mutex
	free freeList
	// Free slots that may hold what an owner stored: where shares have owners of their
	// own, those that were free when the pool was opened and that nobody took since. A
	// crash comes between the transaction that frees slots and their wiping; and a pool
	// that is mounted without a memory node wipes none.
	unwiped runSet
	nextIno namespace.Ino // numbers below are taken, in meta.db or by a call under way
	readers map[*Fence]struct{}
	stored  map[namespace.Ino]struct{} // shares whose slots devices may have stored to
}

var (
	_ namespace.Directory = (*Pool)(nil)
	_ region.Space        = (*Pool)(nil)
	_ rdmacache.Handler   = (*Pool)(nil)
)

// ReadAt fills p from byte off of the pool. ErrRange outside the slots, and for
// the header.
func (p *Pool) ReadAt(b []byte, off int64) error {
	if off < region.PageSize || off > p.sizeBytes || int64(len(b)) > p.sizeBytes-off {
		return rangeError("read", len(b), off)
	}
	return p.media.ReadAt(b, off)
}

// WriteAt stores b at byte off of the pool; a Flush makes it persistent. ErrRange
// outside the slots, and for the header. region.ErrNoSpace if the file system
// below a sparse pool is full.
func (p *Pool) WriteAt(b []byte, off int64) error {
	if off < region.PageSize || off > p.sizeBytes || int64(len(b)) > p.sizeBytes-off {
		return rangeError("write", len(b), off)
	}
	if p.readOnly {
		return ErrReadOnly
	}
	err := p.media.WriteAt(b, off)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: file system below: %w", region.ErrNoSpace, err)
	}
	return err
}

func rangeError(op string, n int, off int64) error {
	return fmt.Errorf("%s %d bytes at %d: %w", op, n, off, ErrRange)
}

// Flush makes all earlier writes persistent, as far as Medium promises. A failed
// flush is final.
func (p *Pool) Flush() error {
	if p.readOnly {
		return ErrReadOnly
	}
	return p.media.Flush()
}

// Bytes is the memory that the pool is in, or nil. It is mapped until Close.
func (p *Pool) Bytes() []byte {
	m, ok := p.media.(media.Mapped)
	if !ok || p.readOnly {
		return nil
	}
	mem := m.Bytes()
	return mem[:min(int64(len(mem)), p.sizeBytes)]
}

// persist makes n bytes of slots persistent that were stored through Bytes.
func (p *Pool) persist(off, n int64) error {
	m, ok := p.media.(media.Mapped)
	switch {
	case p.readOnly:
		return ErrReadOnly
	case !ok:
		return fmt.Errorf("persist %d bytes at %d: %w", n, off, errors.ErrUnsupported)
	}
	return m.Persist(off, n)
}

// Medium says what a flush promises.
func (p *Pool) Medium() rdmacache.Medium { return p.medium }

// Generation is the number of this opening of the pool for writing. No two have
// the same; a later one has a larger one. Opened for reading, it is that of the
// last writer.
func (p *Pool) Generation() uint64 { return p.generation }

// ID is the pool's UUID in text.
func (p *Pool) ID() string { return p.id.String() }

// Traffic counts what the medium did since the pool was opened.
func (p *Pool) Traffic() rdmacache.Traffic {
	s := p.media.Stats()
	return rdmacache.Traffic{BytesWritten: s.BytesWritten, Flushes: s.Flushes}
}

// Close ends the pool and its lock. It flushes nothing: what was acknowledged is
// durable. It waits for transactions under way; data access must have ended.
func (p *Pool) Close() error {
	if p.closed.Swap(true) {
		return ErrClosed
	}
	err := errors.Join(p.meta.close(), p.media.Close())
	if p.lock != nil {
		if !p.readOnly {
			err = errors.Join(err, p.lock.Truncate(0)) // nothing of this process reaches the pool
		}
		err = errors.Join(err, p.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("close pool: %w", err)
	}
	return nil
}

// view runs fn on the directory as it is.
func (p *Pool) view(ctx context.Context, fn func(txn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.closed.Load() {
		return ErrClosed
	}
	return p.meta.view(fn)
}

// update commits what fn changes. Once begun it does not look at ctx: a change
// is short, and half of one is none.
func (p *Pool) update(ctx context.Context, fn func(txn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.closed.Load() {
		return ErrClosed
	}
	if p.readOnly {
		return ErrReadOnly
	}
	return p.meta.update(func(t txn) error {
		t.tally = make(tally)
		if err := fn(t); err != nil {
			return err
		}
		return t.settle()
	})
}

// reserveIno takes an inode number that no other call gets. It is durable once a
// transaction used it.
func (p *Pool) reserveIno() namespace.Ino {
	p.mu.Lock()
	defer p.mu.Unlock()
	ino := p.nextIno
	p.nextIno++
	return ino
}

// A device is the pool as region.Format reaches it.
type device struct{ pool *Pool }

func (d device) Read(_ context.Context, p []byte, off int64) error  { return d.pool.ReadAt(p, off) }
func (d device) Write(_ context.Context, p []byte, off int64) error { return d.pool.WriteAt(p, off) }
func (d device) Flush(context.Context) error                        { return d.pool.Flush() }
