package heap_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

// The heap of TestRefused: chunk 0 has these spans, chunks 1 and 2 are huge.
const (
	fortySpan = 330 // class 2
	wideSpan  = 331 // large, three units
	fullOne   = 334 // class 39, all eight blocks in use
	openOne   = 350 // class 39, one block in use, one in the cache, six free
	list39    = 256 + 8*39
	cache39   = 1212416 + 15120
	cache2    = 1212416 + 2144
	topSlot   = cache2 + 16 + 8*62
)

// Each damage is refused by the call that comes across it, by name.
func TestRefused(t *testing.T) {
	// many calls alloc until it fails.
	many := func(size uint64) func(*heap.Heap) error {
		return func(h *heap.Heap) (err error) {
			for i := 0; i < 100 && err == nil; i++ {
				_, err = h.Alloc(size)
			}
			return err
		}
	}
	usable := func(off heap.Offset) func(*heap.Heap) error {
		return func(h *heap.Heap) error { _, err := h.UsableSize(off); return err }
	}
	free := func(offs ...heap.Offset) func(*heap.Heap) error {
		return func(h *heap.Heap) (err error) {
			for _, off := range offs {
				err = errors.Join(err, h.Free(off))
			}
			return err
		}
	}
	block39 := func(no heap.Offset) heap.Offset { return fullOne<<14 + no<<15 }
	const huge = 1 << 26

	for _, tt := range []struct {
		want   string
		damage func(p patient)
		call   func(*heap.Heap) error
	}{
		{"header sum", func(p patient) { p.m[184]++ }, many(1 << 20)},
		{"header size", func(p patient) { p.state(128, func() { p.put64(128, 8<<20+1) }) }, many(1 << 20)},
		{"header top", func(p patient) { p.state(144, func() { p.put64(144, 1<<40) }) }, many(1 << 20)},
		{"header chunks", func(p patient) { p.state(152, func() { p.put32(152, 1<<30) }) }, many(1 << 20)},
		{"header normal", func(p patient) { p.state(156, func() { p.put32(156, 7) }) }, many(1 << 20)},
		{"header first", func(p patient) { p.state(164, func() { p.put32(164, 1<<30) }) }, many(1 << 20)},
		{"header huge", func(p patient) { p.state(160, func() { p.put32(160, 1) }) }, free(huge)},
		{"lists first: unit", func(p patient) { p.put32(list39, -1) }, many(32000)},
		{"lists first: no span", func(p patient) { p.put32(list39, wideSpan) }, many(32000)},
		{"directory kind", func(p patient) { p.put32(list39, 4096+50) }, many(32000)},
		{"lists last", func(p patient) { p.put32(list39+4, wideSpan) }, func(h *heap.Heap) error {
			return free(block39(0), block39(1), block39(2), block39(3), block39(4))(h)
		}},
		{"list of class 39", func(p patient) { p.put32(desc(openOne)+4, fullOne) }, many(32000)},
		{"descriptor next", func(p patient) { p.put32(desc(openOne), wideSpan) }, many(32000)},
		{"descriptor prev", func(p patient) { p.put32(desc(openOne)+4, wideSpan) }, many(32000)},
		{"descriptor bitmap", func(p patient) { p.put64(desc(openOne)+32, 0xff00) }, many(32000)},
		{"descriptor bitmap", func(p patient) { p.put16(desc(openOne)+12, 1) }, many(32000)},
		{"descriptor free", func(p patient) { p.put64(desc(openOne)+32, 1<<7) }, many(32000)},
		{"descriptor free", func(p patient) { p.put16(desc(fullOne)+12, 8) }, func(h *heap.Heap) error {
			return free(block39(0), block39(1), block39(2), block39(3), block39(4))(h)
		}},
		{"descriptor:", func(p patient) { p.put16(desc(openOne)+10, 9) }, many(32000)},
		{"descriptor units", func(p patient) { p.put16(desc(wideSpan)+8, 0) }, usable(wideSpan << 14)},
		{"descriptor units", func(p patient) { p.put16(desc(wideSpan)+8, 4000) }, usable(wideSpan << 14)},
		{"unit map class", func(p patient) { p.m[entry(fortySpan)+2] = 40 }, usable(fortySpan << 14)},
		{"unit map kind", func(p patient) { p.m[entry(fortySpan)+3] = 4 }, usable(fortySpan << 14)},
		{"unit map head", func(p patient) { p.put16(entry(fullOne+6), 300) }, usable(block39(3))},
		{"unit map head", func(p patient) { p.put16(entry(fullOne+6), fullOne+7) }, usable(block39(3))},
		{"unit map head", func(p patient) { p.put16(entry(fullOne+6), 0xffff) }, usable(block39(3))},
		{"unit map:", func(p patient) { p.put32(entry(wideSpan+1), 0) }, free(wideSpan << 14)},
		{"directory kind", func(p patient) { p.m[dir+8] = 4 }, usable(huge)},
		{"directory count", func(p patient) { p.put32(dir+8+4, 60000) }, usable(huge)},
		{"directory count", func(p patient) { p.put32(dir+8+4, 0) }, usable(huge)},
		{"directory:", func(p patient) { p.put32(dir+16+4, 2) }, free(huge)},
		{"directory count", func(p patient) { p.put32(dir+4, 331) }, free(wideSpan << 14)},
		{"directory count or longest", func(p patient) { p.put32(dir+4, 5000); p.put16(dir+2, 5000) }, free(wideSpan << 14)},
		{"cache n", func(p patient) { p.put32(cache2, 200) }, many(40)},
		{"cache n", func(p patient) { p.put32(cache39, -1) }, free(block39(0))},
		{"cache sum", func(p patient) { p.m[cache2+8]++ }, many(40)},
		{"cache sum", func(p patient) { p.put32(cache2, 0) }, many(40)},
		{"cache slots", func(p patient) { p.put64(topSlot, -16) }, many(40)},
		{"cache slots", func(p patient) { p.m[topSlot] += 16 }, many(40)},
		{"cache slots", func(p patient) { p.put64(topSlot, wideSpan<<14) }, many(40)},
		{"cache slots", func(p patient) { p.put64(cache39+16, openOne<<14+7<<15) }, free(block39(0), block39(1), block39(2), block39(3), block39(4))},
	} {
		t.Run(tt.want, func(t *testing.T) {
			r := newRegion(t, 8<<20, 256<<20)
			r.most = 3 << 26
			h := r.create(t, heap.Options{})
			for _, size := range []uint64{40, 40000, 32000, 32000, 32000, 32000, 32000, 32000, 32000, 32000, 32000, 70 << 20} {
				if _, err := h.Alloc(size); err != nil {
					t.Fatal(err)
				}
			}
			sound(t, h)
			tt.damage(patient{r.bytes()})
			err := tt.call(h)
			var damage *heap.CorruptError
			if !errors.As(err, &damage) || !strings.HasPrefix(damage.What, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A chunk that hides its free units does not make the heap grow without end.
func TestHidden(t *testing.T) {
	r := newRegion(t, 8<<20, 256<<20)
	h := r.create(t, heap.Options{})
	r.bytes()[dir+1] = 255
	if _, err := h.Alloc(1 << 20); !errors.Is(err, heap.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if r.size > 16<<20 {
		t.Errorf("the region has %d bytes", r.size)
	}
}

// Units that are freed in an early chunk are found again.
func TestFirst(t *testing.T) {
	h := newRegion(t, 8<<20, 256<<20).create(t, heap.Options{})
	alloc := func(size uint64) heap.Offset {
		t.Helper()
		off, err := h.Alloc(size)
		if err != nil {
			t.Fatal(err)
		}
		return off
	}
	var all []heap.Offset
	for len(all) == 0 || all[len(all)-1] < 1<<26 {
		all = append(all, alloc(3<<14))
	}
	alloc(16) // the last unit of chunk 0
	alloc(3 << 14)
	for _, want := range all[:20] {
		if err := h.Free(want); err != nil {
			t.Fatal(err)
		}
		sound(t, h)
		if got := alloc(3 << 14); got != want {
			t.Fatalf("got %#x, want %#x", got, want)
		}
	}
}

// A huge block is zero although chunks that it lies on hold metadata, where top
// says that nothing was used.
func TestHugeIsZero(t *testing.T) {
	r := newRegion(t, 192<<20, 192<<20)
	h := r.create(t, heap.Options{})
	var all [2]heap.Offset
	for i := range all {
		off, err := h.Alloc(60 << 20)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = off
	}
	if err := errors.Join(h.Free(all[0]), h.Free(all[1])); err != nil {
		t.Fatal(err)
	}
	p := patient{r.bytes()}
	p.state(144, func() { p.put64(144, 330<<14) })
	sound(t, h)
	off, err := h.Alloc(100 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if b := h.Bytes(off, 66<<20); len(bytes.Trim(b, "\x00")) != 0 {
		t.Error("not zero")
	}
	sound(t, h)
}
