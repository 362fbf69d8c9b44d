package heap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// An Offset is a place in a heap: bytes from the start of the region. 0 is none.
// It is what a heap's blocks refer to each other by; programs in C hold Base
// plus the offset.
type Offset uint64

// Options say how a heap is created or opened.
type Options struct {
	// Grow makes the region at least size bytes large, new bytes zero, and returns
	// all of its bytes, from the same address on. The region may be so large
	// already, since another process grew it, or have been so large before, since a
	// rollback takes growth back. Grow is called with the heap's lock held and
	// must not wait for a restart point. nil: the region stays as large as it is.
	// For a client.Region r it is
	//
	//	func(size uint64) ([]byte, error) {
	//		if err := r.Grow(int64(size)); err != nil {
	//			return nil, err
	//		}
	//		return r.Bytes(), nil
	//	}
	Grow func(size uint64) ([]byte, error)

	// Owners tell the processes that use the heap apart; see FileOwners. nil: no
	// other process has it mapped, and in this one only this Heap uses it.
	Owners Owners

	// Base is the address, a multiple of 64 MiB, at which C programs are to map a
	// heap that is created. 0: the address of its bytes, if that is such a
	// multiple, else DefaultBase.
	Base uint64

	// Guards puts 16 bytes behind every block of a heap that is created, which
	// find stores beyond the bytes asked for and second frees.
	Guards bool
}

// DefaultBase is where C programs map a heap that was created at no such address.
const DefaultBase = 0x2000_0000_0000

// openWait bounds the wait for another process that is opening the heap.
const openWait = 10 * time.Second

// A Heap is an open heap. It is safe for concurrent use.
type Heap struct {
	grow   func(size uint64) ([]byte, error)
	owners Owners
	fixed  fixed
	id     uint32 // of this process, in the lock word

	mem    atomic.Pointer[memory]       // replaced by a longer one, under mu
	broken atomic.Pointer[CorruptError] // what was found first
	types  sync.Map                     // reflect.Type to error: whether it may lie in a heap

	sharedMu sync.Mutex
	shared   *Cache // of Heap.Alloc and the like; nil until the first

	mu      sync.Mutex // half of the heap's lock
	central central
	closed  bool

	ownersMu sync.Mutex
	cached   [caches]*Cache // that this process has
}

// Create makes a heap in a new region, whose first page is zero and which should
// be zero everywhere, and opens it. The heap becomes durable when the region's
// epoch commits.
//
// It returns ErrExists if the region's first page is not zero, and ErrNoSpace if
// the region is smaller than 8 MiB and cannot grow.
func Create(mem []byte, o Options) (*Heap, error) { return start(mem, o, true) }

// Open opens the heap in a region. The region's bytes are used in place, until
// Close.
//
// It returns ErrNoHeap if the first page is zero, ErrVersion, and a CorruptError
// for what else is no heap. It does not walk the heap; that is Check.
func Open(mem []byte, o Options) (*Heap, error) { return start(mem, o, false) }

func start(mem []byte, o Options, create bool) (*Heap, error) {
	h := &Heap{grow: o.Grow, owners: o.Owners}
	if h.owners == nil {
		h.owners = alone{}
	}
	m := memory(mem)
	h.mem.Store(&m)
	if len(m) > 0 && !m.usable() {
		return nil, errors.New("heap: the bytes are not aligned, or this machine is not little-endian")
	}
	if err := h.lockOpening(); err != nil {
		return nil, err
	}
	err := h.begin(o, create)
	if unlockErr := h.owners.Unlock(openingByte); err == nil && unlockErr != nil {
		err = errors.Join(unlockErr, h.Close())
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// lockOpening keeps other processes from opening the heap meanwhile.
func (h *Heap) lockOpening() error {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		ok, err := h.owners.TryLock(openingByte)
		if ok || err != nil {
			return err
		}
		if time.Since(began) > openWait {
			return fmt.Errorf("%w: another process has been opening it for %v", ErrBusy, openWait)
		}
	}
}

// begin opens or creates the heap, with the opening byte locked.
func (h *Heap) begin(o Options, create bool) error {
	if create {
		if err := h.create(o); err != nil {
			return err
		}
	}
	if len(h.view()) < headerSize {
		return ErrNoHeap
	}
	if err := h.fixed.decode(h.view()); err != nil {
		return err
	}
	others, err := h.owners.Locked(idByte, maxID+1)
	if err != nil {
		return err
	}
	if h.id, err = h.chooseID(); err != nil {
		return err
	}
	if !others {
		err = h.dropLock()
	}
	if err == nil {
		var c *central
		if c, err = h.enter(); err == nil {
			err = c.exit(nil)
		}
	}
	if err != nil {
		return errors.Join(err, h.owners.Unlock(idByte+int64(h.id)))
	}
	return nil
}

// chooseID takes an id that no process has.
func (h *Heap) chooseID() (uint32, error) {
	for range 1000 {
		id := 1 + rand.Uint32N(maxID)
		ok, err := h.owners.TryLock(idByte + int64(id))
		if err != nil {
			return 0, err
		}
		if ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: no id is free", ErrBusy)
}

// dropLock frees a lock that nobody can hold: no process has the heap open. It is
// the remnant of an epoch that was committed in the middle of a call, so the heap
// may hold half a change.
func (h *Heap) dropLock() error {
	m := h.view()
	if m.load32(lockAt) == 0 {
		return nil
	}
	m.store32(lockAt, 0)
	r, err := h.Check()
	if err == nil && r.Found > 0 {
		err = r.Problems[0]
	}
	return err
}

// create writes an empty heap.
func (h *Heap) create(o Options) error {
	if len(h.view()) < minSize {
		if err := h.extend(minSize); err != nil {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	m := h.view()
	if !allZero(m[:headerSize]) {
		return ErrExists
	}
	f := fixed{base: o.Base, guards: o.Guards}
	if at := uint64(m.address()); f.base == 0 && at%chunkSize == 0 {
		f.base = at
	}
	if f.base == 0 {
		f.base = DefaultBase
	}
	if f.base%chunkSize != 0 {
		return fmt.Errorf("heap: base %#x is no multiple of 64 MiB", f.base)
	}
	c := central{h: h, m: m, s: state{size: min(uint64(len(m)), maxSize) / unitSize * unitSize, top: chunk0Meta * unitSize}}
	c.cut(0)
	c.s.encode(m)
	copy(m, f.encode())
	return nil
}

// Close gives back what this process has of the heap, caches too, not what is in
// it. Nobody may be inside a call. Pointers into the heap stay valid as long as
// its bytes are mapped.
func (h *Heap) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	h.closed = true
	var errs []error
	for _, c := range h.cached {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(append(errs, h.owners.Unlock(idByte+int64(h.id)))...)
}

// Base returns the address at which C programs map the heap: what they hold as a
// pointer is Base plus an Offset.
func (h *Heap) Base() uint64 { return h.fixed.base }

// Root returns the block by which a program finds its data; 0 in a new heap.
func (h *Heap) Root() Offset { return Offset(h.view().load64(rootAt)) }

// SetRoot makes a block the root, or none if off is 0. It returns ErrNotBlock if
// off is no block.
func (h *Heap) SetRoot(off Offset) error {
	c, err := h.enter()
	if err != nil {
		return fmt.Errorf("set root: %w", err)
	}
	if off != 0 {
		_, err = c.find(uint64(off))
	}
	if err == nil {
		c.s.root = uint64(off)
	}
	if err = c.exit(err); err != nil {
		return fmt.Errorf("set root %#x: %w", uint64(off), err)
	}
	return nil
}

// view returns the region's bytes as far as they are mapped here.
func (h *Heap) view() memory { return *h.mem.Load() }

// mapped returns the bytes that the heap uses, those that another process added
// too if off is one of them. A rollback may have taken some back that are still
// mapped here, but do not exist.
func (h *Heap) mapped(off Offset) memory {
	m := h.view()
	size := m.load64(sizeAt)
	if uint64(off) >= uint64(len(m)) && uint64(off) < size && h.catchUp() == nil {
		m = h.view()
	}
	if size < minSize {
		return nil // damaged; what takes the lock says so
	}
	return m[:min(size, uint64(len(m)))]
}

// catchUp maps what other processes added to the region.
func (h *Heap) catchUp() error {
	c, err := h.enter()
	if err != nil {
		return err
	}
	return c.exit(nil)
}

// extend makes at least size bytes of the region usable here. It is called with
// the heap's lock held, or before the heap is open. It asks even if so many are
// mapped: a rollback takes growth back.
func (h *Heap) extend(size uint64) error {
	old := h.view()
	if h.grow == nil {
		if size > uint64(len(old)) {
			return fmt.Errorf("the region has %d bytes and cannot grow", len(old))
		}
		return nil
	}
	b, err := h.grow(size)
	if err != nil {
		return fmt.Errorf("grow to %d bytes: %w", size, err)
	}
	m := memory(b)
	switch {
	case uint64(len(m)) < size:
		return fmt.Errorf("grow to %d bytes: got %d", size, len(m))
	case len(old) > 0 && m.address() != old.address():
		return fmt.Errorf("grow to %d bytes: the region moved", size)
	case !m.usable():
		return fmt.Errorf("grow to %d bytes: the region is not aligned", size)
	}
	h.mem.Store(&m)
	return nil
}
