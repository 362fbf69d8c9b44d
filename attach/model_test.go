package attach

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// The model is a file with its group and all its members: every order of all their
// steps is tried. A member has one thread, which changes two pages of its own and
// then is at a restart point; a helper, which speaks with the daemon; a socket each
// way, and a ring. The kernel may write any page back at any time. Faults are deaths,
// detaching, late threads, time-outs and a full pool, as many as a case allows.
//
// Checked is at each seal that every thread is parked, at each commit that it holds
// memory as it was at the seal, at each rollback that nobody runs, and at the end
// that nobody waits and that who survived a death was told.

// A page holds the number of its last change.
type (
	entry struct {
		page  int
		value int
		tag   uint64
	}
	mmsg struct { // a message in a socket
		kind  string
		n     uint64
		errno unix.Errno
		upto  int
		sole  bool
	}
	modelMember struct {
		alive, attached bool
		said            bool // DETACH, or the end of file, was sent
		inbox, outbox   []mmsg
		ring            []entry
		taken           int    // entries of the ring
		failed          uint64 // 1 + tag of an entry that was dropped, unknown to the machine
		upto            int    // -1: not waiting for any
		consumeN        uint64

		// The process.
		changes       int  // left to make
		half          bool // between the two stores of a change
		due, released uint64
		acked         uint64
		saidReady     bool
		tag           uint64
		dirty         [2]bool // tracked stores
		mustTell      bool    // a death that this member has to be told of
		lost          bool    // LOST arrived, the thread has not seen it
		asks          int     // requests left to make
		waits         int     // requests without a result
		welcomed      bool
	}
	world struct {
		m       machine
		members []modelMember

		mem, committed []int
		kernel         []bool      // dirty in the page cache
		open, sealed   map[int]int // page to value
		snapshot       []int       // memory at the seal

		inBarrier, parkOnly bool // the coordinator is in quiesce
		finished            bool // quiesce has to return ...
		finishErr           error
		commitDue           bool // quiesce returned nil
		rolling             bool
		ended               bool
		sealing, discard    uint64
		armed               bool

		deaths, detaches, lates, timeouts, flushes, full, joins int // still allowed
		precopies                                               int
		trace                                                   []string
	}
)

// A bug is what a check found.
type bug struct{ text string }

func (w *world) fail(format string, args ...any) { panic(bug{fmt.Sprintf(format, args...)}) }

func (w *world) clone() *world {
	c := *w
	c.m.committed = func() uint64 { return 0 }
	c.m.untracked = func() bool { return false }
	c.m.unread = func(uint32) bool { return false }
	c.m.orders = nil
	c.m.seats = slices.Clone(w.m.seats)
	c.m.departed = slices.Clone(w.m.departed)
	c.m.joining = slices.Clone(w.m.joining)
	c.m.waiting = slices.Clone(w.m.waiting)
	c.m.served = slices.Clone(w.m.served)
	c.members = slices.Clone(w.members)
	for i := range c.members {
		m := &c.members[i]
		m.inbox, m.outbox, m.ring = slices.Clone(m.inbox), slices.Clone(m.outbox), slices.Clone(m.ring)
	}
	c.mem, c.committed, c.kernel = slices.Clone(w.mem), slices.Clone(w.committed), slices.Clone(w.kernel)
	c.snapshot = slices.Clone(w.snapshot)
	c.open, c.sealed = cloneMap(w.open), cloneMap(w.sealed)
	c.trace = slices.Clip(w.trace)
	return &c
}

func cloneMap(m map[int]int) map[int]int {
	if m == nil {
		return nil
	}
	c := make(map[int]int, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// key identifies a state.
func (w *world) key() [16]byte {
	k := *w
	k.m.committed, k.m.untracked, k.m.unread, k.m.orders = nil, nil, nil, nil
	k.m.counters = counters{}
	k.trace = nil
	sum := sha256.Sum256(fmt.Appendf(nil, "%v", k))
	return [16]byte(sum[:16])
}

// do carries out what the machine ordered.
func (w *world) do() {
	for len(w.m.orders) > 0 {
		orders := w.m.orders
		w.m.orders = nil
		for _, o := range orders {
			switch o.kind {
			case orderSend, orderThrow:
				w.deliver(&w.members[o.to-1], o.msg)
				if o.kind == orderThrow {
					w.fail("member %d is thrown out: %+v", o.to, o.msg)
				}
			case orderArm:
				w.armed = true
			case orderSeal:
				w.seal()
			case orderConsume:
				m := &w.members[o.to-1]
				m.upto, m.consumeN = int(o.upto), w.m.n
			case orderFinish:
				if w.finished || !w.inBarrier {
					w.fail("finished twice")
				}
				w.finished, w.finishErr, w.sealing = true, o.err, 0
			}
		}
	}
}

func (w *world) deliver(m *modelMember, msg wire.Message) {
	if !m.alive {
		return
	}
	var d mmsg
	switch v := msg.(type) {
	case *wire.Welcome:
		d = mmsg{kind: "welcome", n: v.N}
	case *wire.Due:
		d = mmsg{kind: "due", n: v.N}
	case *wire.Drain:
		d = mmsg{kind: "drain", n: v.N}
	case *wire.Go:
		d = mmsg{kind: "go", n: v.N, sole: v.Sole}
	case *wire.Release:
		d = mmsg{kind: "release", n: v.N, errno: v.Errno}
	case *wire.Lost:
		d = mmsg{kind: "lost"}
	case *wire.Result:
		d = mmsg{kind: "result", errno: v.Errno}
	case *wire.Committed:
		return
	default:
		w.fail("unexpected %+v", msg)
	}
	m.inbox = append(m.inbox, d)
}

func (w *world) seal() {
	if w.parkOnly || w.sealed != nil || w.m.lost {
		w.fail("sealed out of turn")
	}
	for i := range w.members {
		m := &w.members[i]
		if m.attached && m.alive && (m.half || !m.stopped()) {
			w.fail("sealed while member %d runs", i+1)
		}
	}
	w.sealed, w.open = w.open, map[int]int{}
	w.snapshot = slices.Clone(w.mem)
	w.sealing = w.m.n
	w.m.sealDone(nil, 1, nil, 0)
}

// stopped reports whether the thread is parked.
func (m *modelMember) stopped() bool { return !m.welcomed || m.acked == m.due && m.released < m.due }

// pages are those of member i.
func pages(i int) [2]int { return [2]int{2 * i, 2*i + 1} }

// newer puts a copy into a layer: of a page the newer counts.
func newer(layer map[int]int, page, value int) {
	if old, ok := layer[page]; !ok || value > old {
		layer[page] = value
	}
}

// steps returns what may happen next: each is tried on a copy of w.
func (w *world) steps() []step {
	var s []step
	add := func(name string, f func(w *world)) { s = append(s, step{name, f}) }
	for i := range w.members {
		w.memberSteps(i, add)
	}
	if w.flushes > 0 {
		for p := range w.kernel {
			if w.kernel[p] {
				add(fmt.Sprintf("kernel writes page %d back", p), func(w *world) {
					w.flushes--
					w.kernel[p] = false
					newer(w.open, p, w.mem[p])
				})
			}
		}
	}
	if w.timeouts > 0 && w.armed && (w.m.phase == parking || w.m.phase == draining || w.m.phase == copying) {
		add("time-out", func(w *world) {
			w.timeouts--
			w.m.timeout()
		})
	}
	if !w.ended {
		w.coordinatorSteps(add)
	}
	return s
}

type step struct {
	name string
	do   func(w *world)
}

func (w *world) coordinatorSteps(add func(string, func(*world))) {
	switch {
	case w.commitDue:
		add("commit", func(w *world) {
			w.commitDue = false
			for p, v := range w.sealed {
				w.committed[p] = v
			}
			w.sealed = nil
			if !slices.Equal(w.committed, w.snapshot) {
				w.fail("committed %v, memory at the seal was %v", w.committed, w.snapshot)
			}
			w.m.barrierDone(1, nil, 0)
		})
	case w.rolling:
		add("rolled back", func(w *world) {
			w.rolling = false
			for i := range w.members {
				m := &w.members[i]
				if m.alive && m.attached && !m.stopped() {
					w.fail("rolled back while member %d runs", i+1)
				}
				m.mustTell = m.alive && m.attached && m.welcomed
			}
			w.mem = slices.Clone(w.committed)
			w.open = map[int]int{}
			clear(w.kernel)
			w.m.rolledBack()
		})
	case w.inBarrier && w.finished:
		add("barrier returns", func(w *world) {
			w.inBarrier, w.finished = false, false
			if w.finishErr == nil {
				w.commitDue = true
				return
			}
			for p, v := range w.sealed { // opened again
				newer(w.open, p, v)
			}
			w.sealed = nil
			w.m.barrierDone(0, w.finishErr, unix.EIO)
		})
	case !w.inBarrier:
		if w.m.phase != idle && w.m.phase != parked && w.m.phase != over {
			w.fail("phase %v between two barriers", w.m.phase)
		}
		probe := w.clone()
		switch t := probe.m.next(false); t {
		case taskBarrier, taskPark:
			add("begin", func(w *world) {
				w.m.next(false)
				w.inBarrier, w.parkOnly = true, t == taskPark
				w.m.begin()
			})
		case taskRollback:
			add("rollback", func(w *world) {
				w.m.next(false)
				w.m.rollback()
				w.discard, w.rolling = w.m.n, true
			})
		case taskEnd:
			add("end", func(w *world) { w.ended = true })
		}
	}
}

func (w *world) memberSteps(i int, add func(string, func(*world))) {
	m := &w.members[i]
	id := uint32(i + 1)
	name := func(what string) string { return fmt.Sprintf("%d: %s", id, what) }
	on := func(what string, f func(w *world, m *modelMember)) {
		add(name(what), func(w *world) { f(w, &w.members[i]) })
	}
	// The daemon's end.
	if len(m.outbox) > 0 && !w.ended {
		on("daemon reads "+m.outbox[0].kind, func(w *world, m *modelMember) {
			msg := m.outbox[0]
			m.outbox = m.outbox[1:]
			w.read(id, m, msg)
		})
	}
	if m.failed > 0 {
		on("daemon learns of the full pool", func(w *world, m *modelMember) {
			tag := m.failed - 1
			m.failed = 0
			w.m.captureFailed(tag, unix.ENOSPC, unix.ENOSPC)
		})
	} else if m.taken < len(m.ring) && (m.attached || m.upto >= 0) {
		on("daemon takes an entry", func(w *world, m *modelMember) {
			e := m.ring[m.taken]
			m.taken++
			switch {
			case e.tag < w.discard:
			case w.sealing != 0 && e.tag < w.sealing:
				newer(w.sealed, e.page, e.value)
			default:
				newer(w.open, e.page, e.value)
			}
		})
		if e := m.ring[m.taken]; w.full > 0 && e.tag >= w.discard {
			on("pool full", func(w *world, m *modelMember) {
				w.full--
				m.taken++
				m.failed = e.tag + 1
			})
		}
	}
	if m.failed == 0 && m.upto >= 0 && m.taken >= m.upto {
		on("all taken", func(w *world, m *modelMember) {
			m.upto = -1
			w.m.consumed(id, m.consumeN)
		})
	}
	if !m.alive {
		return
	}
	// The process as a whole.
	if w.deaths > 0 && m.welcomed {
		on("dies", func(w *world, m *modelMember) {
			w.deaths--
			m.alive, m.inbox = false, nil
			m.outbox = append(m.outbox, mmsg{kind: "end of file"})
		})
	}
	if w.joins > 0 && !m.attached && !m.said {
		on("joins", func(w *world, m *modelMember) {
			w.joins--
			m.attached = true
			w.m.join(seat{id: id, flags: wire.Tracks | wire.RestartPoints})
		})
	}
	// The helper.
	if len(m.inbox) > 0 {
		on("gets "+m.inbox[0].kind, func(w *world, m *modelMember) {
			msg := m.inbox[0]
			m.inbox = m.inbox[1:]
			w.get(i, m, msg)
		})
	}
	if !m.welcomed {
		return
	}
	waiting := m.due > m.released
	if waiting && !m.saidReady {
		if w.precopies > 0 && (m.dirty[0] || m.dirty[1]) {
			on("copies early", func(w *world, m *modelMember) {
				w.precopies--
				w.copyOut(i, m)
			})
		}
		if m.acked == m.due {
			on("ready", func(w *world, m *modelMember) {
				m.saidReady = true
				m.outbox = append(m.outbox, mmsg{kind: "ready", n: m.due})
			})
		} else if w.lates > 0 {
			on("late", func(w *world, m *modelMember) {
				w.lates--
				m.saidReady = true
				m.outbox = append(m.outbox, mmsg{kind: "late", n: m.due})
			})
		}
	}
	// The thread.
	switch {
	case m.half:
		on("stores b", func(w *world, m *modelMember) {
			m.half = false
			w.store(m, pages(i), 1)
		})
		return
	case m.due != m.acked && waiting:
		on("parks", func(w *world, m *modelMember) { m.acked = m.due })
	}
	if m.stopped() {
		return
	}
	if m.lost {
		on("sees the loss", func(w *world, m *modelMember) {
			m.lost = false
			if w.mem[2*i] != w.mem[2*i+1] {
				w.fail("member %d sees half a change after a loss", id)
			}
		})
		return
	}
	if m.changes > 0 {
		on("stores a", func(w *world, m *modelMember) {
			m.changes--
			m.half = true
			w.store(m, pages(i), 0)
		})
	}
	if m.asks > 0 {
		on("asks", func(w *world, m *modelMember) {
			m.asks--
			m.waits++
			m.outbox = append(m.outbox, mmsg{kind: "request"})
		})
	}
	if w.detaches > 0 && !m.said && m.waits == 0 {
		on("detaches", func(w *world, m *modelMember) {
			w.detaches--
			m.said, m.welcomed, m.changes, m.asks = true, false, 0, 0
			m.outbox = append(m.outbox, mmsg{kind: "detach"})
		})
	}
}

func (w *world) store(m *modelMember, pages [2]int, which int) {
	p := pages[which]
	w.mem[p]++
	w.kernel[p] = true
	m.dirty[which] = true
}

func (w *world) copyOut(i int, m *modelMember) {
	for j, p := range pages(i) {
		if m.dirty[j] {
			m.ring = append(m.ring, entry{p, w.mem[p], m.tag})
			m.dirty[j] = false
		}
	}
}

// get is what a member does with a message.
func (w *world) get(i int, m *modelMember, msg mmsg) {
	switch msg.kind {
	case "welcome":
		m.welcomed, m.tag, m.due, m.released, m.acked = true, msg.n, msg.n, msg.n, msg.n
	case "due":
		m.due, m.saidReady = msg.n, false
	case "drain":
		for p := range w.kernel {
			if w.kernel[p] {
				w.kernel[p] = false
				newer(w.open, p, w.mem[p])
			}
		}
		m.outbox = append(m.outbox, mmsg{kind: "drained", n: msg.n})
	case "go":
		w.copyOut(i, m)
		m.outbox = append(m.outbox, mmsg{kind: "done", n: msg.n, upto: len(m.ring)})
		m.tag = msg.n
		if msg.sole {
			m.released = msg.n
		}
	case "release":
		m.tag, m.released = msg.n, max(m.released, msg.n)
		if msg.errno == unix.EOWNERDEAD && !m.lost {
			w.fail("member %d is released from a loss that it was not told of", i+1)
		}
	case "lost":
		if !m.mustTell {
			w.fail("member %d is told of a loss that was none", i+1)
		}
		m.lost, m.mustTell = true, false
		m.dirty = [2]bool{}
	case "result":
		m.waits--
	}
}

// read is what the daemon does with a message.
func (w *world) read(id uint32, m *modelMember, msg mmsg) {
	switch msg.kind {
	case "ready":
		w.m.ready(id, msg.n)
	case "late":
		w.m.late(id, msg.n, 0, "")
	case "drained":
		w.m.drainDone(id, msg.n, 0)
	case "done":
		w.m.done(id, &wire.Done{N: msg.n, Upto: uint64(msg.upto)})
	case "request":
		w.m.request(id, 1, time.Second)
	case "detach", "end of file":
		m.attached = false
		w.m.leave(id, msg.kind == "detach")
	}
}

// end checks a state in which nothing can happen any more.
func (w *world) end() {
	if w.inBarrier || w.rolling || w.commitDue || w.m.phase != idle && w.m.phase != over || !w.m.calm() {
		w.fail("stuck in phase %d", w.m.phase)
	}
	if len(w.m.waiting)+len(w.m.served)+len(w.m.joining)+len(w.m.departed) > 0 {
		w.fail("somebody waits: %+v", w.m)
	}
	for i := range w.members {
		m := &w.members[i]
		if !m.alive || m.said {
			continue
		}
		switch {
		case m.stopped() && m.welcomed:
			w.fail("member %d is parked for ever", i+1)
		case m.waits > 0:
			w.fail("member %d waits for a result", i+1)
		case m.mustTell:
			w.fail("member %d was not told of a loss", i+1)
		}
	}
}

// explore tries every order of steps and returns the number of states.
func explore(t *testing.T, w *world) int {
	seen := map[[16]byte]struct{}{}
	var at *world
	defer func() {
		if b, ok := recover().(bug); ok {
			for _, s := range at.trace {
				t.Log(s)
			}
			t.Fatal(b.text)
		}
	}()
	stack := []*world{w}
	for len(stack) > 0 {
		w := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		at = w
		steps := w.steps()
		if len(steps) == 0 {
			w.end()
		}
		for _, s := range steps {
			c := w.clone()
			c.trace = append(c.trace, s.name)
			at = c
			s.do(c)
			c.do()
			k := c.key()
			if _, ok := seen[k]; !ok {
				seen[k] = struct{}{}
				stack = append(stack, c)
			}
		}
	}
	return len(seen)
}

func newWorld(members, joined int, f func(w *world)) *world {
	w := &world{open: map[int]int{}}
	w.members = make([]modelMember, members)
	w.mem, w.committed, w.kernel = make([]int, 2*members), make([]int, 2*members), make([]bool, 2*members)
	w.m.committed = func() uint64 { return 0 }
	for i := range w.members {
		m := &w.members[i]
		*m = modelMember{alive: true, changes: 1, upto: -1}
		if i < joined {
			m.attached = true
			w.m.join(seat{id: uint32(i + 1), flags: wire.Tracks | wire.RestartPoints})
		}
	}
	w.do()
	for i := range w.members[:joined] {
		w.get(i, &w.members[i], w.members[i].inbox[0])
		w.members[i].inbox = nil
	}
	f(w)
	return w
}

// Every order of steps of small groups.
func TestModel(t *testing.T) {
	for _, c := range []struct {
		name            string
		members, joined int
		f               func(w *world)
	}{
		{"one member", 1, 1, func(w *world) {
			w.members[0].changes, w.members[0].asks, w.precopies, w.flushes = 2, 2, 1, 1
		}},
		{"one: detach, late", 1, 1, func(w *world) { w.members[0].asks, w.detaches, w.lates, w.flushes = 2, 1, 1, 1 }},
		{"one: full, time-out", 1, 1, func(w *world) { w.members[0].asks, w.full, w.timeouts, w.precopies = 2, 1, 1, 1 }},
		{"one: death, full", 1, 1, func(w *world) { w.members[0].asks, w.deaths, w.full, w.precopies = 2, 1, 1, 1 }},
		{"two members", 2, 2, func(w *world) { w.members[0].asks, w.members[1].asks, w.precopies = 1, 1, 1 }},
		{"two: death", 2, 2, func(w *world) { w.members[0].asks, w.deaths, w.precopies = 1, 1, 1 }},
		{"two: death, late", 2, 2, func(w *world) { w.members[0].asks, w.deaths, w.lates = 1, 1, 1 }},
		{"two: death, time-out", 2, 2, func(w *world) { w.members[0].asks, w.deaths, w.timeouts = 1, 1, 1 }},
		{"two: deaths", 2, 2, func(w *world) { w.members[0].asks, w.deaths = 1, 2 }},
		{"two: death, detach", 2, 2, func(w *world) { w.members[0].asks, w.deaths, w.detaches = 1, 1, 1 }},
		{"two: death, full", 2, 2, func(w *world) { w.members[0].asks, w.deaths, w.full = 1, 1, 1 }},
		{"two: detach, flush", 2, 2, func(w *world) { w.members[0].asks, w.detaches, w.flushes = 1, 1, 1 }},
		{"a joiner", 2, 1, func(w *world) { w.members[0].asks, w.joins, w.detaches = 1, 1, 1 }},
		{"a joiner, death", 2, 1, func(w *world) { w.members[0].asks, w.joins, w.deaths = 1, 1, 1 }},
		{"three members", 3, 3, func(w *world) { w.members[0].asks, w.members[2].changes = 1, 0 }},
		{"three: death", 3, 3, func(w *world) {
			w.members[0].asks, w.deaths = 1, 1
			w.members[1].changes, w.members[2].changes = 0, 0
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := explore(t, newWorld(c.members, c.joined, c.f))
			t.Logf("%d states", n)
		})
	}
}
