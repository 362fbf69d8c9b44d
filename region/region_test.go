package region_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/region"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

// memory is a device and a space over a slice: what is written is there.
type memory struct {
	bytes []byte
	next  region.Slot
	loc   region.Location
}

func newMemory(slots int) *memory {
	return &memory{bytes: make([]byte, slots*region.PageSize), next: 1, loc: region.Location{ID: 7}}
}

func (m *memory) Read(_ context.Context, p []byte, off int64) error {
	copy(p, m.bytes[off:off+int64(len(p))])
	return nil
}
func (m *memory) Write(_ context.Context, p []byte, off int64) error {
	copy(m.bytes[off:off+int64(len(p))], p)
	return nil
}
func (m *memory) Flush(context.Context) error { return nil }

func (m *memory) Grant(ctx context.Context, id region.ID, need, want uint64) (region.Grant, error) {
	left := uint64(len(m.bytes)/region.PageSize) - uint64(m.next)
	if left < need {
		return region.Grant{}, region.ErrNoSpace
	}
	r := region.Run{Start: m.next, N: min(want, left)}
	m.next = r.End()
	m.loc.Extents = append(m.loc.Extents, r)
	if m.loc.Super == 0 {
		super, err := region.Format(ctx, m, r, region.Seed{ID: id})
		if err != nil {
			return region.Grant{}, err
		}
		m.loc.Super = super
	}
	return region.Grant{Runs: []region.Run{r}, Super: m.loc.Super}, nil
}

func (m *memory) Return(_ context.Context, _ region.ID, runs []region.Run) error {
	m.loc.Extents = slices.DeleteFunc(m.loc.Extents, func(x region.Run) bool { return slices.Contains(runs, x) })
	return nil
}

// open opens the region as the next writer would.
func (m *memory) open(t testing.TB, gen uint64) *region.Image {
	t.Helper()
	im, err := region.Open(t.Context(), region.Config{Device: m, Space: m, Generation: gen, Location: m.loc, NodeBytes: 20 * region.PageSize})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return im
}

// put commits pages with the given contents as one epoch.
func put(t testing.TB, dev region.Device, im *region.Image, size uint64, cut uint64, pages map[uint64][]byte) epoch.ID {
	t.Helper()
	id, err := tryPut(t.Context(), dev, im, size, cut, pages)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return id
}

func tryPut(ctx context.Context, dev region.Device, im *region.Image, size, cut uint64, pages map[uint64][]byte) (epoch.ID, error) {
	p, err := tryPost(ctx, dev, im, size, cut, pages)
	if err != nil {
		return 0, err
	}
	return p.Epoch(), p.Wait(ctx)
}

// tryPost is tryPut without the wait.
func tryPost(ctx context.Context, dev region.Device, im *region.Image, size, cut uint64, pages map[uint64][]byte) (*region.Posted, error) {
	c := region.Change{Size: size, Cut: cut}
	runs, err := im.Alloc(ctx, uint64(len(pages)))
	if err != nil {
		return nil, err
	}
	var slots []region.Slot
	for _, r := range runs {
		for s := r.Start; s < r.End(); s++ {
			slots = append(slots, s)
		}
	}
	nos := make([]uint64, 0, len(pages))
	for no := range pages {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	for _, no := range nos {
		p := pages[no]
		if p == nil {
			c.Pages = append(c.Pages, region.PageChange{Page: no})
			continue
		}
		slot := slots[0]
		slots = slots[1:]
		if err := dev.Write(ctx, p, slot.Offset()); err != nil {
			return nil, err
		}
		c.Pages = append(c.Pages, region.PageChange{Page: no, Slot: slot, CRC: region.Checksum(p)})
	}
	defer func() { im.Release(slots...) }() // those of holes
	return im.Post(ctx, c)
}

// image is what a region should hold.
type image struct {
	size  uint64
	pages map[uint64][]byte
}

func (i *image) clone() *image {
	c := &image{size: i.size, pages: make(map[uint64][]byte, len(i.pages))}
	for no, p := range i.pages {
		c.pages[no] = p
	}
	return c
}

func compare(ctx context.Context, dev region.Device, im *region.Image, want *image) error {
	s := im.State()
	if s.Size != want.size || s.Pages != uint64(len(want.pages)) {
		return fmt.Errorf("got size %d, %d pages; want %d, %d", s.Size, s.Pages, want.size, len(want.pages))
	}
	n := 0
	for no := uint64(0); ; no++ {
		var err error
		if no, err = im.Next(ctx, no); err != nil {
			return err
		}
		if no == region.NoPage {
			break
		}
		n++
		e, err := im.Lookup(ctx, no)
		if err != nil {
			return err
		}
		p := make([]byte, region.PageSize)
		if err := region.ReadPage(ctx, dev, im.ID(), no, e, p); err != nil {
			return err
		}
		if !bytes.Equal(p, want.pages[no]) {
			return fmt.Errorf("page %d differs", no)
		}
	}
	if n != len(want.pages) {
		return fmt.Errorf("found %d pages, want %d", n, len(want.pages))
	}
	return nil
}

func check(t testing.TB, im *region.Image) {
	t.Helper()
	_, err := im.Check(t.Context(), func(err error) { t.Errorf("check: %v", err) }, nil)
	if err != nil {
		t.Fatalf("check: %v", err)
	}
}

func page(rng *rand.Rand) []byte {
	p := make([]byte, region.PageSize)
	for i := 0; i < len(p); i += 512 {
		p[i] = byte(rng.Uint32())
	}
	p[0] |= 1
	return p
}

// Random commits, truncations, holes, cuts, checkpoints, restores and reopenings
// against a map. Pages lie close together and far apart, so that the table grows
// to four levels and leaves are evicted.
func TestModel(t *testing.T) {
	rounds := 15
	if testing.Short() {
		rounds = 5
	}
	for r := range rounds {
		rng := rand.New(rand.NewPCG(*seed, uint64(r)))
		m := newMemory(30000)
		gen := uint64(1)
		im := m.open(t, gen)
		want := &image{pages: map[uint64][]byte{}}
		kept := map[string]*image{}
		cps := map[string]region.Checkpoint{}
		span := uint64(1) << (6 + rng.Uint64N(22))
		for step := range 120 {
			switch k := rng.IntN(20); {
			case k < 11:
				pages := map[uint64][]byte{}
				for range 1 + rng.IntN(1<<rng.IntN(9)) {
					no := rng.Uint64N(span)
					if rng.IntN(8) == 0 {
						pages[no] = nil
						delete(want.pages, no)
					} else {
						pages[no] = page(rng)
						want.pages[no] = pages[no]
					}
				}
				want.size = span * region.PageSize
				put(t, m, im, want.size, region.NoPage, pages)
			case k < 13:
				cut := rng.Uint64N(span + 1)
				if rng.IntN(3) == 0 {
					cut = 0
				}
				for no := range want.pages {
					if no >= cut {
						delete(want.pages, no)
					}
				}
				want.size = cut * region.PageSize
				put(t, m, im, want.size, cut, nil)
			case k < 15:
				if err := im.Maintain(t.Context()); err != nil {
					t.Fatal(err)
				}
			case k < 16:
				name := fmt.Sprint(step)
				cp, err := im.Freeze(t.Context(), name, 1)
				if err != nil {
					t.Fatal(err)
				}
				kept[name], cps[name] = want.clone(), cp
				m.loc.Checkpoints = append(m.loc.Checkpoints, cp)
			case k < 17:
				if name := oldest(cps); name != "" {
					if _, err := im.Restore(t.Context(), cps[name], 2); err != nil {
						t.Fatal(err)
					}
					want = kept[name].clone()
				}
			case k < 18:
				if name := oldest(cps); name != "" {
					m.loc.Checkpoints = slices.DeleteFunc(m.loc.Checkpoints, func(c region.Checkpoint) bool { return c.Name == name })
					im.DropCheckpoint(name)
					delete(cps, name)
					delete(kept, name)
				}
			default:
				before := im.State()
				if rng.IntN(2) == 0 {
					if err := im.Close(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				gen++
				im = m.open(t, gen)
				if got := im.State(); got != before {
					t.Fatalf("reopened: got %+v, want %+v (-seed %d, round %d, step %d)", got, before, *seed, r, step)
				}
			}
			if err := compare(t.Context(), m, im, want); err != nil {
				t.Fatalf("%v (-seed %d, round %d, step %d)", err, *seed, r, step)
			}
			check(t, im)
			if t.Failed() {
				t.Fatalf("-seed %d, round %d, step %d", *seed, r, step)
			}
		}
	}
}

func oldest(cps map[string]region.Checkpoint) string {
	if len(cps) == 0 {
		return ""
	}
	return slices.Sorted(maps.Keys(cps))[0]
}

// An epoch of more pages than a log run can name, in an empty and in a used region.
func TestLargeEpoch(t *testing.T) {
	m := newMemory(40000)
	im := m.open(t, 1)
	rng := rand.New(rand.NewPCG(*seed, 0))
	want := &image{size: 1 << 40, pages: map[uint64][]byte{}}
	for n := range 3 {
		pages := map[uint64][]byte{}
		for range 5000 {
			no := rng.Uint64N(1 << 20)
			pages[no] = page(rng)
			want.pages[no] = pages[no]
		}
		if id := put(t, m, im, want.size, region.NoPage, pages); id != epoch.ID(n+1) {
			t.Fatalf("got epoch %d, want %d", id, n+1)
		}
		check(t, im)
		im = m.open(t, uint64(n+2))
		if err := compare(t.Context(), m, im, want); err != nil {
			t.Fatal(err)
		}
	}
}

// The pool's space must not leak: rewriting a small file for ever, with reopenings,
// stays within a few times its size.
func TestSlotsAreUsedAgain(t *testing.T) {
	m := newMemory(4000)
	rng := rand.New(rand.NewPCG(*seed, 0))
	for gen := range uint64(50) {
		im := m.open(t, gen+1)
		for range 50 {
			put(t, m, im, 64*region.PageSize, region.NoPage, map[uint64][]byte{rng.Uint64N(64): page(rng), rng.Uint64N(64): page(rng)})
		}
	}
	if m.next > 400 {
		t.Errorf("64 pages took %d slots", m.next)
	}
}

// Damage to what is durable is an error with its place, never an older epoch.
func TestDamageIsFound(t *testing.T) {
	build := func(t *testing.T) *memory {
		m := newMemory(2000)
		im := m.open(t, 1)
		rng := rand.New(rand.NewPCG(*seed, 0))
		for range 10 {
			put(t, m, im, 1<<20, region.NoPage, map[uint64][]byte{rng.Uint64N(256): page(rng)})
		}
		if err := im.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return m
	}
	ref := build(t)
	want := ref.open(t, 2).State()
	for off := int64(region.PageSize); off < int64(ref.next)*region.PageSize; off += 8 {
		if ref.bytes[off] == 0 && off%512 != 0 {
			continue // keep the test short
		}
		m := build(t)
		m.bytes[off] ^= 0x40
		im, err := region.Open(t.Context(), region.Config{Device: m, Space: m, Generation: 2, Location: m.loc})
		if err != nil {
			if !errors.Is(err, region.ErrCorrupt) && !errors.Is(err, region.ErrVersion) {
				t.Fatalf("byte %d: got %v, want ErrCorrupt", off, err)
			}
			continue
		}
		if got := im.State(); got != want {
			t.Fatalf("byte %d damaged: recovered %+v without an error, want %+v", off, got, want)
		}
	}
}

// What a program stores must never pass for a record. Pages full of forged ones
// are freed, and longer log runs then come to lie in their slots. Fails without
// clearRuns.
func TestForgedRecords(t *testing.T) {
	m := newMemory(20000)
	im := m.open(t, 1)
	pages := map[uint64][]byte{}
	for i := range uint64(600) {
		pages[i] = region.ForgedRecord(7, epoch.ID(i))
	}
	put(t, m, im, 1<<22, region.NoPage, pages)
	put(t, m, im, 0, 0, nil)
	want := &image{size: 1 << 24, pages: map[uint64][]byte{}}
	rng := rand.New(rand.NewPCG(*seed, 0))
	for i := range uint64(3000) {
		want.pages[i] = page(rng)
	}
	put(t, m, im, want.size, region.NoPage, want.pages)
	for gen := uint64(2); gen < 50; gen++ {
		for range 1 + rng.IntN(3) {
			if err := im.Maintain(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := page(rng)
			want.pages[5] = p
			put(t, m, im, want.size, region.NoPage, map[uint64][]byte{5: p})
			if _, err := im.Freeze(t.Context(), fmt.Sprint(im.State().Epoch), 1); err != nil { // cuts the log
				t.Fatal(err)
			}
		}
		im = m.open(t, gen)
		if err := compare(t.Context(), m, im, want); err != nil {
			t.Fatalf("generation %d: %v", gen, err)
		}
	}
}

// A writer is cut off with two epochs in flight, of which only the second reaches
// the medium; the next writer commits an epoch in the place of the first. The
// second then lies behind it, whole and with the right number, but from an older
// generation. Fails without the generation in recovery.
func TestOlderGenerationIsRefused(t *testing.T) {
	m := newMemory(200)
	rng := rand.New(rand.NewPCG(*seed, 0))
	first := page(rng)
	put(t, m, m.open(t, 1), 1<<20, region.NoPage, map[uint64][]byte{0: first})
	before := slices.Clone(m.bytes)

	old := m.open(t, 2)
	put(t, m, old, 1<<20, region.NoPage, map[uint64][]byte{1: page(rng)})
	put(t, m, old, 1<<20, region.NoPage, map[uint64][]byte{2: page(rng)})
	late := m.bytes
	m.bytes = before

	kept := page(rng)
	put(t, m, m.open(t, 3), 1<<20, region.NoPage, map[uint64][]byte{3: kept})
	found := false
	for off := 0; off < len(late); off += 64 {
		r := late[off:]
		if string(r[:8]) == "RPMRECRD" && binary.LittleEndian.Uint64(r[32:]) == 3 {
			found = true
			copy(m.bytes[off:off+128], r)
			at := binary.LittleEndian.Uint64(r[96+8:]) * region.PageSize
			copy(m.bytes[at:at+region.PageSize], late[at:])
		}
	}
	if !found {
		t.Fatal("the late record was not found")
	}
	im := m.open(t, 4)
	want := &image{size: 1 << 20, pages: map[uint64][]byte{0: first, 3: kept}}
	if err := compare(t.Context(), m, im, want); err != nil || im.State().Epoch != 2 {
		t.Fatalf("recovered epoch %d, want 2: %v", im.State().Epoch, err)
	}
}

// A new region's log may come to lie where a program had stored what looks like
// its records. Fails if Format does not clear it.
func TestFormatClearsTheLog(t *testing.T) {
	m := newMemory(100)
	for s := range 100 {
		copy(m.bytes[s*region.PageSize:], region.ForgedRecord(7, 1))
	}
	if _, err := m.open(t, 1).Alloc(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got := m.open(t, 2).State(); got != (region.State{}) {
		t.Errorf("a new region holds %+v", got)
	}
}
