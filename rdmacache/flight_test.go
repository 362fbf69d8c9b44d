package rdmacache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// slow is a memory whose flush takes a while. What is written is there at once.
type slow struct {
	*memory
	delay time.Duration
	flush func() error // what it returns; nil: nothing
}

func (s *slow) Flush(context.Context) error {
	if s.delay > 0 {
		time.Sleep(s.delay)
	}
	if s.flush != nil {
		return s.flush()
	}
	return nil
}

func (s *slow) open(t testing.TB) (*rdmacache.Cache, *epoch.Manager) {
	t.Helper()
	s.gen++
	im, err := region.Open(t.Context(), region.Config{Device: s, Space: s.memory, Generation: s.gen, Location: s.loc})
	if err != nil {
		t.Fatal(err)
	}
	c := rdmacache.New(rdmacache.Config{Conn: s, Image: im, FrameBytes: 16 * pageSize})
	return c, epoch.NewManager(c)
}

// Three epochs are in flight when a flush finds no space: whatever each of them stored,
// by write(2) or through a mapping, whole pages or parts, or cut off, is in the open
// epoch, the newest on top; and the next commit has it.
func TestNoSpaceFoldsEpochsBack(t *testing.T) {
	for round := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(*seed, round))
			s := &slow{memory: newMemory(2000), delay: time.Millisecond}
			c, m := s.open(t)
			ctx := t.Context()
			want := bytes.Repeat([]byte{1}, 20*pageSize)
			if _, err := c.WriteAt(ctx, want, 0, rdmacache.FromWrite); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Commit(ctx, epoch.All); err != nil {
				t.Fatal(err)
			}
			change := func() {
				t.Helper()
				for range 1 + rng.IntN(4) {
					var err error
					b := bytes.Repeat([]byte{byte(2 + rng.IntN(250))}, 1+rng.IntN(3*pageSize))
					off := rng.IntN(17 * pageSize)
					switch k := rng.IntN(6); {
					case k < 2:
						if off+len(b) > len(want) {
							want = resize(want, off+len(b))
						}
						copy(want[off:], b)
						_, err = c.WriteAt(ctx, b, int64(off), rdmacache.FromWrite)
					case k < 5:
						off &^= pageSize - 1
						if off >= len(want) {
							continue
						}
						b = resize(b, pageSize)
						var n int
						n, err = c.WriteAt(ctx, b, int64(off), rdmacache.FromMapping)
						copy(want[off:], b[:n])
					default:
						want = resize(want, off)
						err = c.Truncate(ctx, int64(off))
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			see := func(c *rdmacache.Cache, when string) {
				t.Helper()
				got := make([]byte, len(want)+1)
				if n, err := c.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got[:n], want) {
					t.Fatalf("%s the content differs, %v (-seed %d, round %d)", when, err, *seed, round)
				}
			}
			s.flush = func() error { return region.ErrNoSpace }
			errs := make(chan error, 3)
			for range 3 {
				change()
				go func() {
					_, err := m.Commit(ctx, epoch.All)
					errs <- err
				}()
				synctest.Wait() // it is in flight
				see(c, "in flight")
			}
			change() // in the open epoch
			for range 3 {
				if err := <-errs; !errors.Is(err, region.ErrNoSpace) || errors.Is(err, epoch.ErrPoisoned) {
					t.Fatalf("commit: %v, want ErrNoSpace", err)
				}
			}
			s.flush = nil
			see(c, "taken back")
			if got := c.Committed(); got != 1 {
				t.Fatalf("epoch %d is committed, want 1", got)
			}
			if id, err := m.Commit(ctx, epoch.All); err != nil || id != 2 {
				t.Fatalf("commit with space: epoch %d, %v", id, err)
			}
			see(c, "committed")
			s.check(t, c)
			c, _ = s.open(t)
			see(c, "recovered")
		})
	}
}

// An epoch is sealed on top of one in flight, whose flush finds no space before it is
// sent: it must not commit in the place of the other.
func TestNoSpaceBelowASealedEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memory: newMemory(2000), delay: time.Millisecond}
		c, m := s.open(t)
		ctx := t.Context()
		seal := func(page int64, b byte) epoch.ID {
			if _, err := c.WriteAt(ctx, bytes.Repeat([]byte{b}, pageSize), page*pageSize, rdmacache.FromWrite); err != nil {
				t.Fatal(err)
			}
			id, _, err := c.Seal(ctx, epoch.All)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		wait, err := c.Post(ctx, seal(0, 1), func() {})
		if err != nil {
			t.Fatal(err)
		}
		s.flush = func() error { return region.ErrNoSpace }
		first := make(chan error)
		go func() { first <- wait(ctx) }()
		second := seal(1, 2)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait() // the flush is over
		s.flush = nil
		if _, err := c.Post(ctx, second, func() {}); !errors.Is(err, region.ErrNoSpace) {
			t.Errorf("post epoch %d: %v, want ErrNoSpace", second, err)
		}
		if err := <-first; !errors.Is(err, region.ErrNoSpace) {
			t.Errorf("the first epoch: %v, want ErrNoSpace", err)
		}
		if id, err := m.Commit(ctx, epoch.All); id != 1 || err != nil {
			t.Errorf("commit with space: epoch %d, %v", id, err)
		}
		c, _ = s.open(t)
		p := make([]byte, 2*pageSize)
		if n, err := c.ReadAt(ctx, p, 0); n != len(p) || err != nil || p[0] != 1 || p[pageSize] != 2 {
			t.Errorf("recovered %d bytes, %v", n, err)
		}
	})
}

// One flush finds no space, and the next breaks: nobody waits for ever, and what was in
// flight can be read.
func TestPoisonedAboveNoSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memory: newMemory(2000), delay: time.Millisecond}
		c, m := s.open(t)
		ctx := t.Context()
		var calls atomic.Int64
		s.flush = func() error {
			if calls.Add(1) == 1 {
				return region.ErrNoSpace
			}
			return errMedium
		}
		errs := make(chan error, 3)
		for i := range 3 {
			if _, err := c.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, pageSize), int64(i)*pageSize, rdmacache.FromWrite); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := m.Commit(ctx, epoch.All)
				errs <- err
			}()
			synctest.Wait()
		}
		for range 3 {
			if err := <-errs; err == nil {
				t.Error("a commit succeeded")
			}
		}
		if _, err := m.Commit(ctx, epoch.All); !errors.Is(err, epoch.ErrPoisoned) {
			t.Errorf("commit: %v, want %v", err, epoch.ErrPoisoned)
		}
		p := make([]byte, 3*pageSize)
		if n, err := c.ReadAt(ctx, p, 0); n != len(p) || err != nil || p[0] != 1 || p[2*pageSize] != 3 {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
}

// Several committers of one region on a link with latency, beside readers, and cuts of
// the log: epochs are in flight together, and each caller finds what it stored durable
// when its commit returns.
func TestCommittersInFlight(t *testing.T) {
	s := &slow{memory: newMemory(6000), delay: 50 * time.Microsecond}
	c, m := s.open(t)
	ctx := t.Context()
	const threads, rounds = 6, 150
	if _, err := c.WriteAt(ctx, make([]byte, threads*pageSize), 0, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
	var most atomic.Int64
	var wg sync.WaitGroup
	for i := range int64(threads) {
		wg.Go(func() {
			for n := range byte(rounds) {
				b := bytes.Repeat([]byte{n + 1}, pageSize)
				if _, err := c.WriteAt(ctx, b, i*pageSize, rdmacache.FromWrite); err != nil {
					t.Error(err)
					return
				}
				id, err := m.Commit(ctx, epoch.All)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), int64(m.Stats().InFlight)))
				if got := c.Committed(); got < id {
					t.Errorf("epoch %d was acknowledged, epoch %d is committed", id, got)
				}
				e, err := c.Image().Lookup(ctx, uint64(i))
				if err != nil || e.CRC != region.Checksum(b) {
					t.Errorf("what was stored before epoch %d is not in it, %v", id, err)
				}
				got := make([]byte, pageSize)
				if _, err := c.ReadAt(ctx, got, i*pageSize); err != nil || !bytes.Equal(got, b) {
					t.Errorf("reads something else, %v", err)
				}
				if c.Image().Due() {
					if err := c.Image().Maintain(ctx); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if _, open := c.Times(); open {
		t.Error("epochs that are durable are still held to be in flight")
	}
	if most.Load() < 2 {
		t.Errorf("at most %d epochs were in flight", most.Load())
	}
	s.check(t, c)
}

// BenchmarkCommit is commits of pages by threads, over a link whose flush takes a while.
// What is stored is copied by the link at memory speed.
func BenchmarkCommit(b *testing.B) {
	for _, delay := range []time.Duration{0, 200 * time.Microsecond, 2 * time.Millisecond} {
		for _, threads := range []int{1, 8} {
			for _, pages := range []int64{1, 64} {
				b.Run(fmt.Sprintf("flush=%v/threads=%d/pages=%d", delay, threads, pages), func(b *testing.B) {
					s := &slow{memory: newMemory(20000), delay: delay}
					c, m := s.open(b)
					ctx := b.Context()
					if err := c.Truncate(ctx, 8*pages*pageSize); err != nil {
						b.Fatal(err)
					}
					var left atomic.Int64
					left.Store(int64(b.N))
					b.ReportAllocs()
					b.ResetTimer()
					var wg sync.WaitGroup
					for i := range int64(threads) {
						wg.Go(func() {
							p := make([]byte, pages*pageSize)
							for n := left.Add(-1); n >= 0; n = left.Add(-1) {
								binary.LittleEndian.PutUint64(p, uint64(n+1))
								if _, err := c.WriteAt(ctx, p, i*pages*pageSize, rdmacache.FromWrite); err != nil {
									b.Error(err)
									return
								}
								if _, err := m.Commit(ctx, epoch.All); err != nil {
									b.Error(err)
									return
								}
								if c.Image().Due() {
									if err := c.Image().Maintain(ctx); err != nil {
										b.Error(err)
									}
								}
							}
						})
					}
					wg.Wait()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
					b.ReportMetric(float64(c.Stats().Epochs)/b.Elapsed().Seconds(), "epochs/s")
				})
			}
		}
	}
}

// Stores of a mapping that found no space while an epoch is in flight get the slots that
// it replaces, when it is durable, as their own epoch is sent. Nothing of them was kept
// in memory by who asked for that.
func TestPostGetsTheSlotsOfThoseBefore(t *testing.T) {
	s := &slow{memory: newMemory(60)}
	c, _ := s.open(t)
	ctx := t.Context()
	write := func(b byte, pages int) {
		t.Helper()
		if _, err := c.WriteAt(ctx, bytes.Repeat([]byte{b}, pages*pageSize), 0, rdmacache.FromWrite); err != nil {
			t.Fatal(err)
		}
	}
	post := func(landed func()) func(context.Context) error {
		t.Helper()
		id, _, err := c.Seal(ctx, epoch.All)
		if err != nil {
			t.Fatal(err)
		}
		wait, err := c.Post(ctx, id, landed)
		if err != nil {
			t.Fatalf("post epoch %d: %v", id, err)
		}
		return wait
	}
	land := func(wait func(context.Context) error) {
		t.Helper()
		if err := wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 12)
	land(post(func() {}))
	write(2, 12)
	first := post(func() {})
	full := c.Image()
	for {
		if _, err := full.Alloc(ctx, 1); errors.Is(err, region.ErrNoSpace) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	want := bytes.Repeat([]byte{3}, 4*pageSize)
	if n, err := c.TryWriteAt(ctx, want, 0, rdmacache.FromMapping); n != 0 || !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("try: %d bytes, %v; want ErrNoSpace", n, err)
	}
	if n, err := c.WriteAt(ctx, want, 0, rdmacache.FromMapping); n != len(want) || err != nil {
		t.Fatalf("keep: %d bytes, %v", n, err)
	}
	landed := 0
	land(post(func() { landed++; land(first) }))
	got := make([]byte, len(want))
	if _, err := c.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) || landed != 1 {
		t.Errorf("read %d..., %v; waited %d times", got[0], err, landed)
	}
}
