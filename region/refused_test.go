package region_test

import (
	"math/rand/v2"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

// A crash leaves the record of an epoch whole, but not one of its pages. What was
// recovered then must stay, even if the next writer writes the same bytes again and
// a crash comes before it commits.
func TestRefusedEpochStaysRefused(t *testing.T) {
	m := newMemory(60)
	rng := rand.New(rand.NewPCG(*seed, 0))
	first, second := page(rng), page(rng)
	im := m.open(t, 1)
	put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{0: first})
	runs, err := im.Alloc(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	lost := runs[0].Start
	if err := m.Write(t.Context(), second, lost.Offset()); err != nil {
		t.Fatal(err)
	}
	change := region.Change{Size: 1 << 20, Cut: region.NoPage, Pages: []region.PageChange{{Page: 1, Slot: lost, CRC: region.Checksum(second)}}}
	if _, err := im.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	clear(m.bytes[lost.Offset():][:region.PageSize]) // it never reached the medium

	// again writes the same page to every slot there is, and tells if one was lost.
	again := func(im *region.Image) (found bool) {
		t.Helper()
		im.RequestSweep()
		if err := im.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, free := im.Space()
		runs, err := im.Alloc(t.Context(), free)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			for s := r.Start; s < r.End(); s++ {
				found = found || s == lost
				if err := m.Write(t.Context(), second, s.Offset()); err != nil {
					t.Fatal(err)
				}
				im.Release(s)
			}
		}
		return found
	}
	im = m.open(t, 2)
	if got := im.State().Epoch; got != 1 {
		t.Fatalf("recovered epoch %d, want 1", got)
	}
	if again(im) {
		t.Errorf("slot %d of the refused epoch was used", lost)
	}
	im = m.open(t, 3)
	if got := im.State().Epoch; got != 1 {
		t.Fatalf("epoch %d was refused, and found by the next recovery", got)
	}
	if id := put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{2: first}); id != epoch.ID(2) {
		t.Fatalf("got epoch %d, want 2", id)
	}
	if !again(im) {
		t.Errorf("slot %d is lost", lost)
	}
	check(t, im)
}
