package memnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// leaseWorld is a memory node with sessions that come and go. Its random work is the
// same for the same numbers, wherever the power goes.
type leaseWorld struct {
	rng    *rand.Rand
	pool   *Pool
	serial byte
}

func bootLeases(path string, power *crashMedium, rng *rand.Rand, cut int) (*leaseWorld, *powerMeta, error) {
	bolt, err := openMeta(path, false, true)
	if err != nil {
		return nil, nil, err
	}
	meta := &powerMeta{boltMeta: bolt, power: power, rng: rand.New(rand.NewPCG(uint64(cut), 0)), cut: cut}
	p, err := assemble(meta, power, Options{KeepOrphans: true})
	return &leaseWorld{rng: rng, pool: p}, meta, err
}

// work does one thing. Only an error of the power is one.
func (w *leaseWorld) work(ctx context.Context) error {
	p := w.pool
	shares, err := p.Shares(ctx)
	if err != nil {
		return err
	}
	leases, err := p.Leases(ctx)
	if err != nil {
		return err
	}
	if len(shares) == 0 || w.rng.IntN(10) == 0 {
		_, err = p.MakeShare(ctx, fmt.Sprint("s", w.rng.IntN(4)), w.rng.Uint64N(200*region.PageSize))
		return expected(err)
	}
	s := shares[w.rng.IntN(len(shares))]
	switch k := w.rng.IntN(12); {
	case k < 3:
		w.serial++
		share := s.Ino
		if w.rng.IntN(4) == 0 {
			share = namespace.Root
		}
		_, err = p.GrantLease(ctx, Lease{Share: share, Session: [16]byte{w.serial}, Holder: fmt.Sprint(w.serial), Timeout: time.Second})
	case k < 5 && len(leases) > 0:
		l := leases[w.rng.IntN(len(leases))]
		err = p.EndLease(ctx, l.Share, l.Session)
	case k < 6:
		err = p.SetQuota(ctx, s.Name, w.rng.Uint64N(200*region.PageSize))
	case k < 7:
		err = p.Rmdir(ctx, namespace.Root, s.Name)
	default:
		err = w.use(ctx, p.View(s.Ino))
	}
	return expected(err)
}

// expected drops errors that say no more than that there was nothing to do.
func expected(err error) error {
	for _, e := range []error{ErrLeased, namespace.ErrExist, namespace.ErrNotExist, namespace.ErrNotEmpty, region.ErrNoSpace} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// use changes files of a share.
func (w *leaseWorld) use(ctx context.Context, v *View) error {
	name, other := fmt.Sprint("f", w.rng.IntN(3)), fmt.Sprint("f", w.rng.IntN(3))
	n, err := v.Lookup(ctx, namespace.Root, name)
	if errors.Is(err, namespace.ErrNotExist) {
		_, err = v.Create(ctx, namespace.Root, name, fileInode())
		return err
	}
	if err != nil {
		return err
	}
	id := region.ID(n.Ino)
	switch w.rng.IntN(5) {
	case 0, 1:
		_, err = v.Grant(ctx, id, 1, 1+w.rng.Uint64N(40))
	case 2:
		loc, lerr := v.Locate(ctx, id)
		if lerr != nil || len(loc.Extents) == 0 {
			return lerr
		}
		x := loc.Extents[len(loc.Extents)-1]
		if x.Start == loc.Super {
			x.Start, x.N = x.Start+region.MinFirstGrant, x.N-region.MinFirstGrant
		}
		if x.N > 0 {
			err = v.Return(ctx, id, []region.Run{x})
		}
	case 3:
		_, err = v.Clone(ctx, id, namespace.Root, other, fileInode(), region.Seed{Tree: region.Tree{}})
	case 4:
		_, err = v.Unlink(ctx, namespace.Root, name)
		if err == nil && w.rng.IntN(2) == 0 {
			_, err = v.Reap(ctx, n.Ino)
		}
	}
	return err
}

// summary is all that has a name: shares, leases, files and their slots.
func (w *leaseWorld) summary(ctx context.Context) (string, error) {
	var s strings.Builder
	shares, err := w.pool.Shares(ctx)
	if err != nil {
		return "", err
	}
	for _, x := range shares {
		fmt.Fprintf(&s, "share %q %d quota %d\n", x.Name, x.Ino, x.Quota)
		v := w.pool.View(x.Ino)
		entries, err := v.ReadDir(ctx, namespace.Root)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			loc, err := v.Locate(ctx, region.ID(e.Ino))
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&s, "  %v %v\n", e, loc)
		}
	}
	leases, err := w.pool.Leases(ctx)
	for _, l := range leases {
		l.Granted = 0
		fmt.Fprintf(&s, "lease %+v\n", l)
	}
	return s.String(), err
}

// leaseHistory works until transaction cut loses power, starts the memory node again,
// and sees whether it is as before or after the last piece of work. It returns false
// if the work ended before the cut.
func leaseHistory(ctx context.Context, dir string, seed uint64, cut int) (reached bool, err error) {
	path := filepath.Join(dir, metaFile)
	h := header{slots: 600, created: 1}
	if err := createMeta(path, h, true); err != nil {
		return false, err
	}
	power := newCrashMedium(int64(h.slots) * region.PageSize)
	if err := errors.Join(writeHeader(power, h), power.Flush()); err != nil {
		return false, err
	}
	before, after := "", ""
	w, meta, err := bootLeases(path, power, rand.New(rand.NewPCG(seed, 3)), cut)
	for i := 0; i < 60 && err == nil; i++ {
		before = after
		if err = w.work(ctx); err == nil {
			after, err = w.summary(ctx)
		}
	}
	if !power.Lost() {
		// A transaction that was refused loses nothing.
		return meta.updates > cut, errors.Join(err, meta.boltMeta.close())
	}
	// What the piece of work under way would have come to.
	if after, err = uncut(ctx, dir, seed, cut); err != nil {
		return true, err
	}
	if err := meta.boltMeta.close(); err != nil {
		return true, err
	}
	power = power.Restart(rand.New(rand.NewPCG(seed, 4)), -1)
	w, meta, err = bootLeases(path, power, nil, -1)
	if err != nil {
		return true, err
	}
	defer meta.boltMeta.close()
	got, err := w.summary(ctx)
	if err != nil {
		return true, err
	}
	if got != before && got != after {
		return true, fmt.Errorf("there is\n%swant\n%sor\n%s", got, before, after)
	}
	return true, w.aftermath(ctx)
}

// uncut repeats a history up to the end of the work that the cut was in.
func uncut(ctx context.Context, dir string, seed uint64, cut int) (string, error) {
	path := filepath.Join(dir, "again.db")
	h := header{slots: 600, created: 1}
	if err := createMeta(path, h, true); err != nil {
		return "", err
	}
	power := newCrashMedium(int64(h.slots) * region.PageSize)
	if err := writeHeader(power, h); err != nil {
		return "", err
	}
	w, meta, err := bootLeases(path, power, rand.New(rand.NewPCG(seed, 3)), -1)
	if err != nil {
		return "", err
	}
	defer meta.boltMeta.close()
	for meta.updates <= cut {
		if err := w.work(ctx); err != nil {
			return "", err
		}
	}
	return w.summary(ctx)
}

// aftermath grants every lease anew and looks at what that promises.
func (w *leaseWorld) aftermath(ctx context.Context) error {
	p := w.pool
	leases, err := p.Leases(ctx)
	if err != nil {
		return err
	}
	last := p.Generation()
	for _, l := range leases {
		if l.Generation >= last {
			return fmt.Errorf("generation %d of a lease, the pool is opened with %d", l.Generation, last)
		}
		if err := p.EndLease(ctx, l.Share, l.Session); err != nil {
			return err
		}
	}
	shares, err := p.Shares(ctx)
	if err != nil {
		return err
	}
	for _, s := range shares {
		l, err := p.GrantLease(ctx, Lease{Share: s.Ino, Timeout: 1})
		if err != nil {
			return err
		}
		if l.Generation <= last {
			return fmt.Errorf("generation %d after %d", l.Generation, last)
		}
		last = l.Generation
		entries, err := p.View(s.Ino).ReadDir(ctx, namespace.Root)
		if err != nil {
			return err
		}
		now, err := p.Share(ctx, s.Name)
		if err != nil || now.Inodes != uint64(len(entries))+1 {
			return fmt.Errorf("share %q has %d inodes, %v, and %d names", s.Name, now.Inodes, err, len(entries))
		}
	}
	var problems []error
	err = p.Check(ctx, func(s string) { problems = append(problems, errors.New(s)) })
	return errors.Join(append(problems, err)...)
}

// Power goes at each transaction of a memory node's life in turn. Shares, leases and
// files are as before or after the work that was under way, and no generation comes
// twice.
func TestLeasePowerCuts(t *testing.T) {
	cuts := 0
	for s := *seed; s < *seed+8; s++ {
		for cut := 0; ; cut++ {
			reached, err := leaseHistory(t.Context(), t.TempDir(), s, cut)
			if err != nil {
				t.Fatalf("%v (-seed %d, transaction %d)", err, s, cut)
			}
			if !reached {
				break
			}
			cuts++
		}
	}
	t.Logf("%d power cuts", cuts)
}
