package heap_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/heap"
)

// A victim is a heap that can be damaged again and again.
type victim struct {
	r      *region
	places []uint64 // words that are not zero
	pages  map[uint64][]byte
	blocks []heap.Offset // in use
}

func newVictim(t testing.TB, guards bool) *victim {
	t.Helper()
	v := &victim{r: newRegion(t, 0, 512<<20), pages: map[uint64][]byte{}}
	h := v.r.create(t, heap.Options{Guards: guards})
	for _, off := range do(t, h, damageCalls(t)) {
		v.blocks = append(v.blocks, off)
	}
	slices.Sort(v.blocks)
	v.r.most = v.r.size
	for at := uint64(0); at < v.r.size; at += 8 {
		if binary.LittleEndian.Uint64(v.r.bytes()[at:]) != 0 {
			v.places = append(v.places, at)
			page := at &^ 4095
			v.pages[page] = append([]byte(nil), v.r.bytes()[page:page+4096]...)
		}
	}
	return v
}

// reset makes the heap what it was.
func (v *victim) reset(t testing.TB) {
	t.Helper()
	if err := unix.Madvise(v.r.bytes(), unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	for at, page := range v.pages {
		copy(v.r.bytes()[at:], page)
	}
}

// A flip changes bits of a byte near a word that is not zero.
type flip struct {
	place uint16 // word
	near  uint8  // byte, from the word's start on
	xor   uint8
}

const flipSize = 4

func decodeFlips(b []byte) (flips []flip) {
	for ; len(b) >= flipSize && len(flips) < 8; b = b[flipSize:] {
		flips = append(flips, flip{binary.LittleEndian.Uint16(b), b[2], b[3]})
	}
	return flips
}

func (v *victim) damage(flips []flip) {
	for _, f := range flips {
		at := v.places[int(f.place)%len(v.places)] + uint64(f.near)
		if at < v.r.size {
			v.r.bytes()[at] ^= f.xor
		}
	}
}

// use does what programs do, and returns what the heap had to say of its state.
func (v *victim) use(h *heap.Heap, rng *rand.Rand) error {
	blocks := append([]heap.Offset(nil), v.blocks...)
	var damage error
	keep := func(err error) {
		if damage == nil && errors.Is(err, heap.ErrCorrupt) {
			damage = err
		}
	}
	for range 200 {
		i := 0
		if len(blocks) > 0 {
			i = rng.IntN(len(blocks))
		}
		switch n := rng.IntN(8); {
		case n < 4 || len(blocks) == 0:
			size := rng.Uint64N(600)
			if n == 0 {
				size = rng.Uint64N(100000)
			}
			off, err := h.Alloc(size)
			keep(err)
			if err == nil {
				blocks = append(blocks, off)
			}
		case n < 6:
			keep(h.Free(blocks[i]))
			blocks[i] = blocks[len(blocks)-1]
			blocks = blocks[:len(blocks)-1]
		case n == 6:
			off, err := h.Realloc(blocks[i], rng.Uint64N(100000))
			keep(err)
			if err == nil {
				blocks[i] = off
			}
		default:
			keep(h.SetRoot(blocks[i]))
			keep(h.SetRoot(0))
			_, err := h.UsableSize(heap.Offset(rng.Uint64()))
			keep(err)
		}
	}
	return damage
}

// survive damages a heap and uses it. It must not panic, and damage that Check
// does not report must not matter.
func (v *victim) survive(t testing.TB, flips []flip) {
	t.Helper()
	v.reset(t)
	v.damage(flips)
	before, err := heap.Check(byteReader(v.r.bytes()), v.r.size)
	reported := err != nil || before.Found > 0
	rng := rand.New(rand.NewPCG(1, 2))
	h, err := heap.Open(v.r.bytes(), heap.Options{Grow: v.r.grow})
	if err != nil {
		if !reported {
			t.Fatalf("flips %+v: check found nothing, but: %v", flips, err)
		}
		return
	}
	damage := v.use(h, rng)
	after, err := h.Check()
	switch {
	case reported:
	case damage != nil:
		t.Fatalf("flips %+v: check found nothing, but: %v", flips, damage)
	case err != nil:
		t.Fatalf("flips %+v: check found nothing, and after use: %v", flips, err)
	case after.Found > 0:
		t.Fatalf("flips %+v: check found nothing, and after use: %v", flips, after.Problems[0])
	}
}

// byteReader is an io.ReaderAt.
type byteReader []byte

func (b byteReader) ReadAt(p []byte, off int64) (int, error) { return copy(p, b[off:]), nil }

// Random damage is reported or harmless, and never makes the heap panic.
func TestDamage(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 50
	}
	for name, guards := range kinds {
		t.Run(name, func(t *testing.T) {
			rng := newRand()
			v := newVictim(t, guards)
			for range rounds {
				flips := make([]flip, 1+rng.IntN(3))
				for i := range flips {
					flips[i] = flip{uint16(rng.Uint32()), uint8(rng.UintN(32)), 1 << rng.UintN(8)}
					if rng.IntN(2) == 0 {
						flips[i].xor = uint8(rng.Uint32())
					}
				}
				v.survive(t, flips)
			}
		})
	}
}

func FuzzDamage(f *testing.F) {
	victims := []*victim{newVictim(f, false), newVictim(f, true)}
	f.Add([]byte{0, 0, 0, 0, 1}, false)
	f.Add([]byte{20, 0, 3, 255, 21, 0, 1, 128}, true)
	f.Fuzz(func(t *testing.T, b []byte, guards bool) {
		v := victims[0]
		if guards {
			v = victims[1]
		}
		v.survive(t, decodeFlips(b))
	})
}
