//go:build linux && cgo && rdma

package verbs_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// serveLab serves a session on the device that the tests are given.
func serveLab(t *testing.T, nic verbs.NIC, s *session, cfg verbs.ServerConfig) verbs.Config {
	l := verbs.ListenLab(t, nic)
	tokens := &tokens{session: s}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	cfg.Log = testLog()
	go func() { ended <- verbs.Serve(ctx, l, tokens, cfg) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return verbs.Config{NIC: nic, Address: l.Addr().String(), Token: tokens.give, Log: testLog()}
}

// A deviceConn is a Conn of a Store that a device reaches by itself. What the device makes
// persistent nobody sees here (tests/lab does): it is taken for all that there is.
type deviceConn struct {
	rdmacache.Conn
	store *conntest.Store
}

func (c *deviceConn) Flush(ctx context.Context) error {
	if err := c.Conn.Flush(ctx); err != nil {
		return err
	}
	return c.store.Device().Persist(0, int64(len(c.store.Bytes())))
}

// flushesLab says whether the device has FLUSH.
func flushesLab(t *testing.T, nic verbs.NIC) bool {
	t.Helper()
	r, err := nic.Resolve(t.Context(), verbs.ListenLab(t, nic).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	return r.Device().Flushes()
}

// What every transport promises holds on rdma-core and a device, by each method.
func TestRDMAConformance(t *testing.T) {
	nic := verbs.OpenLab(t)
	for name, w := range map[string]struct {
		way
		medium rdmacache.Medium
		device bool // the Store lies on persistent memory
	}{
		"flush": {way{method: verbs.ByFlush}, rdmacache.Medium{Kind: "dax"}, true},
		"read":  {way{method: verbs.ByRead}, rdmacache.Medium{Kind: "tmpfs", Volatile: true}, false},
		"cpu":   {way{method: verbs.ByCPU, persistence: verbs.CPUOnly}, rdmacache.Medium{Kind: "dax"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if w.method == verbs.ByFlush && !flushesLab(t, nic) {
				t.Skip("no FLUSH")
			}
			var mem []byte
			if w.device {
				mem = verbs.MapLab(t, 8<<20)
			}
			conntest.RunOn(t, w.medium, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
				if w.device {
					s.Move(mem)
				}
				c, err := verbs.Dial(t.Context(), serveLab(t, nic, &session{Store: s}, verbs.ServerConfig{Persistence: w.persistence}))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				if got := c.Methods()[0]; got != w.method {
					t.Fatalf("method %v, want %v", got, w.method)
				}
				if w.method == verbs.ByCPU {
					return c
				}
				return &deviceConn{c, s}
			}, w.without()...)
		})
	}
	t.Run("message", func(t *testing.T) {
		conntest.RunOn(t, rdmacache.Medium{Kind: "file"}, *seed, func(t *testing.T, s *conntest.Store) rdmacache.Conn {
			l := newHanded()
			var serving sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			serving.Go(func() { _ = tcp.Serve(ctx, l, one{s}, tcp.ServerConfig{Log: testLog()}) })
			cfg := serveLab(t, nic, &session{Store: s, none: true}, verbs.ServerConfig{Stream: l.take})
			t.Cleanup(func() {
				cancel()
				serving.Wait()
			})
			if c, err := verbs.Dial(t.Context(), cfg); !errors.Is(err, verbs.ErrMessage) {
				t.Fatalf("Dial = %v, %v, want ErrMessage", c, err)
			}
			c, err := tcp.Dial(t.Context(), tcp.Config{
				Connect: func(ctx context.Context) (net.Conn, error) { return verbs.DialStream(ctx, cfg) }, Log: testLog(),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c
		})
	})
}
