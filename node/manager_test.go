package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A lease lasts while it is kept alive, and its time-out longer.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		s := mustOpen(t, m, request(2, "a"))
		for range 20 {
			time.Sleep(9 * time.Second)
			if err := m.keepAlive(s.id(), s.token); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10*time.Second - time.Nanosecond)
		if _, err := m.session(s.id(), s.token); err != nil {
			t.Fatalf("just before its end: %v", err)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		wantFenced(t, m, s)
		if err := m.keepAlive(s.id(), s.token); !strings.Contains(fmt.Sprint(err), "not kept alive for 10s") {
			t.Errorf("the holder is not told why: %v", err)
		}
		if len(st.leases) != 0 {
			t.Errorf("still recorded: %v", st.leases)
		}
		mustOpen(t, m, request(2, "b"))
	})
}

// A keep-alive that comes after the lease's end does not revive it, also when the
// timer is late.
func TestLateKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		s := mustOpen(t, m, request(2, "a"))
		s.timer.Stop()
		time.Sleep(10 * time.Second)
		wantFenced(t, m, s)
	})
}

// A node that was paused itself gives those who may have knocked meanwhile as much
// time as it was late, but only once.
func TestPausedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		a, b := mustOpen(t, m, request(2, "a")), mustOpen(t, m, request(3, "b"))
		a.timer.Stop()
		b.timer.Stop()
		time.Sleep(15 * time.Second)
		m.expire(a)
		m.expire(b)
		time.Sleep(5*time.Second - time.Nanosecond)
		if err := m.keepAlive(a.id(), a.token); err != nil {
			t.Errorf("who knocks after the pause: %v", err)
		}
		if _, err := m.session(b.id(), b.token); err != nil {
			t.Errorf("within the respite: %v", err)
		}
		b.timer.Stop()
		time.Sleep(5 * time.Second)
		wantFenced(t, m, b) // late again, but no respite
		a.timer.Stop()
		time.Sleep(time.Hour)
		m.expire(a)
		time.Sleep(10 * time.Second) // no longer than the lease
		synctest.Wait()
		wantFenced(t, m, a)
		if st := m.stats(); st.Granted != 2 || st.Expired != 2 || st.KeptAlive != 1 || st.Sessions != 0 {
			t.Errorf("stats: got %+v", st)
		}
	})
}

// Nobody gets a session with another token, or another's number.
func TestForeignTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		a, b := mustOpen(t, m, request(2, "a")), mustOpen(t, m, request(3, "b"))
		flipped := a.token
		flipped[len(flipped)-1] ^= readOnlyBit
		for name, try := range map[string]struct {
			id    sessionID
			token token
		}{
			"no token":        {a.id(), token{}},
			"another's token": {a.id(), b.token},
			"no session":      {sessionID{}, a.token},
			"other rights":    {a.id(), flipped},
		} {
			if _, err := m.session(try.id, try.token); !errors.Is(err, rdmacache.ErrFenced) {
				t.Errorf("%s: got %v", name, err)
			}
			if err := m.close(t.Context(), try.id, try.token); !errors.Is(err, rdmacache.ErrFenced) {
				t.Errorf("%s: close: got %v", name, err)
			}
		}
		if err := m.keepAlive(a.id(), a.token); err != nil {
			t.Error(err)
		}
	})
}

// A holder who is paused in the middle of an access loses the lease, but nobody
// gets it before the access has ended; nothing that the holder does later gets
// through.
func TestPausedHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		a := mustOpen(t, m, request(2, "a"))
		data, err := (dataSessions{m, new(dataWork)}).Session(a.token)
		if err != nil {
			t.Fatal(err)
		}
		under := st.fences[2]
		under.gate <- struct{}{} // an access is under way
		next := request(2, "b")
		next.wait = time.Hour
		var b *session
		go func() { b, _ = m.open(t.Context(), next) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if b != nil || len(st.leases) != 1 {
			t.Fatal("the lease was passed on while an access was under way")
		}
		wantFenced(t, m, a)
		<-under.gate
		synctest.Wait()
		if b == nil {
			t.Fatal("the lease was not passed on")
		}
		if err := data.WriteAt(nil, 0); !errors.Is(err, rdmacache.ErrFenced) {
			t.Errorf("late write: got %v", err)
		}
		if want := []string{"grant 2 a", "end 2 a", "grant 2 b"}; !slices.Equal(st.events, want) {
			t.Errorf("got %q, want %q", st.events, want)
		}
		if b.lease.Generation <= a.lease.Generation {
			t.Errorf("generation %d after %d", b.lease.Generation, a.lease.Generation)
		}
	})
}

// A thief gets the lease at once, before those who wait.
func TestSteal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		a, b := mustOpen(t, m, request(2, "a")), mustOpen(t, m, request(3, "b"))
		patient := request(2, "patient")
		patient.wait = time.Hour
		go func() { _, _ = m.open(t.Context(), patient) }()
		synctest.Wait()
		theft := request(namespace.Root, "thief")
		theft.steal = true
		s := mustOpen(t, m, theft)
		wantFenced(t, m, a)
		wantFenced(t, m, b)
		if err := m.keepAlive(a.id(), a.token); !strings.Contains(fmt.Sprint(err), "thief took the lease") {
			t.Errorf("the victim is not told why: %v", err)
		}
		if err := m.close(t.Context(), s.id(), s.token); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := st.events[len(st.events)-1]; got != "grant 2 patient" {
			t.Errorf("last: %s", got)
		}
	})
}

// Also a lease that is just being granted is stolen.
func TestStealWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		st.slow = make(chan int)
		m := start(t, st)
		defer m.stop()
		var a *session
		go func() { a, _ = m.open(t.Context(), request(2, "a")) }()
		synctest.Wait()
		theft := request(2, "thief")
		theft.steal = true
		done := make(chan error, 1)
		go func() {
			_, err := m.open(t.Context(), theft)
			done <- err
		}()
		synctest.Wait()
		close(st.slow)
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) > 0 {
			t.Fatalf("theft: %v after %v", err, time.Since(began))
		}
		synctest.Wait()
		wantFenced(t, m, a)
	})
}

// Who does not wait long enough is told who has the lease, and is not missed.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		a := mustOpen(t, m, request(2, "host-a:/mnt"))
		_, err := m.open(t.Context(), request(2, "b"))
		if !errors.Is(err, memnode.ErrLeased) || !strings.Contains(err.Error(), "host-a:/mnt") {
			t.Errorf("no wait: got %v", err)
		}
		short := request(namespace.Root, "c")
		short.wait = 3 * time.Second
		began := time.Now()
		if _, err := m.open(t.Context(), short); !errors.Is(err, memnode.ErrLeased) || time.Since(began) != short.wait {
			t.Errorf("short wait: got %v after %v", err, time.Since(began))
		}
		// One who waits behind it for something free gets that when it gives up.
		short.wait = 5 * time.Second
		go func() { _, _ = m.open(t.Context(), short) }()
		synctest.Wait()
		behind := request(3, "d")
		behind.wait = time.Hour
		mustOpen(t, m, behind)

		ctx, cancel := context.WithCancel(t.Context())
		long := request(2, "e")
		long.wait = time.Hour
		gone := make(chan error, 1)
		go func() {
			_, err := m.open(ctx, long)
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: got %v", err)
		}
		if err := m.close(t.Context(), a.id(), a.token); err != nil {
			t.Error(err)
		}
		mustOpen(t, m, request(2, "f"))
	})
}

// A grant that fails passes the turn on.
func TestFailedGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		broken := errors.New("broken")
		st.failGrant = broken
		if _, err := m.open(t.Context(), request(2, "a")); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		st.failOpen = broken
		if _, err := m.open(t.Context(), request(2, "a")); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		if len(st.leases) != 0 {
			t.Errorf("recorded for nobody: %v", st.leases)
		}
		mustOpen(t, m, request(2, "b"))
	})
}

// A restarted node goes on with the sessions that were open: each has its whole
// time again.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		a, b := mustOpen(t, m, request(2, "a")), mustOpen(t, m, request(3, "b"))
		ro := request(4, "reader")
		ro.readOnly = true
		r := mustOpen(t, m, ro)
		m.stop()
		time.Sleep(time.Hour)
		m = start(t, st)
		defer m.stop()
		_, err := m.open(t.Context(), request(2, "c"))
		if !errors.Is(err, memnode.ErrLeased) || !strings.Contains(err.Error(), `"two": by a`) {
			t.Errorf("the lease was forgotten: %v", err)
		}
		time.Sleep(9 * time.Second)
		if err := m.keepAlive(a.id(), a.token); err != nil {
			t.Fatal(err)
		}
		data, err := (dataSessions{m, new(dataWork)}).Session(r.token)
		if err != nil {
			t.Fatal(err)
		}
		if err := data.WriteAt(nil, 0); !errors.Is(err, errReadOnly) {
			t.Errorf("a reader's write after the restart: got %v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if _, err := m.session(b.id(), b.token); !errors.Is(err, rdmacache.ErrFenced) {
			t.Errorf("who did not come back: got %v", err)
		}
		if _, err := m.session(a.id(), a.token); err != nil {
			t.Error(err)
		}
	})
}

// A recorded lease lasts no shorter or longer than any other.
func TestRestoreOddLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		for share, timeout := range map[namespace.Ino]time.Duration{2: 1, 3: 1 << 62} {
			st.leases[share] = memnode.Lease{Share: share, TokenHash: token{byte(share)}.hash(), Timeout: timeout}
		}
		m := start(t, st)
		defer m.stop()
		time.Sleep(MinLease / 2)
		if h := m.holdings(); len(h) != 2 {
			t.Errorf("held: %v", h)
		}
		time.Sleep(MaxLease)
		synctest.Wait()
		if h := m.holdings(); len(h) != 0 {
			t.Errorf("held: %v", h)
		}
	})
}

// A lease that is granted while the node stops is nobody's.
func TestStopWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		st.slow = make(chan int)
		m := start(t, st)
		done := make(chan error, 1)
		go func() {
			_, err := m.open(t.Context(), request(2, "a"))
			done <- err
		}()
		synctest.Wait()
		m.stop()
		close(st.slow)
		if err := <-done; !errors.Is(err, errStopping) {
			t.Errorf("got %v", err)
		}
		if len(st.leases) != 0 {
			t.Errorf("recorded: %v", st.leases)
		}
	})
}

// A turn that comes at the moment when its caller leaves is passed on.
func TestTurnOfNobody(t *testing.T) {
	m := start(t, newFakeStore(t))
	defer m.stop()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	left := 0
	for range 64 { // await finds both, and takes either
		req := request(2, "a")
		_, w, err := m.enqueue(&req)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.await(gone, w)
		if err == nil {
			if err := m.grant(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if err := m.close(t.Context(), s.id(), s.token); err != nil {
				t.Fatal(err)
			}
			continue
		}
		left++
		if len(m.sessions) != 0 {
			t.Fatal("the turn is lost")
		}
	}
	if left == 0 {
		t.Error("nobody left")
	}
}

// A request whose answer was lost is answered again, also while it waits.
func TestRepeatedOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		req := request(2, "a")
		req.nonce = nonce{1}
		a := mustOpen(t, m, req)
		if again := mustOpen(t, m, req); again != a {
			t.Error("another session")
		}
		other := req
		other.identity = "mallory"
		if _, err := m.open(t.Context(), other); !errors.Is(err, memnode.ErrLeased) {
			t.Errorf("another's nonce: got %v", err)
		}

		second := request(2, "b")
		second.nonce, second.wait = nonce{2}, time.Hour
		third := request(2, "c")
		third.wait = time.Hour
		lost := make(chan error, 1)
		go func() {
			_, err := m.open(t.Context(), second)
			lost <- err
		}()
		synctest.Wait()
		go func() { _, _ = m.open(t.Context(), third) }()
		synctest.Wait()
		go func() { _, _ = m.open(t.Context(), second) }()
		if err := <-lost; err == nil {
			t.Error("the first call got a session too")
		}
		if err := m.close(t.Context(), a.id(), a.token); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if want := []string{"grant 2 a", "end 2 a", "grant 2 b"}; !slices.Equal(st.events, want) {
			t.Errorf("got %q, want %q", st.events, want)
		}
	})
}

// A repetition that comes while the lease is being granted waits for it.
func TestRepeatedWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		st.slow = make(chan int)
		m := start(t, st)
		defer m.stop()
		req := request(2, "a")
		req.nonce = nonce{1}
		var got [2]*session
		for i := range got {
			go func() { got[i], _ = m.open(t.Context(), req) }()
			synctest.Wait()
		}
		close(st.slow)
		synctest.Wait()
		if got[0] == nil || got[0] != got[1] {
			t.Errorf("got %p and %p", got[0], got[1])
		}
	})
}

// A node that stops ends no session, and nobody waits for it.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		mustOpen(t, m, request(2, "a"))
		long := request(2, "b")
		long.wait = time.Hour
		waiting := make(chan error, 1)
		go func() {
			_, err := m.open(t.Context(), long)
			waiting <- err
		}()
		synctest.Wait()
		m.stop()
		if err := <-waiting; !errors.Is(err, errStopping) {
			t.Errorf("who waits: got %v", err)
		}
		if _, err := m.open(t.Context(), request(3, "c")); !errors.Is(err, errStopping) {
			t.Errorf("who comes: got %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(st.leases) != 1 {
			t.Errorf("leases: got %v", st.leases)
		}
	})
}

// An operator ends the session that he means, and no other.
func TestEndShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		a := mustOpen(t, m, request(2, "a"))
		if err := m.endShare(t.Context(), 3, nil); !errors.Is(err, namespace.ErrNotExist) {
			t.Errorf("a free share: got %v", err)
		}
		if err := m.endShare(t.Context(), 2, &sessionID{1}); !errors.Is(err, namespace.ErrNotExist) {
			t.Errorf("another session: got %v", err)
		}
		id := a.id()
		if err := m.endShare(t.Context(), 2, &id); err != nil {
			t.Error(err)
		}
		wantFenced(t, m, a)
		if h := m.holdings(); len(h) != 0 {
			t.Errorf("held: %v", h)
		}
	})
}

// Random callers open, wait, steal, keep alive, close and vanish. The store complains
// if two have one share; nobody who waits in line is passed.
func TestRandomCallers(t *testing.T) {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		var callers sync.WaitGroup
		var mu sync.Mutex
		granted := 0
		for i := range 40 {
			rng := rand.New(rand.NewPCG(s, uint64(i)))
			callers.Go(func() {
				for range 25 {
					req := request(namespace.Ino(1+rng.IntN(4)), fmt.Sprintf("caller %d", i))
					req.wait = time.Duration(rng.IntN(60)) * time.Second
					req.steal = rng.IntN(10) == 0
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(90))*time.Second)
					got, err := m.open(ctx, req)
					cancel()
					if err != nil {
						if !errors.Is(err, memnode.ErrLeased) && !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("open: %v", err)
						}
						continue
					}
					mu.Lock()
					granted++
					mu.Unlock()
					for range rng.IntN(5) {
						time.Sleep(time.Duration(rng.IntN(12)) * time.Second)
						if m.keepAlive(got.id(), got.token) != nil {
							break
						}
					}
					if rng.IntN(3) > 0 {
						_ = m.close(t.Context(), got.id(), got.token) // it may be over
					}
				}
			})
		}
		callers.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		if granted < 100 {
			t.Errorf("only %d leases were granted", granted)
		}
		if len(st.leases)+len(m.sessions)+len(m.tokens)+len(m.queue) != 0 || len(m.obits) > maxObits {
			t.Errorf("left: %d leases, %d sessions, %d tokens, %d waiters, %d obits",
				len(st.leases), len(m.sessions), len(m.tokens), len(m.queue), len(m.obits))
		}
		m.stop()
	})
}

// Turns come in the order of asking, and the whole pool's is not passed by those who
// want a share.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		first := mustOpen(t, m, request(2, "first"))
		for i, share := range []namespace.Ino{2, namespace.Root, 3, 2} {
			req := request(share, fmt.Sprint(i))
			req.wait = time.Hour
			go func() {
				s, err := m.open(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				_ = m.close(t.Context(), s.id(), s.token) // checked by the events
			}()
			synctest.Wait()
		}
		_ = m.close(t.Context(), first.id(), first.token)
		time.Sleep(time.Minute)
		synctest.Wait()
		var grants []string
		for _, e := range st.events {
			if strings.HasPrefix(e, "grant") {
				grants = append(grants, e)
			}
		}
		want := []string{"grant 2 first", "grant 2 0", "grant 1 1", "grant 3 2", "grant 2 3"}
		// The last two are free at one time.
		slices.Sort(grants[3:])
		slices.Sort(want[3:])
		if !slices.Equal(grants, want) {
			t.Errorf("got %q, want %q", grants, want)
		}
	})
}

// A lease whose share is damaged keeps nobody from theirs.
func TestRestoreBesideDamage(t *testing.T) {
	st := newFakeStore(t)
	for _, share := range []namespace.Ino{2, 3} {
		st.leases[share] = memnode.Lease{Share: share, Session: [16]byte{byte(share)}, TokenHash: [32]byte{byte(share)}, Holder: "h", Timeout: MinLease}
	}
	st.failOpen = &memnode.CorruptError{File: "meta.db"}
	m := newManager(st, slog.New(slog.DiscardHandler))
	defer m.stop()
	if err := m.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := m.stats().Sessions; n != 1 {
		t.Errorf("%d sessions go on, want the one that can", n)
	}
	if len(st.leases) != 2 {
		t.Errorf("%d leases are recorded, want both", len(st.leases))
	}
}
