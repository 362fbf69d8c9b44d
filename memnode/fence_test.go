package memnode

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// Random sets of slots against a map.
func TestRunSetModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 2))
	const slots = 80
	var set runSet
	have := map[region.Slot]bool{}
	// some returns runs of slots that are, or are not, in the set.
	some := func(in bool) (runs []region.Run) {
		for range 1 + rng.IntN(3) {
			start := region.Slot(1 + rng.IntN(slots))
			r := region.Run{Start: start}
			for s := start; s < slots && have[s] == in && r.N < 10; s++ {
				r.N++
				have[s] = !in
			}
			if r.N > 0 {
				runs = append(runs, r)
			}
		}
		return runs
	}
	for i := range 5000 {
		old, was := set, slices.Clone(set)
		if rng.IntN(2) == 0 {
			set = set.with(some(false))
		} else {
			set = set.without(some(true))
		}
		if !slices.Equal(old, was) {
			t.Fatalf("step %d: a set has changed; -seed=%d", i, *seed)
		}
		var owned []region.Run
		for s := range have {
			if have[s] {
				owned = append(owned, region.Run{Start: s, N: 1})
			}
		}
		want := runSet(nil).with(owned)
		if !slices.Equal(set, want) {
			t.Fatalf("step %d: %v, want %v; -seed=%d", i, set, want, *seed)
		}
		off, n := rng.Int64N(slots*region.PageSize), rng.IntN(4*region.PageSize)
		inside := have[region.Slot(off/region.PageSize)]
		for at := off; at < off+int64(n); at++ {
			inside = inside && have[region.Slot(at/region.PageSize)]
		}
		if got := set.holds(off, n); got != inside {
			t.Fatalf("step %d: %v holds %d bytes at %d: %v, want %v; -seed=%d", i, set, n, off, got, inside, *seed)
		}
	}
	// What is taken out may reach beyond what is there.
	set = runSet{{Start: 10, N: 5}, {Start: 20, N: 5}, {Start: 30, N: 5}}
	for _, c := range []struct {
		out  []region.Run
		want runSet
	}{
		{[]region.Run{{Start: 12, N: 10}}, runSet{{Start: 10, N: 2}, {Start: 22, N: 3}, {Start: 30, N: 5}}},
		{[]region.Run{{Start: 0, N: 100}}, nil},
		{[]region.Run{{Start: 32, N: 1}, {Start: 1, N: 10}}, runSet{{Start: 11, N: 4}, {Start: 20, N: 5}, {Start: 30, N: 2}, {Start: 33, N: 2}}},
		{[]region.Run{{Start: 15, N: 5}}, set},
	} {
		if got := set.without(c.out); !slices.Equal(got, c.want) {
			t.Errorf("without(%v) = %v, want %v", c.out, got, c.want)
		}
	}
}

// A fenced session: a share with a file that has slots.
func fenced(t *testing.T, p *Pool, name string) (*View, *Fence, region.ID, region.Run) {
	t.Helper()
	ctx := t.Context()
	v := p.View(mustShare(t, p, name, 0))
	n, err := v.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	g, err := v.Grant(ctx, region.ID(n.Ino), 20, 20)
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.Fence(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return v, f, region.ID(n.Ino), g.Runs[0]
}

// A fence lets through what is of the share, to the byte, as that changes.
func TestFenceExtents(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	v, f, id, r := fenced(t, p, "s")
	_, other, _, r2 := fenced(t, p, "t")
	reach := func(f *Fence, off int64, n int, want error) {
		t.Helper()
		wantErr(t, "ReadAt", f.ReadAt(make([]byte, n), off), want)
		wantErr(t, "WriteAt", f.WriteAt(make([]byte, n), off), want)
	}
	start, end := r.Start.Offset(), r.End().Offset()
	for _, x := range []struct {
		off  int64
		n    int
		want error
	}{
		{start, 1, nil}, {start, int(end - start), nil}, {end - 1, 1, nil}, {start + 5, 9000, nil}, {start, 0, nil},
		{start - 1, 1, ErrRange}, {start - 1, 2, ErrRange}, {end - 1, 2, ErrRange}, {end, 1, ErrRange}, {end, 0, ErrRange},
		{0, 1, ErrRange}, {0, 0, ErrRange}, {-1, 1, ErrRange}, {-region.PageSize, 1, ErrRange},
		{math.MaxInt64, 1, ErrRange}, {math.MaxInt64 - 1, 2, ErrRange}, {math.MinInt64, 1, ErrRange},
		{r2.Start.Offset(), 1, ErrRange}, {testSlots * region.PageSize, 1, ErrRange},
	} {
		reach(f, x.off, x.n, x.want)
	}
	reach(other, r2.Start.Offset(), 1, nil)
	reach(other, start, 1, ErrRange)
	// What is granted can be reached at once, what is given back no more.
	g, err := v.Grant(ctx, id, 30, 30)
	if err != nil {
		t.Fatal(err)
	}
	reach(f, g.Runs[0].Start.Offset(), 30*region.PageSize, nil)
	if err := v.Return(ctx, id, []region.Run{{Start: g.Runs[0].Start + 10, N: 5}}); err != nil {
		t.Fatal(err)
	}
	reach(f, g.Runs[0].Start.Offset(), 10*region.PageSize, nil)
	reach(f, (g.Runs[0].Start + 10).Offset(), 1, ErrRange)
	reach(f, (g.Runs[0].Start + 14).Offset(), 2*region.PageSize, ErrRange)
	reach(f, (g.Runs[0].Start + 15).Offset(), 15*region.PageSize, nil)
	c, err := v.Clone(ctx, id, namespace.Root, "c", fileInode(), region.Seed{})
	if err != nil {
		t.Fatal(err)
	}
	loc, err := v.Locate(ctx, region.ID(c.Ino))
	if err != nil {
		t.Fatal(err)
	}
	reach(f, loc.Super.Offset(), 2*region.PageSize, nil)
	reach(other, loc.Super.Offset(), 1, ErrRange)
	if _, err := v.Unlink(ctx, namespace.Root, "c"); err != nil {
		t.Fatal(err)
	}
	reach(f, loc.Super.Offset(), 1, nil) // it may be open
	if _, err := v.Reap(ctx, c.Ino); err != nil {
		t.Fatal(err)
	}
	reach(f, loc.Super.Offset(), 1, ErrRange)
	// The same is what a session that comes later finds.
	want := *f.slots.Load()
	again, err := p.View(v.share).Fence(ctx)
	if err != nil || !slices.Equal(*again.slots.Load(), want) {
		t.Errorf("loaded anew: %v, %v, want %v", *again.slots.Load(), err, want)
	}
	if same, err := v.Fence(ctx); err != nil || same != f {
		t.Errorf("Fence = %p, %v, want %p again", same, err, f)
	}
	if f.Medium() != p.Medium() {
		t.Errorf("Medium = %+v", f.Medium())
	}
	wantSound(t, p)
}

// Extents are those of all files of the share, once, and of files without names.
func TestViewExtents(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	s1, s2 := mustShare(t, p, "s1", 0), mustShare(t, p, "s2", 0)
	all := map[namespace.Ino]runSet{}
	for _, share := range []namespace.Ino{s1, s2, namespace.Root} {
		v := p.View(share)
		file, dir, orphan := furnish(t, v, namespace.Root)
		if _, err := v.Link(ctx, file.Ino, dir.Ino, "second name"); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Grant(ctx, region.ID(file.Ino), 8, 8); err != nil { // behind the orphan's
			t.Fatal(err)
		}
		for _, n := range []namespace.Inode{file, orphan} {
			loc, err := v.Locate(ctx, region.ID(n.Ino))
			if err != nil {
				t.Fatal(err)
			}
			all[share] = all[share].with(loc.Extents)
			if share != namespace.Root {
				all[namespace.Root] = all[namespace.Root].with(loc.Extents)
			}
		}
	}
	for share, want := range all {
		got, err := p.View(share).Extents(ctx)
		if err != nil || !slices.Equal(runSet(nil).with(got), want) || slotsOf(got) != slotsOf(want) {
			t.Errorf("Extents of %d = %v, %v, want %v", share, got, err, want)
		}
		if !slices.IsSortedFunc(got, func(a, b region.Run) int { return int(a.Start) - int(b.Start) }) {
			t.Errorf("Extents of %d = %v are not sorted", share, got)
		}
		f, err := p.View(share).Fence(ctx)
		if err != nil || !slices.Equal(*f.slots.Load(), want) {
			t.Errorf("Fence of %d: %v", share, err)
		}
	}
	// Directories that hold each other do not keep anyone for ever.
	d, err := p.Lookup(ctx, s1, "dir")
	if err != nil {
		t.Fatal(err)
	}
	err = p.meta.update(func(t txn) error { return t.putDirent(d.Ino, "ring", dirent{d.Ino, unix.S_IFDIR}) })
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.View(s1).Extents(ctx)
	wantErr(t, "Extents of a ring", err, ErrCorrupt)
}

// slowMedia holds reads, writes or flushes up until they are let go.
type slowMedia struct {
	media.Media
	mu   sync.Mutex
	hold chan struct{} // nil: nothing is held
	in   chan struct{} // gets one for each that came
}

func (m *slowMedia) wait() {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		m.in <- struct{}{}
		<-hold
	}
}

func (m *slowMedia) ReadAt(p []byte, off int64) error  { m.wait(); return m.Media.ReadAt(p, off) }
func (m *slowMedia) WriteAt(p []byte, off int64) error { m.wait(); return m.Media.WriteAt(p, off) }
func (m *slowMedia) Flush() error                      { m.wait(); return m.Media.Flush() }

func (m *slowMedia) set(hold chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
}

func newSlowPool(t *testing.T) (*Pool, *slowMedia) {
	t.Helper()
	bolt, m := parts(t)
	slow := &slowMedia{Media: m, in: make(chan struct{}, 16)}
	p, err := assemble(bolt, slow, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p, slow
}

// stays makes sure that what ends done has not happened, and soon is not happening.
func stays(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
		t.Errorf("%s did not wait", what)
	case <-time.After(20 * time.Millisecond):
	}
}

func comes(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not come", what)
	}
}

// End waits for whatever is under way; from then on everything is fenced.
func TestFenceEndWaits(t *testing.T) {
	for what, access := range map[string]func(*Fence, int64) error{
		"read":  func(f *Fence, off int64) error { return f.ReadAt(make([]byte, 8), off) },
		"write": func(f *Fence, off int64) error { return f.WriteAt(make([]byte, 8), off) },
		"flush": func(f *Fence, _ int64) error { return f.Flush() },
	} {
		p, slow := newSlowPool(t)
		_, f, _, r := fenced(t, p, "s")
		hold := make(chan struct{})
		slow.set(hold)
		result := make(chan error, 1)
		go func() { result <- access(f, r.Start.Offset()) }()
		comes(t, what, slow.in)
		done := make(chan struct{})
		go func() { f.End(); close(done) }()
		stays(t, "End beside a "+what, done)
		late := make(chan error, 1)
		go func() { late <- access(f, r.Start.Offset()) }()
		close(hold)
		comes(t, "End", done)
		if err := <-result; err != nil {
			t.Errorf("%s before End = %v", what, err)
		}
		wantErr(t, what+" during End", <-late, rdmacache.ErrFenced)
		slow.set(nil)
		wantErr(t, what+" after End", access(f, r.Start.Offset()), rdmacache.ErrFenced)
	}
}

// Slots are free for others only when no access of their former owner is under way.
func TestReturnWaitsForAccesses(t *testing.T) {
	p, slow := newSlowPool(t)
	ctx := t.Context()
	v, f, id, r := fenced(t, p, "s")
	v2, _, id2, _ := fenced(t, p, "t")
	given := region.Run{Start: r.Start + 10, N: 10}
	hold := make(chan struct{})
	slow.set(hold)
	wrote := make(chan error, 1)
	go func() {
		wrote <- f.WriteAt(bytes.Repeat([]byte{1}, region.PageSize), given.Start.Offset())
	}()
	comes(t, "write", slow.in)
	done := make(chan struct{})
	var returned error
	go func() { returned = v.Return(ctx, id, []region.Run{given}); close(done) }()
	stays(t, "Return", done)
	slow.set(nil)
	all := uint64(testSlots - 1 - 40)
	if _, err := v2.Grant(ctx, id2, all+1, all+1); !errors.Is(err, region.ErrNoSpace) {
		t.Errorf("Grant of slots that are being written = %v", err)
	}
	close(hold)
	comes(t, "Return", done)
	if err := errors.Join(<-wrote, returned); err != nil {
		t.Fatal(err)
	}
	if _, err := v2.Grant(ctx, id2, all+10, all+10); err != nil {
		t.Errorf("Grant of returned slots = %v", err)
	}
	wantErr(t, "a write to them", f.WriteAt([]byte{1}, given.Start.Offset()), ErrRange)
	wantSound(t, p)
}

// A grant that is given back before it was answered leaves nothing behind the fence:
// the slots may be another's by then.
func TestReturnBeforeGrantAnswers(t *testing.T) {
	bolt, m := parts(t)
	meta := &hookMeta{boltMeta: bolt}
	p, err := assemble(meta, m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	v, f, id, r := fenced(t, p, "s")
	done := make(chan struct{})
	meta.after = func() { // a session that guesses what it was just granted
		go func() {
			defer close(done)
			loc, err := v.Locate(ctx, id)
			if err == nil {
				x := loc.Extents[len(loc.Extents)-1]
				err = v.Return(ctx, id, []region.Run{{Start: x.End() - 10, N: 10}})
			}
			if err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-done:
		case <-time.After(50 * time.Millisecond): // it waits for the grant, rightly
		}
	}
	g, err := v.Grant(ctx, id, 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	comes(t, "Return", done)
	if want := (runSet{r}); !slices.Equal(*f.slots.Load(), want) {
		t.Errorf("the fence lets %v through, want %v", *f.slots.Load(), want)
	}
	wantErr(t, "a write to what was given back", f.WriteAt([]byte{1}, g.Runs[0].Start.Offset()), ErrRange)
	wantSound(t, p)
}

// Flushes of several sessions reach the medium side by side, which makes one of those
// that wait.
func TestFencesShareFlushes(t *testing.T) {
	p, slow := newSlowPool(t)
	var fences []*Fence
	for _, name := range []string{"a", "b", "c", "d"} {
		_, f, _, _ := fenced(t, p, name)
		fences = append(fences, f, f)
	}
	hold := make(chan struct{})
	slow.set(hold)
	var wg sync.WaitGroup
	for _, f := range fences {
		wg.Go(func() {
			if err := f.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
	for range fences {
		comes(t, "flush", slow.in)
	}
	close(hold)
	wg.Wait()
}

// An access through a fence allocates nothing.
func TestFenceAllocatesNothing(t *testing.T) {
	p := newPool(t)
	_, f, _, r := fenced(t, p, "s")
	b := make([]byte, region.PageSize)
	off := (r.Start + 10).Offset()
	n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(f.WriteAt(b, off), f.ReadAt(b, off)); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// nullMedia does nothing, at once.
type nullMedia struct{ media.Media }

func (nullMedia) ReadAt([]byte, int64) error  { return nil }
func (nullMedia) WriteAt([]byte, int64) error { return nil }

func BenchmarkFence(b *testing.B) {
	p := &Pool{media: nullMedia{}, slots: 1 << 20, sizeBytes: 1 << 32}
	f := &Fence{pool: p}
	var runs []region.Run
	for s := region.Slot(1); s < 1<<20; s += 20 { // 50,000 extents
		runs = append(runs, region.Run{Start: s, N: 10})
	}
	if err := f.load(func() ([]region.Run, error) { return runs, nil }); err != nil {
		b.Fatal(err)
	}
	page := make([]byte, region.PageSize)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if err := f.WriteAt(page, runs[i*7919%len(runs)].Start.Offset()); err != nil {
				b.Error(err)
			}
		}
	})
}

// Two sessions grant and return, and write everywhere that they are let. Neither ever
// finds in a slot of its own what the other wrote.
func TestFencesKeepApart(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	stop := make(chan struct{})
	var owners, writers sync.WaitGroup
	for i, name := range []string{"a", "b"} {
		mark := bytes.Repeat([]byte{byte(i + 1)}, region.PageSize)
		v, f, id, _ := fenced(t, p, name)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(*seed, uint64(i)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f.WriteAt(mark, rng.Int64N(testSlots)*region.PageSize); err != nil && !errors.Is(err, ErrRange) {
					t.Error(err)
					return
				}
			}
		})
		owners.Go(func() {
			rng := rand.New(rand.NewPCG(*seed, uint64(10+i)))
			page := make([]byte, region.PageSize)
			for range 60 {
				n := 20 + rng.Uint64N(460) // so that the two come by each other's slots
				g, err := v.Grant(ctx, id, n, n)
				if err != nil {
					t.Error(err)
					return
				}
				for pass := range 3 {
					for _, r := range g.Runs {
						for s := r.Start; s < r.End() && err == nil; s++ {
							if pass == 0 {
								err = f.WriteAt(mark, s.Offset())
							} else if err = f.ReadAt(page, s.Offset()); err == nil && !bytes.Equal(page, mark) {
								err = fmt.Errorf("slot %d of share %s holds %d; -seed=%d", s, name, page[0], *seed)
							}
						}
					}
				}
				if err := errors.Join(err, v.Return(ctx, id, g.Runs)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	owners.Wait()
	close(stop)
	writers.Wait()
	wantSound(t, p)
}
