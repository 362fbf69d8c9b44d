package verbs_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// badMemory is a medium that a device finds a fault in at one place.
type badMemory struct {
	conntest.Device
	bad int64
}

var errFault = errors.New("memory fault")

func (m badMemory) ReadAt(p []byte, off int64) error {
	if off <= m.bad && m.bad < off+int64(len(p)) {
		return errFault
	}
	return m.Device.ReadAt(p, off)
}

func newBad(t *testing.T) (*fabric, int64) {
	s, w := conntest.NewStore(4<<20, rdmacache.Medium{Kind: "dax"}), ways(false)[2]
	f := newFabric(t, friendly(), s, w)
	bad := badMemory{s.Device(), 1<<20 + 100}
	f.opts.Media = []model.Medium{bad}
	f.serve()
	return f, bad.bad
}

// A read that always breaks the queue pair ends with its error, also where others succeed
// in between, which it costs nothing but time.
func TestReadThatFails(t *testing.T) {
	f, bad := newBad(t)
	cfg := f.config()
	cfg.Patience = time.Minute
	c := f.dial(cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var others sync.WaitGroup
	stop := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := c.Read(t.Context(), make([]byte, 100), 3<<20); err != nil {
				t.Errorf("a good read: %v", err)
				return
			}
		}
	})
	err := c.Read(ctx, make([]byte, 4096), bad)
	close(stop)
	others.Wait()
	if !errors.Is(err, verbs.ErrRemote) || errors.Is(err, verbs.ErrLost) {
		t.Errorf("a read of a bad page = %v, want ErrRemote", err)
	}
	if n := c.Stats().Connections; n < 2 || n > 10 {
		t.Errorf("%d connections for one bad read", n)
	}
	if err := c.Read(ctx, make([]byte, 100), 0); err != nil {
		t.Errorf("a read after it: %v", err)
	}
}
