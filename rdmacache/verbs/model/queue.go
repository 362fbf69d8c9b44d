package model

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

var (
	errDestroyed = fmt.Errorf("%w: destroyed", verbs.ErrBroken)
	errFlushed   = fmt.Errorf("%w: flushed", verbs.ErrBroken)
	errTimeout   = fmt.Errorf("%w: the peer does not answer", verbs.ErrBroken)
	errNoRecv    = fmt.Errorf("%w: the peer has no receive", verbs.ErrBroken)
	errHungUp    = fmt.Errorf("%w: the peer closed the connection", verbs.ErrBroken)
)

// A queue is a queue pair. Its work goes through two lists: out, until it takes effect at
// the peer, and acks, until that is known here.
type queue struct {
	host   *Host // immutable, as the next three
	domain *domain
	cfg    verbs.QueueConfig
	wake   chan struct{} // one token: Wait should look

	// Guarded by Fabric.mu:
	peer      *queue // nil before it is connected
	out, acks []*flight
	recvs     []verbs.Work
	done      []completion
	sends     int   // posted, and no completion was taken
	recvsOut  int   // the same
	silent    int   // sends that succeeded since the last completion, unsignaled
	err       error // the error state: nothing leaves or lands any more
	destroyed bool
	hungUp    bool      // the peer said that it closed the connection
	next      time.Time // of the timer that is set; zero: none is

	// What the peer wrote to media and nothing made persistent, oldest first.
	written []written
}

// A completion frees places of the send or receive queue when it is taken.
type completion struct {
	verbs.Completion
	sends, recvs int
}

// A flight is a work request under way.
type flight struct {
	work   verbs.Work
	at     time.Time // when it arrives
	stuck  time.Time // since when it does not get on; zero: it does
	data   []byte    // of Local, once that is not the device's any more; what a Read brought
	orphan bool      // its queue is no more: nobody waits for it
	pieces [][2]int  // what has not landed of a write that is landing
	err    error
}

func (h *Host) newQueue(d verbs.Domain, cfg verbs.QueueConfig) (*queue, error) {
	dom, ok := d.(*domain)
	if !ok || dom.host != h {
		return nil, errors.New("model: the domain is of another device")
	}
	if cfg.Flush && !h.opts.Flush {
		return nil, fmt.Errorf("model: queue with FLUSH: %w", errors.ErrUnsupported)
	}
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.dead {
		return nil, errDead
	}
	if dom.closed {
		return nil, errors.New("model: queue in a domain that is closed")
	}
	q := &queue{host: h, domain: dom, cfg: cfg, wake: make(chan struct{}, 1)}
	dom.users++
	h.queues[q] = struct{}{}
	return q, nil
}

func (q *queue) Post(work []verbs.Work) error {
	f := q.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if q.destroyed {
		return errDestroyed
	}
	if q.sends+len(work) > q.cfg.Sends {
		err := fmt.Errorf("%w: %d sends posted, %d more, %d at most", verbs.ErrBroken, q.sends, len(work), q.cfg.Sends)
		q.fail(nil, err)
		return err
	}
	q.sends += len(work)
	for _, w := range work {
		if w.Op == verbs.OpFlush && !q.cfg.Flush || w.Op < verbs.OpWrite || w.Op > verbs.OpSend {
			q.fail(nil, fmt.Errorf("%w: operation %d", verbs.ErrBroken, w.Op))
		}
		if q.err != nil {
			q.complete(w, 0, errFlushed)
			continue
		}
		fl := &flight{work: w}
		if d := f.delay(w.Op, len(w.Local)); d > 0 {
			fl.at = time.Now().Add(d)
		}
		q.out = append(q.out, fl)
	}
	q.advance()
	return nil
}

func (q *queue) PostRecv(recvs []verbs.Work) error {
	f := q.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if q.destroyed {
		return errDestroyed
	}
	if q.recvsOut+len(recvs) > q.cfg.Recvs {
		err := fmt.Errorf("%w: %d receives posted, %d more, %d at most", verbs.ErrBroken, q.recvsOut, len(recvs), q.cfg.Recvs)
		q.fail(nil, err)
		return err
	}
	q.recvsOut += len(recvs)
	for _, w := range recvs {
		w.Op = verbs.OpRecv
		if q.err != nil {
			q.complete(w, 0, errFlushed)
			continue
		}
		q.recvs = append(q.recvs, w)
	}
	if q.peer != nil {
		q.peer.advance()
	}
	return nil
}

func (q *queue) Poll(done []verbs.Completion, spin time.Duration) (int, error) {
	n, err, _ := q.take(done)
	if n > 0 || err != nil || spin <= 0 {
		return n, err
	}
	timer := time.NewTimer(spin)
	defer timer.Stop()
	select {
	case <-q.wake:
	case <-timer.C:
	}
	n, err, _ = q.take(done)
	return n, err
}

func (q *queue) Wait(ctx context.Context, done []verbs.Completion) (int, error) {
	for {
		n, err, over := q.take(done)
		switch {
		case n > 0 || err != nil:
			return n, err
		case over != nil:
			return 0, over
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return 0, nil
		}
	}
}

// take returns completions that are there; over is why no more will come.
func (q *queue) take(done []verbs.Completion) (n int, err, over error) {
	q.host.fabric.mu.Lock()
	defer q.host.fabric.mu.Unlock()
	if q.destroyed {
		return 0, errDestroyed, nil
	}
	for n < len(done) && n < len(q.done) {
		c := q.done[n]
		done[n] = c.Completion
		q.sends -= c.sends
		q.recvsOut -= c.recvs
		n++
	}
	if q.done = q.done[n:]; len(q.done) == 0 {
		q.done = nil
	}
	switch {
	case q.err != nil:
		over = q.err
	case q.hungUp:
		over = errHungUp
	}
	return n, nil, over
}

func (q *queue) Close() error {
	q.host.fabric.mu.Lock()
	defer q.host.fabric.mu.Unlock()
	q.destroy(true)
	return nil
}

// destroy ends the queue pair; the peer hears of it if said. mu is held.
func (q *queue) destroy(said bool) {
	if q.destroyed {
		return
	}
	f := q.host.fabric
	q.abandon()
	q.destroyed, q.recvs, q.done, q.written = true, nil, nil, nil
	delete(q.host.queues, q)
	q.domain.users--
	q.signal()
	if q.peer == nil {
		return
	}
	q.advance() // what is still on its way
	q.peer.advance()
	if !said {
		return
	}
	f.later(f.delay(0, 0), func() {
		if q.host.passes(q.peer.host) {
			q.peer.hungUp = true
			q.peer.signal()
		}
	})
}

// complete adds a completion of w. mu is held.
func (q *queue) complete(w verbs.Work, bytes int, err error) {
	if q.destroyed {
		return
	}
	c := completion{Completion: verbs.Completion{ID: w.ID, Op: w.Op, Bytes: bytes, Err: err}}
	if w.Op == verbs.OpRecv {
		c.recvs = 1
	} else {
		c.sends, q.silent = q.silent+1, 0
	}
	q.done = append(q.done, c)
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// fail puts the queue pair into the error state: first, which is posted, failed of err, and
// all else is flushed. mu is held.
func (q *queue) fail(first *flight, err error) {
	if q == nil || q.err != nil || q.destroyed {
		return
	}
	q.host.fabric.stats.Broken++
	q.err = err
	for _, list := range [][]*flight{q.acks, q.out} {
		for _, fl := range list {
			if fl.orphan {
				continue
			}
			why := errFlushed
			if fl == first {
				why = err
			}
			q.complete(fl.work, 0, why)
		}
	}
	q.abandon()
	for _, w := range q.recvs {
		q.complete(w, 0, errFlushed)
	}
	q.recvs = nil
	q.signal()
	q.advance() // what is still on its way
	if q.peer != nil {
		q.peer.advance()
	}
}

// abandon ends what was posted and is not known to be done. A hostile fabric has some of
// it on its way. mu is held.
func (q *queue) abandon() {
	f := q.host.fabric
	q.acks = nil
	if f.cfg.Rand == nil || q.peer == nil || q.host.off.Load() {
		q.out = nil
		return
	}
	kept := q.out[:0]
	stop := f.cfg.Rand.IntN(len(q.out) + 1)
	late := int64(f.cfg.Late) >> f.cfg.Rand.IntN(12) // at any scale
	at := time.Now()
	for i, fl := range q.out {
		if fl.orphan {
			kept = append(kept, fl)
			continue
		}
		if i >= stop {
			break
		}
		if fl.data == nil && (fl.work.Op == verbs.OpWrite || fl.work.Op == verbs.OpSend) {
			m, off, err := q.local(fl.work.Local, fl.work.LKey)
			if err != nil {
				break
			}
			fl.data = make([]byte, len(fl.work.Local))
			if m.load(fl.data, off) != nil {
				break
			}
		}
		at = at.Add(time.Duration(f.cfg.Rand.Int64N(late/int64(stop) + 1)))
		if fl.at.Before(at) {
			fl.at = at
		}
		fl.orphan, fl.stuck = true, time.Time{}
		kept = append(kept, fl)
	}
	clear(q.out[len(kept):])
	q.out = kept
}
