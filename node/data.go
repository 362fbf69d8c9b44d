package node

import (
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// dataSessions is the sessions as the data path knows them.
type dataSessions struct{ manager *manager }

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
	return dataSession{s.fence, s, token(t).readOnly()}, nil
}

// A dataSession is one data connection's right to a share.
type dataSession struct {
	fence
	session  *session
	readOnly bool
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
