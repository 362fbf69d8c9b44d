package memnode

import (
	"bytes"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// What a share gave back cannot be read by the next one that gets it, in short runs,
// which are not worth a hole, as in long ones.
func TestFreedSlotsAreEmpty(t *testing.T) {
	dir, ctx := newPoolDir(t), t.Context()
	p := reopenKeep(t, openPool(t, dir), dir)
	secret := bytes.Repeat([]byte("secret! "), region.PageSize/8)
	first := true
	var given []region.Run
	for _, name := range []string{"a", "b"} {
		share := mustShare(t, p, name, 0)
		mustLease(t, p, share)
		v := p.View(share)
		fence, err := v.Fence(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Create(ctx, namespace.Root, "f", fileInode())
		if err != nil {
			t.Fatal(err)
		}
		if first {
			if _, err := v.Grant(ctx, region.ID(f.Ino), 100, 100); err != nil {
				t.Fatal(err)
			}
			loc, err := v.Locate(ctx, region.ID(f.Ino))
			if err != nil {
				t.Fatal(err)
			}
			start := loc.Extents[0].Start + region.FormatSlots
			given = []region.Run{{Start: start, N: 3}, {Start: start + 20, N: 40}}
			for _, r := range given {
				for s := r.Start; s < r.End(); s++ {
					if err := fence.WriteAt(secret, s.Offset()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := v.Return(ctx, region.ID(f.Ino), given); err != nil {
				t.Fatal(err)
			}
			first = false
			continue
		}
		read := 0
		u, err := v.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Grant(ctx, region.ID(f.Ino), u.FreeSlots, u.FreeSlots); err != nil {
			t.Fatal(err)
		}
		for _, r := range given {
			for s := r.Start; s < r.End(); s++ {
				page := make([]byte, region.PageSize)
				if err := fence.ReadAt(page, s.Offset()); err != nil {
					continue // not granted
				}
				if bytes.Contains(page, []byte("secret")) {
					t.Errorf("slot %d still holds what the other share wrote", s)
				}
				read++
			}
		}
		if read < 40 {
			t.Errorf("only %d of the slots came to the other share", read)
		}
	}
}
