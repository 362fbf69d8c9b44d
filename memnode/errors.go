package memnode

import (
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/region"
)

var (
	// ErrNotPool reports a directory that holds no pool.
	ErrNotPool = errors.New("memnode: not a pool")
	// ErrPoolExist reports that Create found a pool.
	ErrPoolExist = errors.New("memnode: pool exists")
	// ErrLocked reports a pool that another process has open. The text names
	// the process.
	ErrLocked = errors.New("memnode: pool in use")
	// ErrVersion reports a pool of another version. The text names both.
	ErrVersion = errors.New("memnode: unknown version")
	// ErrForeign reports a data file that does not belong to meta.db.
	ErrForeign = errors.New("memnode: data does not belong to this pool")
	// ErrTruncated reports a file shorter than the pool says.
	ErrTruncated = errors.New("memnode: file truncated")
	// ErrCorrupt reports bytes at rest that no version of this package wrote.
	// What matches it matches region.ErrCorrupt too.
	ErrCorrupt = errors.New("memnode: corrupt")
	// ErrReadOnly reports a change to a pool opened for reading.
	ErrReadOnly = errors.New("memnode: pool opened read-only")
	// ErrClosed reports use of a pool after Close.
	ErrClosed = errors.New("memnode: pool closed")
	// ErrRange reports a data access outside the slots of the pool, or to its
	// header.
	ErrRange = errors.New("memnode: access outside the pool")
	// ErrSize reports a size that no pool can have.
	ErrSize = errors.New("memnode: pool size out of range")
	// ErrNotOwned reports slots returned by a region that does not own them, or
	// cannot do without.
	ErrNotOwned = errors.New("memnode: slots not owned by the region")
	// ErrLeased reports a share that someone has a lease of. The text names the
	// holder.
	ErrLeased = errors.New("memnode: leased")
	// ErrRequest reports a request of which it is not known any more whether it was
	// done, or whose number was that of another one.
	ErrRequest = errors.New("memnode: request not known")
	// ErrPoisoned reports a pool whose directory could not be written or read.
	// It is final until the pool is opened again: whether the last change is
	// durable is not known. What was acknowledged is not affected.
	ErrPoisoned = errors.New("memnode: pool poisoned by a failed change of its directory; open it again")
)

// A CorruptError says where damage is. It matches ErrCorrupt and
// region.ErrCorrupt.
type CorruptError struct {
	File string // "data" or "meta.db"
	Name string // bucket of meta.db, or structure of data, as in docs/format.md
	Key  []byte // in the bucket
	What string
}

func (e *CorruptError) Error() string {
	if e.Key != nil {
		return fmt.Sprintf("memnode: %s: %s: key %x: %s", e.File, e.Name, e.Key, e.What)
	}
	return fmt.Sprintf("memnode: %s: %s: %s", e.File, e.Name, e.What)
}

func (e *CorruptError) Is(target error) bool {
	return target == ErrCorrupt || target == region.ErrCorrupt
}
