package memnode

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

func TestLeaseConflicts(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	a, b := mustShare(t, p, "a", 0), mustShare(t, p, "b", 0)
	grant := func(share namespace.Ino, holder string) error {
		_, err := p.GrantLease(ctx, Lease{Share: share, Session: [16]byte{holder[0]}, Holder: holder, Timeout: time.Second})
		return err
	}
	end := func(share namespace.Ino, holder string) {
		t.Helper()
		if err := p.EndLease(ctx, share, [16]byte{holder[0]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(grant(a, "x"), grant(b, "y")); err != nil {
		t.Fatal(err)
	}
	err := grant(a, "z")
	wantErr(t, "a second lease", err, ErrLeased)
	if !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("error = %v, want it to name the holder", err)
	}
	wantErr(t, "the same lease again", grant(a, "x"), ErrLeased)
	wantErr(t, "a lease of everything", grant(namespace.Root, "z"), ErrLeased)
	end(a, "x")
	wantErr(t, "a lease of everything", grant(namespace.Root, "z"), ErrLeased)
	end(b, "x") // not x's
	wantErr(t, "a lease that another session tried to end", grant(b, "z"), ErrLeased)
	end(b, "y")
	end(b, "y")
	if err := grant(namespace.Root, "r"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a lease beside one of everything", grant(a, "x"), ErrLeased)
	wantErr(t, "a second lease of everything", grant(namespace.Root, "z"), ErrLeased)
	end(namespace.Root, "r")
	if err := grant(a, "x"); err != nil {
		t.Fatal(err)
	}
	file := mustCreate(t, p, namespace.Root, "file", fileInode())
	dir := mustCreate(t, p, namespace.Root, "dir", dirInode())
	for _, ino := range []namespace.Ino{0, file.Ino, dir.Ino, 99} {
		wantErr(t, "a lease of no share", grant(ino, "z"), namespace.ErrNotExist)
	}
	for _, l := range []Lease{{Share: b}, {Share: b, Timeout: -1}, {Share: b, Timeout: 1, Holder: strings.Repeat("x", maxHolder+1)}} {
		_, err := p.GrantLease(ctx, l)
		wantErr(t, "a bad lease", err, namespace.ErrInvalid)
	}
	// A leased share stays; after that it can be removed.
	wantErr(t, "Rmdir of a leased share", p.Rmdir(ctx, namespace.Root, "a"), ErrLeased)
	_, err = p.Rename(ctx, namespace.Root, "dir", namespace.Root, "a", 0)
	wantErr(t, "Rename over a leased share", err, ErrLeased)
	end(a, "x")
	if err := errors.Join(p.Rmdir(ctx, namespace.Root, "a"), rename(t, &p.directory, namespace.Root, "dir", namespace.Root, "b", 0)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a lease of a removed share", grant(a, "x"), namespace.ErrNotExist)
	wantErr(t, "a lease of a replaced share", grant(b, "x"), namespace.ErrNotExist)
	if shares, err := p.Shares(ctx); err != nil || len(shares) != 0 {
		t.Errorf("Shares = %+v, %v, want none", shares, err)
	}
	wantSound(t, p)
	// What is left of it is no one's root but its own.
	if _, err := p.View(a).Reap(ctx, namespace.Root); err != nil {
		t.Error(err)
	}
	if _, err := p.Reap(ctx, b); err != nil {
		t.Error(err)
	}
	if n, err := p.Inode(ctx, namespace.Root); err != nil || n.Nlink != 3 {
		t.Errorf("the root = %+v, %v", n, err)
	}
	wantSound(t, p)
}

// Each lease has a generation of its own, above all others, whoever opens the pool
// between, and comes back from a restart as it was.
func TestLeaseGenerations(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	last := p.Generation()
	share := mustShare(t, p, "s", 0)
	for i := range 6 {
		l, err := p.GrantLease(ctx, Lease{
			Share: share, Session: [16]byte{1}, TokenHash: [32]byte{31: 9}, Holder: "me", Timeout: 3 * time.Second,
		})
		if err != nil || l.Generation <= last || l.Granted == 0 {
			t.Fatalf("GrantLease = %+v, %v, want a generation above %d", l, err, last)
		}
		last = l.Generation
		if i%2 == 0 {
			p = reopenKeep(t, p, dir)
			if p.Generation() <= last {
				t.Fatalf("generation %d of a new opening, want above %d", p.Generation(), last)
			}
			last = p.Generation()
		}
		if got, err := p.Leases(ctx); err != nil || !slices.Equal(got, []Lease{l}) {
			t.Fatalf("Leases = %+v, %v, want %+v", got, err, l)
		}
		if s, err := p.Share(ctx, "s"); err != nil || s.Lease == nil || *s.Lease != l {
			t.Fatalf("Share = %+v, %v", s, err)
		}
		wantSound(t, p)
		if err := p.EndLease(ctx, share, [16]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
}

// Orphans of a share live as long as its lease, also through a restart, and go when
// the next one is granted; those of others stay.
func TestOrphansOfLeases(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	a, b := mustShare(t, p, "a", 0), mustShare(t, p, "b", 0)
	mustLease(t, p, a)
	mustLease(t, p, b)
	_, _, orphanA := furnish(t, p.View(a), namespace.Root)
	_, _, orphanB := furnish(t, p.View(b), namespace.Root)
	alive := func(what string, ino namespace.Ino, want bool) {
		t.Helper()
		if _, err := p.Inode(ctx, ino); (err == nil) != want {
			t.Errorf("%s: Inode(%d) = %v, want it alive: %v", what, ino, err, want)
		}
	}
	p = reopenKeep(t, p, dir)
	alive("after a restart", orphanA.Ino, true)
	alive("after a restart", orphanB.Ino, true)
	used := func() uint64 {
		s, err := p.Share(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		return s.UsedBytes
	}
	before := used()
	if err := p.EndLease(ctx, a, [16]byte{byte(a)}); err != nil {
		t.Fatal(err)
	}
	alive("after the lease", orphanA.Ino, true)
	mustLease(t, p, a)
	alive("after the next lease", orphanA.Ino, false)
	alive("after another's lease", orphanB.Ino, true)
	if got := used(); got != before-8*region.PageSize {
		t.Errorf("%d bytes used, had %d", got, before)
	}
	wantSound(t, p)
	for _, ino := range []namespace.Ino{a, b} {
		if err := p.EndLease(ctx, ino, [16]byte{byte(ino)}); err != nil {
			t.Fatal(err)
		}
	}
	mustLease(t, p, namespace.Root)
	alive("after a lease of everything", orphanB.Ino, false)
	wantSound(t, p)
}

// A memory node without leases reaps all orphans; whoever opens the pool for itself
// ends all leases, and a reader ends none.
func TestOpenEndsLeases(t *testing.T) {
	dir := newPoolDir(t)
	p, ctx := openPool(t, dir), t.Context()
	share := mustShare(t, p, "s", 0)
	_, _, orphan := furnish(t, p.View(share), namespace.Root)
	p = reopenKeep(t, p, dir)
	_, err := p.Inode(ctx, orphan.Ino)
	wantErr(t, "an orphan that nobody can have", err, namespace.ErrNotExist)
	_, _, orphan = furnish(t, p.View(namespace.Root), namespace.Root)
	mustLease(t, p, share)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Leases(ctx); err != nil || len(got) != 1 {
		t.Errorf("Leases of a reader = %+v, %v", got, err)
	}
	wantErr(t, "EndLease of a reader", r.EndLease(ctx, share, [16]byte{byte(share)}), ErrReadOnly)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p = openPool(t, dir)
	if got, err := p.Leases(ctx); err != nil || len(got) != 0 {
		t.Errorf("Leases of the next writer = %+v, %v", got, err)
	}
	_, err = p.Inode(ctx, orphan.Ino)
	wantErr(t, "an orphan of the last writer", err, namespace.ErrNotExist)
	mustLease(t, p, share)
}

// A pool from before there were shares opens, for reading too, and gets them.
func TestOldPool(t *testing.T) {
	dir := newPoolDir(t)
	db, err := bolt.Open(filepath.Join(dir, metaFile), 0o600, &bolt.Options{PageSize: boltPageSize, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return errors.Join(tx.DeleteBucket([]byte(bucketShares)), tx.DeleteBucket([]byte(bucketLeases)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	r, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if shares, err := r.Shares(ctx); err != nil || len(shares) != 0 {
		t.Errorf("Shares = %+v, %v", shares, err)
	}
	if leases, err := r.Leases(ctx); err != nil || len(leases) != 0 {
		t.Errorf("Leases = %+v, %v", leases, err)
	}
	wantSound(t, r)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p := openPool(t, dir)
	mustLease(t, p, mustShare(t, p, "s", 0))
	wantSound(t, p)
}

func TestMakeShareRefuses(t *testing.T) {
	p, ctx := newPool(t), t.Context()
	mustCreate(t, p, namespace.Root, "dir", dirInode())
	mustCreate(t, p, namespace.Root, "file", fileInode())
	mustShare(t, p, "s", 0)
	for name, want := range map[string]error{
		"dir": namespace.ErrExist, "file": namespace.ErrExist, "s": namespace.ErrExist, "": namespace.ErrInvalid,
		"..": namespace.ErrInvalid, "a/b": namespace.ErrInvalid, strings.Repeat("x", namespace.MaxName+1): namespace.ErrNameTooLong,
	} {
		_, err := p.MakeShare(ctx, name, 0)
		wantErr(t, "MakeShare "+name, err, want)
	}
	for _, name := range []string{"dir", "file", "none"} {
		wantErr(t, "SetQuota "+name, p.SetQuota(ctx, name, 1), namespace.ErrNotExist)
		_, err := p.Share(ctx, name)
		wantErr(t, "Share "+name, err, namespace.ErrNotExist)
	}
	p.nextIno = maxShareIno + 1
	_, err := p.MakeShare(ctx, "t", 0)
	wantErr(t, "a share whose number does not fit", err, region.ErrNoSpace)
	wantSound(t, p)
}
