package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 picks one")

// A fakeStore keeps leases in memory, and complains of what may not happen. It
// outlives managers, as a pool does nodes.
type fakeStore struct {
	t *testing.T

	mu         sync.Mutex
	generation uint64
	leases     map[namespace.Ino]memnode.Lease
	fences     map[namespace.Ino]*fakeFence
	failGrant  error    // of the next GrantLease
	failOpen   error    // of the next open
	failEnd    error    // of every EndLease, until it is taken away
	slow       chan int // if not nil, GrantLease waits for it
	events     []string
}

func newFakeStore(t *testing.T) *fakeStore {
	return &fakeStore{t: t, leases: make(map[namespace.Ino]memnode.Lease), fences: make(map[namespace.Ino]*fakeFence)}
}

func (f *fakeStore) GrantLease(_ context.Context, l memnode.Lease) (memnode.Lease, error) {
	if f.slow != nil {
		<-f.slow
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failGrant; err != nil {
		f.failGrant = nil
		return memnode.Lease{}, err
	}
	for share, other := range f.leases {
		if conflict(share, l.Share) {
			f.t.Errorf("share %d is granted to %s while %s has share %d", l.Share, l.Holder, other.Holder, share)
			return memnode.Lease{}, memnode.ErrLeased
		}
	}
	f.generation++
	l.Generation = f.generation
	l.Granted = time.Now().UnixNano()
	f.leases[l.Share] = l
	f.events = append(f.events, fmt.Sprintf("grant %d %s", l.Share, l.Holder))
	return l, nil
}

func (f *fakeStore) EndLease(_ context.Context, share namespace.Ino, session [16]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failEnd != nil {
		return f.failEnd
	}
	if l, ok := f.leases[share]; ok && l.Session == session {
		if fence := f.fences[share]; fence != nil && !fence.over() {
			f.t.Errorf("the lease of %s ends before its fence", l.Holder)
		}
		delete(f.leases, share)
		f.events = append(f.events, fmt.Sprintf("end %d %s", share, l.Holder))
	}
	return nil
}

func (f *fakeStore) Leases(context.Context) (leases []memnode.Lease, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leases {
		leases = append(leases, l)
	}
	return leases, nil
}

func (f *fakeStore) open(_ context.Context, share namespace.Ino) (*memnode.View, fence, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failOpen; err != nil {
		f.failOpen = nil
		return nil, nil, err
	}
	f.fences[share] = &fakeFence{gate: make(chan struct{}, 1), ended: make(chan struct{})}
	return nil, f.fences[share], nil
}

func (f *fakeStore) openReader(context.Context, namespace.Ino) (*memnode.View, fence, error) {
	return nil, &fakeFence{gate: make(chan struct{}, 1), ended: make(chan struct{})}, nil
}

func (f *fakeStore) names(context.Context) (map[namespace.Ino]string, error) {
	return map[namespace.Ino]string{2: "two"}, nil
}

// A fakeFence lets one access in at a time, so that a test can hold one.
type fakeFence struct {
	gate  chan struct{} // full while an access is under way
	ended chan struct{}
}

func (f *fakeFence) over() bool {
	select {
	case <-f.ended:
		return len(f.gate) == 0
	default:
		return false
	}
}

func (f *fakeFence) WriteAt([]byte, int64) error {
	select {
	case <-f.ended:
		return rdmacache.ErrFenced
	default:
		return nil
	}
}

func (f *fakeFence) ReadAt(p []byte, off int64) error { return f.WriteAt(p, off) }
func (f *fakeFence) Flush() error                     { return f.WriteAt(nil, 0) }
func (f *fakeFence) Medium() rdmacache.Medium         { return rdmacache.Medium{Kind: "fake"} }

func (f *fakeFence) Bytes() []byte                 { return nil }
func (f *fakeFence) Persist(int64, int64) error    { return f.WriteAt(nil, 0) }
func (f *fakeFence) Expose(rdmacache.Window) error { return f.WriteAt(nil, 0) }
func (f *fakeFence) Withdraw(rdmacache.Window)     {}
func (f *fakeFence) Extent(off int64) (start, end int64, err error) {
	return off, off + 1, f.WriteAt(nil, 0)
}

func (f *fakeFence) End() {
	close(f.ended)
	f.gate <- struct{}{} // waits for the access under way
	<-f.gate
}

// start returns a manager that has taken up what the store has recorded.
func start(t *testing.T, st *fakeStore) *manager {
	t.Helper()
	m := newManager(st, slog.New(slog.DiscardHandler))
	if err := m.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// request asks for a share, for a lease of 10 s, without waiting.
func request(share namespace.Ino, holder string) openRequest {
	return openRequest{share: share, name: fmt.Sprint(share), holder: holder, timeout: 10 * time.Second}
}

func mustOpen(t *testing.T, m *manager, req openRequest) *session {
	t.Helper()
	s, err := m.open(t.Context(), req)
	if err != nil {
		t.Fatalf("open share %d by %s: %v", req.share, req.holder, err)
	}
	return s
}

func (s *session) id() sessionID { return s.lease.Session }

// wantFenced fails unless the session is over for its holder.
func wantFenced(t *testing.T, m *manager, s *session) {
	t.Helper()
	if err := m.keepAlive(s.id(), s.token); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("keep-alive of %s: got %v, want ErrFenced", s.req.holder, err)
	}
	if _, err := (dataSessions{m, new(dataWork)}).Session(s.token); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("data connection of %s: got %v, want ErrFenced", s.req.holder, err)
	}
	if s.life.Err() == nil {
		t.Errorf("the data connections of %s are not cut", s.req.holder)
	}
}
