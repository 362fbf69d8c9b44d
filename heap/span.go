package heap

import "math/bits"

// Small spans and the lists of those with free blocks, with the heap's lock held.
// Blocks are taken from a list's first span and a span joins at the end, so that
// it collects free blocks for a while.

// span checks that a small span of a class begins at n, and returns the offset of
// its descriptor. at and what name the word that says so.
func (c *central) span(n unitNo, cl int, at uint64, what string) (desc uint64, err error) {
	if n.offset() >= c.s.size {
		return 0, corruptf(at, "%s: unit %d is beyond size", what, n)
	}
	if _, err := c.cutDir(n.chunk()); err != nil {
		return 0, err
	}
	if e := c.entry(n); e.kind() != unitSmall || e.class() != cl || e.head() != n.unit() {
		return 0, corruptf(at, "%s: no span of class %d begins at unit %d", what, cl, n)
	}
	d := n.desc()
	k := &classTable[cl]
	if c.m.u16(d+descUnits) != k.units || c.m.u16(d+descBlocks) != k.blocks || c.m.u16(d+descFree) > k.blocks ||
		int(c.m[d+descClass]) != cl || c.m[d+descKind] != unitSmall {
		return 0, corruptf(d+descUnits, "descriptor: not that of a span of class %d", cl)
	}
	return d, nil
}

// join appends a span to its class's list.
func (c *central) join(n unitNo, cl int) error {
	at := listAt(cl)
	last := unitNo(c.m.u32(at + 4))
	if last == 0 {
		c.m.put32(at, uint32(n))
	} else {
		d, err := c.span(last, cl, at+4, "lists last")
		if err != nil {
			return err
		}
		c.m.put32(d+descNext, uint32(n))
	}
	c.m.put32(n.desc()+descNext, 0)
	c.m.put32(n.desc()+descPrev, uint32(last))
	c.m.put32(at+4, uint32(n))
	return nil
}

// leave removes a span from its class's list.
func (c *central) leave(n unitNo, cl int) error {
	at, d := listAt(cl), n.desc()
	prev, next := unitNo(c.m.u32(d+descPrev)), unitNo(c.m.u32(d+descNext))
	fromPrev, fromNext := at, at+4 // the words that name n
	if prev != 0 {
		p, err := c.span(prev, cl, d+descPrev, "descriptor prev")
		if err != nil {
			return err
		}
		fromPrev = p + descNext
	}
	if next != 0 {
		x, err := c.span(next, cl, d+descNext, "descriptor next")
		if err != nil {
			return err
		}
		fromNext = x + descPrev
	}
	for _, w := range []uint64{fromPrev, fromNext} {
		if got := unitNo(c.m.u32(w)); got != n {
			return corruptf(w, "list of class %d: unit %d, want %d", cl, got, n)
		}
	}
	c.m.put32(fromPrev, uint32(next))
	c.m.put32(fromNext, uint32(prev))
	c.m.put32(d+descNext, 0)
	c.m.put32(d+descPrev, 0)
	return nil
}

// makeSpan makes a span, all of its blocks free, and puts it into the list.
func (c *central) makeSpan(cl int) error {
	k := &classTable[cl]
	n, err := c.takeUnits(uint32(k.units), 1, uint8(cl), unitSmall)
	if err != nil {
		return err
	}
	d := n.desc()
	c.putUnits(n, uint32(k.units), uint32(k.blocks))
	c.m.put16(d+descFree, k.blocks)
	for b := 0; b < int(k.blocks); b += 64 {
		c.m.store64(d+descBitmap+uint64(b)/8, ^uint64(0)>>max(0, 64-int(k.blocks)+b))
	}
	return c.join(n, cl)
}

// takeBlocks fills out with blocks of a class, lowest of the first span first. It
// takes fewer, but at least one, if the list has no more.
func (c *central) takeBlocks(cl int, out []uint64) (int, error) {
	at := listAt(cl)
	if c.m.u32(at) == 0 {
		if err := c.makeSpan(cl); err != nil {
			return 0, err
		}
	}
	got := 0
	for got < len(out) {
		n := unitNo(c.m.u32(at))
		if n == 0 {
			break
		}
		d, err := c.span(n, cl, at, "lists first")
		if err != nil {
			return got, err
		}
		took, err := c.takeFromSpan(n, cl, out[got:])
		if err != nil {
			return got, err
		}
		got += took
		if c.m.u16(d+descFree) == 0 {
			if err := c.leave(n, cl); err != nil {
				return got, err
			}
		}
	}
	return got, nil
}

// takeFromSpan takes the lowest free blocks of a span of the class.
func (c *central) takeFromSpan(n unitNo, cl int, out []uint64) (int, error) {
	k, d := &classTable[cl], n.desc()
	free := int(c.m.u16(d + descFree))
	got := 0
	for w := uint64(0); w*64 < uint64(k.blocks) && got < len(out); w++ {
		word := c.m.u64(d + descBitmap + 8*w)
		for ; word != 0 && got < len(out); word &= word - 1 {
			b := w*64 + uint64(bits.TrailingZeros64(word))
			if b >= uint64(k.blocks) || got == free {
				return 0, corruptf(d+descBitmap+8*w, "descriptor bitmap: more bits than free, or than blocks")
			}
			out[got] = n.offset() + b*uint64(k.size)
			got++
		}
		c.m.store64(d+descBitmap+8*w, word)
	}
	if got < min(free, len(out)) || got == 0 {
		return 0, corruptf(d+descFree, "descriptor free: %d, bitmap has %d", free, got)
	}
	c.m.put16(d+descFree, uint16(free-got))
	return got, nil
}

// giveBlock makes a block of a class free. at is the slot that names it; 0 if the
// program does.
func (c *central) giveBlock(cl int, off, at uint64) error {
	k := &classTable[cl]
	b, err := c.find(off)
	if err == nil && b.class != cl {
		err = ErrNotBlock
	}
	if err == nil && c.m.u64(b.bitWord())&b.bit() != 0 {
		err = ErrNotBlock
	}
	if err != nil {
		if at != 0 {
			return corruptf(at, "cache slots: %#x is no block in use of class %d", off, cl)
		}
		return err
	}
	d, err := c.span(b.span, cl, b.span.mapEntry(), "unit map")
	if err != nil {
		return err
	}
	free := c.m.u16(d + descFree)
	if free >= k.blocks {
		return corruptf(d+descFree, "descriptor free: %d, but a block is in use", free)
	}
	c.m.store64(b.bitWord(), c.m.u64(b.bitWord())|b.bit())
	c.m.put16(d+descFree, free+1)
	if free == 0 {
		return c.join(b.span, cl)
	}
	list := listAt(cl)
	if free+1 == k.blocks && c.m.u32(list) != c.m.u32(list+4) {
		if err := c.leave(b.span, cl); err != nil {
			return err
		}
		return c.giveUnits(b.span, uint32(k.units))
	}
	return nil
}
