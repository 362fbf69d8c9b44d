package heap

// Stats say what a heap's bytes are used for. Sizes are bytes.
//
// Size is the sum of MetadataBytes, LiveBytes, CachedBytes, IdleBytes, FreeBytes
// and UnusedBytes.
type Stats struct {
	Size   uint64 // of the region, that the heap uses
	Base   uint64 // address at which C programs map it
	Guards bool
	Root   Offset
	Top    uint64 // nothing was ever used from here on

	Classes [classes]ClassStats
	Large   SpanStats // blocks of whole units
	Huge    SpanStats // blocks of whole chunks
	Caches  int       // that have blocks at hand

	LiveBlocks    uint64
	LiveBytes     uint64 // blocks in use
	CachedBytes   uint64 // free blocks in caches
	IdleBytes     uint64 // free blocks in spans, and what is left over at a span's end
	FreeBytes     uint64 // free units
	UnusedBytes   uint64 // chunks that nothing is in
	MetadataBytes uint64
	LongestFree   uint64 // longest run of free units of a chunk, or of what follows the last
}

// ClassStats are about the small blocks of one size.
type ClassStats struct {
	Size   uint64 // of a block
	Spans  uint64
	Live   uint64 // blocks in use
	Cached uint64 // free blocks in caches
	Free   uint64 // free blocks in spans
}

// SpanStats are about blocks that are spans by themselves.
type SpanStats struct {
	Blocks uint64
	Bytes  uint64
}

func (s *SpanStats) add(bytes uint64) {
	s.Blocks++
	s.Bytes += bytes
}

// add counts a span, whose class is found later from its place.
func (s *ClassStats) add(free, cached int) {
	s.Spans++
	s.Free += uint64(free)
	s.Cached += uint64(cached)
}

// finish computes the sums.
func (s *Stats) finish(st *state) {
	for i := range s.Classes {
		k, c := &classTable[i], &s.Classes[i]
		c.Size = uint64(k.size)
		if all := c.Spans * uint64(k.blocks); all > c.Free+c.Cached {
			c.Live = all - c.Free - c.Cached // else the heap is damaged
		}
		s.LiveBlocks += c.Live
		s.LiveBytes += c.Live * c.Size
		s.CachedBytes += c.Cached * c.Size
		if bytes, used := c.Spans*uint64(k.units)<<unitShift, (c.Live+c.Cached)*c.Size; bytes > used {
			s.IdleBytes += bytes - used
		}
	}
	s.LiveBlocks += s.Large.Blocks + s.Huge.Blocks
	s.LiveBytes += s.Large.Bytes + s.Huge.Bytes
	if end := chunkStart(st.chunks); end < st.size {
		s.UnusedBytes += st.size - end
		s.LongestFree = max(s.LongestFree, st.size-end)
	}
}

// Fragmentation is the share of the bytes given to blocks that no block in use
// has, from 0 to 1.
func (s *Stats) Fragmentation() float64 {
	idle := s.CachedBytes + s.IdleBytes
	if idle == 0 {
		return 0
	}
	return float64(idle) / float64(s.LiveBytes+idle)
}
