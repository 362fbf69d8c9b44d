package memnode

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

var errInjected = errors.New("injected")

// failMeta fails transaction number n, counted from 0, before it commits.
type failMeta struct {
	*boltMeta
	n     int
	calls int
}

func (m *failMeta) update(fn func(txn) error) error {
	m.calls++
	if m.calls != m.n+1 {
		return m.boltMeta.update(fn)
	}
	return m.boltMeta.update(func(t txn) error {
		if err := fn(t); err != nil {
			return err
		}
		return errInjected
	})
}

// tour makes every kind of change once. It ends at the first error.
func tour(t *testing.T, p *Pool) error {
	ctx := t.Context()
	f, err := p.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		return err
	}
	id := region.ID(f.Ino)
	g, err := p.Grant(ctx, id, 40, 40)
	if err != nil {
		return err
	}
	if _, err := p.Grant(ctx, id, 40, 40); err != nil {
		return err
	}
	if err := p.Return(ctx, id, []region.Run{{Start: g.Runs[0].Start + 30, N: 20}}); err != nil {
		return err
	}
	if err := p.SaveCheckpoint(ctx, id, region.Checkpoint{Name: "c"}); err != nil {
		return err
	}
	tree := region.Tree{Root: g.Super + 10, Height: 1}
	c, err := p.Clone(ctx, id, namespace.Root, "c", fileInode(), region.Seed{Tree: tree})
	if err != nil {
		return err
	}
	d, err := p.Create(ctx, namespace.Root, "d", dirInode())
	if err != nil {
		return err
	}
	if _, err := p.Rename(ctx, namespace.Root, "f", d.Ino, "f", 0); err != nil {
		return err
	}
	if err := p.SetXattr(ctx, f.Ino, "user.x", []byte("v"), 0); err != nil {
		return err
	}
	if _, err := p.Unlink(ctx, d.Ino, "f"); err != nil {
		return err
	}
	if _, err := p.Reap(ctx, f.Ino); err != nil {
		return err
	}
	if _, err := p.Unlink(ctx, namespace.Root, "c"); err != nil {
		return err
	}
	if _, err := p.Reap(ctx, c.Ino); err != nil {
		return err
	}
	if err := p.Rmdir(ctx, namespace.Root, "d"); err != nil {
		return err
	}
	return tourShare(t, p)
}

// tourShare is the tour of a share and its lease.
func tourShare(t *testing.T, p *Pool) error {
	ctx := t.Context()
	s, err := p.MakeShare(ctx, "s", 1<<20)
	if err != nil {
		return err
	}
	if err := p.SetQuota(ctx, "s", 2<<20); err != nil {
		return err
	}
	v := p.View(s.Ino)
	if _, err := v.Fence(ctx); err != nil {
		return err
	}
	f, err := v.Create(ctx, namespace.Root, "f", fileInode())
	if err != nil {
		return err
	}
	if _, err := v.Grant(ctx, region.ID(f.Ino), 40, 40); err != nil {
		return err
	}
	if _, err := v.Unlink(ctx, namespace.Root, "f"); err != nil {
		return err
	}
	if _, err := p.GrantLease(ctx, Lease{Share: s.Ino, Timeout: 1}); err != nil {
		if leases, lerr := p.Leases(ctx); lerr != nil || len(leases) != 0 {
			t.Errorf("a refused lease is there: %+v, %v", leases, lerr)
		}
		return err
	}
	if _, err := p.Inode(ctx, f.Ino); !errors.Is(err, namespace.ErrNotExist) {
		t.Errorf("an orphan lives on in a new lease: %v", err)
	}
	if err := p.EndLease(ctx, s.Ino, [16]byte{}); err != nil {
		return err
	}
	return p.Rmdir(ctx, namespace.Root, "s")
}

// parts makes a pool of a medium and a directory in memory.
func parts(t *testing.T) (*boltMeta, *media.Crashable) {
	t.Helper()
	h := header{slots: testSlots, created: 1}
	path := filepath.Join(t.TempDir(), metaFile)
	if err := createMeta(path, h, true); err != nil {
		t.Fatal(err)
	}
	m := media.NewCrashable(testSlots*region.PageSize, -1)
	if err := writeHeader(m, h); err != nil {
		t.Fatal(err)
	}
	meta, err := openMeta(path, false, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.close() })
	return meta, m
}

// Each transaction fails once, in turn: the injected error comes out, and the
// pool is as before it, slots and all.
func TestEachTransactionFails(t *testing.T) {
	for n := 0; ; n++ {
		bolt, m := parts(t)
		meta := &failMeta{boltMeta: bolt, n: n}
		p, err := assemble(meta, m, Options{})
		if n == 0 {
			wantErr(t, "assemble", err, errInjected)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		err = tour(t, p)
		if meta.calls <= n {
			if err != nil {
				t.Fatal(err)
			}
			return // every transaction was tried
		}
		wantErr(t, "tour", err, errInjected)
		wantSound(t, p)
	}
}

// Each access to the medium fails once, in turn. Nothing of the failed change
// stays, and what is granted does not overlap.
func TestEachMediumAccessFails(t *testing.T) {
	for _, op := range []media.Op{media.OpRead, media.OpWrite, media.OpFlush} {
		for n := 0; ; n++ {
			meta, m := parts(t)
			f := media.NewFaulty(m, op, n, errInjected)
			p, err := assemble(meta, f, Options{})
			if err == nil {
				err = tour(t, p)
			}
			if !f.Fired() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			wantErr(t, "tour", err, errInjected)
			if p != nil {
				wantSound(t, p)
			}
		}
	}
}

// A commit that failed leaves open whether it is durable: nothing goes on.
func TestFailedCommitPoisons(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	meta := p.meta.(*boltMeta)
	if err := meta.failed(1, io.ErrShortWrite); !errors.Is(err, ErrPoisoned) || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("failed commit = %v, want ErrPoisoned with its cause", err)
	}
	_, create := p.Create(t.Context(), namespace.Root, "f", fileInode())
	_, lookup := p.Lookup(t.Context(), namespace.Root, "f")
	wantErr(t, "Create", create, ErrPoisoned)
	wantErr(t, "Lookup", lookup, ErrPoisoned)
	p = reopen(t, p, dir)
	mustCreate(t, p, namespace.Root, "f", fileInode())
}

// A panic over a damaged page is an error, and closing still works.
func TestPanicIsAnError(t *testing.T) {
	for _, write := range []bool{false, true} {
		dir := newPoolDir(t)
		p := openPool(t, dir)
		run := p.meta.view
		if write {
			run = p.meta.update
		}
		err := run(func(txn) error { panic("page 9 is no page") })
		wantErr(t, "transaction", err, ErrPoisoned)
		wantErr(t, "transaction", err, ErrCorrupt)
		_, err = p.Inode(t.Context(), namespace.Root)
		wantErr(t, "Inode after it", err, ErrPoisoned)
		p = reopen(t, p, dir)
		wantSound(t, p)
	}
}

// A full file system under meta.db is ErrNoSpace, not poison: once there is
// space again the pool works, and all that was acknowledged is there.
func TestFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	dir := filepath.Join(mnt, "pool")
	p, _, err := OpenOrCreate(dir, CreateOptions{SizeBytes: 64 << 20}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if m := p.Medium(); !m.Volatile || m.Kind != "tmpfs" {
		t.Errorf("Medium() = %+v, want volatile tmpfs", m)
	}
	f := mustCreate(t, p, namespace.Root, "f", fileInode())
	g := mustGrant(t, p, f.Ino, 4096)
	page := make([]byte, region.PageSize)
	page[0] = 1
	for off := g.Runs[0].Start.Offset() + 100*region.PageSize; err == nil; off += region.PageSize {
		err = p.WriteAt(page, off)
	}
	wantErr(t, "WriteAt to a full file system", err, region.ErrNoSpace)
	made := 0
	for {
		_, err = p.Create(t.Context(), namespace.Root, fmt.Sprintf("%0200d", made), fileInode())
		if err != nil {
			break
		}
		made++
	}
	wantErr(t, "Create in a full file system", err, region.ErrNoSpace)
	if errors.Is(err, ErrPoisoned) {
		t.Errorf("Create in a full file system = %v, want no poison", err)
	}
	wantSound(t, p)
	if _, err := p.Lookup(t.Context(), namespace.Root, "f"); err != nil {
		t.Errorf("Lookup: %v", err)
	}
	if err := p.media.(media.Discarder).Discard(g.Runs[0].Start.Offset()+100*region.PageSize, 100*region.PageSize); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, namespace.Root, "after", fileInode())
	entries, err := p.ReadDir(t.Context(), namespace.Root)
	if err != nil || len(entries) != made+2 {
		t.Errorf("%d names, %v, want %d", len(entries), err, made+2)
	}
	wantSound(t, p)
}

// Check finds each kind of damage that a program error could make.
func TestCheckFindsDamage(t *testing.T) {
	for what, damage := range map[string]func(t txn, f, d namespace.Inode) error{
		"name of nothing":    func(t txn, f, d namespace.Inode) error { return t.putDirent(d.Ino, "x", dirent{99, unix.S_IFREG}) },
		"name of wrong type": func(t txn, f, d namespace.Inode) error { return t.putDirent(1, "f", dirent{f.Ino, unix.S_IFIFO}) },
		"name in a file":     func(t txn, f, d namespace.Inode) error { return t.putDirent(f.Ino, "x", dirent{f.Ino, unix.S_IFREG}) },
		"bad name":           func(t txn, f, d namespace.Inode) error { return t.putDirent(1, "a/b", dirent{f.Ino, unix.S_IFREG}) },
		"second name of dir": func(t txn, f, d namespace.Inode) error { return t.putDirent(1, "x", dirent{d.Ino, unix.S_IFDIR}) },
		"lost name":          func(t txn, f, d namespace.Inode) error { return t.delete(bucketDirents, keyName(1, "f")) },
		"lost inode":         func(t txn, f, d namespace.Inode) error { return t.delete(bucketInodes, key1(uint64(f.Ino))) },
		"wrong link count":   func(t txn, f, d namespace.Inode) error { f.Nlink = 2; return t.putInode(&f) },
		"wrong dir links":    func(t txn, f, d namespace.Inode) error { d.Nlink = 3; return t.putInode(&d) },
		"wrong parent":       func(t txn, f, d namespace.Inode) error { d.Parent = d.Ino; return t.putInode(&d) },
		"forgotten orphan":   func(t txn, f, d namespace.Inode) error { f.Nlink = 0; return t.putInode(&f) },
		"orphan with a name": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketOrphans, key1(uint64(f.Ino)), encodeMark())
		},
		"orphan of nothing": func(t txn, f, d namespace.Inode) error { return t.put(bucketOrphans, key1(99), encodeMark()) },
		"xattr of nothing": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketXattrs, keyName(99, "x"), encodeXattr(nil))
		},
		"region of nothing": func(t txn, f, d namespace.Inode) error { return t.putRegion(99, regionRecord{super: 900}) },
		"region of a dir": func(t txn, f, d namespace.Inode) error {
			return t.putRegion(region.ID(d.Ino), regionRecord{super: 900})
		},
		"superblock astray": func(t txn, f, d namespace.Inode) error {
			return t.putRegion(region.ID(f.Ino), regionRecord{super: 900})
		},
		"family astray": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketFamilies, key2(7, uint64(f.Ino)), encodeMark())
		},
		"family unlisted": func(t txn, f, d namespace.Inode) error { return t.putRegion(region.ID(f.Ino), regionRecord{1, 7}) },
		"extents overlap": func(t txn, f, d namespace.Inode) error {
			return t.putExtent(region.ID(f.Ino), region.Run{Start: 5, N: 1})
		},
		"extent of nothing": func(t txn, f, d namespace.Inode) error { return t.putExtent(99, region.Run{Start: 900, N: 1}) },
		"extent out of pool": func(t txn, f, d namespace.Inode) error {
			return t.putExtent(region.ID(f.Ino), region.Run{Start: 1020, N: 9})
		},
		"malformed key":     func(t txn, f, d namespace.Inode) error { return t.put(bucketExtents, key1(5), encodeExtent(5)) },
		"wrong inode count": func(t txn, f, d namespace.Inode) error { return t.putState(stateRecord{1, 99, 7}) },
		"number used twice": func(t txn, f, d namespace.Inode) error { return t.putState(stateRecord{1, d.Ino, 2}) },
		"no root":           func(t txn, f, d namespace.Inode) error { return t.delete(bucketInodes, key1(1)) },
		"share of nothing":  func(t txn, f, d namespace.Inode) error { return t.putShare(99, shareRecord{}) },
		"share of a plain dir": func(t txn, f, d namespace.Inode) error {
			return t.putShare(d.Ino, shareRecord{inodes: 1})
		},
		"share without a record": func(t txn, f, d namespace.Inode) error { d.Share = d.Ino; return t.putInode(&d) },
		"file in another share":  func(t txn, f, d namespace.Inode) error { f.Share = 77; return t.putInode(&f) },
		"share counts inodes": func(t txn, f, d namespace.Inode) error {
			d.Share = d.Ino
			return errors.Join(t.putInode(&d), t.putShare(d.Ino, shareRecord{inodes: 2}))
		},
		"share counts slots": func(t txn, f, d namespace.Inode) error {
			d.Share = d.Ino
			return errors.Join(t.putInode(&d), t.putShare(d.Ino, shareRecord{inodes: 1, slots: 1}))
		},
		"names of nothing": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketNames, key1(99), (&namesRecord{}).encode())
		},
		"names that do not count": func(t txn, f, d namespace.Inode) error {
			d.Share = d.Ino
			return errors.Join(t.putInode(&d), t.putShare(d.Ino, shareRecord{inodes: 1}),
				t.put(bucketNames, key1(uint64(d.Ino)), (&namesRecord{used: 1}).encode()))
		},
		"lease of nothing": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketLeases, key1(99), (&Lease{Generation: 1, Timeout: 1}).encode())
		},
		"lease of the future": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketLeases, key1(1), (&Lease{Generation: 99, Timeout: 1}).encode())
		},
		"lease beside that of all": func(t txn, f, d namespace.Inode) error {
			d.Share = d.Ino
			l := Lease{Generation: 1, Timeout: 1}
			return errors.Join(t.putInode(&d), t.putShare(d.Ino, shareRecord{inodes: 1}),
				t.put(bucketLeases, key1(1), l.encode()), t.put(bucketLeases, key1(uint64(d.Ino)), l.encode()))
		},
		"request of nobody": func(t txn, f, d namespace.Inode) error {
			r := requestRecord{Request: Request{ID: 5, Generation: 1}}
			return t.put(bucketRequests, key2(1, 5), r.encode())
		},
		"request astray": func(t txn, f, d namespace.Inode) error {
			l, r := Lease{Generation: 1, Timeout: 1}, requestRecord{Request: Request{ID: 5, Generation: 1}}
			return errors.Join(t.put(bucketLeases, key1(1), l.encode()), t.put(bucketRequests, key2(1, 6), r.encode()))
		},
		"answer to nothing": func(t txn, f, d namespace.Inode) error {
			l, r := Lease{Generation: 1, Timeout: 1}, requestRecord{Request: Request{ID: 5, Generation: 1}}
			return errors.Join(t.put(bucketLeases, key1(1), l.encode()), t.put(bucketRequests, key2(1, 5), r.encode()),
				t.put(bucketAnswers, key2(1, 5), r.encode()))
		},
		"answer astray": func(t txn, f, d namespace.Inode) error {
			l, r := Lease{Generation: 1, Timeout: 1}, requestRecord{Request: Request{ID: 5, Generation: 1}, kind: answerLong}
			return errors.Join(t.put(bucketLeases, key1(1), l.encode()), t.put(bucketRequests, key2(1, 5), r.encode()),
				t.put(bucketAnswers, key2(1, 6), r.encode()))
		},
		"damaged answer": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketAnswers, key2(1, 5), newBody(5))
		},
		"damaged request": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketRequests, key2(1, 5), newBody(5))
		},
		"damaged share": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketShares, key1(9), newBody(5))
		},
		"damaged lease": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketLeases, key1(1), newBody(5))
		},
		"pool record missing": func(t txn, f, d namespace.Inode) error { return t.delete(bucketPool, []byte("pool")) },
		"checkpoint astray": func(t txn, f, d namespace.Inode) error {
			cp := region.Checkpoint{Tree: region.Tree{Root: 5000, Height: 1}}
			return t.put(bucketCheckpoints, keyName(uint64(f.Ino), "c"), encodeCheckpoint(&cp))
		},
		"checkpoint of a dir": func(t txn, f, d namespace.Inode) error {
			return t.put(bucketCheckpoints, keyName(uint64(d.Ino), "c"), encodeCheckpoint(&region.Checkpoint{}))
		},
		"damaged value": func(t txn, f, d namespace.Inode) error {
			b, err := t.bucket(bucketInodes)
			if err != nil {
				return err
			}
			v := append([]byte{}, b.Get(key1(uint64(f.Ino)))...)
			v[9] ^= 1
			return b.Put(key1(uint64(f.Ino)), v)
		},
		"ring": func(t txn, f, d namespace.Inode) error {
			e := d
			e.Ino, d.Parent, e.Parent = 50, 50, d.Ino
			return errors.Join(t.putInode(&d), t.putInode(&e), t.delete(bucketDirents, keyName(1, "d")),
				t.putDirent(50, "d", dirent{d.Ino, unix.S_IFDIR}), t.putDirent(d.Ino, "e", dirent{50, unix.S_IFDIR}))
		},
	} {
		meta, m := parts(t)
		p, err := assemble(meta, m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		f := mustCreate(t, p, namespace.Root, "f", fileInode())
		d := mustCreate(t, p, namespace.Root, "d", dirInode())
		mustGrant(t, p, f.Ino, 10)
		wantSound(t, p)
		err = meta.db.Update(func(tx *bolt.Tx) error { return damage(txn{tx: tx, share: namespace.Root}, f, d) })
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		found := 0
		if err := p.Check(t.Context(), func(string) { found++ }); err != nil || found == 0 {
			t.Errorf("%s: Check finds %d problems, %v", what, found, err)
		}
	}
}
