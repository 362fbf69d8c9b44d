package epoch_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/epoch"
)

var errFull = errors.New("full")

func isFull(err error) bool { return errors.Is(err, errFull) }

// A taker is what WithRoom is called for: it finds no room as often as it is told.
type taker struct{ full, ran int }

func (k *taker) take() error {
	k.ran++
	if k.ran <= k.full {
		return errFull
	}
	return nil
}

func room(ctx context.Context, m *epoch.Manager, k *taker) *result {
	return call(func() (epoch.ID, error) { return 0, m.WithRoom(ctx, isFull, k.take) })
}

// What finds no room waits for the epochs in flight, and none is sealed before it has
// tried again. Where none is in flight there is nothing to wait for.
func TestWithRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		genuine := taker{full: 2}
		if r := room(t.Context(), m, &genuine); !r.over || !isFull(r.err) || genuine.ran != 1 {
			t.Errorf("with nothing in flight: %+v, ran %d times", *r, genuine.ran)
		}
		commit(t, m, s, true)
		commit(t, m, s, true)
		k := taker{full: 1}
		r := room(t.Context(), m, &k)
		third := commit(t, m, s, true)
		s.end(1, nil)
		if r.over || k.ran != 1 || len(s.posted) != 2 {
			t.Fatalf("with an epoch in flight: %+v, ran %d times, sent %v", *r, k.ran, s.posted)
		}
		s.end(2, nil)
		if !r.over || r.err != nil || k.ran != 2 {
			t.Fatalf("when all were durable: %+v, ran %d times", *r, k.ran)
		}
		s.end(3, nil)
		if !third.over || third.err != nil {
			t.Errorf("the commit that waited: %+v", *third)
		}
	})
}

// The wait ends with the caller's context, and seals go on.
func TestWithRoomGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		commit(t, m, s, true)
		ctx, cancel := context.WithCancel(t.Context())
		k := taker{full: 2}
		r := room(ctx, m, &k)
		cancel()
		synctest.Wait()
		if !r.over || !errors.Is(r.err, context.Canceled) || k.ran != 1 {
			t.Errorf("%+v, ran %d times", *r, k.ran)
		}
		commit(t, m, s, true)
		s.end(1, nil)
		s.end(2, nil)
	})
}

// A barrier may be waiting for what finds no room, and so may Exclusive: neither is
// waited for, only what is in flight before.
func TestWithRoomBelowABarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		commit(t, m, s, true)
		k := taker{full: 1}
		barrier := call(func() (epoch.ID, error) {
			return m.Barrier(t.Context(), func(ctx context.Context, seal func() (epoch.ID, error)) error {
				if _, err := seal(); err != nil {
					return err
				}
				return m.WithRoom(ctx, isFull, k.take)
			})
		})
		s.end(1, nil)
		s.end(2, nil)
		if !barrier.over || barrier.err != nil || k.ran != 2 {
			t.Fatalf("the barrier: %+v, ran %d times", *barrier, k.ran)
		}
		k = taker{}
		exclusive := call(func() (epoch.ID, error) {
			return 0, m.Exclusive(func() error { return m.WithRoom(t.Context(), isFull, k.take) })
		})
		if !exclusive.over || exclusive.err != nil {
			t.Errorf("exclusive: %+v", *exclusive)
		}
	})
}

// An epoch that finds no room when it is sent waits for those before it.
func TestPostWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		commit(t, m, s, true)
		s.full = true
		second := commit(t, m, s, true)
		if len(s.posted) != 1 || second.over {
			t.Fatalf("sent %v, %+v", s.posted, *second)
		}
		s.end(1, nil)
		if len(s.posted) != 2 {
			t.Fatalf("sent %v after the first was durable", s.posted)
		}
		s.end(2, nil)
		if !second.over || second.err != nil {
			t.Errorf("the second: %+v", *second)
		}
	})
}
