package memnode

import (
	"fmt"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/region"
)

// A badPage is memory of which one page cannot be written back. It notes the pages that were.
type badPage struct {
	*media.Crashable
	bad int64

	mu   sync.Mutex
	done map[int64]bool // by offset
}

func (m *badPage) Persist(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off <= m.bad && m.bad < off+n {
		return fmt.Errorf("persist: %w", media.ErrFault)
	}
	for ; n > 0; off, n = off+region.PageSize, n-region.PageSize {
		m.done[off] = true
	}
	return nil
}

// A page that cannot be written back keeps neither the pool from opening nor a lease from
// ending, and no other page from being persistent. A lease that goes on costs an opening
// nothing.
func TestSettleWithBadPage(t *testing.T) {
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprintf("leases kept: %v", keep), func(t *testing.T) {
			x, ctx := newTakeover(t), t.Context()
			x.session()
			if _, err := x.pool.View(x.share).Grant(ctx, x.id, 10, 10); err != nil {
				t.Fatal(err)
			}
			var runs []region.Run
			err := x.pool.view(ctx, func(tx txn) (err error) {
				runs, err = tx.of(x.share).allExtents()
				return err
			})
			if err != nil || len(runs) == 0 || runs[0].N < 3 {
				t.Fatalf("the share has %v, %v", runs, err)
			}
			m := &badPage{Crashable: x.power, bad: runs[0].Start.Offset() + region.PageSize, done: make(map[int64]bool)}
			if err := x.pool.meta.close(); err != nil {
				t.Fatal(err)
			}
			meta, err := openMeta(x.path, false, true)
			if err != nil {
				t.Fatal(err)
			}
			if x.pool, err = assemble(meta, m, Options{KeepOrphans: keep}); err != nil {
				t.Fatalf("the pool does not open: %v", err)
			}
			if keep {
				if len(m.done) > 0 {
					t.Errorf("opening persisted %d pages of a share whose lease goes on", len(m.done))
				}
				if err := x.pool.EndLease(ctx, x.share, [16]byte{x.now}); err != nil {
					t.Fatalf("the share is locked: %v", err)
				}
				if leases, err := x.pool.Leases(ctx); err != nil || len(leases) > 0 {
					t.Errorf("leases %v, %v", leases, err)
				}
			}
			for _, r := range runs {
				for s := r.Start; s < r.End(); s++ {
					if off := s.Offset(); m.done[off] == (off == m.bad) {
						t.Errorf("page at %d is persistent: %v; at %d is the bad one", off, m.done[off], m.bad)
					}
				}
			}
		})
	}
}

// A lease whose share no device reached costs nothing when it ends. Of one that devices
// reached all is persistent then; that an older session ends once more changes nothing.
func TestSettleWhatWasExposed(t *testing.T) {
	x, ctx := newTakeover(t), t.Context()
	m := &badPage{Crashable: x.power, bad: -1, done: make(map[int64]bool)}
	x.pool.media = m
	x.session()
	if _, err := x.pool.View(x.share).Grant(ctx, x.id, 10, 10); err != nil {
		t.Fatal(err)
	}
	first := x.now
	x.direct = true
	x.session()
	if len(m.done) > 0 {
		t.Errorf("%d pages were persisted of a share that no device reached", len(m.done))
	}
	if err := x.pool.EndLease(ctx, x.share, [16]byte{first}); err != nil {
		t.Fatal(err)
	}
	if len(m.done) > 0 {
		t.Errorf("%d pages were persisted under a lease", len(m.done))
	}
	if err := x.pool.EndLease(ctx, x.share, [16]byte{x.now}); err != nil {
		t.Fatal(err)
	}
	var runs []region.Run
	if err := x.pool.view(ctx, func(tx txn) (err error) {
		runs, err = tx.of(x.share).allExtents()
		return err
	}); err != nil || len(runs) == 0 {
		t.Fatalf("the share has %v, %v", runs, err)
	}
	for _, r := range runs {
		for s := r.Start; s < r.End(); s++ {
			if !m.done[s.Offset()] {
				t.Errorf("page at %d is not persistent", s.Offset())
			}
		}
	}
}
