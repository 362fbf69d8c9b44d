package region_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/region"
)

// Everything at once on one image: a committer, whose epochs are known and in flight
// together, and beside it cuts, sweeps, trims, checkpoints, checks, readers and writers of open epochs.
// No slot is owned twice, and the last epoch is found, whole.
func TestConcurrent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := &shared{memory: newMemory(60000)}
	im := s.open(t, 1)
	want := &image{size: 1 << 40, pages: map[uint64][]byte{}}
	var wg sync.WaitGroup
	beside := func(stream uint64, f func(rng *rand.Rand) error) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(*seed, stream))
			for ctx.Err() == nil {
				if err := f(rng); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	beside(1, func(rng *rand.Rand) error {
		if rng.IntN(4) == 0 {
			im.RequestSweep()
		}
		return im.Maintain(t.Context())
	})
	beside(2, func(rng *rand.Rand) error {
		name := fmt.Sprint(rng.Uint64())
		defer im.DropCheckpoint(name)
		_, err := im.Freeze(t.Context(), name, 1)
		return err
	})
	beside(3, func(rng *rand.Rand) error {
		_, err := im.Check(t.Context(), func(err error) { t.Error(err) }, nil)
		return err
	})
	beside(4, func(rng *rand.Rand) error {
		no, err := im.Next(t.Context(), rng.Uint64N(20000))
		if err == nil && no != region.NoPage {
			_, err = im.Lookup(t.Context(), no)
		}
		return err
	})
	for stream := range uint64(2) { // a slot that is also somebody else's changes
		beside(5+stream, func(rng *rand.Rand) error {
			runs, err := im.Alloc(t.Context(), 1+rng.Uint64N(50))
			if err != nil {
				return err
			}
			mine, got := page(rng), make([]byte, region.PageSize)
			for _, write := range []bool{true, false} {
				for _, r := range runs {
					for slot := r.Start; slot < r.End(); slot++ {
						if write {
							err = s.Write(ctx, mine, slot.Offset())
						} else if err = s.Read(ctx, got, slot.Offset()); err == nil && !slices.Equal(got, mine) {
							err = fmt.Errorf("slot %d was changed by another", slot)
						}
						if err != nil {
							return err
						}
					}
				}
			}
			for _, r := range runs {
				for slot := r.Start; slot < r.End(); slot++ {
					im.Release(slot)
				}
			}
			return nil
		})
	}
	var flight sync.WaitGroup
	rng := rand.New(rand.NewPCG(*seed, 0))
	for n := range 150 {
		pages := map[uint64][]byte{}
		for range 1 + rng.IntN(60) {
			no := rng.Uint64N(20000)
			pages[no] = page(rng)
		}
		if n%40 == 39 { // more than a log run can name
			for range 1500 {
				pages[rng.Uint64N(20000)] = page(rng)
			}
		}
		cut := uint64(region.NoPage)
		if rng.IntN(6) == 0 {
			cut = rng.Uint64N(20000)
		}
		for no := range want.pages {
			if no >= cut {
				delete(want.pages, no)
			}
		}
		for no, p := range pages {
			want.pages[no] = p
		}
		p, err := tryPost(t.Context(), s, im, want.size, cut, pages)
		if err != nil {
			t.Errorf("commit: %v", err)
			break
		}
		flight.Go(func() {
			if err := p.Wait(t.Context()); err != nil {
				t.Errorf("commit epoch %d: %v", p.Epoch(), err)
			}
		})
		if rng.IntN(3) == 0 {
			flight.Wait()
		}
	}
	flight.Wait()
	cancel()
	wg.Wait()
	if err := compare(t.Context(), s, im, want); err != nil {
		t.Fatal(err)
	}
	check(t, im)
	if err := compare(t.Context(), s, s.open(t, 2), want); err != nil {
		t.Fatalf("after reopening: %v", err)
	}
}
