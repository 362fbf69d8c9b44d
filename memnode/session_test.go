package memnode

import (
	"bytes"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/region"
)

// A view whose fence has ended reads and changes nothing, and a change that had begun
// is over before the lease ends.
func TestFencedView(t *testing.T) {
	bolt, m := parts(t)
	meta := &hookMeta{boltMeta: bolt}
	p, err := assemble(meta, m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	share := mustShare(t, p, "s", 0)
	mustLease(t, p, share)
	v := p.View(share)
	file, dir, _ := furnish(t, v, namespace.Root)
	f, err := v.Fence(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, free := freeSlots(p)
	for what, late := range map[string]func() error{
		"Create": func() error { _, err := v.Create(ctx, dir.Ino, "late", fileInode()); return err },
		"Grant":  func() error { _, err := v.Grant(ctx, region.ID(file.Ino), 5, 5); return err },
		"Clone": func() error {
			_, err := v.Clone(ctx, region.ID(file.Ino), dir.Ino, "late", fileInode(), region.Seed{})
			return err
		},
	} {
		w := v
		v = p.View(share)
		g, err := v.Fence(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// The lease ends, and the next begins, when the call has looked but not
		// yet changed anything.
		meta.before = func() {
			g.End()
			if err := p.EndLease(ctx, share, [16]byte{byte(share)}); err != nil {
				t.Error(err)
			}
			mustLease(t, p, share)
		}
		wantErr(t, what+" that comes late", late(), rdmacache.ErrFenced)
		v = w
	}
	f.End()
	for method, err := range everyArgument(t, v, file.Ino, dir.Ino, dir.Ino) {
		wantErr(t, method+" of a fenced view", err, rdmacache.ErrFenced)
	}
	_, err = v.Usage(ctx)
	wantErr(t, "Usage", err, rdmacache.ErrFenced)
	_, err = v.Extents(ctx)
	wantErr(t, "Extents", err, rdmacache.ErrFenced)
	_, err = p.View(share).Lookup(ctx, dir.Ino, "late")
	wantErr(t, "what came late", err, namespace.ErrNotExist)
	if _, now := freeSlots(p); now < free {
		t.Errorf("%d slots free, had %d", now, free)
	}
	wantSound(t, p)
}

func freeSlots(p *Pool) (runs int, slots uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free.runs), p.free.slots
}

// A region goes from one lease to the next with exactly what was committed: the former
// holder's later commit fails, and leaves nothing.
func TestLeaseHandsOver(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	share := mustShare(t, p, "s", 1<<20)
	id := region.ID(0)
	open := func() (*region.Image, *Fence) {
		t.Helper()
		lease := mustLease(t, p, share)
		v := p.View(share)
		f, err := v.Fence(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if id == 0 {
			n, err := v.Create(ctx, namespace.Root, "f", fileInode())
			if err != nil {
				t.Fatal(err)
			}
			id = region.ID(n.Ino)
		}
		loc, err := v.Locate(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		im, err := region.Open(ctx, region.Config{Device: inproc.Dial(f), Space: v, Generation: lease.Generation, Location: loc})
		if err != nil {
			t.Fatal(err)
		}
		return im, f
	}
	commit := func(im *region.Image, f *Fence, stamp uint64) error {
		t.Helper()
		runs, err := im.Alloc(ctx, 1)
		if err != nil {
			return err
		}
		page := stampPage(stamp)
		if err := f.WriteAt(page, runs[0].Start.Offset()); err != nil {
			return err
		}
		_, err = im.Commit(ctx, region.Change{
			Cut: region.NoPage, Size: region.PageSize,
			Pages: []region.PageChange{{Page: 0, Slot: runs[0].Start, CRC: region.Checksum(page)}},
		})
		return err
	}
	for epoch := uint64(1); epoch <= 3; epoch++ {
		im, f := open()
		if got := uint64(im.State().Epoch); got != epoch-1 {
			t.Fatalf("epoch %d is found, want %d", got, epoch-1)
		}
		if err := commit(im, f, epoch); err != nil {
			t.Fatal(err)
		}
		f.End()
		if err := p.EndLease(ctx, share, [16]byte{byte(share)}); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "commit after the lease", commit(im, f, 99), rdmacache.ErrFenced)
		_, err := im.Commit(ctx, region.Change{Cut: region.NoPage, Size: 1})
		wantErr(t, "commit of no pages after the lease", err, rdmacache.ErrFenced)
	}
	im, _ := open()
	e, err := im.Lookup(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, region.PageSize)
	if err := region.ReadPage(ctx, device{p}, id, 0, e, page); err != nil || !bytes.Equal(page, stampPage(3)) {
		t.Errorf("the page is not that of the last epoch: %v", err)
	}
	wantSound(t, p)
}
