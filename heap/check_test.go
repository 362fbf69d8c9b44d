package heap_test

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

// A patient is a heap whose words a test changes.
type patient struct{ m []byte }

func (p patient) u32(at uint64) uint32     { return binary.LittleEndian.Uint32(p.m[at:]) }
func (p patient) u64(at uint64) uint64     { return binary.LittleEndian.Uint64(p.m[at:]) }
func (p patient) put16(at uint64, v int)   { binary.LittleEndian.PutUint16(p.m[at:], uint16(v)) }
func (p patient) put32(at uint64, v int)   { binary.LittleEndian.PutUint32(p.m[at:], uint32(v)) }
func (p patient) put64(at uint64, v int64) { binary.LittleEndian.PutUint64(p.m[at:], uint64(v)) }

// state changes a word of the header's state, whose sum stays right.
func (p patient) state(at uint64, change func()) {
	old := p.u64(at &^ 7)
	change()
	p.put64(184, int64(p.u64(184)^old^p.u64(at&^7)))
}

// Places in the heap of TestCheckNames: docs/format.md.
const (
	dir       = 688128
	unitMap   = 4096
	descs     = 20480
	firstSpan = 330 // a span of class 3, with free blocks
	largeSpan = 331 // three units
	fullSpan  = 334 // a span of class 39 without free blocks
	cache0    = 1212416 + 3184
)

// desc is the offset of the descriptor of the span at a unit of chunk 0.
func desc(unit uint64) uint64  { return descs + 160*unit }
func entry(unit uint64) uint64 { return unitMap + 4*unit }

// Check names each damage by the field that docs/format.md gives it.
func TestCheckNames(t *testing.T) {
	for _, tt := range []struct {
		want   string
		damage func(p patient)
	}{
		{"header magic", func(p patient) { p.m[0]++ }},
		{"header checksum", func(p patient) { p.m[16]++ }},
		{"header reserved", func(p patient) { p.m[70]++ }},
		{"header reserved", func(p patient) { p.m[170]++ }},
		{"header reserved", func(p patient) { p.m[200]++ }},
		{"header reserved", func(p patient) { p.m[4000]++ }},
		{"header sum", func(p patient) { p.put32(164, 0); p.m[184]++ }},
		{"header size", func(p patient) { p.state(128, func() { p.put64(128, 8<<20+1) }) }},
		{"header size", func(p patient) { p.state(128, func() { p.put64(128, 1<<40) }) }},
		{"header root", func(p patient) { p.state(136, func() { p.put64(136, 0x600000) }) }},
		{"header root", func(p patient) { p.state(136, func() { p.put64(136, firstSpan<<14+3*64) }) }}, // free
		{"header root", func(p patient) { p.state(136, func() { p.put64(136, int64(p.u64(cache0+16))) }) }},
		{"header top", func(p patient) { p.state(144, func() { p.put64(144, 331<<14) }) }},
		{"header top", func(p patient) { p.m[8<<20-5]++ }},
		{"header chunks", func(p patient) { p.state(152, func() { p.put32(152, 2) }) }},
		{"header normal", func(p patient) { p.state(156, func() { p.put32(156, 0) }) }},
		{"header huge", func(p patient) { p.state(160, func() { p.put32(160, 1) }) }},
		{"header first", func(p patient) { p.state(164, func() { p.put32(164, 1) }) }},
		{"lists first", func(p patient) { p.put32(256+8*3, 1) }},
		{"lists last", func(p patient) { p.put32(256+8*3+4, 7) }},
		{"lists:", func(p patient) { p.put64(256+8*3, 0) }},
		{"descriptor free", func(p patient) { p.put16(desc(firstSpan)+12, 0); clear(p.m[desc(firstSpan)+32 : desc(firstSpan)+64]) }},
		{"directory kind", func(p patient) { p.m[dir] = 2 }},
		{"directory kind", func(p patient) { p.m[dir] = 9 }},
		{"directory low", func(p patient) { p.m[dir+1] = 255 }},
		{"directory longest", func(p patient) { p.put16(dir+2, 3) }},
		{"directory count", func(p patient) { p.m[dir+4]++ }},
		{"directory reserved", func(p patient) { p.m[dir+8]++ }},
		{"unit map", func(p patient) { p.put32(entry(5), 0) }},
		{"unit map kind", func(p patient) { p.m[entry(firstSpan)+3] = 7 }},
		{"unit map class", func(p patient) { p.m[entry(firstSpan)+2] = 40 }},
		{"unit map head", func(p patient) { p.put16(entry(firstSpan), 329) }},
		{"unit map", func(p patient) { p.put32(entry(fullSpan+3), 0) }},
		{"unit map beyond size", func(p patient) { p.put32(entry(600), 1<<24) }},
		{"descriptor units", func(p patient) { p.put16(desc(largeSpan)+8, 2) }},
		{"descriptor blocks", func(p patient) { p.put16(desc(firstSpan)+10, 3) }},
		{"descriptor free", func(p patient) { p.m[desc(firstSpan)+12]++ }},
		{"descriptor free", func(p patient) { p.m[desc(largeSpan)+12]++ }},
		{"descriptor free", func(p patient) { p.m[desc(firstSpan)+32+3] ^= 1 }},
		{"descriptor class", func(p patient) { p.m[desc(firstSpan)+14]++ }},
		{"descriptor kind", func(p patient) { p.m[desc(firstSpan)+15]++ }},
		{"descriptor reserved", func(p patient) { p.m[desc(firstSpan)+20]++ }},
		{"descriptor bitmap", func(p patient) { p.m[desc(firstSpan)+32+127] = 1 }},
		{"descriptor prev", func(p patient) { p.put32(desc(firstSpan)+4, 400) }},
		{"descriptor next", func(p patient) { p.put32(desc(firstSpan), 400) }},
		{"descriptor next or prev", func(p patient) { p.put32(desc(largeSpan), 400) }},
		{"descriptor next or prev", func(p patient) { p.put32(desc(fullSpan)+4, 400) }},
		{"cache n", func(p patient) { p.put32(cache0, 200) }},
		{"cache sum", func(p patient) { p.m[cache0+8]++ }},
		{"cache sum", func(p patient) { p.m[cache0]-- }},
		{"cache reserved", func(p patient) { p.m[cache0+4]++ }},
		{"cache reserved", func(p patient) { p.m[1212416]++ }},
		{"cache reserved", func(p patient) { p.m[1212416+16000]++ }},
		{"cache slots", func(p patient) { p.put64(cache0+16, int64(p.u64(cache0+24))) }},
		{"cache slots", func(p patient) { p.m[cache0+16] += 8 }},
		{"cache slots", func(p patient) { p.put64(cache0+16, firstSpan<<14+255*64) }}, // free in its span
		{"guard word", func(p patient) { p.m[(largeSpan+3)<<14-1]++ }},
		{"guard bytes", func(p patient) { p.m[(largeSpan+3)<<14-10]++ }},
		{"guard:", func(p patient) { p.m[largeSpan<<14+40000]++ }},
	} {
		t.Run(tt.want, func(t *testing.T) {
			r := newRegion(t, 8<<20, 64<<20)
			h := r.create(t, heap.Options{Guards: true})
			root, err := h.Alloc(40)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Alloc(40000); err != nil {
				t.Fatal(err)
			}
			for range 8 {
				if _, err := h.Alloc(32000); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.SetRoot(root); err != nil {
				t.Fatal(err)
			}
			sound(t, h)
			tt.damage(patient{r.bytes()})
			finds(t, h, tt.want)
		})
	}
}

// finds fails the test unless a problem begins with want.
func finds(t *testing.T, h *heap.Heap, want string) {
	t.Helper()
	got, err := h.Check()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range got.Problems {
		if strings.HasPrefix(p.What, want) {
			return
		}
	}
	t.Errorf("got %v, want %q", got.Problems[:min(len(got.Problems), 5)], want)
}

// The directory of a heap with huge blocks.
func TestCheckHuge(t *testing.T) {
	for _, tt := range []struct {
		want   string
		damage func(p patient)
	}{
		{"directory kind", func(p patient) { p.m[dir+8] = 0 }},
		{"directory kind", func(p patient) { p.m[dir+8] = 3 }},
		{"directory low or longest", func(p patient) { p.m[dir+8+1] = 3 }},
		{"directory count", func(p patient) { p.put32(dir+8+4, 9) }},
		{"directory:", func(p patient) { p.put32(dir+16+4, 2) }},
		{"directory:", func(p patient) { p.m[dir+16] = 0; p.m[dir+17] = 1 }},
		{"header huge", func(p patient) { p.state(160, func() { p.put32(160, 1) }) }},
	} {
		t.Run(tt.want, func(t *testing.T) {
			r := newRegion(t, 8<<20, 1<<30)
			h := r.create(t, heap.Options{})
			if _, err := h.Alloc(100 << 20); err != nil {
				t.Fatal(err)
			}
			sound(t, h)
			tt.damage(patient{r.bytes()})
			finds(t, h, tt.want)
		})
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no medium") }

// What cannot be checked is an error, not damage.
func TestCheckErrors(t *testing.T) {
	if _, err := heap.Check(brokenReader{}, 8<<20); err == nil {
		t.Error("a reader that fails: got no error")
	}
	r := newRegion(t, 8<<20, 8<<20)
	if _, err := heap.Check(byteReader(r.bytes()), r.size); !errors.Is(err, heap.ErrNoHeap) {
		t.Errorf("zeros: got %v, want ErrNoHeap", err)
	}
	if _, err := heap.Check(byteReader(r.bytes()), 100); !errors.Is(err, heap.ErrNoHeap) {
		t.Errorf("100 bytes: got %v, want ErrNoHeap", err)
	}
	h := r.create(t, heap.Options{})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := heap.Check(io.NewSectionReader(byteReader(r.bytes()), 0, 1<<20), r.size); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that ends: got %v, want ErrUnexpectedEOF", err)
	}
	r.bytes()[8] = 9
	if _, err := heap.Check(byteReader(r.bytes()), r.size); !errors.Is(err, heap.ErrVersion) {
		t.Errorf("version 9: got %v, want ErrVersion", err)
	}
}

// Every damaged word of the fast ways is noticed where it is followed, and from
// then on the heap refuses to change.
func TestDamageIsFinal(t *testing.T) {
	r := newRegion(t, 8<<20, 64<<20)
	h := r.create(t, heap.Options{})
	off, err := h.Alloc(40)
	if err != nil {
		t.Fatal(err)
	}
	p := patient{r.bytes()}
	at := uint64(1212416 + 2144) // magazine of class 2
	p.put64(at+16+8*(uint64(p.u32(at))-1), 1<<50)
	var damage *heap.CorruptError
	if _, err := h.Alloc(40); !errors.As(err, &damage) || !strings.HasPrefix(damage.What, "cache slots") {
		t.Fatalf("got %v, want damaged cache slots", err)
	}
	if _, err := h.Alloc(100_000); !errors.Is(err, heap.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if n, err := h.UsableSize(off); err != nil || n != 48 {
		t.Errorf("reading: got %d, %v; want 48", n, err)
	}
}
