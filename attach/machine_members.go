package attach

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// join adds a member; welcome answers it, now or when what is under way is over: it
// must not store while a barrier that it takes no part in is sealing.
func (m *machine) join(s seat) {
	switch {
	case m.phase == over:
		m.orders = append(m.orders, order{kind: orderThrow, to: s.id, msg: &wire.Welcome{Errno: unix.EIO}})
	case m.phase == idle && !m.lost:
		m.welcome(s)
	default:
		m.joining = append(m.joining, s)
	}
}

func (m *machine) welcome(s seat) {
	m.seats = append(m.seats, s)
	m.send(s.id, &wire.Welcome{Member: s.id, N: m.n, Epoch: m.committed(), Interval: uint64(m.interval)})
}

// leave takes a member out. clean says that it said DETACH; else it died, and what
// it stored since the last epoch is a change half made.
func (m *machine) leave(id uint32, clean bool) {
	if i := slices.IndexFunc(m.joining, func(s seat) bool { return s.id == id }); i >= 0 {
		m.joining = slices.Delete(m.joining, i, i+1) // it stored nothing yet
		return
	}
	i := slices.IndexFunc(m.seats, func(s seat) bool { return s.id == id })
	if i < 0 {
		return
	}
	s := m.seats[i]
	m.seats = slices.Delete(m.seats, i, i+1)
	mine := func(r request) bool { return r.member == id }
	m.waiting = slices.DeleteFunc(m.waiting, mine)
	m.served = slices.DeleteFunc(m.served, mine)
	if clean {
		m.drain = true // the kernel alone has what it stored
	} else {
		m.lost = true
		m.orders = append(m.orders, order{kind: orderCondemn})
	}

	switch m.phase {
	case parking:
		m.checkReady()
	case draining:
		if !clean || m.drainer == id {
			m.again()
		}
	case copying, consuming:
		switch {
		case s.done:
			if !s.consumed {
				m.departed = append(m.departed, s)
			}
			m.checkDone()
		default:
			m.again()
		}
	}
}

// throw ends a member that broke the protocol.
func (m *machine) throw(id uint32, errno unix.Errno) {
	m.leave(id, false)
	m.orders = append(m.orders, order{kind: orderThrow, to: id, msg: &wire.Gone{Errno: errno}})
}

// request asks for a barrier that begins from now on.
func (m *machine) request(member uint32, id uint64, timeout time.Duration) {
	if member != 0 {
		s := m.seat(member)
		if s == nil {
			return
		}
		s.requests++
		if s.requests > maxRequests {
			m.answer([]request{{member: member, id: id}}, outcome{errno: unix.EAGAIN, epoch: m.committed()})
			return
		}
	}
	m.waiting = append(m.waiting, request{member, id, timeout})
}

// untrackedStores says that stores escaped a member's tracking.
func (m *machine) untrackedStores() { m.drain = true }
