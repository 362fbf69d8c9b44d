package volume_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 picks one")

var errMedium = errors.New("the medium failed")

// A brokenConn fails its flushes while broken is set.
type brokenConn struct {
	rdmacache.Conn
	broken atomic.Bool // published to whoever commits next
}

func (c *brokenConn) Flush(ctx context.Context) error {
	if c.broken.Load() {
		return errMedium
	}
	return c.Conn.Flush(ctx)
}

// A flush that failed poisons the file until the next mount, however often it is
// closed and opened, and leaves other files alone.
func TestPoisonedFile(t *testing.T) {
	f := newFixture(t, 64<<20, volume.Config{MaxIdle: 1})
	ino, other := f.saved("file", "old"), f.saved("other", "old")
	f.must(f.unmount())
	conn := &brokenConn{}
	f.wrap = func(c rdmacache.Conn) rdmacache.Conn {
		conn.Conn = c
		return conn
	}
	f.open()
	h := f.openFile(ino)
	f.write(h, "new", 0, byWrite)
	conn.broken.Store(true)
	err := h.Sync(ctx)
	wantError(t, "sync", err, epoch.ErrPoisoned)
	wantError(t, "sync, its cause", err, errMedium)
	conn.broken.Store(false)
	wantError(t, "second sync", h.Sync(ctx), epoch.ErrPoisoned)
	h.Release(ctx)
	for i := range 10 { // would push an idle region out
		f.saved(fmt.Sprint(i), "text")
	}
	h = f.openFile(ino)
	wantError(t, "sync after an open", h.Sync(ctx), epoch.ErrPoisoned)
	h.Release(ctx)
	text, err := f.Xattr(ctx, ino, volume.XattrPoisoned)
	f.must(err)
	if !strings.Contains(string(text), errMedium.Error()) {
		t.Errorf("attribute: got %q, want the cause", text)
	}
	s, err := f.Status(ctx)
	f.must(err)
	if s.PoisonedFiles != 1 {
		t.Errorf("poisoned files: got %d, want 1", s.PoisonedFiles)
	}
	h = f.openFile(other)
	f.write(h, "new", 0, byWrite)
	f.must(h.Sync(ctx))
	h.Release(ctx)
	f.must(f.unmount()) // whom the failure concerned was told
	f.open()
	f.want(other, "new")
	if got := f.content(ino, 4); got != "old" && got != "new" {
		t.Errorf("content: got %q, want the epoch before or the one in flight", got)
	}
	h = f.openFile(ino)
	f.write(h, "hey", 0, byWrite)
	f.must(h.Sync(ctx))
	h.Release(ctx)
	f.want(ino, "hey")
}

// A fullConn finds no space at a flush while full is set.
type fullConn struct {
	rdmacache.Conn
	full  atomic.Bool
	tries atomic.Int64 // flushes that found none
}

func (c *fullConn) Flush(ctx context.Context) error {
	if c.full.Load() {
		c.tries.Add(1)
		return region.ErrNoSpace
	}
	return c.Conn.Flush(ctx)
}

// A file whose last records were taken back, which is not durable yet, stays open until
// it is, however long it is idle.
func TestWhatWasTakenBackStaysOpen(t *testing.T) {
	f := newFixture(t, 64<<20, volume.Config{MaxIdle: 1})
	ino, other, third := f.saved("file", "old"), f.saved("other", "old"), f.saved("third", "old")
	f.must(f.unmount())
	conn := &fullConn{}
	f.wrap = func(c rdmacache.Conn) rdmacache.Conn {
		conn.Conn = c
		return conn
	}
	f.open()
	h := f.openFile(ino)
	f.write(h, "new", 0, byMapping)
	conn.full.Store(true)
	wantError(t, "sync", h.Sync(ctx), region.ErrNoSpace)
	h.Release(ctx) // rolls back
	before := conn.tries.Load()
	f.until("the file is closed in vain, twice", func() bool {
		f.want(other, "old")
		f.want(third, "old")
		return conn.tries.Load() >= before+2
	})
	conn.full.Store(false)
	f.until("at most MaxIdle regions stay open", func() bool {
		s, err := f.Status(ctx)
		f.must(err)
		return s.OpenFiles <= 1
	})
	f.want(ino, "old")
	h = f.openFile(ino)
	f.write(h, "new", 0, byMapping)
	f.must(h.Sync(ctx))
	h.Release(ctx)
	f.want(ino, "new")
}

// Everything at once, on few files: no deadlock, no error that is not one of
// those expected, and a sound pool at the end. It fails where nothing keeps a
// checkpoint from being dropped while it is restored.
func TestConcurrentUse(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64N(1 << 32)
	}
	t.Logf("replay with -run '^%s$' -seed %d", t.Name(), *seed)
	f := newFixture(t, 64<<20, volume.Config{MaxIdle: 2})
	rounds := 400
	if testing.Short() {
		rounds = 50
	}
	var wg sync.WaitGroup
	for worker := range 6 {
		rng := rand.New(rand.NewPCG(*seed, uint64(worker)))
		wg.Go(func() {
			for range rounds {
				if err := f.randomStep(rng); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-timeAfterTestLimit(t):
		t.Fatal("the steps do not end")
	}
	f.sound()
	f.must(f.unmount())
	f.open()
	f.sound()
}

// randomStep does one thing to one of a few files, which may not be there.
func (f *fixture) randomStep(rng *rand.Rand) error {
	name := string(rune('a' + rng.IntN(5)))
	step := rng.IntN(20)
	err := func() error {
		a, err := f.Lookup(ctx, namespace.Root, name)
		if errors.Is(err, namespace.ErrNotExist) {
			a, err = f.Create(ctx, namespace.Root, name, namespace.Inode{Mode: unix.S_IFREG | 0o600})
		}
		if err != nil {
			return err
		}
		switch step {
		case 0:
			return f.Unlink(ctx, namespace.Root, name)
		case 1:
			return f.Rename(ctx, namespace.Root, name, namespace.Root, string(rune('a'+rng.IntN(5))), 0)
		case 2:
			_, err := f.Clone(ctx, a.Ino, "", namespace.Root, string(rune('a'+rng.IntN(5))))
			return err
		case 3:
			_, err := f.Checkpoint(ctx, a.Ino, fmt.Sprint("c", rng.IntN(3)))
			return err
		case 4:
			return f.DropCheckpoint(ctx, a.Ino, fmt.Sprint("c", rng.IntN(3)))
		case 5:
			_, err := f.Restore(ctx, a.Ino, fmt.Sprint("c", rng.IntN(3)), rng.IntN(2) == 0)
			return err
		case 6:
			_, err := f.Rollback(ctx, a.Ino)
			return err
		case 7:
			size := rng.Uint64N(1 << 20)
			_, err := f.Setattr(ctx, a.Ino, volume.Change{Size: &size})
			return err
		case 8:
			ns := rng.Int64()
			_, err := f.Setattr(ctx, a.Ino, volume.Change{Mtime: &ns})
			return err
		case 9:
			_, err := f.CommitAll(ctx)
			return err
		case 10:
			_, err := f.Status(ctx)
			return err
		}
		return f.randomUse(rng, a.Ino)
	}()
	for _, expected := range []error{namespace.ErrNotExist, namespace.ErrExist, volume.ErrBusy, region.ErrNoSpace} {
		if errors.Is(err, expected) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("step %d on %s: %w", step, name, err)
	}
	return nil
}

// randomUse opens a file, writes, reads and perhaps syncs.
func (f *fixture) randomUse(rng *rand.Rand, ino namespace.Ino) error {
	f.Remember(ino)
	defer f.Forget(ino, 1)
	h, err := f.Open(ctx, ino)
	if err != nil {
		return err
	}
	defer h.Release(ctx)
	b := make([]byte, 1+rng.IntN(20_000))
	for range 1 + rng.IntN(5) {
		b[0] = byte(rng.Uint32())
		if _, err := h.Write(ctx, b, rng.Int64N(1<<20), rdmacache.Source(rng.IntN(2))); err != nil {
			return err
		}
		if _, err := h.Read(ctx, b, rng.Int64N(1<<20)); err != nil {
			return err
		}
	}
	if rng.IntN(2) == 0 {
		return h.Sync(ctx)
	}
	return h.Flush(ctx, true)
}

// A brokenReap is a pool that frees no inode until it is mended.
type brokenReap struct {
	volume.Pool
	tries, broken atomic.Int32
}

func (p *brokenReap) Reap(ctx context.Context, ino namespace.Ino) (namespace.Ino, error) {
	p.tries.Add(1)
	if p.broken.Load() > 0 {
		return 0, region.ErrNoSpace // of the directory
	}
	return p.Pool.Reap(ctx, ino)
}

// A removed file that could not be freed is freed later, without another mount.
func TestReapIsTriedAgain(t *testing.T) {
	f := newFixture(t, 64<<20, volume.Config{})
	f.must(f.unmount())
	broken := &brokenReap{}
	broken.broken.Store(1)
	f.wrapPool = func(p volume.Pool) volume.Pool {
		broken.Pool = p
		return broken
	}
	f.open()
	ino := f.saved("file", "text")
	f.must(f.Unlink(ctx, namespace.Root, "file"))
	f.Forget(ino, 100)
	f.until("the first try", func() bool { return broken.tries.Load() > 0 })
	broken.broken.Store(0)
	f.until("the file is freed", func() bool {
		u, err := f.pool.Usage(ctx)
		return err == nil && u.Inodes == 1
	})
}

// A mutePool does not tell of its space.
type mutePool struct{ volume.Pool }

func (mutePool) Usage(context.Context) (namespace.Usage, error) {
	return namespace.Usage{}, rdmacache.ErrFenced
}

// Where the pool does not answer, Status tells what the volume knows by itself.
func TestStatusWithoutThePool(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	f.crash()
	f.wrapPool = func(p volume.Pool) volume.Pool { return mutePool{p} }
	f.open()
	ino := f.saved("a", "text")
	h := f.openFile(ino)
	f.write(h, "more", 0, byMapping)
	s, err := f.Status(ctx)
	wantError(t, "status", err, rdmacache.ErrFenced)
	if s.Medium != f.pool.Medium() || s.Generation != f.pool.Generation() || s.DirtyPages != 1 || s.OpenHandles != 1 || s.Counters.Commits == 0 {
		t.Errorf("got %+v", s)
	}
	h.Release(ctx)
}
