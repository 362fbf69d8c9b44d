package remote

import (
	"context"
	"net"
	"sync"
	"time"
)

// A link makes the connections of the control API. gRPC keeps one at a time; cut
// makes it look for another.
type link struct {
	connect func(ctx context.Context, network, address string) (net.Conn, error) // immutable

	mu   sync.Mutex
	conn net.Conn // the last that was made; nil: none
}

// dial is what gRPC calls. It hands conn over.
func (l *link) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := l.connect(ctx, "tcp", address)
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

// dialTCP makes a connection that notices when the other machine is gone.
func dialTCP(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return d.DialContext(ctx, network, address)
}
