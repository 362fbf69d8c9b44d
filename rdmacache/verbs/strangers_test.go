package verbs_test

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// A notebook is a log.
type notebook struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (n *notebook) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lines.Write(p)
}

// Strangers leave nothing in the log; who has a token does.
func TestStrangersAreNotLogged(t *testing.T) {
	f := newFabric(t, friendly(), conntest.NewStore(1<<20, rdmacache.Medium{Kind: "dax"}), ways(false)[2])
	log := new(notebook)
	f.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	f.serve()
	for _, private := range [][]byte{nil, verbs.EncodeHello([32]byte{31: 1}, 1, 1)} {
		if _, err := connectRaw(t, f, private); err == nil {
			t.Error("a stranger was let in")
		}
	}
	known := f.dial(f.config())
	f.stop() // first: that a connection ends is logged, too, unless all do
	_ = known.Close()
	if got := log.lines.String(); strings.Contains(got, "ended") || strings.Contains(got, "refused") || !strings.Contains(got, `msg="RDMA connection"`) {
		t.Errorf("log:\n%s\nwant the connection that was let in, and no other", got)
	}
}
