package memnode

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
)

func TestNamesRefused(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	long := strings.Repeat("x", namespace.MaxName)
	mustCreate(t, p, namespace.Root, long, fileInode())
	for name, want := range map[string]error{
		"": namespace.ErrInvalid, ".": namespace.ErrInvalid, "..": namespace.ErrInvalid,
		"a/b": namespace.ErrInvalid, "a\x00": namespace.ErrInvalid, long + "x": namespace.ErrNameTooLong,
	} {
		_, lookup := p.Lookup(ctx, namespace.Root, name)
		_, create := p.Create(ctx, namespace.Root, name, fileInode())
		_, link := p.Link(ctx, f.Ino, namespace.Root, name)
		_, unlink := p.Unlink(ctx, namespace.Root, name)
		_, from := p.Rename(ctx, namespace.Root, name, namespace.Root, "g", 0)
		_, to := p.Rename(ctx, namespace.Root, "f", namespace.Root, name, 0)
		for what, err := range map[string]error{
			"Lookup": lookup, "Create": create, "Link": link, "Unlink": unlink, "Rename from": from, "Rename to": to,
			"Rmdir": p.Rmdir(ctx, namespace.Root, name),
		} {
			wantErr(t, fmt.Sprintf("%s(%.5q)", what, name), err, want)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	for _, c := range []struct {
		n    namespace.Inode
		want error
	}{
		{namespace.Inode{Mode: 0o644}, namespace.ErrInvalid},
		{namespace.Inode{Mode: unix.S_IFREG | 1<<20}, namespace.ErrInvalid},
		{namespace.Inode{Mode: unix.S_IFREG, OnClose: 9}, namespace.ErrInvalid},
		{namespace.Inode{Mode: unix.S_IFREG, Target: "x"}, namespace.ErrInvalid},
		{namespace.Inode{Mode: unix.S_IFLNK}, namespace.ErrInvalid},
		{namespace.Inode{Mode: unix.S_IFLNK, Target: strings.Repeat("x", namespace.MaxSymlink+1)}, namespace.ErrNameTooLong},
	} {
		_, err := p.Create(ctx, namespace.Root, "n", c.n)
		wantErr(t, fmt.Sprintf("Create(%#o)", c.n.Mode), err, c.want)
	}
	target := strings.Repeat("x", namespace.MaxSymlink)
	n := mustCreate(t, p, namespace.Root, "link", namespace.Inode{Mode: unix.S_IFLNK | 0o777, Target: target})
	if got, err := p.Inode(ctx, n.Ino); err != nil || got != n || got.Target != target {
		t.Errorf("Inode = %+v, %v, want %+v", got, err, n)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err := p.Create(cancelled, namespace.Root, "n", fileInode())
	wantErr(t, "Create with a cancelled context", err, context.Canceled)
	_, err = p.Lookup(cancelled, namespace.Root, "link")
	wantErr(t, "Lookup with a cancelled context", err, context.Canceled)
}

// Attributes come back as they were set, also from a later opening.
func TestAttributesPersist(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	f := mustCreate(t, p, namespace.Root, "f", namespace.Inode{
		Mode: unix.S_IFREG | 0o4711, UID: 1, GID: 2, Rdev: 3, OnClose: namespace.OnCloseCommit, Atime: -4, Mtime: 5, Ctime: 6, MtimeEpoch: 7,
	})
	want := f
	want.Mode, want.Atime, want.MtimeEpoch = unix.S_IFREG|0o600, 1<<62, 8
	got, err := p.Update(t.Context(), f.Ino, func(n *namespace.Inode) { *n = want })
	if err != nil || got != want {
		t.Fatalf("Update = %+v, %v, want %+v", got, err, want)
	}
	p = reopen(t, p, dir)
	if got, err := p.Lookup(t.Context(), namespace.Root, "f"); err != nil || got != want {
		t.Errorf("Lookup = %+v, %v, want %+v", got, err, want)
	}
	next := mustCreate(t, p, namespace.Root, "g", fileInode())
	if next.Ino <= f.Ino {
		t.Errorf("inode number %d after %d", next.Ino, f.Ino)
	}
}

// A number is never used twice, not even that of an inode that is gone.
func TestNumbersAreNotReused(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	var last namespace.Ino
	for range 5 {
		f := mustCreate(t, p, namespace.Root, "f", fileInode())
		if f.Ino <= last {
			t.Errorf("inode number %d after %d", f.Ino, last)
		}
		last = f.Ino
		if _, err := p.Unlink(t.Context(), namespace.Root, "f"); err != nil {
			t.Fatal(err)
		}
		p = reopen(t, p, dir) // reaps
	}
}

func TestUpdateRefuses(t *testing.T) {
	p := newPool(t)
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	for what, change := range map[string]func(*namespace.Inode){
		"Ino":     func(n *namespace.Inode) { n.Ino++ },
		"Nlink":   func(n *namespace.Inode) { n.Nlink++ },
		"Parent":  func(n *namespace.Inode) { n.Parent = 1 },
		"type":    func(n *namespace.Inode) { n.Mode = unix.S_IFIFO },
		"mode":    func(n *namespace.Inode) { n.Mode |= 1 << 20 },
		"OnClose": func(n *namespace.Inode) { n.OnClose = 3 },
		"Target":  func(n *namespace.Inode) { n.Target = "x" },
	} {
		_, err := p.Update(t.Context(), f.Ino, change)
		wantErr(t, "Update of "+what, err, namespace.ErrInvalid)
	}
	if got, err := p.Inode(t.Context(), f.Ino); err != nil || got != f {
		t.Errorf("after refused updates: %+v, %v, want %+v", got, err, f)
	}
	_, err := p.Update(t.Context(), 99, func(*namespace.Inode) {})
	wantErr(t, "Update of nothing", err, namespace.ErrNotExist)
}

// Changes set the times that POSIX says they set.
func TestTimes(t *testing.T) {
	dir := newPoolDir(t)
	p, err := Open(dir, Options{Now: ticking(), noSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx := t.Context()
	a := mustCreate(t, p, namespace.Root, "a", dirInode())
	b := mustCreate(t, p, namespace.Root, "b", dirInode())
	f := mustCreate(t, p, a.Ino, "f", fileInode())
	g := mustCreate(t, p, b.Ino, "g", fileInode())
	type times struct{ mtime, ctime int64 }
	look := func() map[string]times {
		all := map[string]times{}
		for name, ino := range map[string]namespace.Ino{"a": a.Ino, "b": b.Ino, "f": f.Ino, "g": g.Ino} {
			n, err := p.Inode(ctx, ino)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = times{n.Mtime, n.Ctime}
		}
		return all
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what   string
		do     func()
		mtimes string // whose change, as the next
		ctimes string
	}{
		{"link", func() { _, err := p.Link(ctx, f.Ino, b.Ino, "f2"); must(err) }, "b", "bf"},
		{"unlink", func() { _, err := p.Unlink(ctx, b.Ino, "f2"); must(err) }, "b", "bf"},
		{"rename over", func() { _, err := p.Rename(ctx, a.Ino, "f", b.Ino, "g", 0); must(err) }, "ab", "abfg"},
		{"xattr", func() { must(p.SetXattr(ctx, f.Ino, "user.x", []byte("1"), 0)) }, "", "f"},
		{"same xattr", func() { must(p.SetXattr(ctx, f.Ino, "user.x", []byte("1"), 0)) }, "", ""},
		{"xattr removed", func() { must(p.RemoveXattr(ctx, f.Ino, "user.x")) }, "", "f"},
		{"mkdir", func() { mustCreate(t, p, a.Ino, "d", dirInode()) }, "a", "a"},
		{"rmdir", func() { must(p.Rmdir(ctx, a.Ino, "d")) }, "a", "a"},
		{"rename to itself", func() { _, err := p.Rename(ctx, b.Ino, "g", b.Ino, "g", 0); must(err) }, "", ""},
	} {
		before := look()
		c.do()
		for name, after := range look() {
			if got, want := after.mtime != before[name].mtime, strings.Contains(c.mtimes, name); got != want {
				t.Errorf("%s: mtime of %s changed: %v, want %v", c.what, name, got, want)
			}
			if got, want := after.ctime != before[name].ctime, strings.Contains(c.ctimes, name); got != want {
				t.Errorf("%s: ctime of %s changed: %v, want %v", c.what, name, got, want)
			}
		}
	}
}

func TestRenameRefusesFlags(t *testing.T) {
	p := newPool(t)
	mustCreate(t, p, namespace.Root, "f", fileInode())
	for _, flags := range []namespace.RenameFlags{namespace.RenameNoReplace | namespace.RenameExchange, 4, 1 << 31} {
		_, err := p.Rename(t.Context(), namespace.Root, "f", namespace.Root, "g", flags)
		wantErr(t, fmt.Sprintf("Rename with flags %#x", flags), err, namespace.ErrInvalid)
	}
}

func TestTooManyLinks(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	d := mustCreate(t, p, namespace.Root, "d", dirInode())
	err := p.meta.update(func(t txn) error {
		f.Nlink, d.Nlink = maxLinks, maxLinks
		if err := t.putInode(&f); err != nil {
			return err
		}
		return t.putInode(&d)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Link(ctx, f.Ino, namespace.Root, "g")
	wantErr(t, "Link", err, namespace.ErrTooManyLinks)
	_, err = p.Create(ctx, d.Ino, "sub", dirInode())
	wantErr(t, "Create of a directory", err, namespace.ErrTooManyLinks)
	mustCreate(t, p, d.Ino, "file", fileInode())
}

func TestXattrLimits(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	long := strings.Repeat("n", namespace.MaxXattrName)
	big := make([]byte, namespace.MaxXattrValue)
	if err := p.SetXattr(ctx, f.Ino, long, big, 0); err != nil {
		t.Errorf("SetXattr at the limits: %v", err)
	}
	wantErr(t, "SetXattr with a long name", p.SetXattr(ctx, f.Ino, long+"n", nil, 0), namespace.ErrNameTooLong)
	wantErr(t, "SetXattr with a big value", p.SetXattr(ctx, f.Ino, "n", append(big, 0), 0), namespace.ErrTooBig)
	wantErr(t, "SetXattr without a name", p.SetXattr(ctx, f.Ino, "", nil, 0), namespace.ErrInvalid)
	wantErr(t, "SetXattr with a zero in the name", p.SetXattr(ctx, f.Ino, "a\x00", nil, 0), namespace.ErrInvalid)
	wantErr(t, "SetXattr with unknown flags", p.SetXattr(ctx, f.Ino, "n", nil, 4), namespace.ErrInvalid)
	wantErr(t, "SetXattr with both flags", p.SetXattr(ctx, f.Ino, "n", nil, 3), namespace.ErrInvalid)
	_, err := p.Xattr(ctx, f.Ino, "none")
	wantErr(t, "Xattr of nothing", err, namespace.ErrNoXattr)
	_, err = p.Xattr(ctx, 99, "none")
	wantErr(t, "Xattr of no inode", err, namespace.ErrNotExist)
	for i := 0; ; i++ {
		name := fmt.Sprintf("%04d%s", i, strings.Repeat("x", 250))
		if err := p.SetXattr(ctx, f.Ino, name, nil, 0); err != nil {
			wantErr(t, fmt.Sprint("SetXattr number ", i), err, namespace.ErrTooBig)
			if i < 250 {
				t.Errorf("only %d names of 254 bytes fit", i)
			}
			break
		}
	}
	if v, err := p.Xattr(ctx, f.Ino, long); err != nil || len(v) != namespace.MaxXattrValue {
		t.Errorf("Xattr = %d bytes, %v", len(v), err)
	}
}
