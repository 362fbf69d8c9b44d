package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Goroutines join, change, pause and leave at random while barriers are raised,
// released and called off: no change falls into a seal, and nobody hangs.
//
// Was seen to fail without the wait and without the second look at due in resume,
// with a second load of due in park, and with arrivals in Allow and Leave that
// nobody is told of.
func TestThreads(t *testing.T) {
	const barriers = 10000
	r := &Region{}
	r.threads.init(0)
	var sealing, over atomic.Bool
	var changes atomic.Uint64
	change := func() {
		for range 2 {
			if sealing.Load() {
				t.Error("a change fell into a seal")
			}
			runtime.Gosched()
		}
		changes.Add(1)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		rng := rand.New(rand.NewPCG(*seed, uint64(i)))
		wg.Go(func() {
			for !over.Load() && !t.Failed() {
				p := r.Join(fmt.Sprint(i))
				for range rng.IntN(50) {
					switch rng.IntN(4) {
					case 0:
						p.Allow()
						runtime.Gosched()
						if err := p.Prevent(); err != nil {
							t.Error(err)
						}
						change()
					default:
						change()
						if err := p.RestartPoint(); err != nil {
							t.Error(err)
						}
					}
				}
				p.Leave()
			}
		})
	}
	rng := rand.New(rand.NewPCG(*seed, 99))
	calledOff := 0
	for n := uint64(1); n <= barriers && !t.Failed(); n++ {
		r.threads.raise(n)
		patient := time.Now().Add(patience)
		limit := patient
		if rng.IntN(3) == 0 {
			limit = time.Now().Add(time.Duration(rng.IntN(5)) * time.Microsecond)
		}
		late := r.threads.late(n)
		for late != nil && time.Now().Before(limit) {
			select {
			case <-r.threads.arrived:
			case <-time.After(time.Until(limit)):
				if limit == patient {
					t.Errorf("barrier %d: nobody said that %s came", n, late.name)
				}
			}
			late = r.threads.late(n)
		}
		if late == nil {
			sealing.Store(true)
			for range 4 {
				runtime.Gosched()
			}
			sealing.Store(false)
		} else {
			calledOff++
		}
		r.threads.release(n)
		// Else those that join, or end a pause, find the next barrier each time.
		for some := changes.Load() + rng.Uint64N(20); changes.Load() < some && !t.Failed(); {
			runtime.Gosched()
		}
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d changes, %d of %d barriers called off", changes.Load(), calledOff, barriers)
	if calledOff == barriers {
		t.Error("no barrier came about")
	}
}

// The end is the end: a release that comes late sets nothing back.
func TestEnd(t *testing.T) {
	r := &Region{err: ErrClosed}
	r.threads.init(0)
	p := r.Join("p")
	r.threads.end()
	r.threads.raise(5)
	r.threads.release(5)
	r.threads.wait(100)
	if err := p.RestartPoint(); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	p.Leave()
}
