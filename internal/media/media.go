// Package media is persistent bytes under a memory node.
//
// A Media is an array of bytes with positioned reads and writes. What a write
// stored is visible to later reads at once and persistent once a Flush that
// began after it returned nil. Until then a power loss keeps any subset of its
// aligned 8-byte words, and none of the package's users may assume more.
//
//	File       an ordinary file: pwrite, fdatasync
//	Pmem       memory that keeps its content (DAX): stores, CLWB, SFENCE; tmpfs: stores
//	Crashable  memory that forgets at a chosen flush, for tests
//	Faulty     another Media of which one call fails, for tests
//
// A failed Flush is final: the medium is poisoned and every later Flush returns
// that first error. The kernel reports a failed write-back once and then
// forgets it, so a second fdatasync that succeeds proves nothing.
package media

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrReadOnly reports a medium that cannot be written, or was not opened
	// for it.
	ErrReadOnly = errors.New("media: read-only medium")
	// ErrPoisoned reports a medium of which a flush failed. What was written
	// since the flush before may be gone; nothing is retried.
	ErrPoisoned = errors.New("media: poisoned by a failed flush")
	// ErrFault reports memory that could not be reached: a bad line, or a DAX
	// file system without space for a hole that was stored to.
	ErrFault = errors.New("media: memory fault")
	// ErrRange reports an access that is not inside the medium.
	ErrRange = errors.New("media: access outside the medium")
	// ErrUnsupported reports that this machine cannot use a medium as memory.
	ErrUnsupported = errors.New("media: persistent memory not supported")
)

// A Media is persistent bytes. It is safe for concurrent use; writes that
// overlap in place and time leave a mix of both. Offsets and sizes are bytes.
type Media interface {
	// ReadAt fills p from off, or fails.
	ReadAt(p []byte, off int64) error
	// WriteAt stores all of p at off, or fails; then any part may be stored.
	// It keeps no reference to p.
	WriteAt(p []byte, off int64) error
	// Flush makes every write that returned before it was called persistent.
	Flush() error
	// Size is the size in bytes. It does not change.
	Size() int64
	// Kind names the medium for people: "file", "tmpfs", "dax".
	Kind() string
	// Volatile tells that a flush outlives processes but not power.
	Volatile() bool
	// Stats counts since the medium was opened.
	Stats() Stats
	Close() error
}

// A Discarder is a Media that can give space back to whoever lent it.
type Discarder interface {
	// Discard makes n bytes from off read as zeros by freeing them, or returns
	// errors.ErrUnsupported. Until the next Flush a power loss may bring the old
	// ones back.
	Discard(off, n int64) error
}

// A Mapped is a Media that is memory, which can be stored to without it.
type Mapped interface {
	// Bytes is the memory, mapped until Close.
	Bytes() []byte
	// Persist makes n bytes from off persistent, whoever stored them. A failure is final.
	Persist(off, n int64) error
}

// Stats counts what a medium did since it was opened.
type Stats struct {
	BytesWritten uint64
	Flushes      uint64 // flushes of the medium; concurrent callers share one
}

// Options says how Open opens a medium. The zero value opens it for writing.
type Options struct {
	ReadOnly bool
}

// Open opens the medium at path: a device-dax character device, a file on a DAX
// file system or tmpfs, or an ordinary file. It never creates or resizes one.
func Open(path string, opts Options) (Media, error) {
	flags := os.O_RDWR
	if opts.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, syscall.EROFS) || (!opts.ReadOnly && errors.Is(err, os.ErrPermission)) {
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrReadOnly, err)
	}
	if err != nil {
		return nil, err
	}
	m, err := open(f, opts)
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return m, nil
}

// open takes f over if it succeeds.
func open(f *os.File, opts Options) (Media, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := st.Mode(); {
	case mode&os.ModeCharDevice != 0:
		return openDeviceDAX(f, opts)
	case !mode.IsRegular():
		return nil, fmt.Errorf("media: neither a file nor a device-dax device but %v", mode.Type())
	}
	if opts.ReadOnly {
		return newFile(f, st.Size(), opts) // a reader gains nothing from a mapping
	}
	m, err := openFileDAX(f, st.Size())
	if volatile, verr := Volatile(f.Name()); errors.Is(err, ErrUnsupported) && verr == nil && volatile {
		m, err = openTmpfs(f, st.Size())
	}
	if errors.Is(err, ErrUnsupported) {
		return newFile(f, st.Size(), opts)
	}
	return m, err
}

const kindTmpfs = "tmpfs"

// Volatile tells whether the file system that holds path lives in memory.
func Volatile(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return volatileType(int64(st.Type)), nil
}

func volatileType(fsType int64) bool {
	// The kernel's numbers are 32 bits wide and sign-extended on some machines.
	switch fsType & math.MaxUint32 {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}

// checkRange refuses an access of n bytes at off outside a medium of size bytes.
func checkRange(op string, n int, off, size int64) error {
	if off < 0 || off > size || int64(n) > size-off {
		return fmt.Errorf("%s %d bytes at %d of %d: %w", op, n, off, size, ErrRange)
	}
	return nil
}
