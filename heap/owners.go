package heap

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Owners says which process has what of a heap: its identity, and caches. It is
// not in the heap, so that neither a rollback nor a crash leaves it wrong. What a
// process has is a byte that it holds locked; the bytes are beyond the end of any
// file. Owners are safe for concurrent use.
type Owners interface {
	// TryLock locks a byte; ok is false if another process has it.
	TryLock(at int64) (ok bool, err error)

	// Unlock gives a byte back.
	Unlock(at int64) error

	// Locked reports whether another process has one of n bytes.
	Locked(at, n int64) (bool, error)
}

// The bytes: docs/format.md, Locks.
const (
	openingByte = 1 << 62
	cacheByte   = openingByte + 4096  // + number of the cache
	idByte      = openingByte + 1<<32 // + id
	maxID       = 1<<31 - 1
)

// alone are the Owners of a heap that no other process uses.
type alone struct{}

func (alone) TryLock(int64) (bool, error)       { return true, nil }
func (alone) Unlock(int64) error                { return nil }
func (alone) Locked(int64, int64) (bool, error) { return false, nil }

// FileOwners returns the Owners of the heap in a file, for which it takes locks
// on the open file description of f: it has to be one that nothing else uses as
// Owners of this heap (open the file once more), writable, and stay open until the
// Heap is closed. The kernel gives back what a dead process had.
func FileOwners(f *os.File) Owners { return fileOwners{f} }

type fileOwners struct{ f *os.File }

func (o fileOwners) TryLock(at int64) (bool, error) {
	err := o.lock(unix.F_OFD_SETLK, unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

func (o fileOwners) Unlock(at int64) error {
	return o.lock(unix.F_OFD_SETLK, unix.Flock_t{Type: unix.F_UNLCK, Start: at, Len: 1})
}

func (o fileOwners) Locked(at, n int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: n}
	err := o.call(unix.F_OFD_GETLK, &l)
	return l.Type != unix.F_UNLCK, err
}

func (o fileOwners) lock(cmd int, l unix.Flock_t) error { return o.call(cmd, &l) }

func (o fileOwners) call(cmd int, l *unix.Flock_t) error {
	l.Whence = io.SeekStart
	conn, err := o.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("lock heap: %w", err)
	}
	var lockErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if lockErr = unix.FcntlFlock(fd, cmd, l); !errors.Is(lockErr, unix.EINTR) {
				return
			}
		}
	})
	if err == nil && lockErr != nil {
		err = &os.PathError{Op: "lock", Path: o.f.Name(), Err: lockErr}
	}
	if err != nil {
		return fmt.Errorf("lock heap: %w", err)
	}
	return nil
}
