package media

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is a medium over an ordinary file: pread, pwrite and fdatasync.
//
// Concurrent flushes are merged: callers that arrive while one runs share the
// next. They must not run side by side: the kernel reports a failed write-back
// to one fdatasync of a descriptor, and the other would succeed over lost data.
type File struct {
	f        *os.File // immutable, owned
	raw      syscall.RawConn
	size     int64
	volatile bool
	readOnly bool
	sync     func() error // flushes f; replaced by tests

	written atomic.Uint64 // bytes; statistics, publishes nothing
	flushes atomic.Uint64 // statistics, publishes nothing

	turn flushTurn
}

var (
	_ Media     = (*File)(nil)
	_ Discarder = (*File)(nil)
)

// newFile takes f over if it succeeds.
func newFile(f *os.File, size int64, opts Options) (*File, error) {
	var st unix.Statfs_t
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Fstatfs(int(fd), &st) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, fmt.Errorf("statfs: %w", err)
	}
	m := &File{f: f, raw: raw, size: size, volatile: volatileType(int64(st.Type)), readOnly: opts.ReadOnly}
	m.sync = m.fdatasync
	return m, nil
}

// ReadAt fills p from off, or fails.
func (m *File) ReadAt(p []byte, off int64) error {
	if err := checkRange("read", len(p), off, m.size); err != nil {
		return err
	}
	return readFile(m.f, p, off)
}

// readFile fills p from byte off of f, or fails.
func readFile(f *os.File, p []byte, off int64) error {
	// os.File repeats short reads and those that a signal interrupted.
	_, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at %d of %s: file was truncated: %w", len(p), off, f.Name(), io.ErrUnexpectedEOF)
	}
	return err
}

// WriteAt stores all of p at off, or fails.
func (m *File) WriteAt(p []byte, off int64) error {
	if m.readOnly {
		return ErrReadOnly
	}
	if err := checkRange("write", len(p), off, m.size); err != nil {
		return err
	}
	n, err := m.f.WriteAt(p, off)
	m.written.Add(uint64(n))
	return err
}

// Flush makes every earlier write persistent.
func (m *File) Flush() error {
	if m.readOnly {
		return ErrReadOnly
	}
	return m.turn.flush(m.flushOnce)
}

func (m *File) flushOnce() error {
	m.flushes.Add(1)
	return m.sync()
}

func (m *File) fdatasync() error {
	var err error
	cerr := m.raw.Control(func(fd uintptr) {
		for {
			if err = unix.Fdatasync(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if cerr != nil { // the only reason of Control
		return fmt.Errorf("fdatasync %s: %w", m.f.Name(), os.ErrClosed)
	}
	if err != nil {
		return fmt.Errorf("fdatasync %s: %w", m.f.Name(), err)
	}
	return nil
}

// Discard punches a hole where the file system can.
func (m *File) Discard(off, n int64) error {
	if m.readOnly {
		return ErrReadOnly
	}
	return punchHole(m.f, off, n, m.size)
}

// punchHole frees n bytes at off of f if its file system can.
func punchHole(f *os.File, off, n, size int64) error {
	if n <= 0 || off < 0 || off > size || n > size-off {
		return fmt.Errorf("discard %d bytes at %d of %d: %w", n, off, size, ErrRange)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		for {
			err = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	switch {
	case cerr != nil: // the only reason of Control
		return fmt.Errorf("discard: %s: %w", f.Name(), os.ErrClosed)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("discard in %s: %w", f.Name(), errors.ErrUnsupported)
	case err != nil:
		return fmt.Errorf("discard %d bytes at %d of %s: %w", n, off, f.Name(), err)
	}
	return nil
}

// Size is the size of the file when it was opened.
func (m *File) Size() int64 { return m.size }

// Kind is "tmpfs" for a file in memory, else "file".
func (m *File) Kind() string {
	if m.volatile {
		return kindTmpfs
	}
	return "file"
}

// Volatile tells whether the file lives in memory.
func (m *File) Volatile() bool { return m.volatile }

// Stats counts since the file was opened.
func (m *File) Stats() Stats {
	return Stats{BytesWritten: m.written.Load(), Flushes: m.flushes.Load()}
}

// Close closes the file without flushing it. Later calls return os.ErrClosed.
func (m *File) Close() error { return m.f.Close() }

// A flushTurn lets one flush run at a time and merges those that wait. Its zero
// value is ready. A failed flush poisons it.
type flushTurn struct {
	flushMu sync.Mutex // held across the flush itself

	mu      sync.Mutex
	started uint64 // flushes begun
	done    uint64 // flushes ended, all in order
	err     error  // set once; matches ErrPoisoned
}

// flush returns nil once a run of sync that began after the call has succeeded.
func (t *flushTurn) flush(sync func() error) error {
	t.mu.Lock()
	want := t.started + 1 // a flush that runs already may have missed our writes
	t.mu.Unlock()

	t.flushMu.Lock()
	defer t.flushMu.Unlock()
	t.mu.Lock()
	if t.err != nil || t.done >= want {
		defer t.mu.Unlock()
		return t.err
	}
	t.started++
	t.mu.Unlock()

	err := sync()

	t.mu.Lock()
	defer t.mu.Unlock()
	t.done++
	if err != nil {
		t.err = fmt.Errorf("%w: %w", ErrPoisoned, err)
	}
	return t.err
}
