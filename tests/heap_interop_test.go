package tests

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/heap"
)

// These tests map plain files, not files of a mount: this process may.

const (
	heapBase    = 0x2000_0000_0000
	heapReserve = 2 << 30
)

// A heapFile is a file with a heap that this process has mapped.
type heapFile struct {
	path string
	file *os.File
	mem  []byte
	heap *heap.Heap
}

// newHeapFile makes an empty file and maps it.
func newHeapFile(t *testing.T) *heapFile {
	t.Helper()
	dir, err := os.MkdirTemp(shop.fast, "heap-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Create(filepath.Join(dir, "heap"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	mem, err := unix.Mmap(int(f.Fd()), 0, heapReserve, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return &heapFile{path: f.Name(), file: f, mem: mem}
}

// grow makes the file larger, unless another process has.
func (f *heapFile) grow(size uint64) ([]byte, error) {
	fi, err := f.file.Stat()
	if err != nil {
		return nil, err
	}
	if size > heapReserve {
		return nil, fmt.Errorf("grow to %d bytes: more than is mapped", size)
	}
	if uint64(fi.Size()) < size {
		if err := f.file.Truncate(int64(size)); err != nil {
			return nil, err
		}
	}
	return f.mem[:max(size, uint64(fi.Size()))], nil
}

func (f *heapFile) create(t *testing.T, guards bool) {
	t.Helper()
	var err error
	f.heap, err = heap.Create(nil, heap.Options{Base: heapBase, Guards: guards, Grow: f.grow, Owners: heap.FileOwners(f.file)})
	if err != nil {
		t.Fatal(err)
	}
}

// sound checks the file's heap from both sides.
func (f *heapFile) sound(t *testing.T) heap.Stats {
	t.Helper()
	fi, err := f.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := heap.Check(f.file, uint64(fi.Size()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems[:min(len(r.Problems), 10)] {
		t.Error(p)
	}
	if out, err := exec.Command(heapPeer(t), "check", f.path, strconv.Itoa(heapBase)).CombinedOutput(); err != nil {
		t.Errorf("C: %v\n%s", err, out)
	}
	return r.Stats
}

var buildPeer = sync.OnceValues(func() (string, error) {
	sources, err := filepath.Glob("../librpmemfs/heap_*.c")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(shop.disk, "bin", "peer")
	args := append([]string{"-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-pthread",
		"-I../librpmemfs", "-o", bin, "c/heap/peer.c"}, sources...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc peer.c: %w\n%s", err, out)
	}
	return bin, nil
})

// heapPeer returns the path of the C program.
func heapPeer(t *testing.T) string {
	t.Helper()
	need(t, "gcc")
	exe, err := buildPeer()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// A heapCall is one line of a program that both sides run.
type heapCall struct {
	call  byte // a: allocate, A: aligned, r: reallocate, f: free, s: set root
	no    int  // of the block
	size  uint64
	align uint64
}

func heapCalls(rng *rand.Rand, n int) []heapCall {
	var calls []heapCall
	var live []int
	no := 0
	size := func() uint64 {
		switch n := rng.IntN(1000); {
		case n < 600:
			return rng.Uint64N(300)
		case n < 950:
			return rng.Uint64N(40000)
		case n < 999:
			return rng.Uint64N(1 << 20)
		default:
			return rng.Uint64N(90 << 20)
		}
	}
	for i := range n {
		wax := i/5000%2 == 0
		pick := rng.IntN(10)
		switch {
		case len(live) == 0 || pick < 3 || pick < 5 && wax:
			c := heapCall{'a', no, size(), 16}
			if rng.IntN(10) == 0 {
				c.call, c.align = 'A', 1<<rng.IntN(21)
			}
			calls = append(calls, c)
			live = append(live, no)
			no++
		case pick < 8:
			k := rng.IntN(len(live))
			calls = append(calls, heapCall{'f', live[k], 0, 16})
			live[k] = live[len(live)-1]
			live = live[:len(live)-1]
		case pick == 8:
			calls = append(calls, heapCall{'r', live[rng.IntN(len(live))], size(), 16})
		case rng.IntN(10) == 0:
			calls = append(calls, heapCall{'s', live[rng.IntN(len(live))], 0, 16})
		}
	}
	// A root that was freed would be damage.
	return append(calls, heapCall{'a', no, 100, 16}, heapCall{'s', no, 0, 16})
}

// replay does in Go what the C program does.
func (f *heapFile) replay(t *testing.T, calls []heapCall) {
	t.Helper()
	c, err := f.heap.Cache()
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[int]heap.Offset{}
	for i, call := range calls {
		off := blocks[call.no]
		switch call.call {
		case 'a':
			off, err = c.Alloc(call.size)
		case 'A':
			off, err = c.AllocAligned(call.size, call.align)
		case 'r':
			off, err = c.Realloc(off, call.size)
		case 'f':
			err = c.Free(off)
		case 's':
			err = f.heap.SetRoot(off)
		}
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		blocks[call.no] = off
		if call.size > 0 {
			f.heap.Bytes(off, call.size)[call.size-1] = byte(call.no)
		}
	}
	if err := f.heap.Close(); err != nil {
		t.Fatal(err)
	}
}

// The same calls in C and in Go make the same bytes.
func TestHeapSameBytes(t *testing.T) {
	for name, guards := range map[string]bool{"plain": false, "guards": true} {
		t.Run(name, func(t *testing.T) {
			rng, seed := newRand(t)
			calls := heapCalls(rng, 100_000)
			var lines strings.Builder
			for _, c := range calls {
				fmt.Fprintf(&lines, "%c %d %d %d\n", c.call, c.no, c.size, c.align)
			}
			inC, inGo := newHeapFile(t), newHeapFile(t)
			args := []string{"replay", inC.path, strconv.Itoa(heapBase)}
			if guards {
				args = append(args, "guards")
			}
			cmd := exec.Command(heapPeer(t), args...)
			cmd.Stdin = strings.NewReader(lines.String())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("C: %v (-seed %d)\n%s", err, seed, out)
			}
			inGo.create(t, guards)
			inGo.replay(t, calls)
			sameBytes(t, inC, inGo, seed)
			s := inGo.sound(t)
			t.Logf("%d blocks, %d huge, %d bytes", s.LiveBlocks, s.Huge.Blocks, s.Size)
		})
	}
}

func sameBytes(t *testing.T, a, b *heapFile, seed uint64) {
	t.Helper()
	ai, err := a.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	bi, err := b.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if ai.Size() != bi.Size() {
		t.Errorf("sizes: %d in C, %d in Go (-seed %d)", ai.Size(), bi.Size(), seed)
	}
	const step = 4096
	buf := [2][]byte{make([]byte, step), make([]byte, step)}
	bad := 0
	for at := int64(0); at+step <= min(ai.Size(), bi.Size()) && bad < 10; at += step {
		for i, f := range []*heapFile{a, b} {
			if _, err := f.file.ReadAt(buf[i], at); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.Equal(buf[0], buf[1]) {
			continue
		}
		for i := 0; i < step; i += 8 {
			if x, y := buf[0][i:i+8], buf[1][i:i+8]; !bytes.Equal(x, y) {
				t.Errorf("at %#x: %x in C, %x in Go (-seed %d)", at+int64(i), x, y, seed)
				bad++
				break
			}
		}
	}
}

const heapSlots = 4096

// A heapHead begins a block of the shared test.
type heapHead struct {
	Size uint64
	Key  uint64
}

// fillHead and verifyHead store and expect what fill and verify of peer.c do.
func fillHead(words []uint64, size, key uint64) {
	for i := uint64(2); i < size/8; i += 1 + i/8 {
		words[i] = key + i
	}
	words[0], words[1] = size, key
}

func (f *heapFile) words(off uint64, size uint64) []uint64 {
	return heap.Ptr[uint64](off).Array(f.heap, size/8)
}

func (f *heapFile) verifyHead(off uint64) (heapHead, error) {
	usable, err := f.heap.UsableSize(heap.Offset(off))
	if err != nil {
		return heapHead{}, err
	}
	b := *heap.Ptr[heapHead](off).Get(f.heap)
	if b.Size < 16 || b.Size > usable {
		return b, fmt.Errorf("block %#x of %d bytes says %d", off, usable, b.Size)
	}
	words := f.words(off, usable)
	for i := uint64(2); i < b.Size/8; i += 1 + i/8 {
		if words[i] != b.Key+i {
			return b, fmt.Errorf("block %#x changed: word %d is %#x, want %#x", off, i, words[i], b.Key+i)
		}
	}
	return b, nil
}

func drawSize(rng *rand.Rand) uint64 {
	switch n := rng.IntN(1000); {
	case n < 900:
		return 16 + rng.Uint64N(400)
	case n < 998:
		return 16 + rng.Uint64N(60000)
	default:
		return 16 + rng.Uint64N(3000000)
	}
}

// swap does in Go what swap of peer.c does.
func (f *heapFile) swap(rng *rand.Rand, slots []uint64, calls int) error {
	c, err := f.heap.Cache()
	if err != nil {
		return err
	}
	for range calls {
		slot := &slots[rng.IntN(len(slots))]
		var put heap.Offset
		if rng.IntN(3) > 0 {
			size := drawSize(rng)
			if put, err = c.Alloc(size); err != nil {
				return err
			}
			fillHead(f.words(uint64(put), (size+7)&^7), size, rng.Uint64())
		}
		taken := atomic.SwapUint64(slot, uint64(put))
		if taken == 0 {
			continue
		}
		b, err := f.verifyHead(taken)
		if err != nil {
			return err
		}
		if rng.IntN(8) == 0 {
			size := drawSize(rng)
			to, err := c.Realloc(heap.Offset(taken), size)
			if err != nil {
				return err
			}
			taken = uint64(to)
			if got := *heap.Ptr[heapHead](to).Get(f.heap); got != b {
				return fmt.Errorf("realloc to %#x lost the content: %v, want %v", taken, got, b)
			}
			fillHead(f.words(taken, size), size, b.Key)
			if _, err := f.verifyHead(taken); err != nil {
				return err
			}
		}
		if err := c.Free(heap.Offset(taken)); err != nil {
			return err
		}
	}
	return c.Close()
}

// Threads of C and goroutines use one heap at once, verify and free what the
// others made, and leave it sound.
func TestHeapShared(t *testing.T) {
	for name, guards := range map[string]bool{"plain": false, "guards": true} {
		t.Run(name, func(t *testing.T) {
			_, seed := newRand(t)
			const workers, rounds = 3, 5
			calls := 50_000 // of each side in each round: a million in all, in both heaps
			if testing.Short() {
				calls = 5_000
			}
			f := newHeapFile(t)
			f.create(t, guards)
			root, err := heap.NewArray[uint64](f.heap, heapSlots)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.heap.SetRoot(heap.Offset(root)); err != nil {
				t.Fatal(err)
			}
			slots := root.Array(f.heap, heapSlots)
			for round := range rounds {
				cmd := exec.Command(heapPeer(t), "swap", f.path, strconv.Itoa(heapBase), strconv.FormatUint(seed+uint64(round), 10),
					strconv.Itoa(workers), strconv.Itoa(calls))
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for i := range workers {
					wg.Go(func() {
						rng := rand.New(rand.NewPCG(seed, uint64(round*workers+i)))
						if err := f.swap(rng, slots, calls/workers); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if err := cmd.Wait(); err != nil {
					t.Errorf("C: %v\n%s", err, &out)
				}
				f.settle(t, slots)
				if t.Failed() {
					t.Fatalf("round %d (-seed %d)", round, seed)
				}
			}
		})
	}
}

// settle checks the heap while nobody uses it: it has the blocks in slots and
// the root, and no other.
func (f *heapFile) settle(t *testing.T, slots []uint64) {
	t.Helper()
	want := uint64(1)
	for _, off := range slots {
		if off == 0 {
			continue
		}
		want++
		if _, err := f.verifyHead(off); err != nil {
			t.Error(err)
		}
	}
	if s := f.sound(t); s.LiveBlocks != want {
		t.Errorf("%d blocks in use, want %d", s.LiveBlocks, want)
	}
}
