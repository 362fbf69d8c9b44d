package epoch_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// fakeStore is a Store whose epochs become durable when, and as, the test says.
type fakeStore struct {
	dirty  bool
	last   epoch.ID
	posted []epoch.ID
	ends   map[epoch.ID]chan error
	frozen bool
	full   bool // the next Post finds no room until others are durable
}

func newFakeStore() *fakeStore { return &fakeStore{ends: make(map[epoch.ID]chan error)} }

func (s *fakeStore) Seal(context.Context, epoch.Scope) (epoch.ID, bool, error) {
	if !s.dirty {
		return s.last, false, nil
	}
	s.dirty = false
	s.last++
	return s.last, true, nil
}

func (s *fakeStore) Freeze(context.Context) (epoch.ID, error) {
	s.frozen = true
	s.last++
	return s.last, nil
}

func (s *fakeStore) Thaw(context.Context, epoch.ID) { s.frozen = false; s.last-- }

func (s *fakeStore) Post(_ context.Context, id epoch.ID, landed func()) (func(context.Context) error, error) {
	if s.full {
		s.full = false
		landed()
	}
	s.frozen = false
	s.posted = append(s.posted, id)
	end := make(chan error)
	s.ends[id] = end
	return func(context.Context) error { return <-end }, nil
}

// end makes an epoch durable, or not.
func (s *fakeStore) end(id epoch.ID, err error) {
	s.ends[id] <- err
	synctest.Wait()
}

// A result is what a call returned.
type result struct {
	id   epoch.ID
	err  error
	over bool
}

// call runs f in a goroutine. It has come to a stop when call returns.
func call(f func() (epoch.ID, error)) *result {
	r := &result{}
	go func() {
		r.id, r.err = f()
		r.over = true
	}()
	synctest.Wait()
	return r
}

func commit(t *testing.T, m *epoch.Manager, s *fakeStore, store bool) *result {
	s.dirty = s.dirty || store
	return call(func() (epoch.ID, error) { return m.Commit(t.Context(), epoch.All) })
}

// Epochs are sent while others are in flight, up to four of them. The fifth waits, and
// is one for all who come meanwhile.
func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		var calls []*result
		for range 7 {
			calls = append(calls, commit(t, m, s, true))
		}
		if got := m.Stats(); len(s.posted) != 4 || got.InFlight != 4 || got.Full != 1 {
			t.Fatalf("sent %v, %+v; want 4 epochs", s.posted, got)
		}
		s.end(1, nil)
		if len(s.posted) != 5 || !calls[0].over || calls[1].over {
			t.Fatalf("sent %v after the first was durable", s.posted)
		}
		for id := epoch.ID(2); id <= 5; id++ {
			s.end(id, nil)
		}
		for i, c := range calls {
			if want := epoch.ID(min(i+1, 5)); !c.over || c.id != want || c.err != nil {
				t.Errorf("call %d: %+v, want epoch %d", i, *c, want)
			}
		}
		if got := m.Stats().InFlight; got != 0 {
			t.Errorf("%d epochs are in flight", got)
		}
	})
}

// Who stored nothing since the last seal waits for all that is in flight, and fails with
// it.
func TestCommitWaitsForWhatIsInFlight(t *testing.T) {
	failed := errors.New("failed")
	for _, end := range []error{nil, failed} {
		synctest.Test(t, func(t *testing.T) {
			s := newFakeStore()
			m := epoch.NewManager(s)
			commit(t, m, s, true)
			commit(t, m, s, true)
			late := commit(t, m, s, false)
			s.end(2, end)
			if late.over != (end != nil) && late.over {
				t.Fatalf("it returned before the first epoch was durable: %+v", *late)
			}
			s.end(1, end)
			if !late.over || !errors.Is(late.err, end) || end == nil && late.id != 2 {
				t.Errorf("got %+v, want epoch 2, %v", *late, end)
			}
			if again := commit(t, m, s, false); !again.over || again.err != nil {
				t.Errorf("afterwards: %+v", *again)
			}
		})
	}
}

// A barrier seals while epochs are in flight, and none is sealed on top of the frozen
// one before that is sent.
func TestBarrierBesideEpochsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		first := commit(t, m, s, true)
		captured := make(chan error)
		barrier := call(func() (epoch.ID, error) {
			return m.Barrier(t.Context(), func(_ context.Context, seal func() (epoch.ID, error)) error {
				if _, err := seal(); err != nil {
					return err
				}
				return <-captured
			})
		})
		if !s.frozen {
			t.Fatal("the barrier waits for the epoch in flight")
		}
		second := commit(t, m, s, true)
		if len(s.posted) != 1 {
			t.Fatal("an epoch was sealed on top of a frozen one")
		}
		captured <- nil
		synctest.Wait()
		for id := epoch.ID(1); id <= 3; id++ {
			s.end(id, nil)
		}
		for i, c := range []*result{first, barrier, second} {
			if !c.over || c.err != nil || c.id != epoch.ID(i+1) {
				t.Errorf("call %d: %+v", i, *c)
			}
		}
		// One that is called off leaves nothing behind.
		off := errors.New("called off")
		barrier = call(func() (epoch.ID, error) {
			return m.Barrier(t.Context(), func(_ context.Context, seal func() (epoch.ID, error)) error {
				_, _ = seal()
				return off
			})
		})
		if !barrier.over || !errors.Is(barrier.err, off) || s.frozen {
			t.Errorf("a barrier that was called off: %+v", *barrier)
		}
		commit(t, m, s, true)
		s.end(4, nil)
	})
}

// Exclusive waits for what is in flight, and nothing is sent meanwhile.
func TestExclusive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeStore()
		m := epoch.NewManager(s)
		commit(t, m, s, true)
		ran, end := false, make(chan error)
		go func() {
			_ = m.Exclusive(func() error {
				ran = true
				return <-end
			})
		}()
		synctest.Wait()
		second := commit(t, m, s, true)
		if ran || len(s.posted) != 1 {
			t.Fatal("it does not wait for the epoch in flight")
		}
		s.end(1, nil)
		if !ran || len(s.posted) != 1 {
			t.Fatal("an epoch was sent meanwhile, or it never began")
		}
		end <- nil
		synctest.Wait()
		s.end(2, nil)
		if !second.over || second.err != nil {
			t.Errorf("the commit after it: %+v", *second)
		}
	})
}
