package remote_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A reader that is closed while another session is being opened leaves none behind:
// nobody would close it, and it would be kept alive for ever.
func TestCloseWhileReopening(t *testing.T) {
	n := newNode(t, short)
	way := n.path()
	r, err := remote.DialReader(ctx, remote.Config{Address: way.address()})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(running, func(context.Context) func() { return func() {} })
	}()
	way.set(stall)
	over(t, r.Pool)
	eventually(t, "the old session is gone", func() bool { return n.server.Stats().Readers == 0 })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	way.set(fair)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("Run does not end after Close")
	}
	if got := n.server.Stats().Readers; got != 0 {
		t.Errorf("%d sessions are left", got)
	}
}

// twins returns the bytes of a file of pages, another one for each x, whose checksums are
// all the same: x times a multiple of the polynomial is added.
func twins(t *testing.T, pages int, x uint64) []byte {
	t.Helper()
	const crc32c = 1 | uint64(0x82f63b78)<<1 // reflected, with x^32
	b := bytes.Repeat([]byte{7}, pages*region.PageSize)
	same := region.Checksum(b[:region.PageSize])
	for page := range pages {
		p := b[page*region.PageSize:][:region.PageSize]
		for bit := range 64 {
			if x>>bit&1 == 0 {
				continue
			}
			for i := range 5 {
				p[8*bit+i] ^= byte(crc32c >> (8 * i))
			}
		}
		if region.Checksum(p) != same {
			t.Fatal("the checksums differ")
		}
	}
	return b
}

// mustShow fails the test unless a file has these bytes.
func mustShow(t *testing.T, h *volume.Handle, what string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := h.Read(ctx, got, 0); err != nil || n != len(got) {
		t.Fatalf("%s: read %d bytes, %v", what, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: bytes of another epoch", what)
	}
}

// Pages in local memory are known by slot and checksum. A slot that the writer uses again
// may get a page of the same checksum: what a reader kept of the epoch before goes with
// it, when it is refreshed, or when a file is opened.
func TestKeptPagesGoWithTheirEpoch(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	const pages = 8
	ino, h := w.create(t, "f")
	still, other := w.create(t, "still")
	write := func(h *volume.Handle, x uint64) {
		t.Helper()
		mustWrite(t, h, twins(t, pages, x), 0)
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	write(h, 1)
	write(other, 1)
	if err := n.pool.SetQuota(ctx, "s", 100*region.PageSize); err != nil { // or slots are not used again
		t.Fatal(err)
	}
	keep := rdmacache.NewPages(1000 * region.PageSize)
	m, _ := mountOutliving(t, n.path(), keep)
	shown, err := m.Open(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer shown.Release(ctx)
	mustShow(t, shown, "at first", twins(t, pages, 1))
	for x := uint64(2); x < 60; x++ {
		write(h, x)
		refreshed(t, m.Volume, ino)
		mustShow(t, shown, "after a refresh", twins(t, pages, x))
	}

	mustShow(t, shown, "again", twins(t, pages, 59))
	before := keep.Stats()
	mustShow(t, shown, "from memory", twins(t, pages, 59))
	if now := keep.Stats(); now.Misses != before.Misses {
		t.Fatalf("nothing is kept: %+v, then %+v", before, now)
	}
	opened, err := m.Open(ctx, still)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Release(ctx)
	mustShow(t, opened, "another file", twins(t, pages, 1))
	mustShow(t, shown, "after an open", twins(t, pages, 59))
	if now := keep.Stats(); now.Misses != before.Misses+2*pages {
		t.Errorf("%d misses after an open, want %d: what was kept of before stays", now.Misses-before.Misses, 2*pages)
	}
}
