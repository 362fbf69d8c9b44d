package memnode

import (
	"errors"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

func pinOf(e epoch.ID) region.Checkpoint {
	return region.Checkpoint{Name: region.PinName(e), Epoch: e, Tree: region.Tree{Root: 3, Height: 1}}
}

// A pin is saved once, keeps its file from being freed, and can be made by nobody
// else. The next opening of the pool for writing starts without pins.
func TestPins(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	id := region.ID(f.Ino)
	mustGrant(t, p, f.Ino, 8)
	pin := pinOf(4)
	if err := errors.Join(p.SavePin(ctx, id, pin), p.SavePin(ctx, id, pin), p.SavePin(ctx, id, pinOf(5))); err != nil {
		t.Fatal(err)
	}
	loc, err := p.Locate(ctx, id)
	if err != nil || len(loc.Checkpoints) != 2 || !loc.Checkpoints[0].Hidden() || loc.Checkpoints[0] != pin {
		t.Fatalf("Locate = %+v, %v", loc.Checkpoints, err)
	}
	wantSound(t, p)

	for what, cp := range map[string]region.Checkpoint{
		"no epoch":       {Name: region.PinName(0)},
		"another name":   {Name: region.PinName(8), Epoch: 9},
		"no hidden name": {Name: "a", Epoch: 9},
		"a slot outside": {Name: region.PinName(9), Epoch: 9, Tree: region.Tree{Root: testSlots, Height: 1}},
	} {
		wantErr(t, "SavePin of "+what, p.SavePin(ctx, id, cp), namespace.ErrInvalid)
	}
	wantErr(t, "SavePin of nothing", p.SavePin(ctx, 999, pin), namespace.ErrNotExist)
	wantErr(t, "SaveCheckpoint of a hidden name", p.SaveCheckpoint(ctx, id, pinOf(6)), namespace.ErrInvalid)
	wantErr(t, "DropCheckpoint of a hidden name", p.DropCheckpoint(ctx, id, pin.Name), namespace.ErrInvalid)

	if _, err := p.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	_, err = p.Reap(ctx, f.Ino)
	wantErr(t, "Reap of a pinned file", err, region.ErrPinned)
	if err := p.reapOrphans(ctx, namespace.Root); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.DropPin(ctx, id, 4), p.DropPin(ctx, id, 4)); err != nil {
		t.Fatal(err)
	}
	_, err = p.Reap(ctx, f.Ino)
	wantErr(t, "Reap of a file with another pin", err, region.ErrPinned)
	if err := p.DropPin(ctx, id, 5); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Reap(ctx, f.Ino); err != nil {
		t.Fatal(err)
	}
	wantSound(t, p)

	g := mustCreate(t, p, namespace.Root, "g", fileInode())
	if err := errors.Join(p.SavePin(ctx, region.ID(g.Ino), pin), p.SaveCheckpoint(ctx, region.ID(g.Ino), region.Checkpoint{Name: "kept"})); err != nil {
		t.Fatal(err)
	}
	p = reopen(t, p, dir)
	loc, err = p.Locate(ctx, region.ID(g.Ino))
	if err != nil || len(loc.Checkpoints) != 1 || loc.Checkpoints[0].Name != "kept" {
		t.Errorf("after a restart: %+v, %v", loc.Checkpoints, err)
	}
}

// A reader reaches the files that it was admitted to, and slots that they lose no
// more when somebody else can get them.
func TestReaderFence(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	a, b := mustShare(t, p, "a", 0), mustShare(t, p, "b", 0)
	other := mustCreate(t, p, b, "other", fileInode())
	mustGrant(t, p, other.Ino, 8)
	r := p.Reader(a)
	fence, err := r.Fence(ctx)
	if err != nil {
		t.Fatal(err)
	}
	writer := p.View(a)
	f, err := writer.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	first, err := writer.Grant(ctx, region.ID(f.Ino), 8, 8)
	if err != nil {
		t.Fatal(err)
	}
	b4k := make([]byte, region.PageSize)
	last := func(g region.Grant) int64 { return (g.Runs[0].End() - 1).Offset() }
	wantErr(t, "a read before Admit", fence.ReadAt(b4k, last(first)), ErrRange)
	wantErr(t, "Admit to another share's", r.Admit(ctx, region.ID(other.Ino)), namespace.ErrNotExist)
	if err := errors.Join(r.Admit(ctx, region.ID(f.Ino)), r.Admit(ctx, region.ID(f.Ino))); err != nil {
		t.Fatal(err)
	}
	if err := fence.ReadAt(b4k, last(first)); err != nil {
		t.Error(err)
	}
	second, err := writer.Grant(ctx, region.ID(f.Ino), 8, 8)
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a read of what was granted since", fence.ReadAt(b4k, last(second)), ErrRange)
	if err := r.Admit(ctx, region.ID(f.Ino)); err != nil {
		t.Fatal(err)
	}
	if err := fence.ReadAt(b4k, last(second)); err != nil {
		t.Error(err)
	}
	if err := writer.Return(ctx, region.ID(f.Ino), second.Runs); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a read of what was returned", fence.ReadAt(b4k, last(second)), ErrRange)

	// A clone's slots may be those of its source.
	clone, err := writer.Clone(ctx, region.ID(f.Ino), namespace.Root, "clone", fileInode(), region.Seed{Tree: region.Tree{Root: first.Super + 6, Height: 1}})
	if err != nil {
		t.Fatal(err)
	}
	r2 := p.Reader(a)
	fence2, err := r2.Fence(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r2.Admit(ctx, region.ID(clone.Ino)), fence2.ReadAt(b4k, last(first))); err != nil {
		t.Error(err)
	}
	if _, err := writer.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Unlink(ctx, namespace.Root, "clone"); err != nil {
		t.Fatal(err)
	}
	for _, ino := range []namespace.Ino{f.Ino, clone.Ino} {
		if _, err := writer.Reap(ctx, ino); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "a read of a removed file", fence2.ReadAt(b4k, last(first)), ErrRange)

	fence.End()
	wantErr(t, "a read after the end", fence.ReadAt(b4k, last(first)), rdmacache.ErrFenced)
	wantErr(t, "Admit after the end", r.Admit(ctx, region.ID(f.Ino)), rdmacache.ErrFenced)
	if len(p.readers) != 1 {
		t.Errorf("%d readers are known, want 1", len(p.readers))
	}
}
