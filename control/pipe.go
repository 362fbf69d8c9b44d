package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Pipe returns the two ends of a connection inside this process: a listener for
// Server.Run that accepts one connection, and a dial for NewClient that makes it.
// No name in any file system is involved.
func Pipe() (net.Listener, func(context.Context) (net.Conn, error), error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control: socketpair: %w", err)
	}
	server, err := fdConn(fds[0])
	client, clientErr := fdConn(fds[1])
	if err := errors.Join(err, clientErr); err != nil {
		return nil, nil, fmt.Errorf("control: socketpair: %w", err)
	}
	l := &pipeListener{
		conns:   make(chan net.Conn, 1),
		clients: make(chan net.Conn, 1),
		addr:    server.LocalAddr(),
		closed:  make(chan struct{}),
	}
	l.conns <- server
	l.clients <- client
	dial := func(context.Context) (net.Conn, error) {
		select {
		case c := <-l.clients:
			return c, nil
		default:
			return nil, errors.New("control: the connection inside the process has ended")
		}
	}
	return l, dial, nil
}

func fdConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close() // net.FileConn has a copy
	return net.FileConn(f)
}

// pipeListener hands out one connection and then waits to be closed.
type pipeListener struct {
	conns   chan net.Conn // the server's end, until it is accepted
	clients chan net.Conn // the client's end, until it is dialled
	addr    net.Addr

	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		// Nobody else closes an end that nobody took, and a server would wait for
		// the first words of a client that never came.
		for _, end := range []chan net.Conn{l.conns, l.clients} {
			select {
			case c := <-end:
				_ = c.Close()
			default:
			}
		}
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.addr }
