package tcp_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// A pipes is a network of net.Pipes, on which it takes a millisecond to connect.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
	dials    int
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-p.accepted:
		return nc, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// connect returns a connection on which the first WRITE is damaged.
func (p *pipes) connect(context.Context) (net.Conn, error) {
	p.dials++
	time.Sleep(time.Millisecond) // of the bubble
	here, there := net.Pipe()
	p.accepted <- there
	return conntest.Broken(here, after(conntest.Flip, 100), 1), nil
}

// A write that is damaged on every connection costs the memory node one now and then,
// though it answers each time.
func TestWriteThatAlwaysFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 10 * time.Second
		p := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := conntest.NewStore(1<<20, dax)
		go func() { _ = tcp.Serve(ctx, p, one{s}, tcp.ServerConfig{Log: testLog()}) }()
		c, err := tcp.Dial(ctx, tcp.Config{Token: token, Connect: p.connect, Patience: patience})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Write(ctx, make([]byte, page), 0), c.Flush(ctx)); !errors.Is(err, tcp.ErrLost) {
			t.Errorf("flush = %v, want ErrLost", err)
		}
		_ = c.Close()
		if p.dials < 10 || p.dials > 60 {
			t.Errorf("%d connections in %v", p.dials, patience)
		}
	})
}
