package memnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Where the file system below is full, of names, a session can still remove some: what is
// recorded of its requests takes nothing that others would not have.
func TestUnlinkInAFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, places := range []uint64{1, Remembered} { // calls at a time
		mnt := t.TempDir()
		if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=2m"); err != nil {
			t.Skipf("cannot mount a tmpfs: %v", err)
		}
		defer unix.Unmount(mnt, unix.MNT_DETACH)
		if err := Create(mnt+"/pool", CreateOptions{SizeBytes: 64 * region.PageSize}); err != nil {
			t.Fatal(err)
		}
		p, err := Open(mnt+"/pool", Options{KeepOrphans: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		share := mustShare(t, p, "s", 0)
		v, lease := p.View(share), mustLease(t, p, share)
		requests := uint64(0)
		next := func() context.Context {
			requests++
			id := (requests/places+1)*Remembered + requests%places
			return WithRequest(t.Context(), Request{ID: id, Generation: lease.Generation})
		}
		made := 0
		for ; err == nil; made++ {
			_, err = v.Create(next(), namespace.Root, fmt.Sprint(made), fileInode())
		}
		if made--; !errors.Is(err, region.ErrNoSpace) || made < 500 {
			t.Fatalf("create %d: %v", made, err)
		}
		for i := range made {
			n, err := v.Unlink(next(), namespace.Root, fmt.Sprint(i))
			if err == nil {
				_, err = v.Reap(next(), n.Ino)
			}
			if err != nil {
				t.Fatalf("%d places: remove %d of %d: %v", places, i, made, err)
			}
		}
		wantSound(t, p)
	}
}
