package volume

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A file is a region that is open: its durable image, the pages of its open
// epoch, and the manager that commits them.
type file struct {
	ino   namespace.Ino
	ready chan struct{} // closed when loading has ended; the next four are set then

	image   *region.Image
	cache   *rdmacache.Cache
	manager *epoch.Manager
	err     error // why loading failed; the file has left the table

	// treesMu serialises what makes, uses and drops checkpoints: nobody may drop
	// one that is being restored or cloned. It is locked before all others and
	// held across everything.
	treesMu sync.Mutex

	shared sharedState // of a shared pool

	// Guarded by Volume.mu.
	refs      int                  // handles and calls that use the file
	handles   int                  // of programs
	writers   map[*Handle]struct{} // those that may store
	attached  int                  // attachments
	condemned chan struct{}        // not nil while the open epoch must be rolled back; closed then
	settling  chan struct{}        // not nil while the last close or a restore runs; closed then
	left      chan struct{}        // not nil once the file leaves the table; closed when it has
	place     *list.Element        // in Volume.idle while refs is 0
	used      time.Time            // when a handle or call last came or went
	pending   bool                 // the last close could not commit: to be retried
	maintain  bool                 // changed since the last Maintain
}

// loaded reports whether ready is closed and loading was a success.
func (f *file) loaded() bool {
	select {
	case <-f.ready:
		return f.err == nil
	default:
		return false
	}
}

// acquire returns the file with one more ref, opening its region if need be. It
// waits for a file that is leaving. The caller releases it. ErrClosed after Close.
func (v *Volume) acquire(ctx context.Context, ino namespace.Ino) (*file, error) {
	v.mu.Lock()
	closed := v.closed
	v.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	return v.acquireAny(ctx, ino)
}

// acquireAny is acquire for what Close itself may need.
func (v *Volume) acquireAny(ctx context.Context, ino namespace.Ino) (*file, error) {
	for {
		v.mu.Lock()
		f := v.files[ino]
		if f == nil {
			f = &file{ino: ino, refs: 1, used: v.now(), ready: make(chan struct{}), writers: make(map[*Handle]struct{})}
			v.files[ino] = f
			v.mu.Unlock()
			return f, v.load(ctx, f)
		}
		if wait := f.left; wait != nil {
			v.mu.Unlock()
			if err := await(ctx, wait); err != nil {
				return nil, err
			}
			continue
		}
		f.refs++
		f.used = v.now()
		v.busy(f)
		v.mu.Unlock()
		if err := await(ctx, f.ready); err != nil {
			v.release(f)
			return nil, err
		}
		if f.err != nil {
			return nil, f.err // it has left the table, with its refs
		}
		return f, nil
	}
}

// load opens the region of a file that this call put into the table.
func (v *Volume) load(ctx context.Context, f *file) error {
	err := v.openRegion(ctx, f)
	if err != nil {
		err = fmt.Errorf("open file %d: %w", f.ino, err)
		f.err = err
		v.mu.Lock()
		delete(v.files, f.ino)
		v.mu.Unlock()
	}
	close(f.ready)
	return err
}

func (v *Volume) openRegion(ctx context.Context, f *file) error {
	if v.cfg.Shared != nil {
		return v.openShared(ctx, f)
	}
	loc, err := v.cfg.Pool.Locate(ctx, region.ID(f.ino))
	if err != nil {
		return err
	}
	f.image, err = region.Open(ctx, region.Config{
		Device:     v.cfg.Conn,
		Space:      v.cfg.Pool,
		Generation: v.cfg.Pool.Generation(),
		Location:   loc,
		Family:     v.family(f.ino),
		Log:        v.log,
	})
	if err != nil {
		return err
	}
	f.cache = rdmacache.New(rdmacache.Config{
		Conn:       v.cfg.Conn,
		Image:      f.image,
		FrameBytes: v.cfg.FrameBytes,
		Pages:      v.cfg.Pages,
		Log:        v.log,
		Now:        v.now,
	})
	f.manager = epoch.NewManager(f.cache)
	return nil
}

// busy takes a file out of the idle list. mu is held.
func (v *Volume) busy(f *file) {
	if f.place != nil {
		v.idle.Remove(f.place)
		f.place = nil
	}
}

// release gives a ref back.
func (v *Volume) release(f *file) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f.refs--
	if f.refs > 0 || v.files[f.ino] != f || f.left != nil {
		return
	}
	f.place = v.idle.PushBack(f)
	_, orphan := v.orphans[f.ino]
	if orphan || v.idle.Len() > v.cfg.MaxIdle {
		v.wake()
	}
}

// evict closes the regions that were idle longest, beyond the bound. One that
// still has something to lose stays: a poisoned region, whose error must last
// until the next mount, an open epoch that could not commit, and what cannot be closed.
func (v *Volume) evict(ctx context.Context) {
	for {
		f := v.evictable()
		if f == nil {
			return
		}
		err := v.closeImage(ctx, f)
		if err != nil {
			v.log.Warn("close region", "ino", f.ino, "err", err)
		}
		stays := v.cfg.Shared == nil && (err != nil || f.cache.Err() != nil)
		v.mu.Lock()
		if stays {
			v.stay(f)
		} else {
			v.forget(f)
		}
		v.mu.Unlock()
		if stays {
			return // the next eviction begins with others
		}
	}
}

// stay takes back that a file is leaving. mu is held.
func (v *Volume) stay(f *file) {
	close(f.left)
	f.left = nil
	f.place = v.idle.PushBack(f)
	if _, orphan := v.orphans[f.ino]; orphan {
		v.wake()
	}
}

// forget takes a file that is leaving out of the table. mu is held.
func (v *Volume) forget(f *file) {
	if f.loaded() {
		v.counters.add(f)
	}
	delete(v.files, f.ino)
	close(f.left)
}

func (v *Volume) closeImage(ctx context.Context, f *file) error {
	if v.cfg.Shared != nil {
		return v.closeShared(ctx, f)
	}
	if v.cfg.ReadOnly {
		return nil // it would write
	}
	return f.image.Close(ctx)
}

// evictable picks a file and marks it as leaving.
func (v *Volume) evictable() *file {
	v.mu.Lock()
	defer v.mu.Unlock()
	over := v.idle.Len() - v.cfg.MaxIdle
	for e := v.idle.Front(); e != nil; e, over = e.Next(), over-1 {
		f := e.Value.(*file)
		switch {
		case over <= 0 && v.cfg.Shared == nil:
			return nil
		case over <= 0 && v.now().Sub(f.used) <= shownFor:
			continue
		}
		if f.pending || f.cache.Err() != nil || f.cache.DirtyScope(epoch.All) {
			continue
		}
		v.busy(f)
		f.left = make(chan struct{})
		return f
	}
	return nil
}

// await waits until c is closed or ctx ends.
func await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// commit commits scope of the file's open epoch. Commits of one file that meet
// share one epoch. A pool that is full gets the space of files removed by now
// before the error is returned.
func (v *Volume) commit(ctx context.Context, f *file, scope epoch.Scope) (epoch.ID, error) {
	// Past the first write half a commit is worse than a late one.
	ctx = context.WithoutCancel(ctx)
	began := time.Now()
	dirty := f.cache.DirtyScope(scope)
	var id epoch.ID
	err := v.reclaiming(ctx, func() (err error) {
		id, err = f.manager.Commit(ctx, scope)
		return err
	})
	if err != nil {
		return 0, err
	}
	if dirty {
		v.committed(f, began)
	}
	return id, nil
}

// committed notes that a file has a new epoch, which was asked for when it began.
func (v *Volume) committed(f *file, began time.Time) {
	if v.cfg.Committed != nil {
		v.cfg.Committed(time.Since(began))
	}
	v.mu.Lock()
	v.counters.Commits++
	f.maintain = true
	v.mu.Unlock()
	if f.image.Due() {
		v.wake()
	}
}
