package tcp_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// breaker wraps connections with faults drawn from a seed, most of them.
type breaker struct {
	mu   sync.Mutex
	rng  *rand.Rand
	kept []conntest.Break
	n    int64
}

func newBreaker(seed uint64, n int64) *breaker {
	return &breaker{rng: rand.New(rand.NewPCG(seed, 9)), n: n}
}

func (b *breaker) wrap(nc net.Conn) net.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	fault := conntest.RandomBreak(b.rng, b.n)
	b.kept = append(b.kept, fault)
	return conntest.Broken(nc, fault, b.rng.Uint64())
}

func (b *breaker) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kept)
}

// Every connection breaks somewhere, at the client's end or at the server's. What a
// flush covered is durable, whole, and nothing that comes late changes it.
func TestReplayAfterFaults(t *testing.T) {
	rounds, base := 60, *seed
	if testing.Short() {
		rounds = 15
	}
	for _, end := range []string{"client", "server"} {
		for _, kind := range []string{"file", "dax"} {
			for i := range uint64(3) {
				t.Run(fmt.Sprintf("%s/%s/%d", end, kind, i), func(t *testing.T) {
					t.Parallel()
					seed := base*100 + i
					s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: kind})
					b := newBreaker(seed, 600<<10)
					var wrap func(net.Listener) net.Listener
					if end == "server" {
						wrap = func(l net.Listener) net.Listener { return &conntest.Listener{Listener: l, Wrap: b.wrap} }
					}
					connect := dialer(serve(t, one{s}, wrap))
					if end == "client" {
						clean := connect
						connect = func(ctx context.Context) (net.Conn, error) {
							nc, err := clean(ctx)
							if err != nil {
								return nil, err
							}
							return b.wrap(nc), nil
						}
					}
					c := dialAnyhow(t, tcp.Config{Connect: connect, Patience: 2 * time.Second, Window: 256 << 10})
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
					defer cancel()
					if err := conntest.Stress(ctx, c, s, seed, 4, rounds); err != nil {
						t.Errorf("%v (-seed %d)", err, base)
					}
					t.Logf("%d connections", b.connections())
				})
			}
		}
	}
}

// dialAnyhow tries until the handshake comes through.
func dialAnyhow(t testing.TB, cfg tcp.Config) *tcp.Conn {
	t.Helper()
	cfg.Token, cfg.Log = token, testLog()
	for range 50 {
		c, err := tcp.Dial(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
	}
	t.Fatal("50 handshakes broke")
	return nil
}

// A small workload, its first connection broken at every byte in turn, in each
// direction, in each way.
func TestReplayAfterEachByte(t *testing.T) {
	step := int64(1)
	if testing.Short() {
		step = 17
	}
	for _, fault := range []conntest.Fault{conntest.Cut, conntest.Late, conntest.Flip} {
		for _, reads := range []bool{false, true} {
			if reads && fault == conntest.Late {
				continue
			}
			t.Run(fmt.Sprintf("%d/%v", fault, reads), func(t *testing.T) {
				t.Parallel()
				step := step
				if fault == conntest.Late {
					step *= 13 // each takes its time
				}
				for at := int64(0); ; at += step {
					b := conntest.Break{Fault: fault, Writes: at, Reads: -1}
					if reads {
						b.Writes, b.Reads = -1, at
					}
					if !brokenAt(t, b) {
						break
					}
				}
			})
		}
	}
}

// brokenAt does the workload with a first connection that breaks. false if it lasted.
func brokenAt(t *testing.T, b conntest.Break) bool {
	s := conntest.NewStore(64<<10, rdmacache.Medium{Kind: "dax"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	serveCtx, stop := context.WithCancel(ctx)
	go func() { served <- tcp.Serve(serveCtx, l, one{s}, tcp.ServerConfig{}) }()
	defer func() {
		stop()
		<-served
	}()
	dials := 0
	var cfg tcp.Config
	cfg.Connect = func(ctx context.Context) (net.Conn, error) {
		nc, err := dialer(l.Addr().String())(ctx)
		if dials++; err == nil && dials == 1 {
			nc = conntest.Broken(nc, b, 1)
		}
		return nc, err
	}
	c := dialAnyhow(t, cfg)
	defer func() { _ = c.Close() }()
	want := make([]byte, 300)
	fillWith(want, 1)
	// The same place twice: a late copy of the first write would show.
	for i := byte(1); i <= 3; i++ {
		fillWith(want, i)
		if err := c.Write(ctx, want[:200], 0); err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		if err := c.Write(ctx, want[200:], 200); err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		got := make([]byte, 300)
		if i == 2 {
			if err := c.Read(ctx, got, 0); err != nil || string(got) != string(want) {
				t.Fatalf("%+v: read %v: not what was written", b, err)
			}
		}
		if err := c.Flush(ctx); err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		if string(s.Durable(0, 300)) != string(want) {
			t.Fatalf("%+v: flush %d: not durable", b, i)
		}
	}
	if b.Fault == conntest.Late {
		time.Sleep(2 * conntest.Lateness)
	}
	_ = c.Close()
	stop()
	<-served
	served <- nil
	if string(s.Durable(0, 300)) != string(want) {
		t.Fatalf("%+v: a late write changed what was flushed", b)
	}
	return dials > 1
}

func fillWith(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}

// The memory node loses power and comes back, again and again.
func TestReplayAfterPowerLoss(t *testing.T) {
	s := conntest.NewStore(1<<20, rdmacache.Medium{Kind: "file"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var address atomic.Value // of the present life: somebody else may take the port of the last
	address.Store(l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nodes := make(chan error, 1)
	nodesCtx, stop := context.WithCancel(ctx)
	losses := 0
	go func() {
		defer close(nodes)
		for nodesCtx.Err() == nil {
			life, end := context.WithTimeout(nodesCtx, 30*time.Millisecond)
			_ = tcp.Serve(life, l, one{s}, tcp.ServerConfig{})
			end()
			s.LosePower()
			losses++
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				nodes <- err
				return
			}
			address.Store(l.Addr().String())
		}
		_ = l.Close()
	}()
	c := dial(t, tcp.Config{Patience: 5 * time.Second, Connect: func(ctx context.Context) (net.Conn, error) {
		return dialer(address.Load().(string))(ctx)
	}})
	if err := conntest.Stress(ctx, c, s, *seed, 4, 400); err != nil {
		t.Errorf("%v (-seed %d)", err, *seed)
	}
	stop()
	if err := <-nodes; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d losses", losses)
}
