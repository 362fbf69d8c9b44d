package remote_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// cutOff is a session with patience whose lease has run out: it does not reach the memory
// node. flushed gets what becomes of a write and a flush that it has under way.
func cutOff(t *testing.T, n *memoryNode) (p *remote.Pool, way path, at int64, flushed chan error) {
	t.Helper()
	way = n.path()
	p = n.open(remote.Config{Address: way.address(), Share: "a", Create: true, Lease: time.Second, Heartbeat: 400 * time.Millisecond, Patience: time.Hour})
	f := mustCreate(t, p, "f", fileInode())
	grant, err := p.Grant(ctx, region.ID(f.Ino), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	at = grant.Runs[0].Start.Offset()
	other := n.open(remote.Config{Address: way.address(), Share: "other", Create: true, Lease: 3 * time.Second})
	way.set(down)
	way.cut()
	flushed = make(chan error, 1)
	go func() {
		err := p.Conn().Write(ctx, bytes.Repeat([]byte("x"), region.PageSize), at)
		if err == nil {
			err = p.Conn().Flush(ctx)
		}
		flushed <- err
	}()
	over(t, other) // its lease is longer, and without patience
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	return p, way, at, flushed
}

// What a session with patience has under way succeeds when the memory node is there again,
// also after the time of its lease.
func TestPatienceOutlastsTheLease(t *testing.T) {
	n := newNode(t, long)
	p, way, at, flushed := cutOff(t, n)
	select {
	case err := <-flushed:
		t.Fatalf("flushed without a memory node: %v", err)
	default:
	}
	way.set(fair)
	select {
	case err := <-flushed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the flush hangs")
	}
	if _, err := p.Lookup(ctx, namespace.Root, "f"); err != nil {
		t.Error(err)
	}
	got := make([]byte, region.PageSize)
	if err := n.pool.ReadAt(got, at); err != nil || got[0] != 'x' || got[region.PageSize-1] != 'x' {
		t.Errorf("the pool has %q..., %v", got[:8], err)
	}
}

// Another one gets the share as soon as the lease has run out. The session with patience
// hears of it when it is back, and changes nothing.
func TestPatienceIsFenced(t *testing.T) {
	n := newNode(t, long)
	p, way, at, flushed := cutOff(t, n)
	next := n.open(remote.Config{Share: "a", Wait: patience})
	if err := next.Conn().Write(ctx, bytes.Repeat([]byte("y"), region.PageSize), at); err != nil {
		t.Fatal(err)
	}
	if err := next.Conn().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	way.set(fair)
	over(t, p)
	wantErr(t, "flush", <-flushed, rdmacache.ErrFenced)
	got := make([]byte, region.PageSize)
	if err := next.Conn().Read(ctx, got, at); err != nil || got[0] != 'y' || got[region.PageSize-1] != 'y' {
		t.Errorf("the next one reads %q..., %v", got[:8], err)
	}
}

// A reader does not wait for the answer of a writer whose lease has run out.
func TestPatienceAndReaders(t *testing.T) {
	n := newNode(t, long)
	p, way, _, flushed := cutOff(t, n)
	r, err := remote.DialReader(ctx, remote.Config{Address: n.control, Share: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // it only read
	file, err := r.Lookup(ctx, namespace.Root, "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Pin(ctx, region.ID(file.Ino)); err != nil {
		t.Errorf("pin: %v", err)
	}
	way.set(fair)
	over(t, p)
	wantErr(t, "flush", <-flushed, rdmacache.ErrFenced)
}
