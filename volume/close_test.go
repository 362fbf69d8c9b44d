package volume_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

const (
	byWrite   = rdmacache.FromWrite
	byMapping = rdmacache.FromMapping
)

// What the last close makes of an open epoch, and what a crash leaves of it.
func TestLastClose(t *testing.T) {
	const before = "0123456789"
	tests := []struct {
		name    string
		mount   namespace.OnClose
		file    string // of the attribute on_close
		written bool
		mapped  bool
		sync    bool
		want    string // after the last close
		crash   string // after a crash before it
	}{
		{name: "nothing", want: before, crash: before},
		{name: "written", written: true, want: "WR23456789", crash: before},
		{name: "mapped", mapped: true, want: before, crash: before},
		{name: "both", written: true, mapped: true, want: "WR23456789", crash: before},
		{name: "both, synced", written: true, mapped: true, sync: true, want: "WR23MAP789", crash: "WR23MAP789"},
		{name: "mapped, mount commits", mount: namespace.OnCloseCommit, mapped: true, want: "0123MAP789", crash: before},
		{name: "mapped, file commits", file: "commit", mapped: true, want: "0123MAP789", crash: before},
		{name: "both, file commits", file: "commit", written: true, mapped: true, want: "WR23MAP789", crash: before},
		{name: "mapped, file rolls back", mount: namespace.OnCloseCommit, file: "rollback", mapped: true, want: before, crash: before},
	}
	for _, test := range tests {
		for _, how := range []string{"close", "unmount", "crash"} {
			t.Run(test.name+"/"+how, func(t *testing.T) {
				k := &kernel{}
				f := newFixture(t, 16<<20, volume.Config{OnClose: test.mount})
				f.SetInvalidator(k)
				ino := f.saved("file", before)
				if test.file != "" {
					f.must(f.SetXattr(ctx, ino, volume.XattrOnClose, []byte(test.file), 0))
				}
				h := f.openFile(ino)
				if test.written {
					f.write(h, "WR", 0, byWrite)
				}
				if test.mapped {
					f.write(h, "MAP", 4, byMapping)
				}
				if test.sync {
					f.must(h.Sync(ctx))
				}
				want := test.want
				switch how {
				case "close":
					h.Release(ctx)
					f.want(ino, want) // and again after a crash
					f.crash()
				case "unmount":
					f.must(f.unmount())
				case "crash":
					want = test.crash
					f.crash()
				}
				f.open()
				f.want(ino, want)
			})
		}
	}
}

// FUSE FLUSH commits where it stands for the last close, and only there.
func TestFlush(t *testing.T) {
	tests := []struct {
		name     string
		handles  int
		byOpener bool
		source   rdmacache.Source
		want     string
	}{
		{"only handle, its opener", 1, true, byWrite, "new"},
		{"only handle, another process", 1, false, byWrite, "old"},
		{"another handle is open", 2, true, byWrite, "old"},
		{"stores through a mapping", 1, true, byMapping, "old"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, 16<<20, volume.Config{})
			ino := f.saved("file", "old")
			var h *volume.Handle
			for range test.handles {
				h = f.openFile(ino)
			}
			f.write(h, "new", 0, test.source)
			f.must(h.Flush(ctx, test.byOpener))
			f.crash()
			f.open()
			f.want(ino, test.want)
		})
	}
}

// Another open handle keeps the open epoch; the last one decides.
func TestOnlyTheLastClose(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "old")
	a, b := f.openFile(ino), f.openFile(ino)
	f.write(a, "new", 0, byMapping)
	a.Release(ctx)
	f.want(ino, "new")
	b.Release(ctx)
	f.want(ino, "old")
	s, err := f.Status(ctx)
	f.must(err)
	if s.Counters.Rollbacks != 1 || s.Counters.RolledBackPages != 1 {
		t.Errorf("counters: got %+v, want one rollback of one page", s.Counters)
	}
}

// While the last close rolls back, a new open waits: it must not see what goes.
func TestOpenWaitsForLastClose(t *testing.T) {
	k := &kernel{block: make(chan struct{})}
	f := newFixture(t, 16<<20, volume.Config{})
	f.SetInvalidator(k)
	ino := f.saved("file", "old")
	h := f.openFile(ino)
	f.write(h, "new", 0, byMapping)
	released := make(chan struct{})
	go func() {
		h.Release(ctx)
		close(released)
	}()
	f.until("the kernel is told", func() bool { return k.told() > 0 })
	opened := make(chan string)
	go func() { opened <- f.content(ino, 4) }()
	select {
	case <-opened:
		t.Error("open returned while the last close was under way")
	default:
	}
	close(k.block)
	<-released
	if got := <-opened; got != "old" {
		t.Errorf("content: got %q, want %q", got, "old")
	}
}

// truncate(2) needs no handle, so nothing would close the file later.
func TestTruncateWithoutHandle(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "0123456789")
	size := uint64(4)
	a, err := f.Setattr(ctx, ino, volume.Change{Size: &size})
	f.must(err)
	if a.Size != 4 {
		t.Errorf("size: got %d, want 4", a.Size)
	}
	f.crash()
	f.open()
	f.want(ino, "0123")
}

// A close that finds the pool full keeps what was written, and commits it when
// there is space again.
func TestCloseRetriesWhenFull(t *testing.T) {
	f := newFixture(t, 4<<20, volume.Config{})
	ino := f.create("file")
	h := f.openFile(ino)
	f.write(h, "small", 0, byWrite)
	filler := f.create("filler")
	fill := f.openFile(filler)
	page := make([]byte, 4096)
	page[0] = 1
	var err error
	for off := int64(0); err == nil; off += 4096 {
		_, err = fill.Write(ctx, page, off, byWrite)
	}
	wantError(t, "write to a full pool", err, region.ErrNoSpace)
	flushErr := h.Flush(ctx, true)
	if flushErr != nil {
		wantError(t, "close with a full pool", flushErr, region.ErrNoSpace)
	}
	h.Release(ctx)
	f.want(ino, "small")
	f.must(f.Unlink(ctx, namespace.Root, "filler"))
	fill.Release(ctx)
	f.until("the close is tried again", func() bool {
		s, err := f.Stat(ctx, ino)
		f.must(err)
		return s.Epoch > 0 && s.DirtyWritten == 0
	})
	f.crash()
	f.open()
	f.want(ino, "small")
}

// A file that lost its last name stays while somebody has it, then its space
// comes back.
func TestUnlinkedFile(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	free := func() uint64 {
		u, err := f.Usage(ctx)
		f.must(err)
		return u.FreeSlots
	}
	before := free()
	ino := f.create("file")
	f.Remember(ino) // as the kernel's CREATE
	h := f.openFile(ino)
	f.write(h, string(make([]byte, 100_000))+"x", 0, byWrite)
	f.must(h.Sync(ctx))
	f.must(f.Unlink(ctx, namespace.Root, "file"))
	f.write(h, "still here", 0, byWrite)
	if got := f.content(ino, 10); got != "still here" {
		t.Errorf("content: got %q, want what was written", got)
	}
	h.Release(ctx)
	if _, err := f.Getattr(ctx, ino); err != nil {
		t.Errorf("attributes of a file that the kernel knows: %v", err)
	}
	f.Forget(ino, 1)
	f.until("the space comes back", func() bool { return free() == before })
	_, err := f.Getattr(ctx, ino)
	wantError(t, "attributes of a freed file", err, namespace.ErrNotExist)
}

// A full pool gives a writer the space of files that were removed just before.
func TestWriteReclaims(t *testing.T) {
	f := newFixture(t, 4<<20, volume.Config{})
	page := make([]byte, 64<<10)
	for i := range page {
		page[i] = 1
	}
	for round := range 20 {
		ino := f.create("file")
		h := f.openFile(ino)
		for off := int64(0); off < 3<<20; off += int64(len(page)) {
			if _, err := h.Write(ctx, page, off, byWrite); err != nil {
				t.Fatalf("round %d: write at %d: %v", round, off, err)
			}
		}
		f.must(h.Sync(ctx))
		h.Release(ctx)
		f.must(f.Unlink(ctx, namespace.Root, "file"))
	}
}

// An epoch that lost stores of a mapping for lack of space does not commit, also when
// there is space again, until it is rolled back.
func TestLostStoresDoNotCommit(t *testing.T) {
	f := newFixture(t, 4<<20, volume.Config{FrameBytes: 8 << 10})
	page := []byte(strings.Repeat("x", 64<<10))
	f.saved("other", strings.Repeat("y", 1<<20))
	ino := f.create("file")
	h := f.openFile(ino)
	defer h.Release(ctx)
	f.must(h.Truncate(ctx, 8<<20))
	var err error
	for off := int64(0); off < 8<<20 && err == nil; off += int64(len(page)) {
		_, err = h.Write(ctx, page, off, byMapping)
	}
	wantError(t, "write-back into a full pool", err, region.ErrNoSpace)
	f.must(f.Unlink(ctx, namespace.Root, "other"))
	wantError(t, "sync", h.Sync(ctx), region.ErrNoSpace)
	_, err = f.Rollback(ctx, ino)
	f.must(err)
	f.write(h, "again", 0, byWrite)
	f.must(h.Sync(ctx))
}

func TestReplacedFileIsFreed(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	old := f.saved("file", "old")
	ino := f.saved("new", "new")
	f.must(f.Rename(ctx, namespace.Root, "new", namespace.Root, "file", 0))
	f.until("the replaced file is freed", func() bool {
		_, err := f.Inode(ctx, old)
		return errors.Is(err, namespace.ErrNotExist)
	})
	a, err := f.Lookup(ctx, namespace.Root, "file")
	f.must(err)
	if a.Ino != ino {
		t.Errorf("lookup: got inode %d, want %d", a.Ino, ino)
	}
	dir, err := f.Create(ctx, namespace.Root, "dir", namespace.Inode{Mode: unix.S_IFDIR | 0o755})
	f.must(err)
	f.must(f.Rmdir(ctx, namespace.Root, "dir"))
	f.until("the directory is freed", func() bool {
		_, err := f.Inode(ctx, dir.Ino)
		return errors.Is(err, namespace.ErrNotExist)
	})
}
