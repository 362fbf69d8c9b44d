package attach

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// Bounds of waiting.
const (
	defaultTimeout = time.Second            // for threads to park, where a request does not say
	maxTimeout     = time.Minute            // the same, whatever it says
	grace          = time.Second            // for a member to say that a thread is late
	workTimeout    = time.Minute            // for write-back, and for copying
	recoverPause   = 100 * time.Millisecond // between two tries to park the survivors of a death
)

// maxRequests bounds the requests of one member that wait.
const maxRequests = 256

// A phase is what a group is doing.
type phase int

const (
	idle        phase = iota
	parking           // DUE was sent; some members have not said READY
	draining          // all are parked; one makes the kernel write back
	copying           // the epoch is sealed, GO was sent; some have not said DONE
	consuming         // all are DONE; some rings are not taken yet
	committing        // every page of the epoch is captured
	ending            // called off; the barrier has not returned yet
	parked            // all survivors of a death are parked, and a rollback is due
	rollingBack       // it is under way
	over              // the region is poisoned, or the group has ended
)

// A seat is a member as the machine knows it.
type seat struct {
	id       uint32
	pid      int
	name     string
	flags    wire.Flags
	requests int  // that wait for their Result
	silent   bool // it let a barrier time out and may not have read what was sent

	ready, done, consumed bool // at the present barrier
}

// A request waits for a barrier. member 0 is the daemon itself.
type request struct {
	member  uint32
	id      uint64
	timeout time.Duration
}

// An outcome is how a barrier ended for those who asked for it.
type outcome struct {
	errno unix.Errno
	late  LateError // if errno is ETIMEDOUT
	epoch uint64    // the last committed
	err   error     // with errno, the daemon's own
}

// An order is what the machine wants done. The driver carries orders out as they
// come.
type order struct {
	kind orderKind
	to   uint32 // member, of a send or throw
	msg  wire.Message
	wait time.Duration // of an arm
	upto uint64        // of a consume
	err  error         // of a finish
	req  request       // of an answer
	out  outcome       // of an answer
}

type orderKind int

const (
	orderSend    orderKind = iota
	orderThrow             // send msg and close the connection; the member has left
	orderArm               // call timeout with the present barrier after wait
	orderSeal              // seal, and call sealed before anything else
	orderConsume           // call consumed once the ring is taken up to upto
	orderFinish            // the barrier's quiesce returns err; sealing is over
	orderCondemn           // Region.Condemn
	orderAnswer            // tell the daemon's own caller
)

// A machine is the protocol of one file: events in, orders out. It has no clock, no
// sockets, and no lock of its own; each method is one event and appends to orders.
//
// The region's Barrier and Rollback, which take long, are begun by the group's
// coordinator as next says; their ends are events.
type machine struct {
	committed func() uint64     // the region's last committed epoch
	untracked func() bool       // Region.Untracked of the members
	unread    func(uint32) bool // a member has not read what was sent to it

	orders []order // appended to by each event

	phase    phase
	n        uint64 // of the last barrier
	seats    []seat // of members that may take part in barriers
	departed []seat // left after DONE; their rings are still being taken
	joining  []seat // wait for the end of what is under way
	waiting  []request
	served   []request     // of the present barrier
	interval time.Duration // what a new member is told

	lost    bool // a member died since the last rollback began
	drain   bool // the next barrier needs write-back
	drained bool // this one had it
	drainer uint32
	sealed  bool   // this barrier sealed an epoch, ...
	epoch   uint64 // this one
	durable uint64 // what the members know to be committed: the last epoch of a barrier

	counters counters
}

// counters are what Status tells of a machine.
type counters struct {
	calledOff uint64
	rollbacks uint64
	late      LateError // the last
	lateN     uint64    // its barrier
	last      Barrier   // the last that sealed; its times are the driver's
}

func (m *machine) send(to uint32, msg wire.Message) {
	m.orders = append(m.orders, order{kind: orderSend, to: to, msg: msg})
}

func (m *machine) arm(d time.Duration) {
	m.orders = append(m.orders, order{kind: orderArm, wait: d})
}

// seat returns a member that takes part, or nil.
func (m *machine) seat(id uint32) *seat {
	for i := range m.seats {
		if m.seats[i].id == id {
			return &m.seats[i]
		}
	}
	return nil
}

// all reports whether every seat has a property.
func (m *machine) all(has func(*seat) bool) bool {
	return !slices.ContainsFunc(m.seats, func(s seat) bool { return !has(&s) })
}

// A task is what the coordinator has to begin.
type task int

const (
	taskNone     task = iota
	taskBarrier       // Region.Barrier with begin
	taskPark          // begin, and nothing sealed: the survivors are to park
	taskRollback      // rollback, Region.Rollback, rolledBack
	taskEnd           // nobody is left
)

// next returns what is to begin now. tick says that the interval is over. While a
// member does not even read its messages nothing begins: all others would be parked
// in vain.
func (m *machine) next(tick bool) task {
	switch {
	case m.phase == parked:
		return taskRollback
	case m.phase == over:
		return taskEnd
	case m.phase != idle:
		return taskNone
	case m.lost && len(m.seats) == 0:
		m.phase = parked
		return taskRollback
	case len(m.seats) == 0:
		return taskEnd
	}
	if s := m.stuck(); s != nil {
		m.answerLate(LateError{PID: s.pid, Name: s.name})
		return taskNone
	}
	switch {
	case m.lost:
		return taskPark
	case len(m.waiting) > 0, tick && m.mayTick():
		return taskBarrier
	}
	return taskNone
}

// mayTick reports whether a barrier that nobody asked for makes sense: it would
// take the changes of a member that parks no threads half made.
func (m *machine) mayTick() bool {
	return m.all(func(s *seat) bool { return s.flags&wire.RestartPoints != 0 })
}

// anyRestartPoints reports whether a barrier is more than a commit.
func (m *machine) anyRestartPoints() bool {
	return !m.all(func(s *seat) bool { return s.flags&wire.RestartPoints == 0 })
}

// stuck returns a member that let a barrier time out and has not read what it was
// sent then, or nil.
func (m *machine) stuck() *seat {
	for i := range m.seats {
		s := &m.seats[i]
		if s.silent = s.silent && m.unread(s.id); s.silent {
			return s
		}
	}
	return nil
}

// calm reports whether no rollback is due or under way.
func (m *machine) calm() bool {
	return m.phase == over || !m.lost && m.phase != parked && m.phase != rollingBack
}

// settle ends a barrier or rollback.
func (m *machine) settle() {
	m.phase = idle
	m.departed = nil
	if m.lost {
		return
	}
	for _, s := range m.joining {
		m.welcome(s)
	}
	m.joining = nil
}

// answer ends requests.
func (m *machine) answer(reqs []request, out outcome) {
	for _, r := range reqs {
		if r.member == 0 {
			m.orders = append(m.orders, order{kind: orderAnswer, req: r, out: out})
		} else if s := m.seat(r.member); s != nil {
			s.requests--
			tid := out.late.TID
			if out.errno == unix.ETIMEDOUT && tid == 0 {
				tid = uint32(out.late.PID)
			}
			m.send(r.member, &wire.Result{ID: r.id, Errno: out.errno, LateTID: tid, Epoch: out.epoch})
		}
	}
}

// answerLate ends all requests that wait.
func (m *machine) answerLate(late LateError) {
	m.answer(m.waiting, outcome{errno: unix.ETIMEDOUT, late: late, epoch: m.durable, err: &late})
	m.waiting = nil
}

// gone ends the group: its region is of no more use.
func (m *machine) gone(err error, errno unix.Errno) {
	if m.phase == over {
		return
	}
	m.phase = over
	out := outcome{errno: errno, epoch: m.durable, err: err}
	m.answer(m.served, out)
	m.answer(m.waiting, out)
	m.served, m.waiting = nil, nil
	for _, s := range slices.Concat(m.seats, m.joining) {
		m.orders = append(m.orders, order{kind: orderThrow, to: s.id, msg: &wire.Gone{Errno: errno}})
	}
	m.seats, m.joining, m.departed = nil, nil, nil
}
