package volume_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/inproc"
	"github.com/rpmemfs/rpmemfs/volume"
)

var ctx = context.Background()

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// A fixture is a volume over a pool that survives it.
type fixture struct {
	*testing.T
	*volume.Volume
	dir  string
	cfg  volume.Config
	pool *memnode.Pool
	stop func()
	wrap func(rdmacache.Conn) rdmacache.Conn // nil: none

	wrapPool func(volume.Pool) volume.Pool // nil: none
}

func newFixture(t *testing.T, sizeBytes int64, cfg volume.Config) *fixture {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pool")
	if err := memnode.Create(dir, memnode.CreateOptions{SizeBytes: sizeBytes}); err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, dir: dir, cfg: cfg}
	f.open()
	t.Cleanup(func() {
		if f.pool != nil {
			f.crash()
		}
	})
	return f
}

// open opens pool and volume and starts the background work.
func (f *fixture) open() {
	f.Helper()
	pool, err := memnode.Open(f.dir, memnode.Options{})
	if err != nil {
		f.Fatal(err)
	}
	cfg := f.cfg
	cfg.Pool, cfg.Conn = pool, inproc.Dial(pool)
	if f.wrap != nil {
		cfg.Conn = f.wrap(cfg.Conn)
	}
	if f.wrapPool != nil {
		cfg.Pool = f.wrapPool(pool)
	}
	f.pool, f.Volume = pool, volume.New(cfg)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	vol := f.Volume
	go func() { done <- vol.Run(ctx) }()
	f.stop = func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("run: %v", err)
		}
	}
}

// unmount ends the volume as a clean unmount does.
func (f *fixture) unmount() error {
	f.Helper()
	f.stop()
	err := f.Close(ctx)
	f.closePool()
	return err
}

// crash ends the volume as a killed daemon does, and leaves the pool as it is.
func (f *fixture) crash() {
	f.Helper()
	f.stop()
	f.closePool()
}

func (f *fixture) closePool() {
	f.Helper()
	if err := f.pool.Close(); err != nil {
		f.Error(err)
	}
	f.pool = nil
}

// must fails the test on an error.
func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// create makes a regular file in the root.
func (f *fixture) create(name string) namespace.Ino {
	f.Helper()
	a, err := f.Create(ctx, namespace.Root, name, namespace.Inode{Mode: unix.S_IFREG | 0o644})
	f.must(err)
	return a.Ino
}

func (f *fixture) openFile(ino namespace.Ino) *volume.Handle {
	f.Helper()
	h, err := f.Open(ctx, ino)
	f.must(err)
	return h
}

func (f *fixture) write(h *volume.Handle, text string, off int64, src rdmacache.Source) {
	f.Helper()
	n, err := h.Write(ctx, []byte(text), off, src)
	if err != nil || n != len(text) {
		f.Fatalf("write %q: got %d, %v", text, n, err)
	}
}

// content returns the first n bytes of a file.
func (f *fixture) content(ino namespace.Ino, n int) string {
	f.Helper()
	h := f.openFile(ino)
	defer h.Release(ctx)
	b := make([]byte, n)
	got, err := h.Read(ctx, b, 0)
	f.must(err)
	return string(b[:got])
}

func (f *fixture) want(ino namespace.Ino, want string) {
	f.Helper()
	if got := f.content(ino, len(want)+1); got != want {
		f.Errorf("content: got %q, want %q", got, want)
	}
}

// saved makes a file of one committed epoch.
func (f *fixture) saved(name, text string) namespace.Ino {
	f.Helper()
	ino := f.create(name)
	h := f.openFile(ino)
	f.write(h, text, 0, rdmacache.FromWrite)
	f.must(h.Sync(ctx))
	h.Release(ctx)
	return ino
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// until waits for a condition that background work brings about.
func (f *fixture) until(what string, done func() bool) {
	f.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			f.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// timeAfterTestLimit is when a test that should take seconds hangs.
func timeAfterTestLimit(t *testing.T) <-chan time.Time {
	t.Helper()
	return time.After(5 * patience)
}

// kernel is an Invalidator that notes what it is told and may block.
type kernel struct {
	block chan struct{} // not nil: Content waits until it is closed

	mu      sync.Mutex
	content []namespace.Ino
	entries []string
}

func (k *kernel) Content(ino namespace.Ino) error {
	k.mu.Lock()
	k.content = append(k.content, ino)
	k.mu.Unlock()
	if k.block != nil {
		<-k.block
	}
	return nil
}

func (k *kernel) Attr(namespace.Ino) error { return nil }

func (k *kernel) Range(ino namespace.Ino, _, _ int64) error { return k.Content(ino) }

func (k *kernel) Entry(_ namespace.Ino, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.entries = append(k.entries, name)
	return nil
}

func (k *kernel) told() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.content)
}

func TestIdleRegionsAreBounded(t *testing.T) {
	f := newFixture(t, 64<<20, volume.Config{MaxIdle: 3})
	var files []namespace.Ino
	for i := range 20 {
		files = append(files, f.saved(string(rune('a'+i)), string(rune('A'+i))))
	}
	f.until("at most MaxIdle regions stay open", func() bool {
		s, err := f.Status(ctx)
		f.must(err)
		return s.OpenFiles <= 3
	})
	for i, ino := range files {
		f.want(ino, string(rune('A'+i)))
	}
	f.must(f.unmount())
	f.open()
	for i, ino := range files {
		f.want(ino, string(rune('A'+i)))
	}
}

// What files committed stays counted when they leave the table, removed or idle.
func TestCountersOutliveFiles(t *testing.T) {
	f := newFixture(t, 64<<20, volume.Config{MaxIdle: 1})
	for i := range 10 {
		f.saved(string(rune('a'+i)), "text")
	}
	f.must(f.Remove(ctx, namespace.Root, "a"))
	f.until("at most MaxIdle regions stay open", func() bool {
		s, err := f.Status(ctx)
		f.must(err)
		return s.OpenFiles <= 1
	})
	page := strings.Repeat("page", rdmacache.PageSize/4)
	h := f.openFile(f.saved("again", page))
	f.write(h, page, 0, rdmacache.FromWrite)
	h.Release(ctx)
	s, err := f.Status(ctx)
	f.must(err)
	if s.Counters.PagesCommitted != 11 || s.Counters.PagesUnchanged != 1 {
		t.Errorf("%d pages committed, %d unchanged; want 11 and 1", s.Counters.PagesCommitted, s.Counters.PagesUnchanged)
	}
	// A record and a page for each epoch, at least.
	if s.Traffic.BytesWritten < 11*2*rdmacache.PageSize || s.Traffic.Flushes < 11 {
		t.Errorf("%+v reached the medium; want more", s.Traffic)
	}
}

func TestReadOnly(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "text")
	f.must(f.unmount())
	f.cfg.ReadOnly = true
	f.open()
	f.want(ino, "text")
	h := f.openFile(ino)
	_, err := h.Write(ctx, []byte("x"), 0, rdmacache.FromWrite)
	wantError(t, "write", err, volume.ErrReadOnly)
	wantError(t, "truncate", h.Truncate(ctx, 0), volume.ErrReadOnly)
	wantError(t, "allocate", h.Allocate(ctx, volume.AllocGrow, 0, 1), volume.ErrReadOnly)
	h.Release(ctx)
	_, err = f.Create(ctx, namespace.Root, "new", namespace.Inode{Mode: unix.S_IFREG})
	wantError(t, "create", err, volume.ErrReadOnly)
	wantError(t, "unlink", f.Unlink(ctx, namespace.Root, "file"), volume.ErrReadOnly)
	wantError(t, "set attribute", f.SetXattr(ctx, ino, "user.x", nil, 0), volume.ErrReadOnly)
	_, err = f.Checkpoint(ctx, ino, "c")
	wantError(t, "checkpoint", err, volume.ErrReadOnly)
	_, err = f.Setattr(ctx, ino, volume.Change{Mode: new(uint32)})
	wantError(t, "chmod", err, volume.ErrReadOnly)
	f.must(f.unmount())
}

func TestUseAfterClose(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "text")
	vol := f.Volume
	f.must(f.unmount())
	_, err := vol.Open(ctx, ino)
	wantError(t, "open", err, volume.ErrClosed)
}

// A read of what was never written, and one that starts past the end.
func TestReadEdges(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.create("file")
	h := f.openFile(ino)
	defer h.Release(ctx)
	f.must(h.Truncate(ctx, 10000))
	b := bytes.Repeat([]byte{1}, 20000)
	if n, err := h.Read(ctx, b, 5000); n != 5000 || err != nil || !bytes.Equal(b[:n], make([]byte, 5000)) {
		t.Errorf("read of a hole: got %d, %v, want 5000 zeros", n, err)
	}
	if n, err := h.Read(ctx, b, 10000); n != 0 || err != nil {
		t.Errorf("read at the end: got %d, %v, want 0, nil", n, err)
	}
}
