package rdmacache_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// overtaken is a memory whose next read comes after something else, and fails.
type overtaken struct {
	*memory
	before func()
}

func (o *overtaken) Read(ctx context.Context, p []byte, off int64) error {
	if before := o.before; before != nil {
		o.before = nil
		before()
		return errMedium
	}
	return o.memory.Read(ctx, p, off)
}

// A page moves while it is read, and the slot that it left goes back to the pool, which
// refuses the read. The page is read where it is now. One that did not move has failed.
func TestReadOfASlotThatIsGone(t *testing.T) {
	for name, size := range map[string]int{"page": 100, "run": 3 * pageSize} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(2000)
			o := &overtaken{memory: m}
			im, err := region.Open(t.Context(), region.Config{Device: o, Space: m, Generation: 1, Location: m.loc})
			if err != nil {
				t.Fatal(err)
			}
			c := rdmacache.New(rdmacache.Config{Conn: o, Image: im, FrameBytes: 16 * pageSize})
			mgr := epoch.NewManager(c)
			write := func(at int64, n int, b byte) {
				if _, err := c.WriteAt(t.Context(), bytes.Repeat([]byte{b}, n), at, rdmacache.FromWrite); err != nil {
					t.Fatal(err)
				}
				if _, err := mgr.Commit(t.Context(), epoch.All); err != nil {
					t.Fatal(err)
				}
			}
			write(0, 3*pageSize, 1)
			got := make([]byte, size)
			last := int64(size-1) &^ (pageSize - 1)
			o.before = func() { write(last, pageSize, 2) }
			want := bytes.Repeat([]byte{1}, size)
			copy(want[last:], bytes.Repeat([]byte{2}, pageSize))
			if n, err := c.ReadAt(t.Context(), got, 0); n != size || err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, %v", n, err)
			}
			o.before = func() {}
			if _, err := c.ReadAt(t.Context(), got, 0); !errors.Is(err, errMedium) {
				t.Errorf("the medium failed, and the read returned %v", err)
			}
		})
	}
}
