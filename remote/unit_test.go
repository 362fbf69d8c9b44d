package remote

import (
	"context"
	"errors"
	"flag"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Seed is the same flag in every package, so that all take it at once.
var Seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")

// Expire makes the lease over on this side, before anybody notices. It waits until it was
// renewed for the first time, which would undo that; then there is time.
func (p *Pool) Expire() {
	for p.lease.until.Load() == int64(p.lease.length) && p.Err() == nil {
		runtime.Gosched()
	}
	p.lease.until.Store(0)
}

// No number is given out while the memory node may have forgotten the answer to one
// that is still repeated: each place has one call at a time.
func TestRequestsWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r requests
		last := uint64(0)
		begin := func() uint64 {
			t.Helper()
			id, err := r.begin(t.Context())
			if err != nil || id <= last {
				t.Fatalf("got number %d after %d, %v", id, last, err)
			}
			last = id
			return id
		}
		for range 3 { // one after the other they need one place
			id := begin()
			r.end(id)
			if id%nodepb.Remembered != 0 {
				t.Errorf("number %d has another place", id)
			}
		}
		places := map[uint64]uint64{}
		for range nodepb.Remembered {
			id := begin()
			places[id%nodepb.Remembered] = id
		}
		if len(places) != nodepb.Remembered {
			t.Fatalf("%d places", len(places))
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
		go func() { next <- begin() }()
		synctest.Wait()
		r.end(places[77])
		if got := <-next; got%nodepb.Remembered != 77 {
			t.Fatalf("got number %d", got)
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

// Answers that no memory node gives are refused.
func TestNonsense(t *testing.T) {
	good := func() *nodepb.OpenResponse {
		return &nodepb.OpenResponse{
			Session: make([]byte, nodepb.SessionSize), Token: make([]byte, nodepb.TokenSize),
			Lease: 1e9, DataPort: 7471, SizeBytes: 100 * region.PageSize,
		}
	}
	var p Pool
	if err := p.begin(good(), Config{}); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*nodepb.OpenResponse){
		"session":    func(r *nodepb.OpenResponse) { r.Session = nil },
		"token":      func(r *nodepb.OpenResponse) { r.Token = r.Token[1:] },
		"no lease":   func(r *nodepb.OpenResponse) { r.Lease = 0 },
		"no port":    func(r *nodepb.OpenResponse) { r.DataPort = 0 },
		"large port": func(r *nodepb.OpenResponse) { r.DataPort = 1 << 16 },
		"large pool": func(r *nodepb.OpenResponse) { r.SizeBytes = 1 << 63 },
	} {
		r := good()
		spoil(r)
		var p Pool
		if err := p.begin(r, Config{}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	forever := good()
	forever.Lease = 1 << 63
	var q Pool
	if err := q.begin(forever, Config{}); err != nil || q.lease.length != maxLease {
		t.Errorf("a lease without an end: %v, %v", q.lease.length, err)
	}

	for _, r := range []region.Run{{Start: 1, N: 99}, {Start: 99, N: 1}} {
		if err := p.checkRuns([]region.Run{r}); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []region.Run{{Start: 0, N: 1}, {Start: 1, N: 0}, {Start: 1, N: 100}, {Start: 100, N: 1}, {Start: 1<<64 - 1, N: 2}, {Start: 2, N: 1<<64 - 1}} {
		if err := p.checkRuns([]region.Run{r}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%+v: got %v", r, err)
		}
	}
	for _, r := range []*nodepb.InodeResponse{nil, {}, {Inode: &nodepb.Inode{Mode: 1}}} {
		if _, err := inodeOf(r); !errors.Is(err, ErrProtocol) {
			t.Errorf("%v: got %v", r, err)
		}
	}
}
