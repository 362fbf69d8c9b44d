// Package rdmacache is a compute node's side of a remote region: the pages of the
// open epoch, how they reach the memory node, and how pages come back.
package rdmacache

import (
	"errors"

	"github.com/rpmemfs/rpmemfs/region"
)

// PageSize is the size in bytes of a page and of a slot.
const PageSize = region.PageSize

// ErrFenced reports a lease that is over: nothing of its holder reaches the pool any
// more. What was acknowledged is not affected.
var ErrFenced = errors.New("rdmacache: fenced: the lease is over; mount again")

// A Medium says what a flush promises.
type Medium struct {
	Kind     string // "file", "tmpfs", "dax": for people
	Volatile bool   // a flush protects against the death of processes only, not against power loss
}

// Traffic counts what a medium did since its pool was opened, directory apart.
type Traffic struct {
	BytesWritten uint64
	Flushes      uint64 // of the medium; concurrent callers share one
}

// A Conn is a compute node's way to a pool. Offsets are bytes in the pool.
// It is safe for concurrent use.
type Conn interface {
	region.Device
	Medium() Medium
	Close() error
}

// A Handler is the memory node's end of a Conn; memnode.Pool has one.
type Handler interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Flush() error
	Medium() Medium
}
