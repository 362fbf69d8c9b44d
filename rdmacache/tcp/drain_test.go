package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A stopping is a server that a test stops.
type stopping struct {
	address string
	client  *tls.Config // nil: plain
	stop    func()
	ended   chan error
}

// serveUntil serves n until the test says so, or ends.
func (n *node) serveUntil(t *testing.T, secure bool) *stopping {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stopping{address: l.Addr().String(), ended: make(chan error, 1)}
	if secure {
		server, client := Certified(t)
		s.client, l = client, tls.NewListener(l, server)
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.ended <- Serve(ctx, l, n, ServerConfig{})
	}()
	t.Cleanup(func() {
		s.stop()
		<-ended
	})
	return s
}

// connect returns a client that was not welcomed yet.
func (s *stopping) connect(t *testing.T) *raw {
	t.Helper()
	r := connectRaw(t, s.address)
	if s.client != nil {
		r.nc = tls.Client(r.nc, s.client)
		t.Cleanup(func() { _ = r.nc.Close() })
		if err := r.nc.(*tls.Conn).Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// wait fails the test if Serve does not end.
func (s *stopping) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Serve = %v, want context.Canceled", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve does not end")
	}
}

// arrived waits until the server's kernel has all that was said.
func (r *raw) arrived() {
	r.t.Helper()
	nc := r.nc
	if outer, ok := nc.(*tls.Conn); ok {
		nc = outer.NetConn()
	}
	c, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		r.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		left := 0
		cerr := c.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
		if err := errors.Join(cerr, err); err != nil {
			r.t.Fatal(err)
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("what was said does not arrive")
		}
	}
}

// ways are plain and TLS, on media that wait for a device or not.
func ways(t *testing.T, test func(t *testing.T, n *node, s *stopping)) {
	for _, kind := range []string{"dax", "file"} {
		for name, secure := range map[string]bool{"plain": false, "TLS": true} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				n := newNode(kind)
				test(t, n, n.serveUntil(t, secure))
			})
		}
	}
}

// A server that stops answers what has arrived, over the connection over which it came,
// once; who was not welcomed is sent away meanwhile.
func TestStopAnswers(t *testing.T) {
	ways(t, func(t *testing.T, n *node, s *stopping) {
		inside, gate := make(chan struct{}, 2), make(chan struct{})
		open := sync.OnceFunc(func() { close(gate) })
		defer open()
		n.flush = func() error { inside <- struct{}{}; <-gate; return nil }
		var writes atomic.Int64
		n.write = func([]byte, int64) error { writes.Add(1); return nil }
		r, stranger := s.connect(t), s.connect(t)
		if _, err := r.greet(hello{attempt: 1, alive: maxAlive}); err != nil {
			t.Fatal(err)
		}
		r.say(header{kind: kindWrite, length: 4096, sequence: 1}, bytes.Repeat([]byte{1}, 4096))
		r.say(header{kind: kindFlush, sequence: 2}, nil)
		<-inside
		r.say(header{kind: kindWrite, length: 8192, sequence: 3, offset: 4096}, long()[:8192])
		r.say(header{kind: kindFlush, sequence: 4}, nil)
		r.say(header{kind: kindRead, length: 4096, sequence: 5}, nil)
		r.arrived()
		s.stop()
		if _, err := stranger.nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a stranger's connection: %v, want its end", err)
		}
		open()
		answers := map[uint64]kind{}
		for range 3 {
			h, _, err := r.hear()
			if err != nil {
				t.Fatalf("after %v: %v, want DONE for requests 2 and 4, DATA for 5", answers, err)
			}
			answers[h.sequence] = h.kind
		}
		if answers[2] != kindDone || answers[4] != kindDone || answers[5] != kindData {
			t.Errorf("answers %v, want DONE for requests 2 and 4, DATA for 5", answers)
		}
		if h, _, err := r.hear(); err != io.EOF {
			t.Errorf("after that came %v, %v; want io.EOF", h, err)
		}
		s.wait(t)
		if !bytes.Equal(n.bytes[4096:4096+8192], long()[:8192]) || n.bytes[0] != 1 {
			t.Error("what was flushed is not there")
		}
		if got := writes.Load(); got != 2 {
			t.Errorf("%d writes were applied, want 2", got)
		}
	})
}

// A client that goes on sending does not keep a server from stopping.
func TestStopIsBounded(t *testing.T) {
	ways(t, func(t *testing.T, n *node, s *stopping) {
		said := make(chan struct{}, 1)
		begun := make(chan struct{}, 1)
		n.write = func([]byte, int64) error {
			select {
			case begun <- struct{}{}:
			default:
			}
			<-said // there is always more to receive
			return nil
		}
		r := s.connect(t)
		if _, err := r.greet(hello{attempt: 1}); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(said)
			for i := uint64(1); ; i++ {
				if _, err := r.nc.Write(sealed(header{kind: kindWrite, length: 4096, sequence: i}, make([]byte, 4096))); err != nil {
					return
				}
				if i <= 8 {
					continue
				}
				select {
				case said <- struct{}{}:
				case <-t.Context().Done():
					return
				}
			}
		}()
		<-begun
		s.stop()
		s.wait(t)
	})
}

// A client that does not take its answers does not either.
func TestStopWithoutReader(t *testing.T) {
	ways(t, func(t *testing.T, n *node, s *stopping) {
		r := s.connect(t)
		if _, err := r.greet(hello{attempt: 1}); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(64) { // more than the kernel takes
			r.say(header{kind: kindRead, length: maxData, sequence: 1 + i}, nil)
		}
		r.arrived()
		s.stop()
		s.wait(t)
	})
}

// While a server stops clients hear that it is at work. A session that ends then ends its
// connection, which does not say so: it may go on at the next server.
func TestSessionEndsWhileStopping(t *testing.T) {
	ways(t, func(t *testing.T, n *node, s *stopping) {
		inside, gate := make(chan struct{}), make(chan struct{})
		n.flush = func() error { close(inside); <-gate; return nil }
		defer close(gate)
		r, stranger := s.connect(t), s.connect(t)
		if _, err := r.greet(hello{attempt: 1, alive: minAlive}); err != nil {
			t.Fatal(err)
		}
		r.say(header{kind: kindFlush, sequence: 1}, nil)
		<-inside
		s.stop()
		_, _ = stranger.nc.Read(make([]byte, 1)) // the server stops
		for i := range 10 {
			if h, _, err := r.hear(); err != nil || h.kind != kindAlive {
				t.Fatalf("after %d signs of life came %v, %v", i, h, err)
			}
		}
		close(n.done)
		for {
			h, text, err := r.hear()
			if err == nil && h.kind == kindAlive {
				continue // said before
			}
			if err == nil || isTimeout(err) {
				t.Errorf("answer %v %q, %v; want the end", h, text, err)
			}
			return
		}
	})
}
