package memnode

import (
	"context"
	"errors"
	"slices"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// Several epochs in flight. The flushes of all of them are under way at the same time,
// but one begins after the other has ended, so that a seed decides what happens.

// posted notes that an epoch that leads to m is in flight.
func (w *world) posted(m model) { w.may = append(w.may, m.clone()) }

// landAll waits for epochs in flight, in a goroutine each, and returns what became of
// them.
func (w *world) landAll(ctx context.Context, waits []func(context.Context) error) []error {
	errs := make([]error, len(waits))
	for i, wait := range waits {
		go func() { errs[i] = wait(ctx) }()
		synctest.Wait() // until it is over, or waits for others
	}
	for _, err := range errs {
		if err != nil {
			break
		}
		w.may = w.may[1:]
	}
	return errs
}

// unposted takes the last one back if that is why it is not in flight.
func (w *world) unposted(err error) bool {
	if !taken(err) {
		return false
	}
	w.may = w.may[:len(w.may)-1]
	return true
}

// settle sees to it that what was taken back is not found any more. err is of the
// commit after it.
func (w *world) settle(err error) error {
	if taken(err) {
		if err := w.pool.Flush(); err != nil {
			return err
		}
	}
	return err
}

// noSpaceSoon makes one of n flushes find no space, sometimes.
func (w *world) noSpaceSoon(n int) {
	if w.noSpace = -1; n > 0 && w.rng.IntN(3) == 0 {
		w.noSpace = w.rng.IntN(n)
	}
}

// settled returns a list's first error. It counts the epochs that were taken back.
func (w *world) settled(errs []error) error {
	w.noSpace = -1
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	for _, err := range errs[i:] {
		if err == nil {
			return errors.New("an epoch committed, but one before it did not")
		}
	}
	if taken(errs[i]) {
		w.seen.taken += len(errs) - i - 1
	}
	return errs[i]
}

// taken says that an epoch was taken back, or did not come to be in flight.
func taken(err error) bool {
	return errors.Is(err, region.ErrNoSpace) && !errors.Is(err, epoch.ErrPoisoned)
}

// commitMany has some epochs of a file in flight.
func (w *world) commitMany(ctx context.Context, m model, f *crashFile) error {
	im, err := w.image(ctx, region.ID(f.ino))
	if err != nil {
		return err
	}
	var waits []func(context.Context) error
	was := []content{f.now.clone()}
	for range 2 + w.rng.IntN(3) {
		var change region.Change
		if change, err = w.change(ctx, im, f, w.rng.IntN(8), 1+w.rng.IntN(40)); err != nil {
			break
		}
		w.posted(m) // a large one is durable when Post returns
		var p *region.Posted
		if p, err = im.Post(ctx, change); err != nil {
			w.unposted(err)
			break
		}
		was = append(was, f.now.clone())
		waits = append(waits, p.Wait)
	}
	w.noSpaceSoon(len(waits))
	errs := w.landAll(ctx, waits)
	if landed := w.settled(errs); landed != nil {
		err = landed
	}
	if err == nil || !taken(err) {
		return err
	}
	// What was taken back may be found until the next commit.
	good := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if good < 0 {
		good = len(errs)
	}
	f.now = was[good].clone()
	return w.settle(w.commit(ctx, f, 1+w.rng.IntN(3), 40))
}

// storeMany is commitMany for a cached file, which is stored to in between.
func (w *world) storeMany(ctx context.Context, m model, f *crashFile) error {
	c, err := w.cache(ctx, f)
	if err != nil {
		return err
	}
	type flown struct {
		sealed overlay
		was    content
	}
	var waits []func(context.Context) error
	var all []flown
	for range 2 + w.rng.IntN(3) {
		for range w.rng.IntN(6) {
			if err = c.change(ctx); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
		scope := epoch.Scope(w.rng.IntN(2))
		id, dirty, serr := c.cache.Seal(ctx, scope)
		if err = serr; err != nil {
			break
		}
		if !dirty {
			continue
		}
		sealed, was := c.seal(scope), f.now
		f.now = sealed.over(was, scope)
		w.posted(m)
		var wait func(context.Context) error
		if wait, err = c.cache.Post(ctx, id, func() {}); err != nil {
			if w.unposted(err) {
				c.reopen(sealed)
				f.now = was
			}
			break
		}
		waits, all = append(waits, wait), append(all, flown{sealed, was})
	}
	w.noSpaceSoon(len(waits))
	c.busy = true
	errs := w.landAll(ctx, waits)
	c.busy = false
	landed := w.settled(errs)
	for i := len(errs) - 1; i >= 0 && taken(errs[i]); i-- {
		c.reopen(all[i].sealed)
		f.now = all[i].was
	}
	if landed != nil && !taken(landed) {
		return landed
	}
	if err != nil && (!taken(err) || c.cache.Err() != nil || errors.Is(err, errHalf)) {
		if !taken(err) {
			return err
		}
		if err := c.discard(); err != nil {
			return err
		}
	}
	if err := c.look(ctx, f.now); err != nil {
		return err
	}
	if landed == nil && err == nil {
		return nil
	}
	return w.settle(c.commit(ctx, f, epoch.All))
}
