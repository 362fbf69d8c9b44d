package rdmacache_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// wire is a memory whose reads can be held up, and are counted.
type wire struct {
	*memory

	mu    sync.Mutex // guards the fields below
	reads int
	pages int
	hold  chan struct{} // reads wait until it is closed; nil: they do not
	err   error         // of the next read
	spoil bool          // a byte of the next read is wrong
}

func (w *wire) Read(ctx context.Context, p []byte, off int64) error {
	w.mu.Lock()
	w.reads++
	w.pages += len(p) / pageSize
	hold, err, spoil := w.hold, w.err, w.spoil
	w.err, w.spoil = nil, false
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	err = w.memory.Read(ctx, p, off)
	if spoil {
		p[len(p)/2]++
	}
	return err
}

func (w *wire) count() (reads, pages int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reads, w.pages
}

// until waits for a number of reads.
func (w *wire) until(t *testing.T, reads int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got, _ := w.count()
		if got == reads {
			return
		}
		if got > reads || time.Now().After(deadline) {
			t.Fatalf("%d reads, want %d", got, reads)
		}
	}
}

// block makes reads wait from now on, and returns what lets them go.
func (w *wire) block() (release func()) {
	hold := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hold, w.reads, w.pages = hold, 0, 0
	return func() {
		w.mu.Lock()
		w.hold = nil
		w.mu.Unlock()
		close(hold)
	}
}

// A site is a file over a wire.
type site struct {
	*wire
	pages *rdmacache.Pages
	cache *rdmacache.Cache
	mgr   *epoch.Manager
}

func newSite(t *testing.T, keep int) *site {
	t.Helper()
	s := &site{wire: &wire{memory: newMemory(3000)}}
	s.open(t, keep)
	return s
}

// open opens the file as another mount would, with nothing in its memory.
func (s *site) open(t *testing.T, keep int) {
	t.Helper()
	s.gen++
	s.pages = rdmacache.NewPages(int64(keep) * pageSize)
	conn := s.pages.Watch(s.wire)
	im, err := region.Open(t.Context(), region.Config{Device: conn, Space: s.memory, Generation: s.gen, Location: s.loc})
	if err != nil {
		t.Fatal(err)
	}
	s.cache = rdmacache.New(rdmacache.Config{Conn: conn, Pages: s.pages, Image: im, FrameBytes: 16 * pageSize})
	s.mgr = epoch.NewManager(s.cache)
}

func (s *site) write(t *testing.T, page, n int, b byte) {
	t.Helper()
	if _, err := s.cache.WriteAt(t.Context(), bytes.Repeat([]byte{b}, n*pageSize), int64(page)*pageSize, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mgr.Commit(t.Context(), epoch.All); err != nil {
		t.Fatal(err)
	}
}

// read reads pages in a goroutine, and checks what they hold.
func (s *site) read(ctx context.Context, page, n int, want byte) (result func() error) {
	done := make(chan error, 1)
	go func() {
		b := make([]byte, n*pageSize)
		_, err := s.cache.ReadAt(ctx, b, int64(page)*pageSize)
		if err == nil && !bytes.Equal(b, bytes.Repeat([]byte{want}, len(b))) {
			err = errors.New("other bytes")
		}
		done <- err
	}()
	return func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("it hangs")
		}
	}
}

func (s *site) mustRead(t *testing.T, page, n int, want byte) {
	t.Helper()
	if err := s.read(t.Context(), page, n, want)(); err != nil {
		t.Fatalf("read %d pages from %d: %v", n, page, err)
	}
}

// Two who want the same page at a time ask for it once. One who gives up does not
// disturb the other, and one whose read fails leaves the others to their own.
func TestReadsMerge(t *testing.T) {
	s := newSite(t, 0)
	s.write(t, 0, 4, 1)
	s.mustRead(t, 0, 1, 1) // the table is in memory
	release := s.block()
	first := s.read(t.Context(), 0, 2, 1)
	s.until(t, 1)
	merged := func(n uint64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); s.pages.Stats().Merged < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %d merged at least", s.pages.Stats(), n)
			}
		}
	}
	second := s.read(t.Context(), 1, 1, 1)
	merged(1)
	ctx, cancel := context.WithCancel(t.Context())
	impatient := s.read(ctx, 0, 2, 1)
	merged(3)
	cancel()
	if err := impatient(); !errors.Is(err, context.Canceled) {
		t.Errorf("one who gave up: %v", err)
	}
	release()
	if err := errors.Join(first(), second()); err != nil {
		t.Error(err)
	}
	if reads, pages := s.count(); reads != 1 || pages != 2 {
		t.Errorf("%d reads of %d pages, want one of 2", reads, pages)
	}
	release = s.block()
	s.mu.Lock()
	s.err = errMedium
	s.mu.Unlock()
	first = s.read(t.Context(), 0, 1, 1)
	s.until(t, 1)
	second = s.read(t.Context(), 0, 1, 1)
	merged(4)
	release()
	if err := errors.Join(first(), second()); err != nil {
		t.Errorf("after a read that failed once: %v", err)
	}
	if reads, _ := s.count(); reads != 2 && reads != 3 {
		t.Errorf("%d reads, want the one that failed, and another one of each or for both", reads)
	}
}

// Pages that lie apart are asked for at once, not one after the other.
func TestScatteredReads(t *testing.T) {
	s := newSite(t, 0)
	for _, page := range []int{0, 2, 4, 6, 1, 3, 5, 7} { // neighbours lie apart
		s.write(t, page, 1, 1)
	}
	s.mustRead(t, 0, 1, 1)
	release := s.block()
	done := s.read(t.Context(), 0, 8, 1)
	s.until(t, 8) // none has been answered
	release()
	if err := done(); err != nil {
		t.Error(err)
	}
	if reads, pages := s.count(); reads != 8 || pages != 8 {
		t.Errorf("%d reads of %d pages", reads, pages)
	}
}

// A page that was read is not asked for again while there is room, and no more are kept
// than there is room for.
func TestPagesAreKept(t *testing.T) {
	s := newSite(t, 10)
	s.write(t, 0, 100, 1)
	s.mustRead(t, 0, 5, 1)
	for range 3 {
		s.mustRead(t, 0, 5, 1)
	}
	if st := s.pages.Stats(); st.Misses != 5 || st.Hits != 15 || st.Reads != 1 {
		t.Errorf("%+v", st)
	}
	s.mustRead(t, 0, 100, 1)
	for page := range 100 {
		s.mustRead(t, page, 1, 1)
	}
	if hits := s.pages.Stats().Hits - 15; hits > 5+10 {
		t.Errorf("%d hits out of room for 10 pages", hits)
	}
	s.pages.Clear()
	before := s.pages.Stats().Misses
	s.mustRead(t, 99, 1, 1)
	if got := s.pages.Stats().Misses - before; got != 1 {
		t.Errorf("%d misses after Clear", got)
	}
}

// Reads as long as the kernel's read-ahead throw out nothing that is kept, and are read
// once more page by page where a checksum is wrong.
func TestLongReadsPass(t *testing.T) {
	s := newSite(t, 100)
	s.write(t, 0, 100, 1)
	s.mustRead(t, 0, 32, 1)
	s.mustRead(t, 40, 33, 1)
	s.mustRead(t, 40, 1, 1)
	s.mustRead(t, 0, 32, 1)
	if st := s.pages.Stats(); st.Misses != 32+33+1 || st.Hits != 32 {
		t.Errorf("%+v", st)
	}
	s.wire.spoil = true
	s.mustRead(t, 40, 33, 1)
}

// What was read of a slot that is written meanwhile is not kept, even if the new page
// has the same checksum. Nor is what was kept before.
func TestWritesThrowOut(t *testing.T) {
	s := newSite(t, 100)
	s.write(t, 0, 1, 1)
	e, err := s.cache.Image().Lookup(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := s.pages.Watch(s.wire)
	touch := func() { // writes the same again: what is known by the checksum may stay, or not
		t.Helper()
		if err := conn.Write(t.Context(), bytes.Repeat([]byte{1}, pageSize), e.Slot.Offset()); err != nil {
			t.Fatal(err)
		}
	}
	misses := func(want uint64) {
		t.Helper()
		s.mustRead(t, 0, 1, 1)
		if got := s.pages.Stats().Misses; got != want {
			t.Errorf("%d misses, want %d", got, want)
		}
	}
	misses(1)
	misses(1)
	touch()
	misses(2)
	s.pages.Clear()
	release := s.block()
	reading := s.read(t.Context(), 0, 1, 1)
	s.until(t, 1)
	touch()
	release()
	if err := reading(); err != nil {
		t.Fatal(err)
	}
	misses(4)
	misses(4)
	conn = s.pages.Watch(beforeWrite{s.wire, func() { misses(5) }})
	touch() // what is read while it is under way may be what was there before
	misses(6)
}

// A beforeWrite does something when a write is under way, but nothing of it is there yet.
type beforeWrite struct {
	rdmacache.Conn
	do func()
}

func (b beforeWrite) Write(ctx context.Context, p []byte, off int64) error {
	b.do()
	return b.Conn.Write(ctx, p, off)
}

// A program that goes on at another node, with nothing in memory there, costs what it
// touches, and begins at once.
func TestPagesComeAsTouched(t *testing.T) {
	s := newSite(t, 1000)
	s.write(t, 0, 2000, 1)
	if err := s.cache.Image().Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := s.block()
	release()
	s.open(t, 1000)
	opening, pages := s.count()
	t.Logf("opening: %d reads of %d pages", opening, pages)
	if pages > 200 {
		t.Errorf("opening reads %d pages", pages)
	}
	release = s.block()
	release()
	touched := []int{0, 1999, 1000, 7, 500, 1000, 7, 8, 1500}
	for _, page := range touched {
		s.mustRead(t, page, 1, 1)
	}
	const levels = 8 // of the table: its nodes come as they are touched too
	if reads, pages := s.count(); reads > len(touched)+levels || pages > len(touched)+levels {
		t.Errorf("%d reads of %d pages for %d touched", reads, pages, len(touched))
	}
}
