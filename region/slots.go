package region

import (
	"math/bits"
	"slices"
)

// slotMap knows which of a region's granted slots are in use. It is never stored:
// what table, log, superblocks and checkpoints do not reach is free, and a sweep
// finds that out. Until the first sweep all slots granted before the region was
// opened count as used.
//
// Per slot there are three bits. used: not free. pending: allocated, but no
// committed epoch refers to it yet. candidate: used when the running sweep
// began, and not yet found reachable.
//
// The Image's mu guards it.
type slotMap struct {
	extents []*extent // by start
	free    uint64
	granted uint64
	cursor  int    // extent where the last allocation ended
	warm    []Slot // lately released, the last one first; some are in use again
}

// maxWarm bounds slotMap.warm: the slots of an epoch of 256 MiB.
const maxWarm = 1 << 16

type extent struct {
	Run
	free                     uint64
	used, pending, candidate []uint64
	cursor                   uint64 // where to look next in this extent
}

func newExtent(r Run) *extent {
	words := (r.N + 63) / 64
	return &extent{Run: r, used: make([]uint64, words), pending: make([]uint64, words), candidate: make([]uint64, words)}
}

// add takes granted slots in, all free or all used, but for those it has.
func (m *slotMap) add(r Run, free bool) {
	for r.N > 0 {
		i, found := slices.BinarySearchFunc(m.extents, r.Start, func(x *extent, s Slot) int { return cmpSlot(x.Start, s) })
		if !found && i > 0 && r.Start < m.extents[i-1].End() {
			i, found = i-1, true
		}
		end := r.End()
		switch {
		case found:
			end = min(end, m.extents[i].End())
		case i < len(m.extents):
			end = min(end, m.extents[i].Start)
		}
		if !found {
			m.insert(i, Run{r.Start, uint64(end - r.Start)}, free)
		}
		r = Run{end, uint64(r.End() - end)}
	}
}

// insert makes r extent number i.
func (m *slotMap) insert(i int, r Run, free bool) {
	x := newExtent(r)
	m.granted += r.N
	if free {
		x.free = r.N
		m.free += r.N
		m.cursor = i
	} else {
		fill(x.used, r.N)
	}
	m.extents = slices.Insert(m.extents, i, x)
}

func cmpSlot(a, b Slot) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

func fill(words []uint64, n uint64) {
	for i := range words {
		words[i] = ^uint64(0)
	}
	if r := n % 64; r != 0 {
		words[len(words)-1] = 1<<r - 1
	}
}

// find returns the extent of s and s's bit in it, or nil if s is not the region's
// own: a clone reaches slots of its source.
func (m *slotMap) find(s Slot) (*extent, uint64) {
	i, ok := slices.BinarySearchFunc(m.extents, s, func(x *extent, s Slot) int { return cmpSlot(x.Start, s) })
	if !ok {
		i--
	}
	if i < 0 || s >= m.extents[i].End() {
		return nil, 0
	}
	return m.extents[i], uint64(s - m.extents[i].Start)
}

// alloc takes at most n adjacent free slots and marks them pending. A single one
// is one lately released, whose memory is warm. Otherwise it goes round the
// extents from where the last call ended, so that the pages of an epoch come to
// lie next to each other. The caller has checked that free > 0.
func (m *slotMap) alloc(n uint64) Run {
	for n == 1 && len(m.warm) > 0 {
		s := m.warm[len(m.warm)-1]
		m.warm = m.warm[:len(m.warm)-1]
		if x, b := m.find(s); x != nil && x.used[b/64]>>(b%64)&1 == 0 {
			x.set(b, 1)
			m.free--
			return Run{s, 1}
		}
	}
	for range 2 * len(m.extents) { // twice: the first round may end past the gaps
		if m.cursor >= len(m.extents) {
			m.cursor = 0
		}
		x := m.extents[m.cursor]
		if x.free > 0 {
			if r := x.take(n); r.N > 0 {
				m.free -= r.N
				return r
			}
			x.cursor = 0 // the rest of this extent was full; its start is not
		}
		m.cursor++
	}
	return Run{}
}

// allocRun takes exactly n adjacent slots, or none.
func (m *slotMap) allocRun(n uint64) (Run, bool) {
	for _, x := range m.extents {
		if x.free < n {
			continue
		}
		for at := uint64(0); ; {
			start, length := x.gap(at, n)
			if length == 0 {
				break
			}
			if length == n {
				x.set(start, n)
				m.free -= n
				return Run{x.Start + Slot(start), n}, true
			}
			at = start + length
		}
	}
	return Run{}, false
}

// gap finds the first free slots at or after bit at: at most n of them.
func (x *extent) gap(at, n uint64) (start, length uint64) {
	for at < x.N {
		w := ^x.used[at/64] >> (at % 64)
		if w == 0 {
			at = (at/64 + 1) * 64
			continue
		}
		at += uint64(bits.TrailingZeros64(w))
		if at >= x.N {
			return 0, 0
		}
		for length < n && at+length < x.N && x.used[(at+length)/64]>>((at+length)%64)&1 == 0 {
			length++
		}
		return at, length
	}
	return 0, 0
}

func (x *extent) set(start, n uint64) {
	for b := start; b < start+n; b++ {
		x.used[b/64] |= 1 << (b % 64)
		x.pending[b/64] |= 1 << (b % 64)
	}
	x.free -= n
}

func (x *extent) take(n uint64) Run {
	start, length := x.gap(x.cursor, n)
	if length == 0 {
		return Run{}
	}
	x.set(start, length)
	x.cursor = start + length
	return Run{x.Start + Slot(start), length}
}

// release frees a slot. A slot of another region is left alone.
func (m *slotMap) release(s Slot) {
	x, b := m.find(s)
	if x == nil {
		return
	}
	bit := uint64(1) << (b % 64)
	x.pending[b/64] &^= bit
	x.candidate[b/64] &^= bit
	if x.used[b/64]&bit != 0 {
		x.used[b/64] &^= bit
		x.free++
		m.free++
		if len(m.warm) < maxWarm {
			m.warm = append(m.warm, s)
		}
	}
}

// commit says that a committed epoch refers to s.
func (m *slotMap) commit(s Slot) {
	x, b := m.find(s)
	if x == nil {
		return
	}
	bit := uint64(1) << (b % 64)
	x.pending[b/64] &^= bit
	if x.used[b/64]&bit == 0 { // recovery: an epoch used a slot that an earlier one freed
		x.used[b/64] |= bit
		x.free--
		m.free--
	}
}

// pin keeps a slot from being used, also if it is free, until unpin.
func (m *slotMap) pin(s Slot) {
	m.commit(s)
	if x, b := m.find(s); x != nil {
		x.pending[b/64] |= 1 << (b % 64)
	}
}

// unpin lets the next sweep decide about a slot again.
func (m *slotMap) unpin(s Slot) {
	if x, b := m.find(s); x != nil {
		x.pending[b/64] &^= 1 << (b % 64)
	}
}

// beginSweep makes every used slot a candidate that is not pending.
func (m *slotMap) beginSweep() {
	for _, x := range m.extents {
		for i := range x.used {
			x.candidate[i] = x.used[i] &^ x.pending[i]
		}
	}
}

// mark says that s is reachable.
func (m *slotMap) mark(s Slot) {
	if x, b := m.find(s); x != nil {
		x.candidate[b/64] &^= 1 << (b % 64)
	}
}

// endSweep frees the candidates that were never marked and returns how many.
func (m *slotMap) endSweep() (freed uint64) {
	for _, x := range m.extents {
		for i, c := range x.candidate {
			n := uint64(bits.OnesCount64(c))
			x.used[i] &^= c
			x.candidate[i] = 0
			x.free += n
			freed += n
		}
	}
	m.free += freed
	return freed
}

// takeIdle removes extents of which no slot is used, as long as more than keep
// slots stay free, and returns them.
func (m *slotMap) takeIdle(keep uint64) []Run {
	var idle []Run
	m.extents = slices.DeleteFunc(m.extents, func(x *extent) bool {
		if x.free != x.N || m.free-x.N < keep {
			return false
		}
		m.free -= x.N
		m.granted -= x.N
		idle = append(idle, x.Run)
		return true
	})
	m.cursor = 0
	return idle
}
