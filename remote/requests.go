package remote

import (
	"context"
	"sync"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// requests numbers the calls that change something. The memory node remembers the
// answers to the last nodepb.Remembered numbers, so that a call repeated after a
// lost answer is not done twice: no number is given out while one that is so much
// older has no answer.
type requests struct {
	mu     sync.Mutex // guards the fields below
	next   uint64     // the last number given out
	oldest uint64     // numbers up to it are answered
	open   map[uint64]struct{}
	moved  chan struct{} // closed when oldest grows; nil unless somebody waits
}

// begin returns a number, which end must get.
func (r *requests) begin(ctx context.Context) (uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		r.mu.Lock()
		if r.next-r.oldest < nodepb.Remembered {
			r.next++
			if r.open == nil {
				r.open = make(map[uint64]struct{})
			}
			r.open[r.next] = struct{}{}
			id := r.next
			r.mu.Unlock()
			return id, nil
		}
		if r.moved == nil {
			r.moved = make(chan struct{})
		}
		moved := r.moved
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		}
	}
}

// end says that number id will not be used again.
func (r *requests) end(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, id)
	before := r.oldest
	for r.oldest < r.next {
		if _, open := r.open[r.oldest+1]; open {
			break
		}
		r.oldest++
	}
	if r.oldest > before && r.moved != nil {
		close(r.moved)
		r.moved = nil
	}
}
