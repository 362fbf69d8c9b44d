package verbs

import (
	"math/rand/v2"
	"testing"
)

// What was added last is found; the rest is where it was. Compared with an array.
func TestExtents(t *testing.T) {
	const size = 64
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var x extents
		var want [size]uint64 // the address of each byte, 0: none
		for i := range 40 {
			start := rng.IntN(size)
			end := start + 1 + rng.IntN(size-start)
			e := extent{int64(start), int64(end), uint64(1000*(i+1) + start), uint32(i)}
			x.add(e)
			for b := start; b < end; b++ {
				want[b] = uint64(1000*(i+1) + b)
			}
			for b := range size {
				got := uint64(0)
				if e, ok := x.find(int64(b)); ok {
					got = e.at(int64(b))
				}
				if got != want[b] {
					t.Fatalf("seed %d, round %d: byte %d at %d, want %d", seed, i, b, got, want[b])
				}
			}
			for j := 1; j < len(x); j++ {
				if x[j-1].end > x[j].start || x[j].start >= x[j].end {
					t.Fatalf("seed %d, round %d: extents overlap: %v", seed, i, x)
				}
			}
			p := place{int64(rng.IntN(size)), 1}
			p.n += rng.Int64N(size - p.off)
			first, missing := int64(0), false
			for b := p.off; b < p.end() && !missing; b++ {
				first, missing = b, want[b] == 0
			}
			if off, ok := x.missing(p); ok != missing || ok && off != first {
				t.Fatalf("seed %d: missing of %v = %d, %v; want %d, %v", seed, p, off, ok, first, missing)
			}
		}
	}
}

// No block is given twice, and all can be had again.
func TestBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	type run struct{ first, n int }
	var b blocks
	var held []run
	owner := map[int]bool{}
	for range 5000 {
		if n := len(held); n > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(n)
			b.free(held[i].first, held[i].n)
			for k := range blocksOf(held[i].n) {
				delete(owner, held[i].first+k)
			}
			held = append(held[:i], held[i+1:]...)
			continue
		}
		n := 1 + rng.IntN(maxRead)
		first, ok := b.take(n)
		if !ok {
			continue
		}
		held = append(held, run{first, n})
		for k := range blocksOf(n) {
			if owner[first+k] || (first+k+1)*readBlock > readSize {
				t.Fatalf("block %d given twice, or none", first+k)
			}
			owner[first+k] = true
		}
	}
	for _, h := range held {
		b.free(h.first, h.n)
	}
	if b != 0 {
		t.Errorf("blocks %x are lost", uint64(b))
	}
}

// Dirty ranges are sorted, whole, and merged where asked.
func TestDirty(t *testing.T) {
	r := ring{mem: make([]byte, 1<<20)}
	for _, p := range []place{{900, 10}, {0, 10}, {5, 20}, {30, 5}, {910, 1}} {
		copy(r.reserve(int(p.n)), make([]byte, p.n))
		r.push(p)
		r.posted = r.queued
	}
	got := r.dirty(nil, func(a, b place) bool { return b.off-a.end() <= 5 })
	if len(got) != 2 || got[0] != (place{0, 35}) || got[1] != (place{900, 11}) {
		t.Errorf("dirty = %v", got)
	}
}
