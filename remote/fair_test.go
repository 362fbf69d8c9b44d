package remote_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// Who commits a page at a time gets his commits through while another session commits large
// epochs without a pause: some beside each. The bound is far below what there is, for the
// machine may be busy; who waited for the end of all large ones would have one or two.
func TestHeavyWriterLeavesRoom(t *testing.T) {
	const (
		epochs     = 16
		epochBytes = 16 << 20
	)
	n := newNode(t, long)
	open := func(share string) *volume.Handle {
		p := n.open(remote.Config{Share: share, Create: true})
		f := mustCreate(t, p, "f", fileInode())
		h, err := mountOver(t, p).Open(ctx, f.Ino)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Release(ctx) })
		return h
	}
	commit := func(h *volume.Handle, p []byte) error {
		if _, err := h.Write(ctx, p, 0, rdmacache.FromWrite); err != nil {
			return err
		}
		return h.Sync(ctx)
	}
	heavy, light := open("heavy"), open("light")
	var commits atomic.Int64 // of the light one
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		page := make([]byte, region.PageSize)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			page[0]++
			if err := commit(light, page); err != nil {
				t.Errorf("commit %d of a page: %v", i, err)
				return
			}
			commits.Add(1)
		}
	})
	block := make([]byte, epochBytes)
	var beside []int64
	for i := range epochs {
		for at := 0; at < len(block); at += region.PageSize {
			block[at] = byte(i + 1)
		}
		before := commits.Load()
		if err := commit(heavy, block); err != nil {
			t.Errorf("epoch %d: %v", i, err)
			break
		}
		beside = append(beside, commits.Load()-before)
	}
	close(stop)
	wg.Wait()
	total := int64(0)
	for _, c := range beside {
		total += c
	}
	if total < epochs/2 {
		t.Errorf("%d commits of a page beside %d of %d MiB: %v", total, epochs, epochBytes>>20, beside)
	}
	t.Logf("commits of a page beside each of %d MiB: %v", epochBytes>>20, beside)
}
