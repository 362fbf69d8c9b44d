// Package conntest is the conformance suite of the transports: what every
// rdmacache.Conn promises, whatever is below it. inproc defines right.
package conntest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// storeSize is what Run needs.
const storeSize = 8 << 20

// patience bounds every wait of the suite.
const patience = 20 * time.Second

// A Without is a test of the suite that cannot be run over a transport, by its name.
type Without struct{ Test, Why string }

// Run runs the suite. open returns a new connection to the store.
func Run(t *testing.T, seed uint64, open func(t *testing.T, s *Store) rdmacache.Conn, without ...Without) {
	for _, m := range []rdmacache.Medium{{Kind: "file"}, {Kind: "dax"}, {Kind: "tmpfs", Volatile: true}} {
		RunOn(t, m, seed, open, without...)
	}
}

// RunOn runs the suite on one medium.
func RunOn(t *testing.T, m rdmacache.Medium, seed uint64, open func(t *testing.T, s *Store) rdmacache.Conn, without ...Without) {
	run := func(name string, f func(t *testing.T, c rdmacache.Conn, s *Store)) {
		t.Run(m.Kind+"/"+name, func(t *testing.T) {
			for _, w := range without {
				if w.Test == name {
					t.Skip(w.Why)
				}
			}
			s := NewStore(storeSize, m)
			f(t, open(t, s), s)
		})
	}
	run("Medium", func(t *testing.T, c rdmacache.Conn, _ *Store) {
		if got := c.Medium(); got != m {
			t.Errorf("Medium() = %v, want %v", got, m)
		}
	})
	run("Model", func(t *testing.T, c rdmacache.Conn, s *Store) { model(t, c, s, seed) })
	run("Reuse", reuse)
	run("Concurrent", func(t *testing.T, c rdmacache.Conn, s *Store) { concurrent(t, c, s, seed) })
	run("FlushCovers", flushCovers)
	run("Nothing", nothing)
	run("Range", outside)
	run("Context", cancelled)
	run("Closed", closed)
	run("ReadFails", readFails)
	run("NoSpace", noSpace)
	run("WriteFails", writeFails)
	run("FlushFails", flushFails)
	run("Fenced", fenced)
}

// model does random operations of all sizes and compares with an array.
func model(t *testing.T, c rdmacache.Conn, s *Store, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx := t.Context()
	want := make([]byte, storeSize)
	sizes := []int{1, 7, 64, 4095, 4096, 4097, 3 * 4096, 64<<10 - 1, 256 << 10, 1 << 20, 1<<20 + 1, 3<<20 + 5}
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	for i := range rounds {
		n := sizes[rng.IntN(len(sizes))]
		if n > 64<<10 && rng.IntN(4) > 0 {
			n = 4096
		}
		off := rng.IntN(storeSize - n + 1)
		switch rng.IntN(5) {
		case 0, 1, 2:
			p := random(rng, n)
			copy(want[off:], p)
			if err := c.Write(ctx, p, int64(off)); err != nil {
				t.Fatalf("operation %d: %v (-seed %d)", i, err, seed)
			}
		case 3:
			got := make([]byte, n)
			if err := c.Read(ctx, got, int64(off)); err != nil {
				t.Fatalf("operation %d: %v (-seed %d)", i, err, seed)
			}
			if !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("operation %d: read %d bytes at %d: not what was written (-seed %d)", i, n, off, seed)
			}
		case 4:
			if err := c.Flush(ctx); err != nil {
				t.Fatalf("operation %d: %v (-seed %d)", i, err, seed)
			}
			if !s.DurableIs(0, want) {
				t.Fatalf("operation %d: flush: not everything is durable (-seed %d)", i, seed)
			}
		}
	}
}

// reuse changes p as soon as Write returns.
func reuse(t *testing.T, c rdmacache.Conn, s *Store) {
	p := make([]byte, 3*pageSize)
	for i := range 100 {
		fill(p, byte(i+1))
		if err := c.Write(t.Context(), p, int64(i*len(p))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		fill(p, byte(i+1))
		if !bytes.Equal(s.Durable(int64(i*len(p)), len(p)), p) {
			t.Fatalf("write %d: not what p was when it was written", i)
		}
	}
}

// concurrent lets goroutines write, read and flush places of their own.
func concurrent(t *testing.T, c rdmacache.Conn, s *Store, seed uint64) {
	const workers = 8
	rounds := 100
	if testing.Short() {
		rounds = 25
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(100+w)))
			base := int64(w * storeSize / workers)
			for i := range rounds {
				off := base + int64(rng.IntN(storeSize/workers-16*pageSize))
				p := random(rng, 1+rng.IntN(16*pageSize))
				got := make([]byte, len(p))
				err := errors.Join(c.Write(t.Context(), p, off), c.Read(t.Context(), got, off))
				if err != nil || !bytes.Equal(got, p) {
					t.Errorf("worker %d, round %d: read back: equal %v, %v (-seed %d)", w, i, bytes.Equal(got, p), err, seed)
					return
				}
				if rng.IntN(3) > 0 {
					continue
				}
				if err := c.Flush(t.Context()); err != nil || !bytes.Equal(s.Durable(off, len(p)), p) {
					t.Errorf("worker %d, round %d: flush: durable %v, %v (-seed %d)", w, i, bytes.Equal(s.Durable(off, len(p)), p), err, seed)
					return
				}
			}
		})
	}
	wg.Wait()
}

// flushCovers checks that a Flush does not share one that began before its writes.
func flushCovers(t *testing.T, c rdmacache.Conn, s *Store) {
	inside, gate := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	s.Inject(Hooks{Flush: func() error {
		if first.CompareAndSwap(false, true) {
			close(inside)
			<-gate
		}
		return nil
	}})
	early := make(chan error, 1)
	go func() { early <- persist(t.Context(), c, make([]byte, 1), pageSize) }()
	<-inside
	p := bytes.Repeat([]byte{7}, pageSize)
	if err := c.Write(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 1)
	go func() { late <- c.Flush(t.Context()) }()
	close(gate)
	if err := errors.Join(<-early, <-late); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Durable(0, pageSize), p) {
		t.Error("flush returned before the writes that preceded it were durable")
	}
}

// nothing does operations of no bytes.
func nothing(t *testing.T, c rdmacache.Conn, _ *Store) {
	if err := errors.Join(c.Write(t.Context(), nil, 5), c.Read(t.Context(), nil, 5), c.Flush(t.Context())); err != nil {
		t.Error(err)
	}
}

// outside asks for places that are not there.
func outside(t *testing.T, c rdmacache.Conn, s *Store) {
	p := make([]byte, 2*pageSize)
	for _, off := range []int64{-1, -1 << 63, storeSize - pageSize, storeSize, 1 << 62, 1<<63 - 1} {
		if err := c.Read(t.Context(), p, off); err == nil {
			t.Errorf("read at %d: no error", off)
		}
	}
	if err := errors.Join(c.Write(t.Context(), p, 0), c.Flush(t.Context()), c.Read(t.Context(), p, 0)); err != nil {
		t.Errorf("after reads that failed: %v", err)
	}
	for _, off := range []int64{-1, -1 << 63, 1<<63 - 1, storeSize - pageSize} {
		if err := persist(t.Context(), c, p, off); err == nil {
			t.Errorf("write at %d and flush: no error", off)
		}
	}
}

// cancelled calls with a context that is over.
func cancelled(t *testing.T, c rdmacache.Conn, s *Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, err := range calls(ctx, c) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context = %v, want context.Canceled", what, err)
		}
	}
	if writes, flushes := s.Counts(); writes+flushes != 0 {
		t.Errorf("%d writes and %d flushes reached the store", writes, flushes)
	}
	if err := persist(t.Context(), c, make([]byte, 10), 0); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// closed calls after Close.
func closed(t *testing.T, c rdmacache.Conn, _ *Store) {
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range calls(t.Context(), c) {
		if err == nil {
			t.Errorf("%s of a closed connection: no error", what)
		}
	}
	if err := c.Close(); err == nil {
		t.Error("second Close: no error")
	}
}

// readFails fails one read: the next succeeds.
func readFails(t *testing.T, c rdmacache.Conn, s *Store) {
	var fail atomic.Bool
	bad := func() error {
		if fail.Load() {
			return errors.New("bad line")
		}
		return nil
	}
	s.Inject(Hooks{
		Read:  func([]byte, int64) error { return bad() },
		Reach: func(int64) error { return bad() },
	})
	fail.Store(true)
	p := make([]byte, 100)
	if err := c.Read(t.Context(), p, 0); err == nil {
		t.Error("read of a bad line: no error")
	}
	fail.Store(false)
	if err := errors.Join(c.Read(t.Context(), p, 0), persist(t.Context(), c, p, 0)); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// noSpace fills the pool: a write or its flush says so, and once there is space all
// that Write took becomes durable.
func noSpace(t *testing.T, c rdmacache.Conn, s *Store) {
	var full atomic.Bool
	reach := func(off int64) error {
		if full.Load() && off >= storeSize/2 {
			return fmt.Errorf("%w: file system below", region.ErrNoSpace)
		}
		return nil
	}
	s.Inject(Hooks{Write: func(_ []byte, off int64) error { return reach(off) }, Reach: reach})
	full.Store(true)
	a, b := bytes.Repeat([]byte{1}, pageSize), bytes.Repeat([]byte{2}, pageSize)
	if err := c.Write(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	taken := c.Write(t.Context(), a, storeSize/2)
	if taken != nil && !errors.Is(taken, region.ErrNoSpace) {
		t.Fatalf("write in a full pool = %v, want region.ErrNoSpace", taken)
	}
	for range 3 {
		if err := c.Flush(t.Context()); taken == nil && !errors.Is(err, region.ErrNoSpace) {
			t.Fatalf("flush of a write without space = %v, want region.ErrNoSpace", err)
		}
	}
	full.Store(false)
	if err := c.Write(t.Context(), b, pageSize); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatalf("flush with space again: %v", err)
	}
	if taken == nil && !bytes.Equal(s.Durable(storeSize/2, pageSize), a) {
		t.Error("a flush succeeded without a write that Write had taken")
	}
	if !bytes.Equal(s.Durable(0, 2*pageSize), append(b, b...)) {
		t.Error("the other writes are not durable")
	}
}

// writeFails fails one write: it is never part of a flush that succeeds.
func writeFails(t *testing.T, c rdmacache.Conn, s *Store) {
	s.Inject(Hooks{Write: func(_ []byte, off int64) error {
		if off == 0 {
			return errors.New("bad line")
		}
		return nil
	}})
	if err := persist(t.Context(), c, make([]byte, 10), 0); err == nil {
		t.Error("write of a bad line and flush: no error")
	}
	if err := c.Read(t.Context(), make([]byte, 10), 0); err != nil {
		t.Errorf("read after that: %v", err)
	}
}

// flushFails fails flushes, for ever as media do.
func flushFails(t *testing.T, c rdmacache.Conn, s *Store) {
	s.Inject(Hooks{Flush: func() error { return errors.New("input/output error") }})
	for range 3 {
		if err := persist(t.Context(), c, make([]byte, 10), 0); err == nil {
			t.Error("flush of a failed medium: no error")
		}
	}
	if err := c.Read(t.Context(), make([]byte, 10), 0); err != nil {
		t.Errorf("read after that: %v", err)
	}
}

// fenced ends the session.
func fenced(t *testing.T, c rdmacache.Conn, s *Store) {
	p := bytes.Repeat([]byte{1}, pageSize)
	if err := persist(t.Context(), c, p, 0); err != nil {
		t.Fatal(err)
	}
	s.End()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := persist(ctx, c, make([]byte, pageSize), 0); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("write and flush of a session that is over = %v, want rdmacache.ErrFenced", err)
	}
	if err := c.Read(ctx, make([]byte, 8), 0); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("read of a session that is over = %v, want rdmacache.ErrFenced", err)
	}
	if !bytes.Equal(s.Durable(0, pageSize), p) {
		t.Error("a session that is over changed the store")
	}
}

// persist writes and flushes.
func persist(ctx context.Context, c rdmacache.Conn, p []byte, off int64) error {
	if err := c.Write(ctx, p, off); err != nil {
		return err
	}
	return c.Flush(ctx)
}

func calls(ctx context.Context, c rdmacache.Conn) map[string]error {
	p := make([]byte, 8)
	return map[string]error{"read": c.Read(ctx, p, 0), "write": c.Write(ctx, p, 0), "flush": c.Flush(ctx)}
}

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	x := rng.Uint64()
	for i := range p {
		x = x*6364136223846793005 + 1442695040888963407
		p[i] = byte(x >> 56)
	}
	return p
}

func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}
