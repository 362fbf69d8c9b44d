package remote

import (
	"context"
	"net"
	"sync"
)

// A link makes the connections of the control API. gRPC keeps one at a time; cut
// makes it look for another.
type link struct {
	mu   sync.Mutex
	conn net.Conn // the last that was made; nil: none
}

// dial is what gRPC calls. It hands conn over.
func (l *link) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
	return conn, nil
}

// cut ends the connection. Calls that wait for an answer fail at once and can be
// repeated over the next one, instead of waiting until the kernel gives it up.
func (l *link) cut() {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // it is given up
	}
}
