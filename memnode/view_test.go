package memnode

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func mustShare(t testing.TB, p *Pool, name string, quota uint64) namespace.Ino {
	t.Helper()
	n, err := p.MakeShare(t.Context(), name, quota)
	if err != nil {
		t.Fatal(err)
	}
	return n.Ino
}

func mustLease(t testing.TB, p *Pool, share namespace.Ino) Lease {
	t.Helper()
	l, err := p.GrantLease(t.Context(), Lease{Share: share, Session: [16]byte{byte(share)}, Holder: "test", Timeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// reopenKeep closes a pool and opens it as the next memory node.
func reopenKeep(t testing.TB, p *Pool, dir string) *Pool {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := Open(dir, Options{KeepOrphans: true, noSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // perhaps closed already
	return p
}

// Random changes of two shares and of the rest of the pool, each against a model of
// its own, with leases that end and memory nodes that come and go. Nobody sees, or
// changes, what is another's.
func TestViewModel(t *testing.T) {
	steps := 2000
	if testing.Short() {
		steps = 400
	}
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(*seed, 1))
	dir := newPoolDir(t)
	p := openPool(t, dir)
	var shares []namespace.Ino
	var all []*stepper
	for _, name := range []string{"s", "t"} {
		ino := mustShare(t, p, name, 0)
		mustLease(t, p, ino)
		shares = append(shares, ino)
		all = append(all, &stepper{rng: rng, pool: p.View(ino), model: newDirModel()})
		all[len(all)-1].model.nodes[namespace.Root].xattrs = map[string][]byte{}
	}
	views := func() {
		for i, s := range all {
			s.pool = p.View(shares[i])
		}
	}
	compare := func(step int, what string) {
		t.Helper()
		for i, s := range all {
			if err := s.model.compare(ctx, s.pool); err != nil {
				t.Fatalf("step %d: %s: share %d: %v; -seed=%d", step, what, i, err, *seed)
			}
		}
		wantSound(t, p)
	}
	for i := range steps {
		who := rng.IntN(len(all))
		what, err := all[who].step(ctx)
		if err != nil {
			t.Fatalf("step %d: share %d: %s: %v; -seed=%d", i, who, what, err, *seed)
		}
		switch rng.IntN(60) {
		case 0: // the memory node starts again; its sessions go on
			what = "memory node"
			p = reopenKeep(t, p, dir)
			views()
		case 1: // a mount of the pool itself ends all of them
			what = "local mount"
			p = reopen(t, p, dir)
			for _, s := range all {
				s.model.reap()
			}
			for _, ino := range shares {
				mustLease(t, p, ino)
			}
			views()
		case 2: // one session ends, the next finds no orphans
			what = "next lease"
			if err := p.EndLease(ctx, shares[who], [16]byte{byte(shares[who])}); err != nil {
				t.Fatal(err)
			}
			mustLease(t, p, shares[who])
			all[who].model.reap()
		}
		compare(i, what)
	}
}

// A share sees its directory as the root, above and below.
func TestViewNumbersRoot(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	mustCreate(t, p, namespace.Root, "other", fileInode())
	share := mustShare(t, p, "s", 0)
	v := p.View(share)
	root, err := v.Inode(ctx, namespace.Root)
	if err != nil || root.Ino != namespace.Root || root.Parent != namespace.Root || root.Share != namespace.Root || root.Nlink != 2 {
		t.Fatalf("root = %+v, %v", root, err)
	}
	d, err := v.Create(ctx, namespace.Root, "d", dirInode())
	if err != nil || d.Parent != namespace.Root || d.Share != namespace.Root || d.Ino == namespace.Root {
		t.Fatalf("Create = %+v, %v", d, err)
	}
	if got, err := v.Lookup(ctx, namespace.Root, "d"); err != nil || got != d {
		t.Errorf("Lookup = %+v, %v, want %+v", got, err, d)
	}
	want := d
	want.Share, want.Parent = share, share
	if got, err := p.Inode(ctx, d.Ino); err != nil || got != want {
		t.Errorf("in the pool it is %+v, %v, want %+v", got, err, want)
	}
	if n, err := v.Update(ctx, namespace.Root, func(n *namespace.Inode) { n.UID = 7 }); err != nil || n.UID != 7 || n.Ino != namespace.Root {
		t.Errorf("Update of the root = %+v, %v", n, err)
	}
	if n, err := p.Inode(ctx, share); err != nil || n.UID != 7 || n.Parent != namespace.Root || n.Share != share || n.Nlink != 3 {
		t.Errorf("the share = %+v, %v", n, err)
	}
	if n, err := p.Inode(ctx, namespace.Root); err != nil || n.UID == 7 {
		t.Errorf("the pool's root = %+v, %v", n, err)
	}
	for _, change := range []func(*namespace.Inode){
		func(n *namespace.Inode) { n.Share = 0 },
		func(n *namespace.Inode) { n.Share = share },
		func(n *namespace.Inode) { n.Parent = share },
	} {
		_, err = v.Update(ctx, d.Ino, change)
		wantErr(t, "Update of what must stay", err, namespace.ErrInvalid)
	}
	if err := v.SetXattr(ctx, namespace.Root, "user.a", []byte("x"), 0); err != nil {
		t.Error(err)
	}
	if got, err := p.Xattr(ctx, share, "user.a"); err != nil || string(got) != "x" {
		t.Errorf("attribute of the share = %q, %v", got, err)
	}
	_, err = v.Reap(ctx, namespace.Root)
	wantErr(t, "Reap of the root", err, namespace.ErrInvalid)
	wantSound(t, p)
}

// everyArgument calls each method of a view once for each of its inode arguments,
// with ino there and good ones elsewhere.
func everyArgument(t *testing.T, v *View, file, dir, ino namespace.Ino) map[string]error {
	ctx := t.Context()
	errs := map[string]error{}
	do := func(what string, err error) { errs[what] = err }
	_, err := v.Lookup(ctx, ino, "x")
	do("Lookup", err)
	_, err = v.Inode(ctx, ino)
	do("Inode", err)
	_, err = v.Create(ctx, ino, "new", fileInode())
	do("Create", err)
	_, err = v.Link(ctx, ino, dir, "new")
	do("Link of", err)
	_, err = v.Link(ctx, file, ino, "new")
	do("Link to", err)
	_, err = v.Unlink(ctx, ino, "x")
	do("Unlink", err)
	do("Rmdir", v.Rmdir(ctx, ino, "y"))
	for _, flags := range []namespace.RenameFlags{0, namespace.RenameNoReplace, namespace.RenameExchange} {
		_, err = v.Rename(ctx, ino, "x", dir, "z", flags)
		do(fmt.Sprintf("Rename(%d) from", flags), err)
		_, err = v.Rename(ctx, dir, "x", ino, "x", flags)
		do(fmt.Sprintf("Rename(%d) to", flags), err)
	}
	_, err = v.ReadDir(ctx, ino)
	do("ReadDir", err)
	_, err = v.Update(ctx, ino, func(n *namespace.Inode) { n.UID = 99 })
	do("Update", err)
	_, err = v.Reap(ctx, ino)
	do("Reap", err)
	_, err = v.Xattr(ctx, ino, "user.x")
	do("Xattr", err)
	_, err = v.Xattrs(ctx, ino)
	do("Xattrs", err)
	do("SetXattr", v.SetXattr(ctx, ino, "user.x", nil, 0))
	do("RemoveXattr", v.RemoveXattr(ctx, ino, "user.x"))

	id := region.ID(ino)
	_, err = v.Grant(ctx, id, 1, 1)
	do("Grant", err)
	do("Return", v.Return(ctx, id, []region.Run{{Start: 1, N: 1}}))
	_, err = v.Locate(ctx, id)
	do("Locate", err)
	do("SaveCheckpoint", v.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "new"}))
	do("DropCheckpoint", v.DropCheckpoint(ctx, id, "c"))
	for _, seed := range []region.Seed{{}, {Tree: region.Tree{Root: 9, Height: 1}}} {
		_, err = v.Clone(ctx, id, dir, "new", fileInode(), seed)
		do(fmt.Sprintf("Clone(%v) of", seed.Tree), err)
		_, err = v.Clone(ctx, region.ID(file), ino, "new", fileInode(), seed)
		do(fmt.Sprintf("Clone(%v) to", seed.Tree), err)
	}
	return errs
}

// furnish makes one of everything in a directory.
func furnish(t *testing.T, v *View, in namespace.Ino) (file, dir, orphan namespace.Inode) {
	ctx := t.Context()
	create := func(parent namespace.Ino, name string, n namespace.Inode) namespace.Inode {
		n, err := v.Create(ctx, parent, name, n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	dir = create(in, "dir", dirInode())
	file = create(dir.Ino, "x", fileInode())
	create(dir.Ino, "y", dirInode())
	orphan = create(dir.Ino, "z", fileInode())
	for _, ino := range []namespace.Ino{file.Ino, dir.Ino} {
		if err := v.SetXattr(ctx, ino, "user.x", []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []namespace.Inode{file, orphan} {
		if _, err := v.Grant(ctx, region.ID(n.Ino), 8, 8); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.SaveCheckpoint(ctx, region.ID(file.Ino), region.Checkpoint{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Unlink(ctx, dir.Ino, "z"); err != nil {
		t.Fatal(err)
	}
	return file, dir, orphan
}

// No argument of any method reaches what is not of the share, and nothing changes by
// trying.
func TestViewIsolation(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	mine, theirs := mustShare(t, p, "mine", 0), mustShare(t, p, "theirs", 0)
	v := p.View(mine)
	file, dir, _ := furnish(t, v, namespace.Root)
	f2, d2, o2 := furnish(t, p.View(theirs), namespace.Root)
	f3, d3, o3 := furnish(t, p.View(namespace.Root), namespace.Root)
	before := dump(t, p)
	for what, ino := range map[string]namespace.Ino{
		"file of another share": f2.Ino, "directory of another share": d2.Ino, "orphan of another share": o2.Ino,
		"file of no share": f3.Ino, "directory of no share": d3.Ino, "orphan of no share": o3.Ino,
		"another share": theirs, "own share by its number in the pool": mine, "nothing": 0, "a number not used": 1 << 60,
	} {
		for method, err := range everyArgument(t, v, file.Ino, dir.Ino, ino) {
			wantErr(t, method+" with "+what, err, namespace.ErrNotExist)
		}
	}
	for _, none := range []namespace.Ino{0, 1 << 60, dir.Ino, d3.Ino, file.Ino} { // no shares
		for what, ino := range map[string]namespace.Ino{"the root": namespace.Root, "a file": f2.Ino, "a file of no share": f3.Ino} {
			for method, err := range everyArgument(t, p.View(none), f3.Ino, d3.Ino, ino) {
				wantErr(t, fmt.Sprintf("view of %d: %s with %s", none, method, what), err, namespace.ErrNotExist)
			}
		}
		_, err := p.View(none).Extents(ctx)
		wantErr(t, "Extents", err, namespace.ErrNotExist)
		_, err = p.View(none).Usage(ctx)
		wantErr(t, "Usage", err, namespace.ErrNotExist)
	}
	if after := dump(t, p); after != before {
		t.Errorf("the directory has changed:\n%s\nwas\n%s", after, before)
	}
	wantSound(t, p)
	// The same calls do work on what is one's own: they were not refused for nothing.
	for method, err := range everyArgument(t, v, file.Ino, dir.Ino, file.Ino) {
		if errors.Is(err, namespace.ErrNotExist) {
			t.Errorf("%s with a file of one's own = %v", method, err)
		}
	}
	wantSound(t, p)
}

// dump is all of meta.db but the counters of the pool.
func dump(t testing.TB, p *Pool) string {
	t.Helper()
	var s string
	err := p.meta.view(func(tx txn) error {
		for _, bucket := range append(slices.Clone(buckets), lateBuckets...) {
			err := tx.each(bucket, nil, func(key, body []byte) error {
				s += fmt.Sprintf("%s %x %x\n", bucket, key, body)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Nothing crosses the border of a share, whoever asks; a share is renamed, but stays
// where it is.
func TestShareBorders(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	s1, s2 := mustShare(t, p, "s1", 0), mustShare(t, p, "s2", 0)
	file, dir, _ := furnish(t, p.View(s1), namespace.Root)
	file2, dir2, _ := furnish(t, p.View(s2), namespace.Root)
	out, outDir, _ := furnish(t, p.View(namespace.Root), namespace.Root)
	if _, err := p.Grant(ctx, region.ID(out.Ino), 8, 8); err != nil {
		t.Fatal(err)
	}
	before := dump(t, p)
	for _, d := range []*directory{&p.directory, &p.View(namespace.Root).directory} {
		for _, flags := range []namespace.RenameFlags{0, namespace.RenameNoReplace, namespace.RenameExchange} {
			to, second := "new", "new2"
			if flags == namespace.RenameExchange {
				to, second = "x", "y"
			}
			for what, err := range map[string]error{
				"into a share":            rename(t, d, outDir.Ino, "x", dir.Ino, to, flags),
				"out of a share":          rename(t, d, dir.Ino, "x", outDir.Ino, to, flags),
				"to another share":        rename(t, d, dir.Ino, "x", dir2.Ino, to, flags),
				"dir to another share":    rename(t, d, dir.Ino, "y", dir2.Ino, second, flags),
				"share into a share":      rename(t, d, namespace.Root, "s1", dir2.Ino, second, flags),
				"share into a dir":        rename(t, d, namespace.Root, "s1", outDir.Ino, second, flags),
				"from a share's top":      rename(t, d, s1, "dir", namespace.Root, map[bool]string{false: "new", true: "dir"}[flags == namespace.RenameExchange], flags),
				"file over a share's own": rename(t, d, s1, "dir", s2, map[bool]string{false: "new", true: "dir"}[flags == namespace.RenameExchange], flags),
			} {
				wantErr(t, fmt.Sprintf("rename(%d) %s", flags, what), err, namespace.ErrCrossShare)
			}
		}
		// The exchange brings a share down, though what is asked for stays outside.
		wantErr(t, "exchange with a share", rename(t, d, outDir.Ino, "y", namespace.Root, "s1", namespace.RenameExchange), namespace.ErrCrossShare)
		for what, at := range map[string][2]namespace.Ino{
			"into a share": {out.Ino, dir.Ino}, "out of a share": {file.Ino, outDir.Ino}, "to another share": {file.Ino, dir2.Ino},
			"to the root": {file2.Ino, namespace.Root},
		} {
			_, err := d.Link(ctx, at[0], at[1], "new")
			wantErr(t, "link "+what, err, namespace.ErrCrossShare)
			for _, seed := range []region.Seed{{}, {Tree: region.Tree{Root: 9, Height: 1}}} {
				_, err = d.Clone(ctx, region.ID(at[0]), at[1], "new", fileInode(), seed)
				wantErr(t, "clone "+what, err, namespace.ErrCrossShare)
			}
		}
	}
	if after := dump(t, p); after != before {
		t.Errorf("the directory has changed:\n%s\nwas\n%s", after, before)
	}
	for _, err := range []error{
		rename(t, &p.directory, namespace.Root, "s1", namespace.Root, "first", 0),
		rename(t, &p.directory, namespace.Root, "first", namespace.Root, "s2", namespace.RenameExchange),
		rename(t, &p.directory, namespace.Root, "s2", namespace.Root, "dir", namespace.RenameExchange),
		rename(t, &p.directory, outDir.Ino, "x", namespace.Root, "x", 0),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if s, err := p.Share(ctx, "dir"); err != nil || s.Ino != s1 {
		t.Errorf("Share = %+v, %v, want inode %d", s, err, s1)
	}
	wantSound(t, p)
}

func rename(t *testing.T, d *directory, from namespace.Ino, name string, to namespace.Ino, newName string, flags namespace.RenameFlags) error {
	_, err := d.Rename(t.Context(), from, name, to, newName, flags)
	return err
}
