package memnode

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

const testSlots = 1024

// newPoolDir makes a small pool in a new directory.
func newPoolDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pool")
	if err := Create(dir, CreateOptions{SizeBytes: testSlots * region.PageSize, noSync: true}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openPool(t testing.TB, dir string) *Pool {
	t.Helper()
	p, err := Open(dir, Options{noSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return p
}

func newPool(t testing.TB) *Pool {
	t.Helper()
	return openPool(t, newPoolDir(t))
}

// reopen closes a pool and opens it as the next writer.
func reopen(t testing.TB, p *Pool, dir string) *Pool {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return openPool(t, dir)
}

func fileInode() namespace.Inode { return namespace.Inode{Mode: unix.S_IFREG | 0o644} }
func dirInode() namespace.Inode  { return namespace.Inode{Mode: unix.S_IFDIR | 0o755} }

func mustCreate(t testing.TB, p *Pool, parent namespace.Ino, name string, n namespace.Inode) namespace.Inode {
	t.Helper()
	n, err := p.Create(context.Background(), parent, name, n)
	if err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	return n
}

func mustGrant(t testing.TB, p *Pool, ino namespace.Ino, slots uint64) region.Grant {
	t.Helper()
	g, err := p.Grant(context.Background(), region.ID(ino), slots, slots)
	if err != nil {
		t.Fatalf("grant %d slots to %d: %v", slots, ino, err)
	}
	return g
}

// problems runs Check and compares the free list with what the extents leave.
func problems(t testing.TB, p *Pool) []string {
	t.Helper()
	var found []string
	if err := p.Check(context.Background(), func(s string) { found = append(found, s) }); err != nil {
		t.Fatalf("Check: %v", err)
	}
	if p.readOnly {
		return found
	}
	var owned []region.Run
	err := p.meta.view(func(t txn) error {
		return t.eachExtent(nil, func(_ region.ID, r region.Run) error {
			owned = append(owned, r)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := newFreeList(p.slots, owned)
	if err != nil {
		found = append(found, err.Error())
	} else if !slices.Equal(want.runs, p.free.runs) || want.slots != p.free.slots {
		found = append(found, "the free list is not what the extents leave")
	}
	return found
}

func wantSound(t testing.TB, p *Pool) {
	t.Helper()
	if found := problems(t, p); found != nil {
		t.Fatalf("Check finds %q; -seed=%d", found, *seed)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// A clock that never stands still.
func ticking() func() time.Time {
	now := time.Unix(1_000_000, 0)
	return func() time.Time {
		now = now.Add(time.Millisecond)
		return now
	}
}

// edit changes the bytes of a file.
func edit(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(bytes.Clone(b)), 0o600); err != nil {
		t.Fatal(err)
	}
}

var _ media.Media = (*media.Crashable)(nil)
