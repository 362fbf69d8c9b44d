package model

import (
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// advance does what can be done now, and comes again when there may be more. mu is held.
func (q *queue) advance() {
	for q.peer != nil && (q.arrive() || q.acknowledge()) {
	}
}

// comeAgain runs advance after d.
func (q *queue) comeAgain(d time.Duration) {
	at := time.Now().Add(d)
	if !q.next.IsZero() && !q.next.After(at) {
		return
	}
	q.next = at
	q.host.fabric.later(max(d, 1), func() {
		if !q.next.IsZero() && !time.Now().Before(q.next) {
			q.next = time.Time{}
		}
		q.advance()
	})
}

// due tells whether fl is there, and comes again when it is.
func (q *queue) due(fl *flight) bool {
	if fl.at.IsZero() {
		return true
	}
	if early := time.Until(fl.at); early > 0 {
		q.comeAgain(early)
		return false
	}
	return true
}

// wait lets fl, which does not get on, be tried again for a while; then it breaks the queue.
func (q *queue) wait(fl *flight, why error) {
	now := time.Now()
	if fl.stuck.IsZero() {
		fl.stuck = now
	}
	left := q.host.fabric.cfg.Timeout - now.Sub(fl.stuck)
	if left <= 0 {
		q.fail(fl, why)
		return
	}
	q.comeAgain(left)
}

// linger keeps what is on its way where nothing passes now, for a while; then all is lost.
func (q *queue) linger(fl *flight) {
	f, now := q.host.fabric, time.Now()
	if fl.stuck.IsZero() {
		fl.stuck = now
	}
	left := f.cfg.Late - now.Sub(fl.stuck)
	if left <= 0 || q.peer.destroyed || q.peer.err != nil || q.host.off.Load() || q.peer.host.off.Load() {
		q.out = nil
		return
	}
	q.comeAgain(left)
}

// arrive lets the oldest work that is out take effect at the peer. It returns false if
// none can.
func (q *queue) arrive() bool {
	if len(q.out) == 0 {
		return false
	}
	fl, p, f := q.out[0], q.peer, q.host.fabric
	if !q.due(fl) {
		return false
	}
	if p.destroyed || p.err != nil || !q.host.passes(p.host) {
		if fl.orphan {
			q.linger(fl)
		} else {
			q.wait(fl, errTimeout)
		}
		return false
	}
	if q.host.clip != nil && !fl.orphan && q.host.clip(fl.work) {
		q.wait(fl, errTimeout)
		return false
	}
	state := p.execute(q, fl)
	switch {
	case q.err == nil && !q.destroyed, fl.orphan:
	default:
		return false // its own memory was not there
	}
	switch state {
	case unfinished:
		fl.stuck = time.Time{}
		return true
	case noRecv:
		if fl.orphan {
			q.out = nil
			return false
		}
		q.wait(fl, errNoRecv)
		return false
	}
	q.out = q.out[1:]
	fl.stuck = time.Time{}
	if fl.orphan {
		if fl.work.Op == verbs.OpWrite && fl.err == nil {
			f.stats.Late++
		}
	} else {
		fl.at = time.Time{}
		if d := f.delay(0, len(fl.data)); d > 0 {
			fl.at = time.Now().Add(d)
		}
		q.acks = append(q.acks, fl)
	}
	if fl.err != nil {
		f.stats.Refused++
		p.fail(nil, fl.err)
	}
	return true
}

// acknowledge makes the oldest work of which the peer is done a completion.
func (q *queue) acknowledge() bool {
	if len(q.acks) == 0 {
		return false
	}
	fl := q.acks[0]
	if !q.due(fl) {
		return false
	}
	if !q.peer.host.passes(q.host) {
		q.wait(fl, errTimeout)
		return false
	}
	if fl.err == nil && fl.work.Op == verbs.OpRead {
		m, at, err := q.local(fl.work.Local, fl.work.LKey)
		if err == nil {
			err = m.store(fl.data, at)
		}
		fl.err = err
	}
	if fl.err != nil {
		q.fail(fl, fl.err)
		return false
	}
	q.acks = q.acks[1:]
	if len(q.acks) == 0 {
		q.acks = nil
	}
	if !fl.work.Signaled {
		q.silent++
		return true
	}
	q.complete(fl.work, 0, nil)
	return true
}

// What became of work at the peer.
type state int

const (
	finished state = iota
	unfinished
	noRecv
)

// execute does fl, of queue from, to the memory of q's host. fl.err is why not.
func (q *queue) execute(from *queue, fl *flight) (s state) {
	f, w := q.host.fabric, &fl.work
	switch w.Op {
	case verbs.OpWrite:
		s = q.land(from, fl)
	case verbs.OpRead:
		m, at, err := q.reach(w.RKey, w.Remote, len(w.Local), verbs.RemoteRead)
		if err == nil {
			err = q.pushOut()
		}
		if err == nil {
			fl.data = make([]byte, len(w.Local))
			err = m.load(fl.data, at)
		}
		fl.err = err
		f.stats.Reads++
	case verbs.OpFlush:
		m, at, err := q.reach(w.RKey, w.Remote, int(w.Length), verbs.RemoteFlush)
		if err == nil && !q.cfg.Flush {
			err = fmt.Errorf("%w: the peer's queue pair has no FLUSH", verbs.ErrBroken)
		}
		if err == nil {
			err = q.flush(m, at, int(w.Length))
		}
		fl.err = err
		f.stats.Flushes++
	case verbs.OpSend:
		s = q.receive(from, fl)
	}
	if fl.err != nil && !errors.Is(fl.err, verbs.ErrBroken) { // of a medium
		fl.err = fmt.Errorf("%w: %w", verbs.ErrRemote, fl.err)
	}
	return s
}

// receive puts what fl sends into the oldest Recv.
func (q *queue) receive(from *queue, fl *flight) state {
	if len(q.recvs) == 0 {
		return noRecv
	}
	data, ok := from.outgoing(fl)
	if !ok {
		return finished
	}
	recv := q.recvs[0]
	q.recvs = q.recvs[1:]
	m, at, err := q.local(recv.Local, recv.LKey)
	if err == nil && len(recv.Local) < len(data) {
		err = fmt.Errorf("%w: a receive of %d bytes for %d", verbs.ErrBroken, len(recv.Local), len(data))
	}
	if err == nil {
		err = m.store(data, at)
	}
	fl.err = err
	q.host.fabric.stats.Sends++
	q.complete(recv, len(data), err)
	return finished
}

// outgoing is what fl takes along, as it is now. If the local memory is not there q fails.
func (q *queue) outgoing(fl *flight) ([]byte, bool) {
	if fl.data != nil {
		return fl.data, true
	}
	m, at, err := q.local(fl.work.Local, fl.work.LKey)
	if err != nil {
		q.fail(fl, err)
		return nil, false
	}
	if m.medium == nil {
		return fl.work.Local, true
	}
	data := make([]byte, len(fl.work.Local))
	if err := m.load(data, at); err != nil {
		q.fail(fl, err)
		return nil, false
	}
	return data, true
}
