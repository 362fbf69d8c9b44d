package remote

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Reader is a pool that is only read, without a lease (Config.Reader), and outlives its
// session: a memory node that restarts knows no readers any more. Then Run opens another
// one. Calls and reads wait for it, as long as a lease lasts, before they fail with
// rdmacache.ErrFenced; later ones wait again.
//
// Pins are lost with the session. Until they are made again, which is what Run's renew
// does, nothing is read.
type Reader struct {
	// Pool is the first session's. What needs no session is asked of it, and what
	// changes something, which a reader's session refuses.
	*Pool
	cfg      Config // immutable, as the next
	patience time.Duration

	mu      sync.Mutex    // guards the fields below
	calls   *Pool         // the newest session
	bytes   *Pool         // the newest session whose pins are made
	changed chan struct{} // closed when one of them changes
	closed  bool
	renewed int
}

// DialReader opens a session as Dial does; cfg.Reader is set. The caller must Run it.
func DialReader(ctx context.Context, cfg Config) (*Reader, error) {
	cfg.Reader = true
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Reader{
		Pool: p, cfg: cfg, patience: max(p.lease.patience, answerIn),
		calls: p, bytes: p, changed: make(chan struct{}),
	}, nil
}

// Run opens another session whenever one is lost, until ctx is done or Close was called.
// renew pins again what the reader shows; what it returns is called when reads go on.
func (r *Reader) Run(ctx context.Context, renew func(context.Context) (then func())) {
	for {
		p := r.session(false)
		select {
		case <-p.Done():
		case <-ctx.Done():
			return
		}
		if errors.Is(p.Err(), ErrClosed) {
			return
		}
		r.cfg.Log.Warn("the session is lost; opening another one", "node", r.cfg.Address, "why", p.Err())
		next := r.dial(ctx)
		if next == nil {
			return
		}
		if !r.adopt(next) {
			return
		}
		then := renew(ctx)
		r.set(func() { r.bytes = next; r.renewed++ })
		then()
		r.cfg.Log.Info("reading goes on", "node", r.cfg.Address)
	}
}

// dial opens a session. It tries until ctx is done or Close was called: then it returns
// nil.
func (r *Reader) dial(ctx context.Context) *Pool {
	for {
		p, err := Dial(ctx, r.cfg)
		r.mu.Lock()
		closed := r.closed
		r.mu.Unlock()
		switch {
		case err == nil && !closed:
			return p
		case err == nil:
			_ = p.Close() // nobody needs it
		}
		if closed || ctx.Err() != nil {
			return nil
		}
		r.cfg.Log.Debug("no session yet", "node", r.cfg.Address, "err", err)
		select {
		case <-time.After(pauseMax):
		case <-ctx.Done():
		}
	}
}

// adopt makes next the session for calls, unless Close was called: then nobody else would
// close it.
func (r *Reader) adopt(next *Pool) bool {
	closed := false
	r.set(func() {
		if closed = r.closed; !closed {
			r.calls = next
		}
	})
	if closed {
		_ = next.Close()
	}
	return !closed
}

func (r *Reader) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

// session returns the newest session, for calls or for bytes.
func (r *Reader) session(bytes bool) *Pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes {
		return r.bytes
	}
	return r.calls
}

// again does a call, and once more where the session was lost and another one came.
func again[T any](ctx context.Context, r *Reader, bytes bool, call func(*Pool) (T, error)) (T, error) {
	late := time.NewTimer(r.patience)
	defer late.Stop()
	for {
		p := r.session(bytes)
		v, err := call(p)
		if !errors.Is(err, rdmacache.ErrFenced) {
			return v, err
		}
		for r.session(bytes) == p {
			r.mu.Lock()
			changed, closed := r.changed, r.closed
			r.mu.Unlock()
			if r.session(bytes) != p {
				break
			}
			if closed {
				return v, ErrClosed
			}
			select {
			case <-changed:
			case <-late.C:
				return v, err
			case <-ctx.Done():
				return v, ctx.Err()
			}
		}
	}
}

// Close gives back the session. Calls under way fail.
func (r *Reader) Close() error {
	var p *Pool
	r.set(func() { p, r.closed = r.calls, true })
	if p != r.Pool {
		_ = r.Pool.Close() // over
	}
	if err := p.Close(); !errors.Is(err, rdmacache.ErrFenced) {
		return err
	}
	return nil // the memory node is away; its next start knows nothing of us
}

// Renewed counts the sessions that were opened after the first.
func (r *Reader) Renewed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.renewed
}

// Err is nil until Close: a session that is lost is not the end.
func (r *Reader) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	return nil
}

// Done is never closed before Close.
func (r *Reader) Done() <-chan struct{} { return nil }

func (r *Reader) Lookup(ctx context.Context, parent namespace.Ino, name string) (namespace.Inode, error) {
	return again(ctx, r, false, func(p *Pool) (namespace.Inode, error) { return p.Lookup(ctx, parent, name) })
}

func (r *Reader) Inode(ctx context.Context, ino namespace.Ino) (namespace.Inode, error) {
	return again(ctx, r, false, func(p *Pool) (namespace.Inode, error) { return p.Inode(ctx, ino) })
}

func (r *Reader) ReadDir(ctx context.Context, ino namespace.Ino) ([]namespace.Entry, error) {
	return again(ctx, r, false, func(p *Pool) ([]namespace.Entry, error) { return p.ReadDir(ctx, ino) })
}

func (r *Reader) Xattr(ctx context.Context, ino namespace.Ino, name string) ([]byte, error) {
	return again(ctx, r, false, func(p *Pool) ([]byte, error) { return p.Xattr(ctx, ino, name) })
}

func (r *Reader) Xattrs(ctx context.Context, ino namespace.Ino) ([]string, error) {
	return again(ctx, r, false, func(p *Pool) ([]string, error) { return p.Xattrs(ctx, ino) })
}

func (r *Reader) Usage(ctx context.Context) (namespace.Usage, error) {
	return again(ctx, r, false, func(p *Pool) (namespace.Usage, error) { return p.Usage(ctx) })
}

func (r *Reader) Locate(ctx context.Context, id region.ID) (region.Location, error) {
	return again(ctx, r, false, func(p *Pool) (region.Location, error) { return p.Locate(ctx, id) })
}

func (r *Reader) Pin(ctx context.Context, id region.ID) (region.Checkpoint, error) {
	return again(ctx, r, false, func(p *Pool) (region.Checkpoint, error) { return p.Pin(ctx, id) })
}

// Unpin has nothing to do in a session that is lost.
func (r *Reader) Unpin(ctx context.Context, id region.ID, keep epoch.ID) error {
	if err := r.session(false).Unpin(ctx, id, keep); !errors.Is(err, rdmacache.ErrFenced) {
		return err
	}
	return nil
}

func (r *Reader) Check(ctx context.Context, report func(problem string)) error {
	return r.session(false).Check(ctx, report)
}

func (r *Reader) Traffic() rdmacache.Traffic { return r.session(false).Traffic() }

// Conn is the way to the bytes, whichever session it is. A page whose place is that of
// before a session was lost is not there in the next one: who reads it looks again where
// it is. The Reader owns it.
func (r *Reader) Conn() rdmacache.Conn { return readerConn{r.Pool.Conn(), r} }

type readerConn struct {
	rdmacache.Conn // of the first session: its medium
	reader         *Reader
}

func (c readerConn) Read(ctx context.Context, b []byte, off int64) error {
	_, err := again(ctx, c.reader, true, func(p *Pool) (struct{}, error) { return struct{}{}, p.Conn().Read(ctx, b, off) })
	return err
}
