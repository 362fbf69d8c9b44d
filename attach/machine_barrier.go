package attach

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// begin begins the next barrier with all requests that wait.
func (m *machine) begin() {
	m.n++
	m.phase = parking
	m.sealed, m.drained = false, false
	m.served, m.waiting = m.waiting, nil
	for i := range m.seats {
		s := &m.seats[i]
		s.ready, s.done, s.consumed = false, false, false
		m.send(s.id, &wire.Due{N: m.n, Timeout: uint64(m.timeoutServed())})
	}
	m.arm(m.timeoutServed() + grace)
	m.checkReady() // the last may have left since next
}

// timeoutServed is how long threads may take to park at this barrier.
func (m *machine) timeoutServed() time.Duration {
	d := time.Duration(0)
	for _, r := range m.served {
		d = max(d, r.timeout)
	}
	if d <= 0 {
		d = defaultTimeout
	}
	return min(d, maxTimeout)
}

// present returns the seat of a member that speaks of barrier n, if that is the
// present one. Of older ones members speak in good faith; a later one throws them
// out.
func (m *machine) present(id uint32, n uint64) *seat {
	s := m.seat(id)
	switch {
	case s == nil || n < m.n:
		return nil
	case n > m.n:
		m.throw(id, unix.EPROTO)
		return nil
	}
	return s
}

// ready says that a member's threads are parked.
func (m *machine) ready(id uint32, n uint64) {
	if s := m.present(id, n); s != nil {
		s.ready = true
		if m.phase == parking {
			m.checkReady()
		}
	}
}

// late says that a member's thread does not park.
func (m *machine) late(id uint32, n uint64, tid uint32, name string) {
	if s := m.present(id, n); s != nil && m.phase == parking && !s.ready {
		m.calledLate(LateError{PID: s.pid, TID: tid, Name: name})
	}
}

// checkReady goes on when all are parked: with a rollback, write-back or the seal.
func (m *machine) checkReady() {
	switch {
	case !m.all(func(s *seat) bool { return s.ready }):
	case m.lost, len(m.seats) == 0:
		m.again()
	case m.untracked() || m.drain || !m.all(func(s *seat) bool { return s.flags&wire.Tracks != 0 }):
		m.phase = draining
		m.drain, m.drained = false, true
		m.drainer = m.seats[0].id
		m.arm(workTimeout)
		m.send(m.drainer, &wire.Drain{N: m.n})
	default:
		m.orders = append(m.orders, order{kind: orderSeal})
	}
}

// drainDone says that the kernel wrote back.
func (m *machine) drainDone(id uint32, n uint64, errno unix.Errno) {
	s := m.present(id, n)
	switch {
	case s == nil || m.phase != draining || m.drainer != id:
	case errno != 0:
		m.callOff(errno, outcome{errno: errno})
	default:
		m.orders = append(m.orders, order{kind: orderSeal})
	}
}

// sealDone says that the epoch is sealed, or why not.
func (m *machine) sealDone(extra []uint64, id uint64, err error, errno unix.Errno) {
	if err != nil {
		m.callOff(errno, outcome{errno: errno, err: err})
		return
	}
	m.phase = copying
	m.sealed, m.epoch = true, id
	switch {
	case m.drained:
		extra = nil // what the kernel wrote back is newer than any copy
	case len(extra) > wire.MaxPages:
		m.drain = true
		m.again()
		return
	}
	for i := range m.seats {
		m.send(m.seats[i].id, &wire.Go{N: m.n, Sole: len(m.seats) == 1, Pages: extra, Epoch: id})
	}
	m.counters.last = Barrier{N: m.n, Epoch: id, Members: len(m.seats), Drained: m.drained}
	m.arm(workTimeout)
}

// done says that all that a member stored before the barrier is in its ring.
func (m *machine) done(id uint32, d *wire.Done) {
	s := m.present(id, d.N)
	if s == nil || s.done {
		return
	}
	switch m.phase {
	case parking, draining:
		m.throw(id, unix.EPROTO)
	case copying:
		if d.Errno != 0 {
			m.drain = true // its tracking forgot what it did not copy
			m.callOff(d.Errno, outcome{errno: d.Errno})
			return
		}
		s.done = true
		m.counters.last.add(d)
		m.orders = append(m.orders, order{kind: orderConsume, to: id, upto: d.Upto})
		m.checkDone()
	}
}

// consumed says that all positions of a ring that belong to the sealed epoch were
// taken.
func (m *machine) consumed(id uint32, n uint64) {
	if n != m.n {
		return
	}
	for _, seats := range [][]seat{m.seats, m.departed} {
		for i := range seats {
			if seats[i].id == id {
				seats[i].consumed = true
			}
		}
	}
	m.checkDone()
}

// checkDone lets all go on when all have copied, and ends the barrier when all is
// taken too.
func (m *machine) checkDone() {
	if m.phase == copying && m.all(func(s *seat) bool { return s.done }) {
		m.phase = consuming
		m.release(0, m.epoch)
	}
	if m.phase != consuming || !m.all(func(s *seat) bool { return s.consumed }) {
		return
	}
	for _, s := range m.departed {
		if !s.consumed {
			return
		}
	}
	m.phase = committing
	m.finish(nil)
}

func (m *machine) release(errno unix.Errno, epoch uint64) {
	for _, s := range m.seats {
		m.send(s.id, &wire.Release{N: m.n, Errno: errno, Epoch: epoch})
	}
}

// finish makes quiesce return.
func (m *machine) finish(err error) {
	m.orders = append(m.orders, order{kind: orderFinish, err: err})
}

// timeout says that the time that barrier n armed last is over.
func (m *machine) timeout() {
	var waits func(*seat) bool
	switch m.phase {
	case parking:
		waits = func(s *seat) bool { return !s.ready }
	case draining:
		waits = func(s *seat) bool { return s.id == m.drainer }
	case copying:
		waits = func(s *seat) bool { return !s.done }
	default:
		return
	}
	if m.phase != parking {
		m.drain = true
	}
	var late LateError
	for i := range m.seats {
		if s := &m.seats[i]; waits(s) {
			s.silent = true
			late = LateError{PID: s.pid, Name: s.name}
		}
	}
	m.calledLate(late)
}

func (m *machine) calledLate(late LateError) {
	m.counters.late, m.counters.lateN = late, m.n
	m.callOff(unix.ETIMEDOUT, outcome{errno: unix.ETIMEDOUT, late: late, err: &late})
}

// again calls the barrier off for a reason that is over; its requests wait for the
// next.
func (m *machine) again() {
	m.waiting = append(m.served, m.waiting...)
	m.served = nil
	m.callOff(unix.EAGAIN, outcome{})
}

// callOff lets all go on with the epoch open; or, after a death, leaves them parked,
// if they are, for the rollback.
func (m *machine) callOff(errno unix.Errno, out outcome) {
	released := m.phase == consuming
	if m.lost && !released && m.all(func(s *seat) bool { return s.ready }) {
		m.phase = parked
		m.finish(ErrLost)
		return
	}
	if m.drained && !m.sealed {
		m.drain = true // there may be new stores before the next barrier
	}
	m.phase = ending
	m.counters.calledOff++
	out.epoch = m.durable
	if !released {
		m.release(errno, out.epoch)
	}
	m.answer(m.served, out)
	m.served = nil
	if out.err == nil {
		out.err = ErrCalledOff
	}
	m.finish(out.err)
}

// captureFailed says that a page of that tag was dropped, perhaps before the present
// barrier sealed. The kernel still has it.
func (m *machine) captureFailed(tag uint64, err error, errno unix.Errno) {
	m.drain = true
	if tag < m.n && (m.phase == copying || m.phase == consuming) {
		m.callOff(errno, outcome{errno: errno, err: err})
	}
}

// cancel calls the barrier off.
func (m *machine) cancel(err error) {
	switch m.phase {
	case parking, draining, copying, consuming:
		m.callOff(unix.ECANCELED, outcome{errno: unix.ECANCELED, err: err})
	}
}

// barrierDone says that Region.Barrier returned, or that a barrier that seals
// nothing ended.
func (m *machine) barrierDone(epoch uint64, err error, errno unix.Errno) {
	switch m.phase {
	case committing:
		out := outcome{epoch: epoch}
		if err != nil {
			out = outcome{epoch: m.durable, errno: errno, err: err}
		} else {
			m.durable = epoch
			for _, s := range m.seats {
				m.send(s.id, &wire.Committed{Epoch: epoch})
			}
		}
		m.answer(m.served, out)
		m.served = nil
		m.settle()
	case ending:
		m.settle()
	case idle: // it did not come to a begin
		m.answer(m.waiting, outcome{epoch: m.durable, errno: errno, err: err})
		m.waiting = nil
	}
}

// rollback says that Region.Rollback begins. Pages with an older tag than the
// present barrier are of the lost epoch.
func (m *machine) rollback() {
	m.phase = rollingBack
	m.lost = false
}

// rolledBack says that memory shows the last committed epoch.
func (m *machine) rolledBack() {
	m.counters.rollbacks++
	m.durable = m.committed()
	for _, s := range m.seats {
		m.send(s.id, &wire.Lost{Errno: unix.EOWNERDEAD, Epoch: m.durable})
	}
	m.release(unix.EOWNERDEAD, m.durable)
	out := outcome{errno: unix.EOWNERDEAD, epoch: m.durable, err: ErrLost}
	m.answer(m.served, out)
	m.answer(m.waiting, out)
	m.served, m.waiting = nil, nil
	m.drain = true
	m.settle()
}
