package sim

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/rpmemfs/rpmemfs/remote"
)

// disturb makes faults for some leases' time.
func (w *world) disturb(rng *rand.Rand, kind string) {
	end := w.begun.Add(time.Duration(4+rng.IntN(8)) * w.lease)
	for time.Now().Before(end) && !w.failed() {
		timer := time.NewTimer(time.Duration(30+rng.IntN(900)) * time.Millisecond)
		select {
		case <-w.machine.failed:
			w.counts.cuts.Add(1)
			w.note("node: the power went during a flush")
			w.restart(rng, kind, false)
		case <-w.unsure:
			if rng.IntN(2) == 0 {
				w.counts.cuts.Add(1)
				w.note("node: the power goes after a recovery")
				w.restart(rng, kind, false)
			}
		case <-timer.C:
			w.fault(rng, kind)
		}
		timer.Stop()
	}
}

func (w *world) fault(rng *rand.Rand, kind string) {
	w.mu.Lock()
	var h *host
	if len(w.hosts) > 0 {
		h = w.hosts[rng.IntN(len(w.hosts))]
	}
	w.mu.Unlock()
	switch k := rng.IntN(20); {
	case k == 0:
		w.counts.kills.Add(1)
		w.note("node: killed")
		w.restart(rng, kind, true)
	case k <= 2:
		w.counts.cuts.Add(1)
		w.note("node: the power goes")
		w.restart(rng, kind, false)
	case h == nil:
	case k <= 3:
		w.counts.crashes.Add(1)
		w.note("%s: crashes", h.name)
		h.crash()
	case k <= 4:
		// A commit arrives, but not the flush behind it.
		w.counts.torn.Add(1)
		w.note("%s: crashes in the middle of a commit", h.name)
		h.clip()
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		h.die()
	case k <= 9:
		w.hold(rng, h)
	case k <= 14:
		w.counts.resets.Add(1)
		whole := rng.IntN(2) == 0
		w.note("%s: connections break, at both ends: %v", h.name, whole)
		h.cut(whole)
	case k <= 17:
		w.stall(rng, h)
	default:
		w.replay(rng)
	}
}

// stall makes threads of the memory node that serve a host sleep with what they have
// received. Often the connections break meanwhile, and what the host sends again
// overtakes them.
func (w *world) stall(rng *rand.Rand, h *host) {
	w.counts.stalls.Add(1)
	w.note("node: is slow for %s", h.name)
	h.change(func() {
		h.lagUntil = time.Now().Add(time.Duration(rng.Int64N(int64(w.lease / 2))))
		h.lag = time.Duration(rng.Int64N(int64(3 * w.lease)))
	})
	if rng.IntN(2) == 0 {
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		h.change(func() { h.lagUntil = time.Time{} })
		h.cut(rng.IntN(3) == 0)
	}
}

// replay sends once more what a session sent that is over.
func (w *world) replay(rng *rand.Rand) {
	w.mu.Lock()
	tenures := slices.Clone(w.tenures)
	w.mu.Unlock()
	rng.Shuffle(len(tenures), func(i, j int) { tenures[i], tenures[j] = tenures[j], tenures[i] })
	for _, t := range tenures {
		if t.fenced() {
			w.counts.replays.Add(1)
			w.note("%s: what it sent arrives again", t.host.name)
			which := rng.Int()
			w.background.Go(func() { t.host.replay(which) })
			return
		}
	}
}

// hold makes nothing pass for a while, or in one direction.
func (w *world) hold(rng *rand.Rand, h *host) {
	to, from := true, true
	switch rng.IntN(4) {
	case 0:
		to = false
	case 1:
		from = false
	}
	d := time.Duration(rng.Int64N(int64(w.lease / 2)))
	if rng.IntN(2) == 0 {
		d = w.lease + time.Duration(rng.Int64N(int64(2*w.lease)))
	}
	w.counts.partitions.Add(1)
	w.note("%s: nothing passes for %v, to the node: %v, from it: %v", h.name, d, to, from)
	h.hold(to, from)
	w.background.Go(func() {
		select {
		case <-time.After(d):
		case <-w.over:
		}
		h.hold(false, false)
		w.note("%s: bytes pass again", h.name)
	})
}

// restart ends the memory node's life and begins another one.
func (w *world) restart(rng *rand.Rand, kind string, power bool) {
	w.machine.kill(power)
	d := time.Duration(rng.Int64N(int64(w.lease / 3)))
	if rng.IntN(4) == 0 {
		d = time.Duration(rng.Int64N(int64(3 * w.lease)))
	}
	time.Sleep(d)
	w.note("node: starts")
	if err := w.machine.start(w.lease, nextCut(rng), kind); err != nil {
		w.fail("start the memory node: %v", err)
	}
}

// last takes every share over once more, without faults, and looks at everything.
func (w *world) last(rng *rand.Rand, kind string) {
	if w.failed() {
		return
	}
	w.note("the last look")
	w.machine.kill(rng.IntN(2) == 0)
	if err := w.machine.start(w.lease, -1, kind); err != nil {
		w.fail("start the memory node: %v", err)
		return
	}
	for _, s := range w.shares {
		t := w.open(rng, "last", w.net.newCompute("last"), s, remote.Config{Steal: true})
		if t == nil {
			w.fail("%s: the last look does not open it", s.name)
			continue
		}
		if t.recover() != nil {
			w.fail("%s: the last look does not see all", s.name)
			t.abandon()
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(t.handles)) {
			if _, err := t.volume.Check(ctx, t.handles[name].Ino(), nil); err != nil {
				w.fail("%s: check %s: %v", s.name, name, err)
			}
			if stamp, err := t.store(name); err != nil || t.commit(name, stamp) != nil {
				w.fail("%s: the last commit of %s does not succeed", s.name, name)
			}
		}
		if err := t.pool.Check(ctx, func(problem string) { w.fail("check: %s", problem) }); err != nil {
			w.fail("check: %v", err)
		}
		t.end()
	}
}
