package memnode

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/rpmemfs/rpmemfs/region"
)

// A freeList is the slots that no region owns: runs that are sorted, apart and
// do not touch. It lives in memory only; it is what the extents leave.
type freeList struct {
	runs  []region.Run
	slots uint64 // sum of runs
}

// newFreeList returns what owned leaves of a pool of n slots. It sorts owned. An
// overlap, or a run outside the pool, is an error.
func newFreeList(n uint64, owned []region.Run) (freeList, error) {
	slices.SortFunc(owned, func(a, b region.Run) int { return cmp.Compare(a.Start, b.Start) })
	var f freeList
	next := region.Slot(1) // slot 0 is the header
	for _, r := range owned {
		if r.Start < next || r.End() > region.Slot(n) {
			return freeList{}, fmt.Errorf("slots %d to %d overlap another extent or are outside the pool", r.Start, r.End()-1)
		}
		f.push(region.Run{Start: next, N: uint64(r.Start - next)})
		next = r.End()
	}
	f.push(region.Run{Start: next, N: n - uint64(next)})
	return f, nil
}

func (f *freeList) push(r region.Run) {
	if r.N > 0 {
		f.runs = append(f.runs, r)
		f.slots += r.N
	}
}

// take removes and returns at least need slots, at best want, in as few runs as
// it can: the first run that has want, else the longest ones. None, if fewer
// than need are left or no run is as long as first, which is at most need.
func (f *freeList) take(need, want, first uint64) []region.Run {
	need = max(need, 1)
	want = max(want, need)
	if need > f.slots {
		return nil
	}
	if i := slices.IndexFunc(f.runs, func(r region.Run) bool { return r.N >= max(want, first) }); i >= 0 {
		return []region.Run{f.cut(i, want)}
	}
	var taken []region.Run
	for got := uint64(0); got < need; {
		i := f.longest()
		if got == 0 && f.runs[i].N < first {
			return nil
		}
		r := f.cut(i, min(want-got, f.runs[i].N))
		taken = append(taken, r)
		got += r.N
	}
	return taken
}

func (f *freeList) longest() int {
	best := 0
	for i, r := range f.runs {
		if r.N > f.runs[best].N {
			best = i
		}
	}
	return best
}

// cut takes n slots from the start of run i.
func (f *freeList) cut(i int, n uint64) region.Run {
	r := region.Run{Start: f.runs[i].Start, N: n}
	f.slots -= n
	if f.runs[i].N == n {
		f.runs = slices.Delete(f.runs, i, i+1)
	} else {
		f.runs[i] = region.Run{Start: r.End(), N: f.runs[i].N - n}
	}
	return r
}

// give adds runs that were not free.
func (f *freeList) give(runs []region.Run) {
	for _, r := range runs {
		if r.N == 0 {
			continue
		}
		f.slots += r.N
		i, _ := slices.BinarySearchFunc(f.runs, r.Start, func(x region.Run, s region.Slot) int { return cmp.Compare(x.Start, s) })
		left := i > 0 && f.runs[i-1].End() == r.Start
		right := i < len(f.runs) && r.End() == f.runs[i].Start
		switch {
		case left && right:
			f.runs[i-1].N += r.N + f.runs[i].N
			f.runs = slices.Delete(f.runs, i, i+1)
		case left:
			f.runs[i-1].N += r.N
		case right:
			f.runs[i] = region.Run{Start: r.Start, N: r.N + f.runs[i].N}
		default:
			f.runs = slices.Insert(f.runs, i, r)
		}
	}
}
