package memnode

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// What a share gave back cannot be read by the next one that gets it, in short runs,
// which are not worth a hole, as in long ones.
func TestFreedSlotsAreEmpty(t *testing.T) {
	dir, ctx := newPoolDir(t), t.Context()
	p := reopenKeep(t, openPool(t, dir), dir)
	secret := bytes.Repeat([]byte("secret! "), region.PageSize/8)
	first := true
	var given []region.Run
	for _, name := range []string{"a", "b"} {
		share := mustShare(t, p, name, 0)
		mustLease(t, p, share)
		v := p.View(share)
		fence, err := v.Fence(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Create(ctx, namespace.Root, "f", fileInode())
		if err != nil {
			t.Fatal(err)
		}
		if first {
			if _, err := v.Grant(ctx, region.ID(f.Ino), 100, 100); err != nil {
				t.Fatal(err)
			}
			loc, err := v.Locate(ctx, region.ID(f.Ino))
			if err != nil {
				t.Fatal(err)
			}
			start := loc.Extents[0].Start + region.FormatSlots
			given = []region.Run{{Start: start, N: 3}, {Start: start + 20, N: 40}}
			for _, r := range given {
				for s := r.Start; s < r.End(); s++ {
					if err := fence.WriteAt(secret, s.Offset()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := v.Return(ctx, region.ID(f.Ino), given); err != nil {
				t.Fatal(err)
			}
			first = false
			continue
		}
		read := 0
		u, err := v.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Grant(ctx, region.ID(f.Ino), u.FreeSlots, u.FreeSlots); err != nil {
			t.Fatal(err)
		}
		for _, r := range given {
			for s := r.Start; s < r.End(); s++ {
				page := make([]byte, region.PageSize)
				if err := fence.ReadAt(page, s.Offset()); err != nil {
					continue // not granted
				}
				if bytes.Contains(page, []byte("secret")) {
					t.Errorf("slot %d still holds what the other share wrote", s)
				}
				read++
			}
		}
		if read < 40 {
			t.Errorf("only %d of the slots came to the other share", read)
		}
	}
}

// The power goes at each flush and around each transaction while a share gives slots back
// or removes a file, and again while the next share gets them. Whatever was freed by then,
// the next share finds nothing in it.
func TestFreedSlotsAreEmptyAfterPowerLoss(t *testing.T) {
	read := 0
	for _, reaped := range []bool{false, true} {
		for _, atFlush := range []bool{false, true} {
			for cut := 0; ; cut++ {
				n, lost := freedThenLost(t, reaped, atFlush, cut)
				if read += n; !lost {
					break // each was tried
				}
			}
		}
	}
	if read == 0 {
		t.Error("no slot came to the other share")
	}
}

// freedThenLost is one history, whose power goes at a flush or a transaction, counted from
// when slots are about to be freed. It returns how many of these the other share read.
func freedThenLost(t *testing.T, reaped, atFlush bool, cut int) (read int, lost bool) {
	t.Helper()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), metaFile)
	h := header{slots: 200, created: 1}
	if err := createMeta(path, h, true); err != nil {
		t.Fatal(err)
	}
	power := newCrashMedium(int64(h.slots) * region.PageSize)
	if err := writeHeader(power, h); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(*seed, uint64(cut)))
	boot := func() (*Pool, *powerMeta) {
		t.Helper()
		bolt, err := openMeta(path, false, true)
		if err != nil {
			t.Fatal(err)
		}
		power = power.Restart(rng, -1)
		meta := &powerMeta{boltMeta: bolt, power: power, rng: rng, cut: -1}
		p, err := assemble(meta, power, Options{KeepOrphans: true})
		if err != nil {
			t.Fatal(err)
		}
		return p, meta
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p, meta := boot()
	shares := [2]namespace.Ino{mustShare(t, p, "a", 0), mustShare(t, p, "b", 0)}
	lease := Lease{Share: shares[0], Session: [16]byte{1}, Timeout: time.Second}
	_, err := p.GrantLease(ctx, lease)
	must(err)
	v := p.View(shares[0])
	fence, err := v.Fence(ctx)
	must(err)
	f, err := v.Create(ctx, namespace.Root, "f", fileInode())
	must(err)
	_, err = v.Grant(ctx, region.ID(f.Ino), 60, 60)
	must(err)
	loc, err := v.Locate(ctx, region.ID(f.Ino))
	must(err)
	start := loc.Extents[0].Start + region.FormatSlots
	given := []region.Run{{Start: start, N: 3}, {Start: start + 10, N: 30}}
	secret := bytes.Repeat([]byte("secret! "), region.PageSize/8)
	for _, r := range given {
		for s := r.Start; s < r.End(); s++ {
			must(fence.WriteAt(secret, s.Offset()))
		}
	}
	must(p.Flush())

	if atFlush {
		power.cutAfter(cut)
	} else {
		meta.cut = meta.updates + cut
	}
	if reaped {
		if _, err = v.Unlink(ctx, namespace.Root, "f"); err == nil {
			_, err = v.Reap(ctx, f.Ino)
		}
	} else {
		err = v.Return(ctx, region.ID(f.Ino), given)
	}
	lost = power.Lost()
	if err != nil && !errors.Is(err, media.ErrPowerLost) && !errors.Is(err, ErrPoisoned) {
		t.Fatal(err)
	}
	must(meta.boltMeta.close())

	// The next life: all that is free goes to the other share. In half of the histories
	// the power goes at a flush of its grants too, or after them.
	for again := rng.IntN(2); again >= 0; again-- {
		p, meta = boot()
		must(p.EndLease(ctx, shares[0], lease.Session))
		must(p.EndLease(ctx, shares[1], lease.Session))
		_, err = p.GrantLease(ctx, Lease{Share: shares[1], Session: [16]byte{1}, Timeout: time.Second})
		must(err)
		v = p.View(shares[1])
		fence, err = v.Fence(ctx)
		must(err)
		if again > 0 {
			power.cutAfter(rng.IntN(6))
		}
		g, err := v.Lookup(ctx, namespace.Root, "g")
		if errors.Is(err, namespace.ErrNotExist) {
			g, err = v.Create(ctx, namespace.Root, "g", fileInode())
		}
		must(err)
		u, err := v.Usage(ctx)
		must(err)
		for _, n := range []uint64{min(region.MinFirstGrant, u.FreeSlots), u.FreeSlots - min(region.MinFirstGrant, u.FreeSlots)} {
			if n > 0 && err == nil { // the second does not format
				_, err = v.Grant(ctx, region.ID(g.Ino), n, n)
			}
		}
		if err != nil && again == 0 {
			t.Fatal(err)
		}
		page := make([]byte, region.PageSize)
		for _, r := range given {
			for s := r.Start; s < r.End() && again == 0; s++ {
				if err := fence.ReadAt(page, s.Offset()); err != nil {
					continue // not granted
				}
				if bytes.Contains(page, []byte("secret")) {
					t.Fatalf("slot %d still holds what the other share wrote (reaped %v, at flush %v, cut %d)", s, reaped, atFlush, cut)
				}
				read++
			}
		}
		must(meta.boltMeta.close())
	}
	return read, lost
}
