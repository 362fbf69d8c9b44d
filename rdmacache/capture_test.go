package rdmacache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A mapped is a program's mapping of a file, and what the kernel and the program's
// tracking know of it.
type mapped struct {
	t       *testing.T
	rng     *rand.Rand
	cache   *rdmacache.Cache
	manager *epoch.Manager
	mem     []byte
	dirty   []bool // the kernel has to write the page back
	tracked []bool // stored to since it was scanned
	ring    []copied
	stamp   uint64
}

// A copied page is in the ring.
type copied struct {
	page   int
	when   int64
	before bool // the barrier under way
	bytes  []byte
}

func (m *mapped) pages() int { return len(m.mem) / pageSize }

func (m *mapped) page(no int) []byte { return m.mem[no*pageSize : (no+1)*pageSize] }

func (m *mapped) store() {
	no := m.rng.IntN(m.pages())
	m.stamp++
	if m.rng.IntN(2) == 0 {
		m.stamp = uint64(m.rng.IntN(2)) // what was there before, or zero
	}
	binary.LittleEndian.PutUint64(m.page(no)[8*m.rng.IntN(2):], m.stamp)
	m.dirty[no], m.tracked[no] = true, true
}

// writeBack is the kernel's flusher.
func (m *mapped) writeBack(no int) {
	if !m.dirty[no] {
		return
	}
	if _, err := m.cache.WriteAt(m.t.Context(), m.page(no), int64(no)*pageSize, rdmacache.FromMapping); err != nil {
		m.t.Fatalf("write back page %d: %v", no, err)
	}
	m.dirty[no] = false
}

// write is write(2).
func (m *mapped) write() {
	no := m.rng.IntN(m.pages())
	p := make([]byte, 8)
	if m.rng.IntN(3) == 0 {
		p = make([]byte, pageSize)
	}
	if m.stamp++; m.rng.IntN(3) == 0 {
		m.stamp = uint64(m.rng.IntN(2))
	}
	binary.LittleEndian.PutUint64(p, m.stamp)
	copy(m.page(no), p)
	if _, err := m.cache.WriteAt(m.t.Context(), p, int64(no)*pageSize, rdmacache.FromWrite); err != nil {
		m.t.Fatal(err)
	}
}

// read is a page fault after the kernel dropped a clean page.
func (m *mapped) read(no int) {
	if m.dirty[no] {
		return
	}
	got := make([]byte, pageSize)
	if _, err := m.cache.ReadAt(m.t.Context(), got, int64(no)*pageSize); err != nil {
		m.t.Fatal(err)
	}
	if !bytes.Equal(got, m.page(no)) {
		m.t.Fatalf("page %d reads % x, want % x", no, got[:16], m.page(no)[:16])
	}
}

// scan copies what was stored to since the last scan, and extra, into the ring.
func (m *mapped) scan(before bool, extra []uint64) {
	for _, no := range extra {
		m.tracked[no] = true
	}
	when := rdmacache.Monotonic()
	for no, stored := range m.tracked {
		if stored {
			m.ring = append(m.ring, copied{no, when, before, bytes.Clone(m.page(no))})
		}
		m.tracked[no] = false
	}
}

// consume takes n entries from the ring, in any order: in truth each program has a
// ring of its own.
func (m *mapped) consume(n int) {
	for range n {
		i := m.rng.IntN(min(len(m.ring), 4))
		e := m.ring[i]
		m.ring = slices.Delete(m.ring, i, i+1)
		if err := m.cache.Capture(m.t.Context(), e.before, uint64(e.page), e.when, e.bytes); err != nil {
			m.t.Fatal(err)
		}
	}
}

// left counts the entries of the barrier under way.
func (m *mapped) left() (n int) {
	for _, e := range m.ring {
		if e.before {
			n++
		}
	}
	return n
}

// run does something that can happen while no barrier holds the program.
func (m *mapped) run() {
	switch m.rng.IntN(30) {
	case 10:
		m.truncate()
	case 20: // fsync
		for no := range m.dirty {
			m.writeBack(no)
		}
		if _, err := m.manager.Commit(m.t.Context(), epoch.All); err != nil {
			m.t.Fatal(err)
		}
	case 21: // close(2)
		if _, err := m.manager.Commit(m.t.Context(), epoch.Written); err != nil {
			m.t.Fatal(err)
		}
	case 0, 1, 2, 3, 11, 12, 13, 14:
		m.store()
	case 4, 5, 15:
		m.writeBack(m.rng.IntN(m.pages()))
	case 6, 16:
		m.write()
	case 7, 8, 17:
		m.read(m.rng.IntN(m.pages()))
	case 9, 18, 19:
		m.scan(false, nil)
	default:
		m.consume(m.rng.IntN(len(m.ring) + 1))
	}
}

// truncate shrinks the file and makes it grow again.
func (m *mapped) truncate() {
	size := m.rng.IntN(len(m.mem))
	for _, n := range []int{size, len(m.mem)} {
		if err := m.cache.Truncate(m.t.Context(), int64(n)); err != nil {
			m.t.Fatal(err)
		}
	}
	clear(m.mem[size:])
	for no := (size + pageSize - 1) / pageSize; no < m.pages(); no++ {
		m.dirty[no], m.tracked[no] = false, m.rng.IntN(2) == 0
	}
	if size%pageSize != 0 && m.dirty[size/pageSize] {
		m.writeBack(size / pageSize)
	}
}

// discard rolls back under the program.
func (m *mapped) discard() {
	_, err := m.cache.Discard(func() error {
		for no := range m.dirty {
			m.writeBack(no)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	for no := range m.tracked {
		m.tracked[no] = true // the mapping is empty: all count as stored to
	}
	if _, err := m.cache.ReadAt(m.t.Context(), m.mem, 0); err != nil {
		m.t.Fatal(err)
	}
}

// Copies of pages come by the ring, late, and by the kernel's write-back, mixed with
// write(2), evictions, rollbacks and barriers that fail. What a barrier commits is
// the memory at the barrier, byte for byte, and a page that the kernel dropped reads
// as it was. Fails without the comparison of times in stale, without Rewritten or
// Lossy, without the test for a frozen epoch in unchanged, without discarded.
func TestCapture(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	for r := range rounds {
		rng := rand.New(rand.NewPCG(*seed, uint64(r)))
		pool := newMemory(3000)
		c, mgr := pool.open(t)
		const pages = 7
		m := &mapped{t: t, rng: rng, cache: c, manager: mgr, mem: make([]byte, pages*pageSize), dirty: make([]bool, pages), tracked: make([]bool, pages)}
		c.Capturing(true)
		if err := c.Truncate(t.Context(), pages*pageSize); err != nil {
			t.Fatal(err)
		}
		if _, err := mgr.Commit(t.Context(), epoch.All); err != nil {
			t.Fatal(err)
		}
		for range 12 {
			for range rng.IntN(40) {
				m.run()
			}
			if rng.IntN(10) == 0 {
				m.discard()
			}
			fails := rng.IntN(5) == 0
			var image []byte
			errCalledOff := errors.New("called off")
			_, err := mgr.Barrier(t.Context(), func(ctx context.Context, seal func() (epoch.ID, error)) error {
				if c.Lossy() {
					for no := range pages {
						m.writeBack(no)
					}
				}
				extra := c.Rewritten()
				if _, err := seal(); err != nil {
					return err
				}
				m.scan(true, extra)
				image = bytes.Clone(m.mem)
				for i := range m.ring {
					m.ring[i].before = true
				}
				for m.left() > 0 { // the program runs on
					m.consume(rng.IntN(min(len(m.ring), 3) + 1))
					if fails && rng.IntN(4) == 0 {
						break
					}
					for range rng.IntN(4) {
						switch rng.IntN(6) {
						case 0, 1:
							m.store()
						case 2:
							m.writeBack(rng.IntN(pages))
						case 3:
							m.write()
						case 4:
							m.read(rng.IntN(pages))
						case 5:
							m.scan(false, nil)
						}
					}
				}
				if fails {
					return errCalledOff
				}
				return nil
			})
			if fails {
				if !errors.Is(err, errCalledOff) {
					t.Fatalf("barrier = %v", err)
				}
				for i := range m.ring {
					m.ring[i].before = false
				}
				if rng.IntN(2) == 0 {
					m.discard()
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			again, _ := pool.open(t)
			got := make([]byte, len(m.mem))
			if _, err := again.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, image) {
				t.Fatalf("round %d: committed image differs from the memory at the barrier, or %v (-seed %d)", r, err, *seed)
			}
			for no := range pages {
				m.read(no)
			}
		}
		pool.check(t, c)
	}
}

// Copies that are dropped between the question whether the kernel has to write back
// and the seal make the barrier fail: the next one asks again.
func TestLossyBeforeFreeze(t *testing.T) {
	pool := newMemory(100)
	c, _ := pool.open(t)
	c.Capturing(true)
	if err := c.Truncate(t.Context(), 4*pageSize); err != nil {
		t.Fatal(err)
	}
	if !c.Lossy() {
		t.Error("not lossy when the first program comes")
	}
	if err := c.Truncate(t.Context(), 2*pageSize); err != nil { // copies of the rest may be in rings
		t.Fatal(err)
	}
	if _, err := c.Freeze(t.Context()); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("Freeze: %v", err)
	}
	if !c.Lossy() {
		t.Error("the kernel is not asked at the next barrier")
	}
	id, err := c.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wait, err := c.Post(t.Context(), id, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Lossy() {
		t.Error("still lossy after an epoch with all that the kernel had")
	}
}
