package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// hostile does all that is legal.
func hostile(seed uint64) model.Config {
	delays := rand.New(rand.NewPCG(seed, 7))
	return model.Config{
		Rand: rand.New(rand.NewPCG(seed, 8)), Late: 5 * time.Millisecond, Timeout: 200 * time.Millisecond,
		Delay: func(verbs.Op, int) time.Duration { return time.Duration(delays.IntN(50)) * time.Microsecond },
	}
}

// meanwhile calls fn again and again, with pauses, until the stop that it returns was called;
// but mostly not while c got nothing done since: on a busy machine it might never.
func meanwhile(c *verbs.Conn, pause time.Duration, fn func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		commits := uint64(0)
		for tick, n := time.NewTicker(pause), 0; ; n++ {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				if now := c.Stats().Commits; now > commits || n%10 == 0 {
					commits = now
					fn()
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

// every calls fn for each way to a medium of each kind.
func every(t *testing.T, fn func(t *testing.T, m rdmacache.Medium, w way)) {
	for _, m := range []rdmacache.Medium{{Kind: "dax"}, {Kind: "tmpfs", Volatile: true}} {
		for _, w := range ways(m.Volatile) {
			t.Run(fmt.Sprintf("%s/%v", m.Kind, w.method), func(t *testing.T) { fn(t, m, w) })
		}
	}
}

// Queue pairs break all the time, on one side or on both, and what they had posted lands
// late. What a flush covered is durable, whole, and nothing that comes late changes it.
func TestReplayAfterBreaks(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	every(t, func(t *testing.T, m rdmacache.Medium, w way) {
		s := conntest.NewStore(1<<20, m)
		f, c := connect(t, hostile(*seed), s, w, func(c *verbs.Config) { c.Window, c.Queues = 256<<10, 2 })
		rng := rand.New(rand.NewPCG(*seed, 3))
		stop := meanwhile(c, 7*time.Millisecond, func() {
			h := f.client
			if rng.IntN(2) == 0 {
				h = f.server
			}
			h.Break(rng.IntN(2) == 0)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := conntest.Stress(ctx, c, s, *seed, 4, rounds)
		stop()
		if err != nil {
			t.Errorf("%v (-seed %d)", err, *seed)
		}
		t.Logf("%+v %+v", c.Stats(), f.model.Stats())
		if c.Stats().Connections < 3 {
			t.Error("nothing broke")
		}
	})
}

// The memory is revoked under the client all the time: it asks anew, and goes on.
func TestReplayAfterRevokes(t *testing.T) {
	every(t, func(t *testing.T, m rdmacache.Medium, w way) {
		s := conntest.NewStore(1<<20, m)
		f, c := connect(t, hostile(*seed), s, w, nil)
		stop := meanwhile(c, 5*time.Millisecond, func() { s.Revoke(0, 256<<10, false) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := conntest.Stress(ctx, c, s, *seed, 4, 30)
		stop()
		if err != nil {
			t.Errorf("%v (-seed %d)", err, *seed)
		}
		t.Logf("%+v %+v", c.Stats(), f.model.Stats())
	})
}

// The memory node loses power and comes back, again and again.
func TestReplayAfterPowerLoss(t *testing.T) {
	every(t, func(t *testing.T, m rdmacache.Medium, w way) {
		if m.Volatile {
			t.Skip("it would lose everything")
		}
		s := conntest.NewStore(1<<20, m)
		f, c := connect(t, hostile(*seed), s, w, nil)
		losses := 0
		stop := meanwhile(c, 100*time.Millisecond, func() {
			f.server.PowerOff()
			f.server.Crash()
			f.stop()
			s.LosePower()
			losses++
			f.serve()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := conntest.Stress(ctx, c, s, *seed, 4, 40)
		stop()
		if err != nil {
			t.Errorf("%v (-seed %d)", err, *seed)
		}
		t.Logf("%d losses, %+v", losses, c.Stats())
	})
}

// When End returned no byte of the client's arrives, whatever is in flight; and the client
// learns that it is fenced.
func TestNothingAfterEnd(t *testing.T) {
	every(t, func(t *testing.T, m rdmacache.Medium, w way) {
		for i := range uint64(10) {
			s := conntest.NewStore(1<<20, m)
			f, c := connect(t, hostile(*seed+i), s, w, nil)
			ended := make(chan error, 1)
			var written atomic.Int64
			go func() {
				p := make([]byte, 8<<10)
				for n := 1; ; n++ {
					for j := range p {
						p[j] = byte(n)
					}
					err := c.Write(context.Background(), p, int64(n%16)*int64(len(p)))
					if err == nil && n%4 == 0 {
						err = c.Flush(context.Background())
					}
					if err != nil {
						ended <- err
						return
					}
					written.Add(1)
				}
			}()
			until(t, func() bool { return written.Load() > 20 })
			s.End()
			before := s.Visible(0, 1<<20)
			if err := <-ended; !errors.Is(err, rdmacache.ErrFenced) {
				t.Errorf("after the end of the session: %v, want rdmacache.ErrFenced", err)
			}
			_ = c.Close()
			f.stop() // all that could still land has
			if !bytes.Equal(before, s.Visible(0, 1<<20)) {
				t.Fatalf("bytes changed after the end of the session (-seed %d)", *seed+i)
			}
		}
	})
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

// What is revoked for good does not change any more, and a client that writes there is
// poisoned; what it flushed before holds.
func TestRevokedForGood(t *testing.T) {
	every(t, func(t *testing.T, m rdmacache.Medium, w way) {
		s := conntest.NewStore(1<<20, m)
		_, c := connect(t, hostile(*seed), s, w, func(c *verbs.Config) { c.Patience = 5 * time.Second })
		p := bytes.Repeat([]byte{1}, 4096)
		if err := errors.Join(c.Write(t.Context(), p, 0), c.Write(t.Context(), p, 8192), c.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		s.Revoke(0, 4096, true)
		q := bytes.Repeat([]byte{2}, 4096)
		if err := errors.Join(c.Write(t.Context(), q, 8192), c.Flush(t.Context())); err != nil {
			t.Fatalf("write beside what was revoked: %v", err)
		}
		err := c.Write(t.Context(), q, 0)
		if err == nil {
			err = c.Flush(t.Context())
		}
		if !errors.Is(err, verbs.ErrPoisoned) {
			t.Errorf("write to what was revoked = %v, want ErrPoisoned", err)
		}
		if err := c.Read(t.Context(), make([]byte, 10), 0); err == nil || errors.Is(err, verbs.ErrLost) {
			t.Errorf("read of what was revoked = %v", err)
		}
		got := make([]byte, 4096)
		if err := c.Read(t.Context(), got, 8192); err != nil || !bytes.Equal(got, q) {
			t.Errorf("read beside it: %v", err)
		}
		if !bytes.Equal(s.Durable(0, 4096), p) || !bytes.Equal(s.Visible(0, 4096), p) {
			t.Error("what was revoked has changed")
		}
	})
}

// A memory node that does not come back: every call ends, with ErrLost.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"})
		silent := model.Config{Timeout: time.Hour} // no queue pair breaks by itself
		f, c := connect(t, silent, s, ways(false)[0], func(c *verbs.Config) { c.Patience = 200 * time.Millisecond })
		if err := errors.Join(c.Write(t.Context(), []byte("x"), 0), c.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		f.server.Hold(true, true)
		if err := errors.Join(c.Write(t.Context(), []byte("y"), 0), c.Flush(t.Context())); !errors.Is(err, verbs.ErrLost) {
			t.Errorf("flush = %v, want ErrLost", err)
		}
		if err := c.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, verbs.ErrLost) {
			t.Errorf("read = %v, want ErrLost", err)
		}
		f.server.Hold(false, false)
	})
}

// Close ends calls that wait; so does their context, and the connection stays of use.
func TestWaitsEnd(t *testing.T) {
	s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"})
	f, c := connect(t, friendly(), s, ways(false)[2], nil)
	gate := make(chan struct{})
	s.Inject(conntest.Hooks{Flush: func() error { <-gate; return nil }})
	if err := c.Write(t.Context(), []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	flushed, other := make(chan error, 1), make(chan error, 1)
	go func() { flushed <- c.Flush(ctx) }()
	until(t, func() bool { return c.Stats().Messages >= 2 }) // MAP and PERSIST
	go func() { other <- c.Flush(context.Background()) }()
	cancel()
	if err := <-flushed; !errors.Is(err, context.Canceled) {
		t.Errorf("flush = %v, want context.Canceled", err)
	}
	got := make([]byte, 1)
	if err := c.Read(t.Context(), got, 0); err != nil || got[0] != 'x' {
		t.Errorf("read beside a flush: %q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-other; !errors.Is(err, verbs.ErrClosed) {
		t.Errorf("flush = %v, want ErrClosed", err)
	}
	close(gate)
	f.stop()
}
