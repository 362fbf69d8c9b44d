package verbs

import (
	"slices"
	"sort"
)

// An extent is a part of the pool that the client reaches: where the bytes from start
// up to end are at the memory node.
type extent struct {
	start, end int64
	address    uint64 // of start
	rkey       uint32
}

// at is the address of byte off.
func (e *extent) at(off int64) uint64 { return e.address + uint64(off-e.start) }

// maxExtents bounds what a client remembers of a connection.
const maxExtents = 8192

// extents are sorted, and apart.
type extents []extent

// search returns the number of the first extent that ends after off.
func (x extents) search(off int64) int {
	return sort.Search(len(x), func(i int) bool { return x[i].end > off })
}

// find returns the extent that byte off is in.
func (x extents) find(off int64) (*extent, bool) {
	i := x.search(off)
	if i == len(x) || x[i].start > off {
		return nil, false
	}
	return &x[i], true
}

// missing returns the first byte of p that is in no extent. p is not empty.
func (x extents) missing(p place) (int64, bool) {
	for off := p.off; off < p.end(); {
		e, ok := x.find(off)
		if !ok {
			return off, true
		}
		off = e.end
	}
	return 0, false
}

// add puts e in. It takes the place of what was there.
func (x *extents) add(e extent) {
	s := *x
	i, j := s.search(e.start), s.search(e.end)
	in := make([]extent, 0, 3)
	if i < len(s) && s[i].start < e.start {
		left := s[i]
		left.end = e.start
		in = append(in, left)
	}
	in = append(in, e)
	if j < len(s) && s[j].start < e.end {
		right := s[j]
		right.start, right.address = e.end, s[j].at(e.end)
		in = append(in, right)
		j++
	}
	*x = slices.Replace(s, i, j, in...)
}
