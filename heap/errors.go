package heap

import (
	"errors"
	"fmt"
)

var (
	// ErrNoHeap reports a region without a heap: its first page is zero.
	ErrNoHeap = errors.New("heap: no heap")

	// ErrExists reports a region that is not new, where a heap was to be created.
	ErrExists = errors.New("heap: the region is not empty")

	// ErrVersion reports a heap of a version that this package does not know.
	ErrVersion = errors.New("heap: unknown version")

	// ErrCorrupt reports a heap that no sequence of calls makes. It always comes as
	// a CorruptError.
	ErrCorrupt = errors.New("heap: corrupt")

	// ErrNoSpace reports that the region cannot grow enough.
	ErrNoSpace = errors.New("heap: no space")

	// ErrNotBlock reports an offset that is no block in use: freed already, or
	// never allocated. The heap is unchanged.
	ErrNotBlock = errors.New("not a block in use")

	// ErrOverrun reports stores beyond the bytes asked for, in a heap with
	// guards. The block stays in use.
	ErrOverrun = errors.New("stored to beyond its end")

	// ErrType reports a type that cannot lie in a heap: one with Go pointers.
	ErrType = errors.New("heap: type with Go pointers")

	// ErrBusy reports that others hold what is waited for: all caches, or the
	// heap's lock for a minute.
	ErrBusy = errors.New("heap: busy")

	// ErrOwnerDead reports that a process died while it held the heap's lock and
	// the region was not rolled back within ten seconds. Roll it back.
	ErrOwnerDead = errors.New("heap: the holder of the lock died")

	// ErrClosed reports a call of a Cache or Heap after its Close.
	ErrClosed = errors.New("heap: closed")
)

// A CorruptError says where a heap is damaged. It matches ErrCorrupt.
type CorruptError struct {
	Off  uint64 // bytes from the start of the region
	What string // place and field as docs/format.md names them, then what is wrong
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("heap: corrupt at %#x: %s", e.Off, e.What)
}

// Is makes a CorruptError match ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corruptf(off uint64, format string, args ...any) *CorruptError {
	return &CorruptError{off, fmt.Sprintf(format, args...)}
}
