package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// The leases that a memory node can say to grant.
const (
	minLease = 10 * time.Millisecond
	maxLease = 24 * time.Hour
)

// A lease knows until when the session has the right to its share, if nobody takes
// it: on this machine's clock, and no longer than the memory node counts. With patience
// beyond its length the memory node may give it to another one before that, and says so when it
// is asked.
type lease struct {
	length   time.Duration // immutable after begin, as all up to until
	patience time.Duration // at least length
	every    time.Duration // it is renewed
	from     time.Time
	until    atomic.Int64 // ns after from; publishes only itself
}

// begin starts a lease that was granted a moment ago. 0 for patience is its length, for every
// a third of that.
func (l *lease) begin(length, patience, every time.Duration) {
	l.length, l.patience, l.from = length, max(length, patience), time.Now()
	l.every = min(cmp.Or(every, length/3), length/2)
	l.until.Store(int64(l.patience))
}

// renew makes it last from when the memory node was asked; it heard of that later.
func (l *lease) renew(asked time.Time) {
	l.until.Store(int64(asked.Sub(l.from) + l.patience))
}

// left is the time that remains; 0 if it is over.
func (l *lease) left() time.Duration {
	return max(0, time.Duration(l.until.Load())-time.Since(l.from))
}

// keep keeps the lease alive until the session is over or closed.
func (p *Pool) keep() {
	defer close(p.kept)
	for p.renew() {
		wait := time.NewTimer(p.lease.every)
		select {
		case <-wait.C:
		case <-p.stop:
		case <-p.done:
		}
		wait.Stop()
	}
}

// renew asks the memory node to make the lease last until it says so. It returns
// false when there is nothing left to keep.
func (p *Pool) renew() bool {
	for tries := 0; p.check() == nil; tries++ {
		select {
		case <-p.stop:
			return false
		default:
		}
		asked := time.Now()
		err := p.keepAlive(min(p.lease.length/4, p.lease.left()))
		switch {
		case err == nil:
			p.lease.renew(asked)
			if tries > 0 {
				p.log.Info("the memory node answers again", "node", p.address)
			}
			return true
		case errors.Is(err, rdmacache.ErrFenced):
			p.end(err)
			return false
		case tries == 0:
			p.log.Warn("the memory node does not answer", "node", p.address, "patience left", p.lease.left(), "err", err)
		}
		// A connection that says nothing is worse than none: every call waits on it.
		p.link.cut()
		select {
		case <-time.After(min(pauseMax, p.lease.length/20)):
		case <-p.stop:
		case <-p.done:
		}
	}
	return false
}

func (p *Pool) keepAlive(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_, err := p.node.KeepAlive(ctx, &nodepb.KeepAliveRequest{Session: p.session, Token: p.token}, grpc.WaitForReady(true))
	if err != nil {
		return decode(err)
	}
	return nil
}

// check returns why the session is over, if it is. A process that was stopped past
// its lease learns that here, before it asks or believes anything.
func (p *Pool) check() error {
	if err := p.over(); err != nil {
		p.end(err)
	}
	return p.Err()
}

// over is check for the data path's own goroutines: it ends nothing, for the end of
// the session waits for them.
func (p *Pool) over() error {
	if err := p.Err(); err != nil || p.lease.left() > 0 {
		return err
	}
	return fmt.Errorf("%w (memory node %s has not answered for %v)", rdmacache.ErrFenced, p.address, p.lease.patience)
}
