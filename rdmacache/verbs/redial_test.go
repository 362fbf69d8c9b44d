package verbs_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// badToWrite is a medium on which a device cannot store at one place, or make it persistent.
type badToWrite struct {
	conntest.Device
	bad     int64
	persist bool // it stores
}

func (m badToWrite) Store(p []byte, off int64) error {
	if !m.persist && off <= m.bad && m.bad < off+int64(len(p)) {
		return errFault
	}
	return m.Device.Store(p, off)
}

func (m badToWrite) Persist(off, n int64) error {
	if m.persist && off <= m.bad && m.bad < off+n {
		return errFault
	}
	return m.Device.Persist(off, n)
}

// slowly says how long everything takes, in one direction. What makes persistent takes longest.
func slowly() model.Config {
	return model.Config{Delay: func(op verbs.Op, bytes int) time.Duration {
		const landing = 8
		if op == verbs.OpFlush || op == verbs.OpRead && bytes == landing {
			return 3 * time.Millisecond
		}
		return time.Millisecond
	}}
}

// readOn reads at off without a pause until the stop that it returns was called.
func readOn(c *verbs.Conn, off int64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() {
		for ctx.Err() == nil && c.Read(ctx, make([]byte, 100), off) == nil {
		}
	})
	return func() { cancel(); reader.Wait() }
}

// A write at which every queue pair breaks, or its flush, costs the memory node a connection
// now and then, also where reads succeed in between, and where nobody waits for the write.
func TestWriteThatAlwaysFails(t *testing.T) {
	for _, w := range ways(false) {
		for name, x := range map[string]alwaysFails{
			"flush": {flush: true}, "flush and reads": {read: true, flush: true}, "reads": {read: true},
			"flush fails": {read: true, flush: true, persist: true},
		} {
			if x.persist && w.method == verbs.ByCPU {
				continue // the memory node says so
			}
			t.Run(w.method.String()+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { x.run(t, w) })
			})
		}
	}
}

type alwaysFails struct{ read, flush, persist bool }

func (x alwaysFails) run(t *testing.T, w way) {
	const bad, start, patience = 1<<20 + 100, 1<<20 - 100<<10, 10 * time.Second
	// The read's memory is found while that of the end of the write is still asked for.
	good := int64(33 << 20)
	if x.persist {
		good = start // comes after the write, and before its flush
	}
	s := conntest.NewStore(34<<20, rdmacache.Medium{Kind: "dax"})
	f := newFabric(t, slowly(), s, w)
	f.opts.Media = []model.Medium{badToWrite{s.Device(), bad, x.persist}}
	f.serve()
	cfg := f.config()
	cfg.Patience = patience
	c := f.dial(cfg)
	ctx := t.Context()
	if err := c.Write(ctx, make([]byte, 1<<20), start); err != nil { // posted at once
		t.Fatal(err)
	}
	if x.read {
		defer readOn(c, good)()
	}
	if x.flush {
		if err := c.Flush(ctx); !errors.Is(err, verbs.ErrLost) {
			t.Errorf("flush = %v, want ErrLost", err)
		}
	} else {
		time.Sleep(patience) // of the bubble
	}
	if n := c.Stats().Connections; n < 10 || n > 200 {
		t.Errorf("%d connections in %v", n, patience)
	}
}

// Who finds memory revoked has it again after a few round trips, however often that
// happens: while writes get through, and while reads do beside writes that nobody flushes.
func TestRevokedMemoryIsFoundFast(t *testing.T) {
	const times, limit = 40, 15 * time.Millisecond
	for _, w := range ways(false) {
		for _, flush := range []bool{true, false} {
			name := w.method.String() + "/reads"
			if flush {
				name = w.method.String() + "/flush"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := conntest.NewStore(4<<20, rdmacache.Medium{Kind: "dax"})
					_, c := connect(t, slowly(), s, w, nil)
					ctx := t.Context()
					if err := c.Write(ctx, make([]byte, 512<<10), 0); err != nil { // posted at once
						t.Fatal(err)
					}
					work := func() error { return c.Read(ctx, make([]byte, 100), 2<<20) }
					if flush {
						work = func() error {
							return errors.Join(c.Write(ctx, []byte("x"), 2<<20), c.Flush(ctx))
						}
					}
					for i := range times {
						begun := time.Now()
						if err := work(); err != nil {
							t.Fatal(err)
						}
						if took := time.Since(begun); took > limit {
							t.Fatalf("round %d took %v", i, took)
						}
						s.Revoke(0, 4<<20, false)
					}
					if n := c.Stats().Connections; n != times {
						t.Errorf("%d connections, want %d", n, times)
					}
				})
			})
		}
	}
}
