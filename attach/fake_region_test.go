package attach

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// A layer is captured pages.
type layer map[uint64]capture

type capture struct {
	when int64
	page [ring.PageSize]byte
}

// fakeRegion is a file whose pages are memory that the fake members share. It checks
// what it is given: at each commit of a barrier the image is memory as it was at the
// seal, and a rollback comes while nobody stores.
type fakeRegion struct {
	t *testing.T

	memMu sync.RWMutex // for reading while pages are copied out, for writing while stored to
	mem   []byte
	dirty map[uint64]bool // stores that the kernel has not written back

	commitMu sync.Mutex // serialises barriers and rollbacks

	mu        sync.Mutex // guards the fields below
	committed []byte
	id        epoch.ID
	open      layer
	sealed    layer // nil: none
	discarded int64 // copies from before are stale
	condemned bool
	poison    error
	failNext  map[string]error // operation to what it returns next
	untracked bool
	extra     []uint64
	slow      time.Duration // of a Capture
	attached  int
	pauses    []time.Duration
	left      bool       // somebody closed the file, and others have it open
	onSize    func()     // called for each entry of a ring
	running   func() int // how many threads run; nil: nobody knows

	captures, barriers, rollbacks, condemns int
}

func newFakeRegion(t *testing.T, pages int) *fakeRegion {
	return &fakeRegion{
		t: t, mem: make([]byte, pages*ring.PageSize), committed: make([]byte, pages*ring.PageSize),
		dirty: make(map[uint64]bool), open: layer{}, failNext: make(map[string]error),
	}
}

// fail takes the error that an operation is to return.
func (r *fakeRegion) fail(op string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.failNext[op]
	delete(r.failNext, op)
	return err
}

func (r *fakeRegion) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *fakeRegion) Attach(_ context.Context, ino uint64, uid, _ uint32) (Region, error) {
	if ino != testIno {
		return nil, namespace.ErrNotExist
	}
	if err := r.fail("attach"); err != nil {
		return nil, err
	}
	r.set(func() { r.attached++ })
	return r, nil
}

// Close may be the last one of the file: what is not committed is rolled back then.
// Otherwise the kernel may have what no member finds.
func (r *fakeRegion) Close() {
	r.memMu.Lock()
	defer r.memMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attached--
	r.left = r.attached > 0
	if !r.left {
		r.discard()
	}
}

// discard throws the open epoch away. memMu and mu are held.
func (r *fakeRegion) discard() {
	copy(r.mem, r.committed)
	clear(r.dirty)
	r.open = layer{}
	r.discarded = monotonic()
}

func (r *fakeRegion) Barrier(ctx context.Context, quiesce func(context.Context, func() ([]uint64, epoch.ID, error)) error) (epoch.ID, error) {
	if err := r.fail("barrier"); err != nil {
		return 0, err
	}
	locked := false
	defer func() {
		if locked {
			r.commitMu.Unlock()
		}
	}()
	var snapshot []byte
	err := quiesce(ctx, func() ([]uint64, epoch.ID, error) {
		r.commitMu.Lock()
		locked = true
		if err := r.fail("seal"); err != nil {
			return nil, 0, err
		}
		r.memMu.RLock()
		defer r.memMu.RUnlock()
		snapshot = bytes.Clone(r.mem)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.condemned {
			r.t.Error("sealed a condemned epoch")
		}
		r.sealed, r.open = r.open, layer{}
		return r.extra, r.id + 1, nil
	})
	if err == nil {
		err = r.fail("commit")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, epoch.ErrPoisoned) {
		r.poison = err
	}
	if err != nil {
		for no, c := range r.sealed {
			newerCopy(r.open, no, c)
		}
		r.sealed = nil
		return 0, err
	}
	for no, c := range r.sealed {
		copy(r.committed[no*ring.PageSize:], c.page[:])
	}
	r.sealed = nil
	r.id++
	r.barriers++
	if !bytes.Equal(r.committed, snapshot) {
		for i := range snapshot {
			if r.committed[i] != snapshot[i] {
				r.t.Errorf("epoch %d: byte %d of page %d is %d, was %d at the barrier", r.id, i%ring.PageSize, i/ring.PageSize, r.committed[i], snapshot[i])
				break
			}
		}
	}
	return r.id, nil
}

func newerCopy(l layer, no uint64, c capture) {
	if old, ok := l[no]; !ok || c.when > old.when {
		l[no] = c
	}
}

func (r *fakeRegion) Capture(_ context.Context, sealed bool, page uint64, when int64, p []byte) error {
	if now := monotonic(); when > now {
		r.t.Errorf("page %d was copied %d ns from now", page, when-now)
	}
	if err := r.fail("capture"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slow > 0 {
		time.Sleep(r.slow)
	}
	r.captures++
	if when <= r.discarded {
		r.t.Errorf("page %d of before the rollback", page)
	}
	into := r.open
	if sealed {
		if into = r.sealed; into == nil {
			r.t.Errorf("page %d for an epoch that is not sealed", page)
			return nil
		}
	}
	c := capture{when: when}
	copy(c.page[:], p)
	newerCopy(into, page, c)
	return nil
}

// writeBack is what the kernel does in sync_file_range.
func (r *fakeRegion) writeBack() {
	r.memMu.Lock()
	defer r.memMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	when := monotonic()
	for no := range r.dirty {
		c := capture{when: when}
		copy(c.page[:], r.mem[no*ring.PageSize:])
		newerCopy(r.open, no, c)
	}
	clear(r.dirty)
	r.left = false
}

func (r *fakeRegion) Untracked([]int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.untracked || r.left
}

func (r *fakeRegion) Condemn() { r.set(func() { r.condemned = true; r.condemns++ }) }

func (r *fakeRegion) Rollback(context.Context) error {
	if err := r.fail("rollback"); err != nil {
		return err
	}
	r.commitMu.Lock()
	defer r.commitMu.Unlock()
	r.memMu.Lock()
	defer r.memMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.condemns <= r.rollbacks { // one that comes during a rollback leads to another
		r.t.Error("rollback of an epoch that was not condemned")
	}
	if r.running != nil {
		if n := r.running(); n > 0 {
			r.t.Errorf("rollback while %d threads run", n)
		}
	}
	r.discard()
	r.left = false
	r.condemned = false
	r.rollbacks++
	return nil
}

func (r *fakeRegion) Committed() epoch.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

func (r *fakeRegion) Size() int64 {
	r.mu.Lock()
	hook := r.onSize
	r.mu.Unlock()
	if hook != nil {
		hook()
	}
	return int64(len(r.mem))
}

func (r *fakeRegion) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.poison == nil && r.condemned {
		return errors.New("the open epoch is condemned")
	}
	return r.poison
}

// peek returns the first byte of a page of memory.
func (r *fakeRegion) peek(page int) byte {
	r.memMu.RLock()
	defer r.memMu.RUnlock()
	return r.mem[page*ring.PageSize]
}

// image returns what is committed.
func (r *fakeRegion) image() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.committed)
}

// counts returns barriers that committed, and rollbacks.
func (r *fakeRegion) counts() (barriers, rollbacks int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.barriers, r.rollbacks
}

func testErrno(err error) unix.Errno {
	if errors.Is(err, epoch.ErrPoisoned) {
		return unix.EIO
	}
	return defaultErrno(err)
}
