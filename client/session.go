package client

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/ring"
	"github.com/rpmemfs/rpmemfs/attach/wire"
)

const (
	// welcomeLimit bounds the wait for the daemon's first answer, which it holds
	// back while a barrier is under way.
	welcomeLimit = time.Minute
	// sendLimit bounds how long the daemon may not read.
	sendLimit = 10 * time.Second
)

// A session is the connection to the daemon. send is safe for concurrent use.
type session struct {
	conn *net.UnixConn // nil: never connected
	buf  []byte        // the reader's
}

// dial connects and says hello.
func (s *session) dial(at place, flags wire.Flags, frames *ring.Producer) (*wire.Welcome, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: at.socket, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAttachable, err)
	}
	s.conn, s.buf = conn, make([]byte, wire.MaxMessage)
	hello := wire.Hello{Ino: at.ino, Flags: flags, Frames: frames.Frames(), Name: programName()}
	b, err := wire.Append(nil, &hello)
	if err != nil {
		return nil, err
	}
	rights := unix.UnixRights(int(frames.File().Fd()))
	if _, _, err := conn.WriteMsgUnix(b, rights, nil); err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(welcomeLimit)); err != nil {
		return nil, err
	}
	m, err := s.receive()
	if err != nil {
		return nil, fmt.Errorf("welcome: %w", err)
	}
	welcome, ok := m.(*wire.Welcome)
	if !ok {
		return nil, fmt.Errorf("welcome: got %T: %w", m, wire.ErrMalformed)
	}
	if welcome.Errno != 0 {
		return nil, fmt.Errorf("the daemon refused: %w", welcome.Errno)
	}
	return welcome, conn.SetReadDeadline(time.Time{})
}

// programName is the process's name as ps shows it.
func programName() string {
	text, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return ""
	}
	return shortName(strings.TrimSpace(string(text)))
}

// shortName makes a name one that fits into a message.
func shortName(name string) string {
	if at := strings.IndexByte(name, 0); at >= 0 {
		name = name[:at]
	}
	return name[:min(len(name), wire.MaxName)]
}

func (s *session) send(m wire.Message) error {
	b, err := wire.Append(make([]byte, 0, wire.MaxRequest), m)
	if err != nil {
		return err
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
		return err
	}
	_, err = s.conn.Write(b)
	return err
}

// kick wakes the daemon's consumer of the ring. An error shows at the next receive.
func (s *session) kick() { _ = s.send(&wire.Kick{}) }

var errEOF = errors.New("the daemon closed the connection")

// receive returns the next message; one goroutine calls it.
func (s *session) receive() (wire.Message, error) {
	n, err := s.conn.Read(s.buf)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errEOF
	}
	return wire.Decode(s.buf[:n])
}

// shut ends the connection under whoever uses it.
func (s *session) shut() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) } // fails only on a closed one

func (s *session) close() {
	if s.conn != nil {
		_ = s.conn.Close() // all that mattered was sent
	}
}
