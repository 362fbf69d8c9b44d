package verbs

import (
	"context"
	"time"
)

// maxRefused is how many queue pairs may break at one read. Some do for it names memory
// that was revoked meanwhile; a new one asks where it is now.
const maxRefused = 8

// readsAhead is how many parts of one Read are under way.
const readsAhead = 4

// A readOp is a read of at most maxRead bytes that somebody waits for. The lane's mu
// guards it.
type readOp struct {
	place
	first     int           // of the blocks that it is read into
	from, seq uint64        // its work requests, once they were posted
	after     uint64        // entries posted before it
	refused   int           // queue pairs that broke at it
	since     time.Duration // age of the link when it was posted
	abandoned bool          // nobody waits any more
	done      bool
	err       error
}

// refuse notes that the device of the memory node refused work request seq, which may be
// that of a read. mu is held.
func (k *link) refuse(seq uint64) {
	for _, r := range k.reads {
		if r.from <= seq && seq <= r.seq {
			r.refused++
		}
	}
}

// finish answers the read.
func (r *readOp) finish(err error) { r.done, r.err = true, err }

func (l *lane) read(ctx context.Context, p []byte, off int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var ahead [readsAhead]*readOp
	started, taken := 0, 0
	var err error
	for err == nil && (len(p) > 0) {
		started, err = l.readAhead(ctx, &ahead, started, taken, place{off, int64(len(p))})
		if err != nil {
			break
		}
		r := ahead[taken%readsAhead]
		if err = l.drive(ctx, func() bool { return r.done }); err != nil {
			break
		}
		taken++
		if err = r.err; err == nil {
			l.copying++
			l.mu.Unlock()
			copy(p, l.arena.reads[r.first*readBlock:][:r.n])
			l.mu.Lock()
			l.copying--
		}
		l.blocks.free(r.first, int(r.n))
		l.changed()
		p, off = p[r.n:], off+r.n
	}
	for ; taken < started; taken++ {
		l.abandon(ahead[taken%readsAhead])
	}
	return err
}

// readAhead starts reads of what is left, which those from taken up to started are of
// already, and returns how many were started ever. It waits for memory if there would be
// none.
func (l *lane) readAhead(ctx context.Context, ahead *[readsAhead]*readOp, started, taken int, left place) (int, error) {
	for i := taken; i < started; i++ {
		left.off, left.n = left.off+ahead[i%readsAhead].n, left.n-ahead[i%readsAhead].n
	}
	begun := started
	for left.n > 0 && started-taken < readsAhead {
		n := min(left.n, maxRead)
		first, ok := l.blocks.take(int(n))
		if !ok && started > taken {
			break
		}
		if !ok {
			if err := l.drive(ctx, func() bool {
				first, ok = l.blocks.take(int(n))
				return ok
			}); err != nil {
				return started, err
			}
		}
		r := &readOp{place: place{left.off, n}, first: first}
		l.reads = append(l.reads, r)
		ahead[started%readsAhead] = r
		started++
		left.off, left.n = left.off+n, left.n-n
	}
	if started > begun {
		l.push()
	}
	return started, nil
}

// abandon gives a read up. Its memory is free when the device is done with it.
func (l *lane) abandon(r *readOp) {
	waiting := false
	for i, x := range l.reads {
		if x == r {
			l.reads = append(l.reads[:i], l.reads[i+1:]...)
			waiting = true
			break
		}
	}
	if waiting || r.done {
		l.blocks.free(r.first, int(r.n))
		l.changed()
		return
	}
	r.abandoned = true
}
