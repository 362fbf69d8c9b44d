package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// joinTimeout bounds how long a new member waits for the end of what is under way.
const joinTimeout = 30 * time.Second

// dead reports whether the process is gone, or its end of the connection.
func (c *member) dead() bool {
	gone := false
	_ = c.link.raw.Control(func(fd uintptr) { gone = readable(int(fd), unix.POLLRDHUP) }) // closed: it has left
	if c.peer.pidfd != nil && !gone {
		if raw, err := c.peer.pidfd.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { gone = readable(int(fd), unix.POLLIN) }) // the same
		}
	}
	return gone
}

// monotonic returns CLOCK_MONOTONIC in ns.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // the clock always exists
	}
	return ts.Nano()
}

// none is no position of a ring.
const none = math.MaxUint64

// A member is a connection with its ring. Its reader drives the group's machine;
// its consumer takes the ring.
type member struct {
	group *group
	seat  seat
	uid   uint32
	peer  *peer
	link  *link
	ring  *ring.Consumer
	hold  Region // closed when the member is out; nil for the first of a group

	kick chan struct{} // wakes the consumer; has room for one
	left chan struct{} // closed when the machine knows that the member left

	now int64 // CLOCK_MONOTONIC, not later than it is; the consumer's

	// target is the position up to which the ring belongs to barrier targetN, stored
	// when the member said DONE, none when the machine knows that it is taken. Both
	// change under group.driveMu.
	target  atomic.Uint64
	targetN uint64
	// limit is the position from which on entries are dropped; stored when the member
	// left, with none before. Changes are seen by whoever holds group.captureMu
	// after the change.
	limit atomic.Uint64
}

// serve reads the member's messages until it is out.
func (c *member) serve(ctx context.Context) {
	g := c.group
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		c.consume(ctx)
		_ = c.ring.Close() // a mapping; nothing is lost
	}()
	dead := make(chan bool, 1)
	var watch sync.WaitGroup
	watch.Go(func() {
		died := c.peer.awaitDeath()
		if died {
			_ = c.link.conn.CloseRead() // the reader takes what is queued, then ends
		}
		dead <- died
	})
	detached, err := c.read()
	detached = detached || errors.Is(err, io.EOF) && c.replaced(dead)
	died := false
	g.drive(func(m *machine) {
		died = !detached && m.seat(c.seat.id) != nil
		m.leave(c.seat.id, detached)
		g.part(c)
	})
	close(c.left)
	if died {
		g.log.Warn("member died: the open epoch is rolled back", "ino", g.ino, "pid", c.seat.pid, "name", c.seat.name, "err", err)
	}
	c.peer.close()
	c.link.close()
	watch.Wait()
	<-consumed
	if c.hold != nil {
		c.hold.Close()
	}
	g.forget(c)
}

// execWait is how long a process whose connection ended may take to be gone.
const execWait = 100 * time.Millisecond

// replaced reports whether a preloaded program called exec: its connection is gone,
// the process is not. That is an orderly end of an unmodified program.
func (c *member) replaced(dead <-chan bool) bool {
	if c.seat.flags&wire.CommitOnly == 0 {
		return false
	}
	select {
	case <-dead: // or nobody knows
		return false
	case <-time.After(execWait):
		return !dying(c.seat.pid) && !c.peer.gone()
	}
}

// dying reports whether a process is about to be gone: on a busy machine more than
// execWait may pass between the end of its connections and its own.
func dying(pid int) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// After the name, which may hold anything: state, five numbers, flags (proc(5)).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	const exiting = 0x4 // PF_EXITING
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&exiting != 0 || bytes.ContainsAny(fields[0], "ZX")
}

// read takes messages until DETACH, the end of the connection, or one that breaks
// the protocol.
func (c *member) read() (detached bool, err error) {
	b := make([]byte, wire.MaxRequest+1) // a longer message is cut, and then malformed
	for reset := false; ; {
		n, err := c.link.conn.Read(b)
		if errors.Is(err, unix.ECONNRESET) && !reset {
			// It closed with messages unread. What it sent before is still to come,
			// perhaps a DETACH.
			reset = true
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			abandoned := false
			c.group.drive(func(m *machine) { abandoned = m.abandon(c.seat.id) })
			if !abandoned {
				continue // the deadline was lifted just then
			}
		}
		if err != nil {
			return false, err
		}
		msg, err := wire.Decode(b[:n])
		if err != nil {
			c.throw(err)
			return false, err
		}
		if _, ok := msg.(*wire.Detach); ok {
			return true, nil
		}
		if err := c.dispatch(msg); err != nil {
			c.throw(err)
			return false, err
		}
	}
}

// welcomed lifts the deadline of the welcome, which goes out now.
func (c *member) welcomed() { _ = c.link.conn.SetReadDeadline(time.Time{}) } // closed: its reader ends

// dispatch makes an event of a message.
func (c *member) dispatch(msg wire.Message) error {
	g, id := c.group, c.seat.id
	switch v := msg.(type) {
	case *wire.Kick:
		c.wake()
	case *wire.Ready:
		g.drive(func(m *machine) { m.ready(id, v.N) })
	case *wire.Done:
		if err := c.ring.Check(v.Upto); err != nil {
			return err
		}
		g.drive(func(m *machine) { m.done(id, v) })
	case *wire.Request:
		g.drive(func(m *machine) { m.request(id, v.ID, duration(v.Timeout)) })
	case *wire.Late:
		g.drive(func(m *machine) { m.late(id, v.N, v.TID, printable(v.Name)) })
	case *wire.Drained:
		g.drive(func(m *machine) { m.drainDone(id, v.N, v.Errno) })
	case *wire.Untracked:
		g.drive(func(m *machine) { m.untrackedStores() })
	default:
		return errors.New("attach: a message that members do not send")
	}
	return nil
}

// throw puts the member out.
func (c *member) throw(err error) {
	c.group.log.Warn("member thrown out", "ino", c.group.ino, "pid", c.seat.pid, "name", c.seat.name, "err", err)
	c.group.drive(func(m *machine) { m.throw(c.seat.id, unix.EPROTO) })
}

func (c *member) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// consume takes the ring's entries in order until the member is out, and what it
// said DONE for is taken.
func (c *member) consume(ctx context.Context) {
	var e ring.Entry
	page := make([]byte, ring.PageSize)
	for {
		// Before Next: all below a target was published before it was known.
		target := c.target.Load()
		if target != none && c.ring.Pos() >= target {
			c.group.drive(func(m *machine) {
				c.target.Store(none)
				m.consumed(c.seat.id, c.targetN)
			})
			continue
		}
		if c.ring.Pos() >= c.limit.Load() {
			return
		}
		ok, err := c.ring.Next(&e, page)
		if err == nil && !ok && target != none {
			err = ring.ErrProtocol
		}
		if err != nil {
			c.throw(err)
			return
		}
		if ok {
			c.group.capture(ctx, c, &e, page)
		} else if c.ring.Sleep() {
			// A target or limit that is new by now comes with a kick.
			<-c.kick
			c.ring.Wake()
		}
	}
}
