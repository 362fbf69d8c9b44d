package model

import (
	"context"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// Null is the host's device as one that takes no time: its Writes, Reads and Flushes do
// nothing and succeed at once. What is left is what its user costs. Only one goroutine uses
// what is dialed with it: a Wait under way does not hear of what another one posts.
func (h *Host) Null() verbs.NIC { return nullNIC{h} }

type nullNIC struct{ verbs.NIC }

func (n nullNIC) Resolve(ctx context.Context, address string) (verbs.Route, error) {
	r, err := n.NIC.Resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	return nullRoute{r}, nil
}

type nullRoute struct{ verbs.Route }

func (r nullRoute) Connect(ctx context.Context, d verbs.Domain, cfg verbs.QueueConfig, private []byte) (verbs.Queue, []byte, error) {
	q, welcome, err := r.Route.Connect(ctx, d, cfg, private)
	if err != nil {
		return nil, nil, err
	}
	return &nullQueue{Queue: q}, welcome, nil
}

// A nullQueue lets Sends and receives through.
type nullQueue struct {
	verbs.Queue

	mu   sync.Mutex
	done []verbs.Completion
}

func (q *nullQueue) Post(work []verbs.Work) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range work {
		w := &work[i]
		if w.Op == verbs.OpSend {
			if err := q.Queue.Post(work[i : i+1]); err != nil {
				return err
			}
		} else if w.Signaled {
			q.done = append(q.done, verbs.Completion{ID: w.ID, Op: w.Op})
		}
	}
	return nil
}

func (q *nullQueue) take(done []verbs.Completion) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := copy(done, q.done)
	q.done = append(q.done[:0], q.done[n:]...)
	return n
}

func (q *nullQueue) Poll(done []verbs.Completion, spin time.Duration) (int, error) {
	if n := q.take(done); n > 0 {
		return n, nil
	}
	return q.Queue.Poll(done, spin)
}

func (q *nullQueue) Wait(ctx context.Context, done []verbs.Completion) (int, error) {
	if n := q.take(done); n > 0 {
		return n, nil
	}
	return q.Queue.Wait(ctx, done)
}
