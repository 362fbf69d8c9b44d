package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/client"
	"github.com/rpmemfs/rpmemfs/heap"
)

// A program with a heap that is killed at random finds the heap of the last
// committed epoch: sound, with exactly the blocks that its own data refers to. No
// recovery runs; the region's rollback is all there is.
func TestHeapKill(t *testing.T) {
	rng, seed := newRand(t)
	rounds := 4
	if *roundsFlag > 0 {
		rounds = *roundsFlag
	}
	if testing.Short() {
		rounds = 2
	}
	m := newMount(t, fastDir(t), "--size", "1GiB")
	m.run("touch", m.path("heap"))
	for round := range rounds {
		c := m.role("heap", m.path("heap"), strconv.FormatUint(seed+uint64(round), 10))
		t.Log(c.mustLine("found "))
		for range 1 + rng.IntN(4) {
			c.mustLine("epoch ")
		}
		<-time.After(time.Duration(rng.IntN(30)) * time.Millisecond)
		if rng.IntN(3) == 0 {
			m.kill() // the daemon dies first
			c.end()
			m.unmountDead()
			m.start()
		} else {
			c.kill()
		}
		m.settle("heap")
		if code, out := m.ctlCode("heap", "check", m.path("heap")); code != 0 {
			t.Fatalf("round %d: rpmemctl heap check: exit code %d (-seed %d)\n%s", round, code, seed, out)
		}
	}
}

const heapKillWorkers = 3

// roleHeap works on the heap in a file until it is killed. It first checks that the
// heap has the blocks in the root's slots and no other.
func roleHeap(args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	r, err := client.Open(args[0], client.Options{Reserve: 1 << 30})
	if err != nil {
		return err
	}
	file, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := r.Join("first")
	f := &heapFile{file: file}
	slots, err := f.openRegion(r)
	if err != nil {
		return err
	}
	found, err := f.accounted(slots)
	if err != nil {
		return err
	}
	fmt.Printf("found %d blocks\n", found)
	failed := make(chan error, heapKillWorkers)
	for i := range uint64(heapKillWorkers) {
		go func() { failed <- f.churn(r, rand.New(rand.NewPCG(seed, i)), slots, i == 0) }()
	}
	p.Leave()
	return <-failed
}

// openRegion opens or creates the heap in an attached file.
func (f *heapFile) openRegion(r *client.Region) ([]uint64, error) {
	o := heap.Options{Owners: heap.FileOwners(f.file), Grow: func(size uint64) ([]byte, error) {
		if err := r.Grow(int64(size)); err != nil {
			return nil, err
		}
		return r.Bytes(), nil
	}}
	var err error
	f.heap, err = heap.Open(r.Bytes(), o)
	if errors.Is(err, heap.ErrNoHeap) {
		f.heap, err = heap.Create(r.Bytes(), o)
	}
	if err != nil {
		return nil, err
	}
	root := heap.Ptr[uint64](f.heap.Root())
	if root == 0 {
		if root, err = heap.NewArray[uint64](f.heap, heapSlots); err == nil {
			err = f.heap.SetRoot(heap.Offset(root))
		}
	}
	return root.Array(f.heap, heapSlots), err
}

// accounted checks the heap and returns how many blocks are in slots.
func (f *heapFile) accounted(slots []uint64) (uint64, error) {
	report, err := f.heap.Check()
	if err != nil {
		return 0, err
	}
	if report.Found > 0 {
		return 0, fmt.Errorf("%d problems, the first: %w", report.Found, report.Problems[0])
	}
	blocks := uint64(0)
	for _, off := range slots {
		if off == 0 {
			continue
		}
		blocks++
		if _, err := f.verifyHead(off); err != nil {
			return 0, err
		}
	}
	if report.Stats.LiveBlocks != blocks+1 {
		return 0, fmt.Errorf("%d blocks in use, want %d and the root", report.Stats.LiveBlocks, blocks)
	}
	return blocks, nil
}

// churn replaces blocks between restart points. One worker commits.
func (f *heapFile) churn(r *client.Region, rng *rand.Rand, slots []uint64, commits bool) error {
	p := r.Join("worker")
	for turn := 0; ; turn++ {
		if err := f.swap(rng, slots, 20); err != nil {
			return err
		}
		if !commits || turn%10 > 0 {
			if err := p.RestartPoint(); err != nil {
				return err
			}
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		id, err := p.Checkpoint(ctx)
		cancel()
		if err != nil {
			return err
		}
		fmt.Printf("epoch %d\n", id)
	}
}
