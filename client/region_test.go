package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// Goroutines store at random, through barriers with and without extra pages; what
// comes through the ring is the memory at each barrier, byte for byte.
//
// Was seen to fail with copies made before the scan, without the pages of a
// barrier that was called off, and without the scan after the last one parked.
func TestExact(t *testing.T) {
	const pages, writers = 3000, 3
	r, d := attached(t, pages*pageSize-100, Options{Frames: 64})
	d.tracks()
	mem := r.Bytes()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range writers {
		rng := rand.New(rand.NewPCG(*seed, uint64(i)))
		wg.Go(func() {
			p := r.Join(fmt.Sprint("writer ", i))
			defer p.Leave()
			for !stop.Load() {
				for range rng.IntN(400) { // each in bytes of its own
					at := rng.IntN(pages-1)*pageSize + rng.IntN(pageSize/8/writers)*8*writers + 8*i
					binary.LittleEndian.PutUint64(mem[at:], rng.Uint64())
				}
				if err := p.RestartPoint(); err != nil {
					t.Error(err)
					return
				}
				if rng.IntN(4) == 0 {
					p.Allow()
					time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
					if err := p.Prevent(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(*seed, 99))
	rounds := 0
	for i := range 150 {
		d.due(patience)
		want[*wire.Ready](d)
		if i%5 == 4 { // called off: nothing that was scanned may be forgotten
			d.send(&wire.Release{N: d.n, Errno: unix.ETIMEDOUT})
			continue
		}
		extra := []uint64{uint64(rng.IntN(pages)), pages + 5, 1 << 60}
		rounds += int(d.collect(&wire.Go{N: d.n, Epoch: d.epoch + 1, Pages: extra}).Rounds)
		d.same(mem)
		d.release()
	}
	stop.Store(true)
	wg.Wait()
	if rounds == 0 {
		t.Error("no page was copied before a barrier")
	}
}

// Stores of one page, of many, to the file's end, to what it grew by: all of them
// and no other page come, in the barrier after.
func TestPages(t *testing.T) {
	r, d := attached(t, 2000*pageSize, Options{})
	d.tracks()
	touch := func(pages ...int) {
		for _, no := range pages {
			r.Bytes()[no*pageSize]++
		}
	}
	got := func(extra ...uint64) int {
		clear(d.image)
		d.park(extra...)
		d.release()
		return len(d.image)
	}
	if n := got(); n != 0 {
		t.Errorf("nothing stored: got %d pages", n)
	}
	touch(0, 7, 1999)
	if n := got(); n != 3 || d.image[7] == nil || d.image[1999] == nil {
		t.Errorf("got %d pages, want 3", n)
	}
	if n := got(5, 2500); n != 1 || d.image[5] == nil {
		t.Errorf("got %d pages, want the extra one", n)
	}
	if r.Bytes()[3*pageSize]+r.Bytes()[1000*pageSize] != 0 { // loads only
		t.Error("these pages are zero")
	}
	if n := got(); n != 0 {
		t.Errorf("only loaded: got %d pages", n)
	}
	if err := r.Grow(2001*pageSize + 1); err != nil {
		t.Fatal(err)
	}
	if n := len(r.Bytes()); n != 2001*pageSize+1 {
		t.Fatalf("%d bytes", n)
	}
	touch(2000, 2001)
	if n := got(); n != 2 || d.image[2000] == nil || d.image[2001] == nil {
		t.Errorf("grown: got %d pages, want 2", n)
	}
	// Far, and by another process: all that is new may have been stored to.
	if err := r.Grow(100 << 20); err != nil {
		t.Fatal(err)
	}
	const far = 100 << 20 / pageSize
	touch(far-1, 3)
	if n := got(); n != 2 || d.image[far-1] == nil {
		t.Errorf("grown by 92 MiB: got %d pages, want 2", n)
	}
	if err := r.file.Truncate(200 << 20); err != nil {
		t.Fatal(err)
	}
	touch(2*far - 1)
	if n := got(); n > 40<<20/pageSize || d.image[2*far-1] == nil {
		t.Errorf("grown by another: got %d pages", n)
	}
	touch(far, 2*far-1)
	if n := got(); n != 2 {
		t.Errorf("grown by another, again: got %d pages, want 2", n)
	}
	if err := r.Grow(100); err != nil || r.Size() != 200<<20 {
		t.Errorf("grow to less: %v, %d bytes", err, r.Size())
	}
	if err := r.Grow(2 << 30); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("grow beyond the reserve: %v", err)
	}
	if err := r.file.Truncate(pageSize); err != nil {
		t.Fatal(err)
	}
	touch(0)
	if n := got(1999); n != 1 {
		t.Errorf("truncated: got %d pages", n)
	}
}

// Who is out of time copies no more ahead of the barrier, and what is left at it.
func TestAhead(t *testing.T) {
	const pages = 1000
	r, d := attached(t, pages*pageSize, Options{})
	h := &helper{r: r}
	for no := range uint64(pages) {
		h.scanned = append(h.scanned, no)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	err := h.copyAhead(over)
	d.take()
	if left := len(h.scanned); !errors.Is(err, context.Canceled) || left == 0 || left+len(d.image) != pages {
		t.Errorf("%v; %d pages were copied and %d are left, of %d", err, len(d.image), left, pages)
	}
	errno := h.finish(t.Context(), nil)
	if d.take(); errno != 0 || len(h.scanned) > 0 || len(d.image) != pages {
		t.Errorf("%v; %d pages were copied and %d are left, of %d", errno, len(d.image), len(h.scanned), pages)
	}
}

// Who does not come is named, and the next barrier waits for it again.
func TestLate(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	on, late := r.Join("on time"), r.Join("a name that is too long")
	on.Allow()
	d.due(20 * time.Millisecond)
	m := want[*wire.Late](d)
	if m.N != d.n || m.TID != late.id || m.Name != "a name that is " {
		t.Errorf("got %+v", m)
	}
	d.send(&wire.Release{N: d.n, Errno: unix.ETIMEDOUT})
	if err := late.RestartPoint(); err != nil { // of the barrier that is over
		t.Error(err)
	}
	if err := on.Prevent(); err != nil {
		t.Error(err)
	}
	d.due(20 * time.Millisecond)
	if m := want[*wire.Late](d); m.TID != late.id && m.TID != on.id {
		t.Errorf("got %+v", m)
	}
	d.send(&wire.Release{N: d.n, Errno: unix.ETIMEDOUT})
	late.Leave()
	on.Leave()
	d.barrier()
}

// After a rollback everybody hears of it once, wherever it is.
func TestLost(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	parked, allowed := r.Join("parked"), r.Join("allowed")
	allowed.Allow()
	waits := make(chan error, 1)
	lost := r.Epoch()
	go func() { waits <- r.WaitDurable(t.Context(), lost) }()
	results := make(chan error, 1)
	go func() { // until the rollback
		for {
			if err := parked.RestartPoint(); err != nil {
				results <- err
				return
			}
		}
	}()
	r.Bytes()[0]++ // scanned by the barrier, and then of no memory that is there
	d.due(patience)
	want[*wire.Ready](d)
	d.send(&wire.Lost{Errno: unix.EOWNERDEAD, Epoch: d.epoch})
	d.send(&wire.Release{N: d.n, Errno: unix.EOWNERDEAD, Epoch: d.epoch})
	if err := <-results; !errors.Is(err, ErrLost) || !errors.Is(err, unix.EOWNERDEAD) {
		t.Errorf("parked: got %v", err)
	}
	if err := allowed.Prevent(); !errors.Is(err, ErrLost) {
		t.Errorf("allowed: got %v", err)
	}
	if err := <-waits; !errors.Is(err, ErrLost) {
		t.Errorf("wait: got %v", err)
	}
	for _, p := range []*Participant{parked, allowed, r.Join("new")} {
		if err := p.RestartPoint(); err != nil {
			t.Errorf("%s, again: %v", p.name, err)
		}
		p.Leave()
	}
	again := r.Epoch()
	d.barrier()
	if err := r.WaitDurable(t.Context(), again); err != nil {
		t.Error(err)
	}
	if err := r.WaitDurable(t.Context(), lost); !errors.Is(err, ErrLost) { // for ever
		t.Errorf("after an epoch: got %v", err)
	}
	if len(d.image) != 0 {
		t.Errorf("%d pages of a lost epoch came", len(d.image))
	}
}

// What Checkpoint and WaitDurable return.
func TestCheckpoint(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	p := r.Join("p")
	defer p.Leave()
	type answer struct {
		id  epoch.ID
		err error
	}
	answers := make(chan answer, 1)
	ask := func(ctx context.Context) *wire.Request {
		go func() {
			id, err := p.Checkpoint(ctx)
			answers <- answer{id, err}
		}()
		return want[*wire.Request](d)
	}
	q := ask(t.Context())
	d.barrier()
	d.send(&wire.Result{ID: q.ID, Epoch: d.epoch})
	if a := <-answers; a.err != nil || a.id != epoch.ID(d.epoch) || r.Committed() != a.id || r.Epoch() != a.id+1 {
		t.Errorf("got %+v; committed %d, open %d", a, r.Committed(), r.Epoch())
	}
	// Nothing was stored in the next one: the daemon uses its number again.
	open := r.Epoch()
	q = ask(t.Context())
	d.park()
	d.send(&wire.Release{N: d.n, Epoch: d.epoch + 1})
	d.sealed = d.n
	d.send(&wire.Committed{Epoch: d.epoch})
	d.send(&wire.Result{ID: q.ID, Epoch: d.epoch})
	if a := <-answers; a.err != nil || a.id != open {
		t.Errorf("got %+v, want epoch %d", a, open)
	}
	if err := r.WaitDurable(t.Context(), open); err != nil {
		t.Error(err)
	}
	// A seal that did not commit is covered by the next.
	open = r.Epoch()
	p.Allow()
	d.park()
	d.send(&wire.Release{N: d.n, Errno: unix.ENOSPC})
	d.sealed = d.n
	if err := p.Prevent(); err != nil {
		t.Error(err)
	}
	q = ask(t.Context())
	d.barrier()
	d.send(&wire.Result{ID: q.ID, Epoch: d.epoch})
	if a := <-answers; a.err != nil || a.id != open+1 || r.WaitDurable(t.Context(), open) != nil {
		t.Errorf("got %+v, want epoch %d", a, open+1)
	}
	for _, c := range []struct {
		result wire.Result
		want   error
	}{
		{wire.Result{Errno: unix.ETIMEDOUT, LateTID: 9}, ErrCalledOff},
		{wire.Result{Errno: unix.ETIMEDOUT}, ErrCalledOff},
		{wire.Result{Errno: unix.ENOSPC}, unix.ENOSPC},
		{wire.Result{Errno: unix.EIO}, ErrGone},
		{wire.Result{Errno: unix.EOWNERDEAD}, ErrLost},
	} {
		q := ask(t.Context())
		d.send(&wire.Result{ID: 99}) // nobody's
		c.result.ID = q.ID
		d.send(&c.result)
		if a := <-answers; !errors.Is(a.err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.result, a.err, c.want)
		}
	}
	// The daemon hears of the caller's deadline, and gets less: the answer takes time.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	if q := ask(ctx); q.Timeout == 0 || q.Timeout > uint64(patience*3/4) {
		t.Errorf("the daemon was given %d ns", q.Timeout)
	}
	cancel()
	if a := <-answers; !errors.Is(a.err, context.Canceled) {
		t.Errorf("got %v", a.err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := r.WaitDurable(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if a, err := p.Checkpoint(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after its deadline: got epoch %d, %v", a, err)
	}
}

// The epoch that a participant asks for is the one that its stores commit as.
func TestSole(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	p := r.Join("p")
	defer p.Leave()
	before := r.Epoch()
	on := make(chan error, 1)
	go func() {
		for r.Epoch() == before {
			if err := p.RestartPoint(); err != nil {
				on <- err
				return
			}
		}
		on <- nil
	}()
	d.due(patience)
	want[*wire.Ready](d)
	d.collect(&wire.Go{N: d.n, Epoch: d.epoch + 1, Sole: true})
	if err := <-on; err != nil { // no Release yet
		t.Error(err)
	}
	if got := r.Epoch(); got != before+1 {
		t.Errorf("open epoch %d, want %d", got, before+1)
	}
	d.release()
}

// After the daemon's end nobody waits any more, and everybody hears of it.
func TestGone(t *testing.T) {
	for name, end := range map[string]func(*daemon){
		"hangs up":  func(d *daemon) { _ = d.conn.CloseWrite() },
		"says so":   func(d *daemon) { d.send(&wire.Gone{Errno: unix.EIO}) },
		"nonsense":  func(d *daemon) { _, _ = d.conn.Write([]byte("nonsense")) },
		"not to us": func(d *daemon) { d.send(&wire.Ready{N: 1}) },
		"early GO":  func(d *daemon) { d.send(&wire.Go{N: d.n + 1, Epoch: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			r, d := attached(t, pageSize, Options{})
			var calls [4]chan error
			start := func(i int, f func() error) {
				calls[i] = make(chan error, 1)
				go func() { calls[i] <- f() }()
			}
			p, q := r.Join("parked"), r.Join("allowed")
			q.Allow()
			d.due(patience)
			start(0, func() error { // in the barrier, and then again
				for {
					if err := p.RestartPoint(); err != nil {
						return errors.Join(err, p.RestartPoint())
					}
				}
			})
			want[*wire.Ready](d)
			start(1, q.Prevent)
			start(2, func() error { return r.WaitDurable(t.Context(), 1000) })
			start(3, func() error { _, err := r.Checkpoint(t.Context()); return err })
			want[*wire.Request](d)
			if name == "early GO" {
				d.n++
			}
			end(d)
			for i, c := range calls {
				if err := <-c; !errors.Is(err, ErrGone) {
					t.Errorf("call %d: got %v", i, err)
				}
			}
			for _, p := range []*Participant{p, q, r.Join("new")} {
				if err := p.RestartPoint(); !errors.Is(err, ErrGone) {
					t.Errorf("%s: got %v", p.name, err)
				}
				p.Leave()
			}
			if err := r.Err(); !errors.Is(err, ErrGone) {
				t.Errorf("got %v", err)
			}
			if _, err := r.Checkpoint(t.Context()); !errors.Is(err, ErrGone) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A page that cannot be read ends the region, not the program.
func TestFault(t *testing.T) {
	r, d := attached(t, 2*pageSize, Options{})
	d.due(patience)
	want[*wire.Ready](d)
	if err := r.file.Truncate(pageSize); err != nil {
		t.Fatal(err)
	}
	// What a truncation between the look at the size and the copy does.
	h := helper{r: r}
	if err := h.put(t.Context(), []uint64{1}); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}
}

func TestClose(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	waits := make(chan error, 2)
	go func() { waits <- r.WaitDurable(t.Context(), 1000) }()
	go func() { _, err := r.Checkpoint(t.Context()); waits <- err }()
	want[*wire.Request](d)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	want[*wire.Detach](d)
	for range 2 {
		if err := <-waits; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := r.Checkpoint(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// Without tracking the daemon drains; the member does what it says.
func TestDrain(t *testing.T) {
	r, d := attached(t, pageSize, Options{})
	d.due(patience)
	want[*wire.Ready](d)
	d.send(&wire.Drain{N: d.n})
	if m := want[*wire.Drained](d); m.N != d.n || m.Errno != 0 {
		t.Errorf("got %+v", m)
	}
	d.collect(&wire.Go{N: d.n, Epoch: d.epoch + 1})
	d.release()
	// A scan that fails is told.
	d.tracks()
	_ = unix.Close(r.helper.track.pagemap) // the helper rests between barriers
	r.helper.track.pagemap = -1
	d.due(patience)
	want[*wire.Untracked](d)
	for m := d.next(); ; m = d.next() {
		if _, ok := m.(*wire.Untracked); !ok {
			break // Ready
		}
	}
}

func TestRefused(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := Open(file.Name(), Options{}); !errors.Is(err, ErrNotAttachable) {
		t.Errorf("no mount: got %v", err)
	}
	if _, err := Open(file.Name()+"x", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if _, err := attach(file, place{"/nowhere", 1}, Options{}); !errors.Is(err, ErrNotAttachable) {
		t.Errorf("no socket: got %v", err)
	}
	if err := file.Truncate(10 * pageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := attach(file, place{"/nowhere", 1}, Options{Reserve: pageSize}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("small reserve: got %v", err)
	}
	if _, err := attach(file, place{"/nowhere", 1}, Options{Frames: 65}); err == nil || !strings.Contains(err.Error(), "65") {
		t.Errorf("65 frames: got %v", err)
	}
}

// A file with a heap is mapped where that wants to be, others at the same place
// each time, if that is free.
func TestAddress(t *testing.T) {
	header := func(base uint64) []byte {
		h := make([]byte, pageSize)
		copy(h, "RPMHEAP\x00")
		h[8] = 1
		binary.LittleEndian.PutUint64(h[16:], base)
		binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], crc32.MakeTable(crc32.Castagnoli)))
		return h
	}
	const asked = firstAddress + 200<<36 + mapAlign
	bad := header(asked)
	bad[17]++
	for name, c := range map[string]struct {
		page []byte
		at   uint64 // 0: an error
	}{
		"empty":           {nil, firstAddress + 7<<36},
		"no heap":         {make([]byte, pageSize), firstAddress + 7<<36},
		"heap":            {header(asked), asked},
		"damaged":         {bad, firstAddress + 7<<36},
		"heap, unaligned": {header(asked + pageSize), 0},
		"heap, kernel":    {header(1 << 62), 0},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(c.page); err != nil {
			t.Fatal(err)
		}
		mem, err := mapFile(file, 1<<30, 256+7)
		if c.at == 0 {
			if err == nil {
				t.Errorf("%s: mapped", name)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := uint64(uintptr(unsafe.Pointer(&mem[0]))); got != c.at {
			t.Errorf("%s: mapped at %#x, want %#x", name, got, c.at)
		}
		second, err := mapFile(file, 1<<30, 7)
		if name == "heap" {
			if err == nil {
				t.Error("a heap mapped twice")
			}
		} else if err != nil || uint64(uintptr(unsafe.Pointer(&second[0]))) != c.at+1<<36 {
			t.Errorf("%s: the next: %v", name, err)
		}
		for _, m := range [][]byte{mem, second} {
			if m != nil {
				if err := unmap(m); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func BenchmarkRestartPoint(b *testing.B) {
	r := &Region{}
	r.threads.init(3)
	p := r.Join("p")
	for b.Loop() {
		if err := p.RestartPoint(); err != nil {
			b.Fatal(err)
		}
	}
}
