package volume_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/volume"
)

// sound checks the whole pool.
func (f *fixture) sound() {
	f.Helper()
	r, err := f.Check(ctx, 0, nil)
	f.must(err)
	for _, p := range r.Problems {
		f.Errorf("check: file %d: %s", p.Ino, p.Text)
	}
}

func (f *fixture) names(ino namespace.Ino) string {
	f.Helper()
	list, err := f.Checkpoints(ctx, ino)
	f.must(err)
	var names []string
	for _, cp := range list {
		names = append(names, cp.Name)
	}
	return strings.Join(names, " ")
}

func TestCheckpointAndRestore(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	k := &kernel{}
	f.SetInvalidator(k)
	ino := f.saved("file", "one")
	cp, err := f.Checkpoint(ctx, ino, "first")
	f.must(err)
	if cp.Epoch != 1 || cp.Size != 3 || cp.Name != "first" {
		t.Errorf("checkpoint: got %+v, want epoch 1 of 3 bytes", cp)
	}
	_, err = f.Checkpoint(ctx, ino, "first")
	wantError(t, "a second checkpoint of the name", err, namespace.ErrExist)

	h := f.openFile(ino)
	f.write(h, "two, longer", 0, byWrite)
	f.must(h.Sync(ctx))
	f.write(h, "open epoch", 0, byMapping)

	_, err = f.Restore(ctx, ino, "first", false)
	wantError(t, "restore of an open file", err, volume.ErrBusy)
	_, err = f.Restore(ctx, ino, "none", true)
	wantError(t, "restore of no checkpoint", err, namespace.ErrNotExist)
	id, err := f.Restore(ctx, ino, "first", true)
	f.must(err)
	if id != 3 {
		t.Errorf("restore: got epoch %d, want 3", id)
	}
	if k.told() == 0 {
		t.Error("the kernel was not told to forget")
	}
	f.want(ino, "one")
	h.Release(ctx)
	f.want(ino, "one")
	if got, want := f.names(ino), "first before-restore-2"; got != want {
		t.Errorf("checkpoints: got %q, want %q", got, want)
	}
	f.crash()
	f.open()
	f.want(ino, "one")
	f.sound()

	_, err = f.Restore(ctx, ino, "2", false) // by epoch: it can be undone
	f.must(err)
	f.want(ino, "two, longer")
	f.must(f.DropCheckpoint(ctx, ino, "first"))
	wantError(t, "drop it again", f.DropCheckpoint(ctx, ino, "first"), namespace.ErrNotExist)
	f.must(f.unmount())
	f.open()
	f.want(ino, "two, longer")
	f.sound()
}

func TestRestoredFileWrites(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "one")
	_, err := f.Checkpoint(ctx, ino, "c")
	f.must(err)
	for range 5 {
		h := f.openFile(ino)
		f.write(h, "changed", 0, byWrite)
		h.Release(ctx)
		f.want(ino, "changed")
		_, err := f.Restore(ctx, ino, "c", false)
		f.must(err)
		f.want(ino, "one")
	}
	f.sound()
}

func TestRollback(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "old")
	h := f.openFile(ino)
	defer h.Release(ctx)
	f.write(h, "new and longer", 0, byWrite)
	f.write(h, "map", 0, byMapping)
	pages, err := f.Rollback(ctx, ino)
	f.must(err)
	if pages == 0 {
		t.Error("rollback: got 0 pages")
	}
	f.want(ino, "old")
	f.write(h, "again", 0, byWrite)
	f.must(h.Sync(ctx))
	f.want(ino, "again")
}

// A heldConn's flushes wait while hold is not nil.
type heldConn struct {
	rdmacache.Conn
	hold chan struct{} // set before whoever flushes begins
}

func (c *heldConn) Flush(ctx context.Context) error {
	if c.hold != nil {
		<-c.hold
	}
	return c.Conn.Flush(ctx)
}

// A rollback waits for the commit that is under way.
func TestRollbackBesideACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 16<<20, volume.Config{})
		ino := f.saved("file", "old")
		f.must(f.unmount())
		conn := &heldConn{}
		f.wrap = func(c rdmacache.Conn) rdmacache.Conn {
			conn.Conn = c
			return conn
		}
		f.open()
		h := f.openFile(ino)
		defer h.Release(ctx)
		f.write(h, "new", 0, byWrite)
		conn.hold = make(chan struct{})
		synced, rolled := make(chan error, 1), make(chan error, 1)
		go func() { synced <- h.Sync(ctx) }()
		synctest.Wait()
		f.write(h, "bad", 0, byWrite)
		go func() {
			_, err := f.Rollback(ctx, ino)
			rolled <- err
		}()
		synctest.Wait()
		if len(rolled) > 0 {
			t.Error("the rollback did not wait for the commit")
		}
		close(conn.hold)
		f.must(<-synced)
		f.must(<-rolled)
		f.want(ino, "new")
	})
}

func TestClone(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	k := &kernel{}
	f.SetInvalidator(k)
	src := f.saved("src", "shared")
	_, err := f.Checkpoint(ctx, src, "c")
	f.must(err)
	h := f.openFile(src)
	f.write(h, "SRC", 0, byWrite)
	now, err := f.Clone(ctx, src, "", namespace.Root, "now")
	f.must(err)
	then, err := f.Clone(ctx, src, "c", namespace.Root, "then")
	f.must(err)
	_, err = f.Clone(ctx, src, "", namespace.Root, "then")
	wantError(t, "clone over a file", err, namespace.ErrExist)
	_, err = f.Clone(ctx, src, "none", namespace.Root, "x")
	wantError(t, "clone of no checkpoint", err, namespace.ErrNotExist)
	h.Release(ctx)
	f.want(now.Ino, "SRCred")
	f.want(then.Ino, "shared")
	if got, want := strings.Join(k.entries, " "), "now then"; got != want {
		t.Errorf("names that the kernel was told: got %q, want %q", got, want)
	}

	// Each goes its own way, also when the source is gone.
	h = f.openFile(now.Ino)
	f.write(h, "NOW", 3, byWrite)
	h.Release(ctx)
	f.want(src, "SRCred")
	f.sound()
	f.must(f.Unlink(ctx, namespace.Root, "src"))
	f.until("the source is freed", func() bool {
		_, err := f.Inode(ctx, src)
		return errors.Is(err, namespace.ErrNotExist)
	})
	for i := range 10 { // slots that are wrongly free are used again
		f.saved(string(rune('a'+i)), strings.Repeat("z", 50_000))
	}
	f.want(now.Ino, "SRCNOW")
	f.want(then.Ino, "shared")
	f.sound()
	f.must(f.unmount())
	f.open()
	f.want(now.Ino, "SRCNOW")
	f.want(then.Ino, "shared")
	f.sound()
}

func TestStat(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "text")
	h := f.openFile(ino)
	f.write(h, "map", 0, byMapping)
	f.write(h, "x", 4096*3, byWrite)
	s, err := f.Stat(ctx, ino)
	f.must(err)
	if s.DirtyMapped != 1 || s.DirtyWritten != 1 || !s.SizeChanged || s.Size != 4096*3+1 || s.Epoch != 1 || s.Handles != 1 || s.OnClose != "rollback" {
		t.Errorf("stat: got %+v", s)
	}
	h.Release(ctx)
	_, err = f.Stat(ctx, namespace.Root)
	wantError(t, "stat of a directory", err, namespace.ErrIsDir)
	_, err = f.Stat(ctx, 999)
	wantError(t, "stat of nothing", err, namespace.ErrNotExist)
}

func TestCommitAll(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	a, b, c := f.saved("a", "old"), f.saved("b", "old"), f.saved("c", "old")
	for _, ino := range []namespace.Ino{a, b} {
		f.write(f.openFile(ino), "new", 0, byMapping)
	}
	files, err := f.CommitAll(ctx)
	f.must(err)
	if files != 2 {
		t.Errorf("commit all: got %d files, want 2", files)
	}
	f.crash()
	f.open()
	f.want(a, "new")
	f.want(b, "new")
	f.want(c, "old")
}

func TestXattrs(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{Socket: "/run/s", Mountpoint: "/mnt"})
	ino := f.saved("file", "text")
	get := func(ino namespace.Ino, name string) (string, error) {
		b, err := f.Xattr(ctx, ino, name)
		return string(b), err
	}
	set := func(name, value string) error { return f.SetXattr(ctx, ino, name, []byte(value), 0) }
	f.must(set("user.mine", "1"))
	f.must(set(volume.XattrCheckpoint, "one"))
	h := f.openFile(ino)
	defer h.Release(ctx)
	f.write(h, "new", 0, byWrite)
	f.must(set(volume.XattrCheckpoint, "")) // commits only
	f.must(set(volume.XattrCheckpoint, "two"))
	f.write(h, "more", 0, byMapping)

	for name, want := range map[string]string{
		"user.mine":             "1",
		volume.XattrEpoch:       "2",
		volume.XattrDirtyPages:  "1",
		volume.XattrCheckpoints: "one\ntwo\n",
		volume.XattrIno:         "2",
		volume.XattrSocket:      "/run/s",
		volume.XattrMountpoint:  "/mnt",
		volume.XattrPoisoned:    "",
		volume.XattrOnClose:     "rollback",
	} {
		if got, err := get(ino, name); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := get(namespace.Root, volume.XattrSocket); got != "/run/s" || err != nil {
		t.Errorf("socket of a directory: got %q, %v", got, err)
	}
	f.must(set(volume.XattrOnClose, "commit"))
	if got, _ := get(ino, volume.XattrOnClose); got != "commit" {
		t.Errorf("on_close: got %q, want commit", got)
	}
	f.must(f.RemoveXattr(ctx, ino, volume.XattrOnClose))
	if got, _ := get(ino, volume.XattrOnClose); got != "rollback" {
		t.Errorf("on_close after its removal: got %q, want rollback", got)
	}
	names, err := f.Xattrs(ctx, ino)
	f.must(err)
	if got := strings.Join(names, " "); got != "user.mine" {
		t.Errorf("list: got %q, want only what was stored", got)
	}

	_, err = get(ino, "user.rpmemfs.unknown")
	wantError(t, "get of an unknown name", err, namespace.ErrNoXattr)
	_, err = get(namespace.Root, volume.XattrEpoch)
	wantError(t, "epoch of a directory", err, namespace.ErrNoXattr)
	_, err = get(ino, "system.posix_acl_access")
	wantError(t, "get of an ACL", err, volume.ErrNotSupported)
	wantError(t, "set of an unknown name", set("user.rpmemfs.unknown", "x"), namespace.ErrInvalid)
	wantError(t, "set of a read-only name", set(volume.XattrEpoch, "9"), namespace.ErrInvalid)
	wantError(t, "set of a bad mode", set(volume.XattrOnClose, "maybe"), namespace.ErrInvalid)
	wantError(t, "checkpoint of a taken name", set(volume.XattrCheckpoint, "one"), namespace.ErrExist)
	wantError(t, "checkpoint of a bad name", set(volume.XattrCheckpoint, "a\nb"), namespace.ErrInvalid)
	wantError(t, "checkpoint of a directory", f.SetXattr(ctx, namespace.Root, volume.XattrCheckpoint, []byte("x"), 0), namespace.ErrInvalid)
}

// The newest of what was written and what utimensat said counts, through commit,
// rollback and crash.
func TestMtime(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "text")
	mtime := func() int64 {
		a, err := f.Getattr(ctx, ino)
		f.must(err)
		if a.Ctime < a.Mtime && a.Mtime < 1e18*2 && a.Ctime == 0 {
			t.Errorf("ctime %d is before mtime %d", a.Ctime, a.Mtime)
		}
		return a.Mtime
	}
	set := func(ns int64) {
		_, err := f.Setattr(ctx, ino, volume.Change{Mtime: &ns})
		f.must(err)
		if got := mtime(); got != ns {
			t.Errorf("after it was set: got %d, want %d", got, ns)
		}
	}
	written := mtime()
	set(1000) // over a committed epoch
	h := f.openFile(ino)
	f.write(h, "more", 0, byWrite)
	if got := mtime(); got <= written {
		t.Errorf("after a write: got %d, want more than %d", got, written)
	}
	set(2000) // over an open epoch
	f.must(h.Sync(ctx))
	if got := mtime(); got != 2000 {
		t.Errorf("after the commit: got %d, want 2000", got)
	}
	f.crash()
	f.open()
	if got := mtime(); got != 2000 {
		t.Errorf("after a crash: got %d, want 2000", got)
	}
	h = f.openFile(ino)
	f.write(h, "even more", 0, byWrite)
	set(3000)
	f.write(h, "yet more", 0, byWrite)
	if got := mtime(); got <= written {
		t.Errorf("a write after it was set: got %d, want more than %d", got, written)
	}
	h.Release(ctx)
	if got := mtime(); got <= written {
		t.Errorf("after the last close: got %d, want more than %d", got, written)
	}
}

func TestOwnerChangeDropsPrivileges(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	ino := f.saved("file", "text")
	f.must(f.SetXattr(ctx, ino, "security.capability", []byte("caps"), 0))
	mode, uid := uint32(0o6755), uint32(1000)
	_, err := f.Setattr(ctx, ino, volume.Change{Mode: &mode})
	f.must(err)
	a, err := f.Setattr(ctx, ino, volume.Change{UID: &uid})
	f.must(err)
	if a.Mode != unix.S_IFREG|0o755 || a.UID != 1000 {
		t.Errorf("got mode %o of user %d, want 100755 of 1000", a.Mode, a.UID)
	}
	_, err = f.Xattr(ctx, ino, "security.capability")
	wantError(t, "file capabilities", err, namespace.ErrNoXattr)
}

func TestSetGroupIDDirectory(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	dir, err := f.Create(ctx, namespace.Root, "dir", namespace.Inode{Mode: unix.S_IFDIR | unix.S_ISGID | 0o775, GID: 50})
	f.must(err)
	file, err := f.Create(ctx, dir.Ino, "file", namespace.Inode{Mode: unix.S_IFREG | 0o644, GID: 7})
	f.must(err)
	sub, err := f.Create(ctx, dir.Ino, "sub", namespace.Inode{Mode: unix.S_IFDIR | 0o755, GID: 7})
	f.must(err)
	if file.GID != 50 || sub.GID != 50 || sub.Mode&unix.S_ISGID == 0 {
		t.Errorf("got groups %d and %d, mode %o of the directory, want 50, 50 and set-group-ID", file.GID, sub.GID, sub.Mode)
	}
}
