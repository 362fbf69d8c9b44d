package media

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sort"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadFrom is the least that is read from a tmpfs file by pread(2), in bytes. The kernel
// reaches all of its memory by large pages that are always there; a mapping is of small
// ones, each of which faults when first touched.
const preadFrom = 16 << 10

// maxDirtyRanges bounds what a Pmem remembers between two flushes. Beyond it a
// writer persists its own bytes at once.
const maxDirtyRanges = 4096

// Pmem is a medium that is memory: a MAP_SYNC mapping of a DAX file, or of a
// device-dax device. A write is a copy, a flush writes the cache lines of what
// was written back (CLWB, CLFLUSHOPT or CLFLUSH) and fences. A mapping of a tmpfs
// file is volatile, as a device of memory that is not persistent, and a flush of it does
// nothing; much at once is read from the file.
//
// MAP_SYNC makes the file system's own metadata durable before a page can be
// stored to, so no fdatasync is needed (mmap(2)).
//
// Lock order: flushMu, then mu; closeMu is taken first, for reading, by all but
// Close.
type Pmem struct {
	f        *os.File // immutable, owned
	volatile bool     // lost with the power: nothing to flush
	readOnly bool
	device   bool // device-dax, not a file
	flusher  flusher

	written atomic.Uint64 // bytes; statistics, publishes nothing
	flushes atomic.Uint64 // statistics, publishes nothing

	closeMu sync.RWMutex // held for reading while mem is used
	mem     []byte       // nil once closed

	turn flushTurn

	mu        sync.Mutex
	dirty     []span // at most maxDirtyRanges
	scattered bool   // dirty hardly merges: do not sort it again before the next flush
}

var (
	_ Media     = (*Pmem)(nil)
	_ Discarder = (*Pmem)(nil)
	_ Mapped    = (*Pmem)(nil)
)

// A span is the bytes from start up to end.
type span struct{ start, end int64 }

// openFileDAX maps f if its file system is DAX and the processor can flush;
// otherwise the error matches ErrUnsupported. It takes f over if it succeeds.
func openFileDAX(f *os.File, size int64) (*Pmem, error) {
	return mapPmem(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
}

// openTmpfs maps f, a file in memory. It takes f over if it succeeds.
func openTmpfs(f *os.File, size int64) (*Pmem, error) {
	m, err := mapPmem(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	m.volatile = true
	return m, nil
}

// mapPmem maps size bytes of f. It takes f over if it succeeds.
func mapPmem(f *os.File, size int64, prot, flags int) (*Pmem, error) {
	all := flushers()
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: the processor has no known instruction to flush a cache line", ErrUnsupported)
	}
	if size <= 0 || int64(int(size)) != size {
		return nil, fmt.Errorf("%w: cannot map %d bytes", ErrUnsupported, size)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), prot, flags)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%w: mmap: %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	return &Pmem{f: f, flusher: all[0], mem: mem, readOnly: prot&unix.PROT_WRITE == 0}, nil
}

// ReadAt fills p from off, or fails. A bad line is an ErrFault.
func (m *Pmem) ReadAt(p []byte, off int64) (err error) {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	if err := m.check("read", len(p), off); err != nil {
		return err
	}
	if m.volatile && !m.device && len(p) >= preadFrom {
		return readFile(m.f, p, off)
	}
	defer catchFault(debug.SetPanicOnFault(true), "read", off, &err)
	copy(p, m.mem[off:])
	return nil
}

// WriteAt copies p to off. A bad line is an ErrFault; so is a hole that the file
// system below has no space for, and that also matches ENOSPC or EDQUOT.
func (m *Pmem) WriteAt(p []byte, off int64) error {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	if m.readOnly {
		return ErrReadOnly
	}
	if err := m.check("write", len(p), off); err != nil || len(p) == 0 {
		return err
	}
	s := span{off, off + int64(len(p))}
	if err := m.store(p, s); err != nil {
		if errors.Is(err, ErrFault) && !m.device {
			err = errors.Join(err, m.noSpace(s))
		}
		return err
	}
	m.written.Add(uint64(len(p)))
	return nil
}

// store copies p to s and sees to it that the next flush covers it.
func (m *Pmem) store(p []byte, s span) (err error) {
	defer catchFault(debug.SetPanicOnFault(true), "write", s.start, &err)
	copy(m.mem[s.start:], p)
	// Remember the range only now: a flush that runs beside the copy would
	// take it and flush what is not there yet.
	if !m.volatile && !m.remember(s) {
		m.persist(s)
	}
	return nil
}

// noSpace returns why the file system cannot hold s, or nil if it can.
func (m *Pmem) noSpace(s span) error {
	raw, err := m.f.SyscallConn()
	if err != nil {
		return err
	}
	var why error
	err = raw.Control(func(fd uintptr) {
		why = unix.Fallocate(int(fd), unix.FALLOC_FL_KEEP_SIZE, s.start, s.end-s.start)
	})
	return errors.Join(err, why)
}

// remember adds s to what the next flush covers, or reports that it cannot.
func (m *Pmem) remember(s span) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.dirty); n > 0 {
		last := &m.dirty[n-1]
		if s.start <= last.end && s.end >= last.start {
			last.start, last.end = min(s.start, last.start), max(s.end, last.end)
			return true
		}
	}
	if len(m.dirty) == maxDirtyRanges && !m.scattered {
		m.dirty = coalesce(m.dirty)
		m.scattered = len(m.dirty) > maxDirtyRanges/2
	}
	if len(m.dirty) == maxDirtyRanges {
		return false
	}
	m.dirty = append(m.dirty, s)
	return true
}

// coalesce sorts spans and joins those that touch, in place.
func coalesce(spans []span) []span {
	sort.Slice(spans, func(i, j int) bool { return spans[i].start < spans[j].start })
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && s.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

// persist writes the cache lines of s back and fences. It may fault.
func (m *Pmem) persist(s span) {
	m.flusher.flush(unsafe.Pointer(&m.mem[s.start]), uintptr(s.end-s.start), m.flusher.line)
}

// Flush writes the cache lines of all earlier writes back to the medium.
func (m *Pmem) Flush() error {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	if m.readOnly {
		return ErrReadOnly
	}
	if m.mem == nil {
		return fmt.Errorf("flush %s: %w", m.f.Name(), os.ErrClosed)
	}
	return m.turn.flush(m.flushOnce)
}

func (m *Pmem) flushOnce() (err error) {
	m.mu.Lock()
	spans := m.dirty
	m.dirty, m.scattered = nil, false
	m.mu.Unlock()
	m.flushes.Add(1)
	defer catchFault(debug.SetPanicOnFault(true), "flush", 0, &err)
	for _, s := range coalesce(spans) {
		m.persist(s)
	}
	return nil
}

// Bytes is the mapping. Nobody uses it after Close.
func (m *Pmem) Bytes() []byte {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	return m.mem
}

// Persist writes the cache lines of n bytes from off back, which somebody else stored.
func (m *Pmem) Persist(off, n int64) (err error) {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	if m.readOnly {
		return ErrReadOnly
	}
	if n < 0 || int64(int(n)) != n {
		return fmt.Errorf("persist %d bytes at %d: %w", n, off, ErrRange)
	}
	if err := m.check("persist", int(n), off); err != nil || n == 0 || m.volatile {
		return err
	}
	m.flushes.Add(1)
	defer catchFault(debug.SetPanicOnFault(true), "persist", off, &err)
	m.persist(span{off, off + n})
	return nil
}

// check refuses an access outside the mapping or after Close. closeMu is held.
func (m *Pmem) check(op string, n int, off int64) error {
	if m.mem == nil {
		return fmt.Errorf("%s %s: %w", op, m.f.Name(), os.ErrClosed)
	}
	return checkRange(op, n, off, int64(len(m.mem)))
}

// catchFault, deferred, makes an error of a memory fault of the goroutine that
// called SetPanicOnFault(true), which had returned old.
func catchFault(old bool, op string, off int64, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r == nil {
		return
	}
	fault, ok := r.(interface {
		error
		Addr() uintptr
	})
	if !ok {
		panic(r) // not a memory fault: a bug of this package
	}
	*err = fmt.Errorf("%s at byte %d: %w: %w", op, off, ErrFault, fault)
}

// Discard punches a hole in a DAX file; a device keeps its space.
func (m *Pmem) Discard(off, n int64) error {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	if m.readOnly {
		return ErrReadOnly
	}
	if m.mem == nil {
		return fmt.Errorf("discard %s: %w", m.f.Name(), os.ErrClosed)
	}
	if m.device {
		return fmt.Errorf("discard in %s: %w", m.f.Name(), errors.ErrUnsupported)
	}
	return punchHole(m.f, off, n, int64(len(m.mem)))
}

// Size is the size of the mapping.
func (m *Pmem) Size() int64 {
	m.closeMu.RLock()
	defer m.closeMu.RUnlock()
	return int64(len(m.mem))
}

// Kind is "dax", or "tmpfs".
func (m *Pmem) Kind() string {
	if m.volatile && !m.device {
		return kindTmpfs
	}
	return "dax"
}

// Volatile is true for tmpfs, and for a device-dax device of memory that is not persistent
// (PersistentDAX): MAP_SYNC exists only over memory that is. A kernel told by its command line
// that DRAM is persistent is believed.
func (m *Pmem) Volatile() bool { return m.volatile }

// Stats counts since the medium was opened.
func (m *Pmem) Stats() Stats {
	return Stats{BytesWritten: m.written.Load(), Flushes: m.flushes.Load()}
}

// Close unmaps the medium without flushing it. It waits for calls under way;
// later ones return os.ErrClosed.
func (m *Pmem) Close() error {
	m.closeMu.Lock()
	defer m.closeMu.Unlock()
	if m.mem == nil {
		return fmt.Errorf("close %s: %w", m.f.Name(), os.ErrClosed)
	}
	err := unix.Munmap(m.mem)
	m.mem = nil
	if cerr := m.f.Close(); err == nil {
		err = cerr
	}
	return err
}
