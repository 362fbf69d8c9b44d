package verbs_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/region"
)

// pages is what a memory node that registers next to nothing registers.
const pages = 40

// scarce is a memory node of 32 extents of 1 MiB, that registers no more than so many of them at
// a time, and some pages.
func scarce(t *testing.T, w way, extents int) *fabric {
	f := newFabric(t, friendly(), conntest.NewStore(32<<20, rdmacache.Medium{Kind: "dax"}), w)
	f.serve()
	f.server.Limit(extents<<20 + pages*rdmacache.PageSize)
	return f
}

// everywhere writes to each extent, and flushes.
func everywhere(ctx context.Context, c *verbs.Conn, with byte) error {
	var err error
	for i := range int64(32) {
		err = errors.Join(err, c.Write(ctx, []byte{with, byte(i)}, i<<20))
	}
	return errors.Join(err, c.Flush(ctx))
}

// A flush of more than the memory node can register at a time ends: each connection gets a
// part of it done. So do reads.
func TestFlushOfMoreThanCanBeRegistered(t *testing.T) {
	for _, w := range ways(false) {
		for _, extents := range []int{1, 2, 5} {
			f := scarce(t, w, extents)
			c := f.dial(f.config())
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := everywhere(ctx, c, 1); err != nil {
				t.Fatalf("%v, %d extents: %v", w.method, extents, err)
			}
			got := make([]byte, 2)
			for i := range int64(32) {
				if !f.session.DurableIs(i<<20, []byte{1, byte(i)}) {
					t.Errorf("%v, %d extents: extent %d is not durable", w.method, extents, i)
				}
				if err := c.Read(ctx, got, i<<20); err != nil || got[0] != 1 || got[1] != byte(i) {
					t.Errorf("%v, %d extents: read %v, %v", w.method, extents, got, err)
				}
			}
			if n := c.Stats().Connections; n > uint64(2*32/extents+10) {
				t.Errorf("%v, %d extents: %d connections", w.method, extents, n)
			}
			_ = c.Close()
			f.stop()
		}
	}
}

// Many who write and read all over what cannot be registered at a time get it done.
func TestStressOfScarceMemory(t *testing.T) {
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			t.Parallel()
			f := scarce(t, w, 0)
			f.session.scattered = true
			c := f.dial(f.config())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := conntest.Stress(ctx, c, f.session.Store, *seed, 4, 30); err != nil {
				t.Errorf("%v (-seed %d)", err, *seed)
			}
			if n := c.Stats().Connections; n < 5 {
				t.Errorf("%d connections: it was not scarce", n)
			}
		})
	}
}

// Who needs memory has what another connection asked for before and does not use; that one
// has it again when it does.
func TestOthersSpareMemory(t *testing.T) {
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			f := scarce(t, w, 33)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			conns := []*verbs.Conn{f.dial(f.config()), f.dial(f.config()), f.dial(f.config())}
			for round := range 3 {
				for i, c := range conns {
					if err := everywhere(ctx, c, byte(3*round+i)); err != nil {
						t.Fatalf("round %d, connection %d: %v", round, i, err)
					}
				}
			}
			for i, c := range conns {
				if n := c.Stats().Connections; n > 9 {
					t.Errorf("connection %d was made %d times", i, n)
				}
			}
		})
	}
}

// Where nothing can be registered at all who flushes is told so; what he wrote is kept, and
// is durable when there is memory again.
func TestNoMemoryToRegister(t *testing.T) {
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			f := scarce(t, w, 0)
			c := f.dial(f.config())
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for range 2 {
				if err := everywhere(ctx, c, 7); !errors.Is(err, region.ErrNoSpace) || !strings.Contains(err.Error(), "cannot allocate memory") {
					t.Fatalf("flush = %v, want ErrNoSpace for want of memory", err)
				}
			}
			if err := c.Read(ctx, make([]byte, 1), 5<<20); !errors.Is(err, region.ErrNoSpace) {
				t.Errorf("read = %v, want ErrNoSpace", err)
			}
			f.server.Limit(0)
			err := c.Flush(ctx)
			for errors.Is(err, region.ErrNoSpace) && ctx.Err() == nil {
				err = c.Flush(ctx) // an answer of before came late
			}
			if err != nil || !f.session.DurableIs(31<<20, []byte{7, 31}) {
				t.Errorf("flush with memory: %v", err)
			}
		})
	}
}

// Who needs more at once than can be registered at a time is told so, and nobody else.
func TestMoreThanCanBeRegisteredAtOnce(t *testing.T) {
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			f := scarce(t, w, 0)
			f.session.scattered = true
			c := f.dial(f.config())
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := c.Read(ctx, make([]byte, 2*pages*rdmacache.PageSize), 0); !errors.Is(err, region.ErrNoSpace) {
				t.Errorf("read = %v, want ErrNoSpace", err)
			}
			if err := c.Read(ctx, make([]byte, 4*rdmacache.PageSize), 0); err != nil {
				t.Errorf("a small one: %v", err)
			}
		})
	}
}

// That there is no memory to try the device is no reason to choose messages.
func TestNoMemoryToChoose(t *testing.T) {
	f := newFabric(t, friendly(), conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"}), ways(false)[0])
	f.cfg.Stream = func(nc net.Conn) { _ = nc.Close() }
	f.serve()
	f.server.Limit(1)
	if _, err := verbs.Dial(t.Context(), f.config()); err == nil || errors.Is(err, verbs.ErrMessage) || !strings.Contains(err.Error(), "cannot allocate memory") {
		t.Errorf("dial = %v, want that there is no memory", err)
	}
	f.server.Limit(0)
	f.works(t)
}
