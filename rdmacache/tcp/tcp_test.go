package tcp_test

import (
	"context"
	"crypto/subtle"
	"errors"
	"flag"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

var seed = flag.Uint64("seed", 1, "seed of the random tests")

var token = [32]byte{1, 2, 3}

// one is a memory node with one session.
type one struct{ session tcp.Session }

func (o one) Session(tok [32]byte) (tcp.Session, error) {
	if subtle.ConstantTimeCompare(tok[:], token[:]) != 1 {
		return nil, rdmacache.ErrFenced
	}
	return o.session, nil
}

// testLog logs to stderr under -v.
func testLog() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return nil
}

// serve serves sessions on a port of its own until the test ends.
func serve(t testing.TB, s tcp.Sessions, wrap func(net.Listener) net.Listener) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, s, wrap)
	return l.Addr().String()
}

// piped serves sessions in memory until the test ends, where a clock that jumps may decide
// how long that takes, and returns a way there.
func piped(t testing.TB, s tcp.Sessions, wrap func(net.Listener) net.Listener) func(context.Context) (net.Conn, error) {
	t.Helper()
	l := newPipes()
	serveOn(t, l, s, wrap)
	return l.dial
}

func serveOn(t testing.TB, l net.Listener, s tcp.Sessions, wrap func(net.Listener) net.Listener) {
	t.Helper()
	if wrap != nil {
		l = wrap(l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tcp.Serve(ctx, l, s, tcp.ServerConfig{Log: testLog()}) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Serve = %v, want context.Canceled", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve does not end")
		}
	})
}

// dialer connects to address.
func dialer(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

func dial(t testing.TB, cfg tcp.Config) *tcp.Conn {
	t.Helper()
	cfg.Token, cfg.Log = token, testLog()
	c, err := tcp.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConformance(t *testing.T) {
	conntest.Run(t, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		return dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil))})
	})
}

// A window of a few pages makes every Write wait for room.
func TestConformanceSmallWindow(t *testing.T) {
	conntest.Run(t, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
		return dial(t, tcp.Config{Connect: dialer(serve(t, one{s}, nil)), Window: 32 << 10})
	})
}
