package tcp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// leastCalls is how many calls of each kind each end of a script's connection makes at least:
// the greeting, and one for each round.
const leastCalls = 4

// Each fault at each call of either end, over a network with a clock that jumps.
func TestFaultAtEachCall(t *testing.T) {
	eachCall(t, "pipe", callTest{medium: dax}, func(t *testing.T, run func(t *testing.T)) { synctest.Test(t, run) })
}

// The same over the kernel's TCP, with what takes no time: plain, where the end without the
// fault uses its socket directly, and below TLS.
func TestFaultAtEachCallOfASocket(t *testing.T) {
	serverTLS, clientTLS := tcp.Certified(t)
	file := rdmacache.Medium{Kind: "file"}
	for name, k := range map[string]callTest{"plain": {medium: dax}, "tls": {medium: file, server: serverTLS, client: clientTLS}} {
		if testing.Short() && k.server != nil {
			continue // it makes many calls
		}
		k.socket = true
		eachCall(t, name, k, func(t *testing.T, run func(t *testing.T)) { run(t) })
	}
}

func eachCall(t *testing.T, name string, base callTest, in func(*testing.T, func(*testing.T))) {
	for _, fault := range conntest.CallFaults() {
		if base.socket && fault.Patient() {
			continue
		}
		for _, end := range []string{"client", "server"} {
			for _, op := range []string{"read", "write"} {
				t.Run(fmt.Sprintf("%s/%s/%s/%s", name, fault.Name, end, op), func(t *testing.T) {
					t.Parallel()
					for n, happened := 1, true; happened; n++ {
						k := base
						k.call = conntest.Call{CallFault: fault, Write: op == "write", N: n}
						k.atServer = end == "server"
						in(t, func(t *testing.T) { happened = k.run(t) })
						if t.Failed() {
							t.Fatalf("at call %d", n)
						}
						if !happened && n <= leastCalls {
							t.Fatalf("only %d calls", n-1)
						}
					}
				})
			}
		}
	}
}

// A callTest is a script with a fault at one call of its first connection.
type callTest struct {
	medium         rdmacache.Medium
	server, client *tls.Config // nil: plain
	socket         bool        // the kernel's TCP
	call           conntest.Call
	atServer       bool
}

// A first gives the first connection that it is shown a fault.
type first struct {
	call conntest.Call

	mu     sync.Mutex
	faulty *conntest.CallConn // that connection
}

func (f *first) wrap(nc net.Conn) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.faulty != nil {
		return nc
	}
	f.faulty = conntest.AtCall(nc, f.call)
	return f.faulty
}

func (f *first) conn() *conntest.CallConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faulty
}

// settle waits until what was late has arrived. No fault comes any more.
func (f *first) settle() {
	if f.conn().Disarm() {
		time.Sleep(2 * f.call.Delay)
	}
}

// run does the script, and says whether the call was made.
func (k *callTest) run(t *testing.T) bool {
	listener, connect := k.network(t)
	f := &first{call: k.call}
	listen := listener
	if k.atServer {
		listen = &conntest.Listener{Listener: listen, Wrap: f.wrap}
	}
	if k.server != nil {
		listen = tls.NewListener(listen, k.server.Clone())
	}
	s := conntest.ScriptStore(k.medium)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- tcp.Serve(ctx, listen, one{s}, tcp.ServerConfig{}) }()
	c := dialAnyhow(t, tcp.Config{Connect: func(ctx context.Context) (net.Conn, error) {
		nc, err := connect(ctx)
		if err == nil && !k.atServer {
			nc = f.wrap(nc)
		}
		if err == nil && k.client != nil {
			nc = tls.Client(nc, k.client.Clone())
		}
		return nc, err
	}})
	var script conntest.Script
	if err := script.Run(ctx, c, s); err != nil {
		t.Errorf("%+v: %v", k.call, err)
	}
	f.settle()
	if err := script.Check(s); err != nil {
		t.Errorf("%+v: later: %v", k.call, err)
	}
	// What the fault did comes before the second answer: c has a connection that stays.
	p := make([]byte, 1)
	if err := errors.Join(c.Read(ctx, p, 0), c.Read(ctx, p, 0)); err != nil {
		t.Errorf("%+v: read: %v", k.call, err)
	}
	if err := k.again(ctx, f.conn(), connect); err != nil {
		t.Errorf("%+v: play the first connection again: %v", k.call, err)
	}
	if err := errors.Join(script.Check(s), c.Flush(ctx)); err != nil {
		t.Errorf("%+v: after the first connection came again: %v", k.call, err)
	}
	_ = c.Close()
	cancel()
	<-served
	f.settle()
	if err := script.Check(s); err != nil {
		t.Errorf("%+v: in the end: %v", k.call, err)
	}
	return f.conn().Disarm()
}

// again delivers what the client sent over its first connection once more; TLS knows of
// itself that it did not come from its client.
func (k *callTest) again(ctx context.Context, first *conntest.CallConn, connect func(context.Context) (net.Conn, error)) error {
	took, gave := first.Carried()
	if k.atServer {
		gave = took
	}
	const hello = 80 // bytes: who was not welcomed has sent no more, and dials as another stream
	if len(gave) <= hello || k.server != nil {
		return nil
	}
	nc, err := connect(ctx)
	if err != nil {
		return err
	}
	return conntest.PlayAgain(nc, gave, 20*time.Second)
}

// network returns a way from a client to a server.
func (k *callTest) network(t *testing.T) (net.Listener, func(context.Context) (net.Conn, error)) {
	if k.socket {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l, dialer(l.Addr().String())
	}
	l := newPipes()
	return l, l.dial
}

// pipes is a listener in memory, of net.Pipes.
type pipes struct {
	come   chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func newPipes() *pipes {
	return &pipes{come: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.come <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-l.come:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }
