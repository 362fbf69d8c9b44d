package remote

import (
	"context"
	"math/bits"
	"sync"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// requests numbers the calls that change something, in ascending order. The memory node
// remembers the answer to the last number of each of nodepb.Remembered places, so that a
// call repeated after a lost answer is not done twice: a place has one call without an
// answer at a time.
//
// The lowest place that is free is used: the memory node has as many answers to remember
// as there were calls at a time.
type requests struct {
	mu    sync.Mutex // guards the fields below
	taken [nodepb.Remembered / 64]uint64
	last  uint64        // the largest number so far
	freed chan struct{} // closed when a place is free again; nil unless somebody waits
}

// begin returns a number, which end must get.
func (r *requests) begin(ctx context.Context) (uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		id, freed := r.take()
		if id != 0 {
			return id, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
		}
	}
}

// take returns a number, or 0 and what to wait for.
func (r *requests) take() (id uint64, freed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, word := range r.taken {
		bit := bits.TrailingZeros64(^word)
		if bit == 64 {
			continue
		}
		r.taken[i] |= 1 << bit
		place := uint64(i*64 + bit)
		if id = r.last - r.last%nodepb.Remembered + place; id <= r.last {
			id += nodepb.Remembered
		}
		r.last = id
		return id, nil
	}
	if r.freed == nil {
		r.freed = make(chan struct{})
	}
	return 0, r.freed
}

// end says that number id will not be used again.
func (r *requests) end(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	place := id % nodepb.Remembered
	r.taken[place/64] &^= 1 << (place % 64)
	if r.freed != nil {
		close(r.freed)
		r.freed = nil
	}
}
