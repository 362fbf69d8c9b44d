package remote

import (
	"context"
	"errors"
	"flag"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// Seed is the same flag in every package, so that all take it at once.
var Seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")

// No number is given out while the memory node may have forgotten the answer to one
// that is still repeated.
func TestRequestsWaitForTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r requests
		var ids []uint64
		for range nodepb.Remembered {
			id, err := r.begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		for _, id := range ids[1:] {
			r.end(id)
		}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		go func() {
			_, err := r.begin(ctx)
			failed <- err
		}()
		synctest.Wait()
		select {
		case err := <-failed:
			t.Fatalf("a number too many, %v", err)
		default:
		}
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want %v", err, context.Canceled)
		}

		next := make(chan uint64)
		go func() {
			id, _ := r.begin(t.Context())
			next <- id
		}()
		synctest.Wait()
		r.end(ids[0])
		if got, want := <-next, ids[len(ids)-1]+1; got != want {
			t.Fatalf("got number %d, want %d", got, want)
		}
	})
}

// An inode that was read before a change, or during one, is not remembered after
// it.
func TestInodesReadAcrossAChange(t *testing.T) {
	var c inodeCache
	n := namespace.Inode{Ino: 7}
	remembered := func() bool {
		_, ok := c.get(n.Ino)
		return ok
	}

	before := c.now()
	c.begin()
	during := c.now()
	c.put(n, during)
	if remembered() {
		t.Error("remembered while a change is under way")
	}
	c.end()
	for name, at := range map[string]uint64{"before": before, "during": during} {
		if c.put(n, at); remembered() {
			t.Errorf("remembered what was read %s the change", name)
		}
	}

	after := c.now()
	if c.put(n, after); !remembered() {
		t.Error("forgot what was read after the change")
	}
	c.begin()
	if remembered() {
		t.Error("remembered when the next change began")
	}
	c.end()
}

// The cache has a limit.
func TestInodesAreBounded(t *testing.T) {
	var c inodeCache
	for ino := range namespace.Ino(3 * maxInodes) {
		c.put(namespace.Inode{Ino: ino}, c.now())
		if len(c.inodes) > maxInodes {
			t.Fatalf("%d inodes", len(c.inodes))
		}
	}
}
