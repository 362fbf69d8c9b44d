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

// A Memory is a Handler whose bytes are memory: one-sided access reaches them without a
// call of it.
type Memory interface {
	Handler
	// Bytes is the pool's memory, from its byte 0 on; nil if the pool is none. It is
	// mapped as long as the pool is open.
	Bytes() []byte
	// Extent says what may be reached around byte off: the bytes from start up to end. An
	// error that matches ErrFenced when the lease is over; another one if nothing may.
	Extent(off int64) (start, end int64, err error)
	// Persist makes n bytes from off persistent that were stored by one-sided access. A
	// failure is final.
	Persist(off, n int64) error
	// Expose makes w hear of what is not to be reached any more, until it is withdrawn or
	// hears the end. ErrFenced when the lease is over.
	Expose(w Window) error
	Withdraw(w Window)
}

// A Window is the one-sided access that a memory node's transport gives to a Memory. Its
// methods are called after Extent has changed, from any goroutine.
//
// It looks at Extent and gives access under one lock, which Revoke takes too: so it gives
// none that it is not told to end.
type Window interface {
	// Revoke ends access to the bytes from start up to end. None happens when it returned.
	Revoke(start, end int64)
	// End ends all access. None happens when it returned.
	End()
}
