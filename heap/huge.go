package heap

import "fmt"

// Huge blocks: runs of whole chunks, with the heap's lock held.

// mayBeHuge reports whether a huge block may lie on a chunk: nothing is in it.
func (c *central) mayBeHuge(chunk uint32) bool {
	if chunk >= c.s.chunks {
		return true
	}
	e := c.dir(chunk)
	return e.kind() == chunkUnused || e.kind() == chunkCut && e.count() == chunkMeta
}

// takeHuge returns the first of n chunks that it makes a huge block, and the
// offset from which on the block's bytes were never used.
func (c *central) takeHuge(n uint32) (first uint32, fresh uint64, err error) {
	run, chunk := uint32(0), uint32(1)
	for ; chunk < maxChunks && run < n; chunk++ {
		run++
		if !c.mayBeHuge(chunk) {
			run = 0
		}
	}
	if run < n {
		return 0, 0, fmt.Errorf("%w: no %d chunks in a row", ErrNoSpace, n)
	}
	if err := c.growTo(uint64(chunk) << chunkShift); err != nil {
		return 0, 0, err
	}
	first = chunk - n
	// A chunk that was cut holds metadata, even where no span ever was.
	fresh = c.s.top
	for i := first; i < min(chunk, c.s.chunks); i++ {
		if c.dir(i).kind() != chunkUnused {
			fresh = max(fresh, chunkStart(i)+chunkSize)
		}
	}
	return first, fresh, c.putHuge(first, 0, n)
}

// putHuge makes chunks from..to, counted from the first, part of a huge block.
func (c *central) putHuge(first, from, to uint32) error {
	for i := from; i < to; i++ {
		if c.dir(first+i).kind() == chunkCut {
			if c.s.normal <= 1 {
				return corruptf(normalAt, "header normal: %d", c.s.normal)
			}
			c.s.normal--
		}
		c.putDir(first+i, newDirEntry(chunkHugeRest, 0, 0, i))
	}
	c.putDir(first, newDirEntry(chunkHuge, 0, 0, to))
	c.s.huge += to - from
	c.s.chunks = max(c.s.chunks, first+to)
	c.s.top = max(c.s.top, uint64(first+to)<<chunkShift)
	return nil
}

// giveHuge makes the n last chunks of a huge block, from first on, unused.
func (c *central) giveHuge(first, n uint32) error {
	if c.s.huge < n {
		return corruptf(hugeAt, "header huge: %d, of which %d are given back", c.s.huge, n)
	}
	for i := range n {
		c.putDir(first+i, 0)
	}
	c.s.huge -= n
	return nil
}

// resizeHuge makes a huge block of have chunks one of want chunks in place; false
// if it cannot.
func (c *central) resizeHuge(first, have, want uint32) (bool, error) {
	if uint64(first)+uint64(want) > maxChunks {
		return false, nil
	}
	for i := have; i < want; i++ {
		if !c.mayBeHuge(first + i) {
			return false, nil
		}
	}
	if want > have {
		if c.growTo(uint64(first+want)<<chunkShift) != nil {
			return false, nil // elsewhere it says why
		}
		return true, c.putHuge(first, have, want)
	}
	if err := c.giveHuge(first+want, have-want); err != nil {
		return false, err
	}
	c.putDir(first, newDirEntry(chunkHuge, 0, 0, want))
	return true, nil
}
