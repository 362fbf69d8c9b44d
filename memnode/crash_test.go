package memnode

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

var crashCuts = flag.Int("cuts", 3000, "power cuts that TestPowerCuts makes at least")

// The simulation runs random work on a pool whose medium loses power at a chosen
// flush, or whose directory loses it around a chosen transaction, recovers, and
// compares every file and checkpoint with a model. Recovery and the first work
// after it lose power again. docs/recovery.md lists the guards that were removed
// to see this test fail.

// powerMeta is a directory that loses power together with a medium.
type powerMeta struct {
	*boltMeta
	power   *crashMedium
	rng     *rand.Rand
	cut     int // update that loses power; -1: none
	updates int
	before  func() // what others do just before the next update; nil: nothing
}

func (m *powerMeta) update(fn func(txn) error) error {
	if m.power.Lost() {
		return media.ErrPowerLost
	}
	if f := m.before; f != nil {
		m.before = nil
		f()
	}
	m.updates++
	if m.updates != m.cut+1 {
		return m.boltMeta.update(fn)
	}
	if m.rng.IntN(2) == 0 { // the transaction made it
		if err := m.boltMeta.update(fn); err != nil {
			return err
		}
	}
	m.power.PowerOff()
	return media.ErrPowerLost
}

// eager is a region's way to the pool. Before each flush takes effect it does what
// the next epoch's writes do meanwhile: it allocates slots and writes to them.
type eager struct {
	device
	rng       *rand.Rand
	image     *region.Image
	meanwhile func(context.Context) // what else happens during a flush
	w         *world
}

func (d *eager) Flush(ctx context.Context) error {
	if d.image == nil {
		return d.device.Flush(ctx)
	}
	d.meanwhile(ctx)
	junk := make([]byte, region.PageSize)
	for i := 0; i < len(junk); i += 8 {
		binary.LittleEndian.PutUint64(junk[i:], d.rng.Uint64())
	}
	var taken []region.Slot
	for range d.rng.IntN(4) {
		_, free := d.image.Space()
		if free == 0 {
			break
		}
		runs, err := d.image.Alloc(ctx, 1)
		if err != nil {
			break
		}
		taken = append(taken, runs[0].Start)
		if err := d.device.Write(ctx, junk, runs[0].Start.Offset()); err != nil {
			break
		}
	}
	err := error(region.ErrNoSpace)
	if d.w.noSpace--; d.w.noSpace != -1 {
		err = d.device.Flush(ctx)
	}
	d.image.Release(taken...)
	return err
}

// A content is what a file or checkpoint holds: a stamp for each page.
type content struct {
	size  uint64
	pages map[uint64]uint64
}

func (c content) clone() content { return content{c.size, maps.Clone(c.pages)} }

func (c content) equal(o content) bool { return c.size == o.size && maps.Equal(c.pages, o.pages) }

type crashFile struct {
	ino         namespace.Ino
	cached      bool // changes go through a Cache
	now         content
	checkpoints map[string]content
}

func (f *crashFile) clone() *crashFile {
	c := &crashFile{f.ino, f.cached, f.now.clone(), map[string]content{}}
	for name, cp := range f.checkpoints {
		c.checkpoints[name] = cp.clone()
	}
	return c
}

// A model is what the pool holds, by file name.
type model map[string]*crashFile

func (m model) clone() model {
	c := model{}
	for name, f := range m {
		c[name] = f.clone()
	}
	return c
}

func stampPage(stamp uint64) []byte {
	p := make([]byte, region.PageSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp+uint64(i))
	}
	return p
}

// A world is the pool between two losses of power.
type world struct {
	rng    *rand.Rand
	power  *crashMedium
	meta   *powerMeta
	pool   *Pool
	images map[region.ID]*region.Image
	caches map[region.ID]*crashCache // of files that are cached
	full   bool                      // no region is granted anything
	seen   *reached
	step   int
	may    []model // what the pool may hold, but for the end of the present work

	noSpace int // flushes of regions until one finds no space; negative: never
}

// boot opens the pool, as a mount does.
func boot(path string, power *crashMedium, rng *rand.Rand, metaCut int, seen *reached) (*world, error) {
	bolt, err := openMeta(path, false, true)
	if err != nil {
		return nil, err
	}
	meta := &powerMeta{boltMeta: bolt, power: power, rng: rng, cut: metaCut}
	w := &world{
		rng: rng, power: power, meta: meta, seen: seen, noSpace: -1,
		images: map[region.ID]*region.Image{}, caches: map[region.ID]*crashCache{},
	}
	if w.pool, err = assemble(meta, power, Options{}); err != nil {
		return w, err
	}
	return w, nil
}

func (w *world) image(ctx context.Context, id region.ID) (*region.Image, error) {
	if im := w.images[id]; im != nil {
		return im, nil
	}
	loc, err := w.pool.Locate(ctx, id)
	if err != nil {
		return nil, err
	}
	dev := &eager{device: device{w.pool}, rng: w.rng, w: w, meanwhile: func(ctx context.Context) { w.caches[id].meanwhile(ctx) }}
	im, err := region.Open(ctx, region.Config{
		Device: dev, Space: crashSpace{w.pool, w}, Generation: w.pool.Generation(), Location: loc,
		NodeBytes: 16 * region.PageSize,
		Family: func(ctx context.Context, mark func(region.Slot)) error {
			loc, err := w.pool.Locate(ctx, id)
			if err != nil {
				return err
			}
			for _, relative := range loc.Family {
				im, err := w.image(ctx, relative)
				if err != nil {
					return err
				}
				if err := im.Walk(ctx, mark); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	dev.image = im
	w.images[id] = im
	return im, nil
}

// commit makes one epoch of random pages. f is changed to what it makes.
func (w *world) commit(ctx context.Context, f *crashFile, pages, span int) error {
	im, err := w.image(ctx, region.ID(f.ino))
	if err != nil {
		return err
	}
	change, err := w.change(ctx, im, f, pages, span)
	if err != nil {
		return err
	}
	_, err = im.Commit(ctx, change)
	return err
}

// change writes random pages of f, and changes f.
func (w *world) change(ctx context.Context, im *region.Image, f *crashFile, pages, span int) (region.Change, error) {
	change := region.Change{Cut: region.NoPage, Size: f.now.size}
	if w.rng.IntN(4) == 0 {
		change.Cut = uint64(w.rng.IntN(span))
		if w.rng.IntN(3) == 0 {
			change.Cut = 0
		}
		maps.DeleteFunc(f.now.pages, func(no, _ uint64) bool { return no >= change.Cut })
	}
	seen := map[uint64]bool{}
	for range pages {
		no := uint64(w.rng.IntN(span))
		if seen[no] {
			continue
		}
		seen[no] = true
		if w.rng.IntN(6) == 0 {
			change.Pages = append(change.Pages, region.PageChange{Page: no})
			delete(f.now.pages, no)
			continue
		}
		stamp := w.rng.Uint64()
		runs, err := im.Alloc(ctx, 1)
		if err != nil {
			return change, err
		}
		p := stampPage(stamp)
		if err := w.pool.WriteAt(p, runs[0].Start.Offset()); err != nil {
			return change, err
		}
		change.Pages = append(change.Pages, region.PageChange{Page: no, Slot: runs[0].Start, CRC: region.Checksum(p)})
		f.now.pages[no] = stamp
	}
	change.Size = w.rng.Uint64N(1 << 30)
	f.now.size = change.Size
	return change, nil
}

// work does one random thing. before is the model when it starts; work changes it
// to the model when it has succeeded.
func (w *world) work(ctx context.Context, m model) error {
	w.step++
	names := slices.Sorted(maps.Keys(m))
	if len(names) == 0 || len(names) < 4 && w.rng.IntN(12) == 0 {
		name := fmt.Sprintf("f%d", w.rng.Uint32())
		n, err := w.pool.Create(ctx, namespace.Root, name, fileInode())
		m[name] = &crashFile{n.Ino, w.rng.IntN(2) == 0, content{0, map[uint64]uint64{}}, map[string]content{}}
		return err
	}
	name := names[w.rng.IntN(len(names))]
	f := m[name]
	id := region.ID(f.ino)
	kept := slices.Sorted(maps.Keys(f.checkpoints))
	switch k := w.rng.IntN(26); {
	case k >= 24:
		return w.inflate(ctx, id)
	case k < 4 && f.cached:
		return w.storeMany(ctx, m, f)
	case k < 14 && f.cached:
		return w.store(ctx, f)
	case k < 4:
		return w.commitMany(ctx, m, f)
	case k < 12:
		return w.commit(ctx, f, w.rng.IntN(12), 40)
	case k < 13:
		return w.commit(ctx, f, w.rng.IntN(60), 100000)
	case k < 14:
		if w.rng.IntN(3) == 0 {
			return w.commit(ctx, f, 400, 100000) // more than a log run can name
		}
		return nil
	case k < 17:
		im, err := w.image(ctx, id)
		if err != nil {
			return err
		}
		if w.rng.IntN(2) == 0 {
			im.RequestSweep()
		}
		if err := im.Maintain(ctx); err != nil {
			return err
		}
		return im.Mark(ctx)
	case k < 19:
		im, err := w.image(ctx, id)
		if err != nil {
			return err
		}
		cp, err := im.Freeze(ctx, fmt.Sprint("c", w.rng.Uint32()), 1)
		if err != nil {
			return err
		}
		f.checkpoints[cp.Name] = f.now.clone()
		return w.pool.SaveCheckpoint(ctx, id, cp)
	case k < 20 && len(kept) > 0:
		cp := kept[w.rng.IntN(len(kept))]
		im, err := w.image(ctx, id)
		if err != nil {
			return err
		}
		delete(f.checkpoints, cp)
		if err := w.pool.DropCheckpoint(ctx, id, cp); err != nil {
			return err
		}
		im.DropCheckpoint(cp)
		return nil
	case k < 22 && len(kept) > 0:
		loc, err := w.pool.Locate(ctx, id)
		if err != nil {
			return err
		}
		im, err := w.image(ctx, id)
		if err != nil {
			return err
		}
		cp := loc.Checkpoints[w.rng.IntN(len(loc.Checkpoints))]
		if w.rng.IntN(2) == 0 || len(names) > 4 {
			f.now = f.checkpoints[cp.Name].clone()
			if _, err = im.Restore(ctx, cp, 1); err != nil {
				return err
			}
			return w.caches[id].discard()
		}
		made := fmt.Sprintf("f%d", w.rng.Uint32())
		n, err := w.pool.Clone(ctx, id, namespace.Root, made, fileInode(), im.Seed(cp))
		m[made] = &crashFile{n.Ino, f.cached, f.checkpoints[cp.Name].clone(), map[string]content{}}
		return err
	case k < 23 && len(names) > 1:
		delete(m, name)
		if _, err := w.pool.Unlink(ctx, namespace.Root, name); err != nil {
			return err
		}
		heir, err := w.pool.Reap(ctx, f.ino)
		if err != nil {
			return err
		}
		delete(w.images, id)
		delete(w.caches, id)
		if im := w.images[region.ID(heir)]; im != nil {
			loc, err := w.pool.Locate(ctx, region.ID(heir))
			if err != nil {
				return err
			}
			im.Adopt(loc.Extents)
		}
	}
	return nil
}

// look reads back everything the pool holds.
func (w *world) look(ctx context.Context) (model, error) {
	m := model{}
	entries, err := w.pool.ReadDir(ctx, namespace.Root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		loc, err := w.pool.Locate(ctx, region.ID(e.Ino))
		if err != nil {
			return nil, err
		}
		im, err := w.image(ctx, loc.ID)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		f := &crashFile{ino: e.Ino, checkpoints: map[string]content{}}
		if f.now, err = w.read(ctx, im); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		for _, cp := range loc.Checkpoints {
			// A checkpoint reads as an image of its own.
			seed := region.Location{ID: loc.ID}
			old, err := region.Open(ctx, region.Config{Device: device{w.pool}, Location: seed})
			if err != nil {
				return nil, err
			}
			old.View(cp)
			if f.checkpoints[cp.Name], err = w.read(ctx, old); err != nil {
				return nil, fmt.Errorf("%s: checkpoint %s: %w", e.Name, cp.Name, err)
			}
		}
		m[e.Name] = f
	}
	return m, nil
}

func (w *world) read(ctx context.Context, im *region.Image) (content, error) {
	s := im.State()
	c := content{s.Size, map[uint64]uint64{}}
	p := make([]byte, region.PageSize)
	for no := uint64(0); ; no++ {
		var err error
		if no, err = im.Next(ctx, no); err != nil || no == region.NoPage {
			return c, err
		}
		e, err := im.Lookup(ctx, no)
		if err != nil {
			return c, err
		}
		if err := region.ReadPage(ctx, device{w.pool}, im.ID(), no, e, p); err != nil {
			return c, err
		}
		c.pages[no] = binary.LittleEndian.Uint64(p)
	}
}

// differs says where two models differ, or nothing.
func differs(got, want model) string {
	for name := range got {
		if want[name] == nil {
			return "unexpected file " + name
		}
	}
	for name, f := range want {
		g := got[name]
		switch {
		case g == nil:
			return "file " + name + " is missing"
		case !g.now.equal(f.now):
			return fmt.Sprintf("%s: size %d, %d pages; want size %d, %d pages", name, g.now.size, len(g.now.pages), f.now.size, len(f.now.pages))
		case !maps.EqualFunc(g.checkpoints, f.checkpoints, content.equal):
			return fmt.Sprintf("%s: checkpoints differ", name)
		}
	}
	return ""
}

// check finds what recovery left inconsistent.
func (w *world) check(ctx context.Context) error {
	var problems []error
	say := func(err error) { problems = append(problems, err) }
	if err := w.pool.Check(ctx, func(p string) { say(errors.New(p)) }); err != nil {
		return err
	}
	for _, im := range w.images {
		if _, err := im.Check(ctx, say, nil); err != nil {
			return err
		}
	}
	return errors.Join(problems...)
}

// live works until the power goes or steps are done. It returns what the pool may
// hold then, the newest last.
func (w *world) live(ctx context.Context, m model, steps int) ([]model, error) {
	for range steps {
		after := m.clone()
		w.may = []model{m}
		if err := w.work(ctx, after); errors.Is(err, region.ErrNoSpace) && !errors.Is(err, epoch.ErrPoisoned) {
			m = w.may[0] // the pool is full: nothing happened but what is committed
			continue
		} else if err != nil {
			if !w.power.Lost() {
				return nil, fmt.Errorf("step %d: %w", w.step, err)
			}
			return append(w.may, after), nil
		}
		m = after
	}
	return []model{m}, nil
}

// oneHistory runs a pool through a first life that loses power at flush cut or
// transaction metaCut, and lives that lose it at random. It returns false if the
// first life ended before its cut.
func oneHistory(dir string, seed uint64, cut, metaCut int, seen *reached) (reached bool, cuts int, err error) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 1<<40|uint64(cut+1)<<20|uint64(metaCut+1)))
	path := filepath.Join(dir, "meta.db")
	h := header{slots: 3000}
	if seed%2 == 0 {
		h.slots = 12000 // room for a region that gives some back
	}
	h.pool[0] = 1
	if err := createMeta(path, h, true); err != nil {
		return false, 0, err
	}
	power := newCrashMedium(int64(h.slots) * region.PageSize)
	if err := writeHeader(power, h); err != nil {
		return false, 0, err
	}
	if err := power.Flush(); err != nil {
		return false, 0, err
	}
	power = power.Restart(rng, cut)

	may := []model{{}}
	work := rand.New(rand.NewPCG(seed, 0)) // the first life is the same at every cut
	for life := 0; ; life++ {
		w, err := boot(path, power, work, metaCut, seen)
		if err == nil {
			var got model
			if got, err = w.look(ctx); err == nil {
				var m model
				var wrong []string
				for _, c := range may {
					if d := differs(got, c); d != "" {
						wrong = append(wrong, d)
					} else {
						m = c
					}
				}
				if m == nil {
					return true, cuts, fmt.Errorf("life %d: none of the %d states that may be: %q", life, len(may), wrong)
				}
				seen.found(may, m)
				for name, f := range got { // inode numbers of what was being made
					m[name].ino = f.ino
				}
				if life == 3 {
					for _, im := range w.images {
						im.RequestSweep()
						if err := im.Maintain(ctx); err != nil {
							return true, cuts, err
						}
					}
				}
				if err = w.check(ctx); err == nil && life < 3 {
					may, err = w.live(ctx, m, 25)
				}
			} else {
				err = fmt.Errorf("life %d: look: %w", life, err)
			}
		}
		_ = w.meta.boltMeta.close() // the process is gone
		lost := power.Lost()
		if err != nil && !lost {
			return true, cuts, fmt.Errorf("life %d: %w", life, err)
		}
		if life == 3 {
			return true, cuts, nil
		}
		if lost {
			cuts++
		} else if life == 0 {
			return false, cuts, nil // the cut lies behind the work
		}
		next := -1
		if life < 2 {
			next = rng.IntN(12)
		}
		metaCut = -1
		if life < 2 && rng.IntN(3) == 0 {
			next, metaCut = -1, rng.IntN(6)
		}
		power = power.Restart(rng, next)
		work = rng
	}
}

func TestPowerCuts(t *testing.T) {
	dir := t.TempDir()
	total := 0
	seen := &reached{}
	for s := *seed; total < *crashCuts && !t.Failed(); s++ {
		for _, meta := range []bool{false, true} {
			for at := 0; ; at++ {
				cut, metaCut := at, -1
				if meta {
					cut, metaCut = -1, at
				}
				var reached bool
				var cuts int
				var err error
				dir := crashDir(t, dir)
				synctest.Test(t, func(*testing.T) { reached, cuts, err = oneHistory(dir, s, cut, metaCut, seen) })
				total += cuts
				if err != nil {
					t.Fatalf("%v (-seed %d, flush %d, transaction %d)", err, s, cut, metaCut)
				}
				if !reached {
					break
				}
			}
		}
	}
	t.Logf("%d power cuts; %+v", total, *seen)
	if missed := seen.missed(); missed != "" && total >= 2000 {
		t.Errorf("the simulation never reached: %s", missed)
	}
}

// crashDir empties dir for the next history.
func crashDir(t *testing.T, dir string) string {
	t.Helper()
	for _, name := range []string{"meta.db"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return dir
}
