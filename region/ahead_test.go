package region_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rpmemfs/rpmemfs/region"
)

// counted is a memory that counts the reads of a single slot and of more.
type counted struct {
	*memory
	single, longer int
	refuse         bool // the longer ones
	damage         region.Slot
}

func (c *counted) Read(ctx context.Context, p []byte, off int64) error {
	if len(p) == region.PageSize {
		c.single++
	} else if c.longer++; c.refuse {
		return errors.New("out of reach")
	}
	err := c.memory.Read(ctx, p, off)
	if at := c.damage.Offset() - off; c.damage != 0 && at >= 0 && at < int64(len(p)) {
		p[at] ^= 1
	}
	return err
}

// Who goes through the pages in order has the leaves of the table read together; who does
// not has no leaf read that he did not ask for. What is wrong with a leaf concerns
// nobody else.
func TestLeavesAhead(t *testing.T) {
	const leaves, perLeaf = 100, 256
	m := newMemory(2000)
	im := m.open(t, 1)
	rng := rand.New(rand.NewPCG(*seed, 0))
	pages := map[uint64][]byte{}
	for i := range uint64(leaves) {
		pages[i*perLeaf] = page(rng)
	}
	put(t, m, im, leaves*perLeaf*region.PageSize, region.NoPage, pages)
	for !im.Due() {
		put(t, m, im, leaves*perLeaf*region.PageSize, region.NoPage, map[uint64][]byte{0: pages[0]})
	}
	if err := im.Maintain(t.Context()); err != nil { // writes the table
		t.Fatal(err)
	}
	gen := uint64(1)
	walk := func(step, failing uint64, refuse bool, damage region.Slot) *counted {
		t.Helper()
		c := &counted{memory: m}
		gen++
		im, err := region.Open(t.Context(), region.Config{Device: c, Space: m, Generation: gen, Location: m.loc, NodeBytes: 20 * region.PageSize})
		if err != nil {
			t.Fatal(err)
		}
		c.single, c.longer, c.refuse, c.damage = 0, 0, refuse, damage
		for i := uint64(0); i < leaves; i += step {
			e, err := im.Lookup(t.Context(), i*perLeaf)
			if i == failing {
				if !errors.Is(err, region.ErrCorrupt) {
					t.Errorf("page of the damaged leaf: %v", err)
				}
				continue
			}
			p := make([]byte, region.PageSize)
			if err == nil {
				err = region.ReadPage(t.Context(), m, im.ID(), i*perLeaf, e, p)
			}
			if err != nil || string(p) != string(pages[i*perLeaf]) {
				t.Fatalf("page %d: %v", i*perLeaf, err)
			}
		}
		return c
	}
	if c := walk(1, region.NoPage, false, 0); c.single > 4 || c.longer > leaves/15+2 {
		t.Errorf("in order: %d reads of one node and %d of more for %d leaves", c.single, c.longer, leaves)
	}
	if c := walk(3, region.NoPage, false, 0); c.longer > 0 {
		t.Errorf("here and there: %d reads of more than one node", c.longer)
	}
	if c := walk(1, region.NoPage, true, 0); c.longer == 0 {
		t.Error("no read of several nodes was refused")
	}
	walk(1, 20, false, leafSlot(t, m, 20))
}

// leafSlot returns where leaf n of a region is, whose table has two levels.
func leafSlot(t *testing.T, m *memory, n int) region.Slot {
	t.Helper()
	c := &recorded{memory: m}
	again, err := region.Open(t.Context(), region.Config{Device: c, Space: m, Generation: 1 << 20, Location: m.loc})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Lookup(t.Context(), 0); err != nil { // the root
		t.Fatal(err)
	}
	if _, err := again.Lookup(t.Context(), uint64(n)*256); err != nil {
		t.Fatal(err)
	}
	return c.last
}

// recorded remembers the slot that was read last.
type recorded struct {
	*memory
	last region.Slot
}

func (r *recorded) Read(ctx context.Context, p []byte, off int64) error {
	r.last = region.Slot(off / region.PageSize)
	return r.memory.Read(ctx, p, off)
}
