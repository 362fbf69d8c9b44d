package rdmacache_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

const pageSize = rdmacache.PageSize

// memory is a pool of one region in memory.
type memory struct {
	mu    sync.RWMutex // guards bytes
	bytes []byte
	space sync.Mutex // guards the fields below
	next  region.Slot
	loc   region.Location
	gen   uint64

	pages int // clean pages that its caches keep; negative: they have no Pages
}

func newMemory(slots int) *memory {
	return &memory{bytes: make([]byte, slots*pageSize), next: 1, loc: region.Location{ID: 7}, pages: -1}
}

func (m *memory) Read(_ context.Context, p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.bytes[off:off+int64(len(p))])
	return nil
}

func (m *memory) Write(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.bytes[off:off+int64(len(p))], p)
	return nil
}

func (m *memory) Flush(context.Context) error { return nil }
func (m *memory) Close() error                { return nil }
func (m *memory) Medium() rdmacache.Medium    { return rdmacache.Medium{Kind: "test", Volatile: true} }

func (m *memory) Grant(ctx context.Context, id region.ID, need, want uint64) (region.Grant, error) {
	m.space.Lock()
	defer m.space.Unlock()
	left := uint64(len(m.bytes)/pageSize) - uint64(m.next)
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

func (m *memory) Return(context.Context, region.ID, []region.Run) error { return nil }

// open makes the cache that the next mount would.
func (m *memory) open(t testing.TB) (*rdmacache.Cache, *epoch.Manager) {
	t.Helper()
	m.gen++
	var conn rdmacache.Conn = m
	var pages *rdmacache.Pages
	if m.pages >= 0 {
		pages = rdmacache.NewPages(int64(m.pages) * pageSize)
		conn = pages.Watch(m)
	}
	im, err := region.Open(t.Context(), region.Config{Device: conn, Space: m, Generation: m.gen, Location: m.loc})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	c := rdmacache.New(rdmacache.Config{Conn: conn, Pages: pages, Image: im, FrameBytes: 16 * pageSize})
	return c, epoch.NewManager(c)
}

func (m *memory) check(t testing.TB, c *rdmacache.Cache) {
	t.Helper()
	if _, err := c.Image().Check(t.Context(), func(err error) { t.Errorf("check: %v", err) }, nil); err != nil {
		t.Fatal(err)
	}
}

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return append([]byte(nil), b[:n]...)
	}
	return append(append([]byte(nil), b...), make([]byte, n-len(b))...)
}

// Random writes from both sources, truncations, holes, commits of both scopes,
// rollbacks and crashes against three byte slices: what is committed, what write(2)
// made of it, and what programs see.
func TestModel(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 5
	}
	for r := range rounds {
		rng := rand.New(rand.NewPCG(*seed, uint64(r)))
		m := newMemory(3000)
		m.pages = []int{-1, 0, 1, 20, 1000}[r%5]
		c, mgr := m.open(t)
		var committed, written, newest []byte
		const limit = 60 * pageSize
		span := func(size int) (off, n int) {
			off = rng.IntN(size)
			n = 1 + rng.IntN(min(size-off, 1<<(1+rng.IntN(17))))
			if rng.IntN(2) == 0 { // whole pages
				off &^= pageSize - 1
				n = min((n+pageSize-1)&^(pageSize-1), size-off)
			}
			return off, n
		}
		data := func(n int) []byte {
			b := make([]byte, n)
			switch rng.IntN(4) {
			case 0: // zeros
			case 1:
				for i := range b {
					b[i] = byte(rng.IntN(2))
				}
			default:
				x := byte(rng.Uint32())
				for i := range b {
					b[i] = x + byte(i>>8)
				}
			}
			return b
		}
		for step := range 300 {
			ctx := t.Context()
			var err error
			switch k := rng.IntN(22); {
			case k < 6:
				off, n := span(limit)
				b := data(n)
				_, err = c.WriteAt(ctx, b, int64(off), rdmacache.FromWrite)
				if off+n > len(newest) {
					written, newest = resize(written, off+n), resize(newest, off+n)
				}
				copy(written[off:], b)
				copy(newest[off:], b)
			case k < 12:
				if len(newest) == 0 {
					continue
				}
				off, n := span(len(newest))
				off &^= pageSize - 1
				b := data(n)
				if rng.IntN(3) == 0 { // stored, but unchanged
					copy(b, newest[off:])
				}
				n, err = c.WriteAt(ctx, b, int64(off), rdmacache.FromMapping)
				copy(newest[off:], b[:n])
			case k < 14:
				size := rng.IntN(limit)
				if rng.IntN(3) == 0 {
					size &^= pageSize - 1
				}
				if rng.IntN(5) == 0 {
					size = 0
				}
				err = c.Truncate(ctx, int64(size))
				written, newest = resize(written, size), resize(newest, size)
			case k < 15:
				if len(newest) == 0 {
					continue
				}
				off, n := span(len(newest))
				err = c.PunchHole(ctx, int64(off), int64(n))
				clear(written[off : off+n])
				clear(newest[off : off+n])
			case k < 17:
				_, err = mgr.Commit(ctx, epoch.All)
				committed = resize(newest, len(newest))
				written = resize(newest, len(newest))
			case k < 18:
				_, err = mgr.Commit(ctx, epoch.Written)
				committed = resize(written, len(written))
			case k < 19:
				if rng.IntN(2) == 0 {
					_, err = c.DiscardMapped(func() error { return nil })
					newest = resize(written, len(written))
					break
				}
				_, err = c.Discard(func() error { return nil })
				written, newest = resize(committed, len(committed)), resize(committed, len(committed))
			case k < 20:
				c, mgr = m.open(t)
				written, newest = resize(committed, len(committed)), resize(committed, len(committed))
			default:
				err = c.Image().Maintain(ctx)
			}
			if err != nil {
				t.Fatalf("%v (-seed %d, round %d, step %d)", err, *seed, r, step)
			}
			if got := c.Size(); got != int64(len(newest)) {
				t.Fatalf("got size %d, want %d (-seed %d, round %d, step %d)", got, len(newest), *seed, r, step)
			}
			got := make([]byte, len(newest)+10)
			n, err := c.ReadAt(ctx, got, 0)
			if err != nil || !bytes.Equal(got[:n], newest) {
				t.Fatalf("content differs, %v (-seed %d, round %d, step %d)", err, *seed, r, step)
			}
			seeks(t, c, newest)
			m.check(t, c)
			if t.Failed() {
				t.Fatalf("-seed %d, round %d, step %d", *seed, r, step)
			}
		}
		if m.next > 1000 {
			t.Errorf("60 pages took %d slots (-seed %d, round %d)", m.next, *seed, r)
		}
	}
}

// seeks checks that all that is not zero lies in what Seek calls data.
func seeks(t *testing.T, c *rdmacache.Cache, want []byte) {
	t.Helper()
	at := int64(0)
	for at < int64(len(want)) {
		data, err := c.Seek(t.Context(), at, false)
		if errors.Is(err, rdmacache.ErrNoData) {
			data = int64(len(want))
		} else if err != nil {
			t.Fatal(err)
		}
		if len(bytes.Trim(want[at:data], "\x00")) != 0 {
			t.Fatalf("bytes %d-%d are called a hole, but hold data", at, data)
		}
		if data == int64(len(want)) {
			return
		}
		if at, err = c.Seek(t.Context(), data, true); err != nil {
			t.Fatal(err)
		}
		if at <= data {
			t.Fatalf("hole at %d, data at %d", at, data)
		}
	}
}

// A full pool: the commit says so and loses nothing; with space it succeeds.
func TestFullPool(t *testing.T) {
	m := newMemory(40)
	c, mgr := m.open(t)
	ctx := t.Context()
	if err := c.Truncate(ctx, 100*pageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := mgr.Commit(ctx, epoch.All); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{7}, 36*pageSize)
	if _, err := c.WriteAt(ctx, want, 0, rdmacache.FromWrite); !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("write of more than the pool: got %v, want ErrNoSpace", err)
	}
	for i := range 38 {
		if _, err := c.WriteAt(ctx, want[:pageSize], int64(i)*pageSize, rdmacache.FromMapping); err != nil {
			t.Fatalf("page %d from a mapping: %v", i, err)
		}
	}
	if _, err := mgr.Commit(ctx, epoch.All); !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("commit: got %v, want ErrNoSpace", err)
	}
	if n, err := c.WriteAt(ctx, []byte("part"), 8, rdmacache.FromWrite); n != 0 || !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("write of a part of a page: %d, %v, want ErrNoSpace", n, err)
	}
	now := make([]byte, pageSize)
	if _, err := c.ReadAt(ctx, now, 0); err != nil || !bytes.Equal(now, want[:pageSize]) {
		t.Fatalf("a write that found no space changed the page, or %v", err)
	}
	if got := c.Committed(); got != 1 {
		t.Fatalf("got epoch %d after the failed commit, want 1", got)
	}
	m.bytes = append(m.bytes, make([]byte, 100*pageSize)...) // somebody removed a file
	if id, err := mgr.Commit(ctx, epoch.All); err != nil || id != 2 {
		t.Fatalf("commit with space: epoch %d, %v", id, err)
	}
	c, _ = m.open(t)
	got := make([]byte, 38*pageSize)
	if _, err := c.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 38*pageSize)) {
		t.Fatalf("content after recovery differs, %v", err)
	}
}

// Bytes of a mapping that find no space can be sent again, and nothing is lost; unless
// the caller gives up: then the epoch does not commit.
func TestNoSpaceForAMapping(t *testing.T) {
	m := newMemory(40)
	c, mgr := m.open(t)
	ctx := t.Context()
	want := bytes.Repeat([]byte{7}, 100*pageSize)
	if err := c.Truncate(ctx, int64(len(want))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(ctx, want, 0, rdmacache.FromMapping); !errors.Is(err, region.ErrNoSpace) {
		t.Fatalf("write-back of more than the pool: got %v, want ErrNoSpace", err)
	}
	m.bytes = append(m.bytes, make([]byte, 200*pageSize)...) // somebody removed a file
	if n, err := c.WriteAt(ctx, want, 0, rdmacache.FromMapping); n != len(want) || err != nil {
		t.Fatalf("write-back with space: %d, %v", n, err)
	}
	if _, err := mgr.Commit(ctx, epoch.All); err != nil {
		t.Fatalf("commit: %v", err)
	}
	got := make([]byte, len(want))
	c, mgr = m.open(t)
	if _, err := c.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("content after recovery differs, %v", err)
	}
	if _, err := c.WriteAt(ctx, []byte("more"), 0, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
	c.Doom(region.ErrNoSpace)
	if _, err := mgr.Commit(ctx, epoch.All); !errors.Is(err, region.ErrNoSpace) {
		t.Errorf("commit of a doomed epoch: got %v, want ErrNoSpace", err)
	}
}

// A damaged page is an error, and never returned.
func TestDamagedPage(t *testing.T) {
	testDamagedPage(t, -1)
	testDamagedPage(t, 100)
}

func testDamagedPage(t *testing.T, pages int) {
	m := newMemory(100)
	m.pages = pages
	c, mgr := m.open(t)
	ctx := t.Context()
	want := bytes.Repeat([]byte("rpmemfs!"), 4*pageSize/8)
	if _, err := c.WriteAt(ctx, want, 0, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := mgr.Commit(ctx, epoch.All); err != nil {
		t.Fatal(err)
	}
	e, err := c.Image().Lookup(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	m.bytes[e.Slot.Offset()+9] ^= 1
	got := make([]byte, len(want))
	n, err := c.ReadAt(ctx, got, 0)
	var damage *region.CorruptError
	if !errors.As(err, &damage) || damage.Page != 2 || n != 2*pageSize {
		t.Errorf("got %d bytes, %v; want 2 pages and damage at page 2", n, err)
	}
}

// Readers, writers, commits and rollbacks at once: every page read is one that was
// written, whole.
func TestConcurrent(t *testing.T) {
	for _, pages := range []int{-1, 20} {
		t.Run(fmt.Sprintf("%d clean pages", pages), func(t *testing.T) { testConcurrent(t, pages) })
	}
}

func testConcurrent(t *testing.T, kept int) {
	m := newMemory(4000)
	m.pages = kept
	c, mgr := m.open(t)
	ctx := t.Context()
	const pages = 64
	if _, err := c.WriteAt(ctx, make([]byte, pages*pageSize), 0, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	run := func(n int, f func(rng *rand.Rand) error) {
		wg.Add(1)
		rng := rand.New(rand.NewPCG(*seed, uint64(n)))
		go func() {
			defer wg.Done()
			for range 1500 {
				if err := f(rng); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	for w := range 2 {
		run(w, func(rng *rand.Rand) error {
			b := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, pageSize*(1+rng.IntN(4)))
			src := rdmacache.Source(rng.IntN(2))
			_, err := c.WriteAt(ctx, b, int64(rng.IntN(pages-4))*pageSize, src)
			return err
		})
	}
	run(2, func(rng *rand.Rand) error {
		b := make([]byte, pages*pageSize)
		if _, err := c.ReadAt(ctx, b, 0); err != nil {
			return err
		}
		for p := range pages {
			x := b[p*pageSize : (p+1)*pageSize]
			if !bytes.Equal(x, bytes.Repeat(x[:1], pageSize)) {
				return errors.New("torn page")
			}
		}
		return nil
	})
	run(3, func(rng *rand.Rand) error {
		_, err := mgr.Commit(ctx, epoch.Scope(rng.IntN(2)))
		if err == nil && rng.IntN(20) == 0 {
			_, err = c.Discard(func() error { return nil })
		}
		if err == nil && c.Image().Due() {
			err = c.Image().Maintain(ctx)
		}
		return err
	})
	wg.Wait()
	m.check(t, c)
}
