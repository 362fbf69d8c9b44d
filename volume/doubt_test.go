package volume_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A doubtfulPool is poisoned when it saves the checkpoint that comes next, which is
// durable all the same, until it is mended.
type doubtfulPool struct {
	volume.Pool
	armed, broken atomic.Bool
	located       atomic.Int64 // times
}

var errDoubt = errors.New("the directory is poisoned")

func (p *doubtfulPool) SaveCheckpoint(ctx context.Context, id region.ID, cp region.Checkpoint) error {
	err := p.Pool.SaveCheckpoint(ctx, id, cp)
	if err == nil && p.armed.CompareAndSwap(true, false) {
		p.broken.Store(true)
		return errDoubt
	}
	return err
}

func (p *doubtfulPool) Locate(ctx context.Context, id region.ID) (region.Location, error) {
	if p.broken.Load() {
		return region.Location{}, errDoubt
	}
	p.located.Add(1)
	return p.Pool.Locate(ctx, id)
}

// doubt makes a file of some text with a checkpoint c of which nobody could tell whether
// the directory has it.
func (f *fixture) doubt(text string) (pool *doubtfulPool, ino namespace.Ino, h *volume.Handle) {
	f.must(f.unmount())
	f.wrapPool = func(p volume.Pool) volume.Pool {
		pool = &doubtfulPool{Pool: p}
		return pool
	}
	f.open()
	f.wrapPool = nil
	ino = f.saved("file", text)
	h = f.openFile(ino)
	pool.armed.Store(true)
	_, err := f.Checkpoint(ctx, ino, "c")
	wantError(f.T, "checkpoint", err, errDoubt)
	pool.broken.Store(false)
	return pool, ino, h
}

// Such a checkpoint keeps its slots from a writer that takes all that there are.
func TestDoubtfulCheckpoint(t *testing.T) {
	old := string(bytes.Repeat([]byte("old."), 100*1024))
	f := newFixture(t, 4<<20, volume.Config{})
	filler := f.saved("filler", old+old+old+old)
	pool, ino, h := f.doubt(old)
	f.write(h, string(bytes.Repeat([]byte("new."), len(old)/4)), 0, byWrite)
	f.must(h.Sync(ctx))
	// Slots that no checkpoint has any more are found by a sweep, which looks for relatives.
	_, err := f.Checkpoint(ctx, ino, "d")
	f.must(err)
	f.must(f.DropCheckpoint(ctx, ino, "d"))
	before := pool.located.Load()
	f.until("a sweep", func() bool { return pool.located.Load() > before })
	for off := int64(len(old)); err == nil; off += 16 << 10 {
		if _, err = h.Write(ctx, bytes.Repeat([]byte("more"), 4<<10), off, byWrite); err == nil {
			err = h.Sync(ctx)
		}
	}
	wantError(t, "write into a full pool", err, region.ErrNoSpace)
	h.Release(ctx)
	f.crash()
	f.open()
	_, err = f.pool.Unlink(ctx, namespace.Root, "filler")
	f.must(err)
	_, err = f.pool.Reap(ctx, filler)
	f.must(err)
	n, err := f.Clone(ctx, ino, "c", namespace.Root, "copy")
	f.must(err)
	if f.content(n.Ino, len(old)) != old {
		t.Error("the checkpoint has changed")
	}
	f.sound()
}

// If it was not saved it can be dropped, and made again.
func TestDoubtfulCheckpointAgain(t *testing.T) {
	f := newFixture(t, 4<<20, volume.Config{})
	_, ino, h := f.doubt("text")
	defer h.Release(ctx)
	f.must(f.pool.DropCheckpoint(ctx, region.ID(ino), "c")) // as if it had not been saved
	wantError(t, "drop", f.DropCheckpoint(ctx, ino, "c"), namespace.ErrNotExist)
	_, err := f.Checkpoint(ctx, ino, "c")
	f.must(err)
}
