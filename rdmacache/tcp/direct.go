package tcp

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// Close ends what is under way.
func (d *direct) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return net.ErrClosed
	case d.file == nil:
		d.closed = true
		return d.Conn.Close()
	}
	d.closed = true
	// Close alone does not wake who sleeps in a read or a write.
	_ = d.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return d.file.Close()
}

// comesSoon waits until there is something to receive from a detached connection, be
// it its end. false: not soon.
func comesSoon(raw syscall.RawConn) (ready bool) {
	err := raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		limit := unix.NsecToTimespec(int64(soon))
		n, err := unix.Ppoll(fds[:], &limit, nil)
		ready = err == nil && n > 0
	})
	return err == nil && ready
}
