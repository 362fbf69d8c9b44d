package memnode

import (
	"errors"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func TestQuota(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	share := mustShare(t, p, "s", 40*region.PageSize+1)
	v := p.View(share)
	usage := func(slots, free uint64) {
		t.Helper()
		if u, err := v.Usage(ctx); err != nil || u.Slots != slots || u.FreeSlots != free {
			t.Errorf("Usage = %+v, %v, want %d of %d slots free", u, err, free, slots)
		}
		wantSound(t, p)
	}
	create := func(name string) region.ID {
		t.Helper()
		n, err := v.Create(ctx, namespace.Root, name, fileInode())
		if err != nil {
			t.Fatal(err)
		}
		return region.ID(n.Ino)
	}
	a, b := create("a"), create("b")
	usage(40, 40)
	ga, err := v.Grant(ctx, a, 10, 20)
	if err != nil || slotsOf(ga.Runs) != 20 {
		t.Fatalf("Grant = %+v, %v", ga, err)
	}
	usage(40, 20)
	if _, err := v.Grant(ctx, b, 21, 21); !errors.Is(err, region.ErrNoSpace) || !strings.Contains(err.Error(), "quota") {
		t.Errorf("Grant over the quota = %v, want ErrNoSpace that names it", err)
	}
	if g, err := v.Grant(ctx, b, 5, math.MaxUint64); err != nil || slotsOf(g.Runs) != 20 {
		t.Errorf("Grant of what is left = %+v, %v", g, err)
	}
	usage(40, 0)
	flushes := p.Traffic().Flushes
	_, err = v.Grant(ctx, create("d"), 1, 1)
	wantErr(t, "Grant from a full share", err, region.ErrNoSpace)
	_, err = v.Clone(ctx, a, namespace.Root, "c", fileInode(), region.Seed{Tree: region.Tree{Root: ga.Super, Height: 1}})
	wantErr(t, "Clone in a full share", err, region.ErrNoSpace)
	if got := p.Traffic().Flushes - flushes; got != 0 {
		t.Errorf("%d flushes for what was refused", got)
	}
	if err := v.Return(ctx, a, []region.Run{{Start: ga.Runs[0].Start + 12, N: 8}}); err != nil {
		t.Fatal(err)
	}
	usage(40, 8)
	c, err := v.Clone(ctx, a, namespace.Root, "c", fileInode(), region.Seed{Tree: region.Tree{Root: ga.Super, Height: 1}})
	if err != nil {
		t.Fatal(err)
	}
	usage(40, 0)
	// What relatives inherit stays charged.
	if _, err := v.Unlink(ctx, namespace.Root, "a"); err != nil {
		t.Fatal(err)
	}
	if heir, err := v.Reap(ctx, namespace.Ino(a)); err != nil || heir != c.Ino {
		t.Fatalf("Reap = %d, %v", heir, err)
	}
	usage(40, 0)
	if _, err := v.Unlink(ctx, namespace.Root, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Reap(ctx, c.Ino); err != nil {
		t.Fatal(err)
	}
	usage(40, 20)
	// Less than there is takes nothing away.
	if err := p.SetQuota(ctx, "s", 5*region.PageSize); err != nil {
		t.Fatal(err)
	}
	usage(5, 0)
	_, err = v.Grant(ctx, b, 1, 1)
	wantErr(t, "Grant over a smaller quota", err, region.ErrNoSpace)
	// More than the pool has is what the pool has.
	if err := p.SetQuota(ctx, "s", math.MaxUint64); err != nil {
		t.Fatal(err)
	}
	usage(testSlots-1, testSlots-1-20)
	if err := p.SetQuota(ctx, "s", 0); err != nil {
		t.Fatal(err)
	}
	usage(testSlots-1, testSlots-1-20)
	if g, err := v.Grant(ctx, b, 100, 100); err != nil || slotsOf(g.Runs) != 100 {
		t.Errorf("Grant without a quota = %+v, %v", g, err)
	}
	s, err := p.Share(ctx, "s")
	if err != nil || s.UsedBytes != 120*region.PageSize || s.Inodes != 3 || s.Quota != 0 || s.Name != "s" || s.Ino != share {
		t.Errorf("Share = %+v, %v", s, err)
	}
	// The rest of the pool has no quota.
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	mustGrant(t, p, f.Ino, 200)
	wantSound(t, p)
}

// Regions that ask at one time share what is left: nobody gets more than the quota,
// and nobody is refused while there is something.
func TestQuotaRace(t *testing.T) {
	bolt, m := parts(t)
	meta := &hookMeta{boltMeta: bolt}
	p, err := assemble(meta, m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	share := mustShare(t, p, "s", 40*region.PageSize)
	// Two, as one changes its extents one by one once it is in the transaction.
	v, v2 := p.View(share), p.View(share)
	var ids []region.ID
	for _, name := range []string{"a", "b"} {
		n, err := v.Create(ctx, namespace.Root, name, fileInode())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, region.ID(n.Ino))
	}
	var other region.Grant
	meta.before = func() {
		if other, err = v2.Grant(ctx, ids[1], 10, 10); err != nil {
			t.Error(err)
		}
	}
	g, err := v.Grant(ctx, ids[0], 8, 40)
	if err != nil || slotsOf(g.Runs) != 30 || slotsOf(other.Runs) != 10 {
		t.Errorf("Grant = %+v, %v, beside %+v; want 30 and 10 slots", g, err, other)
	}
	wantSound(t, p)
	back := func(start, n uint64) {
		t.Helper()
		if err := v.Return(ctx, ids[0], []region.Run{{Start: g.Runs[0].Start + region.Slot(start), N: n}}); err != nil {
			t.Fatal(err)
		}
	}
	back(20, 10)
	meta.before = func() {
		if other, err = v2.Grant(ctx, ids[1], 3, 3); err != nil {
			t.Error(err)
		}
	}
	_, err = v.Grant(ctx, ids[0], 8, 8)
	wantErr(t, "Grant of what another got", err, region.ErrNoSpace)
	wantSound(t, p)
	meta.before = func() {
		if other, err = v2.Grant(ctx, ids[1], 7, 7); err != nil {
			t.Error(err)
		}
	}
	back(10, 10)
	_, err = v.Clone(ctx, ids[0], namespace.Root, "c", fileInode(), region.Seed{})
	if err != nil {
		t.Errorf("Clone into what another left = %v", err)
	}
	back(8, 2) // 4 are left
	back(6, 2)
	back(4, 2)
	meta.before = func() {
		if other, err = v2.Grant(ctx, ids[1], 1, 1); err != nil {
			t.Error(err)
		}
	}
	_, err = v.Clone(ctx, ids[0], namespace.Root, "d", fileInode(), region.Seed{})
	wantErr(t, "Clone into what another got", err, region.ErrNoSpace)
	wantSound(t, p)
	// Whoever wants more than the quota keeps nothing from others meanwhile.
	if err := p.SetQuota(ctx, "s", 60*region.PageSize); err != nil {
		t.Fatal(err)
	}
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	meta.before = func() { mustGrant(t, p, f.Ino, 900) }
	if g, err = v.Grant(ctx, ids[0], 1, math.MaxUint64); err != nil || slotsOf(g.Runs) == 0 {
		t.Errorf("Grant = %+v, %v", g, err)
	}
	wantSound(t, p)
}

// Counters that are wrong are damage, not numbers below zero.
func TestDamagedCounters(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	share := mustShare(t, p, "s", 0)
	v := p.View(share)
	_, _, orphan := furnish(t, v, namespace.Root)
	for _, rec := range []shareRecord{{slots: 100}, {inodes: 100}} {
		if err := p.meta.update(func(t txn) error { return t.putShare(share, rec) }); err != nil {
			t.Fatal(err)
		}
		_, err := v.Reap(ctx, orphan.Ino)
		wantErr(t, "Reap", err, ErrCorrupt)
	}
}

// hookMeta does something before the next update, or after it.
type hookMeta struct {
	*boltMeta
	mu            sync.Mutex
	before, after func()
}

func (m *hookMeta) update(fn func(txn) error) error {
	m.mu.Lock()
	before, after := m.before, m.after
	m.before, m.after = nil, nil
	m.mu.Unlock()
	if before != nil {
		before()
	}
	err := m.boltMeta.update(fn)
	if after != nil {
		after()
	}
	return err
}

func TestCutRuns(t *testing.T) {
	runs := []region.Run{{Start: 10, N: 5}, {Start: 20, N: 3}, {Start: 30, N: 1}}
	for n := uint64(0); n < 12; n++ {
		head, tail := cutRuns(runs, n)
		if slotsOf(head) != int64(min(n, 9)) || slotsOf(head)+slotsOf(tail) != 9 {
			t.Errorf("cutRuns(%d) = %v, %v", n, head, tail)
		}
		set := runSet(nil).with(head).with(tail)
		for _, r := range runs {
			if !set.holds(r.Start.Offset(), int(r.N)*region.PageSize) {
				t.Errorf("cutRuns(%d) = %v, %v loses %v", n, head, tail, r)
			}
		}
	}
}
