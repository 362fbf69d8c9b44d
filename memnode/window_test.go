package memnode

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A watcher is a window that looks at its fence as it is told.
type watcher struct {
	fence *Fence

	mu      sync.Mutex
	open    []region.Run // what it gave access to
	stale   int          // times that revoked bytes could still be reached
	revoked []region.Run
	ended   int
}

// give gives access to what is around off, as rdmacache.Window asks for.
func (w *watcher) give(off int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	start, end, err := w.fence.Extent(off)
	if err == nil {
		w.open = append(w.open, region.Run{Start: region.Slot(start / region.PageSize), N: uint64(end-start) / region.PageSize})
	}
	return err
}

func (w *watcher) Revoke(start, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := region.Run{Start: region.Slot(start / region.PageSize), N: uint64(end-start) / region.PageSize}
	w.revoked = append(w.revoked, r)
	w.open = slices.DeleteFunc(w.open, func(o region.Run) bool { return o.Start < r.End() && r.Start < o.End() })
	if _, _, err := w.fence.Extent(start); err == nil {
		w.stale++
	}
}

func (w *watcher) End() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended++
	w.open = nil
	if _, _, err := w.fence.Extent(region.PageSize); err == nil {
		w.stale++
	}
}

// A window learns of all that its session loses, after it can be asked for no more.
func TestWindow(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	v, f, id, r := fenced(t, p, "s")
	_, other, _, foreign := fenced(t, p, "t")
	w, gone := &watcher{fence: f}, &watcher{fence: f}
	for _, x := range []*watcher{w, gone} {
		wantErr(t, "Expose", f.Expose(x), nil)
	}
	f.Withdraw(gone)

	start, end, err := f.Extent(r.Start.Offset() + 5)
	if err != nil || start != r.Start.Offset() || end != r.End().Offset() {
		t.Errorf("Extent = %d, %d, %v; want %v", start, end, err, r)
	}
	for _, off := range []int64{-1, 0, region.PageSize - 1, foreign.Start.Offset(), testSlots * region.PageSize, 1 << 62} {
		if start, end, err := f.Extent(off); err == nil {
			t.Errorf("Extent(%d) = %d, %d", off, start, end)
		}
	}

	g, err := v.Grant(ctx, id, 30, 30)
	wantErr(t, "Grant", err, nil)
	back := region.Run{Start: g.Runs[0].Start + 10, N: 5}
	wantErr(t, "give", w.give(back.Start.Offset()), nil)
	wantErr(t, "Return", v.Return(ctx, id, []region.Run{back}), nil)
	if !slices.Contains(w.revoked, back) || len(w.open) != 0 || w.stale != 0 {
		t.Errorf("after Return of %v: revoked %v, open %v, %d stale", back, w.revoked, w.open, w.stale)
	}
	if _, _, err := f.Extent(back.Start.Offset()); err == nil {
		t.Error("what was returned can be reached")
	}

	wantErr(t, "give", w.give(r.Start.Offset()), nil)
	f.End()
	if w.ended != 1 || len(w.open) != 0 || w.stale != 0 {
		t.Errorf("after End: ended %d times, open %v, %d stale", w.ended, w.open, w.stale)
	}
	if len(gone.revoked) != 0 || gone.ended != 0 {
		t.Errorf("a window that was withdrawn heard of %v, and %d ends", gone.revoked, gone.ended)
	}
	wantErr(t, "Expose after End", f.Expose(w), rdmacache.ErrFenced)
	wantErr(t, "give after End", w.give(r.Start.Offset()), rdmacache.ErrFenced)
	wantErr(t, "Persist after End", f.Persist(r.Start.Offset(), 1), rdmacache.ErrFenced)
	if _, _, err := other.Extent(foreign.Start.Offset()); err != nil {
		t.Errorf("the other session: %v", err)
	}
}

// Slots that others free leave the windows of readers too.
func TestWindowOfReader(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	v, _, id, r := fenced(t, p, "s")
	share, err := p.Share(ctx, "s")
	wantErr(t, "Share", err, nil)
	reader, err := p.Reader(share.Ino).Fence(ctx)
	wantErr(t, "Fence", err, nil)
	wantErr(t, "admit", reader.admit(func() ([]region.Run, error) { return []region.Run{r}, nil }), nil)
	w := &watcher{fence: reader}
	wantErr(t, "Expose", reader.Expose(w), nil)
	wantErr(t, "give", w.give(r.Start.Offset()), nil)
	if _, err := v.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Reap(ctx, namespace.Ino(id)); err != nil {
		t.Fatal(err)
	}
	if len(w.open) != 0 || w.stale != 0 {
		t.Errorf("open %v, %d stale", w.open, w.stale)
	}
	reader.End()
	if w.ended != 1 {
		t.Errorf("ended %d times", w.ended)
	}
}

// A pool in memory shows it, and makes persistent what was stored there.
func TestBytes(t *testing.T) {
	parent, err := os.MkdirTemp("/dev/shm", "rpmemfs-test-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	dir := filepath.Join(parent, "pool")
	if err := Create(dir, CreateOptions{SizeBytes: testSlots * region.PageSize, noSync: true}); err != nil {
		t.Fatal(err)
	}
	p := openPool(t, dir)
	_, f, _, r := fenced(t, p, "s")
	mem := f.Bytes()
	if int64(len(mem)) != p.sizeBytes {
		t.Fatalf("%d bytes, want %d", len(mem), p.sizeBytes)
	}
	off, want, got := r.Start.Offset(), []byte("stored from outside"), make([]byte, 19)
	copy(mem[off:], want)
	if err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
	wantErr(t, "Persist", f.Persist(off, int64(len(want))), nil)
	for _, x := range []struct{ off, n int64 }{{off, r.End().Offset() - off + 1}, {0, 1}, {off, -1}, {off, 1 << 62}, {-1, 1}} {
		wantErr(t, "Persist", f.Persist(x.off, x.n), ErrRange)
	}
	if file := newPool(t); file.Medium().Kind == "file" && file.Bytes() != nil {
		t.Error("a pool in a file shows bytes")
	}
}

// A slowWatcher is a window whose end takes until leave is closed.
type slowWatcher struct {
	*watcher
	entered, leave chan struct{}
}

func (s *slowWatcher) End() {
	close(s.entered)
	<-s.leave
	s.watcher.End()
}

// Slots do not become free while a reader that is ending still reaches them.
func TestFreeWaitsForEndingReader(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	v, _, id, r := fenced(t, p, "s")
	share, err := p.Share(ctx, "s")
	wantErr(t, "Share", err, nil)
	view := p.Reader(share.Ino)
	reader, err := view.Fence(ctx)
	wantErr(t, "Fence", err, nil)
	wantErr(t, "Admit", view.Admit(ctx, id), nil)
	w := &slowWatcher{&watcher{fence: reader}, make(chan struct{}), make(chan struct{})}
	wantErr(t, "Expose", reader.Expose(w), nil)
	wantErr(t, "give", w.give(r.Start.Offset()), nil)
	ended := make(chan struct{})
	go func() { defer close(ended); reader.End() }()
	<-w.entered
	if _, err := v.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Reap(ctx, namespace.Ino(id)); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	if len(w.open) > 0 {
		t.Errorf("slots were freed while a reader reached %v", w.open)
	}
	w.mu.Unlock()
	close(w.leave)
	<-ended
}
