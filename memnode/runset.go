package memnode

import (
	"cmp"
	"slices"

	"github.com/rpmemfs/rpmemfs/region"
)

// A runSet is a set of slots, but of slot 0: runs that are sorted, apart and do not
// touch. It does not change.
type runSet []region.Run

// holds tells whether n bytes from off are all in slots of the set.
func (s runSet) holds(off int64, n int) bool {
	run, ok := s.at(off)
	return ok && int64(n) <= run.End().Offset()-off
}

// at returns the run that byte off is in.
func (s runSet) at(off int64) (region.Run, bool) {
	slot := region.Slot(off / region.PageSize) // below 0: slot 0 or beyond all pools
	low, high := 0, len(s)                     // runs before low begin at slot or before it
	for low < high {
		mid := int(uint(low+high) / 2)
		if s[mid].Start <= slot {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 || slot >= s[low-1].End() {
		return region.Run{}, false
	}
	return s[low-1], true
}

// with is the set and runs, none of which is in it.
func (s runSet) with(runs []region.Run) runSet {
	f := freeList{runs: slices.Clone(s)}
	f.give(runs)
	return f.runs
}

// common is what is in the set and in runs.
func (s runSet) common(runs []region.Run) runSet { return s.without(s.without(runs)) }

// without is the set less runs.
func (s runSet) without(runs []region.Run) runSet {
	runs = slices.Clone(runs)
	slices.SortFunc(runs, func(a, b region.Run) int { return cmp.Compare(a.Start, b.Start) })
	var left runSet
	keep := func(start, end region.Slot) {
		if start < end {
			left = append(left, region.Run{Start: start, N: uint64(end - start)})
		}
	}
	for _, x := range s {
		start, end := x.Start, x.End()
		for len(runs) > 0 && runs[0].Start < end {
			keep(start, runs[0].Start)
			start = max(start, runs[0].End())
			if runs[0].End() > end {
				break // it goes on in the next one
			}
			runs = runs[1:]
		}
		keep(start, end)
	}
	return left
}
