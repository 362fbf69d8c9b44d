package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// seed is the same in every package, so that all take it at once.
var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")

const testIno = 42

const parks = wire.Tracks | wire.RestartPoints

// serve runs a server of one file until the test ends, and returns its socket.
func serve(t *testing.T, r *fakeRegion, interval func(uint64) time.Duration) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	paused := func(d time.Duration) { r.set(func() { r.pauses = append(r.pauses, d) }) }
	s := NewServer(Config{Regions: r, Interval: interval, Errno: testErrno, Paused: paused})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			stacks := make([]byte, 1<<20)
			t.Errorf("the server does not end\n%s", stacks[:runtime.Stack(stacks, true)])
		}
		r.set(func() {
			if r.attached != 0 {
				t.Errorf("%d attachments left", r.attached)
			}
		})
	})
	return s, path
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for begun := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("never: " + what)
		}
	}
}

// One member: its stores commit at a barrier, from a request and from the daemon.
func TestCheckpoint(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	if _, handled, err := s.Checkpoint(t.Context(), testIno); handled || err != nil {
		t.Errorf("without members: handled %v, %v", handled, err)
	}
	m := join(t, path, r, parks, ring.MinFrames)
	m.store(3, 1)
	if res := m.request(7, 0); res.Errno != 0 || res.Epoch != 1 {
		t.Errorf("got %+v", res)
	}
	m.store(3, 2)
	id, handled, err := s.Checkpoint(t.Context(), testIno)
	if id != 2 || !handled || err != nil {
		t.Errorf("got epoch %d, %v, %v", id, handled, err)
	}
	m.await("COMMITTED", func() bool { return m.committed == 2 })
	st, ok := s.Status(testIno)
	if !ok || len(st.Members) != 1 || st.Members[0].PID != os.Getpid() || st.Members[0].Name != "fake" ||
		!st.Members[0].Tracks || st.Last.Epoch != 2 || st.Last.Copied != 1 || st.Last.Pause <= 0 || st.Last.Drained {
		t.Errorf("got status %+v", st)
	}
	r.set(func() {
		if len(r.pauses) != 2 || r.pauses[1] != st.Last.Pause {
			t.Errorf("pauses %v of two barriers, the last %v", r.pauses, st.Last.Pause)
		}
	})
	m.detach()
	eventually(t, "the group ends", func() bool { _, ok := s.Status(testIno); return !ok })
	if _, rollbacks := r.counts(); rollbacks != 0 {
		t.Errorf("%d rollbacks", rollbacks)
	}
}

// Members that park no threads get barriers by request only.
func TestCommitOnly(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, func(uint64) time.Duration { return time.Millisecond })
	m := join(t, path, r, wire.Tracks|wire.CommitOnly, ring.MinFrames)
	m.store(0, 5)
	if _, handled, err := s.Checkpoint(t.Context(), testIno); handled || err != nil {
		t.Errorf("handled %v, %v", handled, err)
	}
	time.Sleep(20 * time.Millisecond)
	if n, _ := r.counts(); n != 0 {
		t.Errorf("%d epochs that nobody asked for", n)
	}
	if res := m.request(1, 0); res.Errno != 0 || res.Epoch != 1 {
		t.Errorf("got %+v", res)
	}
}

// A connection of a preloaded program that ends while the process lives is exec.
func TestExec(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	other := join(t, path, r, parks, ring.MinFrames)
	m := join(t, path, r, wire.Tracks|wire.CommitOnly, ring.MinFrames)
	m.store(1, 1)
	m.kill() // this process lives on
	eventually(t, "one member", func() bool { st, _ := s.Status(testIno); return len(st.Members) == 1 })
	if res := other.request(1, 0); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
	if st, _ := s.Status(testIno); !st.Last.Drained || st.Rollbacks != 0 {
		t.Errorf("got %+v", st)
	}
	if b := r.image(); b[ring.PageSize] != 1 {
		t.Errorf("committed %d", b[ring.PageSize])
	}
}

// Who ends is not taken for one that called exec, however long the end takes.
func TestDying(t *testing.T) {
	if dying(os.Getpid()) || dying(0) {
		t.Error("a process that lives is dying")
	}
	c := exec.Command("cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := &peer{pid: c.Process.Pid}
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	defer p.close()
	if dying(p.pid) || p.gone() {
		t.Error("a process that lives is dying, or gone")
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dying, and nobody has waited for it", func() bool { return dying(p.pid) })
	eventually(t, "it is gone", p.gone)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if dying(p.pid) {
		t.Error("a process that was waited for is dying")
	}
}

// With an interval epochs come by themselves, and never faster.
func TestInterval(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, func(uint64) time.Duration { return 20 * time.Millisecond })
	begun := time.Now()
	m := join(t, path, r, parks, ring.MinFrames)
	if m.welcome.Interval != uint64(20*time.Millisecond) {
		t.Errorf("interval %d", m.welcome.Interval)
	}
	m.await("ten epochs", func() bool { return m.committed >= 10 })
	if d := time.Since(begun); d < 200*time.Millisecond {
		t.Errorf("ten epochs in %v", d)
	}
}

// Without work nothing runs; with an interval, and nothing stored, ever less.
func TestIdle(t *testing.T) {
	var asked atomic.Int64
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, func(uint64) time.Duration { asked.Add(1); return 0 })
	join(t, path, r, parks, ring.MinFrames)
	time.Sleep(50 * time.Millisecond)
	if n := asked.Load(); n > 20 {
		t.Errorf("the group looked for work %d times", n)
	}

	const interval = 10 * time.Millisecond
	r = newFakeRegion(t, 8)
	_, path = serve(t, r, func(uint64) time.Duration { return interval })
	begun := time.Now()
	join(t, path, r, parks, ring.MinFrames)
	const some, least = 6, 1 + 2 + 4 + 8 + 8 // pauses between them, in intervals
	eventually(t, "some epochs", func() bool { n, _ := r.counts(); return n >= some })
	if d := time.Since(begun); d < least*interval {
		t.Errorf("%d epochs without a store in %v", some, d)
	}
}

// What makes the kernel's write-back necessary, and for how long.
func TestDrain(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	drained := func(m *fakeMember, want bool) {
		t.Helper()
		if res := m.request(uint64(time.Now().UnixNano()), 0); res.Errno != 0 {
			t.Fatalf("got %+v", res)
		}
		if st, _ := s.Status(testIno); st.Last.Drained != want {
			t.Errorf("drained: %v, want %v", st.Last.Drained, want)
		}
	}
	m := join(t, path, r, parks, ring.MinFrames)
	drained(m, false)

	m.store(1, 1)
	m.change(func() { clear(m.written) })
	m.send(&wire.Untracked{})
	drained(m, true)
	drained(m, false)

	other := join(t, path, r, parks, ring.MinFrames)
	other.store(2, 2)
	other.detach()
	eventually(t, "one member, which alone has the file open", func() bool {
		st, _ := s.Status(testIno)
		attached := 0
		r.set(func() { attached = r.attached })
		return len(st.Members) == 1 && attached == 1
	})
	drained(m, true)
	drained(m, false)

	r.set(func() { r.untracked = true })
	drained(m, true)
	r.set(func() { r.untracked = false })
	drained(m, false)

	blind := join(t, path, r, wire.RestartPoints, ring.MinFrames)
	blind.store(3, 3)
	blind.change(func() { clear(blind.written) })
	drained(m, true)
	blind.detach()
}

// Pages that the seal names are copied again, and too many are written back instead.
func TestExtraPages(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	m.store(1, 1)
	m.change(func() { clear(m.written) }) // as if a stale copy were on its way
	r.set(func() { r.extra = []uint64{1} })
	if res := m.request(1, 0); res.Errno != 0 {
		t.Fatalf("got %+v", res)
	}
	m.store(2, 2)
	m.change(func() { clear(m.written) })
	r.set(func() { r.extra = make([]uint64, wire.MaxPages+1) })
	if res := m.request(2, 0); res.Errno != 0 {
		t.Fatalf("got %+v", res)
	}
	if st, _ := s.Status(testIno); !st.Last.Drained || st.CalledOff != 1 {
		t.Errorf("got %+v", st)
	}
}

// A late thread calls the barrier off, by name; the epoch stays open.
func TestLate(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	other := join(t, path, r, parks, ring.MinFrames)
	m.atDue(func(n uint64) bool {
		m.atDue(nil)
		m.send(&wire.Late{N: n, TID: 77, Name: "slow\x1b"})
		return true
	})
	m.store(0, 9)
	if res := other.request(1, 0); res.Errno != unix.ETIMEDOUT || res.LateTID != 77 {
		t.Errorf("got %+v", res)
	}
	other.await("RELEASE", func() bool { return other.released == 1 && other.calledOff[unix.ETIMEDOUT] == 1 })
	st, _ := s.Status(testIno)
	if want := (LateError{PID: os.Getpid(), TID: 77, Name: "slow?"}); st.Late != want || st.LateN != 1 || st.CalledOff != 1 {
		t.Errorf("got %+v", st)
	}
	if res := other.request(2, 0); res.Errno != 0 || res.Epoch != 1 {
		t.Errorf("got %+v", res)
	}
	m.atDue(func(n uint64) bool { m.send(&wire.Late{N: n, TID: 78}); return true })
	_, handled, err := s.Checkpoint(t.Context(), testIno)
	var who *LateError
	if !handled || !errors.As(err, &who) || !errors.Is(err, ErrLate) || who.TID != 78 {
		t.Errorf("got %v, %v", handled, err)
	}
}

// A member that says nothing calls the barrier off after its time-out and a second.
// Then requests fail at once, until it has read what it was sent.
func TestSilent(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	other := join(t, path, r, parks, ring.MinFrames)
	hang := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(goOn)
	m.atDue(func(n uint64) bool { <-hang; return false })
	res := other.request(1, 10*time.Millisecond)
	if res.Errno != unix.ETIMEDOUT || res.LateTID != uint32(os.Getpid()) {
		t.Errorf("got %+v", res)
	}
	if res := other.request(2, time.Minute); res.Errno != unix.ETIMEDOUT { // or request has no patience
		t.Errorf("got %+v", res)
	}
	goOn()
	eventually(t, "it answers", func() bool { return other.request(uint64(time.Now().UnixNano()), 0).Errno == 0 })
	if st, _ := s.Status(testIno); st.Late.PID != os.Getpid() || st.Late.TID != 0 {
		t.Errorf("got %+v", st)
	}
}

// A death in each phase: the epoch is rolled back with the survivor parked, who is
// told, once. A member that was DONE dies without harm to the sealed epoch.
func TestDeath(t *testing.T) {
	for _, phase := range []string{"idle", "parking", "draining", "copying", "after done"} {
		t.Run(phase, func(t *testing.T) {
			r := newFakeRegion(t, 8)
			s, path := serve(t, r, nil)
			victim := join(t, path, r, parks, ring.MinFrames)
			m := join(t, path, r, parks, ring.MinFrames)
			if res := m.request(1, 0); res.Errno != 0 {
				t.Fatalf("got %+v", res)
			}
			victim.store(1, 1)
			m.store(2, 2)
			die := func() bool { go victim.kill(); return true }
			want := unix.EOWNERDEAD
			wantMem := byte(0)
			switch phase {
			case "idle":
				victim.kill()
			case "parking":
				victim.atDue(func(uint64) bool { return die() })
			case "draining":
				r.set(func() { r.untracked = true })
				victim.atDrain(func(uint64) bool { return die() })
			case "copying":
				victim.atGo(func(*wire.Go) bool { return die() })
			case "after done":
				victim.atGo(func(g *wire.Go) bool { victim.goOn(g); return die() })
				want, wantMem = 0, 2
			}
			if phase != "idle" {
				if res := m.request(2, 0); res.Errno != want {
					t.Errorf("got %+v, want %v", res, want)
				}
			}
			m.await("LOST", func() bool { return m.losses == 1 && m.calledOff[unix.EOWNERDEAD] == 1 })
			if a, b := r.peek(1), r.peek(2); b != wantMem || a != wantMem/2 {
				t.Errorf("memory: %d, %d", a, b)
			}
			r.set(func() { r.untracked = false })
			m.store(2, 7)
			if res := m.request(3, 0); res.Errno != 0 {
				t.Errorf("got %+v", res)
			}
			if b := r.image(); b[2*ring.PageSize] != 7 {
				t.Errorf("committed %d", b[2*ring.PageSize])
			}
			st, _ := s.Status(testIno)
			if len(st.Members) != 1 || st.Rollbacks != 1 || m.told() != 1 {
				t.Errorf("%d members, %d rollbacks, told %d times", len(st.Members), st.Rollbacks, m.told())
			}
		})
	}
}

// The last member dies: rollback at once, before anybody attaches again.
func TestDeathOfTheLast(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	m.store(1, 1)
	m.copyOut(nil)
	m.kill()
	if err := s.Settle(t.Context(), testIno); err != nil {
		t.Fatal(err)
	}
	if _, rollbacks := r.counts(); rollbacks != 1 {
		t.Errorf("%d rollbacks when settled", rollbacks)
	}
	next := join(t, path, r, parks, ring.MinFrames)
	if r.peek(1) != 0 {
		t.Error("a new member sees what was lost")
	}
	if res := next.request(1, 0); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
	if next.told() != 0 {
		t.Error("told of a loss before its time")
	}
}

// A page that is on its way out of a dead member's ring does not outlive the
// rollback.
func TestDeathDuringCapture(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	reached, on := make(chan struct{}), make(chan struct{})
	r.set(func() { r.onSize = sync.OnceFunc(func() { close(reached); <-on }) })
	m.store(1, 1)
	m.copyOut(nil)
	<-reached
	m.kill()
	if err := s.Settle(t.Context(), testIno); err != nil {
		t.Fatal(err)
	}
	close(on)
	eventually(t, "the group ends", func() bool { _, ok := s.Status(testIno); return !ok })
	r.set(func() {
		if r.captures > 0 || r.rollbacks != 1 {
			t.Errorf("%d captures, %d rollbacks", r.captures, r.rollbacks)
		}
	})
}

// What is stored after RELEASE is of the next epoch, also while the sealed one is
// still being taken.
func TestStoreAfterRelease(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	other := join(t, path, r, parks, ring.MinFrames)
	var calls atomic.Int32
	on := make(chan struct{})
	r.set(func() {
		r.onSize = func() {
			if calls.Add(1) == 1 {
				<-on
			}
		}
	})
	m.store(1, 1)
	m.send(&wire.Request{ID: 1})
	other.await("RELEASE", func() bool { return other.released == 1 && other.epoch == 1 })
	other.store(2, 2)
	other.copyOut(nil)
	eventually(t, "the copy is taken", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.captures == 1
	})
	close(on)
	m.await("a result", func() bool { return m.results[1] != nil && m.results[1].Errno == 0 })
	if b := r.image(); b[1*ring.PageSize] != 1 || b[2*ring.PageSize] != 0 {
		t.Errorf("committed %d, %d", b[ring.PageSize], b[2*ring.PageSize])
	}
	if res := m.request(2, 0); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
}

// A survivor that is late delays the rollback, not more: nothing commits meanwhile,
// requests and Settle return.
func TestDeathAndLate(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	victim := join(t, path, r, parks, ring.MinFrames)
	m := join(t, path, r, parks, ring.MinFrames)
	m.register() // a thread that does not park
	victim.store(1, 1)
	tries := make(chan struct{}, 100)
	m.atDue(func(n uint64) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.threads > 0 {
			tries <- struct{}{}
			m.send(&wire.Late{N: n, TID: 5})
			return true
		}
		return false
	})
	victim.kill()
	<-tries
	<-tries
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Settle(ctx, testIno); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if res := m.request(1, 0); res.Errno != unix.ETIMEDOUT || res.LateTID != 5 {
		t.Errorf("got %+v", res)
	}
	if n, rollbacks := r.counts(); n+rollbacks != 0 {
		t.Errorf("%d epochs, %d rollbacks", n, rollbacks)
	}
	joiner := dial(t, path, r, parks, ring.MinFrames)
	if !m.park(func() bool { return m.losses == 0 }) {
		t.Fatal("the member is out")
	}
	joiner.await("a welcome", func() bool { return joiner.welcome != nil && joiner.welcome.Errno == 0 })
	if joiner.told() != 0 {
		t.Error("the joiner was told of a loss before its time")
	}
}

// A full pool drops a captured page: that barrier fails, the next gets the page from
// the kernel.
func TestCaptureFails(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	m.store(1, 1)
	r.set(func() { r.failNext["capture"] = unix.ENOSPC })
	if res := m.request(1, 0); res.Errno != unix.ENOSPC {
		t.Errorf("got %+v", res)
	}
	if res := m.request(2, 0); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
	if st, _ := s.Status(testIno); !st.Last.Drained {
		t.Error("the page came from nowhere")
	}
	if b := r.image(); b[ring.PageSize] != 1 {
		t.Errorf("committed %d", b[ring.PageSize])
	}
}

// What fails in the region reaches who asked.
func TestRegionFails(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	for i, op := range []string{"barrier", "seal", "commit"} {
		m.store(1, uint64(i+1))
		r.set(func() { r.failNext[op] = unix.ENOSPC })
		if res := m.request(uint64(i), 0); res.Errno != unix.ENOSPC {
			t.Errorf("%s: got %+v", op, res)
		}
	}
	if res := m.request(9, 0); res.Errno != 0 || res.Epoch != 1 {
		t.Errorf("got %+v", res)
	}
	r.set(func() { r.failNext["commit"] = epoch.ErrPoisoned })
	if _, handled, err := s.Checkpoint(t.Context(), testIno); !handled || !errors.Is(err, epoch.ErrPoisoned) {
		t.Errorf("got %v, %v", handled, err)
	}
	m.await("GONE", func() bool { return m.gone == unix.EIO && m.eof })
	late := dial(t, path, r, parks, ring.MinFrames)
	late.await("a refusal", func() bool { return late.welcome != nil && late.welcome.Errno == unix.EIO })
}

// A rollback that fails leaves nobody in doubt.
func TestRollbackFails(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, nil)
	victim := join(t, path, r, parks, ring.MinFrames)
	m := join(t, path, r, parks, ring.MinFrames)
	r.set(func() { r.failNext["rollback"] = unix.EIO })
	victim.kill()
	m.await("GONE", func() bool { return m.gone == unix.EIO && m.eof })
}

// A member waits its turn while a barrier is under way.
func TestJoinDuringBarrier(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	reached, on := make(chan struct{}), make(chan struct{})
	m.atDue(func(n uint64) bool { close(reached); <-on; m.atDue(nil); return false })
	m.send(&wire.Request{ID: 1, Timeout: uint64(patience)})
	<-reached
	joiner := dial(t, path, r, parks, ring.MinFrames)
	time.Sleep(20 * time.Millisecond)
	joiner.mu.Lock()
	if joiner.welcome != nil {
		t.Error("welcome in the middle of a barrier")
	}
	joiner.mu.Unlock()
	gone := dial(t, path, r, parks, ring.MinFrames)
	gone.kill() // it stored nothing
	close(on)
	joiner.await("a welcome", func() bool { return joiner.welcome != nil })
	if joiner.welcome.N != 1 || joiner.welcome.Epoch != 1 {
		t.Errorf("got %+v", joiner.welcome)
	}
	joiner.store(3, 3)
	if res := joiner.request(1, 0); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
	if _, rollbacks := r.counts(); rollbacks != 0 {
		t.Errorf("%d rollbacks", rollbacks)
	}
}

// Requests that come during a barrier share the next one.
func TestMergedRequests(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	reached, on := make(chan struct{}), make(chan struct{})
	m.atDue(func(n uint64) bool { m.atDue(nil); close(reached); <-on; return false })
	m.send(&wire.Request{ID: 1, Timeout: uint64(patience)})
	<-reached
	for id := range uint64(20) {
		m.send(&wire.Request{ID: 2 + id})
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if id, _, err := s.Checkpoint(t.Context(), testIno); id != 2 || err != nil {
				t.Errorf("got epoch %d, %v", id, err)
			}
		})
	}
	eventually(t, "all wait", func() bool {
		g := s.group(testIno)
		g.driveMu.Lock()
		defer g.driveMu.Unlock()
		return len(g.machine.waiting) == 25
	})
	close(on)
	wg.Wait()
	m.await("all results", func() bool { return len(m.results) == 21 })
	for id, res := range m.results {
		want := uint64(2)
		if id == 1 {
			want = 1
		}
		if res.Errno != 0 || res.Epoch != want {
			t.Errorf("result %d: %+v", id, res)
		}
	}
	// And there is a limit.
	reached, on = make(chan struct{}), make(chan struct{})
	m.atDue(func(n uint64) bool { m.atDue(nil); close(reached); <-on; return false })
	m.send(&wire.Request{ID: 100, Timeout: uint64(patience)})
	<-reached
	for id := range uint64(maxRequests + 3) {
		m.send(&wire.Request{ID: 1000 + id})
	}
	close(on)
	m.await("all results", func() bool { return len(m.results) == 21+1+maxRequests+3 })
	if res := m.results[1000+maxRequests+2]; res.Errno != unix.EAGAIN {
		t.Errorf("one too many: %+v", res)
	}
}

// Nonsense puts a member out, and counts as its death.
func TestProtocolErrors(t *testing.T) {
	for name, f := range map[string]func(m *fakeMember){
		"garbage":         func(m *fakeMember) { _, _ = m.conn.Write([]byte("hello")) },
		"a long message":  func(m *fakeMember) { _, _ = m.conn.Write(make([]byte, 4096)) },
		"daemon's words":  func(m *fakeMember) { m.send(&wire.Committed{}) },
		"HELLO again":     func(m *fakeMember) { m.send(&wire.Hello{}) },
		"READY too early": func(m *fakeMember) { m.send(&wire.Ready{N: 1}) },
		"DONE too early":  func(m *fakeMember) { m.send(&wire.Done{N: 1}) },
		"DONE for READY": func(m *fakeMember) {
			m.atDue(func(n uint64) bool { m.send(&wire.Done{N: n}); return true })
			m.send(&wire.Request{ID: 1})
		},
		"an empty position": func(m *fakeMember) {
			m.atGo(func(g *wire.Go) bool { m.send(&wire.Done{N: g.N, Upto: 5}); return true })
			m.send(&wire.Request{ID: 1})
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			r := newFakeRegion(t, 8)
			_, path := serve(t, r, nil)
			other := join(t, path, r, parks, ring.MinFrames)
			m := join(t, path, r, parks, ring.MinFrames)
			f(m)
			m.await("GONE", func() bool { return m.gone == unix.EPROTO && m.eof })
			other.await("LOST", func() bool { return other.losses == 1 })
			if res := other.request(1, 0); res.Errno != 0 {
				t.Errorf("got %+v", res)
			}
		})
	}
}

// No member makes the daemon wait for more of its ring than there is.
func TestDoneBeyondRing(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	on := make(chan struct{})
	r.set(func() { r.onSize = func() { <-on } }) // the consumer is busy
	defer close(on)
	m.store(1, 1)
	m.copyOut(nil)
	m.atGo(func(g *wire.Go) bool { m.send(&wire.Done{N: g.N, Upto: ring.MinFrames + 2}); return true })
	m.send(&wire.Request{ID: 1})
	m.await("GONE", func() bool { return m.gone == unix.EPROTO })
}

// What a hostile member puts into its ring changes at most the file, and never by a
// copy from the future.
func TestHostileEntries(t *testing.T) {
	r := newFakeRegion(t, 8)
	_, path := serve(t, r, nil)
	m := join(t, path, r, parks, ring.MinFrames)
	mem, err := unix.Mmap(int(m.ring.File().Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	entries := []ring.Entry{
		{Page: 8, When: 1}, {Page: 1 << 52, When: 1}, {Page: 1<<64 - 1, When: 1},
		{Page: 2, When: 1<<63 - 1, Tag: 1<<64 - 1}, {Page: 2, When: 1},
	}
	for i, e := range entries {
		d := mem[4096+32*i:]
		binary.LittleEndian.PutUint64(d[8:], e.Page)
		binary.LittleEndian.PutUint64(d[16:], uint64(e.When))
		binary.LittleEndian.PutUint64(d[24:], e.Tag)
		binary.LittleEndian.PutUint64(d, uint64(i+1))
	}
	m.atGo(func(g *wire.Go) bool {
		m.send(&wire.Done{N: g.N, Upto: uint64(len(entries)), PauseNs: 1<<64 - 1})
		return true
	})
	if res := m.request(1, 1<<63-1); res.Errno != 0 {
		t.Errorf("got %+v", res)
	}
	r.set(func() {
		if r.captures != 2 {
			t.Errorf("%d pages captured, want 2", r.captures)
		}
	})
}

// Refusals.
func TestRefused(t *testing.T) {
	r := newFakeRegion(t, 8)
	s, path := serve(t, r, nil)
	refused := func(want unix.Errno, flags wire.Flags) {
		t.Helper()
		m := dial(t, path, r, flags, ring.MinFrames)
		m.await("a refusal", func() bool { return m.welcome != nil && m.eof })
		if m.welcome.Errno != want {
			t.Errorf("got %v, want %v", m.welcome.Errno, want)
		}
	}
	refused(unix.EINVAL, wire.RestartPoints|wire.CommitOnly)
	r.set(func() { r.failNext["attach"] = os.ErrPermission })
	refused(unix.EACCES, parks)
	r.set(func() { r.failNext["attach"] = context.DeadlineExceeded })
	refused(unix.ETIMEDOUT, parks)
	r.set(func() { r.poison = epoch.ErrPoisoned })
	refused(unix.EIO, parks)
	r.set(func() { r.poison = nil })

	// Without a ring, or with something else, nobody is answered.
	for _, oob := range [][]byte{nil, unix.UnixRights(0), unix.UnixRights(0, 1, 2, 0, 1)} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := wire.Append(nil, &wire.Hello{Ino: testIno, Frames: 64})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.WriteMsgUnix(b, oob, nil); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %d bytes, %v", n, err)
		}
		conn.Close()
	}
	if _, ok := s.Status(testIno); ok {
		t.Error("a group without members")
	}
}

// The end of the server reaches the members.
func TestStop(t *testing.T) {
	r := newFakeRegion(t, 8)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Regions: r})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	m := join(t, path, r, parks, ring.MinFrames)
	reached := make(chan struct{})
	m.atDue(func(uint64) bool { close(reached); return true })
	call := make(chan error, 1)
	go func() { _, _, err := s.Checkpoint(t.Context(), testIno); call <- err }()
	<-reached
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := <-call; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	m.await("GONE", func() bool { return m.gone == unix.EIO && m.eof })
	r.set(func() {
		if r.attached != 0 {
			t.Errorf("%d attachments left", r.attached)
		}
	})
}

// The pace of epochs that nobody asked for.
func TestPace(t *testing.T) {
	start := time.Now()
	p := pace{began: start}
	after := func(want time.Duration) {
		t.Helper()
		if got := p.next(time.Second).Sub(start); got != want {
			t.Errorf("next after %v, want %v", got, want)
		}
	}
	after(time.Second)
	p.over(nil, true)
	after(2 * time.Second)
	p.over(nil, true)
	p.over(nil, true)
	p.over(nil, true)
	after(8 * time.Second)
	p.over(nil, false)
	after(time.Second)
	p.ended = start.Add(3 * time.Second) // the commit took that long
	after(3 * time.Second)
	p.over(ErrLate, false)
	p.ended, p.rest = start.Add(3*time.Second), 3*time.Second
	after(6 * time.Second)
}
