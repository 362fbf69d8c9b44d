package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

type (
	sessionID [nodepb.SessionSize]byte
	token     [nodepb.TokenSize]byte
	tokenHash [sha256.Size]byte
	nonce     [nodepb.NonceSize]byte
)

// A token's last bit says that its session may only read. What is recorded is the
// hash of the whole token, so the bit cannot be changed, and it is known again
// after a restart.
const readOnlyBit = 1

func newToken(readOnly bool) (t token) {
	_, _ = rand.Read(t[:]) // never fails
	t[len(t)-1] &^= readOnlyBit
	if readOnly {
		t[len(t)-1] |= readOnlyBit
	}
	return t
}

func (t token) readOnly() bool { return t[len(t)-1]&readOnlyBit != 0 }

func (t token) hash() tokenHash { return sha256.Sum256(t[:]) }

// A fence is the way of a session to the bytes of its share. End makes every later
// access, and every change by the view, fail with rdmacache.ErrFenced. It returns
// when no access is under way; a change under way is committed before EndLease is.
type fence interface {
	rdmacache.Memory
	End()
}

// The states of a session, in their order.
type state uint8

const (
	opening state = iota // it has its turn; the lease is being granted
	live
	ending // fenced, or about to be; the lease is still recorded
	over
)

// A session is one compute node's use of a share.
type session struct {
	// Immutable once live.
	req   openRequest // after a restart: only what the lease tells of it
	lease memnode.Lease
	token token // zero after a restart: only its hash is recorded
	view  *memnode.View
	fence fence

	// life is done when the session begins to end, or the node stops and cannot
	// wait: its cause is what the calls under way return.
	life    context.Context
	cancel  context.CancelCauseFunc
	answers answers
	watch   watch
	listing chan struct{} // one in it for each directory that is in memory to be sent
	opened  chan struct{} // closed when it is opening no longer
	gone    chan struct{} // closed when it is over

	// Guarded by manager.mu.
	state    state
	thief    string    // who wants the lease as soon as it was granted; empty: nobody
	last     time.Time // KeepAlive, or the start
	deadline time.Time
	spared   bool // the deadline was put off since
	lapsed   bool // the lease has run out since; see lapse
	timer    *time.Timer
	why      error // set when the session begins to end; matches rdmacache.ErrFenced

	pins int // that a reader has; guarded by pins.mu
}

// conflict tells whether two shares cannot be leased at a time: the pool contains
// every share.
func conflict(a, b namespace.Ino) bool {
	return a == b || a == namespace.Root || b == namespace.Root
}

// fenced is the error that a session's calls get after why.
func fenced(why string) error {
	return fmt.Errorf("%w (%s)", rdmacache.ErrFenced, why)
}

// A store records leases durably, and opens what a lease gives access to;
// memnode.Pool is behind it.
type store interface {
	GrantLease(ctx context.Context, l memnode.Lease) (memnode.Lease, error)
	EndLease(ctx context.Context, share namespace.Ino, session [16]byte) error
	Leases(ctx context.Context) ([]memnode.Lease, error)
	open(ctx context.Context, share namespace.Ino) (*memnode.View, fence, error)
	// openReader is open for a session without a lease.
	openReader(ctx context.Context, share namespace.Ino) (*memnode.View, fence, error)
	names(ctx context.Context) (map[namespace.Ino]string, error) // of the shares
}

// poolStore is a pool as a store.
type poolStore struct{ *memnode.Pool }

func (p poolStore) open(ctx context.Context, share namespace.Ino) (*memnode.View, fence, error) {
	return openView(ctx, p.View(share))
}

func (p poolStore) openReader(ctx context.Context, share namespace.Ino) (*memnode.View, fence, error) {
	return openView(ctx, p.Reader(share))
}

func openView(ctx context.Context, v *memnode.View) (*memnode.View, fence, error) {
	f, err := v.Fence(ctx)
	if err != nil {
		return nil, nil, err // not a nil *memnode.Fence in a fence
	}
	return v, f, nil
}

func (p poolStore) names(ctx context.Context) (map[namespace.Ino]string, error) {
	shares, err := p.Shares(ctx)
	names := map[namespace.Ino]string{namespace.Root: nodepb.WholePool}
	for _, s := range shares {
		names[s.Ino] = s.Name
	}
	return names, err
}
