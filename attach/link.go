package attach

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// maxQueued bounds the messages that wait for room in a member's socket.
const maxQueued = 1024

// errSlow reports a member that does not read its messages.
var errSlow = errors.New("attach: too many unread messages")

// A link sends messages to a member and never waits for it: what its socket does
// not take a goroutine sends later.
type link struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	wg   sync.WaitGroup // of flush

	mu       sync.Mutex // guards the fields below
	queue    [][]byte
	flushing bool
	buf      []byte // of the message being sent
}

func newLink(conn *net.UnixConn) (*link, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, raw: raw}, nil
}

// send sends m. It returns errSlow if too much waits already. That the member is
// gone is no error: its reader finds out.
func (l *link) send(m wire.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := wire.Append(l.buf[:0], m)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	l.buf = b
	if !l.flushing {
		sent := false
		if err := l.raw.Control(func(fd uintptr) { sent = sendNow(fd, b) }); err != nil || sent {
			return nil // closed, or sent
		}
		l.flushing = true
		l.wg.Go(l.flush)
	}
	if len(l.queue) >= maxQueued {
		return errSlow
	}
	l.queue = append(l.queue, append([]byte(nil), b...))
	return nil
}

// flush sends what is queued as the socket takes it. It ends when the queue is
// empty or the socket is closed.
func (l *link) flush() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.flushing = false
			l.mu.Unlock()
			return
		}
		b := l.queue[0]
		l.mu.Unlock()
		if err := l.raw.Write(func(fd uintptr) bool { return sendNow(fd, b) }); err != nil {
			return // closed; flushing stays
		}
		l.mu.Lock()
		l.queue = l.queue[1:]
		l.mu.Unlock()
	}
}

// sendNow sends a message, and reports false if there is no room for it.
func sendNow(fd uintptr, b []byte) bool {
	err := unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
}

// unread reports whether the member has not read all that was sent. While messages
// are queued the socket is full.
func (l *link) unread() bool {
	n := 0
	err := l.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && n > 0
}

// close ends the connection. What was sent can still be read.
func (l *link) close() {
	_ = l.conn.Close() // nothing is lost that counts
	l.wg.Wait()
}
