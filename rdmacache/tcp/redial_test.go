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

// A write that is damaged on every connection costs the memory node one now and then,
// though it answers each time.
func TestWriteThatAlwaysFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 10 * time.Second
		p, dials := newPipes(), 0
		connect := func(ctx context.Context) (net.Conn, error) { // a connection on which the first WRITE is damaged
			dials++
			time.Sleep(time.Millisecond) // of the bubble
			nc, err := p.dial(ctx)
			if err != nil {
				return nil, err
			}
			return conntest.Broken(nc, after(conntest.Flip, 100), 1), nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := conntest.NewStore(1<<20, dax)
		go func() { _ = tcp.Serve(ctx, p, one{s}, tcp.ServerConfig{Log: testLog()}) }()
		c, err := tcp.Dial(ctx, tcp.Config{Token: token, Connect: connect, Patience: patience})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Write(ctx, make([]byte, page), 0), c.Flush(ctx)); !errors.Is(err, tcp.ErrLost) {
			t.Errorf("flush = %v, want ErrLost", err)
		}
		_ = c.Close()
		if dials < 10 || dials > 60 {
			t.Errorf("%d connections in %v", dials, patience)
		}
	})
}
