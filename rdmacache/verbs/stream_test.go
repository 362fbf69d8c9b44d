package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// A handed is a net.Listener of the streams that a server hands over.
type handed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHanded() *handed { return &handed{conns: make(chan net.Conn, 16), done: make(chan struct{})} }

func (h *handed) take(nc net.Conn) {
	select {
	case h.conns <- nc:
	case <-h.done:
		_ = nc.Close()
	}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error   { h.once.Do(func() { close(h.done) }); return nil }
func (h *handed) Addr() net.Addr { return &net.TCPAddr{} }

// one is a memory node with one session, for tcp.
type one struct{ *conntest.Store }

func (o one) Session([32]byte) (tcp.Session, error) {
	select {
	case <-o.Done():
		return nil, rdmacache.ErrFenced
	default:
		return o.Store, nil
	}
}

// serveStreams serves s by tcp, over streams.
func serveStreams(t *testing.T, cfg model.Config, s *conntest.Store) *fabric {
	f := newFabric(t, cfg, s, way{})
	f.session.none = true
	l := newHanded()
	f.cfg.Stream = l.take
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tcp.Serve(ctx, l, one{s}, tcp.ServerConfig{Log: testLog()}) }()
	f.serve()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return f
}

// A pool that no device reaches: Dial says so, and the TCP protocol goes over a stream.
func TestStreamConformance(t *testing.T) {
	conntest.Run(t, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		f := serveStreams(t, friendly(), s)
		if c, err := verbs.Dial(t.Context(), f.config()); !errors.Is(err, verbs.ErrMessage) {
			t.Fatalf("Dial = %v, %v, want ErrMessage", c, err)
		}
		c, err := tcp.Dial(t.Context(), tcp.Config{
			Connect: func(ctx context.Context) (net.Conn, error) { return verbs.DialStream(ctx, f.config()) }, Log: testLog(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	})
}

// pair returns both ends of a stream.
func pair(t *testing.T, cfg model.Config) (client, server net.Conn) {
	t.Helper()
	f := newFabric(t, cfg, conntest.NewStore(1<<20, rdmacache.Medium{Kind: "file"}), way{})
	taken := make(chan net.Conn, 1)
	f.cfg.Stream = func(nc net.Conn) { taken <- nc }
	f.serve()
	client, err := verbs.DialStream(t.Context(), f.config())
	if err != nil {
		t.Fatal(err)
	}
	server = <-taken
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

// Bytes arrive in order, both ways at once, whatever the sizes of calls; and then the end.
func TestStreamCarries(t *testing.T) {
	for name, cfg := range map[string]model.Config{"friendly": friendly(), "hostile": hostile(*seed)} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, cfg)
			var wg sync.WaitGroup
			for i, ends := range [][2]net.Conn{{a, b}, {b, a}} {
				sent := make([]byte, 3<<20)
				rng := rand.New(rand.NewPCG(*seed, uint64(i)))
				for j := range sent {
					sent[j] = byte(rng.Uint32())
				}
				wg.Go(func() {
					for p := sent; len(p) > 0; {
						n := min(len(p), 1+rng.IntN(200<<10))
						if m, err := ends[0].Write(p[:n]); err != nil || m != n {
							t.Errorf("write %d bytes = %d, %v", n, m, err)
							return
						}
						p = p[n:]
					}
				})
				wg.Go(func() {
					got := make([]byte, len(sent))
					_ = ends[1].SetReadDeadline(time.Now().Add(30 * time.Second))
					if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, sent) {
						t.Errorf("read: %v; equal %v", err, bytes.Equal(got, sent))
					}
				})
			}
			wg.Wait()
			if _, err := a.Write([]byte("last words")); err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			_ = b.SetReadDeadline(time.Now().Add(30 * time.Second))
			if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
				t.Errorf("after Close the peer reads %q, %v", got, err)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read of a closed stream = %v", err)
			}
		})
	}
}

// A peer that takes nothing makes Write wait, which the deadline ends, and a later one
// goes on.
func TestStreamDeadlines(t *testing.T) {
	a, b := pair(t, model.Config{Timeout: 20 * time.Millisecond}) // who sends without a credit breaks the queue pair
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read = %v, want os.ErrDeadlineExceeded", err)
	}
	// A deadline that is set while a Read waits ends it.
	_ = a.SetReadDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		ended <- err
	}()
	_ = a.SetReadDeadline(time.Now())
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read = %v, want os.ErrDeadlineExceeded", err)
	}
	_ = a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	big := make([]byte, 4<<20)
	n, err := a.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == len(big) {
		t.Errorf("write to a peer that takes nothing = %d, %v", n, err)
	}
	_ = a.SetWriteDeadline(time.Time{})
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if _, err := a.Write(big); err != nil {
		t.Errorf("write to a peer that takes again: %v", err)
	}
}
