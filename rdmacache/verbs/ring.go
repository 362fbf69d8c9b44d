package verbs

import "slices"

const (
	maxEntry   = 1 << 20   // bytes of one RDMA write
	maxEntries = 32 << 10  // of a ring
	eagerBytes = 256 << 10 // gathered before they are posted without a flush
	// mergeGap is how many clean bytes are made persistent along with dirty ones before
	// and after them, rather than asking for two ranges.
	mergeGap = 64 << 10
)

// An entry is a run of written bytes, in one piece both in the ring and in the pool.
type entry struct {
	place
	pos uint64 // in the ring, counted from the first byte ever written
}

// A ring holds the writes that no flush covers yet, in memory that the device reaches.
// Entries are counted; acked <= posted <= queued are numbers of them.
type ring struct {
	mem                   []byte  // immutable
	list                  []entry // from number acked on
	head                  uint64  // bytes ever written
	tail                  uint64  // and forgotten again
	acked, posted, queued uint64
	unposted              int64 // bytes of entries that are not posted
	unasked               int64 // bytes since a flush was last asked for to make room
}

// reserve returns memory for the first of n bytes, in one piece; none if the room there is
// would make it a small one.
func (r *ring) reserve(n int) []byte {
	n = min(n, maxEntry, max(len(r.mem)/2, 1))
	if room := uint64(len(r.mem)) - (r.head - r.tail); room < uint64(n) || len(r.list) >= maxEntries {
		return nil
	}
	at := int(r.head % uint64(len(r.mem)))
	n = min(n, len(r.mem)-at)
	return r.mem[at : at+n]
}

// push adds what was copied to the place that reserve returned.
func (r *ring) push(p place) {
	at := r.head % uint64(len(r.mem))
	if n := len(r.list); n > 0 && r.posted < r.queued {
		last := &r.list[n-1]
		if last.end() == p.off && at != 0 && last.n+p.n <= maxEntry {
			last.n += p.n
			r.count(p.n)
			return
		}
	}
	r.list = append(r.list, entry{p, r.head})
	r.queued++
	r.count(p.n)
}

func (r *ring) count(n int64) {
	r.head += uint64(n)
	r.unposted += n
	r.unasked += n
}

// bytes is the memory of an entry.
func (r *ring) bytes(e entry) []byte {
	at := int(e.pos % uint64(len(r.mem)))
	return r.mem[at : at+int(e.n)]
}

// next is the entry to be posted next; there is one.
func (r *ring) next() entry { return r.list[r.posted-r.acked] }

// overlap returns the number of the last entry that is not posted and overlaps p, counted
// from 1; 0 if there is none.
func (r *ring) overlap(p place) uint64 {
	for i := len(r.list) - 1; i >= int(r.posted-r.acked); i-- {
		if e := r.list[i]; e.off < p.end() && p.off < e.end() {
			return r.acked + uint64(i) + 1
		}
	}
	return 0
}

// ack forgets the entries before number upto, which were posted.
func (r *ring) ack(upto uint64) {
	if upto <= r.acked {
		return
	}
	n := upto - r.acked
	last := r.list[n-1]
	r.tail = last.pos + uint64(last.n)
	r.list = slices.Delete(r.list, 0, int(n))
	r.acked = upto
	if len(r.list) == 0 {
		r.unasked = 0
	}
}

// rewind makes every entry one that is to be posted.
func (r *ring) rewind() { r.posted, r.unposted = r.acked, int64(r.head-r.tail) }

// drop forgets every entry. The device may still read some: nothing is written any more.
func (r *ring) drop() {
	*r = ring{mem: r.mem, head: r.head, tail: r.head, acked: r.queued, posted: r.queued, queued: r.queued}
}

// dirty appends to to where the posted entries are, sorted and merged: no two touch,
// or are closer than gap says is worth it.
func (r *ring) dirty(to []place, near func(a, b place) bool) []place {
	for _, e := range r.list[:r.posted-r.acked] {
		to = append(to, e.place)
	}
	slices.SortFunc(to, func(a, b place) int {
		switch {
		case a.off < b.off:
			return -1
		case a.off > b.off:
			return 1
		}
		return 0
	})
	merged := to[:0]
	for _, p := range to {
		if n := len(merged); n > 0 && (p.off <= merged[n-1].end() || near(merged[n-1], p)) {
			merged[n-1].n = max(merged[n-1].end(), p.end()) - merged[n-1].off
			continue
		}
		merged = append(merged, p)
	}
	return merged
}
