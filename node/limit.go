package node

import (
	"net"
	"sync"
)

// maxConnections bounds the connections of the API, so that descriptors are left for
// the data path and the pool.
const maxConnections = 1024

// A limitedListener closes the connections that are too many at once.
type limitedListener struct {
	net.Listener
	places chan struct{} // one in it for each connection
}

func limit(l net.Listener, connections int) net.Listener {
	return &limitedListener{l, make(chan struct{}, connections)}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
		default:
			_ = c.Close() // nothing was sent
		}
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.leave()
	return err
}
