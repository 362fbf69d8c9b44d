package remote_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// What one call costs over the loopback: one that always asks, one whose answer is
// remembered, some that change something, and the commit of a page through a volume.
func BenchmarkPool(b *testing.B) {
	n := newNode(b, 10*time.Second)
	p := n.open(remote.Config{})
	f := mustCreate(b, p, "f", fileInode())
	if _, err := p.Grant(ctx, region.ID(f.Ino), 16, 16); err != nil { // has the superblocks
		b.Fatal(err)
	}
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Lookup(ctx, namespace.Root, "f"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("inode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Inode(ctx, f.Ino); err != nil {
				b.Fatal(err)
			}
		}
	})
	made := 0
	b.Run("create", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			made++
			mustCreate(b, p, fmt.Sprint(made), fileInode())
		}
	})
	b.Run("grant and return", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			g, err := p.Grant(ctx, region.ID(f.Ino), 16, 16)
			if err != nil {
				b.Fatal(err)
			}
			if err := p.Return(ctx, region.ID(f.Ino), g.Runs[len(g.Runs)-1:]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("commit", func(b *testing.B) {
		v := mountOver(b, p)
		h, err := v.Open(ctx, f.Ino)
		if err != nil {
			b.Fatal(err)
		}
		defer h.Release(ctx)
		page := make([]byte, 4096)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			page[i%4096]++
			if _, err := h.Write(ctx, page, 0, rdmacache.FromWrite); err != nil {
				b.Fatal(err)
			}
			if err := h.Sync(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
