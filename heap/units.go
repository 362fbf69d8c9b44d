package heap

import "fmt"

// Units and chunks, with the heap's lock held. What is chosen is part of the
// format: docs/format.md, Sequences.

// dir reads a directory entry.
func (c *central) dir(chunk uint32) dirEntry {
	at := dirAt(chunk)
	return dirEntry(uint64(c.m.load32(at)) | uint64(c.m.u32(at+4))<<32)
}

func (c *central) putDir(chunk uint32, e dirEntry) {
	at := dirAt(chunk)
	c.m.put32(at+4, e.count())
	c.m.store32(at, uint32(e))
}

// cutDir is dir for chunks of kind 1. It makes sure that their metadata is in
// the region.
func (c *central) cutDir(chunk uint32) (dirEntry, error) {
	e := c.dir(chunk)
	meta := metaUnits(chunk)
	switch {
	case e.kind() != chunkCut:
		return e, corruptf(dirAt(chunk), "directory kind: is %d, want 1", e.kind())
	case unitsBelow(c.s.size, chunk) < meta:
		return e, corruptf(dirAt(chunk), "directory kind: 1, of a chunk beyond size")
	case e.count() < meta || e.count() > chunkUnits || e.longest() > chunkUnits:
		return e, corruptf(dirAt(chunk), "directory count or longest: %d, %d", e.count(), e.longest())
	}
	return e, nil
}

// cut makes a chunk one of kind 1.
func (c *central) cut(chunk uint32) {
	meta := metaUnits(chunk)
	for u := range uint32(chunkUnits) {
		e := unitEntry(0)
		if u < meta {
			e = newUnitEntry(0, 0, unitMeta)
		}
		c.m.store32(unitNo(chunk*chunkUnits+u).mapEntry(), uint32(e))
	}
	c.putDir(chunk, newDirEntry(chunkCut, uint8(meta/16), chunkUnits, meta))
	c.s.normal++
	c.s.chunks = max(c.s.chunks, chunk+1)
	c.s.first = min(c.s.first, chunk)
}

func (c *central) entry(n unitNo) unitEntry { return unitEntry(c.m.load32(n.mapEntry())) }

// putEntries makes units of a chunk say e.
func (c *central) putEntries(n unitNo, units uint32, e unitEntry) {
	for i := range unitNo(units) {
		c.m.store32((n + i).mapEntry(), uint32(e))
	}
}

// findRun returns the lowest run of k free units of a chunk, at a multiple of
// align. Without one it returns the longest run that it saw.
func (c *central) findRun(chunk uint32, e dirEntry, k, align uint32) (start, longest uint32, found bool) {
	free := func(u uint32) bool { return c.entry(unitNo(chunk*chunkUnits+u)) == unitFree }
	u := e.low() * 16
	for u < chunkUnits && !free(u) {
		u++
	}
	c.putDir(chunk, e.with(min(u, chunkUnits-1)/16, e.longest(), e.count()))
	end := unitsBelow(c.s.size, chunk)
	for u < end {
		from := u
		start = (u + align - 1) / align * align
		for u < end && u < start+k && free(u) {
			u++
		}
		if u == start+k {
			return start, 0, true
		}
		longest = max(longest, u-from)
		for u < end && !free(u) {
			u++
		}
	}
	return 0, longest, false
}

// findCut looks for k free units in chunks of kind 1.
func (c *central) findCut(k, align uint32) (unitNo, bool, error) {
	for ; c.s.first < c.s.chunks; c.s.first++ {
		if e := c.dir(c.s.first); e.kind() == chunkCut && e.count() < chunkUnits {
			break
		}
	}
	for chunk := c.s.first; chunk < c.s.chunks; chunk++ {
		if e := c.dir(chunk); e.kind() != chunkCut || e.longest() < k {
			continue
		}
		e, err := c.cutDir(chunk)
		if err != nil {
			return 0, false, err
		}
		start, longest, found := c.findRun(chunk, e, k, align)
		if found {
			return unitNo(chunk*chunkUnits + start), true, nil
		}
		if align == 1 {
			e = c.dir(chunk)
			c.putDir(chunk, e.with(e.low(), longest, e.count()))
		}
	}
	return 0, false, nil
}

// firstStart is the lowest multiple of align behind the metadata of a chunk other
// than 0.
func firstStart(align uint32) uint32 { return (chunkMeta + align - 1) / align * align }

// cutUnused makes the lowest unused chunk below size that can hold k units one of
// kind 1.
func (c *central) cutUnused(k, align uint32) bool {
	chunk := uint32(1)
	if c.s.normal+c.s.huge == c.s.chunks {
		chunk = c.s.chunks // no other is unused
	}
	for ; chunk <= c.s.chunks && chunk < maxChunks; chunk++ {
		if c.dir(chunk).kind() == chunkUnused && unitsBelow(c.s.size, chunk) >= firstStart(align)+k {
			c.cut(chunk)
			return true
		}
	}
	return false
}

// growFor grows the region so that a search for k units finds them.
func (c *central) growFor(k, align uint32) error {
	chunk := c.s.chunks - 1
	start := uint32(chunkUnits)
	if c.dir(chunk).kind() == chunkCut {
		if _, err := c.cutDir(chunk); err != nil {
			return err
		}
		tail := uint32(chunkUnits)
		for tail > 0 && c.entry(unitNo(chunk*chunkUnits+tail-1)) == unitFree {
			tail--
		}
		start = (tail + align - 1) / align * align
	}
	if start+k > chunkUnits {
		chunk++
		start = firstStart(align)
	}
	return c.growTo(chunkStart(chunk) + uint64(start+k)<<unitShift)
}

// growTo makes the heap use at least need bytes of the region.
func (c *central) growTo(need uint64) error {
	old := c.s.size
	if need <= old {
		return nil
	}
	if need > maxSize {
		return fmt.Errorf("%w: more than 4 TiB", ErrNoSpace)
	}
	size := min(roundUp(max(need, old+old/8), 1<<20), maxSize)
	if c.h.extend(size) != nil {
		size = need // all that the region can do, perhaps
		if err := c.h.extend(size); err != nil {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
	}
	c.m = c.h.view()
	c.s.size = size
	if chunk := uint32(old >> chunkShift); chunk < c.s.chunks {
		if e := c.dir(chunk); e.kind() == chunkCut {
			c.putDir(chunk, e.with(e.low(), chunkUnits, e.count()))
		}
	}
	return nil
}

func (c *central) findUnits(k, align uint32) (unitNo, error) {
	for turn := range 2 {
		if turn > 0 {
			if err := c.growFor(k, align); err != nil {
				return 0, err
			}
		}
		n, found, err := c.findCut(k, align)
		if err == nil && !found && c.cutUnused(k, align) {
			n, found, err = c.findCut(k, align)
		}
		if found || err != nil {
			return n, err
		}
	}
	return 0, corruptf(directoryAt, "directory low, longest or count: hide free units")
}

// takeUnits makes k units, at a multiple of align units, a span without free
// blocks.
func (c *central) takeUnits(k, align uint32, class, kind uint8) (unitNo, error) {
	n, err := c.findUnits(k, align)
	if err != nil {
		return 0, err
	}
	c.putEntries(n, k, newUnitEntry(n.unit(), class, kind))
	c.addCount(n.chunk(), k)
	d := n.desc()
	clear(c.m[d : d+descSize])
	c.putUnits(n, k, 1)
	c.m[d+descClass], c.m[d+descKind] = class, kind
	c.s.top = max(c.s.top, (n + unitNo(k)).offset())
	return n, nil
}

// addCount says that k more units of a chunk are not free.
func (c *central) addCount(chunk, k uint32) {
	e := c.dir(chunk)
	c.putDir(chunk, e.with(e.low(), e.longest(), e.count()+k))
}

// putUnits writes a span's size, which others read together with its blocks.
func (c *central) putUnits(n unitNo, units, blocks uint32) {
	c.m.store32(n.desc()+descUnits, units|blocks<<16)
}

// giveUnits makes k units free. The caller has checked that the chunk has kind 1
// and that the units are of one span of it.
func (c *central) giveUnits(n unitNo, k uint32) error {
	e, err := c.cutDir(n.chunk())
	if err == nil && e.count() < metaUnits(n.chunk())+k {
		err = corruptf(dirAt(n.chunk())+4, "directory count: %d, of which %d are given back", e.count(), k)
	}
	if err != nil {
		return err
	}
	c.putEntries(n, k, unitFree)
	count := e.count() - k
	c.putDir(n.chunk(), e.with(min(e.low(), n.unit()/16), min(2*e.longest()+k, chunkUnits-count), count))
	c.s.first = min(c.s.first, n.chunk())
	return nil
}

// resizeLarge makes a large span of have units one of want units in place;
// false if it cannot. The caller has checked that the span is one of have units.
func (c *central) resizeLarge(n unitNo, have, want uint32) (bool, error) {
	if want > have {
		if n.unit()+want > unitsBelow(c.s.size, n.chunk()) {
			return false, nil
		}
		for u := n + unitNo(have); u < n+unitNo(want); u++ {
			if c.entry(u) != unitFree {
				return false, nil
			}
		}
		c.putEntries(n+unitNo(have), want-have, newUnitEntry(n.unit(), 0, unitLarge))
		c.addCount(n.chunk(), want-have)
		c.s.top = max(c.s.top, (n + unitNo(want)).offset())
	}
	if want < have {
		if err := c.giveUnits(n+unitNo(want), have-want); err != nil {
			return false, err
		}
	}
	c.putUnits(n, want, 1)
	return true, nil
}

// fitsChunk reports whether k units at a multiple of align fit into a chunk other
// than 0.
func fitsChunk(k, align uint64) bool {
	return align <= chunkUnits/2 && k <= chunkUnits && uint64(firstStart(uint32(align)))+k <= chunkUnits
}
