package conntest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// ErrRange is what a Store returns for an access outside it.
var ErrRange = errors.New("conntest: outside the store")

const pageSize = rdmacache.PageSize

// Hooks are called before the operations of a Store, without locks; nil ones are not.
// An error that one returns is the operation's, which then does nothing.
type Hooks struct {
	Write, Read func(p []byte, off int64) error
	Flush       func() error          // Persist, too
	Reach       func(off int64) error // Extent, of a transport that then reaches the bytes itself
}

// extentSize is how many bytes a Store lets be reached by one Extent, aligned.
const extentSize = 1 << 20

// A Store is a memory node's bytes, in memory, with what a power loss would leave of
// them. It is safe for concurrent use.
//
// It is a rdmacache.Memory, too; a model of a device uses it as Device.
type Store struct {
	medium rdmacache.Medium // immutable
	done   chan struct{}
	end    sync.Once

	mu      sync.Mutex
	hooks   Hooks
	visible []byte // outside the Go heap
	durable []byte
	dirty   map[int64]struct{} // pages of visible that may differ from durable
	lost    []run              // that Revoke took away
	windows []rdmacache.Window
	exposed bool // at some time: what no flush covers may be durable in parts
	writes  int
	flushes int
}

// A run is the bytes from start up to end.
type run struct{ start, end int64 }

var _ rdmacache.Memory = (*Store)(nil)

// NewStore returns a Store of size bytes, all zero. Medium m decides how a transport
// treats it: kind "file" may take long. Its memory is gone when nobody has the Store.
func NewStore(size int64, m rdmacache.Medium) *Store {
	mem, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(fmt.Sprintf("conntest: map %d bytes: %v", size, err))
	}
	s := &Store{
		medium: m, done: make(chan struct{}), visible: mem, durable: make([]byte, size), dirty: make(map[int64]struct{}),
	}
	runtime.AddCleanup(s, func(mem []byte) { _ = syscall.Munmap(mem) }, mem)
	return s
}

// Move makes mem the memory of a Store of that size that nobody uses yet, and clears it. It
// stays mapped as long as the Store is used.
func (s *Store) Move(mem []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(mem) != len(s.visible) {
		panic(fmt.Sprintf("conntest: %d bytes for a store of %d", len(mem), len(s.visible)))
	}
	clear(mem)
	s.visible = mem
}

// Medium is what NewStore was told.
func (s *Store) Medium() rdmacache.Medium { return s.medium }

// Inject replaces the hooks.
func (s *Store) Inject(h Hooks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = h
}

func (s *Store) hooked() Hooks {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hooks
}

// Done is closed by End.
func (s *Store) Done() <-chan struct{} { return s.done }

// End ends the session: every later access is rdmacache.ErrFenced.
func (s *Store) End() {
	s.end.Do(func() { close(s.done) })
	for _, w := range s.exposedTo() {
		w.End()
	}
}

func (s *Store) exposedTo() []rdmacache.Window {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.windows)
}

// Bytes is the memory.
func (s *Store) Bytes() []byte { return s.visible }

// Extent lets the bytes around off be reached.
func (s *Store) Extent(off int64) (start, end int64, err error) {
	if f := s.hooked().Reach; f != nil {
		if err := f(off); err != nil {
			return 0, 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("reach", 1, off); err != nil {
		return 0, 0, err
	}
	start, end = off&^(extentSize-1), min(off&^(extentSize-1)+extentSize, int64(len(s.visible)))
	for _, l := range s.lost {
		switch {
		case l.start <= off && off < l.end:
			return 0, 0, fmt.Errorf("reach byte %d: %w", off, ErrRange)
		case l.end <= off:
			start = max(start, l.end)
		default:
			end = min(end, l.start)
		}
	}
	return start, end, nil
}

// Persist makes n bytes from off durable.
func (s *Store) Persist(off, n int64) error {
	if f := s.hooked().Flush; f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("persist", int(n), off); err != nil {
		return err
	}
	copy(s.durable[off:off+n], s.visible[off:])
	s.flushes++
	return nil
}

// Expose makes w hear of Revoke and End.
func (s *Store) Expose(w rdmacache.Window) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("expose", 0, 0); err != nil {
		return err
	}
	s.windows = append(s.windows, w)
	s.exposed = true
	return nil
}

// Withdraw forgets w.
func (s *Store) Withdraw(w rdmacache.Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.windows = slices.DeleteFunc(s.windows, func(x rdmacache.Window) bool { return x == w })
}

// Revoke takes the bytes from start up to end out of reach: for good if forGood is true,
// else they may be reached anew.
func (s *Store) Revoke(start, end int64, forGood bool) {
	if forGood {
		s.mu.Lock()
		s.lost = append(s.lost, run{start, end})
		s.mu.Unlock()
	}
	for _, w := range s.exposedTo() {
		w.Revoke(start, end)
	}
}

// A Device is the Store as a device has it, which asks nobody: without hooks, whether
// the session is over or not.
type Device struct{ s *Store }

// Device is the Store as a device has it.
func (s *Store) Device() Device { return Device{s} }

// Bytes is the memory.
func (d Device) Bytes() []byte { return d.s.visible }

// Store stores p at off, visible.
func (d Device) Store(p []byte, off int64) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.place(p, off)
	return nil
}

// ReadAt fills p from off.
func (d Device) ReadAt(p []byte, off int64) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	copy(p, d.s.visible[off:])
	return nil
}

// Persist makes n bytes from off durable.
func (d Device) Persist(off, n int64) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	copy(d.s.durable[off:off+n], d.s.visible[off:])
	d.s.flushes++
	return nil
}

func (s *Store) check(op string, n int, off int64) error {
	select {
	case <-s.done:
		return rdmacache.ErrFenced
	default:
	}
	if off < 0 || off > math.MaxInt64-int64(n) || off+int64(n) > int64(len(s.visible)) {
		return fmt.Errorf("%s %d bytes at %d: %w", op, n, off, ErrRange)
	}
	return nil
}

// ReadAt fills p from off.
func (s *Store) ReadAt(p []byte, off int64) error {
	if f := s.hooked().Read; f != nil {
		if err := f(p, off); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("read", len(p), off); err != nil {
		return err
	}
	copy(p, s.visible[off:])
	return nil
}

// WriteAt stores p at off.
func (s *Store) WriteAt(p []byte, off int64) error {
	if f := s.hooked().Write; f != nil {
		if err := f(p, off); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("write", len(p), off); err != nil {
		return err
	}
	s.place(p, off)
	return nil
}

// place stores p at off. mu is held.
func (s *Store) place(p []byte, off int64) {
	copy(s.visible[off:], p)
	for page := off / pageSize; page*pageSize < off+int64(len(p)); page++ {
		s.dirty[page] = struct{}{}
	}
	s.writes++
}

// Flush makes the writes before it durable.
func (s *Store) Flush() error {
	if f := s.hooked().Flush; f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check("flush", 0, 0); err != nil {
		return err
	}
	s.flushes++
	for page := range s.dirty {
		at, end := page*pageSize, min((page+1)*pageSize, int64(len(s.visible)))
		copy(s.durable[at:end], s.visible[at:end])
	}
	clear(s.dirty)
	return nil
}

// LosePower forgets what was not flushed.
func (s *Store) LosePower() {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.visible, s.durable)
	clear(s.dirty)
}

// Durable returns a copy of n bytes from off as a power loss would leave them.
func (s *Store) Durable(off int64, n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.durable[off:off+int64(n)]...)
}

// DurableIs says whether a power loss would leave want from off on.
func (s *Store) DurableIs(off int64, want []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Equal(s.durable[off:off+int64(len(want))], want)
}

// Visible returns a copy of n bytes from off as they are now.
func (s *Store) Visible(off int64, n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.visible[off:off+int64(n)]...)
}

// partial says that what no flush covers may be durable in parts.
func (s *Store) partial() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exposed
}

// Counts returns how many writes and flushes were done.
func (s *Store) Counts() (writes, flushes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.flushes
}
