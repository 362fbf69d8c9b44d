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
	if m.phase == idle && !m.lost {
		m.welcome(s)
	} else {
		m.joining = append(m.joining, s)
	}
}

// welcome tells a member where things are. The last committed epoch may be one of
// no barrier (of write(2) and close), which is news to the other members: what they
// store counts as of the epoch that their last barrier opened, and only a barrier
// makes that durable.
func (m *machine) welcome(s seat) {
	epoch := m.committed()
	if len(m.seats) == 0 {
		m.durable = epoch
	}
	m.seats = append(m.seats, s)
	m.send(s.id, &wire.Welcome{Member: s.id, N: m.n, Epoch: epoch, Interval: uint64(m.interval)})
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
		m.lose()
	}

	switch m.phase {
	case parking:
		m.checkReady()
	case draining:
		if !clean || m.drainer == id {
			m.again()
		}
	case copying, consuming:
		if !s.done {
			m.again()
			return
		}
		if !s.consumed {
			m.departed = append(m.departed, s)
		}
		m.checkDone()
	}
}

// lose says that a change was left half made.
func (m *machine) lose() {
	m.lost = true
	m.orders = append(m.orders, order{kind: orderCondemn})
}

// throw ends a member that broke the protocol. What is not taken of its ring yet is
// worth nothing.
func (m *machine) throw(id uint32, errno unix.Errno) {
	if s := m.seat(id); s != nil {
		s.done = s.consumed
	}
	m.leave(id, false)
	if i := slices.IndexFunc(m.departed, func(s seat) bool { return s.id == id && !s.consumed }); i >= 0 {
		m.departed = slices.Delete(m.departed, i, i+1)
		m.lose()
		if m.phase == copying || m.phase == consuming {
			m.again()
		}
	}
	m.orders = append(m.orders, order{kind: orderThrow, to: id, msg: &wire.Gone{Errno: errno}})
}

// left reports whether a member left, and its ring is still being taken.
func (m *machine) left(id uint32) bool {
	return slices.ContainsFunc(m.departed, func(s seat) bool { return s.id == id })
}

// abandon takes a member out that waited too long for its welcome; false if it has
// been welcomed.
func (m *machine) abandon(id uint32) bool {
	if m.seat(id) != nil {
		return false
	}
	m.leave(id, true)
	m.send(id, &wire.Welcome{Errno: unix.ETIMEDOUT})
	return true
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
			m.answer([]request{{member: member, id: id}}, outcome{errno: unix.EAGAIN, epoch: m.durable})
			return
		}
	}
	m.waiting = append(m.waiting, request{member, id, timeout})
}

// untrackedStores says that stores escaped a member's tracking.
func (m *machine) untrackedStores() { m.drain = true }
