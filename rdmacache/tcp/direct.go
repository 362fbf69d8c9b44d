package tcp

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/places"
)

// A direct is a connection that can be taken from the runtime's poller. From then on
// who waits for bytes sleeps in the kernel, as in the read of a file, and what arrives
// wakes his thread and no other. The poller's thread is woken first, even where nobody
// waits for it, and wakes a goroutine: between idle machines that takes longer than
// what it brings took on its way. The price is a thread for each connection.
type direct struct {
	net.Conn // whose bytes nobody uses once it is detached

	mu     sync.Mutex
	closed bool
	file   *os.File        // nil until it is detached, by who reads, before anybody writes
	raw    syscall.RawConn // of file

	lingers bool // the rest of the last message came soon; of who reads
}

// detach takes the connection from the poller, if it is one whose bytes are sent as
// they are. Others may close it meanwhile. From then on a Write fails that makes no
// progress for timeout, and deadlines have no effect.
func (d *direct) detach(timeout time.Duration) {
	t, ok := d.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	file, err := blocking(t, timeout)
	if err != nil {
		return // it works as it is
	}
	d.file = file
	d.raw, _ = file.SyscallConn() // fails for a nil file only
	_ = t.Close()                 // the descriptor that the poller knows; the connection goes on
}

// blocking returns a second descriptor of t, whose calls block.
func blocking(t *net.TCPConn, timeout time.Duration) (*os.File, error) {
	raw, err := t.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	limit := unix.NsecToTimeval(int64(timeout))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), t.RemoteAddr().String()), nil
}

func (d *direct) Read(p []byte) (int, error) {
	if d.file == nil {
		return d.Conn.Read(p)
	}
	n, err := d.file.Read(p)
	return n, netError(err)
}

// lingerTime is how long who waits for the rest of a message looks for it before he
// sleeps: no longer than it takes to wake him.
const lingerTime = 50 * time.Microsecond

// ReadRest is Read in the middle of a long message, whose rest is on its way. Where it
// comes in time, who receives stays awake for it: to wake him for each piece is work of
// who sends.
func (d *direct) ReadRest(p []byte) (int, error) {
	if d.file == nil {
		return d.Conn.Read(p)
	}
	begin := time.Now()
	if d.lingers {
		n := 0
		err := d.raw.Control(func(fd uintptr) {
			for n <= 0 && time.Since(begin) < lingerTime {
				// The end of the connection and its errors are left for Read.
				n, _, _ = unix.Recvfrom(int(fd), p, unix.MSG_DONTWAIT)
			}
		})
		if err != nil || n > 0 {
			return max(0, n), netError(err)
		}
	}
	n, err := d.Read(p)
	d.lingers = time.Since(begin) < lingerTime
	return n, err
}

func (d *direct) Write(p []byte) (int, error) {
	if d.file == nil {
		return d.Conn.Write(p)
	}
	n, err := d.file.Write(p)
	return n, netError(err)
}

// netError is what a connection returns where a file returns err.
func netError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// SetWriteDeadline is the connection's; what is detached has a time-out of its own.
func (d *direct) SetWriteDeadline(t time.Time) error {
	if d.file != nil {
		return nil
	}
	return d.Conn.SetWriteDeadline(t)
}

// farewell is how long a peer has to take the alert that ends TLS: who closes a connection
// may do so because the peer takes nothing any more.
const farewell = 100 * time.Millisecond

// Close ends what is under way. It returns within farewell, and a second call at once.
func (d *direct) Close() error {
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	switch {
	case closed:
		return net.ErrClosed
	case d.file == nil:
		late := time.AfterFunc(farewell, places.Closer(d.Conn))
		defer late.Stop()
		return d.Conn.Close()
	}
	// Close alone does not wake who sleeps in a read or a write.
	_ = d.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return d.file.Close()
}

// CloseRead lets Read return what has been received, and then io.EOF. It also wakes
// who sleeps in one. A connection without a half that can be closed is cut.
func (d *direct) CloseRead() {
	d.mu.Lock()
	file, conn := d.file, d.Conn
	d.mu.Unlock()
	if file != nil {
		_ = d.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) }) // or it has ended
		return
	}
	if outer, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = outer.NetConn()
	}
	half, ok := conn.(interface{ CloseRead() error })
	if !ok || half.CloseRead() != nil {
		d.cut()
	}
}

// cut closes the connection without a word to the peer, for which TLS would wait.
func (d *direct) cut() {
	places.Closer(d.Conn)()
	_ = d.Close()
}

// comesSoon waits until there is something to receive from a detached connection, be
// it its end. false: not soon.
func comesSoon(raw syscall.RawConn) bool { return isSoon(raw, unix.POLLIN) }

// roomSoon waits until a detached connection has room for more to send.
func roomSoon(raw syscall.RawConn) bool { return isSoon(raw, unix.POLLOUT) }

func isSoon(raw syscall.RawConn, events int16) (ready bool) {
	err := raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
		limit := unix.NsecToTimespec(int64(soon))
		n, err := unix.Ppoll(fds[:], &limit, nil)
		ready = err == nil && n > 0
	})
	return err == nil && ready
}
