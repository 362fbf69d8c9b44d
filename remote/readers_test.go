package remote_test

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// mountReader mounts a share beside whoever writes it.
func mountReader(t testing.TB, p *remote.Pool, cfg volume.Config) *mounted {
	t.Helper()
	cfg.Pool, cfg.Conn, cfg.Shared, cfg.ReadOnly = p, p.Conn(), p, true
	return mountWith(t, p, cfg)
}

// watching has a mounted share answer for readers.
func watching(t testing.TB, m *mounted) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.pool.Watch(ctx, m); err != nil {
			t.Errorf("watch: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// stamps is what a file of pages holds that was written at one time: the number in
// each of its pages.
func stamps(pages int, n uint64) []byte {
	b := make([]byte, pages*region.PageSize)
	for i := range pages {
		binary.LittleEndian.PutUint64(b[i*region.PageSize:], n)
	}
	return b
}

// stampOf returns the one stamp of a file.
func stampOf(t testing.TB, v *volume.Volume, ino namespace.Ino, pages int) uint64 {
	t.Helper()
	h, err := v.Open(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release(ctx)
	b := make([]byte, pages*region.PageSize)
	if n, err := h.Read(ctx, b, 0); err != nil || n != len(b) {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	first := binary.LittleEndian.Uint64(b)
	for i := range pages {
		if n := binary.LittleEndian.Uint64(b[i*region.PageSize:]); n != first {
			t.Fatalf("page %d is of stamp %d, page 0 of %d", i, n, first)
		}
	}
	return first
}

func refreshed(t testing.TB, v *volume.Volume, ino namespace.Ino) epoch.ID {
	t.Helper()
	e, err := v.Refresh(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func lookup(t testing.TB, v *volume.Volume, name string) namespace.Ino {
	t.Helper()
	a, err := v.Lookup(ctx, namespace.Root, name)
	if err != nil {
		t.Fatal(err)
	}
	return a.Ino
}

// pinsOf counts the pins that are recorded of a file.
func (n *memoryNode) pinsOf(ino namespace.Ino) (pins int) {
	n.Helper()
	loc, err := n.pool.Locate(ctx, region.ID(ino))
	if err != nil {
		n.Fatal(err)
	}
	for _, cp := range loc.Checkpoints {
		if cp.Hidden() {
			pins++
		}
	}
	return pins
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// Readers beside a writer see one committed epoch, whole, until they ask for the
// newest, and keep it while the writer uses its slots again and again.
func TestReadersBesideAWriter(t *testing.T) {
	n := newNode(t, long)
	writer := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, writer)
	const pages = 40
	ino, h := writer.create(t, "f")
	stamp := func(x uint64) {
		t.Helper()
		mustWrite(t, h, stamps(pages, x), 0)
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	stamp(1)
	var readers []*mounted
	for range 2 {
		readers = append(readers, mountReader(t, n.open(remote.Config{Share: "s", Reader: true}), volume.Config{}))
	}
	at := lookup(t, readers[0].Volume, "f")
	if at != ino {
		t.Fatalf("inode %d, want %d", at, ino)
	}
	if got := stampOf(t, readers[0].Volume, ino, pages); got != 1 {
		t.Fatalf("stamp %d, want 1", got)
	}
	mustWrite(t, h, stamps(pages, 99), 0) // an open epoch is nobody's business
	if got := stampOf(t, readers[1].Volume, ino, pages); got != 1 {
		t.Fatalf("an open epoch shows: stamp %d", got)
	}
	if got := n.pinsOf(ino); got != 1 {
		t.Errorf("%d pins of one epoch, want 1", got)
	}
	for x := uint64(2); x < 60; x++ {
		stamp(x)
		if got := stampOf(t, readers[0].Volume, ino, pages); got != 1 {
			t.Fatalf("stamp %d without being asked", got)
		}
		refreshed(t, readers[1].Volume, ino)
		if got := stampOf(t, readers[1].Volume, ino, pages); got != x {
			t.Fatalf("stamp %d after a refresh, want %d", got, x)
		}
	}
	// It grows, and one reader follows by asking for everything.
	mustWrite(t, h, stamps(2*pages, 60), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if text, err := readers[0].Xattr(ctx, namespace.Root, volume.XattrRefresh); len(text) != 0 || err != nil {
		t.Fatal(text, err)
	}
	if got := stampOf(t, readers[0].Volume, ino, 2*pages); got != 60 {
		t.Fatalf("stamp %d, want 60", got)
	}
	if a, err := readers[1].Getattr(ctx, ino); err != nil || a.Size != pages*region.PageSize {
		t.Errorf("size %d, %v: want that of the epoch shown", a.Size, err)
	}
	_, err := readers[0].Create(ctx, namespace.Root, "g", fileInode())
	wantErr(t, "Create by a reader", err, volume.ErrReadOnly)
	_, err = readers[0].pool.Create(ctx, namespace.Root, "g", fileInode())
	wantErr(t, "Create in a reader's session", err, remote.ErrReadOnly)
	wantErr(t, "Watch in a reader's session", readers[0].pool.Watch(cancelled(), writer), nil)
	if cps, err := writer.Checkpoints(ctx, ino); err != nil || len(cps) != 0 {
		t.Errorf("pins are listed: %v, %v", cps, err)
	}
	if _, err := writer.pool.Pin(ctx, region.ID(ino)); err == nil {
		t.Error("who has the lease has a pin")
	}

	// The end of the readers' sessions is the end of their pins, also for the writer.
	for _, r := range readers {
		if err := r.pool.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "no pins", func() bool { return n.pinsOf(ino) == 0 })
	eventually(t, "the writer uses their slots again", func() bool {
		st, err := writer.Stat(ctx, ino)
		if err != nil {
			t.Fatal(err)
		}
		return st.GrantedSlots-st.FreeSlots < 3*2*pages
	})
	report, err := writer.Check(ctx, 0, nil)
	if err != nil || report.Found != 0 {
		t.Errorf("check: %+v, %v", report.Problems, err)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// What nobody has the lease of the memory node pins itself; a writer that comes later
// respects that.
func TestReaderWithoutAWriter(t *testing.T) {
	n := newNode(t, long)
	const pages = 30
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	ino, h := w.create(t, "f")
	empty, _ := w.create(t, "empty")
	mustWrite(t, h, stamps(pages, 1), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	clone, err := w.Clone(ctx, ino, "", namespace.Root, "clone")
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	if err := errors.Join(w.Close(ctx), w.pool.Close()); err != nil {
		t.Fatal(err)
	}

	r := mountReader(t, n.open(remote.Config{Share: "s", Reader: true}), volume.Config{})
	for range 2 {
		for _, ino := range []namespace.Ino{ino, clone.Ino} {
			if got := stampOf(t, r.Volume, ino, pages); got != 1 {
				t.Fatalf("stamp %d", got)
			}
			refreshed(t, r.Volume, ino)
		}
	}
	wantContent(t, r.Volume, empty, nil)
	if leases, err := n.pool.Leases(ctx); err != nil || len(leases) != 0 {
		t.Errorf("leases are left: %v, %v", leases, err)
	}

	w = mountOver(t, n.open(remote.Config{Share: "s"}))
	watching(t, w)
	if h, err = w.Open(ctx, ino); err != nil {
		t.Fatal(err)
	}
	for x := uint64(2); x < 40; x++ {
		mustWrite(t, h, stamps(pages, x), 0)
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if got := stampOf(t, r.Volume, ino, pages); got != 1 {
			t.Fatalf("the reader's stamp became %d", got)
		}
	}
	refreshed(t, r.Volume, ino)
	if got := stampOf(t, r.Volume, ino, pages); got != 39 {
		t.Fatalf("stamp %d, want 39", got)
	}
	report, err := w.Check(ctx, 0, nil)
	if err != nil || report.Found != 0 {
		t.Errorf("check: %+v, %v", report.Problems, err)
	}
}

// A removed file stays as long as somebody reads it.
func TestReaderOfARemovedFile(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	ino, h := w.create(t, "f")
	mustWrite(t, h, stamps(20, 7), 0)
	h.Release(ctx)
	r := mountReader(t, n.open(remote.Config{Share: "s", Reader: true}), volume.Config{})
	rh, err := r.Open(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Unlink(ctx, namespace.Root, "f"); err != nil {
		t.Fatal(err)
	}
	ino2, h2 := w.create(t, "g")
	for range 20 {
		mustWrite(t, h2, stamps(20, 8), 0)
		if err := h2.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := stampOf(t, r.Volume, ino, 20); got != 7 {
		t.Errorf("stamp %d", got)
	}
	if got := stampOf(t, r.Volume, ino2, 20); got != 8 {
		t.Errorf("stamp %d", got)
	}
	rh.Release(ctx)
	if err := r.pool.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file goes", func() bool {
		_, err := n.pool.Inode(ctx, ino)
		return errors.Is(err, namespace.ErrNotExist)
	})
}

// A writer that does not answer holds readers up until its lease is over; then the
// memory node does it.
func TestReaderOfADeadWriter(t *testing.T) {
	n := newNode(t, long)
	way := n.path()
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true, Address: way.address(), Lease: short}))
	watching(t, w)
	ino, h := w.create(t, "f")
	mustWrite(t, h, stamps(10, 3), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	r := mountReader(t, n.open(remote.Config{Share: "s", Reader: true}), volume.Config{})
	way.set(stall)
	if got := stampOf(t, r.Volume, ino, 10); got != 3 {
		t.Errorf("stamp %d", got)
	}
	if got := n.pinsOf(ino); got != 1 {
		t.Errorf("%d pins, want 1", got)
	}
	over(t, w.pool)
}

// A reader that dies loses its pins with its session.
func TestDeadReader(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	ino, h := w.create(t, "f")
	mustWrite(t, h, stamps(10, 3), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	way := n.path()
	r := mountReader(t, n.open(remote.Config{Share: "s", Reader: true, Address: way.address(), Lease: short}), volume.Config{})
	stampOf(t, r.Volume, ino, 10)
	way.set(stall)
	if got := n.pinsOf(ino); got != 1 {
		t.Errorf("%d pins, want 1", got)
	}
	over(t, r.pool)
	eventually(t, "its pin goes", func() bool { return n.pinsOf(ino) == 0 })
}

// After a restart of the memory node its writers go on, and know of no pin any more;
// readers come again.
func TestReadersAfterRestart(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	ino, h := w.create(t, "f")
	mustWrite(t, h, stamps(10, 3), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	r := mountReader(t, n.open(remote.Config{Share: "s", Reader: true, Heartbeat: often}), volume.Config{})
	if got := stampOf(t, r.Volume, ino, 10); got != 3 {
		t.Errorf("stamp %d", got)
	}
	n.restart()
	if n.pinsOf(ino) != 0 {
		t.Error("a pin of before the restart")
	}
	over(t, r.pool)
	mustWrite(t, h, stamps(10, 4), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	r = mountReader(t, n.open(remote.Config{Share: "s", Reader: true}), volume.Config{})
	if got := stampOf(t, r.Volume, ino, 10); got != 4 {
		t.Errorf("stamp %d", got)
	}
}

// kernel counts what a volume makes the kernel forget.
type kernel struct {
	volume.Invalidator // nil: nothing else is called
	mu                 sync.Mutex
	forgotten          map[namespace.Ino]int
}

func (k *kernel) Content(ino namespace.Ino) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgotten[ino]++
	return nil
}

func (k *kernel) Range(namespace.Ino, int64, int64) error { return nil }
func (k *kernel) Attr(namespace.Ino) error                { return nil }

func (k *kernel) of(ino namespace.Ino) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.forgotten[ino]
}

// A reader goes on after a restart of the memory node. A file that changed meanwhile
// shows its newest epoch, and the kernel forgets the old one; one that did not is as it
// was. Who reads while the memory node is away waits.
func TestReaderOutlivesRestart(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	const pages = 40
	write := func(h *volume.Handle, x uint64) {
		t.Helper()
		mustWrite(t, h, stamps(pages, x), 0)
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	moving, h := w.create(t, "moving")
	still, other := w.create(t, "still")
	write(h, 1)
	write(other, 1)
	way := n.path()
	m, r := mountOutliving(t, way, rdmacache.NewPages(0)) // nothing: reads have to wait
	k := &kernel{forgotten: make(map[namespace.Ino]int)}
	m.SetInvalidator(k)
	for round := range uint64(3) {
		for _, ino := range []namespace.Ino{moving, still} {
			if got := stampOf(t, m.Volume, ino, pages); got != 1+round && ino == moving || got != 1 && ino == still {
				t.Errorf("round %d: file %d has stamp %d", round, ino, got)
			}
		}
		way.set(down)
		way.cut()
		n.restart()
		open, err := m.Open(ctx, moving)
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			_, err := open.Read(ctx, make([]byte, pages*region.PageSize), 0)
			read <- err
		}()
		// Slots of the reader's epoch are free now, and used again.
		for range 3 {
			write(h, 100+round)
		}
		write(h, 2+round)
		way.set(fair)
		if err := <-read; err != nil { // pages of both epochs, as during a refresh
			t.Errorf("round %d: who read while the memory node was away got %v", round, err)
		}
		open.Release(ctx)
		eventually(t, "the kernel forgets the old epoch", func() bool { return k.of(moving) == 2*int(round+1) }) // twice each
		if got := stampOf(t, m.Volume, moving, pages); got != 2+round {
			t.Errorf("round %d: then stamp %d", round, got)
		}
		if n.pinsOf(still) != 1 || r.Renewed() != int(round)+1 {
			t.Errorf("round %d: %d pins of a file that is shown, session %d", round, n.pinsOf(still), r.Renewed())
		}
	}
	if k.of(still) != 0 {
		t.Error("the kernel forgot a file that did not change")
	}
}

// A waitingKernel forgets only when a read that is under way has ended: its pages are
// locked.
type waitingKernel struct {
	kernel
	forget func() // called once
	once   sync.Once
}

func (k *waitingKernel) Content(ino namespace.Ino) error {
	k.once.Do(k.forget)
	return k.kernel.Content(ino)
}

func (k *waitingKernel) Range(ino namespace.Ino, _, _ int64) error {
	k.once.Do(k.forget)
	return nil
}

// The memory node restarts in the middle of a refresh, which waits for a read, which
// waits for the session to be made again. That waits for neither.
func TestRestartDuringARefresh(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	const pages = 40
	ino, h := w.create(t, "f")
	write := func(x uint64) {
		t.Helper()
		mustWrite(t, h, stamps(pages, x), 0)
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	way := n.path()
	m, r := mountOutliving(t, way, rdmacache.NewPages(0))
	k := &waitingKernel{kernel: kernel{forgotten: make(map[namespace.Ino]int)}}
	k.forget = func() {
		way.set(down)
		way.cut()
		n.restart()
		h, err := m.Open(ctx, ino)
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Release(ctx)
		read := make(chan error, 1)
		go func() {
			_, err := h.Read(ctx, make([]byte, pages*region.PageSize), 0)
			read <- err
		}()
		way.set(fair)
		if err := <-read; err != nil {
			t.Errorf("who read while the memory node was away got %v", err)
		}
	}
	m.SetInvalidator(k)
	if got := stampOf(t, m.Volume, ino, pages); got != 1 {
		t.Fatalf("stamp %d", got)
	}
	write(2)
	refreshed(t, m.Volume, ino)
	if got := stampOf(t, m.Volume, ino, pages); got != 2 {
		t.Errorf("stamp %d after the refresh", got)
	}
	if n.pinsOf(ino) != 1 || r.Renewed() != 1 {
		t.Errorf("%d pins, session %d", n.pinsOf(ino), r.Renewed())
	}
	for x := uint64(3); x < 6; x++ {
		write(x)
		refreshed(t, m.Volume, ino)
		if got := stampOf(t, m.Volume, ino, pages); got != x {
			t.Errorf("then stamp %d, want %d", got, x)
		}
	}
}

// mountOutliving mounts share s as a reader that opens sessions again, until the end of
// the test.
func mountOutliving(t *testing.T, way path, keep *rdmacache.Pages) (*mounted, *remote.Reader) {
	t.Helper()
	r, err := remote.DialReader(ctx, remote.Config{Address: way.address(), Share: "s", Heartbeat: often})
	if err != nil {
		t.Fatal(err)
	}
	m := mountWith(t, r.Pool, volume.Config{Pool: r, Conn: r.Conn(), Shared: r, ReadOnly: true, Pages: keep})
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(running, m.Renew)
	}()
	t.Cleanup(func() {
		m.stop()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		stop()
		<-ended
	})
	return m, r
}

// Readers that come, refresh and go while the writer commits see whole stamps that
// never go back.
func TestReadersAtRandom(t *testing.T) {
	n := newNode(t, long)
	w := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	watching(t, w)
	const pages = 24
	ino, h := w.create(t, "f")
	mustWrite(t, h, stamps(pages, 1), 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := remote.Dial(ctx, remote.Config{Address: n.control, Share: "s", Reader: true})
				if err != nil {
					t.Error(err)
					return
				}
				r := mountReader(t, p, volume.Config{})
				for range 5 {
					x := stampOf(t, r.Volume, ino, pages)
					if x < last {
						t.Errorf("stamp %d after %d", x, last)
					}
					last = x
					refreshed(t, r.Volume, ino)
				}
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for x := uint64(2); x < 120; x++ {
		b := stamps(pages, x)
		if _, err := h.Write(ctx, b, 0, rdmacache.FromWrite); err != nil {
			t.Fatal(err)
		}
		if err := h.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	eventually(t, "no pins", func() bool { return n.pinsOf(ino) == 0 })
	report, err := w.Check(ctx, 0, nil)
	if err != nil || report.Found != 0 {
		t.Errorf("check: %+v, %v", report.Problems, err)
	}
	if got := stampOf(t, w.Volume, ino, pages); got != 119 {
		t.Errorf("stamp %d", got)
	}
}
