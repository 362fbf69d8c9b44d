package client

import (
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
// Was seen to fail without the second look at due in resume, with an acked that is
// set back after a wait, and with arrivals that nobody is told of.
func TestThreads(t *testing.T) {
	const barriers = 3000
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
		if rng.IntN(8) == 0 {
			limit = time.Now().Add(time.Duration(rng.IntN(20)) * time.Microsecond)
		}
		late := r.threads.late(n)
		for late != nil && time.Now().Before(limit) {
			select {
			case <-r.threads.arrived:
			case <-time.After(time.Until(limit)):
			}
			late = r.threads.late(n)
		}
		if late == nil {
			sealing.Store(true)
			runtime.Gosched()
			sealing.Store(false)
		} else {
			if limit == patient {
				t.Fatalf("barrier %d: %s did not come", n, late.name)
			}
			calledOff++
		}
		r.threads.release(n)
	}
	over.Store(true)
	wg.Wait()
	t.Logf("%d changes, %d of %d barriers called off", changes.Load(), calledOff, barriers)
	if calledOff == barriers {
		t.Error("no barrier came about")
	}
}
