package memnode

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// A fenceDevice is a session's way to its region. Its flushes fail once it is
// unplugged: the session dies in the middle of a commit.
type fenceDevice struct {
	*Fence
	unplugged bool
	memory    *media.Crashable // that it stores to without a call; nil: it calls
	stored    [][2]int64       // offset and bytes, since the last flush
}

func (d *fenceDevice) Read(_ context.Context, p []byte, off int64) error  { return d.ReadAt(p, off) }
func (d *fenceDevice) Write(_ context.Context, p []byte, off int64) error { return d.WriteAt(p, off) }

func (d *fenceDevice) WriteAt(p []byte, off int64) error {
	d.stored = append(d.stored, [2]int64{off, int64(len(p))})
	if d.memory == nil {
		return d.Fence.WriteAt(p, off)
	}
	return d.memory.Store(p, off)
}

func (d *fenceDevice) Flush(context.Context) error {
	if d.unplugged {
		return errors.New("unplugged")
	}
	if d.memory == nil {
		d.stored = nil
		return d.Fence.Flush()
	}
	for _, s := range d.stored {
		if err := d.memory.Persist(s[0], s[1]); err != nil {
			return err
		}
	}
	d.stored = nil
	return nil
}

// noWindow is access that is never given.
type noWindow struct{}

func (noWindow) Revoke(start, end int64) {}
func (noWindow) End()                    {}

// A takeover is a share with one file, of which sessions come one after the other.
type takeover struct {
	t     *testing.T
	path  string
	power *media.Crashable
	pool  *Pool
	share namespace.Ino
	id    region.ID
	now   byte // number of the session
	keep  bool // leases, when the pool is opened
	// direct sessions store to the medium's memory themselves.
	direct bool
	// cached: what a call stored is in the processor's caches, and its process flushes it.
	cached bool
}

// A cached medium flushes, as media.Pmem does, what was stored by it, and not what another
// process stored.
type cached struct {
	*media.Crashable
	mu     sync.Mutex
	stored [][2]int64
}

func (m *cached) WriteAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored = append(m.stored, [2]int64{off, int64(len(p))})
	return m.Store(p, off)
}

func (m *cached) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.stored {
		if err := m.Persist(s[0], s[1]); err != nil {
			return err
		}
	}
	m.stored = nil
	return nil
}

// start opens the pool as a memory node does that was killed before.
func (x *takeover) start() {
	x.t.Helper()
	if x.pool != nil {
		if err := x.pool.meta.close(); err != nil {
			x.t.Fatal(err)
		}
	}
	meta, err := openMeta(x.path, false, true)
	if err != nil {
		x.t.Fatal(err)
	}
	var m media.Media = x.power
	if x.cached {
		m = &cached{Crashable: x.power}
	}
	if x.pool, err = assemble(meta, m, Options{KeepOrphans: x.keep}); err != nil {
		x.t.Fatal(err)
	}
}

// session ends the one before, if there is one, and opens the file in the next.
func (x *takeover) session() (*fenceDevice, *region.Image) {
	x.t.Helper()
	ctx := x.t.Context()
	if err := x.pool.EndLease(ctx, x.share, [16]byte{x.now}); err != nil {
		x.t.Fatal(err)
	}
	x.now++
	l, err := x.pool.GrantLease(ctx, Lease{Share: x.share, Session: [16]byte{x.now}, Timeout: time.Second})
	if err != nil {
		x.t.Fatal(err)
	}
	return x.open(l.Generation)
}

func (x *takeover) open(generation uint64) (*fenceDevice, *region.Image) {
	x.t.Helper()
	ctx := x.t.Context()
	v := x.pool.View(x.share)
	f, err := v.Fence(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	loc, err := v.Locate(ctx, x.id)
	if err != nil {
		x.t.Fatal(err)
	}
	d := &fenceDevice{Fence: f}
	if x.direct {
		if err := f.Expose(noWindow{}); err != nil {
			x.t.Fatal(err)
		}
		d.memory = x.power
	}
	im, err := region.Open(ctx, region.Config{Device: d, Space: v, Generation: generation, Location: loc})
	if err != nil {
		x.t.Fatal(err)
	}
	return d, im
}

// store writes page 0 to a slot of its own, as an early push does.
func (x *takeover) store(d *fenceDevice, im *region.Image, stamp uint64) region.Change {
	x.t.Helper()
	runs, err := im.Alloc(x.t.Context(), 1)
	if err != nil {
		x.t.Fatal(err)
	}
	p := stampPage(stamp)
	if err := d.WriteAt(p, runs[0].Start.Offset()); err != nil {
		x.t.Fatal(err)
	}
	return region.Change{Cut: region.NoPage, Size: region.PageSize, Pages: []region.PageChange{{Slot: runs[0].Start, CRC: region.Checksum(p)}}}
}

func newTakeover(t *testing.T) *takeover {
	t.Helper()
	return newTakeoverOn(t, false)
}

func newTakeoverOn(t *testing.T, cached bool) *takeover {
	t.Helper()
	x := &takeover{t: t, path: filepath.Join(t.TempDir(), metaFile), keep: true, cached: cached}
	h := header{slots: 200, created: 1}
	if err := createMeta(x.path, h, true); err != nil {
		t.Fatal(err)
	}
	x.power = media.NewCrashable(int64(h.slots)*region.PageSize, -1)
	if err := writeHeader(x.power, h); err != nil {
		t.Fatal(err)
	}
	x.start()
	t.Cleanup(func() { _ = x.pool.meta.close() })
	x.share = mustShare(t, x.pool, "s", 0)
	n, err := x.pool.View(x.share).Create(t.Context(), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	x.id = region.ID(n.Ino)
	return x
}

// A session dies in a commit, before its flush. The next one finds that epoch whole,
// and uses the slots that it has replaced. When the power goes then, what was
// acknowledged before is still there.
func TestTakeoverOfUnflushedEpoch(t *testing.T) {
	for _, how := range []struct {
		name                     string
		restarted, leased, mount bool
	}{
		{name: "lease"},
		{name: "memory node", restarted: true},
		{name: "memory node, lease", restarted: true, leased: true},
		{name: "mount", restarted: true, mount: true},
	} {
		for name, way := range map[string]struct{ direct, cached bool }{
			"calls": {}, "calls, caches": {cached: true}, "direct": {direct: true},
		} {
			t.Run(how.name+", "+name, func(t *testing.T) {
				for i := range uint64(40) {
					takeOverUnflushed(t, i, way.direct, way.cached, how.restarted, how.leased, how.mount)
				}
			})
		}
	}
}

func takeOverUnflushed(t *testing.T, i uint64, direct, cached, restarted, leased, mount bool) {
	x, ctx := newTakeoverOn(t, cached), t.Context()
	x.direct = direct
	d, im := x.session()
	for stamp := range uint64(2) {
		if _, err := im.Commit(ctx, x.store(d, im, stamp)); err != nil {
			t.Fatal(err)
		}
	}
	d.unplugged = true
	if _, err := im.Commit(ctx, x.store(d, im, 2)); err == nil {
		t.Fatal("a commit without a flush succeeded")
	}
	if !restarted {
		d.End()
	} else {
		x.keep = !mount
		x.start()
	}
	if !restarted || leased {
		d, im = x.session()
	} else if !mount {
		// The holder's session goes on: it has what no flush covers, and stores it again.
		left := d.stored
		d, im = x.open(x.pool.Generation())
		for _, s := range left {
			p := make([]byte, s[1])
			if err := errors.Join(d.ReadAt(p, s[0]), d.WriteAt(p, s[0])); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	} else {
		d, im = x.open(x.pool.Generation()) // as a mount of the pool does
	}
	if got := im.State().Epoch; got != 3 {
		t.Fatalf("the next session finds epoch %d, want 3", got)
	}
	for stamp := range uint64(4) {
		x.store(d, im, 100+stamp)
	}
	x.power = x.power.Restart(rand.New(rand.NewPCG(*seed, i)), -1)
	x.start()
	_, im = x.session()
	if got := im.State().Epoch; got < 2 {
		t.Fatalf("power cut %d: epoch %d is found, 2 was acknowledged; -seed=%d", i, got, *seed)
	}
}

// fullMeta has space for so many transactions.
type fullMeta struct {
	*boltMeta
	room int
}

func (m *fullMeta) update(fn func(txn) error) error {
	if m.room--; m.room >= 0 {
		return m.boltMeta.update(fn)
	}
	return m.boltMeta.update(func(t txn) error {
		if err := fn(t); err != nil {
			return err
		}
		return region.ErrNoSpace
	})
}

// An inode without a name is freed before its share is leased, and not while it is. A
// grant that cannot free it leaves no lease behind, which nobody would end.
func TestGrantLeaseReapsFirst(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	share := mustShare(t, p, "s", 0)
	first := Lease{Share: share, Session: [16]byte{1}, Timeout: time.Second}
	if _, err := p.GrantLease(ctx, first); err != nil {
		t.Fatal(err)
	}
	v := p.View(share)
	n, err := v.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	next := Lease{Share: share, Session: [16]byte{2}, Timeout: time.Second}
	_, err = p.GrantLease(ctx, next)
	wantErr(t, "GrantLease of a share that is leased", err, ErrLeased)
	if _, err := v.Inode(ctx, n.Ino); err != nil {
		t.Errorf("a file that may be open: %v", err)
	}
	if err := p.EndLease(ctx, share, first.Session); err != nil {
		t.Fatal(err)
	}
	good := p.meta
	for n := range 2 { // transactions that find space: of reaping, and of the lease
		p.meta = &fullMeta{good.(*boltMeta), n}
		_, err = p.GrantLease(ctx, next)
		p.meta = good
		wantErr(t, "GrantLease without space", err, region.ErrNoSpace)
		if leases, err := p.Leases(ctx); err != nil || len(leases) != 0 {
			t.Errorf("after %d transactions: Leases = %v, %v, want none", n, leases, err)
		}
	}
	if _, err := p.GrantLease(ctx, next); err != nil {
		t.Fatal(err)
	}
	_, err = v.Inode(ctx, n.Ino)
	wantErr(t, "the file that nobody has open", err, namespace.ErrNotExist)
	wantSound(t, p)
}

// Nobody makes shares in a pool that another has as a whole.
func TestMakeShareInLeasedPool(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	whole := Lease{Share: namespace.Root, Session: [16]byte{1}, Timeout: time.Second}
	if _, err := p.GrantLease(ctx, whole); err != nil {
		t.Fatal(err)
	}
	_, err := p.MakeShare(ctx, "s", 0)
	wantErr(t, "MakeShare", err, ErrLeased)
	if _, err := p.Lookup(ctx, namespace.Root, "s"); !errors.Is(err, namespace.ErrNotExist) {
		t.Errorf("Lookup = %v", err)
	}
	if err := p.EndLease(ctx, whole.Share, whole.Session); err != nil {
		t.Fatal(err)
	}
	mustShare(t, p, "s", 0)
}

// A checkpoint that the pool has no place for is refused, so that no caller can make
// Check complain.
func TestCheckpointOutsideThePool(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	n := mustCreate(t, p, namespace.Root, "f", fileInode())
	mustGrant(t, p, n.Ino, 20)
	for _, root := range []region.Slot{testSlots, region.MaxSlot - 1} {
		cp := region.Checkpoint{Name: "c", Epoch: 1, Tree: region.Tree{Root: root, Height: 1}}
		wantErr(t, "SaveCheckpoint", p.SaveCheckpoint(ctx, region.ID(n.Ino), cp), namespace.ErrInvalid)
	}
	wantSound(t, p)
}
