package memnode

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Whatever a session puts into meta.db, it ends at the quota, with an error that names
// it, and others go on.
func TestNamesQuota(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	v := p.View(mustShare(t, p, "s", 0))
	other := p.View(mustShare(t, p, "other", 0))
	const quota = 100 << 10
	if err := p.SetNamesQuota(ctx, "s", quota); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "SetNamesQuota of nothing", p.SetNamesQuota(ctx, "t", 1), namespace.ErrNotExist)
	file, err := v.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Grant(ctx, region.ID(file.Ino), 10, 10); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("%s%d", strings.Repeat("x", 200), i) }
	for what, add := range map[string]struct {
		add    func(i int) error
		remove func(i int) error
	}{
		"files": {
			func(i int) error { _, err := v.Create(ctx, namespace.Root, name(i), fileInode()); return err },
			func(i int) error {
				n, err := v.Unlink(ctx, namespace.Root, name(i))
				if err == nil {
					_, err = v.Reap(ctx, n.Ino)
				}
				return err
			},
		},
		"directories": {
			func(i int) error { _, err := v.Create(ctx, namespace.Root, name(i), dirInode()); return err },
			func(i int) error {
				n, err := v.Lookup(ctx, namespace.Root, name(i))
				if err == nil {
					err = v.Rmdir(ctx, namespace.Root, name(i))
				}
				if err == nil {
					_, err = v.Reap(ctx, n.Ino)
				}
				return err
			},
		},
		"links": {
			func(i int) error { _, err := v.Link(ctx, file.Ino, namespace.Root, name(i)); return err },
			func(i int) error { _, err := v.Unlink(ctx, namespace.Root, name(i)); return err },
		},
		"attributes": {
			func(i int) error { return v.SetXattr(ctx, file.Ino, name(i), make([]byte, 100), 0) },
			func(i int) error { return v.RemoveXattr(ctx, file.Ino, name(i)) },
		},
		"checkpoints": {
			func(i int) error {
				return v.SaveCheckpoint(ctx, region.ID(file.Ino), region.Checkpoint{Name: name(i), Epoch: 1, Tree: region.Tree{Root: 1, Height: 1}})
			},
			func(i int) error { return v.DropCheckpoint(ctx, region.ID(file.Ino), name(i)) },
		},
	} {
		before, err := p.Share(ctx, "s")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; n < 1000; n++ {
			if err = add.add(n); err != nil {
				break
			}
		}
		if !errors.Is(err, region.ErrNoSpace) || !strings.Contains(err.Error(), "names") || n < quota/1000 {
			t.Errorf("%s: the %dth: %v", what, n, err)
		}
		full, err := p.Share(ctx, "s")
		if err != nil || full.Names > quota || full.Names < quota-1000 || full.NamesMax != quota {
			t.Errorf("%s: %+v, %v", what, full, err)
		}
		if _, err := other.Create(ctx, namespace.Root, what, fileInode()); err != nil {
			t.Errorf("%s: another share: %v", what, err)
		}
		wantSound(t, p)
		for i := range n {
			if err := add.remove(i); err != nil {
				t.Fatalf("%s: remove %d: %v", what, i, err)
			}
		}
		if after, err := p.Share(ctx, "s"); err != nil || after.Names != before.Names {
			t.Errorf("%s: %d bytes before, %d after, %v", what, before.Names, after.Names, err)
		}
	}
	// Less than there is takes nothing away, and lets go.
	if err := p.SetNamesQuota(ctx, "s", 1); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Create", v.SetXattr(ctx, file.Ino, "a", nil, 0), region.ErrNoSpace)
	if _, err := v.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Error(err)
	}
	if _, err := v.Reap(ctx, file.Ino); err != nil {
		t.Error(err)
	}
	wantSound(t, p)
}

// A pool of before anybody counted is counted when it is opened for writing.
func TestNamesAreRecounted(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	share := mustShare(t, p, "s", 0)
	furnish(t, p.View(share), namespace.Root)
	furnish(t, p.View(namespace.Root), mustCreate(t, p, namespace.Root, "plain", dirInode()).Ino)
	want, err := p.Share(t.Context(), "s")
	if err != nil || want.Names == 0 || want.NamesMax != DefaultNames {
		t.Fatalf("%+v, %v", want, err)
	}
	err = p.meta.(*boltMeta).db.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketNames)) })
	if err != nil {
		t.Fatal(err)
	}
	p = reopen(t, p, dir)
	if got, err := p.Share(t.Context(), "s"); err != nil || got.NamesMax != want.NamesMax {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	wantSound(t, p)
}

// Others change the pool while one looks it through.
func TestCheckBeside(t *testing.T) {
	p := newPool(t)
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	if err := p.meta.update(func(t txn) error { return t.delete(bucketInodes, key1(uint64(f.Ino))) }); err != nil {
		t.Fatal(err)
	}
	found := 0
	err := p.CheckBeside(t.Context(), func(string) {
		if found++; found == 1 {
			mustCreate(t, p, namespace.Root, "g", fileInode())
		}
	})
	if err != nil || found == 0 {
		t.Errorf("%d problems, %v", found, err)
	}
}
