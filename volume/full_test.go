package volume_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A slowConn takes its time to flush: epochs are in flight together.
type slowConn struct {
	rdmacache.Conn
}

func (c slowConn) Flush(ctx context.Context) error {
	select {
	case <-time.After(3 * time.Millisecond):
	case <-ctx.Done():
	}
	return c.Conn.Flush(ctx)
}

// fill leaves between n and n+50 slots of the pool free.
func (f *fixture) fill(n uint64) {
	f.Helper()
	for i := 0; ; i++ {
		u, err := f.Usage(ctx)
		f.must(err)
		if u.FreeSlots <= n+50 {
			return
		}
		f.saved(fmt.Sprint("filler", i), "x")
	}
}

// Programs overwrite the same pages in epochs that follow each other as fast as they
// can, in a pool that has room for the pages of a committed and of an open epoch and
// little more. That is enough, however many epochs are in flight. It fails where a
// write does not wait for these.
func TestOverwritesInANearlyFullPool(t *testing.T) {
	const (
		pages   = 400
		writers = 4
		rounds  = 8
		batch   = 8 // pages of a write
	)
	for i, src := range []rdmacache.Source{byWrite, byMapping} {
		t.Run([]string{"written", "mapped"}[i], func(t *testing.T) {
			f := newFixture(t, 4<<20, volume.Config{FrameBytes: 16 << 10})
			f.must(f.unmount())
			f.wrap = func(c rdmacache.Conn) rdmacache.Conn { return slowConn{c} }
			f.open()
			h := f.openFile(f.create("file"))
			f.must(h.Truncate(ctx, pages*4096))
			f.must(h.Sync(ctx))
			f.fill(2*pages + writers*batch + 20)
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for round := range rounds {
						b := bytes.Repeat([]byte{byte(w + 1), byte(round)}, batch*4096/2)
						for i := range pages / batch {
							at := int64((i + w) % (pages / batch))
							if n, err := h.Write(ctx, b, at*int64(len(b)), src); err != nil || n != len(b) {
								t.Errorf("writer %d, round %d: wrote %d bytes, %v", w, round, n, err)
								return
							}
						}
						if err := h.Sync(ctx); err != nil {
							t.Errorf("writer %d, round %d: sync: %v", w, round, err)
							return
						}
					}
				})
			}
			wg.Wait()
			h.Release(ctx)
			f.sound()
		})
	}
}
