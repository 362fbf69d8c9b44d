package heap

import (
	"encoding/binary"
	"math/bits"
)

// chunks checks what is in the chunks.
func (c *checker) chunks() error {
	for i := range c.s.chunks {
		var err error
		switch c.dir[i].kind() {
		case chunkHuge:
			size := uint64(c.dir[i].count()) << chunkShift
			c.end = chunkStart(i) + size
			c.report.Stats.Huge.add(size)
			err = c.largeGuard(block{off: chunkStart(i), size: size})
		case chunkCut:
			err = c.chunk(i)
		}
		if err != nil {
			return err
		}
	}
	for _, s := range c.slots {
		if !s.found {
			c.problem(s.at, "cache slots: %#x is no block in use of class %d", s.off, s.class)
		}
	}
	return nil
}

// chunk checks a chunk of kind 1.
func (c *checker) chunk(chunk uint32) error {
	start := chunkStart(chunk)
	if err := c.read(c.unitMap, start+unitMapAt); err != nil {
		return err
	}
	if err := c.read(c.descs, start+descAt); err != nil {
		return err
	}
	meta, below := metaUnits(chunk), unitsBelow(c.s.size, chunk)
	for u := range meta {
		if e := c.entry(u); e != newUnitEntry(0, 0, unitMeta) {
			c.problem(start+unitMapAt+4*uint64(u), "unit map: %#x of unit %d, which is metadata", uint32(e), u)
		}
	}
	c.report.Stats.MetadataBytes += uint64(meta) << unitShift

	count, firstFree, run, longest := meta, uint32(chunkUnits), uint32(0), uint32(0)
	for u := meta; u < below; {
		if c.entry(u) == unitFree {
			firstFree = min(firstFree, u)
			run++
			longest = max(longest, run)
			u++
			continue
		}
		run = 0
		n, err := c.checkSpan(chunk, u, below)
		if err != nil {
			return err
		}
		count += n
		u += n
	}
	firstFree = min(firstFree, below)
	c.reserved("unit map beyond size,", c.unitMap[4*below:], start+unitMapAt+4*uint64(below))

	st := &c.report.Stats
	st.FreeBytes += uint64(below-count) << unitShift
	st.LongestFree = max(st.LongestFree, uint64(longest)<<unitShift)
	e := c.dir[chunk]
	if e.count() != count {
		c.problem(dirAt(chunk)+4, "directory count: is %d, %d units are not free", e.count(), count)
	}
	if e.longest() < longest || e.longest() > chunkUnits {
		c.problem(dirAt(chunk)+2, "directory longest: is %d, a free run has %d units", e.longest(), longest)
	}
	if e.low()*16 > firstFree {
		c.problem(dirAt(chunk)+1, "directory low: is %d, but unit %d is free", e.low(), firstFree)
	}
	return nil
}

func (c *checker) entry(u uint32) unitEntry {
	return unitEntry(binary.LittleEndian.Uint32(c.unitMap[4*u:]))
}

// checkSpan checks the span that begins at unit u, and returns the units that say
// that they belong to it.
func (c *checker) checkSpan(chunk, u, below uint32) (uint32, error) {
	e := c.entry(u)
	n := uint32(1)
	for u+n < below && c.entry(u+n) == e {
		n++
	}
	span := unitNo(chunk*chunkUnits + u)
	at := span.mapEntry()
	small := e.kind() == unitSmall
	switch {
	case !small && e.kind() != unitLarge:
		c.problem(at+3, "unit map kind: %d, of unit %d", e.kind(), u)
		return n, nil
	case e.head() != u:
		c.problem(at, "unit map head: unit %d says that its span begins at %d", u, e.head())
		return n, nil
	case small && e.class() >= classes || !small && e.class() != 0:
		c.problem(at+2, "unit map class: %d, of unit %d", e.class(), u)
		return n, nil
	case small && n != uint32(classTable[e.class()].units):
		c.problem(at, "unit map: %d units of a span of class %d, which has %d", n, e.class(), classTable[e.class()].units)
		return n, nil
	}
	c.end = (span + unitNo(n)).offset()
	d := c.descs[descSize*u : descSize*(u+1)]
	c.reserved("descriptor", d[descKind+1:descBitmap], span.desc()+descKind+1)
	if small {
		return n, c.small(span, e.class(), d)
	}
	return n, c.large(span, n, d)
}

// descriptor checks what a descriptor repeats.
func (c *checker) descriptor(span unitNo, d []byte, units, blocks uint32, class int, kind uint8) {
	at := span.desc()
	if got := binary.LittleEndian.Uint16(d[descUnits:]); uint32(got) != units {
		c.problem(at+descUnits, "descriptor units: is %d, want %d", got, units)
	}
	if got := binary.LittleEndian.Uint16(d[descBlocks:]); uint32(got) != blocks {
		c.problem(at+descBlocks, "descriptor blocks: is %d, want %d", got, blocks)
	}
	if int(d[descClass]) != class {
		c.problem(at+descClass, "descriptor class: is %d, want %d", d[descClass], class)
	}
	if d[descKind] != kind {
		c.problem(at+descKind, "descriptor kind: is %d, want %d", d[descKind], kind)
	}
}

// unlisted checks that a span without free blocks names no neighbours.
func (c *checker) unlisted(span unitNo, d []byte) {
	if binary.LittleEndian.Uint64(d[descNext:]) != 0 {
		c.problem(span.desc(), "descriptor next or prev: not zero, of a span in no list")
	}
}

func (c *checker) large(span unitNo, units uint32, d []byte) error {
	c.descriptor(span, d, units, 1, 0, unitLarge)
	c.unlisted(span, d)
	if free := binary.LittleEndian.Uint16(d[descFree:]); free != 0 || !allZero(d[descBitmap:]) {
		c.problem(span.desc()+descFree, "descriptor free or bitmap: not zero, of a large span")
	}
	c.report.Stats.Large.add(uint64(units) << unitShift)
	return c.largeGuard(block{off: span.offset(), size: uint64(units) << unitShift})
}

func (c *checker) small(span unitNo, cl int, d []byte) error {
	k := &classTable[cl]
	c.descriptor(span, d, uint32(k.units), uint32(k.blocks), cl, unitSmall)
	free := 0
	for w := range descSize/8 - descBitmap/8 {
		word := binary.LittleEndian.Uint64(d[descBitmap+8*w:])
		valid := ^uint64(0)
		if left := int(k.blocks) - 64*w; left < 64 {
			valid = 1<<max(left, 0) - 1
		}
		if word&^valid != 0 {
			c.problem(span.desc()+descBitmap+8*uint64(w), "descriptor bitmap: bits of no block")
		}
		free += bits.OnesCount64(word & valid)
	}
	if got := int(binary.LittleEndian.Uint16(d[descFree:])); got != free {
		c.problem(span.desc()+descFree, "descriptor free: is %d, the bitmap has %d", got, free)
	}
	if binary.LittleEndian.Uint16(d[descFree:]) == 0 {
		c.unlisted(span, d)
	} else {
		c.listed[cl]++
	}
	slots := c.slotsIn(span.offset(), span.offset()+uint64(k.units)<<unitShift)
	cached := c.match(slots, span, cl, d)
	c.report.Stats.Classes[cl].add(free, cached)
	if !c.fixed.guards {
		return nil
	}
	return c.smallGuards(span, cl, d, slots)
}

// match marks the slots that name blocks in use of a span, and returns how many
// blocks they are.
func (c *checker) match(slots []slot, span unitNo, cl int, d []byte) int {
	cached, last := 0, uint64(0)
	for i := range slots {
		s := &slots[i]
		no, ok := classTable[cl].blockAt(s.off - span.offset())
		if s.found = ok && s.class == cl && !bitSet(d, no); s.found && s.off != last {
			cached++
			last = s.off
		}
	}
	return cached
}

// smallGuards checks the guards of the blocks of a span that are in use.
func (c *checker) smallGuards(span unitNo, cl int, d []byte, slots []slot) error {
	k := &classTable[cl]
	size := uint64(k.units) << unitShift
	if uint64(cap(c.span)) < size {
		c.span = make([]byte, size)
	}
	c.span = c.span[:size]
	if err := c.read(c.span, span.offset()); err != nil {
		return err
	}
	for no := range uint32(k.blocks) {
		off := uint64(no) * uint64(k.size)
		for len(slots) > 0 && slots[0].off < span.offset()+off {
			slots = slots[1:]
		}
		if bitSet(d, no) || len(slots) > 0 && slots[0].off == span.offset()+off {
			continue
		}
		c.guard(c.span[off:off+uint64(k.size)], span.offset()+off)
	}
	return nil
}

// guard checks the guard of a block in use that lies at off; b is the block.
func (c *checker) guard(b []byte, off uint64) {
	at := uint64(len(b)) - guardSize
	n, word := binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])
	switch {
	case word != guardLive^off:
		c.problem(off+at+8, "guard word: %#x of the block at %#x, want %#x", word, off, uint64(guardLive)^off)
	case n > at:
		c.problem(off+at, "guard bytes: %d of the block at %#x", n, off)
	case !allFill(b[n:min(at, n+guardFillMax)]):
		c.problem(off+n, "guard: bytes behind the block at %#x changed", off)
	}
}

// largeGuard checks the guard of a large or huge block.
func (c *checker) largeGuard(b block) error {
	if !c.fixed.guards {
		return nil
	}
	at := guardAt(b)
	g := make([]byte, guardSize)
	if err := c.read(g, at); err != nil {
		return err
	}
	n, word := binary.LittleEndian.Uint64(g), binary.LittleEndian.Uint64(g[8:])
	switch {
	case word != guardLive^b.off:
		c.problem(at+8, "guard word: %#x of the block at %#x, want %#x", word, b.off, uint64(guardLive)^b.off)
		return nil
	case n > b.size-guardSize:
		c.problem(at, "guard bytes: %d of the block at %#x", n, b.off)
		return nil
	}
	fill := make([]byte, min(at-b.off-n, guardFillMax))
	if err := c.read(fill, b.off+n); err != nil {
		return err
	}
	if !allFill(fill) {
		c.problem(b.off+n, "guard: bytes behind the block at %#x changed", b.off)
	}
	return nil
}
