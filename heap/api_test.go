package heap_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/heap"
)

func TestCreateAndOpen(t *testing.T) {
	r := newRegion(t, 0, 64<<20)
	if _, err := heap.Open(r.bytes(), heap.Options{}); !errors.Is(err, heap.ErrNoHeap) {
		t.Errorf("open nothing: got %v, want ErrNoHeap", err)
	}
	if _, err := heap.Create(r.bytes(), heap.Options{}); !errors.Is(err, heap.ErrNoSpace) {
		t.Errorf("create in nothing: got %v, want ErrNoSpace", err)
	}
	if _, err := heap.Create(r.bytes(), heap.Options{Grow: r.grow, Base: 4096}); err == nil {
		t.Error("base 4096: got no error")
	}
	h := r.create(t, heap.Options{Base: 192 << 20})
	if got := h.Base(); got != 192<<20 {
		t.Errorf("base: got %#x", got)
	}
	if r.size != 8<<20 || sound(t, h).Size != 8<<20 {
		t.Errorf("a new heap has %d bytes, want 8 MiB", r.size)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Alloc(1); !errors.Is(err, heap.ErrClosed) {
		t.Errorf("alloc after close: got %v, want ErrClosed", err)
	}
	if err := h.Close(); !errors.Is(err, heap.ErrClosed) {
		t.Errorf("second close: got %v, want ErrClosed", err)
	}
	if _, err := heap.Create(r.bytes(), heap.Options{}); !errors.Is(err, heap.ErrExists) {
		t.Errorf("create again: got %v, want ErrExists", err)
	}
	if _, err := heap.Open(r.bytes()[8:], heap.Options{}); err == nil {
		t.Error("unaligned bytes: got no error")
	}
	if _, err := heap.Open(r.bytes()[:4<<20], heap.Options{}); !errors.Is(err, heap.ErrCorrupt) {
		t.Errorf("half a region: got %v, want ErrCorrupt", err)
	}
	r.bytes()[8] = 2
	if _, err := heap.Open(r.bytes(), heap.Options{}); !errors.Is(err, heap.ErrVersion) {
		t.Errorf("version 2: got %v, want ErrVersion", err)
	}
}

func TestRoot(t *testing.T) {
	r := newRegion(t, 8<<20, 64<<20)
	h := r.create(t, heap.Options{})
	off, err := h.Alloc(100)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetRoot(off); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []heap.Offset{off + 16, 4096, 1 << 50, 1<<64 - 16, 3} {
		if err := h.SetRoot(bad); !errors.Is(err, heap.ErrNotBlock) {
			t.Errorf("root %#x: got %v, want ErrNotBlock", bad, err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if h, err = heap.Open(r.bytes(), heap.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := h.Root(); got != off {
		t.Errorf("root: got %#x, want %#x", got, off)
	}
	if err := h.SetRoot(0); err != nil || h.Root() != 0 {
		t.Errorf("no root: %#x, %v", h.Root(), err)
	}
	sound(t, h)
}

// What is no block is refused, and so is what a guard finds.
func TestMisuse(t *testing.T) {
	for name, guards := range kinds {
		t.Run(name, func(t *testing.T) {
			h := newRegion(t, 8<<20, 256<<20).create(t, heap.Options{Guards: guards})
			for _, size := range []uint64{10, 3000, 100_000, 70 << 20} {
				off, err := h.Alloc(size)
				if errors.Is(err, heap.ErrNoSpace) {
					t.Fatal(err)
				}
				for _, bad := range []heap.Offset{off + 16, off + 5, 0x1000, 1 << 43} {
					if err := h.Free(bad); !errors.Is(err, heap.ErrNotBlock) {
						t.Errorf("free %#x: got %v, want ErrNotBlock", bad, err)
					}
				}
				if guards {
					b := h.Bytes(off, size+1)
					b[size] ^= 1
					if err := h.Free(off); !errors.Is(err, heap.ErrOverrun) {
						t.Errorf("free an overrun block of %d bytes: got %v, want ErrOverrun", size, err)
					}
					if r, err := h.Check(); err != nil || r.Found != 1 || !strings.HasPrefix(r.Problems[0].What, "guard") {
						t.Errorf("check: %+v, %v; want one problem of a guard", r, err)
					}
					b[size] ^= 1
				}
				if err := h.Free(off); err != nil {
					t.Error(err)
				}
				if guards || size > 32<<10 {
					if err := h.Free(off); !errors.Is(err, heap.ErrNotBlock) {
						t.Errorf("free %d bytes twice: got %v, want ErrNotBlock", size, err)
					}
				}
			}
			sound(t, h)
			if _, err := h.AllocAligned(1, 48); err == nil {
				t.Error("alignment 48: got no error")
			}
			if _, err := h.AllocAligned(1, 128<<20); err == nil {
				t.Error("alignment 128 MiB: got no error")
			}
		})
	}
}

// A full heap says so, stays sound, and has room again after frees, also of
// blocks in the caches of others.
func TestNoSpace(t *testing.T) {
	r := newRegion(t, 8<<20, 8<<20)
	h := r.create(t, heap.Options{})
	if _, err := h.Alloc(16 << 20); !errors.Is(err, heap.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if _, err := h.Alloc(1 << 60); !errors.Is(err, heap.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	var all []heap.Offset
	other, err := h.Cache()
	if err != nil {
		t.Fatal(err)
	}
	for {
		off, err := other.Alloc(32 << 10)
		if errors.Is(err, heap.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, off)
	}
	if len(all) < 80 {
		t.Fatalf("only %d blocks of 32 KiB in 8 MiB", len(all))
	}
	last := len(all) - 1
	if err := other.Free(all[last]); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Alloc(32 << 10); !errors.Is(err, heap.ErrNoSpace) {
		t.Errorf("the block is in the other cache: got %v, want ErrNoSpace", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if off, err := h.Alloc(32 << 10); err != nil || off != all[last] {
		t.Errorf("the cache was left: got %#x, %v; want %#x", off, err, all[last])
	}
	sound(t, h)
}

// Without a cache left, everything works.
func TestNoCache(t *testing.T) {
	for name, guards := range kinds {
		t.Run(name, func(t *testing.T) {
			h := newRegion(t, 8<<20, 64<<20).create(t, heap.Options{Guards: guards})
			var last *heap.Cache
			for range 257 {
				c, err := h.Cache()
				if err != nil {
					t.Fatal(err)
				}
				last = c
			}
			off, err := last.Alloc(100)
			if err != nil {
				t.Fatal(err)
			}
			if s := sound(t, h); s.Caches != 0 || s.LiveBlocks != 1 {
				t.Errorf("got %+v, want one block and nothing in caches", s)
			}
			if off, err = last.Realloc(off, 5000); err != nil {
				t.Fatal(err)
			}
			if err := last.Free(off); err != nil {
				t.Fatal(err)
			}
			if err := last.Free(off); !errors.Is(err, heap.ErrNotBlock) {
				t.Errorf("second free: got %v, want ErrNotBlock", err)
			}
			if err := last.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := last.Alloc(1); !errors.Is(err, heap.ErrClosed) {
				t.Errorf("alloc after close: got %v, want ErrClosed", err)
			}
			if s := sound(t, h); s.LiveBlocks != 0 {
				t.Errorf("%d blocks in use", s.LiveBlocks)
			}
		})
	}
}

// Goroutines hand blocks to each other; each frees what another made.
func TestConcurrent(t *testing.T) {
	const workers = 4
	n := 20_000
	if testing.Short() {
		n = 2_000
	}
	r := newRegion(t, 8<<20, 1<<30)
	h := r.create(t, heap.Options{})
	var wg sync.WaitGroup
	ring := make([]chan heap.Offset, workers)
	for i := range ring {
		ring[i] = make(chan heap.Offset, 64)
	}
	for i := range workers {
		wg.Go(func() {
			var a interface {
				Alloc(uint64) (heap.Offset, error)
				Free(heap.Offset) error
			} = h // the last uses the shared cache
			if i < workers-1 {
				c, err := h.Cache()
				if err != nil {
					t.Error(err)
				}
				defer c.Close()
				a = c
			}
			for k := range n {
				size := uint64(k%700 + 8)
				if k%100 == 0 {
					size = 100_000
				}
				off, err := a.Alloc(size)
				if err != nil {
					t.Error(err)
				}
				*heap.Ptr[uint64](off).Get(h) = uint64(off)
				ring[(i+1)%workers] <- off
				off = <-ring[i]
				if got := *heap.Ptr[uint64](off).Get(h); got != uint64(off) {
					t.Errorf("block %#x says %#x", off, got)
				}
				if err := a.Free(off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s := sound(t, h); s.LiveBlocks != 0 {
		t.Errorf("%d blocks in use", s.LiveBlocks)
	}
}

type node struct {
	Next heap.Ptr[node]
	Key  [3]uint32
}

func TestPtr(t *testing.T) {
	h := newRegion(t, 8<<20, 64<<20).create(t, heap.Options{})
	var list heap.Ptr[node]
	for i := range uint32(100) {
		p, err := heap.New[node](h)
		if err != nil {
			t.Fatal(err)
		}
		*p.Get(h) = node{Next: list, Key: [3]uint32{2: i}}
		list = p
	}
	n := uint32(100)
	for p := list; p != 0; p = p.Get(h).Next {
		n--
		if got := p.Get(h).Key[2]; got != n {
			t.Fatalf("got %d, want %d", got, n)
		}
	}
	a, err := heap.NewArray[uint64](h, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Array(h, 1000); len(got) != 1000 || got[999] != 0 {
		t.Errorf("array of %d", len(got))
	}
	for _, p := range []heap.Ptr[node]{0, 4, 1 << 40, 1<<64 - 8, heap.Ptr[node](8<<20 - 8)} {
		if got := p.Get(h); got != nil {
			t.Errorf("%#x: got %p, want nil", p, got)
		}
	}
	for _, n := range []uint64{1 << 20, 1 << 61, 1<<64 - 1} {
		if got := a.Array(h, n); got != nil {
			t.Errorf("array of %d: got %d, want nil", n, len(got))
		}
	}
	if _, err := heap.NewArray[uint64](h, 1<<62); !errors.Is(err, heap.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	refused := func(name string, err error) {
		if !errors.Is(err, heap.ErrType) {
			t.Errorf("%s: got %v, want ErrType", name, err)
		}
	}
	_, err = heap.New[string](h)
	refused("string", err)
	_, err = heap.New[*int](h)
	refused("pointer", err)
	_, err = heap.New[struct{ A [2]struct{ M map[int]int } }](h)
	refused("nested map", err)
	_, err = heap.New[[]byte](h)
	refused("slice", err)
	if got := heap.Ptr[string](a).Get(h); got != nil {
		t.Error("a string in the heap")
	}
	if err := h.Free(heap.Offset(list)); err != nil {
		t.Error(err)
	}
	if got := h.Bytes(heap.Offset(a), 1<<40); got != nil {
		t.Errorf("got %d bytes", len(got))
	}
}

// Two heaps in one file, as two processes have it: caches and ids are apart.
func TestFileOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owners")
	r := newRegion(t, 8<<20, 64<<20)
	open := func(fn func([]byte, heap.Options) (*heap.Heap, error)) *heap.Heap {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		h, err := fn(r.bytes(), heap.Options{Owners: heap.FileOwners(f), Grow: r.grow})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a := open(heap.Create)
	b := open(heap.Open)
	first, err := a.Alloc(40)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Alloc(40)
	if err != nil {
		t.Fatal(err)
	}
	if s := sound(t, a); s.Caches != 2 || s.LiveBlocks != 2 {
		t.Errorf("got %d caches and %d blocks, want 2 and 2", s.Caches, s.LiveBlocks)
	}
	if err := errors.Join(a.Free(second), b.Free(first), a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	c := open(heap.Open)
	off, err := c.Alloc(40)
	if err != nil || off != second {
		t.Errorf("the first cache taken over: got %#x, %v; want %#x", off, err, second)
	}
}

// A lock that was committed while it was held is dropped when nobody has the
// heap open, and what a dead holder leaves is an error after a while.
func TestRemnantLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owners")
	r := newRegion(t, 8<<20, 64<<20)
	file := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	h := r.create(t, heap.Options{Owners: heap.FileOwners(file())})
	copy(r.bytes()[64:], []byte{5, 0, 0, 0x80})
	if !testing.Short() { // takes ten seconds
		if _, err := h.Alloc(1 << 20); !errors.Is(err, heap.ErrOwnerDead) {
			t.Errorf("got %v, want ErrOwnerDead", err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := heap.Open(r.bytes(), heap.Options{Owners: heap.FileOwners(file())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Alloc(1 << 20); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// Half a change.
	copy(r.bytes()[64:], []byte{5, 0, 0, 0x80})
	r.bytes()[688128+4]++
	if _, err := heap.Open(r.bytes(), heap.Options{}); !errors.Is(err, heap.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

// What a program stored is kept by Realloc, whatever way it goes.
func TestRealloc(t *testing.T) {
	for name, guards := range kinds {
		t.Run(name, func(t *testing.T) {
			h := newRegion(t, 8<<20, 1<<30).create(t, heap.Options{Guards: guards})
			off, err := h.Realloc(0, 10)
			if err != nil {
				t.Fatal(err)
			}
			want := []byte("0123456789")
			copy(h.Bytes(off, 10), want)
			for _, size := range []uint64{12, 100, 90, 5000, 40_000, 39_000, 200_000, 4 << 20, 70 << 20, 200 << 20, 100 << 20, 65 << 20, 50_000, 11} {
				if off, err = h.Realloc(off, size); err != nil {
					t.Fatal(err)
				}
				if got := h.Bytes(off, 10); !bytes.Equal(got, want) {
					t.Fatalf("%d bytes: got %q", size, got)
				}
				if usable, err := h.UsableSize(off); err != nil || usable < size {
					t.Fatalf("usable: %d, %v; want %d", usable, err, size)
				}
				if s := sound(t, h); s.LiveBlocks != 1 {
					t.Fatalf("%d blocks in use", s.LiveBlocks)
				}
			}
		})
	}
}

func BenchmarkAllocFree(b *testing.B) {
	h := newRegion(b, 8<<20, 1<<30).create(b, heap.Options{})
	c, err := h.Cache()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		off, err := c.Alloc(64)
		if err == nil {
			err = c.Free(off)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// A thousand blocks in use, of which each step replaces one.
func BenchmarkReplace(b *testing.B) {
	h := newRegion(b, 8<<20, 1<<30).create(b, heap.Options{})
	c, err := h.Cache()
	if err != nil {
		b.Fatal(err)
	}
	var blocks [1000]heap.Offset
	i := 0
	for b.Loop() {
		i = (i*7 + 1) % len(blocks)
		if err := c.Free(blocks[i]); err != nil {
			b.Fatal(err)
		}
		if blocks[i], err = c.Alloc(uint64(16 + i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	h := newRegion(b, 8<<20, 1<<30).create(b, heap.Options{})
	p, err := heap.New[node](h)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p.Get(h).Key[0]++
	}
}
