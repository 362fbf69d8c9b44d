package verbs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

const (
	queueSends = 1024
	inlineSize = 128
	// A completion is asked for at least after this many work requests and bytes: it makes
	// room, and is a sign of life.
	signalEvery = queueSends / 4
	signalBytes = 1 << 20
	// spinLimit is the longest a waiter spins: above it the interrupt costs less.
	spinLimit = 100 * time.Microsecond
)

// A link is one connection of a lane. The lane's mu guards what changes.
type link struct {
	q      Queue // immutable, as all up to broken
	method Method
	lkey   uint32
	made   time.Time
	limit  int           // messages under way
	broken chan struct{} // closed when it is of no use any more

	err        error // why it is of no use
	extents    extents
	outbox     []Work    // to be posted; of who posts, while lane.posting
	seq        uint64    // of the last work request made, counted from 1
	posted     uint64    // handed over
	acked      uint64    // done, as all before it
	signaled   uint64    // the last that makes a completion
	quiet      int       // bytes of those after it
	heard      uint64    // completions; tells that the peer lives
	reads      []*readOp // posted, oldest first
	flight     flight
	flights    uint64
	asks       [maxClientCredits]ask
	unanswered int
	receivable int    // receives that are posted
	spent      []Work // receives to be posted again
	nextID     uint64
	latency    time.Duration // of the last requests, about

	completions [64]Completion // of who polls
}

// A flight is the flush under way.
type flight struct {
	under  bool
	number uint64
	covers uint64        // the entries before this one
	seq    uint64        // of its last work request
	asked  int           // PERSISTs that are not answered
	rest   []place       // that are still to be asked for
	since  time.Duration // age of the link when it was made
}

// An ask is a message that was sent.
type ask struct {
	kind     kind // 0: none
	id       uint64
	off      int64  // of a MAP
	flight   uint64 // of a PERSIST
	seq      uint64
	answered bool
}

// add puts a work request into the outbox.
func (k *link) add(w Work) {
	k.seq++
	w.ID, w.LKey = k.seq, k.lkey
	k.outbox = append(k.outbox, w)
	k.quiet += len(w.Local)
	if k.seq-k.signaled >= signalEvery || k.quiet >= signalBytes {
		k.signal()
	}
}

// signal makes the last work request one that makes a completion. It is in the outbox.
func (k *link) signal() {
	k.outbox[len(k.outbox)-1].Signaled = true
	k.signaled, k.quiet = k.seq, 0
}

// say sends m, whose id it makes, and returns its ask; nil if there is no credit.
func (k *link) say(a *arena, m *message) *ask {
	if k.unanswered >= k.limit {
		return nil
	}
	for i := range k.asks[:k.limit] {
		if k.asks[i].kind != 0 {
			continue
		}
		k.nextID++
		m.id = k.nextID*maxClientCredits + uint64(i)
		b := a.send(i)
		b = b[:m.encode(b)]
		k.add(Work{Op: OpSend, Local: b})
		k.signal()
		k.asks[i] = ask{kind: m.kind, id: m.id, seq: k.seq}
		k.unanswered++
		return &k.asks[i]
	}
	return nil // answered, but the device has not let go of the message
}

// outstanding says that the peer owes something.
func (k *link) outstanding() bool { return k.signaled > k.acked || k.unanswered > 0 }

// room is how many work requests can be posted now.
func (k *link) room() int { return queueSends - int(k.posted-k.acked) }

// age is the time since k was made. It costs half of what time.Now does.
func (k *link) age() time.Duration { return time.Since(k.made) }

// sample takes the time that a request took into account, which was made at that age.
func (k *link) sample(since time.Duration) {
	if took := k.age() - since; k.latency == 0 {
		k.latency = took
	} else {
		k.latency += (took - k.latency) / 8
	}
}

// post posts what is in the outbox, as much as there is room for. mu is held, but for the
// call of Post.
func (l *lane) post(k *link) {
	l.posting = true
	n := min(len(k.outbox), k.room())
	work := k.outbox[:n]
	k.posted += uint64(n)
	l.stats.count(work)
	var recvs []Work
	if k.unanswered > k.receivable {
		recvs = k.spent
		k.receivable += len(recvs)
		l.stats.RecvPosts++
	}
	l.mu.Unlock()
	var err error
	if len(recvs) > 0 {
		err = k.q.PostRecv(recvs)
	}
	if err == nil {
		err = k.q.Post(work)
	}
	l.mu.Lock()
	if len(recvs) > 0 {
		k.spent = append(k.spent[:0], k.spent[len(recvs):]...)
	}
	if clear(k.outbox[:n]); n == len(k.outbox) {
		k.outbox = k.outbox[:0]
	} else {
		k.outbox = k.outbox[n:]
	}
	l.posting = false
	if err != nil {
		l.breakLink(k, fmt.Errorf("verbs: post: %w", err))
	}
	l.changed()
}

func (s *Stats) count(work []Work) {
	s.Posts++
	for i := range work {
		n := uint64(len(work[i].Local))
		switch work[i].Op {
		case OpWrite:
			s.Writes++
			s.BytesWritten += n
		case OpRead:
			s.Reads++
			s.BytesRead += n
		case OpFlush:
			s.Flushes++
		case OpSend:
			s.Messages++
		}
	}
}

// poll waits for completions and deals with them: for a while by looking, if they use to
// come fast. mu is held, but for the wait.
func (l *lane) poll(ctx context.Context, k *link) {
	if spin := 2 * k.latency; spin > 0 && spin < spinLimit && l.look(k, spin) {
		return
	}
	if l.polling || k.err != nil {
		return
	}
	l.polling = true
	l.stats.Waits++
	l.mu.Unlock()
	n, err := k.q.Wait(ctx, k.completions[:])
	l.mu.Lock()
	l.polling = false
	l.take(k, n, err)
}

// look deals with the completions that come within spin, and says whether there were any.
// mu is held, but for the look.
func (l *lane) look(k *link, spin time.Duration) bool {
	l.polling = true
	l.stats.Polls++
	l.mu.Unlock()
	n, err := k.q.Poll(k.completions[:], spin)
	l.mu.Lock()
	l.polling = false
	l.take(k, n, err)
	return n > 0 || err != nil
}

// take deals with completions. mu is held.
func (l *lane) take(k *link, n int, err error) {
	for i := range k.completions[:n] {
		if k.err != nil {
			break
		}
		k.heard++
		if cerr := l.complete(k, &k.completions[i]); cerr != nil {
			l.breakLink(k, cerr)
		}
	}
	if err != nil {
		l.breakLink(k, err)
	}
	if k.err == nil {
		l.settle(k)
	}
	l.changed()
}

func (l *lane) complete(k *link, c *Completion) error {
	switch {
	case errors.Is(c.Err, ErrRemote):
		k.refuse(c.ID)
		return c.Err
	case c.Err != nil:
		return c.Err
	case c.Op == OpRecv:
		if c.ID >= maxClientCredits || c.Bytes < 0 || c.Bytes > messageSize {
			return fmt.Errorf("%w: receive %d of %d bytes", errProtocol, c.ID, c.Bytes)
		}
		b := l.arena.receive(int(c.ID))
		k.receivable--
		k.spent = append(k.spent, Work{Op: OpRecv, ID: c.ID, Local: b, LKey: k.lkey})
		var m message
		if err := m.decode(b[:c.Bytes]); err != nil {
			return err
		}
		return l.answered(k, &m)
	}
	if c.ID > k.posted {
		return fmt.Errorf("%w: completion %d of %d", errProtocol, c.ID, k.posted)
	}
	k.acked = max(k.acked, c.ID)
	return nil
}

// answered takes the answer of a message. What it returns breaks the link.
func (l *lane) answered(k *link, m *message) error {
	a := &k.asks[m.id%maxClientCredits]
	if a.kind == 0 || a.answered || a.id != m.id {
		return fmt.Errorf("%w: answer to message %d, which is none", errProtocol, m.id)
	}
	a.answered = true
	k.unanswered--
	switch {
	case m.kind == kindMapped && a.kind == kindMap:
		if a.off < m.extent.start || a.off >= m.extent.end || len(k.extents) >= maxExtents {
			return fmt.Errorf("%w: bytes from %d to %d for byte %d, extent %d",
				errProtocol, m.extent.start, m.extent.end, a.off, len(k.extents))
		}
		k.extents.add(m.extent)
		l.many = max(l.many, len(k.extents)/2)
	case m.kind == kindDone && a.kind == kindPersist:
		if k.flight.under && k.flight.number == a.flight {
			k.flight.asked--
		}
	case m.kind == kindError:
		return l.refused(k, a, &refusal{m.code, m.text})
	default:
		return fmt.Errorf("%w: answer of kind %d to one of kind %d", errProtocol, m.kind, a.kind)
	}
	return nil
}

// refused takes an ERROR. What it returns breaks the link.
func (l *lane) refused(k *link, a *ask, err *refusal) error {
	switch {
	case errors.Is(err, rdmacache.ErrFenced):
		l.failLocked(err)
		return err
	case errors.Is(err, errRange) && a.kind == kindMap, errors.Is(err, region.ErrNoSpace) && a.kind == kindMap:
		l.unreachable(k, a.off, err)
		return nil
	case errors.Is(err, errStale) && a.kind == kindMap:
		l.many = max(len(k.extents)/2, 1)
		if l.cramped++; l.cramped > maxCramped {
			l.unreachable(k, a.off, fmt.Errorf("%w: %w", region.ErrNoSpace, err))
			return nil
		}
	case a.kind == kindPersist && (!k.flight.under || k.flight.number != a.flight):
		return nil // of a flush that is over
	case errors.Is(err, region.ErrNoSpace):
		k.flight = flight{}
		l.ring.rewind()
		l.noSpace(err, func(w *wait) bool { return w.flying })
		return nil
	case errors.Is(err, ErrPoisoned):
		l.failWritesLocked(err)
		return nil
	}
	return err
}

// unreachable tells who needs byte off, which no extent has, that the memory node gives
// none. mu is held.
func (l *lane) unreachable(k *link, off int64, err error) {
	needs := func(p place) bool {
		missing, ok := k.extents.missing(p)
		return ok && missing == off
	}
	kept := l.reads[:0]
	for _, r := range l.reads {
		if needs(r.place) {
			r.finish(err)
		} else {
			kept = append(kept, r)
		}
	}
	clear(l.reads[len(kept):])
	l.reads = kept
	for i, e := range l.ring.list[l.ring.posted-l.ring.acked:] {
		if !needs(e.place) {
			continue
		}
		if errors.Is(err, region.ErrNoSpace) {
			blocked := l.ring.posted + uint64(i)
			l.noSpace(err, func(w *wait) bool { return w.after > blocked })
		} else {
			l.failWritesLocked(fmt.Errorf("%w: write %d bytes at %d: %w", ErrPoisoned, e.n, e.off, err))
		}
		return
	}
}

// settle hands out what is done. mu is held.
func (l *lane) settle(k *link) {
	done := 0
	for done < len(k.reads) && k.reads[done].seq <= k.acked {
		r := k.reads[done]
		if len(l.waits) == 0 && r.after >= l.again {
			l.pause, l.cramped = 0, 0 // what queue pairs may have broken at got through before it
		}
		k.sample(r.since)
		if r.finish(nil); r.abandoned {
			l.blocks.free(r.first, int(r.n))
		}
		done++
	}
	if done > 0 {
		k.reads = append(k.reads[:0], k.reads[done:]...)
		if len(l.waits) == 0 {
			// Where somebody waits for a flush, only its end shows that the writes get through.
			l.troubled = time.Time{}
		}
	}
	for i := range k.asks {
		if a := &k.asks[i]; a.kind != 0 && a.answered && a.seq <= k.acked {
			*a = ask{}
		}
	}
	f := &k.flight
	if !f.under || f.asked > 0 || len(f.rest) > 0 || f.seq > k.acked {
		return
	}
	k.sample(f.since)
	covers := f.covers
	*f = flight{}
	l.ring.ack(covers)
	l.full = false
	l.troubled, l.pause, l.cramped = time.Time{}, 0, 0
	l.stats.Commits++
	l.answer(nil, func(w *wait) bool { return w.after <= covers })
}
