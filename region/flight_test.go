package region_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// gated is a memory whose flushes end when, and as, the test says.
type gated struct {
	*memory
	flushes []chan error // under way, oldest first; nil: they succeed at once
	gate    bool
}

func (g *gated) Flush(context.Context) error {
	if !g.gate {
		return nil
	}
	c := make(chan error)
	g.flushes = append(g.flushes, c)
	return <-c
}

func (g *gated) open(t *testing.T, gen uint64) *region.Image {
	t.Helper()
	im, err := region.Open(t.Context(), region.Config{Device: g, Space: g.memory, Generation: gen, Location: g.loc})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// post posts an epoch of one page, and returns its slot.
func post(t *testing.T, dev region.Device, im *region.Image, no uint64, p []byte) (*region.Posted, region.Slot) {
	t.Helper()
	runs, err := im.Alloc(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	slot := runs[0].Start
	if err := dev.Write(t.Context(), p, slot.Offset()); err != nil {
		t.Fatal(err)
	}
	posted, err := im.Post(t.Context(), region.Change{
		Size: 1 << 20, Cut: region.NoPage, Pages: []region.PageChange{{Page: no, Slot: slot, CRC: region.Checksum(p)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return posted, slot
}

// land waits for an epoch in a goroutine. In a bubble, its flush is under way when land
// returns.
func land(t *testing.T, p *region.Posted) chan error {
	done := make(chan error, 1)
	go func() { done <- p.Wait(t.Context()) }()
	synctest.Wait()
	return done
}

// ended returns what a wait returned; ok is false if it has not.
func ended(done chan error) (err error, ok bool) {
	synctest.Wait()
	select {
	case err = <-done:
		return err, true
	default:
		return nil, false
	}
}

// Of three epochs in flight the flushes end in the wrong order: they are acknowledged in
// the right one. Pages that one replaced stay until it is durable, and all before it.
func TestEpochsLandInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gated{memory: newMemory(400)}
		im := g.open(t, 1)
		rng := rand.New(rand.NewPCG(*seed, 0))
		put(t, g, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng), 1: page(rng)})
		old, err := im.Lookup(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		g.gate = true
		last := page(rng)
		a, _ := post(t, g, im, 1, page(rng))
		b, _ := post(t, g, im, 0, page(rng)) // replaces the page in old
		c, _ := post(t, g, im, 0, last)
		var done []chan error
		for _, p := range []*region.Posted{a, b, c} {
			done = append(done, land(t, p))
		}
		free := func() bool {
			_, n := im.Space()
			runs, err := im.Alloc(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, r := range runs {
				for s := r.Start; s < r.End(); s++ {
					found = found || s == old.Slot
					im.Release(s)
				}
			}
			return found
		}
		for i, flush := range []int{2, 1, 0} {
			if free() {
				t.Fatalf("after %d flushes, but not the first, the slot that epoch 3 replaced is free", i)
			}
			for n, d := range done {
				if err, ok := ended(d); ok {
					t.Fatalf("after %d flushes, but not the first, epoch %d is acknowledged: %v", i, n+2, err)
				}
			}
			if got := im.State().Epoch; got != 1 {
				t.Fatalf("epoch %d is committed, want 1", got)
			}
			g.flushes[flush] <- nil
			synctest.Wait()
		}
		for n, d := range done {
			if err, ok := ended(d); !ok || err != nil {
				t.Fatalf("epoch %d: over %v, %v", n+2, ok, err)
			}
		}
		if !free() {
			t.Error("the slot that epoch 3 replaced is not free")
		}
		g.gate = false
		if got := im.State().Epoch; got != 4 || a.Epoch() != 2 || c.Epoch() != 4 {
			t.Errorf("epoch %d is committed, want 4", got)
		}
		check(t, im)
	})
}

// A flush fails: its epoch and all after it fail, whatever their flushes say, and
// nothing commits any more. Epochs before it are committed.
func TestFailedFlushPoisonsLaterEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gated{memory: newMemory(400)}
		im := g.open(t, 1)
		rng := rand.New(rand.NewPCG(*seed, 0))
		put(t, g, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)})
		g.gate = true
		a, _ := post(t, g, im, 1, page(rng))
		b, _ := post(t, g, im, 2, page(rng))
		c, _ := post(t, g, im, 3, page(rng))
		da, db, dc := land(t, a), land(t, b), land(t, c)
		g.flushes[2] <- nil
		g.flushes[0] <- nil
		if err, ok := ended(da); !ok || err != nil {
			t.Fatalf("epoch 2: over %v, %v", ok, err)
		}
		broken := errors.New("broken")
		g.flushes[1] <- broken
		for n, d := range []chan error{db, dc} {
			if err, ok := ended(d); !ok || !errors.Is(err, epoch.ErrPoisoned) || !errors.Is(err, broken) {
				t.Errorf("epoch %d: over %v, %v; want poisoned", n+3, ok, err)
			}
		}
		g.gate = false
		if _, err := tryPut(t.Context(), g, im, 1<<20, region.NoPage, nil); !errors.Is(err, epoch.ErrPoisoned) {
			t.Errorf("a commit after that: %v", err)
		}
		if got := im.State().Epoch; got != 2 {
			t.Errorf("epoch %d is committed, want 2", got)
		}
	})
}

// A flush finds no space while two more epochs are in flight: none of the three is
// committed. Their records are all there, whole, with all their pages, and the next
// epoch's takes the place of the first: the second must not follow it, wherever the
// power goes; nor where the region is closed and opened again in between.
func TestNoSpaceTakesLaterEpochsBack(t *testing.T) {
	t.Run("open", func(t *testing.T) { testNoSpaceTakesLaterEpochsBack(t, false) })
	t.Run("opened again", func(t *testing.T) { testNoSpaceTakesLaterEpochsBack(t, true) })
}

func testNoSpaceTakesLaterEpochsBack(t *testing.T, reopen bool) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(*seed, 0))
		g := &gated{memory: newMemory(100)}
		im := g.open(t, 1)
		first := page(rng)
		put(t, g, im, 1<<20, region.NoPage, map[uint64][]byte{0: first})
		g.gate = true
		a, _ := post(t, g, im, 0, page(rng))
		b, _ := post(t, g, im, 0, page(rng))
		c, _ := post(t, g, im, 1, page(rng))
		before := slices.Clone(g.bytes) // all of this found space in the end
		da, db, dc := land(t, a), land(t, b), land(t, c)
		g.flushes[0] <- region.ErrNoSpace
		g.flushes[1] <- nil // meanwhile there was some
		g.flushes[2] <- nil
		for n, d := range []chan error{da, db, dc} {
			if err, ok := ended(d); !ok || !errors.Is(err, region.ErrNoSpace) || errors.Is(err, epoch.ErrPoisoned) {
				t.Fatalf("epoch %d: over %v, %v; want ErrNoSpace", n+2, ok, err)
			}
		}
		last := page(rng)
		done := make(chan error, 1)
		go func() {
			if reopen { // as a file that was idle: the session is the same
				if err := im.Close(t.Context()); err != nil {
					done <- err
					return
				}
				im = g.open(t, 1)
			}
			_, err := tryPut(t.Context(), g, im, 1<<20, region.NoPage, map[uint64][]byte{2: last})
			done <- err
		}()
		for flush := 3; ; flush++ {
			synctest.Wait()
			if len(g.flushes) == flush {
				break
			}
			// The power goes here: all that was written since the last flush survives,
			// but for one record or so.
			const unit = 128
			after := slices.Clone(g.bytes)
			for at := 0; at < len(after); at += unit {
				if slices.Equal(before[at:at+unit], after[at:at+unit]) {
					continue
				}
				lost := &gated{memory: &memory{bytes: slices.Clone(after), next: g.next, loc: g.loc}}
				copy(lost.bytes[at:], before[at:at+unit])
				got := lost.open(t, 2)
				e, err := got.Lookup(t.Context(), 2)
				if err != nil {
					t.Fatal(err)
				}
				if s := got.State(); e.Slot != 0 && (s.Epoch != 2 || s.Pages != 2) {
					t.Errorf("flush %d: without bytes %d-%d epoch %d has pages of one that was taken back", flush, at, at+unit, s.Epoch)
				}
			}
			before = after
			g.flushes[flush] <- nil
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		g.gate = false
		want := &image{size: 1 << 20, pages: map[uint64][]byte{0: first, 2: last}}
		if err := compare(t.Context(), g, g.open(t, 2), want); err != nil {
			t.Fatal(err)
		}
	})
}

// Two epochs of one page were in flight together and are durable, and the page of the
// first is used again. No record says yet that they are durable. Fails if recovery
// wants each epoch whole instead of what they leave.
func TestRecoveryNeedsNoReplacedPage(t *testing.T) {
	m := newMemory(200)
	im := m.open(t, 1)
	rng := rand.New(rand.NewPCG(*seed, 0))
	last := page(rng)
	put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{1: page(rng)})
	a, replaced := post(t, m, im, 0, page(rng))
	b, _ := post(t, m, im, 0, last)
	cut, err := im.Post(t.Context(), region.Change{Size: 1 << 12, Cut: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*region.Posted{a, b, cut} {
		if err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := im.Alloc(t.Context(), 1)
	if err != nil || runs[0].Start == 0 {
		t.Fatal(err)
	}
	if err := m.Write(t.Context(), page(rng), replaced.Offset()); err != nil {
		t.Fatal(err)
	}
	im = m.open(t, 2)
	want := &image{size: 1 << 12, pages: map[uint64][]byte{0: last}}
	if err := compare(t.Context(), m, im, want); err != nil || im.State().Epoch != 4 {
		t.Fatalf("recovered epoch %d, want 4: %v", im.State().Epoch, err)
	}
	check(t, im)
}

// Of three epochs in flight, all with whole records, the second lacks its page: it is
// refused, and the third with it, though that is whole. Fails if recovery looks at the
// pages of the last epoch only.
func TestRecoveryTakesEpochsInOrder(t *testing.T) {
	m := newMemory(200)
	im := m.open(t, 1)
	rng := rand.New(rand.NewPCG(*seed, 0))
	first, second := page(rng), page(rng)
	put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{0: first})
	_, _ = post(t, m, im, 1, second)
	_, lost := post(t, m, im, 2, page(rng))
	_, whole := post(t, m, im, 3, page(rng))
	clear(m.bytes[lost.Offset():][:region.PageSize])
	im = m.open(t, 2)
	want := &image{size: 1 << 20, pages: map[uint64][]byte{0: first, 1: second}}
	if err := compare(t.Context(), m, im, want); err != nil || im.State().Epoch != 2 {
		t.Fatalf("recovered epoch %d, want 2: %v", im.State().Epoch, err)
	}
	// Both stay refused until their numbers are taken.
	im.RequestSweep()
	if err := im.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, free := im.Space()
	runs, err := im.Alloc(t.Context(), free)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if lost >= r.Start && lost < r.End() || whole >= r.Start && whole < r.End() {
			t.Errorf("a slot of a refused epoch was used")
		}
	}
	check(t, im)
}

// Whatever replaces the table or the log waits for what is in flight.
func TestDrains(t *testing.T) {
	what := map[string]func(ctx context.Context, im *region.Image) (epoch.ID, error){
		"Freeze": func(ctx context.Context, im *region.Image) (epoch.ID, error) {
			cp, err := im.Freeze(ctx, "x", 1)
			return cp.Epoch, err
		},
		"Pin": func(ctx context.Context, im *region.Image) (epoch.ID, error) {
			cp, err := im.Pin(ctx, 1)
			return cp.Epoch, err
		},
		"Restore": func(ctx context.Context, im *region.Image) (epoch.ID, error) {
			id, err := im.Restore(ctx, region.Checkpoint{}, 1)
			return id - 1, err
		},
		"Check": func(ctx context.Context, im *region.Image) (epoch.ID, error) {
			_, err := im.Check(ctx, func(error) {}, nil)
			return im.State().Epoch, err
		},
		"large": func(ctx context.Context, im *region.Image) (epoch.ID, error) {
			c := region.Change{Size: 1 << 30, Cut: region.NoPage}
			for i := range uint64(5000) {
				c.Pages = append(c.Pages, region.PageChange{Page: i})
			}
			id, err := im.Commit(ctx, c)
			return id - 1, err
		},
	}
	for name, do := range what {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &gated{memory: newMemory(2000)}
				im := g.open(t, 1)
				rng := rand.New(rand.NewPCG(*seed, 0))
				put(t, g, im, 1<<20, region.NoPage, map[uint64][]byte{0: page(rng)})
				g.gate = true
				a, _ := post(t, g, im, 1, page(rng))
				b, _ := post(t, g, im, 2, page(rng))
				da, db := land(t, a), land(t, b)
				var id epoch.ID
				done := make(chan error, 1)
				go func() {
					var err error
					id, err = do(t.Context(), im)
					done <- err
				}()
				if err, ok := ended(done); ok || len(g.flushes) != 2 {
					t.Fatalf("with epochs in flight: over %v, %v, %d flushes", ok, err, len(g.flushes))
				}
				g.gate = false
				g.flushes[1] <- nil
				g.flushes[0] <- nil
				for _, d := range []chan error{da, db, done} {
					if err, ok := ended(d); !ok || err != nil {
						t.Fatalf("over %v, %v", ok, err)
					}
				}
				if id != 3 {
					t.Errorf("it was done at epoch %d, want 3", id)
				}
			})
		})
	}
}
