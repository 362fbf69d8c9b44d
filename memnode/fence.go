package memnode

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Fence is the memory node's end of a session's data path: the slots of one share,
// until the lease is over. Its View keeps it up to date. It is safe for concurrent
// use; an access costs two atomic additions and a binary search.
//
// Lock order: changing, then a transaction of meta.db; windowsMu, then Pool.mu; gate and
// flushing are taken alone. A session's changing may be held while that of a reader is taken.
type Fence struct {
	pool   *Pool         // immutable, as the next two
	share  namespace.Ino // the session's; of a reader, 0
	reader bool          // reaches what Admit lets it, and what others free is out of its reach
	// slots is what the session may touch; nil before it is loaded. Each store
	// publishes a set that does not change any more.
	slots atomic.Pointer[runSet]
	// ended is stored once. Accesses that began before hold gate or flushing.
	ended atomic.Bool

	// changing is held from a transaction that changes the extents until slots
	// says so, across I/O.
	changing sync.Mutex
	gate     sync.RWMutex // held for reading during a read or write
	flushing sync.RWMutex // held for reading during a flush

	windowsMu sync.Mutex // guards windows; never held across a call of one
	windows   []rdmacache.Window
}

var _ rdmacache.Memory = (*Fence)(nil)

// ReadAt fills p from byte off of the pool. ErrRange unless all of it is in slots of
// the share.
func (f *Fence) ReadAt(p []byte, off int64) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	if err := f.check("read", len(p), off); err != nil {
		return err
	}
	return f.pool.ReadAt(p, off)
}

// WriteAt stores p at byte off of the pool. ErrRange unless all of it is in slots of
// the share.
func (f *Fence) WriteAt(p []byte, off int64) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	if err := f.check("write", len(p), off); err != nil {
		return err
	}
	return f.pool.WriteAt(p, off)
}

// check refuses an access. gate is held.
func (f *Fence) check(op string, n int, off int64) error {
	if f.ended.Load() {
		return rdmacache.ErrFenced
	}
	if !f.slots.Load().holds(off, n) {
		return rangeError(op, n, off)
	}
	return nil
}

// Flush makes all earlier writes persistent. Flushes of all fences that come at one
// time share one of the medium.
func (f *Fence) Flush() error {
	f.flushing.RLock()
	defer f.flushing.RUnlock()
	if f.ended.Load() {
		return rdmacache.ErrFenced
	}
	return f.pool.Flush()
}

// Bytes is the memory of the whole pool, or nil if it is in none. Only what Extent says is
// the session's.
func (f *Fence) Bytes() []byte { return f.pool.Bytes() }

// Extent is the run of the share's slots that holds byte off. ErrRange if there is none.
func (f *Fence) Extent(off int64) (start, end int64, err error) {
	if f.ended.Load() {
		return 0, 0, rdmacache.ErrFenced
	}
	run, ok := f.slots.Load().at(off)
	if !ok {
		return 0, 0, rangeError("reach", 1, off)
	}
	return run.Start.Offset(), run.End().Offset(), nil
}

// Persist makes persistent what one-sided access stored in slots of the share.
func (f *Fence) Persist(off, n int64) error {
	f.flushing.RLock()
	defer f.flushing.RUnlock()
	if n < 0 || int64(int(n)) != n {
		return rangeError("persist", 0, off)
	}
	if err := f.check("persist", int(n), off); err != nil {
		return err
	}
	return f.pool.persist(off, n)
}

// Expose makes w hear what the session loses. It is in time: what Extent said before is
// revoked after.
func (f *Fence) Expose(w rdmacache.Window) error {
	f.windowsMu.Lock()
	defer f.windowsMu.Unlock()
	if f.ended.Load() {
		return rdmacache.ErrFenced
	}
	if !f.reader {
		f.pool.exposed(f.share)
	}
	f.windows = append(f.windows, w)
	return nil
}

// Withdraw forgets w.
func (f *Fence) Withdraw(w rdmacache.Window) {
	f.windowsMu.Lock()
	defer f.windowsMu.Unlock()
	f.windows = slices.DeleteFunc(f.windows, func(x rdmacache.Window) bool { return x == w })
}

// tell calls fn for each window.
func (f *Fence) tell(fn func(rdmacache.Window)) {
	f.windowsMu.Lock()
	windows := slices.Clone(f.windows)
	f.windowsMu.Unlock()
	for _, w := range windows {
		fn(w)
	}
}

// revoke takes freed slots, which slots does not have any more, out of reach: no access
// to them is under way when it returns.
func (f *Fence) revoke(freed []region.Run) {
	f.tell(func(w rdmacache.Window) {
		for _, r := range freed {
			w.Revoke(r.Start.Offset(), r.End().Offset())
		}
	})
	f.drain()
}

// Medium says what a flush promises.
func (f *Fence) Medium() rdmacache.Medium { return f.pool.Medium() }

// End ends the session: once it returned nothing of it is under way, and every
// later call of Fence and View returns rdmacache.ErrFenced. It waits for the medium
// only.
func (f *Fence) End() {
	f.ended.Store(true)
	f.tell(rdmacache.Window.End)
	f.drain()
	if f.reader {
		// Only now: who frees slots before has to wait for what is under way here.
		f.pool.forgetReader(f)
	}
	f.flushing.Lock()
	//lint:ignore SA2001 to wait for the readers is all
	f.flushing.Unlock()
}

// drain waits for reads and writes that began before the call.
func (f *Fence) drain() {
	f.gate.Lock()
	//lint:ignore SA2001 to wait for the readers is all
	f.gate.Unlock()
}

// over tells whether the session has ended. A nil Fence never does.
func (f *Fence) over() bool { return f != nil && f.ended.Load() }

// load sets the slots by fn, unless they are.
func (f *Fence) load(fn func() ([]region.Run, error)) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	if f.slots.Load() != nil {
		return nil
	}
	runs, err := fn()
	if err != nil {
		return err
	}
	set := runSet(nil).with(runs)
	f.slots.Store(&set)
	return nil
}

// change runs commit, which changes the extents, and makes the slots follow. What was
// freed is out of reach when it returns: accesses that began before have ended. A nil
// Fence only commits.
func (f *Fence) change(commit func() (granted, freed []region.Run, err error)) error {
	if f == nil {
		_, _, err := commit()
		return err
	}
	// One at a time: slots that are granted and given back again must not come
	// here in the other order.
	f.changing.Lock()
	defer f.changing.Unlock()
	granted, freed, err := commit()
	slots := f.slots.Load()
	if err != nil || slots == nil {
		return err
	}
	changed := slots.with(granted).without(freed)
	f.slots.Store(&changed)
	if len(freed) > 0 {
		f.revoke(freed)
	}
	return nil
}

// admit adds to the slots of a reader what fn finds. Some of it may be there already.
func (f *Fence) admit(fn func() ([]region.Run, error)) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	runs, err := fn()
	if err != nil {
		return err
	}
	changed := f.slots.Load().without(runs).with(runs)
	f.slots.Store(&changed)
	return nil
}

// take takes slots from a reader. No access to them is under way when it returns.
func (f *Fence) take(freed []region.Run) {
	f.changing.Lock()
	defer f.changing.Unlock()
	changed := f.slots.Load().without(freed)
	f.slots.Store(&changed)
	f.revoke(freed)
}
