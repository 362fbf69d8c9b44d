package attach

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// text is an order in short.
func (o order) text() string {
	switch o.kind {
	case orderSend, orderThrow:
		s := fmt.Sprintf("%d:", o.to)
		if o.kind == orderThrow {
			s = "throw " + s
		}
		switch v := o.msg.(type) {
		case *wire.Welcome:
			return fmt.Sprintf("%sWELCOME %d", s, v.N)
		case *wire.Due:
			return fmt.Sprintf("%sDUE %d %v", s, v.N, time.Duration(v.Timeout))
		case *wire.Drain:
			return fmt.Sprintf("%sDRAIN %d", s, v.N)
		case *wire.Go:
			return fmt.Sprintf("%sGO %d %v %d", s, v.N, v.Sole, len(v.Pages))
		case *wire.Release:
			return fmt.Sprintf("%sRELEASE %d %d", s, v.N, v.Errno)
		case *wire.Result:
			return fmt.Sprintf("%sRESULT %d %d", s, v.ID, v.Errno)
		case *wire.Committed:
			return s + "COMMITTED"
		case *wire.Lost:
			return s + "LOST"
		case *wire.Gone:
			return fmt.Sprintf("%sGONE %d", s, v.Errno)
		}
	case orderArm:
		return fmt.Sprintf("arm %v", o.wait)
	case orderSeal:
		return "seal"
	case orderConsume:
		return fmt.Sprintf("consume %d %d", o.to, o.upto)
	case orderFinish:
		return "finish " + map[bool]string{true: "well", false: "badly"}[o.err == nil]
	case orderCondemn:
		return "condemn"
	case orderAnswer:
		return fmt.Sprintf("answer %d %d", o.req.id, o.out.errno)
	}
	return fmt.Sprintf("%+v", o)
}

// A script is a machine with expectations.
type script struct {
	t *testing.T
	machine
	foreign, deaf bool // what untracked and unread say
}

func newScript(t *testing.T, members ...wire.Flags) *script {
	s := &script{t: t}
	s.committed = func() uint64 { return 7 }
	s.machine.untracked = func() bool { return s.foreign }
	s.unread = func(uint32) bool { return s.deaf }
	for i, f := range members {
		s.join(seat{id: uint32(i + 1), pid: 100 + i, flags: f})
	}
	s.orders = nil
	return s
}

// want compares what was ordered since the last time, separated by commas.
func (s *script) want(orders string) {
	s.t.Helper()
	var got []string
	for _, o := range s.orders {
		got = append(got, o.text())
	}
	s.orders = nil
	var want []string
	if orders != "" {
		want = strings.Split(orders, ", ")
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), orders)
	}
}

func (s *script) wantTask(tick bool, want task) {
	s.t.Helper()
	if got := s.next(tick); got != want {
		s.t.Errorf("got task %d, want %d", got, want)
	}
}

// upTo takes two members' barrier to a phase and forgets what was ordered.
func (s *script) upTo(p phase) {
	s.begin()
	if p == parking {
		s.orders = nil
		return
	}
	s.foreign = p == draining
	for _, m := range s.seats {
		s.ready(m.id, s.n)
	}
	s.foreign = false
	if p != draining {
		s.sealDone(nil, 8, nil, 0)
	}
	if p == consuming {
		for _, m := range s.seats {
			s.done(m.id, &wire.Done{N: s.n})
		}
	}
	s.orders = nil
	if s.phase != p {
		s.t.Fatalf("in phase %d, want %d", s.phase, p)
	}
}

func TestMachineBarrier(t *testing.T) {
	s := newScript(t, parks, parks)
	s.request(1, 11, 0)
	s.request(2, 12, 3*time.Second)
	s.request(0, 1, 2*time.Second)
	s.wantTask(false, taskBarrier)
	s.begin()
	s.want("1:DUE 1 3s, 2:DUE 1 3s, arm 4s")
	s.request(1, 13, time.Hour)
	s.ready(1, 1)
	s.ready(1, 1)
	s.want("")
	s.ready(2, 1)
	s.want("seal")
	s.sealDone([]uint64{4, 5}, 8, nil, 0)
	s.want("1:GO 1 false 2, 2:GO 1 false 2, arm 1m0s")
	s.done(2, &wire.Done{N: 1, Upto: 20})
	s.done(2, &wire.Done{N: 1, Upto: 21})
	s.want("consume 2 20")
	s.consumed(2, 1)
	s.done(1, &wire.Done{N: 1, Upto: 10})
	s.want("consume 1 10, 1:RELEASE 1 0, 2:RELEASE 1 0")
	s.consumed(1, 1)
	s.want("finish well")
	s.barrierDone(8, nil, 0)
	s.want("1:COMMITTED, 2:COMMITTED, 1:RESULT 11 0, 2:RESULT 12 0, answer 1 0")
	s.wantTask(false, taskBarrier)
	s.begin()
	s.want("1:DUE 2 1m0s, 2:DUE 2 1m0s, arm 1m1s")
}

// What was asked of the kernel once is asked again if no epoch came of it.
func TestMachineDrain(t *testing.T) {
	s := newScript(t, parks)
	s.untrackedStores()
	s.begin()
	s.ready(1, 1)
	s.want("1:DUE 1 1s, arm 2s, arm 1m0s, 1:DRAIN 1")
	s.drainDone(1, 1, unix.EIO)
	s.want("1:RELEASE 1 5, finish badly")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.begin()
	s.ready(1, 2)
	s.want("1:DUE 2 1s, arm 2s, arm 1m0s, 1:DRAIN 2")
	s.drainDone(1, 2, 0)
	s.want("seal")
	s.sealDone(nil, 0, errors.New("no"), unix.ENOSPC)
	s.want("1:RELEASE 2 28, finish badly")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.begin()
	s.ready(1, 3)
	s.drainDone(1, 3, 0)
	s.sealDone(make([]uint64, 9), 8, nil, 0)
	s.want("1:DUE 3 1s, arm 2s, arm 1m0s, 1:DRAIN 3, seal, 1:GO 3 true 0, arm 1m0s")
	s.untrackedStores() // of the next epoch
	s.done(1, &wire.Done{N: 3})
	s.consumed(1, 3)
	s.barrierDone(8, nil, 0)
	s.want("consume 1 0, 1:RELEASE 3 0, finish well, 1:COMMITTED")
	s.begin()
	s.ready(1, 4)
	s.want("1:DUE 4 1s, arm 2s, arm 1m0s, 1:DRAIN 4")
}

// A death in each phase, of the last and with a survivor.
func TestMachineDeath(t *testing.T) {
	for _, c := range []struct {
		phase  phase
		orders string
	}{
		{idle, "condemn"},
		{parking, "condemn, finish badly"},
		{draining, "condemn, finish badly"},
		{copying, "condemn, finish badly"},
	} {
		s := newScript(t, parks, parks)
		s.request(2, 5, 0)
		if c.phase != idle {
			s.upTo(c.phase)
		}
		s.leave(1, false)
		if c.phase == parking {
			s.ready(2, 1)
		}
		s.want(c.orders)
		if c.phase == idle {
			s.wantTask(false, taskPark)
			s.begin()
			s.ready(2, 1)
			s.want("2:DUE 1 1s, arm 2s, finish badly")
		}
		s.barrierDone(0, ErrLost, unix.EIO)
		s.join(seat{id: 3, flags: parks})
		s.want("")
		s.wantTask(true, taskRollback)
		s.rollback()
		s.rolledBack()
		s.want("2:LOST, 2:RELEASE 1 130, 2:RESULT 5 130, 3:WELCOME 1")

		s = newScript(t, parks)
		s.request(0, 5, 0)
		if c.phase != idle {
			s.upTo(c.phase)
		}
		s.leave(1, false)
		s.want(c.orders)
		if c.phase != idle {
			s.barrierDone(0, ErrLost, unix.EIO)
		}
		s.wantTask(false, taskRollback)
		s.rollback()
		s.rolledBack()
		s.want("answer 5 130")
		s.wantTask(false, taskEnd)
	}
}

// Who dies after its DONE leaves a whole epoch, which commits; the rollback is of
// the next.
func TestMachineDeathAfterDone(t *testing.T) {
	s := newScript(t, parks, parks)
	s.request(2, 5, 0)
	s.upTo(copying)
	s.done(1, &wire.Done{N: 1, Upto: 4})
	s.leave(1, false)
	s.done(2, &wire.Done{N: 1, Upto: 6})
	s.consumed(2, 1)
	s.want("consume 1 4, condemn, consume 2 6, 2:RELEASE 1 0")
	if !s.left(1) {
		t.Error("its ring is forgotten")
	}
	s.consumed(1, 1)
	s.want("finish well")
	s.barrierDone(8, nil, 0)
	s.want("2:COMMITTED, 2:RESULT 5 0")
	s.wantTask(false, taskPark)

	// But if its ring turns out broken, that epoch is lost as well.
	s = newScript(t, parks, parks)
	s.upTo(consuming)
	s.leave(1, false)
	s.consumed(2, 1)
	s.throw(1, unix.EPROTO)
	s.want("condemn, condemn, finish badly, throw 1:GONE 71")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.wantTask(false, taskPark)
	// The same while it is still there.
	s = newScript(t, parks, parks)
	s.upTo(consuming)
	s.consumed(2, 1)
	s.throw(1, unix.EPROTO)
	s.want("condemn, finish badly, throw 1:GONE 71")
}

// A member detaches in each phase: the epoch stays open, or commits without it.
func TestMachineDetach(t *testing.T) {
	s := newScript(t, parks, parks)
	s.upTo(parking)
	s.ready(2, 1)
	s.leave(1, true)
	s.want("arm 1m0s, 2:DRAIN 1")

	s = newScript(t, parks, parks)
	s.request(2, 5, 0)
	s.upTo(draining) // by 1
	s.leave(1, true)
	s.want("2:RELEASE 1 11, finish badly")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.wantTask(false, taskBarrier)
	s.begin()
	s.ready(2, 2)
	s.want("2:DUE 2 1s, arm 2s, arm 1m0s, 2:DRAIN 2")
	s.drainDone(1, 2, 0) // who?
	s.want("")

	s = newScript(t, parks, parks)
	s.upTo(draining)
	s.leave(2, true)
	s.drainDone(1, 1, 0)
	s.want("seal")

	s = newScript(t, parks, parks)
	s.upTo(copying)
	s.leave(1, true)
	s.want("2:RELEASE 1 11, finish badly")

	s = newScript(t, parks)
	s.request(1, 5, 0)
	s.request(0, 6, 0)
	s.upTo(parking)
	s.leave(1, true)
	s.want("finish badly")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.wantTask(true, taskEnd)
	s.gone(errEnded, unix.ECANCELED)
	s.want("answer 6 125")
}

// A time-out in each phase.
func TestMachineTimeout(t *testing.T) {
	for _, p := range []phase{parking, draining, copying} {
		s := newScript(t, parks, parks)
		s.request(2, 5, 0)
		s.request(0, 6, 0)
		s.upTo(p)
		switch p {
		case parking:
			s.ready(2, 1)
		case copying:
			s.done(2, &wire.Done{N: 1})
			s.want("consume 2 0")
		}
		s.timeout()
		s.want("1:RELEASE 1 110, 2:RELEASE 1 110, 2:RESULT 5 110, answer 6 110, finish badly")
		if s.counters.late.PID != 100 || s.counters.lateN != 1 {
			t.Errorf("late: %+v", s.counters.late)
		}
		s.timeout() // too late
		s.want("")
		s.barrierDone(0, ErrLate, unix.ETIMEDOUT)

		s.deaf = true // it does not read
		s.request(2, 7, 0)
		s.wantTask(true, taskNone)
		s.want("2:RESULT 7 110")
		s.deaf = false
		s.wantTask(true, taskBarrier)
	}
	s := newScript(t, parks)
	s.upTo(consuming)
	s.timeout()
	s.want("")
}

// Who waits too long for its welcome is refused; who has it stays.
func TestMachineAbandon(t *testing.T) {
	s := newScript(t, parks)
	s.upTo(parking)
	s.join(seat{id: 2})
	if s.abandon(1) || !s.abandon(2) {
		t.Error("the wrong one was put out")
	}
	s.want("2:WELCOME 0")
	s.ready(1, 1)
	s.sealDone(nil, 8, nil, 0)
	s.done(1, &wire.Done{N: 1})
	s.consumed(1, 1)
	s.barrierDone(8, nil, 0)
	if len(s.seats) != 1 || len(s.joining) != 0 {
		t.Errorf("seats %+v, joining %+v", s.seats, s.joining)
	}
}

// Members that nobody may stop are not stopped by the clock.
func TestMachineTick(t *testing.T) {
	s := newScript(t, parks, parks)
	s.wantTask(false, taskNone)
	s.wantTask(true, taskBarrier)
	s.join(seat{id: 3, flags: wire.Tracks | wire.CommitOnly})
	s.wantTask(true, taskNone)
	s.request(3, 1, 0)
	s.wantTask(true, taskBarrier)
}

// What fails on the daemon's side, or is called off by it.
func TestMachineFailures(t *testing.T) {
	for _, p := range []phase{parking, draining, copying, consuming} {
		s := newScript(t, parks)
		s.request(1, 5, 0)
		s.upTo(p)
		s.cancel(errors.New("stopping"))
		want := "1:RELEASE 1 125, 1:RESULT 5 125, finish badly"
		if p == consuming {
			want = "1:RESULT 5 125, finish badly" // it goes on already
		}
		s.want(want)
	}
	for _, p := range []phase{copying, consuming} {
		s := newScript(t, parks)
		s.upTo(p)
		s.captureFailed(1, unix.ENOSPC, unix.ENOSPC) // of the next epoch
		s.want("")
		s.captureFailed(0, unix.ENOSPC, unix.ENOSPC)
		s.barrierDone(0, unix.ENOSPC, unix.ENOSPC)
		s.orders = nil
		s.begin()
		s.ready(1, 2)
		s.want("1:DUE 2 1s, arm 2s, arm 1m0s, 1:DRAIN 2")
	}
	s := newScript(t, parks)
	s.upTo(copying)
	s.done(1, &wire.Done{N: 1, Errno: unix.ENOMEM})
	s.want("1:RELEASE 1 12, finish badly")
	s.barrierDone(0, ErrCalledOff, unix.EIO)
	s.begin()
	s.ready(1, 2)
	s.want("1:DUE 2 1s, arm 2s, arm 1m0s, 1:DRAIN 2")

	s = newScript(t, parks)
	s.request(1, 5, 0)
	s.upTo(consuming)
	s.consumed(1, 1)
	s.barrierDone(0, unix.ENOSPC, unix.ENOSPC)
	s.want("finish well, 1:RESULT 5 28")
	s.request(1, 6, 0)
	s.barrierDone(0, unix.EIO, unix.EIO) // Barrier did not come to quiesce
	s.want("1:RESULT 6 5")
	s.request(1, 7, 0)
	s.gone(unix.EIO, unix.EIO)
	s.want("1:RESULT 7 5, throw 1:GONE 5")
	s.wantTask(false, taskEnd)
}

// Words of barriers that are over are ignored; of those to come they are lies.
func TestMachineStale(t *testing.T) {
	s := newScript(t, parks, parks)
	s.upTo(parking)
	s.timeout()
	s.barrierDone(0, ErrLate, unix.ETIMEDOUT)
	s.begin()
	s.orders = nil
	s.ready(1, 1)
	s.late(1, 1, 3, "late")
	s.done(1, &wire.Done{N: 1})
	s.drainDone(1, 1, 0)
	s.ready(2, 2)
	s.late(2, 2, 3, "after all")
	s.ready(9, 2)
	s.want("")
	s.ready(1, 3)
	s.want("condemn, finish badly, throw 1:GONE 71")
}

// An epoch that no barrier made is not reported as one that holds members' stores.
func TestMachineForeignEpoch(t *testing.T) {
	region := uint64(7)
	s := newScript(t)
	s.committed = func() uint64 { return region }
	epoch := func() uint64 {
		t.Helper()
		defer func() { s.orders = nil }()
		for _, o := range s.orders {
			switch v := o.msg.(type) {
			case *wire.Welcome:
				return v.Epoch
			case *wire.Result:
				return v.Epoch
			case *wire.Lost:
				return v.Epoch
			}
		}
		t.Error("no epoch")
		return 0
	}
	want := func(want uint64) {
		t.Helper()
		if got := epoch(); got != want {
			t.Errorf("got epoch %d, want %d", got, want)
		}
	}
	s.join(seat{id: 1, flags: parks})
	want(7)
	region = 8 // by write(2) and close
	s.request(1, 1, 0)
	s.upTo(copying)
	s.timeout()
	want(7)
	s.barrierDone(0, ErrLate, unix.ETIMEDOUT)
	s.join(seat{id: 2, flags: parks})
	want(8)
	s.leave(2, false)
	s.upTo(parking)
	s.ready(1, 2)
	s.rollback()
	s.rolledBack()
	want(8)
}
