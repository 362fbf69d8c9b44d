package attach

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A peer is the process at the other end of a connection, as of connect(2).
type peer struct {
	pid      int // 0 if it lives where the daemon cannot see it
	uid, gid uint32
	// pidfd becomes readable when the process is gone; nil if there is none. The
	// end of the connection tells the same, unless a child holds the socket.
	pidfd *os.File
}

func peerOf(conn *net.UnixConn) (*peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var p *peer
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			sockErr = fmt.Errorf("peer credentials: %w", err)
			return
		}
		p = &peer{pid: int(cred.Pid), uid: cred.Uid, gid: cred.Gid}
		p.pidfd = pidfdOf(int(fd), p.pid)
	})
	return p, errors.Join(err, sockErr)
}

func pidfdOf(sock, pid int) *os.File {
	fd, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil && pid > 0 { // Linux before 6.5
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		return nil
	}
	// Non-blocking, so that the runtime polls it.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd) // nobody waits for it then
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// awaitDeath returns true when the process is gone; false if that cannot be known,
// or when p is closed.
func (p *peer) awaitDeath() bool {
	if p.pidfd == nil {
		return false
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd), unix.POLLIN) }) == nil
}

// gone reports whether the process is known to be gone.
func (p *peer) gone() (gone bool) {
	if p.pidfd == nil {
		return false
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Control(func(fd uintptr) { gone = readable(int(fd), unix.POLLIN) }) == nil && gone
}

// readable polls once.
func readable(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

func (p *peer) close() {
	if p.pidfd != nil {
		_ = p.pidfd.Close() // it held nothing
	}
}
