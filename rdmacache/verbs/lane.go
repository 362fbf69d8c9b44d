package verbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A lane is one queue pair of a Conn, and what takes its place when it breaks.
//
// A write is queued in the ring, posted, and covered by a flush, in this order (see
// ring). A new connection starts with posted = acked.
//
// There is no goroutine that sends or receives: who waits does, for all. Who has
// something to post does it, one at a time; of those who wait, one polls and tells the
// others. run connects anew, and sees to it that every wait ends.
//
// mu is never held across the Queue; posting and polling are, and filling is across a copy.
type lane struct {
	cfg      Config // immutable, as all up to done
	log      *slog.Logger
	arena    *arena
	stream   uint64
	medium   rdmacache.Medium
	readOnly bool
	stop     context.CancelFunc
	done     chan struct{} // closed when run has ended

	mu       sync.Mutex
	change   chan struct{} // closed when something below changed; nil if nobody waits for that
	link     *link         // nil while there is none
	by       Method        // of the newest link
	posting  bool          // somebody is in Post of the newest link
	polling  bool          // somebody is in Poll or Wait
	copying  int           // who copies to or from the arena
	filling  bool          // one of them copies to what the ring has reserved
	attempt  uint32        // connections tried; of run, after Dial, as the next
	pause    time.Duration // before the next try; grows until work gets done
	alive    bool          // the memory node answered on the last connection
	err      error         // of all calls, final
	writeErr error         // of writes and flushes, final
	leaked   bool          // a queue pair could not be destroyed: the arena stays
	ring     ring
	reads    []*readOp // to be posted, oldest first
	blocks   blocks    // of the arena that reads have
	waits    []*wait   // for a flush
	spare    *wait     // that nobody has any more; may be nil
	many     int       // extents that a connection may have, see manyExtents
	held     bool      // byte heldAt is to be asked for when nothing is under way; nothing else begins before
	heldAt   int64
	cramped  int       // connections that the memory node ended for it cannot register more; until work gets done
	full     bool      // there was no space for what is in the ring
	again    uint64    // entries before this one were posted when a queue pair broke, perhaps at one of them
	troubled time.Time // since when nothing was heard; zero: all is well
	stats    Stats
	places   []place // to gather in
}

// A wait is a flush that somebody waits for.
type wait struct {
	after  uint64 // of the entries before this one
	flying bool   // the flush under way covers it
	done   bool
	err    error
}

// end answers the wait. mu is held.
func (w *wait) end(err error) { w.done, w.err = true, err }

// dialLane makes a lane, and one try at a connection.
func dialLane(ctx context.Context, cfg Config) (*lane, rdmacache.Medium, error) {
	window := max(int(cfg.Window)/cfg.Queues, minWindow) &^ 63
	a, err := newArena(window)
	if err != nil {
		return nil, rdmacache.Medium{}, err
	}
	l := &lane{
		cfg: cfg, log: cfg.Log, arena: a, stream: rand.Uint64(), done: make(chan struct{}), many: manyExtents,
	}
	l.ring.mem = a.ring
	dialCtx, cancel := context.WithTimeout(ctx, cfg.Patience)
	defer cancel()
	k, w, err := l.connect(dialCtx)
	if err != nil {
		return nil, rdmacache.Medium{}, errors.Join(err, a.close())
	}
	l.medium = rdmacache.Medium{Kind: w.kind, Volatile: w.volatile}
	l.readOnly = w.readOnly
	l.link, l.by, l.stats.Connections = k, k.method, 1
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.run(runCtx, k)
	return l, l.medium, nil
}

func (l *lane) close() error {
	l.mu.Lock()
	closed := errors.Is(l.err, ErrClosed)
	if !closed {
		l.failLocked(ErrClosed)
		l.err = ErrClosed
	}
	l.mu.Unlock()
	<-l.done
	if closed {
		return ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.copying > 0 {
		l.sleep(context.Background())
	}
	if l.leaked {
		return fmt.Errorf("verbs: a queue pair could not be destroyed: its memory stays registered")
	}
	return l.arena.close()
}

// sleep waits until something changes, or ctx is done. mu is held, but for the wait.
func (l *lane) sleep(ctx context.Context) {
	if l.change == nil {
		l.change = make(chan struct{})
	}
	change := l.change
	l.mu.Unlock()
	select {
	case <-change:
	case <-ctx.Done():
	}
	l.mu.Lock()
}

// changed wakes all who sleep. mu is held.
func (l *lane) changed() {
	if l.change != nil {
		close(l.change)
		l.change = nil
	}
}

// drive works for all until ready says that it is enough. It returns why that does not
// come: ctx is done, or the lane failed. mu is held, but for the work.
func (l *lane) drive(ctx context.Context, ready func() bool) error {
	for {
		switch k := l.link; {
		case ready():
			return nil
		case l.err != nil:
			return l.err
		case ctx.Err() != nil:
			return ctx.Err()
		case k != nil && !l.posting && l.gather(k):
			l.post(k)
		case k != nil && !l.polling && k.outstanding():
			l.poll(ctx, k)
		default:
			l.sleep(ctx)
		}
	}
}

// push posts what is to be posted, as far as that does not block. mu is held, but for
// the work.
func (l *lane) push() {
	for k := l.link; k != nil && !l.posting; k = l.link {
		if l.gather(k) {
			l.post(k)
			continue
		}
		if len(k.outbox) == 0 || l.polling || !l.look(k, 0) {
			return
		}
	}
}

// writable returns why nothing can be written. mu is held.
func (l *lane) writable(ctx context.Context) error {
	switch {
	case l.err != nil:
		return l.err
	case l.writeErr != nil:
		return l.writeErr
	}
	return ctx.Err()
}

func (l *lane) write(ctx context.Context, p []byte, off int64) error {
	if l.readOnly {
		return errReadOnly
	}
	for len(p) > 0 {
		n, err := l.queue(ctx, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// queue copies the beginning of p to the ring, and returns how much. It waits for room.
func (l *lane) queue(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := l.copyIn(ctx, p, off)
	if n == 0 && err == nil {
		l.mu.Lock()
		err = l.waitForRoom(ctx, len(p))
		l.mu.Unlock()
	}
	return n, err
}

// copyIn is queue where there is room; else it returns 0.
func (l *lane) copyIn(ctx context.Context, p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.filling && l.writable(ctx) == nil {
		l.sleep(ctx)
	}
	if err := l.writable(ctx); err != nil {
		return 0, err
	}
	mem := l.ring.reserve(len(p))
	if len(mem) == 0 {
		return 0, nil
	}
	if len(mem) <= rdmacache.PageSize {
		copy(mem, p) // is done sooner than mu is given up and taken again
	} else if err := l.copyApart(mem, p); err != nil {
		return 0, err
	}
	l.ring.push(place{off, int64(len(mem))})
	if l.ring.unasked >= int64(len(l.ring.mem)/2) && !l.full {
		l.expect(l.ring.queued) // nobody waits, but there is room again before the ring is full
		l.ring.unasked = 0
	} else if l.ring.unposted < eagerBytes || l.full {
		return len(mem), nil
	}
	l.push()
	return len(mem), nil
}

// copyApart copies to a part of the ring without mu. An error says that the ring was dropped
// meanwhile. mu is held, but for the copy.
func (l *lane) copyApart(mem, p []byte) error {
	l.copying++
	l.filling = true
	l.mu.Unlock()
	copy(mem, p)
	l.mu.Lock()
	l.copying--
	l.filling = false
	l.changed()
	return l.writable(context.Background())
}

// expect adds a wait for a flush of the entries before number after. mu is held.
func (l *lane) expect(after uint64) *wait {
	w := l.spare
	if l.spare = nil; w == nil {
		w = new(wait)
	}
	*w = wait{after: after}
	l.waits = append(l.waits, w)
	return w
}

// waitForRoom waits until the ring has room for a part of n bytes. mu is held.
func (l *lane) waitForRoom(ctx context.Context, n int) error {
	if l.writable(ctx) != nil || len(l.ring.reserve(n)) > 0 {
		return l.writable(ctx)
	}
	w := l.expect(l.ring.acked + 1)
	w.flying = l.link != nil && l.link.flight.under
	if err := l.drive(ctx, func() bool { return w.done }); err != nil {
		return err
	}
	return w.err
}

// commit asks for a flush of what was written, and waits for it.
func (l *lane) commit(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finish(ctx, l.begin(ctx))
}

// begin asks for a flush of what was written, and posts it. The wait is for finish. mu is
// held, but for the work.
func (l *lane) begin(ctx context.Context) *wait {
	err := l.writable(ctx)
	if err != nil || l.ring.acked == l.ring.queued {
		w := new(wait)
		w.end(err)
		return w
	}
	w := l.expect(l.ring.queued)
	l.push()
	return w
}

// finish returns what became of a flush, when that is known. mu is held, but for the work.
func (l *lane) finish(ctx context.Context, w *wait) error {
	if err := l.drive(ctx, func() bool { return w.done }); err != nil {
		return err // w may still be in waits
	}
	l.spare = w
	return w.err
}

// breakLink makes k be of no use any more. mu is held.
func (l *lane) breakLink(k *link, err error) {
	if k.err != nil {
		return
	}
	k.err = err
	close(k.broken)
	if l.link == k {
		l.link = nil
	}
	l.changed()
}

// failLocked makes err what every call returns from now on. mu is held.
func (l *lane) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.failWritesLocked(err)
	for _, r := range l.reads {
		r.finish(err)
	}
	l.reads = nil
	l.stop()
	l.changed()
}

// failWritesLocked makes err what every write and flush returns from now on. mu is held.
func (l *lane) failWritesLocked(err error) {
	if l.writeErr == nil {
		l.writeErr = err
	}
	l.ring.drop()
	if l.link != nil {
		l.link.flight = flight{}
	}
	l.answer(err, func(*wait) bool { return true })
}

// answer ends the waits that which says. mu is held.
func (l *lane) answer(err error, which func(*wait) bool) {
	kept := l.waits[:0]
	for _, w := range l.waits {
		if which(w) {
			w.end(err)
		} else {
			kept = append(kept, w)
		}
	}
	clear(l.waits[len(kept):])
	l.waits = kept
	l.changed()
}

// noSpace answers the waits that which says, and has the ring wait until somebody asks
// again. mu is held.
func (l *lane) noSpace(err error, which func(*wait) bool) {
	if !errors.Is(err, region.ErrNoSpace) {
		err = fmt.Errorf("%w: %w", region.ErrNoSpace, err)
	}
	l.full = true
	l.answer(err, which)
}

func (l *lane) method() Method {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by
}

func (l *lane) counted() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}
