package tcp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/region"
)

var dax = rdmacache.Medium{Kind: "dax"}

// A faultPlan says what happens to the connections of a client, in turn; the last
// one goes for all that follow. dials counts them.
type faultPlan struct {
	dial  func(context.Context) (net.Conn, error)
	plan  []conntest.Break
	dials atomic.Int64
}

var noBreak = conntest.Break{Writes: -1, Reads: -1}

func (f *faultPlan) connect(ctx context.Context) (net.Conn, error) {
	nc, err := f.dial(ctx)
	i := int(f.dials.Add(1)) - 1
	if err != nil {
		return nil, err
	}
	return conntest.Broken(nc, f.plan[min(i, len(f.plan)-1)], 1), nil
}

// after lets a connection carry its handshake and then n bytes before it breaks.
func after(f conntest.Fault, n int64) conntest.Break {
	return conntest.Break{Fault: f, Writes: 80 + n, Reads: -1}
}

// within fails the test if f takes longer than limit.
func within(t *testing.T, limit time.Duration, what string, f func() error) error {
	t.Helper()
	begun := time.Now()
	err := f()
	if took := time.Since(begun); took > limit {
		t.Errorf("%s took %v, want at most %v: %v", what, took, limit, err)
	}
	return err
}

// TestConformanceTLS is the suite over TLS, where nothing is sent as it is.
func TestConformanceTLS(t *testing.T) {
	server, client := tcp.Certified(t)
	conntest.Run(t, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		address := serve(t, one{s}, func(l net.Listener) net.Listener { return tls.NewListener(l, server) })
		return dial(t, tcp.Config{Connect: func(ctx context.Context) (net.Conn, error) {
			return (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", address)
		}})
	})
}

// A memory node that does not come back is lost when Patience is over, for every
// call and for good.
func TestLost(t *testing.T) {
	const patience = 600 * time.Millisecond
	for name, plan := range map[string][]conntest.Break{
		"gone":              {after(conntest.Cut, 0), {Fault: conntest.Cut, Writes: 0, Reads: -1}},
		"silent":            {after(conntest.Stall, 0), {Fault: conntest.Stall, Writes: 0, Reads: -1}},
		"never answers":     {after(conntest.Stall, 0)},
		"cuts each time":    {after(conntest.Cut, 100)},
		"damages each time": {after(conntest.Flip, 50)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := conntest.NewStore(1<<20, dax)
			f := &faultPlan{dial: dialer(serve(t, one{s}, nil)), plan: plan}
			c := dial(t, tcp.Config{Connect: f.connect, Patience: patience, Window: 64 << 10})
			p := make([]byte, page)
			ctx := t.Context()
			var wg sync.WaitGroup
			for what, call := range map[string]func() error{
				"flush": func() error { return errors.Join(c.Write(ctx, p, 0), c.Flush(ctx)) },
				"read":  func() error { return c.Read(ctx, make([]byte, 10), 0) },
				"write": func() error {
					for range 100 {
						if err := c.Write(ctx, p, 0); err != nil {
							return err
						}
					}
					return nil
				},
			} {
				wg.Go(func() {
					// A read may have been answered before the connection broke.
					err := within(t, 10*patience, what, call)
					if !errors.Is(err, tcp.ErrLost) && (what != "read" || err != nil) {
						t.Errorf("%s = %v, want ErrLost", what, err)
					}
				})
			}
			wg.Wait()
			for what, err := range map[string]error{"write": c.Write(ctx, p, 0), "flush": c.Flush(ctx), "read": c.Read(ctx, p, 0)} {
				if !errors.Is(err, tcp.ErrLost) {
					t.Errorf("later %s = %v, want ErrLost", what, err)
				}
			}
		})
	}
}

// Connections that go silent, also in the greeting, are given up while there is
// patience left.
func TestStalledConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := conntest.NewStore(1<<20, dax)
		f := &faultPlan{dial: piped(t, one{s}, nil), plan: []conntest.Break{
			after(conntest.Stall, 5000), {Fault: conntest.Stall, Writes: 0, Reads: -1}, noBreak,
		}}
		c := dial(t, tcp.Config{Connect: f.connect, Patience: 1200 * time.Millisecond})
		p := bytes.Repeat([]byte{1}, 2*page)
		err := within(t, 1200*time.Millisecond, "flush", func() error {
			return errors.Join(c.Write(t.Context(), p, 0), c.Flush(t.Context()))
		})
		if err != nil || !bytes.Equal(s.Durable(0, len(p)), p) || f.dials.Load() != 3 {
			t.Errorf("flush over connections that stall = %v, %d connections", err, f.dials.Load())
		}
	})
}

// Trouble that passes is forgotten: patience counts from the last that was heard.
func TestPatienceStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 300 * time.Millisecond
		s := conntest.NewStore(1<<20, dax)
		f := &faultPlan{dial: piped(t, one{s}, nil), plan: []conntest.Break{after(conntest.Cut, 5000)}}
		c := dial(t, tcp.Config{Connect: f.connect, Patience: patience})
		for begun := time.Now(); time.Since(begun) < 3*patience; {
			if err := errors.Join(c.Write(t.Context(), make([]byte, 2000), 0), c.Flush(t.Context())); err != nil {
				t.Fatalf("after %v: %v", time.Since(begun), err)
			}
			time.Sleep(patience / 50)
		}
		if f.dials.Load() < 5 {
			t.Errorf("%d connections, want some more", f.dials.Load())
		}
	})
}

// A cutter cuts the newest connection of a server.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (k *cutter) listen(l net.Listener) net.Listener {
	return &conntest.Listener{Listener: l, Wrap: func(nc net.Conn) net.Conn {
		k.mu.Lock()
		defer k.mu.Unlock()
		nc = struct{ net.Conn }{nc} // the server leaves it alone
		k.conns = append(k.conns, nc)
		return nc
	}}
}

func (k *cutter) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.conns[len(k.conns)-1].Close()
}

// Trouble is over when what waited is answered, though nobody flushes the writes that
// were sent again: a break much later begins to count anew.
func TestOldTroubleIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 300 * time.Millisecond
		s := conntest.NewStore(1<<20, dax)
		s.Inject(conntest.Hooks{Read: func([]byte, int64) error { time.Sleep(50 * time.Millisecond); return nil }})
		var k cutter
		c := dial(t, tcp.Config{Connect: piped(t, one{s}, k.listen), Patience: patience})
		for _, read := range []bool{true, true, false, false} {
			if err := c.Write(t.Context(), []byte{1}, 0); err != nil {
				t.Fatal(err)
			}
			if read {
				time.AfterFunc(20*time.Millisecond, k.cut) // while it waits
				if err := c.Read(t.Context(), make([]byte, 1), 0); err != nil {
					t.Fatal(err)
				}
			} else {
				k.cut()
			}
			time.Sleep(2 * patience)
		}
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if len(k.conns) != 5 {
			t.Errorf("%d connections, want 5", len(k.conns))
		}
	})
}

// A read that nobody waits for any more when its connection breaks is no trouble
// that lasts.
func TestAbandonedReadIsNoTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 300 * time.Millisecond
		s := conntest.NewStore(1<<20, dax)
		gate := make(chan struct{})
		s.Inject(conntest.Hooks{Read: func([]byte, int64) error { <-gate; return nil }})
		var k cutter
		c := dial(t, tcp.Config{Connect: piped(t, one{s}, k.listen), Patience: patience})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Read(ctx, make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("read = %v, want context.DeadlineExceeded", err)
		}
		k.cut()
		close(gate)
		time.Sleep(2 * patience)
		k.cut()
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The end of a connection is heard of when nobody waits for an answer, also after those
// who waited received their answers themselves.
func TestEndIsHeardOfByNobody(t *testing.T) {
	s := conntest.NewStore(1<<20, dax)
	var k cutter
	c := dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, k.listen)), Patience: time.Second})
	for range 100 {
		if err := c.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	k.cut()
	eventually(t, "a second connection", func() bool { return k.count() == 2 })
}

// count returns how many connections there were.
func (k *cutter) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)
}

// eventually waits until done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("there is not %s", what)
		}
	}
}

// Connections that break at once are made again, but not as fast as that goes. Nobody
// waits here, so it may take for ever.
func TestConnectionsThatBreakAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := conntest.NewStore(1<<20, dax)
		f := &faultPlan{dial: piped(t, one{s}, nil), plan: []conntest.Break{after(conntest.Cut, 100)}}
		c := dial(t, tcp.Config{Connect: f.connect, Patience: 500 * time.Millisecond})
		for range 64 { // so many are sent without a flush
			if err := c.Write(t.Context(), make([]byte, page), 0); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if n := f.dials.Load(); n < 10 || n > 100 {
			t.Errorf("%d connections in a second", n)
		}
	})
}

// A medium that takes long is not a node that is lost.
func TestSlowMedium(t *testing.T) {
	for _, kind := range []string{"file", "dax"} {
		synctest.Test(t, func(t *testing.T) {
			s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: kind})
			slow := func() error { time.Sleep(1200 * time.Millisecond); return nil }
			s.Inject(conntest.Hooks{Flush: slow, Write: func([]byte, int64) error { return slow() }})
			f := &faultPlan{dial: piped(t, one{s}, nil), plan: []conntest.Break{noBreak}}
			c := dial(t, tcp.Config{Connect: f.connect, Patience: 400 * time.Millisecond})
			if err := errors.Join(c.Write(t.Context(), make([]byte, 10), 0), c.Flush(t.Context())); err != nil || f.dials.Load() != 1 {
				t.Errorf("%s: flush of a slow medium = %v, %d connections", kind, err, f.dials.Load())
			}
		})
	}
}

// Reads do not wait for a flush that waits for its device.
func TestReadDuringFlush(t *testing.T) {
	s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "file"})
	inside, gate := make(chan struct{}), make(chan struct{})
	s.Inject(conntest.Hooks{Flush: func() error { close(inside); <-gate; return nil }})
	c := dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil))})
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush(t.Context()) }()
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	p, got := []byte("newest"), make([]byte, 6)
	err := errors.Join(c.Write(ctx, p, 0), c.Read(ctx, got, 0))
	close(gate)
	if err != nil || !bytes.Equal(got, p) {
		t.Errorf("read during a flush: %q, %v", got, err)
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
}

// Calls return when their context ends, and leave the caller's memory alone.
func TestContextEndsWaits(t *testing.T) {
	s := conntest.NewStore(1<<20, dax)
	f := &faultPlan{dial: dialer(serve(t, one{s}, nil)), plan: []conntest.Break{after(conntest.Stall, 0)}}
	c := dial(t, tcp.Config{Connect: f.connect, Patience: 20 * time.Second, Window: 64 << 10})
	var wg sync.WaitGroup
	for what, call := range map[string]func(context.Context) error{
		"flush": c.Flush,
		"read":  func(ctx context.Context) error { return c.Read(ctx, make([]byte, page), 0) },
		"write": func(ctx context.Context) error {
			for {
				if err := c.Write(ctx, make([]byte, page), 0); err != nil {
					return err
				}
			}
		},
	} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := within(t, 10*time.Second, what, func() error { return call(ctx) })
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s = %v, want context.DeadlineExceeded", what, err)
			}
		})
	}
	wg.Wait()
}

// An answer that comes after its reader left is dropped, and not stored.
func TestLateAnswer(t *testing.T) {
	s := conntest.NewStore(1<<20, dax)
	gate := make(chan struct{})
	s.Inject(conntest.Hooks{Read: func([]byte, int64) error { <-gate; return nil }})
	c := dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil))})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p := bytes.Repeat([]byte{9}, page)
	if err := c.Read(ctx, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read = %v, want context.DeadlineExceeded", err)
	}
	close(gate)
	if err := c.Read(t.Context(), make([]byte, page), 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{9}, page)) {
		t.Error("an answer was stored after Read had returned")
	}
}

// Close ends the calls that wait.
func TestCloseEndsWaits(t *testing.T) {
	before := runtime.NumGoroutine()
	s := conntest.NewStore(1<<20, dax)
	f := &faultPlan{dial: dialer(serve(t, one{s}, nil)), plan: []conntest.Break{after(conntest.Stall, 0)}}
	serving := runtime.NumGoroutine()
	c := dial(t, tcp.Config{Connect: f.connect, Patience: 20 * time.Second})
	errs := make(chan error, 2)
	go func() { errs <- c.Flush(t.Context()) }()
	go func() { errs <- c.Read(t.Context(), make([]byte, page), 0) }()
	time.Sleep(20 * time.Millisecond)
	if err := within(t, 10*time.Second, "close", c.Close); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, tcp.ErrClosed) {
			t.Errorf("call during Close = %v, want ErrClosed", err)
		}
	}
	for try := 0; runtime.NumGoroutine() > serving; try++ {
		if try > 2000 {
			t.Fatalf("%d goroutines before, %d while serving, %d after Close", before, serving, runtime.NumGoroutine())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A session that ends in the middle ends the calls that wait, at once and for good.
func TestFencedWhileWaiting(t *testing.T) {
	for _, kind := range []string{"file", "dax"} {
		s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: kind})
		inside, gate := make(chan struct{}), make(chan struct{})
		s.Inject(conntest.Hooks{Flush: func() error { close(inside); <-gate; return nil }})
		c := dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil))})
		go func() {
			<-inside
			s.End()
		}()
		err := within(t, 10*time.Second, "flush", func() error { return c.Flush(t.Context()) })
		close(gate)
		if !errors.Is(err, rdmacache.ErrFenced) {
			t.Errorf("%s: flush = %v, want ErrFenced", kind, err)
		}
		if err := c.Write(t.Context(), make([]byte, 1), 0); !errors.Is(err, rdmacache.ErrFenced) {
			t.Errorf("%s: later write = %v, want ErrFenced", kind, err)
		}
	}
}

// The handshake says that a session is over.
func TestDialFenced(t *testing.T) {
	address := serve(t, one{conntest.NewStore(1, dax)}, nil)
	_, err := tcp.Dial(t.Context(), tcp.Config{Connect: dialer(address), Token: [32]byte{9}})
	if !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("Dial with an unknown token = %v, want ErrFenced", err)
	}
}

// Callers share flushes: one under way, one for all who wait.
func TestFlushesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "file"})
		s.Inject(conntest.Hooks{Flush: func() error { time.Sleep(20 * time.Millisecond); return nil }})
		c := dial(t, tcp.Config{Connect: piped(t, one{s}, nil)})
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := errors.Join(c.Write(t.Context(), make([]byte, 10), int64(i*10)), c.Flush(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, flushes := s.Counts(); flushes > 10 {
			t.Errorf("100 flushes at once became %d", flushes)
		}
	})
}

// What is kept to be sent again is bounded: a Write that has no room waits for a
// flush of its own, and says so where there is no space.
func TestFullWindow(t *testing.T) {
	s := conntest.NewStore(1<<20, dax)
	c := dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil)), Window: 128 << 10})
	for i := range 1000 {
		if err := c.Write(t.Context(), make([]byte, page), int64(i%256*page)); err != nil {
			t.Fatal(err)
		}
	}
	if _, flushes := s.Counts(); flushes < 1000*page/(128<<10)-2 {
		t.Errorf("%d flushes for 4 MB through a window of 128 KiB", flushes)
	}
	var full atomic.Bool
	full.Store(true)
	s.Inject(conntest.Hooks{Write: func([]byte, int64) error {
		if full.Load() {
			return region.ErrNoSpace
		}
		return nil
	}})
	if err := c.Flush(t.Context()); err != nil && !errors.Is(err, region.ErrNoSpace) {
		t.Fatal(err)
	}
	var err error
	taken := 0
	for err == nil && taken < 1000 {
		if err = c.Write(t.Context(), bytes.Repeat([]byte{byte(taken + 1)}, page), 0); err == nil {
			taken++
		}
	}
	if !errors.Is(err, region.ErrNoSpace) || taken > 32 {
		t.Errorf("%d writes into a full pool through a window of 32 pages, then %v", taken, err)
	}
	time.Sleep(20 * time.Millisecond) // nothing is tried again before somebody asks
	full.Store(false)
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Durable(0, 1)[0]; got != byte(taken) {
		t.Errorf("the last write that was taken is %d, durable is %d", taken, got)
	}
}

// A commit is one round trip, in one packet each way.
func TestCommitIsOneMessage(t *testing.T) {
	s := conntest.NewStore(1<<20, dax)
	var calls atomic.Int64
	address := serve(t, one{s}, func(l net.Listener) net.Listener {
		return &conntest.Listener{Listener: l, Wrap: func(nc net.Conn) net.Conn { return &countedConn{nc, &calls} }}
	})
	c := dial(t, tcp.Config{Connect: dialer(address)})
	calls.Store(0)
	const commits = 100
	for range commits {
		err := errors.Join(c.Write(t.Context(), make([]byte, page), 0), c.Write(t.Context(), make([]byte, 200), page), c.Flush(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := calls.Load(); n > commits*5/4 {
		t.Errorf("the server sent %d times for %d commits", n, commits)
	}
}

// countedConn counts what is sent.
type countedConn struct {
	net.Conn
	calls *atomic.Int64
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.calls.Add(1)
	return c.Conn.Write(p)
}
