package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

var ctx = context.Background()

// A tenure is one session of a compute node: a mount without a kernel. Its calls come
// one after the other, but for commits: a mutex that is waited for keeps the clock of a
// synctest bubble from moving, and packages region and volume hold some across the
// network. So what readers want is done between two steps.
type tenure struct {
	w       *world
	rng     *rand.Rand
	name    string
	host    *host
	share   *share
	pool    *remote.Pool
	volume  *volume.Volume
	handles map[string]*volume.Handle
	now     map[string]uint64 // the epoch of every file, as this node has to see it
	turn    chan struct{}     // full while something is under way
}

// errFault ends a tenure that a fault made useless.
var errFault = errors.New("sim: a fault")

// open opens a session, or returns nil.
func (w *world) open(rng *rand.Rand, name string, h *host, s *share, cfg remote.Config) *tenure {
	cfg.Address = fmt.Sprintf("node:%d", controlPort)
	cfg.Share, cfg.Create, cfg.Holder, cfg.Dial = s.name, true, h.name, h.dial
	h.rdma(&cfg, rng)
	cfg.Log = w.logOf(h)
	p, err := remote.Dial(ctx, cfg)
	if err != nil {
		w.note("%s: %s: open: %v", h.name, s.name, err)
		return nil
	}
	t := &tenure{
		w: w, rng: rng, name: name, host: h, share: s, pool: p,
		volume:  volume.New(volume.Config{Pool: p, Conn: p.Conn(), FrameBytes: 16 * region.PageSize}),
		handles: map[string]*volume.Handle{}, now: map[string]uint64{},
		turn: make(chan struct{}, 1),
	}
	w.counts.tenures.Add(1)
	w.counts.over[w.net.path].Add(1)
	w.note("%s: %s: opened, generation %d", h.name, s.name, p.Generation())
	w.granted(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation = max(s.generation, p.Generation())
	return t
}

// fenced says that a later lease of the share was granted, so that this session can
// change nothing any more.
func (t *tenure) fenced() bool {
	t.share.mu.Lock()
	defer t.share.mu.Unlock()
	return t.share.generation > t.pool.Generation()
}

// trouble sorts the error of a call: nil is none, errFault is what a fault may lead
// to, and everything else is reported.
func (t *tenure) trouble(what string, err error) error {
	if err == nil {
		return nil
	}
	t.w.note("%s: %s: %s: %v", t.host.name, t.share.name, what, err)
	if errors.Is(err, region.ErrCorrupt) || errors.Is(err, memnode.ErrCorrupt) || !t.ends() {
		t.w.fail("%s: %s: %s: %v", t.host.name, t.share.name, what, err)
	}
	return errFault
}

// ends tells whether the session is over, which calls may find out a moment before
// itself.
func (t *tenure) ends() bool {
	timer := time.NewTimer(t.pool.Lease())
	defer timer.Stop()
	select {
	case <-t.pool.Done():
	case <-timer.C:
	}
	return errors.Is(t.pool.Err(), rdmacache.ErrFenced)
}

// recover looks at all files as the session finds them.
func (t *tenure) recover() error {
	t.share.mu.Lock()
	names := make([]string, 0, len(t.share.files))
	for name := range t.share.files {
		names = append(names, name)
	}
	t.share.mu.Unlock()
	slices.Sort(names)
	t.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		a, err := t.volume.Lookup(ctx, namespace.Root, name)
		if errors.Is(err, namespace.ErrNotExist) {
			t.share.mu.Lock()
			made := t.share.made[name]
			t.share.mu.Unlock()
			if made && !t.fenced() {
				t.w.fail("%s: not durable: file %s is missing", t.share.name, name)
			}
			continue
		}
		if err := t.trouble("look up "+name, err); err != nil {
			return err
		}
		if t.handles[name], err = t.volume.Open(ctx, a.Ino); err != nil {
			return t.trouble("open "+name, err)
		}
		got, err := t.read(name)
		if err != nil {
			return err
		}
		t.share.mu.Lock()
		if t.share.generation == t.pool.Generation() {
			t.w.note("%s: %s: %s is at epoch %d", t.host.name, t.share.name, name, got)
			t.share.made[name] = true
			h := t.share.files[name]
			if got != h.epochs[0] {
				t.w.unheard()
			}
			if err := h.observe(got); err != nil {
				t.w.fail("%s: %s: %s: %v", t.host.name, t.share.name, name, err)
			}
			t.w.counts.recoveries.Add(1)
		}
		t.now[name] = got
		t.share.mu.Unlock()
	}
	return nil
}

// read returns the one epoch that a file is at.
func (t *tenure) read(name string) (uint64, error) {
	b, err := t.bytes(name)
	if err != nil {
		return 0, err
	}
	stamp, err := stampOf(b)
	if err != nil {
		t.w.fail("%s: %s: %s: %v", t.host.name, t.share.name, name, err)
		return 0, errFault
	}
	return stamp, nil
}

// bytes returns what a file holds.
func (t *tenure) bytes(name string) ([]byte, error) {
	b := make([]byte, (maxPages+1)*region.PageSize)
	n, err := t.handles[name].Read(ctx, b, 0)
	return b[:n], t.trouble("read "+name, err)
}

// alone does something while nothing else is done.
func (t *tenure) alone(fn func() error) error {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	return fn()
}

// work does one random thing, or nothing for a while.
func (t *tenure) work() error {
	if t.rng.IntN(20) == 0 {
		time.Sleep(time.Duration(t.rng.Int64N(int64(2 * t.pool.Lease()))))
		return nil
	}
	return t.alone(t.step)
}

func (t *tenure) step() error {
	names := make([]string, 0, len(t.handles))
	for name := range t.handles {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 || len(names) < 3 && t.rng.IntN(6) == 0 {
		return t.create()
	}
	name := names[t.rng.IntN(len(names))]
	switch k := t.rng.IntN(21); {
	case k < 4:
		return t.commitMany(name)
	case k < 11:
		return t.replace(name)
	case k < 14:
		return t.commitAll(names)
	case k < 16:
		return t.rollBack(name)
	case k < 18:
		got, err := t.read(name)
		if err == nil && got != t.now[name] {
			t.w.fail("%s: %s: %s is at epoch %d, want %d", t.host.name, t.share.name, name, got, t.now[name])
		}
		return err
	case k < 20:
		return t.juggle()
	}
	t.maintain(time.Duration(1+t.rng.IntN(3)) * time.Second)
	return nil
}

func (t *tenure) create() error {
	name := fmt.Sprintf("f%d", t.w.stamp())
	fenced := t.fenced()
	t.share.mu.Lock()
	if !fenced {
		t.share.files[name] = newHistory()
	}
	t.share.mu.Unlock()
	a, err := t.volume.Create(ctx, namespace.Root, name, namespace.Inode{Mode: unix.S_IFREG | 0o644})
	if err := t.trouble("create "+name, err); err != nil {
		return err
	}
	if fenced {
		t.w.fail("%s: %s: not fenced: %s was created after the lease was over", t.host.name, t.share.name, name)
		return errFault
	}
	t.share.mu.Lock()
	t.share.made[name] = true
	t.share.mu.Unlock()
	if t.handles[name], err = t.volume.Open(ctx, a.Ino); err != nil {
		return t.trouble("open "+name, err)
	}
	return nil
}

// store replaces all that a file holds, in the open epoch.
func (t *tenure) store(name string) (uint64, error) {
	stamp := t.w.stamp()
	src := rdmacache.FromWrite
	if t.rng.IntN(2) == 0 {
		src = rdmacache.FromMapping
	}
	if t.rng.IntN(3) == 0 {
		// The slots of what is stored twice are free for the second time.
		if err := t.fill(name, t.w.stamp(), src); err != nil {
			return 0, err
		}
	}
	return stamp, t.fill(name, stamp, src)
}

func (t *tenure) fill(name string, stamp uint64, src rdmacache.Source) error {
	h, b := t.handles[name], content(stamp)
	if err := h.Truncate(ctx, int64(len(b))); err != nil {
		return t.trouble("truncate "+name, err)
	}
	var pieces [][2]int
	for at := 0; at < len(b); {
		n := region.PageSize * (1 + t.rng.IntN(4))
		if t.rng.IntN(4) == 0 {
			n = 8 * (1 + t.rng.IntN(600)) // parts of pages
		}
		n = min(n, len(b)-at)
		pieces = append(pieces, [2]int{at, at + n})
		at += n
	}
	if t.rng.IntN(2) == 0 {
		t.rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	}
	for _, p := range pieces {
		if _, err := h.Write(ctx, b[p[0]:p[1]], int64(p[0]), src); err != nil {
			return t.trouble("write "+name, err)
		}
	}
	return nil
}

// commit commits the open epoch of a file, which is that of stamp.
func (t *tenure) commit(name string, stamp uint64) error {
	t.share.mu.Lock()
	fenced := t.share.generation > t.pool.Generation()
	h := t.share.files[name]
	if !fenced {
		h.try(stamp)
	}
	t.share.mu.Unlock()
	err := t.handles[name].Sync(ctx)
	if err != nil {
		t.w.counts.refused.Add(1)
		return t.trouble(fmt.Sprintf("commit %s epoch %d", name, stamp), err)
	}
	t.share.mu.Lock()
	defer t.share.mu.Unlock()
	t.w.note("%s: %s: %s: epoch %d is acknowledged", t.host.name, t.share.name, name, stamp)
	if fenced {
		t.w.fail("%s: %s: not fenced: %s: epoch %d was committed after the lease was over", t.host.name, t.share.name, name, stamp)
		return errFault
	}
	if err := h.acknowledge(stamp, "acknowledged"); err != nil {
		t.w.fail("%s: %s: %s: %v", t.host.name, t.share.name, name, err)
	}
	t.w.counts.epochs.Add(1)
	t.now[name] = max(t.now[name], stamp) // a later one may have been acknowledged
	return nil
}

// commitAll commits epochs of several files at the same time.
func (t *tenure) commitAll(names []string) error {
	stamps := make([]uint64, len(names))
	for i, name := range names {
		var err error
		if stamps[i], err = t.store(name); err != nil {
			return err
		}
	}
	errs := make(chan error, len(names))
	for i, name := range names {
		go func() { errs <- t.commit(name, stamps[i]) }()
	}
	var err error
	for range names {
		err = errors.Join(err, <-errs)
	}
	return err
}

// commitMany has several epochs of one file in flight.
func (t *tenure) commitMany(name string) error {
	h, n := t.handles[name], 2+t.rng.IntN(3)
	errs := make(chan error, n)
	begun := 0
	var failed error
	for ; begun < n; begun++ {
		stamp, err := t.store(name)
		if err != nil {
			failed = err
			break
		}
		before := h.InFlight()
		over := make(chan struct{})
		go func() {
			defer close(over)
			errs <- t.commit(name, stamp)
		}()
		// Until it is sent it holds locks that the next store may wait for.
		for sent := false; !sent; {
			select {
			case <-over:
				sent = true
			case <-time.After(100 * time.Microsecond):
				sent = h.InFlight() > before
			}
		}
		if before > 0 && h.InFlight() > 1 {
			t.w.counts.together.Add(1)
		}
	}
	for range begun {
		failed = errors.Join(failed, <-errs)
	}
	return failed
}

// rollBack stores through a mapping and closes the file without a commit.
func (t *tenure) rollBack(name string) error {
	stamp := t.w.stamp()
	b := content(stamp)
	b = b[:min(len(b), sizeOf(t.now[name]))]
	if len(b) > 0 {
		if _, err := t.handles[name].Write(ctx, b, 0, rdmacache.FromMapping); err != nil {
			return t.trouble("write "+name, err)
		}
	}
	ino := t.handles[name].Ino()
	t.handles[name].Release(ctx)
	delete(t.handles, name)
	var err error
	if t.handles[name], err = t.volume.Open(ctx, ino); err != nil {
		delete(t.handles, name)
		return t.trouble("open "+name, err)
	}
	if b, err = t.bytes(name); err == nil && !bytes.Equal(b, content(t.now[name])) {
		// A session that is over does not roll back: its mount has ended.
		err = t.trouble("roll "+name+" back", errors.New("what was stored is still there"))
	}
	return err
}

// maintain lets the volume do its background work for a while.
func (t *tenure) maintain(d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_ = t.volume.Run(ctx) // what fails is logged, and shows later
}

// end ends the tenure as an unmount does.
func (t *tenure) end() {
	for _, h := range t.handles {
		h.Release(ctx)
	}
	if err := t.trouble("unmount", t.volume.Close(ctx)); err != nil {
		t.abandon()
		return
	}
	if err := t.pool.Close(); err != nil {
		t.w.note("%s: %s: close: %v", t.host.name, t.share.name, err)
	}
}

// abandon ends it as the death of the compute node does: nothing is said.
func (t *tenure) abandon() {
	t.host.crash()
	t.w.background.Go(func() { _ = t.pool.Close() }) // cannot reach the memory node
}
