package region_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sort"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// hooked is a memory that tells before it does something.
type hooked struct {
	*memory
	before func()
	inside bool
}

func (h *hooked) hook() {
	if h.before != nil && !h.inside {
		h.inside = true
		h.before()
		h.inside = false
	}
}

func (h *hooked) Read(ctx context.Context, p []byte, off int64) error {
	h.hook()
	return h.memory.Read(ctx, p, off)
}

func (h *hooked) Write(ctx context.Context, p []byte, off int64) error {
	h.hook()
	return h.memory.Write(ctx, p, off)
}

func (h *hooked) Flush(ctx context.Context) error {
	h.hook()
	return h.memory.Flush(ctx)
}

// At no moment of a clone's life may the sweep of its source miss a slot that a
// crash at that moment would need: Walk visits every shared slot that the image
// recovered then reaches.
func TestWalkCoversRecovery(t *testing.T) {
	ctx := t.Context()
	for round := range uint64(3) {
		rng := rand.New(rand.NewPCG(*seed, round))
		m := newMemory(40000)
		src := m.open(t, 1)
		pages := map[uint64][]byte{}
		for range 300 {
			pages[rng.Uint64N(20000)] = page(rng)
		}
		put(t, m, src, 1<<30, region.NoPage, pages)
		cp, err := src.Freeze(ctx, "c", 1)
		if err != nil {
			t.Fatal(err)
		}
		clone := &hooked{memory: &memory{bytes: m.bytes, next: 5000, loc: region.Location{ID: 8}}}
		clone.memory.bytes = clone.memory.bytes[:20000*region.PageSize]
		sd := src.Seed(cp)
		sd.ID = 8
		run := region.Run{Start: 4000, N: 1000}
		if clone.loc.Super, err = region.Format(ctx, clone.memory, run, sd); err != nil {
			t.Fatal(err)
		}
		clone.loc.Extents = []region.Run{run}
		own := func(s region.Slot) bool { return s >= 4000 && s < 20000 }

		open := func(dev region.Device) *region.Image {
			im, err := region.Open(ctx, region.Config{Device: dev, Space: clone.memory, Generation: 1, Location: clone.loc, NodeBytes: 16 * region.PageSize})
			if err != nil {
				t.Fatalf("open: %v", err)
			}
			return im
		}
		im := open(clone)
		doing := ""
		clone.before = func() {
			visited := map[region.Slot]bool{}
			if err := im.Walk(ctx, func(s region.Slot) { visited[s] = true }); err != nil {
				t.Fatal(err)
			}
			missed := 0
			err := open(clone.memory).Walk(ctx, func(s region.Slot) {
				if !own(s) && !visited[s] {
					missed++
				}
			})
			if err != nil || missed > 0 {
				t.Fatalf("round %d: %s: a crash would need %d slots that Walk does not visit (%v)", round, doing, missed, err)
			}
		}
		for step := range 15 { // few, or all shared slots are gone
			var err error
			switch k := rng.IntN(6); {
			case step == 14:
				doing = "restore" // of what was before anything was written
				_, err = im.Restore(ctx, region.Checkpoint{Name: "empty"}, 1)
			case k == 0:
				doing = "freeze"
				_, err = im.Freeze(ctx, fmt.Sprint(step), 1)
				im.DropCheckpoint(fmt.Sprint(step))
			case k == 1:
				doing = "large commit"
				pages := map[uint64][]byte{}
				for range 400 {
					pages[rng.Uint64N(20000)] = page(rng)
				}
				_, err = tryPut(ctx, clone, im, 1<<30, 1+rng.Uint64N(20000), pages)
			case k == 2:
				doing = "maintain"
				err = im.Maintain(ctx)
			default:
				doing = "commit"
				pages := map[uint64][]byte{}
				for range 20 {
					pages[rng.Uint64N(20000)] = page(rng)
				}
				cut := uint64(region.NoPage)
				if rng.IntN(2) == 0 {
					cut = rng.Uint64N(20000)
				}
				_, err = tryPut(ctx, clone, im, 1<<30, cut, pages)
			}
			if err != nil {
				t.Fatalf("%s: %v", doing, err)
			}
		}
	}
}

// A commit reads the table while it changes it. A sweep that ends just then must
// not free the pages that the commit is about to free: they would be used twice.
func TestSweepMeetsCommit(t *testing.T) {
	ctx := t.Context()
	h := &midCommit{shared: &shared{memory: newMemory(4000)}}
	open := func() *region.Image {
		im, err := region.Open(ctx, region.Config{Device: h, Space: h, Generation: 1, Location: h.loc, NodeBytes: 16 * region.PageSize})
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	im := open()
	rng := rand.New(rand.NewPCG(*seed, 0))
	pages := map[uint64][]byte{}
	for i := range uint64(60) {
		pages[i*256] = page(rng)
	}
	put(t, h, im, 1<<30, region.NoPage, pages)
	for !im.Due() {
		put(t, h, im, 1<<30, region.NoPage, map[uint64][]byte{0: pages[0]})
	}
	if err := im.Maintain(ctx); err != nil { // cuts the log
		t.Fatal(err)
	}
	im = open()
	if err := im.Maintain(ctx); err != nil {
		t.Fatal(err)
	}
	held := map[region.Slot]bool{}
	swept := make(chan error, 1)
	h.midway = func() {
		_, before := im.Space()
		im.RequestSweep()
		go func() { swept <- im.Maintain(ctx) }()
		free := before
		for i := 0; i < 100000 && free == before; i++ { // let the sweep end, if it can
			runtime.Gosched()
			_, free = im.Space()
		}
		runs, err := im.Alloc(ctx, free)
		if err != nil {
			t.Error(err)
		}
		for _, r := range runs {
			for slot := r.Start; slot < r.End(); slot++ {
				held[slot] = true
			}
		}
	}
	put(t, h, im, 1<<30, region.NoPage, pages)
	if h.midway != nil {
		t.Fatal("the commit did not read the table")
	}
	if err := <-swept; err != nil {
		t.Fatal(err)
	}
	_, free := im.Space()
	again, err := im.Alloc(ctx, free)
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
	check(t, im)
}

// midCommit calls midway once, at the third read after a flush.
type midCommit struct {
	*shared
	midway  func()
	flushed bool
	reads   int
}

func (m *midCommit) Flush(ctx context.Context) error {
	m.flushed = m.midway != nil
	return m.shared.Flush(ctx)
}

func (m *midCommit) Read(ctx context.Context, p []byte, off int64) error {
	if m.flushed {
		if m.reads++; m.reads == 3 {
			f := m.midway
			m.midway, m.flushed = nil, false
			f()
		}
	}
	return m.shared.Read(ctx, p, off)
}

// What a truncation drops of a checkpoint that is gone comes back when the pool is
// full.
func TestDroppedSeriesComesBack(t *testing.T) {
	m := newMemory(600)
	im := m.open(t, 1)
	rng := rand.New(rand.NewPCG(*seed, 0))
	pages := map[uint64][]byte{}
	for i := range uint64(300) {
		pages[i] = page(rng)
	}
	put(t, m, im, 1<<21, region.NoPage, pages)
	if _, err := im.Freeze(t.Context(), "c", 1); err != nil {
		t.Fatal(err)
	}
	im.DropCheckpoint("c")
	if err := im.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, m, im, 0, 0, nil)
	put(t, m, im, 1<<21, region.NoPage, pages)
	put(t, m, im, 0, 0, nil)
	put(t, m, im, 1<<21, region.NoPage, pages)
}

// A large commit that also truncates needs more table nodes than its pages tell.
// With too few slots it fails before anything is changed, or not at all.
func TestLargeEpochInFullPool(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	old, pages := map[uint64][]byte{}, map[uint64][]byte{}
	for i := range uint64(300) {
		old[1<<38+i*256] = page(rng)
	}
	for i := range uint64(3000) {
		pages[i] = page(rng)
	}
	try := func(slots int) error {
		m := newMemory(slots)
		im := m.open(t, 1)
		put(t, m, im, 1<<30, region.NoPage, old)
		if _, err := im.Freeze(t.Context(), "c", 1); err != nil { // no node is dirty
			t.Fatal(err)
		}
		_, err := tryPut(t.Context(), m, im, 1<<30, 1<<38+200*256+1, pages)
		return err
	}
	// The smallest pool in which it succeeds, and those that are a bit smaller.
	enough := 3000 + sort.Search(3000, func(n int) bool { return try(3000+n) == nil })
	for slots := enough - 20; slots < enough; slots++ {
		if err := try(slots); !errors.Is(err, region.ErrNoSpace) || errors.Is(err, epoch.ErrPoisoned) {
			t.Errorf("%d slots, %d fewer than needed: %v", slots, enough-slots, err)
		}
	}
}

// A relative that is damaged keeps slots from being freed, nothing else: the region
// is written and its log is cut.
func TestDamagedRelative(t *testing.T) {
	m := newMemory(4000)
	im := m.open(t, 1)
	put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rand.New(rand.NewPCG(*seed, 0)))})
	im, err := region.Open(t.Context(), region.Config{
		Device: m, Space: m, Generation: 2, Location: m.loc,
		Family: func(context.Context, func(region.Slot)) error { return region.ErrCorrupt },
	})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(*seed, 1))
	for !im.Due() {
		put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{1: page(rng)})
	}
	if err := im.Maintain(t.Context()); !errors.Is(err, region.ErrCorrupt) {
		t.Errorf("maintain: got %v, want ErrCorrupt", err)
	}
	if im.Due() {
		t.Error("the log was not cut")
	}
}
