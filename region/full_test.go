package region_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// full is a device behind a network: what finds no space is told at the next flush.
type full struct {
	*memory
	flush error // of every Flush
	write func() error
}

func (f *full) Flush(context.Context) error { return f.flush }

func (f *full) Write(ctx context.Context, p []byte, off int64) error {
	if f.write != nil {
		if err := f.write(); err != nil {
			return err
		}
	}
	return f.memory.Write(ctx, p, off)
}

func (f *full) open(t *testing.T, gen uint64) *region.Image {
	t.Helper()
	im, err := region.Open(t.Context(), region.Config{Device: f, Space: f.memory, Generation: gen, Location: f.loc})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// A flush that finds no space commits nothing and poisons nothing, and the epoch
// commits when there is space again. Otherwise it is gone, even where all of it had
// reached the medium and its record stood where recovery looks first.
func TestFlushFindsNoSpace(t *testing.T) {
	for _, again := range []bool{true, false} {
		t.Run(fmt.Sprint(again), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(*seed, 0))
			f := &full{memory: newMemory(200)}
			im := f.open(t, 1)
			first, second := page(rng), page(rng)
			put(t, f, im, 1<<20, region.NoPage, map[uint64][]byte{0: first})
			// Two cuts: the log starts over where it is.
			if _, err := im.Freeze(t.Context(), "one", 1); err != nil {
				t.Fatal(err)
			}
			f.flush = fmt.Errorf("file system below: %w", region.ErrNoSpace)
			for range 3 {
				_, err := tryPut(t.Context(), f, im, 1<<20, region.NoPage, map[uint64][]byte{0: second, 1: second})
				if !errors.Is(err, region.ErrNoSpace) || errors.Is(err, epoch.ErrPoisoned) || im.Err() != nil {
					t.Fatalf("commit = %v, the region: %v", err, im.Err())
				}
			}
			f.flush = nil
			last, want := epoch.ID(1), &image{size: 1 << 20, pages: map[uint64][]byte{0: first}}
			if again {
				put(t, f, im, 1<<20, region.NoPage, map[uint64][]byte{0: second})
				last, want.pages[0] = 2, second
			} else if _, err := im.Freeze(t.Context(), "two", 1); err != nil {
				t.Fatal(err)
			}
			for _, im := range []*region.Image{im, f.open(t, 2)} {
				if got := im.State().Epoch; got != last {
					t.Errorf("epoch %d, want %d", got, last)
				}
				if err := compare(t.Context(), f, im, want); err != nil {
					t.Error(err)
				}
				check(t, im)
			}
		})
	}
}

// Where the record cannot be made void, the region is poisoned.
func TestNoSpaceToMakeARecordVoid(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	f := &full{memory: newMemory(200)}
	im := f.open(t, 1)
	put(t, f, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)})
	f.flush = region.ErrNoSpace
	writes := 0
	f.write = func() error {
		if writes++; writes > 2 { // the page and the record
			return region.ErrNoSpace
		}
		return nil
	}
	if _, err := tryPut(t.Context(), f, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)}); !errors.Is(err, epoch.ErrPoisoned) {
		t.Errorf("commit = %v, want %v", err, epoch.ErrPoisoned)
	}
}

// A region whose last records were taken back is not closed before that is durable.
func TestCloseFlushesWhatWasTakenBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	f := &full{memory: newMemory(200)}
	im := f.open(t, 1)
	put(t, f, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)})
	f.flush = region.ErrNoSpace
	if _, err := tryPut(t.Context(), f, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)}); !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("commit = %v, want ErrNoSpace", err)
	}
	if err := im.Close(t.Context()); !errors.Is(err, region.ErrNoSpace) || im.Err() != nil {
		t.Errorf("close = %v, the region: %v; want ErrNoSpace", err, im.Err())
	}
	f.flush = nil
	if err := im.Close(t.Context()); err != nil {
		t.Errorf("close with space = %v", err)
	}
}
