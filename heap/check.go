package heap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// maxProblems bounds what a Report lists.
const maxProblems = 1000

// A Report is what Check found.
type Report struct {
	Found    int             // inconsistencies
	Problems []*CorruptError // the first thousand of them
	Stats    Stats           // as far as the heap could be read
}

// Check walks the heap in the first size bytes of r, names every inconsistency,
// and counts what is in use. It changes nothing, and nobody may be inside a call
// of the heap meanwhile, nor hold half an epoch back: what it reads has to be one
// moment's image.
//
// An error tells that it could not check: r failed, or there is no heap
// (ErrNoHeap, ErrVersion). Damage is not an error.
func Check(r io.ReaderAt, size uint64) (*Report, error) {
	c := &checker{r: r, region: size}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("check heap: %w", err)
	}
	return &c.report, nil
}

// Check is the function Check for an open heap. All goroutines and processes that
// use the heap have to be outside of its calls, at a restart point for example.
func (h *Heap) Check() (*Report, error) {
	m := h.view()
	return Check(m, uint64(len(m)))
}

// ReadAt makes a region's bytes an io.ReaderAt.
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// A slot is one of a cache: a free block that is at hand.
type slot struct {
	off   uint64 // of the block
	at    uint64 // where it says so
	class int
	found bool // the block was come across
}

// A checker walks one heap. What it has read is not trusted before it was checked.
type checker struct {
	r      io.ReaderAt
	region uint64 // bytes
	report Report

	fixed fixed
	s     state
	lists [classes][2]unitNo
	dir   []dirEntry
	slots []slot // by offset

	listed  [classes]int // spans that have free blocks
	end     uint64       // of the last span or huge block
	unitMap []byte
	descs   []byte
	span    []byte
}

func (c *checker) check() error {
	ok, err := c.header()
	if !ok || err != nil {
		return err
	}
	c.unitMap = make([]byte, 4*chunkUnits)
	c.descs = make([]byte, descSize*chunkUnits)
	for _, step := range []func() error{c.directory, c.caches, c.chunks, c.walkLists, c.root, c.unused} {
		if err := step(); err != nil {
			return err
		}
	}
	c.report.Stats.finish(&c.s)
	return nil
}

func (c *checker) problem(off uint64, format string, args ...any) {
	c.add(corruptf(off, format, args...))
}

func (c *checker) add(e *CorruptError) {
	c.report.Found++
	if len(c.report.Problems) < maxProblems {
		c.report.Problems = append(c.report.Problems, e)
	}
}

// read fills b with what is at off, which lies in the region.
func (c *checker) read(b []byte, off uint64) error {
	n, err := c.r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read at %#x: %w", off, err)
}

// reserved reports bytes that are not zero. b is what lies at off.
func (c *checker) reserved(where string, b []byte, off uint64) {
	if allZero(b) {
		return
	}
	for i := range b {
		if b[i] != 0 {
			c.problem(off+uint64(i), "%s reserved: not zero", where)
			return
		}
	}
}

// header checks the first page. ok is false if it says too little to go on.
func (c *checker) header() (ok bool, err error) {
	b := make([]byte, headerSize)
	if c.region < headerSize {
		return false, ErrNoHeap
	}
	if err := c.read(b, 0); err != nil {
		return false, err
	}
	if err := c.fixed.decode(b); err != nil {
		damage, ok := err.(*CorruptError)
		if !ok {
			return false, err
		}
		c.add(damage)
		return false, nil
	}
	c.reserved("header", b[lockAt+4:sizeAt], lockAt+4)
	c.reserved("header", b[firstAt+4:sumAt], firstAt+4)
	c.reserved("header", b[sumAt+8:listsAt], sumAt+8)
	c.reserved("header", b[listsEnd:], listsEnd)
	for i := range c.lists {
		at := listAt(i)
		c.lists[i] = [2]unitNo{unitNo(binary.LittleEndian.Uint32(b[at:])), unitNo(binary.LittleEndian.Uint32(b[at+4:]))}
	}
	le := binary.LittleEndian
	c.s = state{
		size: le.Uint64(b[sizeAt:]), root: le.Uint64(b[rootAt:]), top: le.Uint64(b[topAt:]), chunks: le.Uint32(b[chunksAt:]),
		normal: le.Uint32(b[normalAt:]), huge: le.Uint32(b[hugeAt:]), first: le.Uint32(b[firstAt:]),
	}
	if c.s.sum() != le.Uint64(b[sumAt:]) {
		c.problem(sumAt, "header sum: bytes 128-183 have %#x", c.s.sum())
	}
	if err := c.s.valid(); err != nil {
		c.add(err.(*CorruptError))
		return false, nil
	}
	if c.s.size > c.region {
		c.problem(sizeAt, "header size: %d, of a region of %d bytes", c.s.size, c.region)
		return false, nil
	}
	st := &c.report.Stats
	st.Size, st.Base, st.Guards, st.Root, st.Top = c.s.size, c.fixed.base, c.fixed.guards, Offset(c.s.root), c.s.top
	return true, nil
}

// directory checks the entries by themselves.
func (c *checker) directory() error {
	b := make([]byte, 8*maxChunks)
	if err := c.read(b, directoryAt); err != nil {
		return err
	}
	c.reserved("directory", b[8*c.s.chunks:], dirAt(c.s.chunks))
	c.dir = make([]dirEntry, c.s.chunks)
	for i := range c.dir {
		c.dir[i] = dirEntry(binary.LittleEndian.Uint64(b[8*i:]))
	}
	if c.dir[0].kind() != chunkCut {
		c.problem(dirAt(0), "directory kind: is %d of chunk 0, want 1", c.dir[0].kind())
	}
	var normal, huge uint32
	for i := uint32(0); i < c.s.chunks; {
		n := uint32(1)
		switch e := c.dir[i]; e.kind() {
		case chunkUnused:
			c.unusedChunk(i)
		case chunkCut:
			normal++
			c.cutChunk(i)
		case chunkHuge:
			n = c.hugeBlock(i)
			huge += n
		case chunkHugeRest:
			huge++
			c.problem(dirAt(i), "directory kind: 3 of chunk %d, which follows no huge block", i)
		default:
			c.problem(dirAt(i), "directory kind: is %d", e.kind())
		}
		i += n
	}
	if c.s.normal != normal {
		c.problem(normalAt, "header normal: is %d, the directory has %d", c.s.normal, normal)
	}
	if c.s.huge != huge {
		c.problem(hugeAt, "header huge: is %d, the directory has %d", c.s.huge, huge)
	}
	return nil
}

func (c *checker) unusedChunk(i uint32) {
	if c.dir[i] != 0 {
		c.problem(dirAt(i), "directory: %#x of an unused chunk", uint64(c.dir[i]))
	}
	c.report.Stats.UnusedBytes += min(chunkStart(i)+chunkSize, c.s.size) - chunkStart(i)
}

// cutChunk checks the entry of a chunk of kind 1, and makes it kind 0 here if its
// metadata cannot be read.
func (c *checker) cutChunk(i uint32) {
	e := c.dir[i]
	if unitsBelow(c.s.size, i) < metaUnits(i) {
		c.problem(dirAt(i), "directory kind: 1, of a chunk beyond size")
		c.dir[i] = 0
		return
	}
	if i < c.s.first && e.count() < chunkUnits {
		c.problem(firstAt, "header first: is %d, but chunk %d has free units", c.s.first, i)
	}
}

// hugeBlock checks the entries of a huge block and returns how many they are.
func (c *checker) hugeBlock(i uint32) uint32 {
	e := c.dir[i]
	n := e.count()
	if e.low() != 0 || e.longest() != 0 {
		c.problem(dirAt(i)+1, "directory low or longest: not zero, of a huge block")
	}
	if n == 0 || n > c.s.chunks-i || chunkStart(i)+uint64(n)<<chunkShift > c.s.size {
		c.problem(dirAt(i)+4, "directory count: %d, of a huge block at chunk %d", n, i)
		c.dir[i] = 0
		return 1
	}
	for k := uint32(1); k < n; k++ {
		if c.dir[i+k] != newDirEntry(chunkHugeRest, 0, 0, k) {
			c.problem(dirAt(i+k), "directory: chunk %d is not chunk %d of a huge block", i+k, k)
			c.dir[i] = 0
			return k
		}
	}
	return n
}

// caches reads what lies in caches.
func (c *checker) caches() error {
	b := make([]byte, cacheSize)
	for i := range uint64(caches) {
		at := cachesAt + i*cacheSize
		if err := c.read(b, at); err != nil {
			return err
		}
		if allZero(b) {
			continue
		}
		c.reserved("cache", b[:classTable[0].at], at)
		c.reserved("cache", b[cacheEnd:], at+cacheEnd)
		used := false
		for cl := range classes {
			used = c.magazine(b, at, cl) || used
		}
		if used {
			c.report.Stats.Caches++
		}
	}
	slices.SortFunc(c.slots, func(a, b slot) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.at, b.at)) })
	for i := 1; i < len(c.slots); i++ {
		if c.slots[i].off == c.slots[i-1].off {
			c.problem(c.slots[i].at, "cache slots: block %#x is at %#x too", c.slots[i].off, c.slots[i-1].at)
		}
	}
	return nil
}

// magazine reads one of the cache b, which lies at at, and reports whether there
// is anything in it.
func (c *checker) magazine(b []byte, at uint64, cl int) bool {
	k := &classTable[cl]
	at += uint64(k.at)
	b = b[k.at:]
	c.reserved("cache", b[4:8], at+4)
	n := binary.LittleEndian.Uint32(b)
	if n > uint32(k.room) {
		c.problem(at, "cache n: %d of class %d, room for %d", n, cl, k.room)
		return true
	}
	sum := binary.LittleEndian.Uint64(b[8:])
	for i := range n {
		off := binary.LittleEndian.Uint64(b[16+8*i:])
		sum ^= off
		c.slots = append(c.slots, slot{off: off, at: at + 16 + 8*uint64(i), class: cl})
	}
	if sum != 0 {
		c.problem(at+8, "cache sum: slots differ by %#x", sum)
	}
	return n > 0
}

// slotsIn returns the slots of blocks from..to.
func (c *checker) slotsIn(from, to uint64) []slot {
	at := func(off uint64) int {
		i, _ := slices.BinarySearchFunc(c.slots, off, func(s slot, off uint64) int { return cmp.Compare(s.off, off) })
		return i
	}
	return c.slots[at(from):at(to)]
}

// root checks that the root is a block in use.
func (c *checker) root() error {
	off := c.s.root
	if off == 0 {
		return nil
	}
	ok, err := c.inUse(off)
	if err == nil && !ok {
		c.problem(rootAt, "header root: %#x is no block in use", off)
	}
	return err
}

// inUse reports whether a block in use begins at off.
func (c *checker) inUse(off uint64) (bool, error) {
	chunk := uint32(off >> chunkShift)
	if chunk >= c.s.chunks || len(c.slotsIn(off, off+1)) > 0 {
		return false, nil
	}
	switch c.dir[chunk].kind() {
	case chunkHuge:
		return off == chunkStart(chunk), nil
	case chunkCut:
	default:
		return false, nil
	}
	n := unitNo(off >> unitShift)
	e, err := c.entryAt(n)
	if err != nil {
		return false, err
	}
	first := n - unitNo(n.unit()) + unitNo(e.head())
	switch {
	case e.kind() == unitLarge:
		return off == n.offset() && first == n, nil
	case e.kind() != unitSmall || e.class() >= classes || first > n || e.head() >= chunkUnits:
		return false, nil
	}
	d := make([]byte, descSize)
	if err := c.read(d, first.desc()); err != nil {
		return false, err
	}
	no, ok := classTable[e.class()].blockAt(off - first.offset())
	return ok && !bitSet(d, no), nil
}

func (c *checker) entryAt(n unitNo) (unitEntry, error) {
	b := make([]byte, 4)
	err := c.read(b, n.mapEntry())
	return unitEntry(binary.LittleEndian.Uint32(b)), err
}

// bitSet reports whether a descriptor says that block no is free.
func bitSet(desc []byte, no uint32) bool { return desc[descBitmap+no/8]>>(no%8)&1 != 0 }

// walkLists checks that each list has the spans with free blocks of its class.
func (c *checker) walkLists() error {
	b := make([]byte, descBitmap)
	for cl := range classes {
		at := listAt(cl)
		n, prev := c.lists[cl][0], unitNo(0)
		spans := 0
		// It ends: each span names one prev, and the first none.
		for what := "lists first"; n != 0; what = "descriptor next" {
			chunk := n.chunk()
			if chunk >= c.s.chunks || c.dir[chunk].kind() != chunkCut || n.offset() >= c.s.size {
				c.problem(at, "%s: no unit %d, in the list of class %d", what, n, cl)
				break
			}
			e, err := c.entryAt(n)
			if err == nil {
				err = c.read(b, n.desc())
			}
			if err != nil {
				return err
			}
			if e != newUnitEntry(n.unit(), uint8(cl), unitSmall) {
				c.problem(at, "%s: no span of class %d begins at unit %d", what, cl, n)
				break
			}
			if got := unitNo(binary.LittleEndian.Uint32(b[descPrev:])); got != prev {
				c.problem(n.desc()+descPrev, "descriptor prev: unit %d, want %d", got, prev)
				break
			}
			if binary.LittleEndian.Uint16(b[descFree:]) == 0 {
				c.problem(n.desc()+descFree, "descriptor free: 0, but unit %d is in the list of class %d", n, cl)
			} else {
				spans++
			}
			at = n.desc() + descNext
			prev, n = n, unitNo(binary.LittleEndian.Uint32(b[descNext:]))
		}
		if c.lists[cl][1] != prev {
			c.problem(listAt(cl)+4, "lists last: unit %d of class %d, want %d", c.lists[cl][1], cl, prev)
		}
		if spans != c.listed[cl] {
			c.problem(listAt(cl), "lists: %d spans of class %d, of %d with free blocks", spans, cl, c.listed[cl])
		}
	}
	return nil
}

// unused checks that nothing lies from top on but unit maps and descriptors.
func (c *checker) unused() error {
	if c.end > c.s.top {
		c.problem(topAt, "header top: %#x, but a span ends at %#x", c.s.top, c.end)
		return nil
	}
	for i := uint32(c.s.top >> chunkShift); chunkStart(i) < c.s.size; i++ {
		from, to := max(c.s.top, chunkStart(i)), min(chunkStart(i)+chunkSize, c.s.size)
		if i < c.s.chunks && c.dir[i].kind() == chunkCut {
			if err := c.zero(from, min(to, chunkStart(i)+unitMapAt)); err != nil {
				return err
			}
			from = max(from, chunkStart(i)+descAt+descSize*chunkUnits)
		}
		if err := c.zero(from, to); err != nil {
			return err
		}
	}
	return nil
}

// zero reports the first byte from..to that is not zero.
func (c *checker) zero(from, to uint64) error {
	buf := make([]byte, 1<<20)
	for ; from < to; from += uint64(len(buf)) {
		buf = buf[:min(uint64(len(buf)), to-from)]
		if err := c.read(buf, from); err != nil {
			return err
		}
		if !allZero(buf) {
			i := slices.IndexFunc(buf, func(b byte) bool { return b != 0 })
			c.problem(from+uint64(i), "header top: %#x, but a byte behind it is not zero", c.s.top)
			return nil
		}
	}
	return nil
}
