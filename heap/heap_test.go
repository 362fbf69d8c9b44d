package heap_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/heap"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 picks one")

// kinds of heaps that every test of the whole is about.
var kinds = map[string]bool{"plain": false, "guards": true}

func TestMain(m *testing.M) {
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	code := m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "-seed %d\n", *seed)
	}
	os.Exit(code)
}

// A region is memory that can grow in place, as a mapped file can.
type region struct {
	reserve []byte
	size    uint64
	most    uint64 // 0: all of the reserve
}

func newRegion(t testing.TB, size, reserve uint64) *region {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, int(reserve), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return &region{reserve: mem, size: size}
}

func (r *region) bytes() []byte { return r.reserve[:r.size:r.size] }

func (r *region) grow(size uint64) ([]byte, error) {
	if size > uint64(len(r.reserve)) || r.most != 0 && size > r.most {
		return nil, errors.New("no more memory")
	}
	r.size = max(r.size, size)
	return r.bytes(), nil
}

// create makes a heap in r.
func (r *region) create(t testing.TB, o heap.Options) *heap.Heap {
	t.Helper()
	o.Grow = r.grow
	h, err := heap.Create(r.bytes(), o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sound fails the test unless the heap is.
func sound(t testing.TB, h *heap.Heap) heap.Stats {
	t.Helper()
	r, err := h.Check()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems[:min(len(r.Problems), 10)] {
		t.Error(p)
	}
	if r.Found > 0 {
		t.Fatalf("%d problems (-seed %d)", r.Found, *seed)
	}
	s := r.Stats
	if sum := s.MetadataBytes + s.LiveBytes + s.CachedBytes + s.IdleBytes + s.FreeBytes + s.UnusedBytes; sum != s.Size {
		t.Fatalf("the parts add up to %d, size is %d: %+v", sum, s.Size, s)
	}
	return s
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(*seed, 0)) }
