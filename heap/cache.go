package heap

import (
	"errors"
	"fmt"
)

// A Cache is a way into the heap for one goroutine at a time: it has free blocks
// of each size at hand. Blocks may be freed through any cache.
//
// What is in a cache at rest stays there for the next that takes it; Close loses
// nothing, and neither does a process that dies without.
type Cache struct {
	h  *Heap  // nil after Close
	no int    // of the cache; caches if none was left
	at uint64 // offset
}

// Cache takes the lowest cache that no goroutine, thread or process has. There
// are 256; without one left, the Cache works, slower, without any.
func (h *Heap) Cache() (*Cache, error) {
	h.ownersMu.Lock()
	defer h.ownersMu.Unlock()
	for i := range h.cached {
		c, err := h.own(i)
		if c != nil || err != nil {
			return c, err
		}
	}
	return &Cache{h: h, no: caches}, nil
}

// own takes cache i; nil if another has it. It is called with ownersMu held.
func (h *Heap) own(i int) (*Cache, error) {
	if h.cached[i] != nil {
		return nil, nil
	}
	ok, err := h.owners.TryLock(cacheByte + int64(i))
	if !ok || err != nil {
		return nil, err
	}
	h.cached[i] = &Cache{h: h, no: i, at: cachesAt + uint64(i)*cacheSize}
	return h.cached[i], nil
}

// Close gives the cache back, with what is in it.
func (c *Cache) Close() error {
	h := c.h
	if h == nil {
		return ErrClosed
	}
	c.h = nil
	if c.no == caches {
		return nil
	}
	h.ownersMu.Lock()
	defer h.ownersMu.Unlock()
	h.cached[c.no] = nil
	return h.owners.Unlock(cacheByte + int64(c.no))
}

// A magazine is a cache's stack of free blocks of one class.
//
//	0   n         blocks in it
//	8   sum       XOR of their slots
//	16  slots
type magazine struct {
	m  memory
	at uint64
	cl int
}

func (g magazine) slot(i uint32) uint64 { return g.at + 16 + 8*uint64(i) }

// n returns the number of blocks in it.
func (g magazine) n() (uint32, error) {
	n := g.m.u32(g.at)
	if n > uint32(classTable[g.cl].room) {
		return 0, corruptf(g.at, "cache n: %d of class %d, room for %d", n, g.cl, classTable[g.cl].room)
	}
	return n, nil
}

func (g magazine) put(n uint32, sum uint64) {
	g.m.put32(g.at, n)
	g.m.put64(g.at+8, sum)
}

// magazine returns the cache's magazine of a class.
func (c *Cache) magazine(cl int) magazine {
	return magazine{c.h.view(), c.at + uint64(classTable[cl].at), cl}
}

// take returns a free block of a class.
func (c *Cache) take(cl int) (uint64, error) {
	if c.no == caches {
		var one [1]uint64
		_, err := c.h.takeBlocks(cl, one[:])
		return one[0], err
	}
	g := c.magazine(cl)
	n, err := g.n()
	if err == nil && n == 0 {
		n, err = c.refill(cl)
		g.m = c.h.view()
	}
	if err != nil {
		return 0, c.h.failed(err)
	}
	at := g.slot(n - 1)
	off := g.m.u64(at)
	if _, b, err := c.h.find(Offset(off)); err != nil || b.class != cl {
		return 0, c.h.failed(corruptf(at, "cache slots: %#x is no block of class %d", off, cl))
	}
	g.put(n-1, g.m.u64(g.at+8)^off)
	return off, nil
}

// refill puts half of what an empty magazine has room for into it, or less, and
// returns how many.
func (c *Cache) refill(cl int) (uint32, error) {
	var batch [batchMax]uint64
	got, err := c.h.takeBlocks(cl, batch[:classTable[cl].room/2])
	if err != nil {
		return 0, err
	}
	g := c.magazine(cl)
	var sum uint64
	for i, off := range batch[:got] {
		g.m.put64(g.slot(uint32(i)), off)
		sum ^= off
	}
	if old := g.m.u64(g.at + 8); old != 0 {
		return 0, corruptf(g.at+8, "cache sum: %#x, of no slots", old)
	}
	g.put(uint32(got), sum)
	return uint32(got), nil
}

func (h *Heap) takeBlocks(cl int, out []uint64) (int, error) {
	c, err := h.enter()
	if err != nil {
		return 0, err
	}
	got, err := c.takeBlocks(cl, out)
	return got, c.exit(err)
}

// give puts a block of a class into the cache.
func (c *Cache) give(cl int, off uint64) error {
	if c.no == caches {
		t, err := c.h.enter()
		if err != nil {
			return err
		}
		return t.exit(t.giveBlock(cl, off, 0))
	}
	g := c.magazine(cl)
	n, err := g.n()
	if err == nil && n == uint32(classTable[cl].room) {
		n, err = c.flush(cl, n/2)
	}
	if err != nil {
		return c.h.failed(err)
	}
	g.m.put64(g.slot(n), off)
	g.put(n+1, g.m.u64(g.at+8)^off)
	return nil
}

// flush gives the count first blocks of a magazine back to their spans, and
// returns how many are left in it.
func (c *Cache) flush(cl int, count uint32) (uint32, error) {
	g := c.magazine(cl)
	n, err := g.n()
	if err != nil {
		return 0, err
	}
	t, err := c.h.enter()
	if err != nil {
		return 0, err
	}
	sum := g.m.u64(g.at + 8)
	for i := uint32(0); i < count && err == nil; i++ {
		off := g.m.u64(g.slot(i))
		err = t.giveBlock(cl, off, g.slot(i))
		sum ^= off
	}
	if err = t.exit(err); err != nil {
		return 0, err
	}
	copy(g.m[g.slot(0):g.slot(n)], g.m[g.slot(count):g.slot(n)])
	g.put(n-count, sum)
	return n - count, nil
}

// reclaim empties the caches that nobody has, and reports whether there was
// anything in them.
func (h *Heap) reclaim() (bool, error) {
	any := false
	for i := range caches {
		h.ownersMu.Lock()
		c, err := h.own(i)
		h.ownersMu.Unlock()
		if err != nil {
			return any, err
		}
		if c == nil {
			continue
		}
		emptied, err := c.empty()
		any = any || emptied
		if err = errors.Join(err, c.Close()); err != nil {
			return any, fmt.Errorf("empty cache %d: %w", i, err)
		}
	}
	return any, nil
}

// empty gives all blocks of the cache back to their spans.
func (c *Cache) empty() (any bool, err error) {
	for cl := range classes {
		n, err := c.magazine(cl).n()
		if err == nil && n > 0 {
			_, err = c.flush(cl, n)
			any = true
		}
		if err != nil {
			return any, c.h.failed(err)
		}
	}
	return any, nil
}
