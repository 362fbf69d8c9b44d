package region_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rpmemfs/rpmemfs/region"
)

// A view shows one checkpoint after the other while the writer goes on, and Changed
// names exactly the pages by which they differ.
func TestViewsOfAWriter(t *testing.T) {
	m := newMemory(4000)
	rng := rand.New(rand.NewPCG(*seed, 0))
	writer := m.open(t, 1)
	view, err := region.Open(t.Context(), region.Config{Device: m, Location: region.Location{ID: 7}})
	if err != nil {
		t.Fatal(err)
	}
	now := &image{size: 1 << 40, pages: map[uint64][]byte{}}
	before, shown := region.Checkpoint{}, now.clone()
	for round := range 60 {
		for range rng.IntN(3) {
			cut, pages := uint64(region.NoPage), map[uint64][]byte{}
			if rng.IntN(6) == 0 {
				cut = []uint64{0, 3, 300, 70_000}[rng.IntN(4)]
				for no := range now.pages {
					if no >= cut {
						delete(now.pages, no)
					}
				}
			}
			for range rng.IntN(20) {
				no := rng.Uint64N([]uint64{8, 600, 70_000, 1 << 25}[rng.IntN(4)])
				if rng.IntN(5) == 0 {
					pages[no] = nil
					delete(now.pages, no)
					continue
				}
				pages[no] = page(rng)
				now.pages[no] = pages[no]
			}
			put(t, m, writer, now.size, cut, pages)
		}
		name := string(rune('a' + round%2))
		writer.DropCheckpoint(name) // the one before the last
		after, err := writer.Freeze(t.Context(), name, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if before.Epoch > 0 {
			if err := compare(t.Context(), m, view, shown); err != nil {
				t.Fatalf("round %d: the view before: %v", round, err)
			}
			differs := map[uint64]bool{}
			err = region.Changed(t.Context(), m, 7, before.Tree, after.Tree, func(first, n uint64) {
				for no := first; no < first+n; no++ {
					if differs[no] {
						t.Errorf("page %d twice", no)
					}
					differs[no] = true
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, pages := range []map[uint64][]byte{shown.pages, now.pages} {
				for no := range pages {
					if !bytes.Equal(shown.pages[no], now.pages[no]) && !differs[no] {
						t.Errorf("round %d: page %d differs, and is not named", round, no)
					}
				}
			}
			if after.Epoch == before.Epoch && len(differs) > 0 {
				t.Errorf("round %d: %d pages of one epoch differ", round, len(differs))
			}
		}
		if err := view.View(after); err != nil {
			t.Fatal(err)
		}
		before, shown = after, now.clone()
		if after.Epoch == 0 {
			continue
		}
		if err := compare(t.Context(), m, view, shown); err != nil {
			t.Fatalf("round %d: the view after: %v", round, err)
		}
	}
	check(t, writer)
}

// Pages that are next to each other come as one run.
func TestChangedRuns(t *testing.T) {
	m := newMemory(2000)
	rng := rand.New(rand.NewPCG(*seed, 0))
	im := m.open(t, 1)
	first := map[uint64][]byte{}
	for no := range uint64(700) {
		first[no] = page(rng)
	}
	put(t, m, im, 1<<30, region.NoPage, first)
	before, err := im.Freeze(t.Context(), "before", 0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, im, 1<<30, region.NoPage, map[uint64][]byte{9: page(rng), 255: page(rng), 256: page(rng), 699: nil, 70_000: page(rng)})
	after, err := im.Freeze(t.Context(), "after", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := [][2]uint64{{9, 1}, {255, 2}, {699, 1}, {70_000, 1}}
	for _, trees := range [][2]region.Tree{{before.Tree, after.Tree}, {after.Tree, before.Tree}} {
		var got [][2]uint64
		if err := region.Changed(t.Context(), m, 7, trees[0], trees[1], func(page, n uint64) { got = append(got, [2]uint64{page, n}) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
	}
	var whole [][2]uint64
	if err := region.Changed(t.Context(), m, 7, region.Tree{}, before.Tree, func(page, n uint64) { whole = append(whole, [2]uint64{page, n}) }); err != nil {
		t.Fatal(err)
	}
	if len(whole) != 1 || whole[0] != [2]uint64{0, 700} {
		t.Errorf("against nothing: %v", whole)
	}
}

// A view takes no change, and no checkpoint that cannot be.
func TestViewRefuses(t *testing.T) {
	m := newMemory(100)
	view, err := region.Open(t.Context(), region.Config{Device: m, Space: m, Location: region.Location{ID: 7}})
	if err != nil {
		t.Fatal(err)
	}
	for _, cp := range []region.Checkpoint{
		{Tree: region.Tree{Root: 1, Height: 6}},
		{Tree: region.Tree{Height: 1}},
		{Tree: region.Tree{Root: 1}},
		{Tree: region.Tree{Root: region.MaxSlot, Height: 1}},
		{Size: region.MaxSize + 1},
	} {
		if err := view.View(cp); !errors.Is(err, region.ErrCorrupt) {
			t.Errorf("%+v: got %v", cp, err)
		}
		if err := region.Changed(t.Context(), m, 7, region.Tree{}, cp.Tree, func(uint64, uint64) {}); cp.Size == 0 && !errors.Is(err, region.ErrCorrupt) {
			t.Errorf("changed, %+v: got %v", cp, err)
		}
	}
	if err := view.View(region.Checkpoint{Epoch: 3, Size: 9}); err != nil {
		t.Fatal(err)
	}
	if got := view.State(); got.Epoch != 3 || got.Size != 9 {
		t.Errorf("got %+v", got)
	}
	if _, err := view.Commit(t.Context(), region.Change{Cut: region.NoPage}); !errors.Is(err, region.ErrView) {
		t.Errorf("commit: got %v", err)
	}
	if _, err := view.Freeze(t.Context(), "a", 0); !errors.Is(err, region.ErrView) {
		t.Errorf("freeze: got %v", err)
	}
	if _, err := view.Restore(t.Context(), region.Checkpoint{}, 0); !errors.Is(err, region.ErrView) {
		t.Errorf("restore: got %v", err)
	}
	if err := view.Err(); err != nil {
		t.Errorf("a view is poisoned: %v", err)
	}
}
