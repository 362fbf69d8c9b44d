package rdmacache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

var errMedium = errors.New("the medium failed")

// faulty fails one call of a memory.
type faulty struct {
	*memory
	calls, fail int
}

func (f *faulty) call() error {
	f.calls++
	if f.calls-1 == f.fail {
		return errMedium
	}
	return nil
}

func (f *faulty) Read(ctx context.Context, p []byte, off int64) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memory.Read(ctx, p, off)
}

func (f *faulty) Write(ctx context.Context, p []byte, off int64) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memory.Write(ctx, p, off)
}

func (f *faulty) Flush(ctx context.Context) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memory.Flush(ctx)
}

// Every call to the medium fails once, in turn. The error comes out and names its
// cause; what was acknowledged is found by the next opening; a commit that failed
// past the point of no return poisons the region.
func TestEachCallFails(t *testing.T) {
	failed := 0
	for fail := 0; ; fail++ {
		m := newMemory(2000)
		f := &faulty{memory: m, fail: fail}
		acked, seen, poisoned := life(t, f)
		if f.calls <= fail {
			break // all were tried
		}
		failed++
		if seen == nil {
			t.Fatalf("call %d failed and nobody said so", fail)
		}
		if !errors.Is(seen, errMedium) {
			t.Fatalf("call %d: got %v, want the medium's error", fail, seen)
		}
		c, mgr := m.open(t)
		got := c.Committed()
		if got < acked || got > acked+1 || !poisoned && got != acked {
			t.Fatalf("call %d: recovered epoch %d, acknowledged %d, poisoned %v", fail, got, acked, poisoned)
		}
		if got > 0 {
			want := bytes.Repeat([]byte{byte(got)}, 8*pageSize)
			p := make([]byte, len(want))
			if _, err := c.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, want) {
				t.Fatalf("call %d: epoch %d is not whole, %v", fail, got, err)
			}
		}
		m.check(t, c)
		if _, err := c.WriteAt(t.Context(), []byte{1}, 0, rdmacache.FromWrite); err != nil {
			t.Fatal(err)
		}
		if id, err := mgr.Commit(t.Context(), epoch.All); err != nil || id != got+1 {
			t.Fatalf("call %d: after recovery: epoch %d, %v", fail, id, err)
		}
	}
	if failed < 100 {
		t.Errorf("only %d calls were tried", failed)
	}
}

// life commits epochs of stamped pages until something fails. It returns the last
// acknowledged epoch, the first error, and whether the region is poisoned.
func life(t *testing.T, f *faulty) (acked epoch.ID, seen error, poisoned bool) {
	t.Helper()
	ctx := t.Context()
	im, err := region.Open(ctx, region.Config{Device: f, Space: f.memory, Generation: 1, Location: f.loc})
	if err != nil {
		return 0, err, false
	}
	f.gen = 1
	c := rdmacache.New(rdmacache.Config{Conn: f, Image: im, FrameBytes: 16 * pageSize})
	mgr := epoch.NewManager(c)
	step := func() error {
		id := c.Committed() + 1
		b := bytes.Repeat([]byte{byte(id)}, 8*pageSize)
		if _, err := c.WriteAt(ctx, b[:2*pageSize+100], 0, rdmacache.FromWrite); err != nil {
			return err
		}
		if _, err := c.WriteAt(ctx, b[2*pageSize+100:], 2*pageSize+100, rdmacache.FromWrite); err != nil {
			return err
		}
		if _, err := mgr.Commit(ctx, epoch.All); err != nil {
			return err
		}
		acked = id
		p := make([]byte, len(b))
		if _, err := c.ReadAt(ctx, p, 0); err != nil {
			return err
		}
		if id%5 == 0 {
			if _, err := im.Freeze(ctx, fmt.Sprint(id), 1); err != nil {
				return err
			}
			im.DropCheckpoint(fmt.Sprint(id))
			im.RequestSweep()
		}
		return im.Maintain(ctx)
	}
	for range 20 {
		if err := step(); err != nil {
			if im.Err() != nil {
				if _, again := mgr.Commit(ctx, epoch.All); !errors.Is(again, epoch.ErrPoisoned) {
					t.Fatalf("call %d: a poisoned region committed: %v", f.fail, again)
				}
			}
			return acked, err, im.Err() != nil
		}
	}
	return acked, nil, false
}
