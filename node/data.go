package node

import (
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// dataSessions is the sessions as the data path knows them.
type dataSessions struct {
	manager *manager
	flushed *flushes
}

// flushes tells somebody how long they took.
type flushes struct{ tell func(time.Duration) } // nil: nobody asks

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
	return dataSession{s.fence, s, token(t).readOnly(), d.flushed}, nil
}

// A dataSession is a data connection's right to a share. Those of one session are equal.
type dataSession struct {
	fence
	session  *session
	readOnly bool
	flushed  *flushes
}

// ReadOnly says that WriteAt is refused.
func (d dataSession) ReadOnly() bool { return d.readOnly }

// Done is closed when the session is over.
func (d dataSession) Done() <-chan struct{} { return d.session.life.Done() }

// WriteAt is that of the fence, unless the session only reads.
func (d dataSession) WriteAt(p []byte, off int64) error {
	if d.readOnly {
		return errReadOnly
	}
	return d.fence.WriteAt(p, off)
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
	if d.flushed.tell != nil && err == nil {
		d.flushed.tell(time.Since(began))
	}
	return err
}
