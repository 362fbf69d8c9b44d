package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A reader is one session of a node that reads a share beside its writers: a read-only
// mount without a kernel. It makes one call at a time, as a tenure does. When its session
// is lost the call is interrupted, and the session opened again.
type reader struct {
	w      *world
	rng    *rand.Rand
	host   *host
	share  *share
	pool   *remote.Reader
	volume *volume.Volume
	seen   map[string]uint64 // the newest epoch of every file that the node saw, in all its lives
	files  map[string]*shown
	stop   context.CancelFunc // ends what keeps the session going

	turn chan struct{} // full while a call is under way

	mu        sync.Mutex         // guards the field below
	interrupt context.CancelFunc // ends the call that is under way
}

// shown is a file as a reader shows it.
type shown struct {
	handle  *volume.Handle
	stamp   uint64
	renewed int  // sessions lost when it was looked at
	known   bool // it was looked at, and not refreshed since
}

// read is a node that reads: one session after the other, as compute is.
func (w *world) read(rng *rand.Rand, name string) {
	seen := make(map[*share]map[string]uint64)
	for _, s := range w.shares {
		seen[s] = make(map[string]uint64)
	}
	for life := 0; !w.ended(); life++ {
		h := w.net.newCompute(fmt.Sprintf("%s.%d", name, life))
		w.add(h)
		s := w.shares[rng.IntN(len(w.shares))]
		if r, _ := w.openReader(rng, h, s, seen[s]); r != nil {
			for steps := 3 + rng.IntN(25); steps > 0 && !w.ended() && !h.isDead(); steps-- {
				r.step()
				time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
			}
			if rng.IntN(2) == 0 {
				r.leave()
			} else {
				r.die()
			}
		}
		w.remove(h)
		h.hold(false, false)
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
}

func (w *world) openReader(rng *rand.Rand, h *host, s *share, seen map[string]uint64) (*reader, error) {
	cfg := remote.Config{Address: fmt.Sprintf("node:%d", controlPort), Share: s.name, Holder: h.name, Dial: h.dial}
	h.rdma(&cfg, rng)
	cfg.Log = w.logOf(h)
	p, err := remote.DialReader(ctx, cfg)
	if err != nil {
		w.note("%s: %s: open to read: %v", h.name, s.name, err)
		return nil, err
	}
	vcfg := volume.Config{Pool: p, Conn: p.Conn(), Shared: p, ReadOnly: true}
	if rng.IntN(2) == 0 {
		vcfg.Pages = rdmacache.NewPages(64 * region.PageSize)
	}
	r := &reader{
		w: w, rng: rng, host: h, share: s, pool: p, volume: volume.New(vcfg), seen: seen,
		files: make(map[string]*shown), turn: make(chan struct{}, 1),
	}
	w.counts.readers.Add(1)
	w.note("%s: %s: opened to read", h.name, s.name)
	var run context.Context
	run, r.stop = context.WithCancel(ctx)
	w.background.Go(func() { p.Run(run, r.renew) })
	return r, nil
}

// renew is volume.Renew between two calls.
func (r *reader) renew(ctx context.Context) (then func()) {
	r.mu.Lock()
	if r.interrupt != nil {
		r.interrupt()
	}
	r.mu.Unlock()
	r.turn <- struct{}{}
	r.w.counts.renewals.Add(1)
	r.w.note("%s: %s: another session", r.host.name, r.share.name)
	kernel := r.volume.Renew(ctx)
	return func() {
		kernel()
		<-r.turn
	}
}

// call makes a call. What faults lead to is no failure; wrong bytes are.
func (r *reader) call(what string, fn func(context.Context) error) error {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	ctx, cancel := context.WithTimeout(ctx, 4*r.w.lease)
	defer cancel()
	r.mu.Lock()
	r.interrupt = cancel
	r.mu.Unlock()
	err := fn(ctx)
	if err != nil {
		r.w.note("%s: %s: %s: %v", r.host.name, r.share.name, what, err)
	}
	if errors.Is(err, region.ErrCorrupt) {
		r.w.fail("%s: %s: %s: %v", r.host.name, r.share.name, what, err)
	}
	return err
}

// step does one random thing.
func (r *reader) step() {
	names := slices.Sorted(maps.Keys(r.files))
	if len(names) == 0 || r.rng.IntN(6) == 0 {
		r.openOne()
		return
	}
	name := names[r.rng.IntN(len(names))]
	switch k := r.rng.IntN(10); {
	case k < 3:
		_ = r.look(name, 0)
	case k < 8:
		_ = r.refresh(name)
	default:
		r.refreshAll(names)
	}
}

// openOne opens a file that may not be open yet.
func (r *reader) openOne() {
	r.share.mu.Lock()
	names := slices.Sorted(maps.Keys(r.share.files))
	r.share.mu.Unlock()
	if len(names) > 0 {
		_ = r.open(names[r.rng.IntN(len(names))])
	}
}

// open opens a file, and looks at it.
func (r *reader) open(name string) error {
	if r.files[name] != nil {
		return nil
	}
	r.share.mu.Lock()
	made := r.share.made[name]
	r.share.mu.Unlock()
	f := &shown{}
	err := r.call("open "+name, func(ctx context.Context) error {
		a, err := r.volume.Lookup(ctx, namespace.Root, name)
		if errors.Is(err, namespace.ErrNotExist) && made {
			r.w.fail("%s: not durable: %s does not see file %s", r.share.name, r.host.name, name)
		}
		if err == nil {
			f.handle, err = r.volume.Open(ctx, a.Ino)
		}
		return err
	})
	if err != nil {
		return err
	}
	r.files[name] = f
	return r.refresh(name)
}

// floor is an epoch of a file that will always be found, or a later one.
func (s *share) floor(name string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[name].epochs[0]
}

// refresh makes a file show its newest epoch. That is at least what was acknowledged when
// it began.
func (r *reader) refresh(name string) error {
	f, floor := r.files[name], r.share.floor(name)
	f.known = false
	err := r.call("refresh "+name, func(ctx context.Context) error {
		_, err := r.volume.Refresh(ctx, f.handle.Ino())
		return err
	})
	if err != nil {
		return err
	}
	return r.look(name, floor)
}

func (r *reader) refreshAll(names []string) {
	floors := make([]uint64, len(names))
	for i, name := range names {
		floors[i] = r.share.floor(name)
		r.files[name].known = false
	}
	if r.call("refresh all", r.volume.RefreshAll) != nil {
		return
	}
	for i, name := range names {
		_ = r.look(name, floors[i])
	}
}

// look reads a file, and checks what it sees.
func (r *reader) look(name string, floor uint64) error {
	f := r.files[name]
	b := make([]byte, (maxPages+1)*region.PageSize)
	renewed := 0
	err := r.call("read "+name, func(ctx context.Context) error {
		renewed = r.pool.Renewed()
		n, err := f.handle.Read(ctx, b, 0)
		b = b[:n]
		return err
	})
	if err != nil {
		return err
	}
	got, err := stampOf(b)
	r.share.mu.Lock()
	defer r.share.mu.Unlock()
	switch {
	case err != nil:
	case got < floor:
		err = fmt.Errorf("sees epoch %d, but %d was acknowledged before it looked", got, floor)
	case got < r.seen[name]:
		err = fmt.Errorf("sees epoch %d, after it saw %d", got, r.seen[name])
	case f.known && f.renewed == renewed && f.stamp != got:
		err = fmt.Errorf("sees epoch %d, which it did not ask for, after %d", got, f.stamp)
	default:
		err = r.share.files[name].acknowledge(got, "seen by a reader")
	}
	if err != nil {
		r.w.fail("%s: %s: %s: %v", r.host.name, r.share.name, name, err)
		return err
	}
	r.w.note("%s: %s: %s: sees epoch %d", r.host.name, r.share.name, name, got)
	r.w.counts.looks.Add(1)
	if got > r.seen[name] {
		r.w.counts.fresh.Add(1)
	}
	r.seen[name] = got
	f.stamp, f.renewed, f.known = got, renewed, true
	return nil
}

// leave ends the session as an unmount does.
func (r *reader) leave() {
	r.w.counts.leaves.Add(1)
	_ = r.call("unmount", func(ctx context.Context) error {
		for _, f := range r.files {
			f.handle.Release(ctx)
		}
		return r.volume.Close(ctx)
	})
	r.stop()
	if err := r.pool.Close(); err != nil {
		r.w.note("%s: %s: close: %v", r.host.name, r.share.name, err)
	}
}

// die ends it as the death of the node does: nothing is said.
func (r *reader) die() {
	r.w.counts.deaths.Add(1)
	r.host.crash()
	r.stop()
	r.w.background.Go(func() { _ = r.pool.Close() }) // cannot reach the memory node
}

// readersLeave lets readers look at everything without faults, and die. When their leases
// have run out nothing is kept for them any more.
func (w *world) readersLeave(rng *rand.Rand, kind string) {
	w.machine.gate.cut.Store(-1)
	w.net.slow.Store(false)
	time.Sleep(2 * w.lease) // a power cut that has begun is over, and so are the leases of the dead
	w.net.calm.Store(true)
	if w.failed() {
		return
	}
	w.note("the readers' last look")
	if w.machine.disk.Lost() {
		w.machine.kill(false)
		if err := w.machine.start(w.lease, -1, kind); err != nil {
			w.fail("start the memory node: %v", err)
			return
		}
		time.Sleep(2 * w.lease)
	}
	for _, s := range w.shares {
		if len(s.made) > 0 {
			w.readersLeaveShare(rng, s)
		}
	}
}

// readersLeaveShare has a reader beside a writer that uses its slots again and again.
func (w *world) readersLeaveShare(rng *rand.Rand, s *share) {
	t := w.open(rng, "beside", w.net.newCompute("beside"), s, remote.Config{Steal: true})
	if t == nil || t.recover() != nil {
		w.fail("%s: nobody writes it beside the last reader", s.name)
		return
	}
	defer t.serveReaders()()
	r, err := w.openReader(rng, w.net.newCompute("reader"), s, make(map[string]uint64))
	if err != nil {
		w.fail("%s: the last reader does not open it: %v", s.name, err)
		t.abandon()
		return
	}
	names := slices.Sorted(maps.Keys(t.handles))
	names = names[:min(len(names), 3)]
	for range 4 {
		for _, name := range names {
			if r.open(name) != nil || r.refresh(name) != nil {
				w.fail("%s: the last reader does not see %s", s.name, name)
			}
		}
		for _, name := range names {
			if t.alone(func() error { return t.replace(name) }) != nil || r.look(name, 0) != nil {
				w.fail("%s: %s is not written beside a reader, or not read", s.name, name)
			}
		}
	}
	w.counts.pins.Add(int64(w.pins(s)))
	r.die()
	time.Sleep(2 * w.lease)
	if n := w.pins(s); n > 0 {
		w.fail("%s: %d pins are left of a dead reader", s.name, n)
	}
	_ = t.alone(func() error { t.checkSpace(names); t.end(); return nil })
}

// replace commits the next epoch of a file.
func (t *tenure) replace(name string) error {
	stamp, err := t.store(name)
	if err != nil {
		return err
	}
	return t.commit(name, stamp)
}

// tableSlots is how many slots a file without pins may take beside its pages, for its table
// and its log.
const tableSlots = 24

// checkSpace checks that nothing is kept of these files for readers any more.
func (t *tenure) checkSpace(names []string) {
	t.maintain(4 * time.Second) // a region rests for two until what it replaced is free
	for _, name := range names {
		st, err := t.volume.Stat(ctx, t.handles[name].Ino())
		if used, want := st.GrantedSlots-st.FreeSlots, st.Pages+tableSlots; err != nil || used > want {
			t.w.fail("%s: %s has %d slots in use, want at most %d: %v", t.share.name, name, used, want, err)
		}
	}
}

// pins counts the pins that the memory node keeps of a share's files.
func (w *world) pins(s *share) (n int) {
	top, err := w.machine.pool.Lookup(ctx, namespace.Root, s.name)
	for name := range s.made {
		var a namespace.Inode
		var loc region.Location
		if err == nil {
			a, err = w.machine.pool.Lookup(ctx, top.Ino, name)
		}
		if err == nil {
			loc, err = w.machine.pool.Locate(ctx, region.ID(a.Ino))
		}
		for _, cp := range loc.Checkpoints {
			if cp.Hidden() {
				n++
			}
		}
	}
	if err != nil {
		w.fail("%s: count pins: %v", s.name, err)
	}
	return n
}

// serveReaders does for readers what only the holder of the lease can, until the function
// that it returns is called.
func (t *tenure) serveReaders() (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	t.w.background.Go(func() { _ = t.pool.Watch(ctx, pinner{t}) })
	return cancel
}

// A pinner is the volume of a tenure, between two of its steps.
type pinner struct{ t *tenure }

func (p pinner) PinCommitted(ctx context.Context, ino namespace.Ino) (cp region.Checkpoint, err error) {
	err = p.t.alone(func() error {
		cp, err = p.t.volume.PinCommitted(ctx, ino)
		return err
	})
	return cp, err
}

func (p pinner) UnpinCommitted(ctx context.Context, ino namespace.Ino, e epoch.ID) {
	_ = p.t.alone(func() error { p.t.volume.UnpinCommitted(ctx, ino, e); return nil })
}

func (p pinner) KeepPins(ctx context.Context, pins map[namespace.Ino][]epoch.ID) {
	_ = p.t.alone(func() error { p.t.volume.KeepPins(ctx, pins); return nil })
}
