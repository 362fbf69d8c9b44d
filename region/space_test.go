package region_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/region"
)

// shared is a memory that goroutines may use, with things to do around its calls.
type shared struct {
	*memory
	mu      sync.Mutex
	granted func(call int) // after a grant is durable, before the region hears of it
	grants  int
}

func (s *shared) Read(ctx context.Context, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.Read(ctx, p, off)
}

func (s *shared) Write(ctx context.Context, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.Write(ctx, p, off)
}

func (s *shared) Grant(ctx context.Context, id region.ID, need, want uint64) (region.Grant, error) {
	s.mu.Lock()
	s.grants++
	call := s.grants
	g, err := s.memory.Grant(ctx, id, need, want)
	s.mu.Unlock()
	if s.granted != nil {
		s.granted(call)
	}
	return g, err
}

func (s *shared) Return(ctx context.Context, id region.ID, runs []region.Run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.Return(ctx, id, runs)
}

func (s *shared) open(t testing.TB, gen uint64) *region.Image {
	t.Helper()
	im, err := region.Open(t.Context(), region.Config{Device: s, Space: s, Generation: gen, Location: s.loc, NodeBytes: 20 * region.PageSize})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// Two writes begin a new file. The grant that comes second, which does not hold
// the superblocks, reaches the region first: no page may get their slots.
func TestFirstGrantsMeet(t *testing.T) {
	s := &shared{memory: newMemory(1000)}
	second := make(chan struct{})
	s.granted = func(call int) {
		if call == 1 {
			for range 10000 { // let the other one go ahead, if it can
				select {
				case <-second:
					return
				default:
					runtime.Gosched()
				}
			}
		}
	}
	im := s.open(t, 1)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := im.Alloc(t.Context(), 2); err != nil {
				t.Errorf("alloc: %v", err)
			}
			if s.grantCalls() == 2 {
				select {
				case second <- struct{}{}:
				default:
				}
			}
		})
	}
	wg.Wait()
	_, free := im.Space()
	runs, err := im.Alloc(t.Context(), free)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if r.Start < s.loc.Super+region.FormatSlots && s.loc.Super < r.End() {
			t.Errorf("slots %d to %d are free; superblocks and log are at %d", r.Start, r.End()-1, s.loc.Super)
		}
	}
}

func (s *shared) grantCalls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grants
}

// Writers that take slots at the same time never see a full pool before it is.
func TestAllocsMeet(t *testing.T) {
	s := &shared{memory: newMemory(20000), granted: func(int) { runtime.Gosched() }}
	im := s.open(t, 1)
	var wg sync.WaitGroup
	taken := make([][]region.Run, 8)
	for i := range taken {
		wg.Go(func() {
			for n := range uint64(150) {
				runs, err := im.Alloc(t.Context(), 1+n%17)
				if err != nil {
					t.Errorf("%v, with %d slots left", err, 20000-s.next)
					return
				}
				taken[i] = append(taken[i], runs...)
			}
		})
	}
	wg.Wait()
	owner := map[region.Slot]string{}
	for i, runs := range taken {
		for _, r := range runs {
			for slot := r.Start; slot < r.End(); slot++ {
				if o := owner[slot]; o != "" {
					t.Fatalf("slot %d was given to writer %d and to %s", slot, i, o)
				}
				owner[slot] = fmt.Sprint("writer ", i)
			}
		}
	}
}

// A relative's slots arrive while a grant is on its way: the directory names the
// new extent before the region knows it.
func TestAdoptMeetsGrant(t *testing.T) {
	s := &shared{memory: newMemory(1000)}
	im := s.open(t, 1)
	if _, err := im.Alloc(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	s.granted = func(int) { im.Adopt(s.loc.Extents) }
	runs, err := im.Alloc(t.Context(), 50)
	if err != nil {
		t.Fatal(err)
	}
	s.granted = nil
	im.RequestSweep()
	if err := im.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := map[region.Slot]bool{}
	for _, r := range runs {
		for slot := r.Start; slot < r.End(); slot++ {
			held[slot] = true
		}
	}
	if granted, _ := im.Space(); granted != uint64(s.next)-1 {
		t.Errorf("got %d slots granted, want %d", granted, s.next-1)
	}
	_, free := im.Space()
	again, err := im.Alloc(t.Context(), free)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range again {
		for slot := r.Start; slot < r.End(); slot++ {
			if held[slot] {
				t.Fatalf("slot %d was given out twice", slot)
			}
		}
	}
}

// A writer that is killed again and again before it could sweep does not take more
// and more from the pool.
func TestCrashesDoNotGrowARegion(t *testing.T) {
	const pages = 20_000
	s := &shared{memory: newMemory(400_000)}
	write := func(im *region.Image, from, n uint64) {
		runs, err := im.Alloc(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		page := make([]byte, region.PageSize)
		c := region.Change{Size: pages * region.PageSize, Cut: region.NoPage}
		for _, r := range runs {
			for slot := r.Start; slot < r.End(); slot++ {
				c.Pages = append(c.Pages, region.PageChange{Page: from, Slot: slot, CRC: region.Checksum(page)})
				from++
			}
		}
		for _, p := range c.Pages {
			if err := s.Write(t.Context(), page, p.Slot.Offset()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := im.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	write(s.open(t, 1), 0, pages)
	for gen := range uint64(30) {
		im := s.open(t, 2+gen)
		if _, err := im.Alloc(t.Context(), 10_000); err != nil { // an open epoch that is lost
			t.Fatal(err)
		}
		write(im, gen*31%19_000, 1000)
	}
	im := s.open(t, 200)
	if granted, _ := im.Space(); granted > 3*pages {
		t.Errorf("%d slots granted for %d pages after 30 crashes", granted, pages)
	}
}
