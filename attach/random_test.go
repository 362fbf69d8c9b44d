package attach

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// A party is members that come, store, are late, and go, cleanly or not.
type party struct {
	t    *testing.T
	r    *fakeRegion
	path string
	rng  *rand.Rand

	mu    sync.Mutex // guards slots, which the region's check reads
	slots [4]*fakeMember
	kills int
}

const threadsEach = 2

// enter makes a member in a free slot. Its threads have pages of their own.
func (p *party) enter(slot int) {
	frames := uint32(ring.MinFrames)
	if p.rng.IntN(2) == 0 {
		frames = 1024
	}
	flags := parks
	if p.rng.IntN(8) == 0 {
		flags = wire.RestartPoints // does not track
	}
	m := dial(p.t, p.path, p.r, flags, frames)
	precopy := p.rng.IntN(2) == 0
	m.change(func() { m.precopy = precopy })
	lates := rand.New(rand.NewPCG(p.rng.Uint64(), 0))
	m.atDue(func(n uint64) bool {
		if lates.IntN(40) > 0 {
			return false
		}
		m.send(&wire.Late{N: n, TID: 1})
		return true
	})
	m.await("a welcome", func() bool { return m.welcome != nil })
	p.mu.Lock()
	p.slots[slot] = m
	p.mu.Unlock()
	for i := range uint64(threadsEach) {
		a := uint64(slot)*2*threadsEach + 2*i
		rng := rand.New(rand.NewPCG(p.rng.Uint64(), i))
		m.running.Go(func() { m.thread(a, a+1, rng) })
	}
}

// exit ends the member of a slot.
func (p *party) exit(slot int) {
	p.mu.Lock()
	m := p.slots[slot]
	p.slots[slot] = nil
	p.mu.Unlock()
	if p.rng.IntN(3) == 0 {
		m.detach()
		return
	}
	p.kills++
	m.kill()
}

// threads counts those that run.
func (p *party) threads() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range p.slots {
		if m != nil {
			m.mu.Lock()
			n += m.threads
			m.mu.Unlock()
		}
	}
	return n
}

// Thousands of barriers with all that can come between. The region checks that each
// epoch is memory as it was at the barrier, and that rollbacks find nobody running;
// here it is checked that no epoch holds half a change.
func TestRandomBarriers(t *testing.T) {
	want := 3000
	if testing.Short() {
		want = 300
	}
	p := &party{t: t, r: newFakeRegion(t, 4*2*threadsEach), rng: rand.New(rand.NewPCG(*seed, 1))}
	p.r.running = p.threads
	s, path := serve(t, p.r, func(uint64) time.Duration { return 200 * time.Microsecond })
	p.path = path
	called := uint64(0)
	for begun := time.Now(); ; {
		n, rollbacks := p.r.counts()
		if n >= want {
			t.Logf("%d epochs, %d rollbacks after %d kills, %d called off", n, rollbacks, p.kills, called)
			break
		}
		if time.Since(begun) > 3*time.Minute {
			st, _ := s.Status(testIno)
			t.Fatalf("%d epochs, %d rollbacks: %+v (-seed %d)", n, rollbacks, st, *seed)
		}
		slot := p.rng.IntN(len(p.slots))
		switch {
		case p.slots[slot] == nil:
			p.enter(slot)
		case p.rng.IntN(10) == 0:
			p.exit(slot)
		case p.rng.IntN(10) == 0:
			p.r.set(func() { p.r.failNext["capture"] = unix.ENOSPC })
		case p.rng.IntN(10) == 0:
			p.r.set(func() { p.r.failNext[[]string{"seal", "commit", "barrier"}[p.rng.IntN(3)]] = unix.ENOSPC })
		case p.rng.IntN(10) == 0:
			slow := time.Duration(p.rng.IntN(2)) * 100 * time.Microsecond
			p.r.set(func() { p.r.slow = slow })
		default:
			time.Sleep(time.Duration(p.rng.IntN(3000)) * time.Microsecond)
		}
		if st, ok := s.Status(testIno); ok {
			called = max(called, st.CalledOff)
		}
		b := p.r.image()
		for a := 0; a < len(b); a += 2 * ring.PageSize {
			if string(b[a:a+ring.PageSize]) != string(b[a+ring.PageSize:a+2*ring.PageSize]) {
				t.Fatalf("pages %d and %d: half a change was committed (-seed %d)", a/ring.PageSize, a/ring.PageSize+1, *seed)
			}
		}
		if t.Failed() {
			t.Fatalf("-seed %d", *seed)
		}
	}
	p.r.set(func() { clear(p.r.failNext); p.r.slow = 0 })
	for slot, m := range p.slots {
		if m != nil {
			p.exit(slot)
		}
	}
	if err := s.Settle(t.Context(), testIno); err != nil {
		t.Error(err)
	}
}
