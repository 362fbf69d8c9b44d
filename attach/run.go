package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// errEnded is what callers get whose group has no members any more.
var errEnded = errors.New("attach: no members")

// maxIdle is how many intervals may pass between two epochs that nobody asked for,
// while nothing is stored.
const maxIdle = 8

// A pace says when the next barrier that nobody asked for begins: an interval after
// the last began, but not before that has committed, and after one that was called
// off not before threads have run for as long as they were parked. While epochs turn
// out empty the interval grows.
type pace struct {
	began, ended time.Time
	rest         time.Duration
	idle         time.Duration // intervals until the next; 1 after an epoch with pages
}

func (p *pace) next(interval time.Duration) time.Time {
	at := p.began.Add(interval * max(p.idle, 1))
	if end := p.ended.Add(p.rest); end.After(at) {
		return end
	}
	return at
}

// over says how the barrier that began at p.began ended.
func (p *pace) over(err error, empty bool) {
	p.ended, p.rest = time.Now(), 0
	switch {
	case err != nil:
		p.rest = p.ended.Sub(p.began)
	case empty:
		p.idle = min(2*max(p.idle, 1), maxIdle)
	default:
		p.idle = 1
	}
}

// run begins barriers and rollbacks, one at a time, until no member is left or ctx
// is done. It closes the region.
func (g *group) run(ctx context.Context) {
	defer g.region.Close()
	defer g.serving.Wait() // consumers use the region
	p := pace{began: time.Now()}
	for {
		interval := g.interval(g.ino)
		due := p.next(interval)
		tick := interval > 0 && !time.Now().Before(due)
		switch g.next(ctx, tick) {
		case taskBarrier:
			g.barrier(ctx, &p)
		case taskPark:
			if err := g.park(ctx); !errors.Is(err, ErrLost) {
				g.sleep(ctx, recoverPause, nil)
			}
		case taskRollback:
			g.rollback(ctx)
		case taskEnd:
			return
		case taskNone:
			wait := time.Until(due)
			switch {
			case interval <= 0:
				wait = time.Hour // until there is work
			case tick:
				wait = interval // the members cannot just now
			}
			g.sleep(ctx, wait, g.work)
		}
	}
}

// sleep waits for d, until ctx is done, or for work.
func (g *group) sleep(ctx context.Context, d time.Duration, work <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-work:
	case <-ctx.Done():
	}
}

// next returns what to begin, and begins it for the machine where that is all.
func (g *group) next(ctx context.Context, tick bool) (t task) {
	g.driveMu.Lock()
	defer g.driveMu.Unlock()
	g.driveLocked(func(m *machine) {
		if err := ctx.Err(); err != nil {
			m.gone(fmt.Errorf("attach: stopping: %w", err), unix.EIO)
		} else if err := g.region.Err(); err != nil && m.phase == idle && !m.lost {
			m.gone(err, unix.EIO)
		}
		t = m.next(tick)
		switch t {
		case taskRollback:
			m.rollback()
			g.captureMu.Lock()
			g.discard = m.n
			g.captureMu.Unlock()
		case taskEnd:
			m.gone(errEnded, unix.ECANCELED)
		}
	})
	return t
}

// barrier makes an epoch.
func (g *group) barrier(ctx context.Context, p *pace) {
	p.began = time.Now()
	id, err := g.region.Barrier(ctx, g.quiesce)
	if err != nil {
		g.log.Debug("barrier", "ino", g.ino, "err", err)
	}
	g.drive(func(m *machine) {
		p.over(err, m.counters.last.empty())
		m.barrierDone(uint64(id), err, g.errno(err))
	})
}

// park stops the survivors of a death. It returns ErrLost when they are parked.
func (g *group) park(ctx context.Context) error {
	err := g.quiesce(ctx, func() ([]uint64, epoch.ID, error) {
		return nil, 0, errors.New("attach: nothing to seal after a death")
	})
	g.drive(func(m *machine) { m.barrierDone(0, err, g.errno(err)) })
	return err
}

// quiesce is one barrier of the machine. Its events come from the members' readers
// and consumers.
func (g *group) quiesce(ctx context.Context, seal func() (extra []uint64, id epoch.ID, err error)) error {
	finish := make(chan error, 1)
	g.drive(func(m *machine) {
		g.seal, g.finish, g.due = seal, finish, time.Now()
		m.begin()
	})
	select {
	case err := <-finish:
		return err
	case <-ctx.Done():
	}
	g.drive(func(m *machine) { m.cancel(ctx.Err()) })
	return <-finish
}

// rollback throws the open epoch away; next said so.
func (g *group) rollback(ctx context.Context) {
	// Half a rollback is worse than a late one.
	err := g.region.Rollback(context.WithoutCancel(ctx))
	g.drive(func(m *machine) {
		if err != nil {
			g.log.Error("rollback after a member's death", "ino", g.ino, "err", err)
			m.gone(fmt.Errorf("roll back: %w", err), unix.EIO)
			return
		}
		m.rolledBack()
	})
}

// checkpoint runs a barrier that begins from now on. handled is false if no member
// parks threads.
func (g *group) checkpoint(ctx context.Context) (id epoch.ID, handled bool, err error) {
	call := make(chan outcome, 1)
	var request uint64
	g.drive(func(m *machine) {
		if handled = m.phase != over && m.anyRestartPoints(); handled {
			g.lastID++
			request = g.lastID
			g.calls[request] = call
			m.request(0, request, 0)
		}
	})
	if !handled {
		return 0, false, nil
	}
	select {
	case out := <-call:
		switch {
		case errors.Is(out.err, errEnded):
			return 0, false, nil
		case out.errno == 0:
			return epoch.ID(out.epoch), true, nil
		case out.err == nil:
			out.err = fmt.Errorf("%w: %w", ErrCalledOff, out.errno)
		}
		return 0, true, out.err
	case <-ctx.Done():
		g.driveMu.Lock()
		delete(g.calls, request)
		g.driveMu.Unlock()
		return 0, true, ctx.Err()
	}
}

// settle waits until the deaths of members that are dead by now were dealt with.
func (g *group) settle(ctx context.Context) error {
	var dead []*member
	g.driveMu.Lock()
	for _, c := range g.members {
		if c.dead() {
			dead = append(dead, c)
		}
	}
	g.driveMu.Unlock()
	for _, c := range dead {
		if err := await(ctx, c.left); err != nil {
			return err
		}
	}
	g.driveMu.Lock()
	if g.machine.calm() {
		g.driveMu.Unlock()
		return nil
	}
	if g.calm == nil {
		g.calm = make(chan struct{})
	}
	calm := g.calm
	g.driveMu.Unlock()
	return await(ctx, calm)
}

func await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
