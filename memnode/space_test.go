package memnode

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/region"
)

// Random takes and gives against a map of slots.
func TestFreeListModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 0))
	const slots = 300
	f, err := newFreeList(slots, nil)
	if err != nil {
		t.Fatal(err)
	}
	taken := map[region.Slot]bool{0: true}
	var runs []region.Run
	for i := range 5000 {
		if rng.IntN(2) == 0 || len(runs) == 0 {
			need := 1 + rng.Uint64N(40)
			want, first := need+rng.Uint64N(20), rng.Uint64N(min(need, 9)+1)
			got := f.take(need, want, first)
			sum := uint64(0)
			for _, r := range got {
				sum += r.N
				for s := r.Start; s < r.End(); s++ {
					if taken[s] || s >= slots {
						t.Fatalf("step %d: slot %d taken twice; -seed=%d", i, s, *seed)
					}
					taken[s] = true
				}
			}
			if got != nil && (sum < need || sum > want || got[0].N < first) {
				t.Fatalf("step %d: take(%d, %d, %d) = %v; -seed=%d", i, need, want, first, got, *seed)
			}
			if got == nil && uint64(slots-len(taken)) >= need && first <= 1 {
				t.Fatalf("step %d: take(%d, %d, %d) = nothing with %d free; -seed=%d", i, need, want, first, slots-len(taken), *seed)
			}
			runs = append(runs, got...)
		} else {
			j := rng.IntN(len(runs))
			r := runs[j]
			runs = slices.Delete(runs, j, j+1)
			if r.N > 1 && rng.IntN(2) == 0 { // only a part
				n := 1 + rng.Uint64N(r.N-1)
				runs = append(runs, region.Run{Start: r.Start + region.Slot(n), N: r.N - n})
				r.N = n
			}
			f.give([]region.Run{r})
			for s := r.Start; s < r.End(); s++ {
				delete(taken, s)
			}
		}
		want, err := newFreeList(slots, slices.Clone(runs))
		if err != nil || !slices.Equal(want.runs, f.runs) || want.slots != f.slots {
			t.Fatalf("step %d: free %v, want %v (%v); -seed=%d", i, f, want, err, *seed)
		}
	}
}

func TestFreeListRefuses(t *testing.T) {
	for _, owned := range [][]region.Run{
		{{Start: 0, N: 1}}, {{Start: 99, N: 2}}, {{Start: 100, N: 1}}, {{Start: 5, N: 3}, {Start: 7, N: 1}}, {{Start: 5, N: 3}, {Start: 5, N: 3}},
	} {
		if f, err := newFreeList(100, owned); err == nil {
			t.Errorf("newFreeList(100, %v) = %v, want an error", owned, f)
		}
	}
}

// One run is better than the first ones.
func TestGrantPrefersOneRun(t *testing.T) {
	p := newPool(t)
	var inos []namespace.Ino
	for _, name := range []string{"a", "b", "c"} {
		inos = append(inos, mustCreate(t, p, namespace.Root, name, fileInode()).Ino)
		mustGrant(t, p, inos[len(inos)-1], 16)
	}
	if _, err := p.Unlink(t.Context(), namespace.Root, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Reap(t.Context(), inos[1]); err != nil {
		t.Fatal(err)
	}
	if g := mustGrant(t, p, inos[0], 17); len(g.Runs) != 1 || g.Runs[0].Start != 49 {
		t.Errorf("17 slots = %v, want one run behind the others", g.Runs)
	}
	if g := mustGrant(t, p, inos[0], 16); len(g.Runs) != 1 || g.Runs[0].Start != 17 {
		t.Errorf("16 slots = %v, want the hole", g.Runs)
	}
	wantSound(t, p)
	// Extents that touch are one.
	loc, err := p.Locate(t.Context(), region.ID(inos[0]))
	if want := []region.Run{{Start: 1, N: 32}, {Start: 49, N: 17}}; err != nil || !slices.Equal(loc.Extents, want) {
		t.Errorf("Locate = %v, %v, want %v", loc.Extents, err, want)
	}
}

// The first grant leaves a region that opens.
func TestFirstGrantFormats(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	loc, err := p.Locate(t.Context(), region.ID(f.Ino))
	if err != nil || loc.Super != 0 || loc.Extents != nil {
		t.Errorf("Locate of an empty file = %+v, %v", loc, err)
	}
	g, err := p.Grant(t.Context(), region.ID(f.Ino), 1, 1)
	if err != nil || len(g.Runs) != 1 || g.Runs[0].N < region.MinFirstGrant || g.Super != g.Runs[0].Start {
		t.Fatalf("first Grant = %+v, %v", g, err)
	}
	more, err := p.Grant(t.Context(), region.ID(f.Ino), 1, 3)
	if err != nil || more.Super != g.Super || len(more.Runs) != 1 || more.Runs[0].N != 3 {
		t.Fatalf("second Grant = %+v, %v", more, err)
	}
	p = reopen(t, p, dir)
	wantSound(t, p)
	loc, err = p.Locate(t.Context(), region.ID(f.Ino))
	if err != nil || loc.Super != g.Super || loc.ID != region.ID(f.Ino) {
		t.Fatalf("Locate = %+v, %v", loc, err)
	}
	im, err := region.Open(t.Context(), region.Config{Device: inproc.Dial(p), Space: p, Generation: p.Generation(), Location: loc})
	if err != nil {
		t.Fatalf("open the region: %v", err)
	}
	if err := im.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestGrantRefuses(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	d := mustCreate(t, p, namespace.Root, "d", dirInode())
	_, err := p.Grant(ctx, 99, 1, 1)
	wantErr(t, "Grant to nothing", err, namespace.ErrNotExist)
	_, err = p.Grant(ctx, region.ID(d.Ino), 1, 1)
	wantErr(t, "Grant to a directory", err, namespace.ErrInvalid)
	_, err = p.Grant(ctx, region.ID(f.Ino), testSlots, testSlots)
	wantErr(t, "Grant of more than all", err, region.ErrNoSpace)
	g, err := p.Grant(ctx, region.ID(f.Ino), 1, 10*testSlots)
	if err != nil || len(g.Runs) != 1 || g.Runs[0].N != testSlots-1 {
		t.Fatalf("Grant of all = %+v, %v", g, err)
	}
	_, err = p.Grant(ctx, region.ID(f.Ino), 1, 1)
	wantErr(t, "Grant by a full pool", err, region.ErrNoSpace)
	_, err = p.Clone(ctx, region.ID(f.Ino), namespace.Root, "c", fileInode(), region.Seed{})
	wantErr(t, "Clone in a full pool", err, region.ErrNoSpace)
	wantSound(t, p)
	// What comes back can be granted again, but no region without a long run.
	back := []region.Run{{Start: 100, N: region.MinFirstGrant - 1}, {Start: 200, N: region.MinFirstGrant - 1}}
	if err := p.Return(ctx, region.ID(f.Ino), back); err != nil {
		t.Fatal(err)
	}
	h := mustCreate(t, p, namespace.Root, "h", fileInode())
	_, err = p.Grant(ctx, region.ID(h.Ino), 1, 1)
	wantErr(t, "first Grant without a run", err, region.ErrNoSpace)
	if g := mustGrant(t, p, f.Ino, 2*(region.MinFirstGrant-1)); !slices.Equal(g.Runs, back) {
		t.Errorf("Grant = %v, want %v", g.Runs, back)
	}
	wantSound(t, p)
}

func TestReturn(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	g := mustCreate(t, p, namespace.Root, "g", fileInode())
	start := mustGrant(t, p, f.Ino, 100).Runs[0].Start
	other := mustGrant(t, p, g.Ino, 100).Runs[0].Start
	id := region.ID(f.Ino)
	for what, runs := range map[string][]region.Run{
		"nothing":             {{Start: start + 50}},
		"another's":           {{Start: other + 50, N: 1}},
		"more than owned":     {{Start: start + 50, N: 51}},
		"free slots":          {{Start: other + 100, N: 1}},
		"superblocks":         {{Start: start + 1, N: 5}},
		"a run twice":         {{Start: start + 50, N: 5}, {Start: start + 54, N: 1}},
		"slots out of bounds": {{Start: region.MaxSlot - 1, N: 1 << 63}},
		"huge":                {{Start: start + 50, N: 1<<64 - 20}},
	} {
		wantErr(t, "Return of "+what, p.Return(ctx, id, runs), ErrNotOwned)
		wantSound(t, p)
	}
	for _, c := range []struct {
		back region.Run
		want []region.Run
	}{
		{region.Run{Start: start + 40, N: 20}, []region.Run{{Start: start, N: 40}, {Start: start + 60, N: 40}}},
		{region.Run{Start: start + 60, N: 10}, []region.Run{{Start: start, N: 40}, {Start: start + 70, N: 30}}},
		{region.Run{Start: start + 90, N: 10}, []region.Run{{Start: start, N: 40}, {Start: start + 70, N: 20}}},
		{region.Run{Start: start + 70, N: 20}, []region.Run{{Start: start, N: 40}}},
	} {
		if err := p.Return(ctx, id, []region.Run{c.back}); err != nil {
			t.Fatal(err)
		}
		loc, err := p.Locate(ctx, id)
		if err != nil || !slices.Equal(loc.Extents, c.want) {
			t.Errorf("after Return(%v) extents = %v, %v, want %v", c.back, loc.Extents, err, c.want)
		}
		wantSound(t, p)
	}
}

func TestCheckpoints(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	id := region.ID(f.Ino)
	want := []region.Checkpoint{
		{Name: "a", Epoch: 1, Time: 2, Size: 3, Mtime: 4, Pages: 5, Tree: region.Tree{Root: 6, CRC: 7, Height: 8}},
		{Name: "b"},
	}
	for _, cp := range []region.Checkpoint{want[1], want[0]} {
		if err := p.SaveCheckpoint(ctx, id, cp); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "SaveCheckpoint twice", p.SaveCheckpoint(ctx, id, want[0]), namespace.ErrExist)
	wantErr(t, "SaveCheckpoint of nothing", p.SaveCheckpoint(ctx, 99, want[0]), namespace.ErrNotExist)
	wantErr(t, "SaveCheckpoint without a name", p.SaveCheckpoint(ctx, id, region.Checkpoint{}), namespace.ErrInvalid)
	wantErr(t, "SaveCheckpoint of a rootless tree", p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "c", Tree: region.Tree{Height: 1}}), namespace.ErrInvalid)
	wantErr(t, "SaveCheckpoint with a long name", p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: string(make([]byte, 256))}), namespace.ErrNameTooLong)
	p = reopen(t, p, dir)
	loc, err := p.Locate(ctx, id)
	if err != nil || !slices.Equal(loc.Checkpoints, want) {
		t.Errorf("checkpoints = %+v, %v, want %+v", loc.Checkpoints, err, want)
	}
	if err := p.DropCheckpoint(ctx, id, "a"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "DropCheckpoint twice", p.DropCheckpoint(ctx, id, "a"), namespace.ErrNotExist)
	loc, err = p.Locate(ctx, id)
	if err != nil || !slices.Equal(loc.Checkpoints, want[1:]) {
		t.Errorf("checkpoints = %+v, %v, want %+v", loc.Checkpoints, err, want[1:])
	}
	wantSound(t, p)
}

// Of a family, what one member leaves another inherits; the last one's slots
// become free.
func TestFamily(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	all, err := p.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	super := mustGrant(t, p, f.Ino, 50).Super
	seed := region.Seed{Epoch: 3, Size: 4096, Pages: 1, Tree: region.Tree{Root: super + 20, CRC: 1, Height: 1}}
	clone := func(src namespace.Ino, name string) namespace.Inode {
		t.Helper()
		n, err := p.Clone(ctx, region.ID(src), namespace.Root, name, fileInode(), seed)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a := clone(f.Ino, "a")
	b := clone(a.Ino, "b")
	loner, err := p.Clone(ctx, region.ID(f.Ino), namespace.Root, "loner", fileInode(), region.Seed{})
	if err != nil {
		t.Fatal(err)
	}
	wantFamily := func(ino namespace.Ino, want ...region.ID) {
		t.Helper()
		loc, err := p.Locate(ctx, region.ID(ino))
		if err != nil || !slices.Equal(loc.Family, want) {
			t.Errorf("family of %d = %v, %v, want %v", ino, loc.Family, err, want)
		}
	}
	wantFamily(f.Ino, region.ID(a.Ino), region.ID(b.Ino))
	wantFamily(a.Ino, region.ID(f.Ino), region.ID(b.Ino))
	wantFamily(loner.Ino)
	p = reopen(t, p, dir)
	wantSound(t, p)
	reap := func(name string, n namespace.Inode, want namespace.Ino) {
		t.Helper()
		if _, err := p.Unlink(ctx, namespace.Root, name); err != nil {
			t.Fatal(err)
		}
		heir, err := p.Reap(ctx, n.Ino)
		if err != nil || heir != want {
			t.Errorf("Reap(%s) = %d, %v, want heir %d", name, heir, err, want)
		}
		wantSound(t, p)
	}
	before, _ := p.Usage(ctx)
	reap("f", f, a.Ino)
	if after, _ := p.Usage(ctx); after.FreeSlots != before.FreeSlots {
		t.Errorf("%d slots free, %d before a heir took them", after.FreeSlots, before.FreeSlots)
	}
	loc, err := p.Locate(ctx, region.ID(a.Ino))
	if total := count(loc.Extents); err != nil || total != 50+region.MinFirstGrant {
		t.Errorf("the heir has %d slots, %v, want %d", total, err, 50+region.MinFirstGrant)
	}
	wantFamily(a.Ino, region.ID(b.Ino))
	reap("b", b, a.Ino)
	reap("a", a, 0)
	reap("loner", loner, 0)
	after, err := p.Usage(ctx)
	if err != nil || after != all {
		t.Errorf("after all is gone Usage = %+v, %v, want %+v", after, err, all)
	}
	_, err = p.Clone(ctx, region.ID(f.Ino), namespace.Root, "x", fileInode(), seed)
	wantErr(t, "Clone of nothing", err, namespace.ErrNotExist)
}

func count(runs []region.Run) (n uint64) {
	for _, r := range runs {
		n += r.N
	}
	return n
}

func TestCloneRefuses(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	id, tree := region.ID(f.Ino), region.Seed{Tree: region.Tree{Root: 9, Height: 1}}
	_, err := p.Clone(ctx, id, namespace.Root, "f", fileInode(), region.Seed{})
	wantErr(t, "Clone over a name", err, namespace.ErrExist)
	_, err = p.Clone(ctx, id, 99, "c", fileInode(), region.Seed{})
	wantErr(t, "Clone into nothing", err, namespace.ErrNotExist)
	_, err = p.Clone(ctx, id, namespace.Root, "c", dirInode(), region.Seed{})
	wantErr(t, "Clone as a directory", err, namespace.ErrInvalid)
	_, err = p.Clone(ctx, id, namespace.Root, "c", fileInode(), tree)
	wantErr(t, "Clone of pages that are not there", err, namespace.ErrInvalid)
	wantSound(t, p)
}

// A crash between unlink and reap loses nothing but the inode.
func TestOrphansAreReapedAtOpen(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	want, _ := p.Usage(ctx)
	for range reapBatch/256 + 3 {
		f := mustCreate(t, p, namespace.Root, "f", fileInode())
		mustGrant(t, p, f.Ino, 8)
		if err := p.SetXattr(ctx, f.Ino, "user.x", []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
		if err := p.SaveCheckpoint(ctx, region.ID(f.Ino), region.Checkpoint{Name: "c"}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Unlink(ctx, namespace.Root, "f"); err != nil {
			t.Fatal(err)
		}
	}
	mustCreate(t, p, namespace.Root, "d", dirInode())
	if err := p.Rmdir(ctx, namespace.Root, "d"); err != nil {
		t.Fatal(err)
	}
	p = reopen(t, p, dir)
	got, err := p.Usage(ctx)
	if err != nil || got != want {
		t.Errorf("Usage after the next opening = %+v, %v, want %+v", got, err, want)
	}
	wantSound(t, p)
}

// Freed slots go back to the file system below.
func TestReapDiscards(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	r := mustGrant(t, p, f.Ino, 100).Runs[0]
	if err := p.WriteAt(bytes.Repeat([]byte{1}, region.PageSize), r.Start.Offset()+50*region.PageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Reap(ctx, f.Ino); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, region.PageSize)
	if err := p.ReadAt(got, r.Start.Offset()+50*region.PageSize); err != nil {
		t.Fatal(err)
	}
	if !zero(got) {
		t.Skip("the file system of the test directory cannot punch holes")
	}
}
