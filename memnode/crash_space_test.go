package memnode

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/region"
)

// reached counts what the simulation has to come by to be worth its name.
type reached struct {
	returns int // extents that regions gave back
	retaken int // of them granted again before the transaction that gave them back
	written int // epochs of write(2) only, while mapped pages stayed open
	opened  int // commits that failed and left their epoch open
	spilled int // frames pushed before their epoch committed
	taken   int // epochs that a flush without space took back with one before them
	between int // recoveries that found one of several epochs in flight, not the last
}

// found notes that recovery found m, one of may.
func (r *reached) found(may []model, m model) {
	for _, c := range may[min(1, len(may)):max(1, len(may)-1)] {
		if differs(m, c) == "" && differs(m, may[0]) != "" && differs(m, may[len(may)-1]) != "" {
			r.between++
			return
		}
	}
}

func (r *reached) missed() string {
	var names []string
	for name, n := range map[string]int{
		"Return": r.returns, "Grant before Return": r.retaken, "a commit of scope Written": r.written,
		"a commit without space": r.opened, "an early push": r.spilled,
		"epochs in flight without space": r.taken, "an epoch in the middle of those in flight": r.between,
	} {
		if n == 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// crashMedium is a medium that loses power, and that forgets what is discarded at
// once and for ever, as a file system does that gets a hole punched.
type crashMedium struct {
	*media.Crashable
	touched map[region.Slot]bool // written to in any life
	left    int                  // flushes until the power goes; 0: it stays
}

// cutAfter has the power go at the flush after the next n.
func (m *crashMedium) cutAfter(n int) { m.left = n + 1 }

func (m *crashMedium) Flush() error {
	if m.left > 0 {
		if m.left--; m.left == 0 {
			m.PowerOff() // during the flush: some of what is pending survives
		}
	}
	return m.Crashable.Flush()
}

func newCrashMedium(size int64) *crashMedium {
	return &crashMedium{Crashable: media.NewCrashable(size, -1), touched: map[region.Slot]bool{}}
}

func (m *crashMedium) Restart(rng *rand.Rand, cut int) *crashMedium {
	return &crashMedium{Crashable: m.Crashable.Restart(rng, cut), touched: m.touched}
}

func (m *crashMedium) WriteAt(p []byte, off int64) error {
	for s := off / region.PageSize; s < (off+int64(len(p))+region.PageSize-1)/region.PageSize; s++ {
		m.touched[region.Slot(s)] = true
	}
	return m.Crashable.WriteAt(p, off)
}

func (m *crashMedium) Discard(off, n int64) error {
	return m.scribble([]region.Run{{Start: region.Slot(off / region.PageSize), N: uint64(n / region.PageSize)}}, make([]byte, region.PageSize))
}

// scribble writes p over what was ever written in runs.
func (m *crashMedium) scribble(runs []region.Run, p []byte) error {
	for _, s := range slices.Sorted(maps.Keys(m.touched)) {
		if slices.ContainsFunc(runs, func(r region.Run) bool { return s >= r.Start && s < r.End() }) {
			if err := m.WriteAt(p, s.Offset()); err != nil {
				return err
			}
		}
	}
	return nil
}

// crashSpace grants slots unless the world is full. While slots are given back,
// others want some.
type crashSpace struct {
	*Pool
	w *world
}

func (s crashSpace) Grant(ctx context.Context, id region.ID, need, want uint64) (region.Grant, error) {
	if s.w.full {
		return region.Grant{}, region.ErrNoSpace
	}
	return s.Pool.Grant(ctx, id, need, want)
}

func (s crashSpace) Return(ctx context.Context, id region.ID, runs []region.Run) error {
	s.w.seen.returns++
	s.w.meta.before = func() { s.w.takeFor(ctx, id, runs) }
	err := s.Pool.Return(ctx, id, runs)
	s.w.meta.before = nil
	return err
}

// takeFor grants slots to another region than id and scribbles on them.
func (w *world) takeFor(ctx context.Context, id region.ID, given []region.Run) {
	for _, other := range slices.Sorted(maps.Keys(w.images)) {
		im := w.images[other]
		if other == id || im.State().Epoch == 0 {
			continue
		}
		g, err := w.pool.Grant(ctx, other, 1, 300)
		if err != nil {
			return // the pool is full, or the power is gone
		}
		w.seen.retaken++
		if w.power.scribble(g.Runs, stampPage(w.rng.Uint64())) == nil {
			im.Adopt(g.Runs)
		}
		return
	}
}

// inflate lets a region have many more slots than it uses. Maintain gives some of
// them back, those of pages that were replaced meanwhile among them.
func (w *world) inflate(ctx context.Context, id region.ID) error {
	im, err := w.image(ctx, id)
	if err != nil {
		return err
	}
	if granted, _ := im.Space(); w.pool.slots < 8000 || granted > 4000 || im.State().Epoch == 0 {
		return nil
	}
	var taken []region.Slot
	for range 24 {
		runs, aerr := im.Alloc(ctx, 200)
		if aerr != nil {
			err = aerr
			break
		}
		for _, r := range runs {
			for s := r.Start; s < r.End(); s++ {
				taken = append(taken, s)
			}
		}
	}
	// The last ones are used first.
	im.Release(taken...)
	return err
}
