package client

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"github.com/rpmemfs/rpmemfs/epoch"
)

const (
	// allowed is acked of a participant between Allow and Prevent.
	allowed = math.MaxUint64
	// gone is due of a region that has ended: no acked equals it.
	gone = math.MaxUint64 - 1
)

// threads is who may store to a region, and the barrier's two numbers. It is the
// protocol of tests/model/threads.pml.
//
// due publishes that everybody has to park; released publishes what was done
// while they were parked. A participant's acked publishes its changes. None is
// ever set back, so that a late reader takes no old number for a new one.
type threads struct {
	due      atomic.Uint64 // newest barrier raised
	_        [56]byte      // every restart point reads due; nothing near it changes
	released atomic.Uint64 // newest barrier released or called off
	losses   atomic.Uint64 // rollbacks so far; stored before released

	arrived chan struct{} // capacity 1: somebody parked since the helper looked

	mu   sync.Mutex // serialises changes of due and released; guards the fields below
	all  map[*Participant]struct{}
	next uint32
	gate chan struct{} // closed and replaced at each release
}

func (t *threads) init(n uint64) {
	t.due.Store(n)
	t.released.Store(n)
	t.arrived = make(chan struct{}, 1)
	t.all = make(map[*Participant]struct{})
	t.gate = make(chan struct{})
}

// raise makes n due, unless the region has ended.
func (t *threads) raise(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.due.Store(max(n, t.due.Load()))
}

// late returns a participant that is not parked for barrier n; nil if all are.
func (t *threads) late(n uint64) *Participant {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.all {
		if acked := p.acked.Load(); acked != n && acked != allowed {
			return p
		}
	}
	return nil
}

// release lets everybody go on who waits for barrier n or an older one.
func (t *threads) release(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.released.Store(max(n, t.released.Load()))
	close(t.gate)
	t.gate = make(chan struct{})
}

// end lets everybody go on for ever; each call takes the slow path from now on.
func (t *threads) end() {
	t.raise(gone)
	t.release(gone)
}

// wait returns when barrier n was released or called off.
func (t *threads) wait(n uint64) {
	for t.released.Load() < n {
		t.mu.Lock()
		gate := t.gate
		t.mu.Unlock()
		if t.released.Load() >= n {
			return
		}
		<-gate
	}
}

// arrive tells the helper to look again.
func (t *threads) arrive() {
	select {
	case t.arrived <- struct{}{}:
	default: // it has not looked since
	}
}

// A Participant is one goroutine that stores to a region. Its methods are for that
// goroutine only.
type Participant struct {
	acked  atomic.Uint64 // barrier at which it parked last, or allowed
	region *Region
	losses uint64 // that it was told of
	id     uint32
	name   string
}

// Join makes the calling goroutine a participant. It waits while a barrier is under
// way; a change may begin when it returns. name says who was late, when a
// barrier had to be called off; its first 15 bytes count.
func (r *Region) Join(name string) *Participant {
	t := &r.threads
	p := &Participant{region: r, name: name, losses: t.losses.Load()}
	p.acked.Store(allowed)
	t.mu.Lock()
	t.next++
	p.id = t.next
	t.all[p] = struct{}{}
	t.mu.Unlock()
	p.resume()
	p.losses = t.losses.Load() // it has seen nothing that was lost
	return p
}

// Leave ends the participation, in or between Allow and Prevent or at a place that
// could be a restart point. The participant is of no more use.
func (p *Participant) Leave() {
	t := &p.region.threads
	t.mu.Lock()
	delete(t.all, p)
	t.mu.Unlock()
	t.arrive()
}

// RestartPoint says that the goroutine holds no half-made change. If a barrier is
// due it waits until the barrier is over; else it is two loads and a comparison.
//
// It returns ErrLost once after a rollback, and an error that matches ErrGone or
// ErrClosed when the region is of no more use.
func (p *Participant) RestartPoint() error {
	if p.region.threads.due.Load() == p.acked.Load() {
		return nil
	}
	return p.park()
}

func (p *Participant) park() error {
	if p.acked.Load() == allowed {
		return p.Prevent()
	}
	t := &p.region.threads
	n := t.due.Load() // once: what is acknowledged is what is waited for
	if n == gone {
		return p.region.Err()
	}
	p.acked.Store(n)
	t.arrive()
	t.wait(n)
	return p.news()
}

// Allow lets barriers pass without the goroutine, which stores nothing to the
// region until Prevent.
func (p *Participant) Allow() {
	t := &p.region.threads
	p.acked.Store(allowed)
	if t.due.Load() > t.released.Load() {
		t.arrive()
	}
}

// Prevent ends what Allow began. If a barrier is under way it waits until that is
// over. Its errors are those of RestartPoint; the goroutine takes part again even
// after an error.
func (p *Participant) Prevent() error {
	p.resume()
	return p.news()
}

// resume makes an allowed participant one that runs.
func (p *Participant) resume() {
	t := &p.region.threads
	for {
		n := t.due.Load()
		t.wait(n)
		if n == gone {
			return
		}
		p.acked.Store(n)
		// The helper stores due, then looks at acked: one of us sees the other.
		if t.due.Load() == n {
			return
		}
		p.acked.Store(allowed)
		t.arrive()
	}
}

// news returns what the goroutine has to know when it goes on.
func (p *Participant) news() error {
	t := &p.region.threads
	if t.due.Load() == gone {
		return p.region.Err()
	}
	if losses := t.losses.Load(); losses != p.losses {
		p.losses = losses
		return ErrLost
	}
	return nil
}

// Checkpoint is a restart point and Region.Checkpoint in one.
func (p *Participant) Checkpoint(ctx context.Context) (epoch.ID, error) {
	p.Allow()
	id, err := p.region.Checkpoint(ctx)
	if perr := p.Prevent(); perr != nil && !errors.Is(err, perr) {
		err = errors.Join(err, perr)
	}
	return id, err
}
