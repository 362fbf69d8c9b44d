package node

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// dataSessions is the sessions as the data path knows them.
type dataSessions struct {
	manager *manager
	work    *dataWork
}

// A dataWork is what data connections did. Each counter publishes only itself.
type dataWork struct {
	flushed func(time.Duration) // is told how long a flush took; nil: nobody asks

	refused atomic.Uint64 // reads, writes and flushes that the session has no right to
	failed  atomic.Uint64 // that failed otherwise
}

// count counts an error, and returns it.
func (w *dataWork) count(err error) error {
	switch {
	case err == nil:
	case errors.Is(err, rdmacache.ErrFenced), errors.Is(err, memnode.ErrRange), errors.Is(err, errReadOnly):
		w.refused.Add(1)
	default:
		w.failed.Add(1)
	}
	return err
}

var _ tcp.Sessions = dataSessions{}

// Session returns the live session of a token, or an error that matches
// rdmacache.ErrFenced.
func (d dataSessions) Session(t [32]byte) (tcp.Session, error) {
	d.manager.mu.Lock()
	defer d.manager.mu.Unlock()
	s, err := d.manager.findToken(t)
	if err != nil {
		return nil, err
	}
	return dataSession{s.fence, s, token(t).readOnly(), d.work}, nil
}

// A dataSession is a data connection's right to a share. Those of one session are equal.
type dataSession struct {
	fence
	session  *session
	readOnly bool
	work     *dataWork
}

// ReadOnly says that WriteAt is refused.
func (d dataSession) ReadOnly() bool { return d.readOnly }

// Done is closed when the session is over.
func (d dataSession) Done() <-chan struct{} { return d.session.life.Done() }

// ReadAt is that of the fence.
func (d dataSession) ReadAt(p []byte, off int64) error { return d.work.count(d.fence.ReadAt(p, off)) }

// WriteAt is that of the fence, unless the session only reads.
func (d dataSession) WriteAt(p []byte, off int64) error {
	if d.readOnly {
		return d.work.count(errReadOnly)
	}
	return d.work.count(d.fence.WriteAt(p, off))
}

// Flush is that of the fence, and its time is told.
func (d dataSession) Flush() error { return d.timed(d.fence.Flush) }

// Persist is that of the fence, and its time is told.
func (d dataSession) Persist(off, n int64) error {
	return d.timed(func() error { return d.fence.Persist(off, n) })
}

func (d dataSession) timed(flush func() error) error {
	began := time.Now()
	err := flush()
	if d.work.flushed != nil && err == nil {
		d.work.flushed(time.Since(began))
	}
	return d.work.count(err)
}
