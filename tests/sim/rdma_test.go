package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
	"github.com/rpmemfs/rpmemfs/remote"
)

// rdmaPort is the memory node's, on a fabric of its own beside the network.
const rdmaPort = 7472

// A path is how compute nodes reach the bytes of the pool.
type path int

const (
	overTCP   path = iota
	overFlush      // RDMA, FLUSH
	overRead       // RDMA, a READ pushes writes out, and what is there survives
	overCPU        // RDMA, the memory node's processor persists
	paths
)

func (p path) String() string { return [paths]string{"tcp", "flush", "read", "cpu"}[p] }

// pathOf chooses the path of a schedule.
func pathOf(seed uint64) path {
	for p := range paths {
		if p.String() == *onlyPath {
			return p
		}
	}
	if seed%2 == 0 {
		return overTCP
	}
	return overFlush + path(seed/2%uint64(paths-overFlush))
}

// newFabric makes the devices of a schedule.
func newFabric(rng *rand.Rand, n *network, lease time.Duration) *model.Fabric {
	return model.New(model.Config{
		Rand:    rng,
		Delay:   func(op verbs.Op, _ int) time.Duration { return n.deviceDelay(op, lease) },
		Timeout: time.Duration(rng.Int64N(int64(lease/2))) + 50*time.Millisecond,
		Late:    2 * lease,
	})
}

// deviceDelay is how long an operation takes. What is behind it in its queue waits: if that
// is too long the queue pair is given up, and another one used, with this one's writes still
// on their way. That is a fault: three of them in a row cost the session its lease.
func (n *network) deviceDelay(op verbs.Op, lease time.Duration) time.Duration {
	if op == verbs.OpWrite && n.slow.Load() && n.intN(400) == 0 {
		return time.Duration(n.intN(int(lease)))
	}
	return n.delay() / 4
}

// rdma makes cfg that of a mount over RDMA, if the schedule's are.
func (h *host) rdma(cfg *remote.Config, rng *rand.Rand) {
	if h.nic != nil {
		cfg.NIC, cfg.Queues = h.nic, 1+rng.IntN(3)
	}
}

// flushes tells what makes writes before it persistent: by its length in a READ, and by
// the kind of message in a SEND (docs/protocol.md).
func flushes(w verbs.Work) bool {
	const landing, persist = 8, 3
	switch w.Op {
	case verbs.OpFlush:
		return true
	case verbs.OpRead:
		return len(w.Local) == landing
	case verbs.OpSend:
		return len(w.Local) > 0 && w.Local[0] == persist
	}
	return false
}

// listenRDMA begins a life of the memory node's device.
func (m *machine) listenRDMA() (verbs.Listener, verbs.Persistence, error) {
	n := m.net
	if n.fabric == nil {
		return nil, verbs.Auto, nil
	}
	nic := n.fabric.Host("node", model.HostOptions{
		Flush: n.path == overFlush, ReadPersists: n.path == overRead, Media: []model.Medium{m.gate},
	})
	n.mu.Lock()
	n.nodeNIC = nic
	n.mu.Unlock()
	l, err := nic.Listen(fmt.Sprintf(":%d", rdmaPort))
	if err != nil {
		return nil, verbs.Auto, err
	}
	known := verbs.Auto
	if n.path == overRead {
		known = verbs.ADRNoDDIO
	}
	return lazyListener{l, n}, known, nil
}

var _ model.Medium = (*gate)(nil)

// A lazyListener is the memory node's, whose threads sleep with what they received, as
// those behind a conn do.
type lazyListener struct {
	verbs.Listener
	net *network
}

func (l lazyListener) Accept() (verbs.Request, error) {
	r, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(r.Peer(), ":")
	l.net.mu.Lock()
	h := l.net.plugged[name]
	l.net.mu.Unlock()
	if h == nil {
		return r, nil
	}
	return lazyRequest{r, h}, nil
}

type lazyRequest struct {
	verbs.Request
	host *host
}

func (r lazyRequest) Accept(ctx context.Context, d verbs.Domain, cfg verbs.QueueConfig, recvs []verbs.Work, welcome []byte) (verbs.Queue, error) {
	q, err := r.Request.Accept(ctx, d, cfg, recvs, welcome)
	if err != nil {
		return nil, err
	}
	return lazyQueue{q, r.host}, nil
}

type lazyQueue struct {
	verbs.Queue
	host *host
}

func (q lazyQueue) Wait(ctx context.Context, done []verbs.Completion) (int, error) {
	n, err := q.Queue.Wait(ctx, done)
	if n > 0 {
		if d := q.host.descheduled(); d > 0 {
			time.Sleep(d)
		}
	}
	return n, err
}
