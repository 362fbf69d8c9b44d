package heap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

// A model is what a heap should hold: its blocks, each filled with its key.
type model struct {
	h      *heap.Heap
	caches []*heap.Cache
	rng    *rand.Rand
	guards bool
	blocks []modelBlock
}

type modelBlock struct {
	off    heap.Offset
	size   uint64 // asked for
	usable uint64
	key    uint64
}

// size draws the size of a block: mostly small, some large, few huge.
func (m *model) size() uint64 {
	switch n := m.rng.IntN(1000); {
	case n < 700:
		return m.rng.Uint64N(512)
	case n < 950:
		return m.rng.Uint64N(40000)
	case n < 998:
		return m.rng.Uint64N(1 << 20)
	default:
		return m.rng.Uint64N(150 << 20)
	}
}

func (m *model) align() uint64 {
	if m.rng.IntN(20) > 0 {
		return 16
	}
	return 1 << m.rng.IntN(22)
}

// fill stores a block's key at its ends; verify looks for it.
func (m *model) fill(b modelBlock) {
	for _, at := range ends(b.size) {
		binary.LittleEndian.PutUint64(m.h.Bytes(b.off, b.usable)[at:], b.key+at)
	}
}

func (m *model) verify(t *testing.T, b modelBlock) {
	t.Helper()
	for _, at := range ends(b.size) {
		if got := binary.LittleEndian.Uint64(m.h.Bytes(b.off, b.usable)[at:]); got != b.key+at {
			t.Fatalf("block %#x of %d bytes: byte %d: got %#x, want %#x (-seed %d)", b.off, b.size, at, got, b.key+at, *seed)
		}
	}
}

// ends are places in a block: its first word, one amid, and its last.
func ends(size uint64) []uint64 {
	switch {
	case size < 8:
		return nil
	case size < 32:
		return []uint64{0}
	}
	return []uint64{0, size / 2 &^ 7, size - 8}
}

func (m *model) cache() *heap.Cache { return m.caches[m.rng.IntN(len(m.caches))] }

func (m *model) alloc(t *testing.T) {
	t.Helper()
	b := modelBlock{size: m.size(), key: m.rng.Uint64()}
	align := m.align()
	var err error
	if b.off, err = m.cache().AllocAligned(b.size, align); err != nil {
		if m.full(err, b.size) {
			return
		}
		t.Fatalf("%v (-seed %d)", err, *seed)
	}
	if uint64(b.off)%align != 0 {
		t.Fatalf("block %#x: not aligned to %d", b.off, align)
	}
	if got := m.h.Bytes(b.off, b.size); b.size < 1<<21 && len(bytes.Trim(got, "\x00")) != 0 {
		t.Fatalf("block %#x of %d bytes is not zero (-seed %d)", b.off, b.size, *seed)
	}
	m.usable(t, &b)
	m.fill(b)
	m.blocks = append(m.blocks, b)
}

// modelLimit is how large the region of a model becomes.
const modelLimit = 2 << 30

// full reports whether an allocation may fail so: in a heap with room for hundreds of
// MiB, that of a large block; of any block, where blocks take up more than half.
func (m *model) full(err error, size uint64) bool {
	var live uint64
	for _, b := range m.blocks {
		live += b.usable
	}
	return errors.Is(err, heap.ErrNoSpace) && (size > 1<<20 || live > modelLimit/2)
}

func (m *model) usable(t *testing.T, b *modelBlock) {
	t.Helper()
	var err error
	if b.usable, err = m.h.UsableSize(b.off); err != nil || b.usable < b.size {
		t.Fatalf("usable size of %#x: %d, %v; want %d (-seed %d)", b.off, b.usable, err, b.size, *seed)
	}
}

func (m *model) realloc(t *testing.T, i int) {
	t.Helper()
	b := &m.blocks[i]
	size := m.size()
	if m.rng.IntN(2) == 0 {
		size = b.size + m.rng.Uint64N(b.size+1)
	}
	off, err := m.cache().Realloc(b.off, size)
	if err != nil {
		if m.full(err, size) {
			return
		}
		t.Fatalf("%v (-seed %d)", err, *seed)
	}
	if kept := min(size, b.size); kept >= 8 {
		if got := binary.LittleEndian.Uint64(m.h.Bytes(off, size)); got != b.key {
			t.Fatalf("block %#x: not what was in %#x (-seed %d)", off, b.off, *seed)
		}
	}
	b.off, b.size = off, size
	m.usable(t, b)
	m.fill(*b)
}

func (m *model) free(t *testing.T, i int) {
	t.Helper()
	b := m.blocks[i]
	m.verify(t, b)
	if err := m.cache().Free(b.off); err != nil {
		t.Fatalf("%v (-seed %d)", err, *seed)
	}
	last := len(m.blocks) - 1
	m.blocks[i] = m.blocks[last]
	m.blocks = m.blocks[:last]
}

// step does one operation. Blocks become more or fewer for a while each.
func (m *model) step(t *testing.T, no int) {
	t.Helper()
	wax := no/20000%2 == 0
	switch n := m.rng.IntN(10); {
	case len(m.blocks) == 0 || n < 5 && wax || n < 3:
		m.alloc(t)
	case n < 8:
		m.free(t, m.rng.IntN(len(m.blocks)))
	default:
		m.realloc(t, m.rng.IntN(len(m.blocks)))
	}
}

// check compares the heap with the model.
func (m *model) check(t *testing.T) {
	t.Helper()
	s := sound(t, m.h)
	if s.LiveBlocks != uint64(len(m.blocks)) {
		t.Fatalf("%d blocks in use, want %d (-seed %d)", s.LiveBlocks, len(m.blocks), *seed)
	}
	for _, b := range m.blocks {
		m.verify(t, b)
	}
}

// Random operations give what a map gives, and the heap is sound at any moment.
// What was there at some moment is there again in a copy of the bytes: rolling
// back needs nothing else.
func TestModel(t *testing.T) {
	for name, guards := range kinds {
		t.Run(name, func(t *testing.T) {
			steps, every := 500_000, 10_000
			if testing.Short() {
				steps, every = 40_000, 4_000
			}
			r := newRegion(t, 8<<20, modelLimit)
			m := &model{h: r.create(t, heap.Options{Guards: guards}), rng: newRand(), guards: guards}
			for range 3 {
				c, err := m.h.Cache()
				if err != nil {
					t.Fatal(err)
				}
				m.caches = append(m.caches, c)
			}
			for i := 1; i <= steps; i++ {
				m.step(t, i)
				if i%every == 0 {
					m.check(t)
				}
				if i%(steps/4) == 0 {
					m.openCopy(t, r)
				}
			}
			for len(m.blocks) > 0 {
				m.free(t, len(m.blocks)-1)
			}
			if s := sound(t, m.h); s.LiveBlocks != 0 || s.LiveBytes != 0 {
				t.Errorf("%d blocks in use after all were freed", s.LiveBlocks)
			}
			if err := m.h.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// openCopy copies the region, goes on with the copy for a while, and finds that
// the copy began as the heap is.
func (m *model) openCopy(t *testing.T, r *region) {
	t.Helper()
	to := newRegion(t, r.size, uint64(len(r.reserve)))
	copyNonzero(to.bytes(), r.bytes())
	h, err := heap.Open(to.bytes(), heap.Options{Grow: to.grow})
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Cache()
	if err != nil {
		t.Fatal(err)
	}
	twin := &model{h: h, caches: []*heap.Cache{c}, rng: rand.New(rand.NewPCG(*seed, 1)), blocks: append([]modelBlock(nil), m.blocks...)}
	twin.check(t)
	for i := range 2000 {
		twin.step(t, i)
	}
	twin.check(t)
	m.check(t)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// A rollback takes the growth of the region back too, under an open heap.
func TestRollbackOfGrowth(t *testing.T) {
	r := newRegion(t, 8<<20, 256<<20)
	h := r.create(t, heap.Options{})
	kept, err := h.Alloc(100)
	if err != nil {
		t.Fatal(err)
	}
	before := newRegion(t, r.size, r.size)
	copyNonzero(before.bytes(), r.bytes())

	gone, err := h.Alloc(50 << 20)
	if err != nil {
		t.Fatal(err)
	}
	clear(r.bytes())
	r.size = before.size
	copyNonzero(r.bytes(), before.bytes())

	if s := sound(t, h); s.LiveBlocks != 1 {
		t.Errorf("%d blocks in use after the rollback, want 1", s.LiveBlocks)
	}
	if b := h.Bytes(gone+40<<20, 1); b != nil {
		t.Error("bytes that were taken back are handed out")
	}
	if again, err := h.Alloc(50 << 20); err != nil || again != gone || r.size < 50<<20 {
		t.Errorf("again: got %#x, %v, in a region of %d bytes; want %#x", again, err, r.size, gone)
	}
	if err := h.Free(kept); err != nil {
		t.Error(err)
	}
	sound(t, h)
}

// copyNonzero copies a region without touching what is zero.
func copyNonzero(to, from []byte) {
	zero := make([]byte, 1<<16)
	for at := 0; at < len(from); at += len(zero) {
		b := from[at:min(at+len(zero), len(from))]
		if !bytes.Equal(b, zero[:len(b)]) {
			copy(to[at:], b)
		}
	}
}
