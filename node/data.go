package node

import (
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// dataSessions is the sessions as the data path knows them.
type dataSessions struct {
	manager *manager
	flushed func(time.Duration) // nil: nobody asks
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
	return dataSession{s.fence, s, token(t).readOnly(), d.flushed}, nil
}

// A dataSession is one data connection's right to a share.
type dataSession struct {
	fence
	session  *session
	readOnly bool
	flushed  func(time.Duration)
}

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
func (d dataSession) Flush() error {
	began := time.Now()
	err := d.fence.Flush()
	if d.flushed != nil && err == nil {
		d.flushed(time.Since(began))
	}
	return err
}
