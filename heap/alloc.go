package heap

import (
	"errors"
	"fmt"
)

// Alloc returns a zeroed block of at least size bytes, aligned to 16 bytes and,
// up to 16 KiB, to the largest power of two that divides its usable size. Size 0
// counts as 1. The block is the caller's until Free, in whatever process. It
// becomes durable when the epoch commits; a crash before that frees it again.
//
// It returns ErrNoSpace if the region cannot grow enough, a CorruptError if the
// heap is damaged, and ErrOwnerDead or ErrBusy if another process does not give
// the lock back.
func (c *Cache) Alloc(size uint64) (Offset, error) { return c.AllocAligned(size, memoryAlign) }

// AllocAligned is Alloc for a block at a multiple of align bytes, a power of two
// up to 64 MiB.
func (c *Cache) AllocAligned(size, align uint64) (Offset, error) {
	off, err := c.alloc(size, align, true)
	if err != nil {
		return 0, fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	return off, nil
}

func (c *Cache) alloc(n, align uint64, zero bool) (Offset, error) {
	if c.h == nil {
		return 0, ErrClosed
	}
	if align&(align-1) != 0 || align == 0 || align > alignMax {
		return 0, fmt.Errorf("align to %d: not a power of two up to 64 MiB", align)
	}
	if n > maxSize {
		return 0, ErrNoSpace
	}
	b, fresh, err := c.takeSized(n, align)
	if errors.Is(err, ErrNoSpace) {
		// Blocks may lie in caches that nobody has.
		any, reclaimErr := c.h.reclaim()
		if reclaimErr != nil {
			return 0, reclaimErr
		}
		if any {
			b, fresh, err = c.takeSized(n, align)
		}
	}
	if err != nil {
		return 0, err
	}
	m := c.h.view()
	if to := min(b.off+n, fresh); zero && to > b.off {
		clear(m[b.off:to])
	}
	if c.h.fixed.guards {
		m.guard(b, n)
	}
	return Offset(b.off), nil
}

// takeSized takes a block for n bytes. From fresh on its bytes were never used.
func (c *Cache) takeSized(n, align uint64) (b block, fresh uint64, err error) {
	size := c.h.blockSize(n)
	if size <= smallMax && align <= unitSize {
		cl := alignedClassOf(size, align)
		off, err := c.take(cl)
		return block{off: off, size: uint64(classTable[cl].size), class: cl}, maxSize, err
	}
	t, err := c.h.enter()
	if err != nil {
		return b, 0, err
	}
	b, fresh, err = t.takeLarge(size, align)
	return b, fresh, t.exit(err)
}

// blockSize is the size of the smallest block for n bytes.
func (h *Heap) blockSize(n uint64) uint64 {
	if h.fixed.guards {
		return n + guardSize
	}
	return max(n, 1)
}

// Free gives a block back; 0 is none and does nothing. Nobody may use the block
// any more. A block that was freed already, or that never was one, is mostly
// found out (ErrNotBlock), in a heap with guards nearly always; so are, in such a
// heap only, stores beyond the bytes asked for (ErrOverrun). Then nothing is
// changed. Otherwise a second Free damages the heap.
func (c *Cache) Free(off Offset) error {
	if off == 0 {
		return nil
	}
	if err := c.free(off); err != nil {
		return fmt.Errorf("free %#x: %w", uint64(off), err)
	}
	return nil
}

func (c *Cache) free(off Offset) error {
	if c.h == nil {
		return ErrClosed
	}
	m, b, err := c.h.inUse(off)
	if err != nil {
		return err
	}
	if c.h.fixed.guards {
		m.put64(guardAt(b)+8, guardFreed^b.off)
	}
	if b.class != classes {
		return c.give(b.class, b.off)
	}
	t, err := c.h.enter()
	if err != nil {
		return err
	}
	return t.exit(t.giveLarge(b.off))
}

// inUse finds the block that begins at off and verifies, as far as that is cheap,
// that it is in use.
func (h *Heap) inUse(off Offset) (memory, block, error) {
	m, b, err := h.find(off)
	if err != nil {
		return nil, b, h.failed(err)
	}
	if b.class != classes && m.load64(b.bitWord())&b.bit() != 0 {
		return nil, b, ErrNotBlock
	}
	if h.fixed.guards {
		_, err = m.guarded(b)
	}
	return m, b, err
}

// Realloc makes a block one of at least size bytes, in place or elsewhere, and
// returns where. What it holds is kept, up to the smaller of both sizes; what
// comes after is not zeroed. With off 0 it is Alloc. If it fails the block stays
// as it was.
func (c *Cache) Realloc(off Offset, size uint64) (Offset, error) {
	if off == 0 {
		return c.Alloc(size)
	}
	got, err := c.realloc(off, size)
	if err != nil {
		return 0, fmt.Errorf("reallocate %#x to %d bytes: %w", uint64(off), size, err)
	}
	return got, nil
}

func (c *Cache) realloc(off Offset, n uint64) (Offset, error) {
	if c.h == nil {
		return 0, ErrClosed
	}
	m, b, err := c.h.inUse(off)
	if err != nil {
		return 0, err
	}
	if n > maxSize {
		return 0, ErrNoSpace
	}
	kept := b.size
	if c.h.fixed.guards {
		kept = m.u64(guardAt(b))
	}
	b, ok, err := c.h.resize(b, c.h.blockSize(n))
	if err != nil {
		return 0, err
	}
	if ok {
		if c.h.fixed.guards {
			c.h.view().guard(b, n)
		}
		return off, nil
	}
	to, err := c.alloc(n, memoryAlign, false)
	if err != nil {
		return 0, err
	}
	m = c.h.view()
	copy(m[to:], m[off:uint64(off)+min(kept, n)])
	return to, c.free(off)
}

// resize makes a block one of at least size bytes in place; false if it cannot,
// or if that would waste too much.
func (h *Heap) resize(b block, size uint64) (block, bool, error) {
	if b.class != classes {
		keep := size <= b.size && (size > b.size/2 || classOf(size) == b.class)
		return b, keep, nil
	}
	t, err := h.enter()
	if err != nil {
		return b, false, err
	}
	b, ok, err := t.resize(b.off, size)
	return b, ok, t.exit(err)
}

// UsableSize returns how many bytes of a block may be used: what was asked for,
// or more. It returns ErrNotBlock if no block begins at off.
func (h *Heap) UsableSize(off Offset) (uint64, error) {
	m, b, err := h.inUse(off)
	switch {
	case err != nil:
		return 0, fmt.Errorf("size of %#x: %w", uint64(off), err)
	case h.fixed.guards:
		return m.u64(guardAt(b)), nil
	}
	return b.size, nil
}

// Bytes returns n bytes of the heap from off on, in place; nil if they are not
// in it. They are good as long as the block is.
func (h *Heap) Bytes(off Offset, n uint64) []byte {
	if n == 0 {
		return nil
	}
	return arrayAt[byte](h.mapped(off), uint64(off), n)
}

// Alloc is Cache.Alloc, through a cache that all callers share.
func (h *Heap) Alloc(size uint64) (Offset, error) {
	return h.AllocAligned(size, memoryAlign)
}

// AllocAligned is Cache.AllocAligned, through a cache that all callers share.
func (h *Heap) AllocAligned(size, align uint64) (off Offset, err error) {
	err = h.share(func(c *Cache) error {
		off, err = c.AllocAligned(size, align)
		return err
	})
	return off, err
}

// Free is Cache.Free, through a cache that all callers share.
func (h *Heap) Free(off Offset) error {
	return h.share(func(c *Cache) error { return c.Free(off) })
}

// Realloc is Cache.Realloc, through a cache that all callers share.
func (h *Heap) Realloc(off Offset, size uint64) (to Offset, err error) {
	err = h.share(func(c *Cache) error {
		to, err = c.Realloc(off, size)
		return err
	})
	return to, err
}

// share calls fn with the shared cache.
func (h *Heap) share(fn func(*Cache) error) error {
	h.sharedMu.Lock()
	defer h.sharedMu.Unlock()
	if h.shared == nil {
		c, err := h.Cache()
		if err != nil {
			return err
		}
		h.shared = c
	}
	return fn(h.shared)
}
