package attach

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
	"github.com/rpmemfs/rpmemfs/epoch"
)

// A group is a file with its members. The server adds members; run begins barriers
// and rollbacks.
//
// Lock order: driveMu, then captureMu, then a link's mu.
type group struct {
	ino      uint64
	region   Region // closed by run
	interval func(uint64) time.Duration
	errno    func(error) unix.Errno
	paused   func(time.Duration)
	log      *slog.Logger
	work     chan struct{}  // wakes run; has room for one
	ended    chan struct{}  // closed when the server has forgotten it
	serving  sync.WaitGroup // of members

	// driveMu serialises events and what they order: it is held across the seal, and
	// across sends, which do not wait.
	driveMu sync.Mutex
	machine machine
	members map[uint32]*member
	calls   map[uint64]chan outcome // of Checkpoint, by request
	lastID  uint64                  // of a request
	calm    chan struct{}           // closed when no rollback is due; nil if nobody waits
	timer   *time.Timer
	armed   uint64 // counts timers
	seal    func() (extra []uint64, id epoch.ID, err error)
	finish  chan<- error // of the present barrier; has room for one
	due     time.Time    // the present barrier began
	allIn   time.Time    // all were parked

	// captureMu is held for reading across Region.Capture, and for writing while the
	// fields below change, across the seal too: a page goes to the epoch that its tag
	// says as of one moment.
	captureMu sync.RWMutex
	sealing   uint64 // the barrier whose pages are being taken; 0: none
	discard   uint64 // entries with an older tag are of an epoch that was rolled back
}

func newGroup(ino uint64, region Region, cfg *Config) *group {
	g := &group{
		ino: ino, region: region, interval: cfg.Interval, errno: cfg.Errno, paused: cfg.Paused, log: cfg.Log,
		work: make(chan struct{}, 1), ended: make(chan struct{}),
		members: make(map[uint32]*member), calls: make(map[uint64]chan outcome),
	}
	g.machine.committed = func() uint64 { return uint64(region.Committed()) }
	g.machine.untracked = func() bool {
		pids := make([]int, 0, len(g.machine.seats))
		for _, s := range g.machine.seats {
			pids = append(pids, s.pid)
		}
		return region.Untracked(pids)
	}
	g.machine.unread = func(id uint32) bool { c := g.members[id]; return c != nil && c.link.unread() }
	return g
}

// drive makes an event and carries out what the machine orders.
func (g *group) drive(event func(m *machine)) {
	g.driveMu.Lock()
	defer g.driveMu.Unlock()
	g.driveLocked(event)
	if g.machine.phase == idle || g.machine.phase == over {
		g.poke()
	}
}

// driveLocked is drive without waking run, which calls it itself.
func (g *group) driveLocked(event func(m *machine)) {
	m := &g.machine
	event(m)
	for i := 0; i < len(m.orders); i++ { // carrying one out may add more
		g.carryOut(m.orders[i])
	}
	clear(m.orders)
	m.orders = m.orders[:0]
	if g.calm != nil && m.calm() {
		close(g.calm)
		g.calm = nil
	}
}

// poke makes run look for work.
func (g *group) poke() {
	select {
	case g.work <- struct{}{}:
	default:
	}
}

// carryOut does what the machine ordered. driveMu is held.
func (g *group) carryOut(o order) {
	switch o.kind {
	case orderSend:
		g.send(o.to, o.msg)
	case orderThrow:
		if c := g.members[o.to]; c != nil {
			_ = c.link.send(o.msg) // it is out, whether it reads this or not
			g.part(c)
			_ = c.link.conn.CloseRead() // its reader ends
		}
	case orderArm:
		g.arm(o.wait)
	case orderSeal:
		g.sealNow()
	case orderConsume:
		if c := g.members[o.to]; c != nil {
			c.targetN = g.machine.n
			c.target.Store(o.upto)
			c.wake()
		}
	case orderFinish:
		g.disarm()
		g.captureMu.Lock()
		g.sealing = 0
		g.captureMu.Unlock()
		g.finish <- o.err
	case orderCondemn:
		g.region.Condemn()
	case orderAnswer:
		if call := g.calls[o.req.id]; call != nil {
			delete(g.calls, o.req.id)
			call <- o.out
		}
	}
}

// send sends a message to a member, or takes out one that does not read.
func (g *group) send(to uint32, msg wire.Message) {
	c := g.members[to]
	if c == nil {
		return
	}
	m := &g.machine
	switch v := msg.(type) {
	case *wire.Welcome:
		c.welcomed()
	case *wire.Release:
		if v.Errno == 0 && v.N == m.counters.last.N && m.counters.last.Pause == 0 {
			m.counters.last.Pause = time.Since(g.allIn)
			g.paused(m.counters.last.Pause)
		}
	}
	if err := c.link.send(msg); err != nil {
		g.log.Warn("member thrown out", "ino", g.ino, "pid", c.seat.pid, "name", c.seat.name, "err", err)
		m.throw(to, unix.EPROTO)
	}
}

// sealNow seals while no page is on its way into an epoch.
func (g *group) sealNow() {
	m := &g.machine
	g.allIn = time.Now()
	g.captureMu.Lock()
	extra, id, err := g.seal()
	if err == nil {
		g.sealing = m.n
	}
	g.captureMu.Unlock()
	m.sealDone(extra, uint64(id), err, g.errno(err))
	if m.phase == copying {
		m.counters.last.Park = g.allIn.Sub(g.due)
	}
}

// arm makes the machine's time-out come after d, unless it is armed again.
func (g *group) arm(d time.Duration) {
	g.disarm()
	armed := g.armed
	g.timer = time.AfterFunc(d, func() {
		g.drive(func(m *machine) {
			if armed == g.armed {
				m.timeout()
			}
		})
	})
}

func (g *group) disarm() {
	g.armed++
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}

// part makes the consumer of a member that left end: at the position up to which
// the ring belongs to the barrier that it took part in, or now. driveMu is held.
func (g *group) part(c *member) {
	if c.limit.Load() != none {
		return
	}
	limit := uint64(0)
	if g.machine.left(c.seat.id) {
		limit = c.target.Load()
	}
	c.limit.Store(limit)
	c.wake()
}

// capture hands a page to the region, as part of the epoch that its tag names.
func (g *group) capture(ctx context.Context, c *member, e *ring.Entry, page []byte) {
	if e.Page >= uint64(g.region.Size()+ring.PageSize-1)/ring.PageSize {
		return
	}
	if e.When > c.now { // a member may not win over later stores
		c.now = monotonic()
		e.When = min(e.When, c.now)
	}
	if err := g.take(ctx, c, e, page); err != nil {
		g.log.Warn("captured page dropped; the kernel will write it back", "ino", g.ino, "page", e.Page, "err", err)
		g.drive(func(m *machine) { m.captureFailed(e.Tag, err, g.errno(err)) })
	}
}

// take does that at one moment of sealing and rolling back.
func (g *group) take(ctx context.Context, c *member, e *ring.Entry, page []byte) error {
	g.captureMu.RLock()
	defer g.captureMu.RUnlock()
	if e.Tag < g.discard || c.ring.Pos() > c.limit.Load() {
		return nil
	}
	return g.region.Capture(ctx, e.Tag < g.sealing, e.Page, e.When, page)
}

// join adds a member, and tells it the interval; false if the group has ended.
func (g *group) join(c *member, interval time.Duration) (joined bool) {
	g.drive(func(m *machine) {
		if m.phase == over {
			return
		}
		joined = true
		c.group = g
		g.serving.Add(1)
		g.members[c.seat.id] = c
		m.interval = interval
		m.join(c.seat)
	})
	return joined
}

// forget drops a member that is out, and whose ring is taken.
func (g *group) forget(c *member) {
	g.driveMu.Lock()
	defer g.driveMu.Unlock()
	delete(g.members, c.seat.id)
	g.serving.Done()
}
