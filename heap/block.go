package heap

// A block is what an offset says about the block that begins there.
type block struct {
	off   uint64
	size  uint64 // bytes, guard included
	class int    // classes: large or huge
	huge  bool
	span  unitNo // of a small or large block
	no    uint32 // of a small block, in its span
}

// bitWord is the offset of the bitmap's word for a small block.
func (b *block) bitWord() uint64 { return b.span.desc() + descBitmap + uint64(b.no)/64*8 }
func (b *block) bit() uint64     { return 1 << (b.no % 64) }

// find returns the block that begins at off; ErrNotBlock if none does. Whether
// a small block is in use it does not say. It needs no lock if the block is in
// use: nothing that it reads changes before the block is freed.
func (m memory) find(size, off uint64) (block, error) {
	b := block{off: off, class: classes}
	if off >= size || off%memoryAlign != 0 {
		return b, ErrNotBlock
	}
	chunk := uint32(off >> chunkShift)
	switch kind := m.load32(dirAt(chunk)) & 0xff; kind {
	case chunkHuge:
		return b, m.findHuge(&b, size, chunk)
	case chunkCut:
	case chunkUnused, chunkHugeRest:
		return b, ErrNotBlock
	default:
		return b, corruptf(dirAt(chunk), "directory kind: %d", kind)
	}
	if unitsBelow(size, chunk) < metaUnits(chunk) {
		return b, corruptf(dirAt(chunk), "directory kind: 1, of a chunk beyond size")
	}
	n := unitNo(off >> unitShift)
	e := unitEntry(m.load32(n.mapEntry()))
	b.span = n - unitNo(n.unit()) + unitNo(e.head())
	switch e.kind() {
	case unitFree, unitMeta:
		return b, ErrNotBlock
	case unitSmall:
		return b, m.findSmall(&b, n, e)
	case unitLarge:
		return b, m.findLarge(&b, size, n)
	}
	return b, corruptf(n.mapEntry(), "unit map kind: %d", e.kind())
}

func (m memory) findHuge(b *block, size uint64, chunk uint32) error {
	count := m.load32(dirAt(chunk) + 4)
	if count == 0 || uint64(chunk)+uint64(count) > size>>chunkShift {
		return corruptf(dirAt(chunk)+4, "directory count: %d chunks, beyond size", count)
	}
	b.huge = true
	b.size = uint64(count) << chunkShift
	if b.off != chunkStart(chunk) {
		return ErrNotBlock
	}
	return nil
}

func (m memory) findSmall(b *block, n unitNo, e unitEntry) error {
	if e.class() >= classes {
		return corruptf(n.mapEntry(), "unit map class: %d", e.class())
	}
	k := &classTable[e.class()]
	if b.span > n || n-b.span >= unitNo(k.units) || b.span.unit()+uint32(k.units) > chunkUnits {
		return corruptf(n.mapEntry(), "unit map head: unit %d is not in a span of class %d at %d", n, e.class(), b.span)
	}
	no, ok := k.blockAt(b.off - b.span.offset())
	if !ok {
		return ErrNotBlock
	}
	b.class, b.no, b.size = e.class(), no, uint64(k.size)
	return nil
}

func (m memory) findLarge(b *block, size uint64, n unitNo) error {
	if b.off != b.span.offset() {
		return ErrNotBlock
	}
	units := m.load32(b.span.desc()+descUnits) & 0xffff
	if units == 0 || n.unit()+units > unitsBelow(size, n.chunk()) {
		return corruptf(b.span.desc()+descUnits, "descriptor units: %d, from unit %d on", units, n.unit())
	}
	b.size = uint64(units) << unitShift
	return nil
}

// find is memory.find with the lock held.
func (c *central) find(off uint64) (block, error) { return c.m.find(c.s.size, off) }

// find is memory.find without the lock.
func (h *Heap) find(off Offset) (memory, block, error) {
	m := h.mapped(off)
	b, err := m.find(uint64(len(m)), uint64(off))
	return m, b, err
}

// giveLarge makes a large or huge block free.
func (c *central) giveLarge(off uint64) error {
	b, err := c.findWhole(off)
	if err != nil {
		return err
	}
	if b.huge {
		return c.giveHuge(uint32(off>>chunkShift), uint32(b.size>>chunkShift))
	}
	return c.giveUnits(b.span, uint32(b.size>>unitShift))
}

// takeLarge takes a large or huge block. fresh is the offset from which on its
// bytes were never used.
func (c *central) takeLarge(size, align uint64) (b block, fresh uint64, err error) {
	units, alignUnits := roundUp(size, unitSize)>>unitShift, max(align, unitSize)>>unitShift
	if fitsChunk(units, alignUnits) {
		fresh = c.s.top
		n, err := c.takeUnits(uint32(units), uint32(alignUnits), 0, unitLarge)
		return block{off: n.offset(), size: units << unitShift, class: classes, span: n}, fresh, err
	}
	n := uint32(roundUp(size, chunkSize) >> chunkShift)
	first, fresh, err := c.takeHuge(n)
	return block{off: chunkStart(first), size: uint64(n) << chunkShift, class: classes, huge: true}, fresh, err
}

// resize makes a large or huge block one of at least size bytes in place; false
// if it cannot.
func (c *central) resize(off, size uint64) (block, bool, error) {
	b, err := c.findWhole(off)
	if err != nil {
		return b, false, err
	}
	var ok bool
	units := roundUp(size, unitSize) >> unitShift
	switch {
	case size <= smallMax || fitsChunk(units, 1) == b.huge:
		return b, false, nil
	case b.huge:
		n := roundUp(size, chunkSize) >> chunkShift
		ok, err = c.resizeHuge(uint32(off>>chunkShift), uint32(b.size>>chunkShift), uint32(n))
		size = n << chunkShift
	default:
		ok, err = c.resizeLarge(b.span, uint32(b.size>>unitShift), uint32(units))
		size = units << unitShift
	}
	if ok && err == nil {
		b.size = size
	}
	return b, ok, err
}

// findWhole is find for large and huge blocks. It checks that all that the block
// claims to have says that it has it.
func (c *central) findWhole(off uint64) (block, error) {
	b, err := c.find(off)
	if err != nil {
		return b, err
	}
	if b.class != classes {
		return b, ErrNotBlock
	}
	if b.huge {
		first := uint32(off >> chunkShift)
		for i := uint32(1); i < uint32(b.size>>chunkShift); i++ {
			if e := c.dir(first + i); e != newDirEntry(chunkHugeRest, 0, 0, i) {
				return b, corruptf(dirAt(first+i), "directory: not chunk %d of a huge block", i)
			}
		}
		return b, nil
	}
	want := newUnitEntry(b.span.unit(), 0, unitLarge)
	for u := b.span; u < b.span+unitNo(b.size>>unitShift); u++ {
		if c.entry(u) != want {
			return b, corruptf(u.mapEntry(), "unit map: not of the large span at unit %d", b.span)
		}
	}
	return b, nil
}
