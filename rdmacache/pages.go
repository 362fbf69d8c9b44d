package rdmacache

import (
	"context"
	"sync"

	"github.com/rpmemfs/rpmemfs/region"
)

// keptRead is the most pages of a read that are kept, or shared with who wants them just
// then. More is what the kernel reads ahead of a program that goes through a file in order:
// the kernel has it then, and the next pages would only throw it out again.
const keptRead = 32

// maxRuns bounds the reads of one call that are under way at a time.
const maxRuns = 32

// Pages are clean pages in local memory, of all regions that are reached over one
// network, below the kernel's cache: what the kernel dropped, or another file shares,
// need not come over the wire again. Who wants a page that somebody else is reading
// waits for that. It is safe for concurrent use.
//
// A page is known by its slot and its checksum, and only what has that checksum comes in
// or goes out. A write to the slot throws it out (Watch), so that even two pages of one
// checksum are never taken for each other; who reads beside a writer calls Clear when it
// goes on to another epoch.
type Pages struct {
	mu      sync.Mutex // guards the fields below, and those of every flight; not held across a Conn
	slab    []byte     // a page for each element of ring
	ring    []cached   // a clock: the hand goes round and takes what was not used since it came by
	hand    int
	index   map[region.Slot]int // in ring
	flights map[region.Slot]*flight
	stats   PagesStats
}

type cached struct {
	entry region.Entry // Slot 0: free
	used  bool
}

// A flight is a page that somebody reads.
type flight struct {
	crc   uint32
	to    [][]byte      // others who want it
	stale bool          // the slot was written since: it is not kept
	err   error         // set before done is closed
	done  chan struct{} // closed when it is over
}

// PagesStats count since Pages was made.
type PagesStats struct {
	Hits   uint64 // pages that were here
	Merged uint64 // that somebody else was reading
	Misses uint64 // that were asked for on the wire
	Reads  uint64 // requests on the wire for them
}

// NewPages returns a store of so many bytes; with 0 nothing is kept, and reads are merged
// all the same.
func NewPages(bytes int64) *Pages {
	n := int(max(0, bytes) / PageSize)
	return &Pages{
		slab: make([]byte, n*PageSize), ring: make([]cached, n),
		index: make(map[region.Slot]int), flights: make(map[region.Slot]*flight),
	}
}

// Stats returns what was counted so far.
func (s *Pages) Stats() PagesStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Watch returns conn, whose writes throw out what they overwrite.
func (s *Pages) Watch(conn Conn) Conn { return watched{conn, s} }

type watched struct {
	Conn
	pages *Pages
}

func (w watched) Write(ctx context.Context, p []byte, off int64) error {
	w.pages.forget(off, len(p))
	defer w.pages.forget(off, len(p)) // what was read meanwhile may be what was there before
	return w.Conn.Write(ctx, p, off)
}

// forget throws out what n bytes from off hold.
func (s *Pages) forget(off int64, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.index)+len(s.flights) == 0 || n == 0 {
		return
	}
	for slot := region.Slot(off / PageSize); slot <= region.Slot((off+int64(n)-1)/PageSize); slot++ {
		if i, ok := s.index[slot]; ok {
			delete(s.index, slot)
			s.ring[i] = cached{}
		}
		s.outdate(slot)
	}
}

// outdate sees to it that what is being read of a slot is not kept. mu is held.
func (s *Pages) outdate(slot region.Slot) {
	if f := s.flights[slot]; f != nil {
		f.stale = true
		delete(s.flights, slot)
	}
}

// Clear throws out everything.
func (s *Pages) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.index)
	clear(s.ring)
	for slot := range s.flights {
		s.outdate(slot)
	}
}

// read fills p with pages, PageSize bytes for each entry; where Slot is 0 it leaves p
// alone. It returns the indexes of those that it could not get, or whose checksum is
// not their entry's.
func (s *Pages) read(ctx context.Context, conn Conn, entries []region.Entry, p []byte) (failed []int) {
	if len(entries) > keptRead {
		return s.pass(ctx, conn, entries, p)
	}
	var (
		own    = make([]*flight, len(entries))
		want   = make([]bool, len(entries))
		joined []int
		others = make(map[int]*flight)
	)
	s.mu.Lock()
	for i, e := range entries {
		if e.Slot == 0 {
			continue
		}
		b := p[i*PageSize : (i+1)*PageSize]
		if at, ok := s.index[e.Slot]; ok && samePlace(s.ring[at].entry, e) {
			copy(b, s.slab[at*PageSize:])
			s.ring[at].used = true
			s.stats.Hits++
			continue
		}
		if f := s.flights[e.Slot]; f != nil && f.crc == e.CRC {
			f.to = append(f.to, b)
			others[i], joined = f, append(joined, i)
			s.stats.Merged++
			continue
		}
		own[i], want[i] = &flight{crc: e.CRC, done: make(chan struct{})}, true
		s.outdate(e.Slot)
		s.flights[e.Slot] = own[i]
		s.stats.Misses++
	}
	s.mu.Unlock()
	s.fetch(ctx, conn, entries, want, p, func(i int, b []byte, err error) { s.arrived(entries[i], own[i], b, err) })
	for i, f := range own {
		if f != nil && f.err != nil {
			failed = append(failed, i)
		}
	}
	for _, i := range joined {
		if !s.await(ctx, others[i], p[i*PageSize:(i+1)*PageSize]) {
			failed = append(failed, i)
		}
	}
	return failed
}

// pass is read of pages that are not kept, and that nobody else is expected to want now.
func (s *Pages) pass(ctx context.Context, conn Conn, entries []region.Entry, p []byte) (failed []int) {
	want, bad := make([]bool, len(entries)), make([]bool, len(entries))
	misses := uint64(0)
	for i, e := range entries {
		if e.Slot != 0 {
			want[i] = true
			misses++
		}
	}
	s.mu.Lock()
	s.stats.Misses += misses
	s.mu.Unlock()
	s.fetch(ctx, conn, entries, want, p, func(i int, b []byte, err error) {
		bad[i] = err != nil || region.Checksum(b) != entries[i].CRC
	})
	for i, b := range bad {
		if b {
			failed = append(failed, i)
		}
	}
	return failed
}

// await waits for a page that somebody else reads into b too.
func (s *Pages) await(ctx context.Context, f *flight, b []byte) bool {
	select {
	case <-f.done:
		return f.err == nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, to := range f.to {
		if len(to) > 0 && &to[0] == &b[0] {
			f.to[i] = nil // nobody stores to b any more
		}
	}
	return false
}

// fetch reads the pages that are wanted from the wire: those in adjacent slots together, and
// the runs beside each other. It calls arrived for each one, with its place in p.
func (s *Pages) fetch(ctx context.Context, conn Conn, entries []region.Entry, want []bool, p []byte, arrived func(i int, b []byte, err error)) {
	var runs [][2]int // from, to
	for i := 0; i < len(want); {
		if !want[i] {
			i++
			continue
		}
		end := i + 1
		for end < len(want) && want[end] && entries[end].Slot == entries[end-1].Slot+1 {
			end++
		}
		runs = append(runs, [2]int{i, end})
		i = end
	}
	if len(runs) == 0 {
		return
	}
	s.mu.Lock()
	s.stats.Reads += uint64(len(runs))
	s.mu.Unlock()
	read := func(run [2]int) {
		i, end := run[0], run[1]
		b := p[i*PageSize : end*PageSize]
		err := conn.Read(ctx, b, entries[i].Slot.Offset())
		for ; i < end; i++ {
			arrived(i, p[i*PageSize:(i+1)*PageSize], err)
		}
	}
	var all sync.WaitGroup
	room := make(chan struct{}, maxRuns)
	for _, run := range runs[1:] {
		room <- struct{}{}
		all.Go(func() {
			read(run)
			<-room
		})
	}
	read(runs[0])
	all.Wait()
}

// arrived ends a flight with the bytes that were read, or err.
func (s *Pages) arrived(e region.Entry, f *flight, b []byte, err error) {
	if err == nil && region.Checksum(b) != e.CRC {
		err = region.ErrCorrupt // the slot may have been used again: the caller looks
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[e.Slot] == f {
		delete(s.flights, e.Slot)
	}
	if f.err = err; err == nil {
		for _, to := range f.to {
			copy(to, b)
		}
		if !f.stale {
			s.keep(e, b)
		}
	}
	close(f.done)
}

// keep puts a page into the store. mu is held.
func (s *Pages) keep(e region.Entry, b []byte) {
	if len(s.ring) == 0 {
		return
	}
	at, ok := s.index[e.Slot]
	for !ok {
		c := &s.ring[s.hand]
		at = s.hand
		s.hand = (s.hand + 1) % len(s.ring)
		if ok = !c.used; ok {
			if c.entry.Slot != 0 {
				delete(s.index, c.entry.Slot)
			}
			break
		}
		c.used = false
	}
	copy(s.slab[at*PageSize:(at+1)*PageSize], b)
	s.ring[at] = cached{entry: e}
	s.index[e.Slot] = at
}
