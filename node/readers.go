package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// maxReaders bounds the sessions without a lease.
const maxReaders = 4096

// openAny opens a session, with a lease or as a reader.
func (m *manager) openAny(ctx context.Context, req openRequest) (*session, error) {
	if req.reader {
		return m.openReader(ctx, req)
	}
	return m.open(ctx, req)
}

// openReader opens a session that has no lease: it keeps nobody from one, waits for
// nobody, and is not recorded, so that it ends with the node.
func (m *manager) openReader(ctx context.Context, req openRequest) (*session, error) {
	l := memnode.Lease{Share: req.share, Holder: req.holder, Timeout: req.timeout, Granted: time.Now().UnixNano()}
	_, _ = rand.Read(l.Session[:]) // never fails
	s := newSession(l)
	s.req, s.token = req, newToken(true)
	s.lease.TokenHash = s.token.hash()
	close(s.opened)
	var err error
	if s.view, s.fence, err = m.store.openReader(ctx, req.share); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	same := 0 // readers of this identity; without TLS nobody has one
	for _, old := range m.readers {
		if old.state == live && req.repeats(&old.req) {
			s.fence.End()
			return old, nil
		}
		if req.identity != "" && old.req.identity == req.identity {
			same++
		}
	}
	switch {
	case m.stopped:
		err = errStopping
	case len(m.readers) == maxReaders || same == maxReaders/maxShareOf:
		err = fmt.Errorf("%w: %d readers", errBusy, len(m.readers))
	}
	if err != nil {
		s.fence.End()
		return nil, err
	}
	m.readers[s.lease.Session] = s
	m.begin(s)
	m.log.Info("reader opened", "share", req.name, "holder", l.Holder, "identity", req.identity)
	return s, nil
}

// finishReader gives back what a reader had.
func (m *manager) finishReader(s *session) {
	if m.readerGone != nil {
		m.readerGone(s)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.readers, s.lease.Session)
	m.conclude(s)
}

// holding returns the session that may write a share, or is about to or was just now;
// nil: nobody may. For namespace.Root it is who has the whole pool.
func (m *manager) holding(share namespace.Ino) *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sessions[namespace.Root]; s != nil {
		return s
	}
	return m.sessions[share]
}

// settle waits while a session is about to hold its lease, or to be over, and for the
// end of one of the node's own.
func (m *manager) settle(ctx context.Context, s *session) error {
	done := s.gone
	m.mu.Lock()
	if s.state == opening && !s.req.own {
		done = s.opened
	}
	m.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopping:
		return errStopping
	}
}

// isOwn tells whether the node itself has a share, which it gives back soon.
func (m *manager) isOwn(share namespace.Ino) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.holder(share)
	return s != nil && s.req.own
}

// endOwn ends a session of the node's own.
func (m *manager) endOwn(s *session) {
	m.mu.Lock()
	m.end(s, "its work is done")
	m.mu.Unlock()
	_ = m.wait(context.Background(), s) // the node stops: the lease ends after the restart
}

// pinSelf pins the newest epoch of a file that nobody may write, as the next holder
// of the lease would: with a generation of its own. Who comes for the lease meanwhile
// waits.
func (p *pins) pinSelf(ctx context.Context, f *pinnedFile) (region.Checkpoint, error) {
	if cp, ok := p.unchanged(ctx, f); ok {
		return cp, nil
	}
	s, err := p.sessions.open(ctx, openRequest{
		share: f.share, name: fmt.Sprintf("number %d", f.share), holder: "the memory node, for a reader",
		timeout: MinLease, own: true,
	})
	if err != nil {
		return region.Checkpoint{}, err
	}
	defer p.sessions.endOwn(s)
	im, err := openImage(ctx, s, region.ID(f.ino))
	if err != nil {
		return region.Checkpoint{}, err
	}
	ctx = context.WithoutCancel(ctx) // half a pin helps nobody
	cp, err := im.Pin(ctx, time.Now().UnixNano())
	if err == nil && cp.Epoch > 0 {
		cp, err = p.save(ctx, s.view, f.ino, cp)
	}
	if err != nil {
		if s.life.Err() != nil {
			err = errOver // stolen
		}
		return region.Checkpoint{}, err
	}
	return cp, errors.Join(im.Close(ctx), s.fence.Flush())
}

// unchanged returns the pin of the newest epoch, if there is one. Somebody may begin
// to write meanwhile: then what is read may make no sense, but an epoch that has a pin
// was the newest when the call began.
func (p *pins) unchanged(ctx context.Context, f *pinnedFile) (region.Checkpoint, bool) {
	p.mu.Lock()
	none := len(f.pins) == 0
	p.mu.Unlock()
	if none {
		return region.Checkpoint{}, false
	}
	loc, err := p.pool.Locate(ctx, region.ID(f.ino))
	if err != nil {
		return region.Checkpoint{}, false
	}
	im, err := region.Open(ctx, region.Config{Device: device{p.pool}, Location: loc})
	if err != nil {
		return region.Checkpoint{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pin := f.pins[im.State().Epoch]
	if pin == nil {
		return region.Checkpoint{}, false
	}
	return pin.cp, true
}

// openImage opens a region for the holder of the lease, and what its relatives reach.
func openImage(ctx context.Context, s *session, id region.ID) (*region.Image, error) {
	open := func(id region.ID, family func(context.Context, func(region.Slot)) error) (*region.Image, error) {
		loc, err := s.view.Locate(ctx, id)
		if err != nil {
			return nil, err
		}
		return region.Open(ctx, region.Config{
			Device: device{s.fence}, Space: s.view, Generation: s.lease.Generation, Location: loc, Family: family,
		})
	}
	// Nobody changes them: they are of the same share.
	return open(id, func(ctx context.Context, mark func(region.Slot)) error {
		loc, err := s.view.Locate(ctx, id)
		if err != nil {
			return err
		}
		for _, relative := range loc.Family {
			im, err := open(relative, nil)
			if err != nil {
				return err
			}
			if err := im.Walk(ctx, mark); err != nil {
				return fmt.Errorf("relative %d: %w", relative, err)
			}
		}
		return nil
	})
}

// A device is a pool, or a session's part of it, as package region reaches it.
type device struct {
	handler interface {
		ReadAt(p []byte, off int64) error
		WriteAt(p []byte, off int64) error
		Flush() error
	}
}

func (d device) Read(_ context.Context, p []byte, off int64) error  { return d.handler.ReadAt(p, off) }
func (d device) Write(_ context.Context, p []byte, off int64) error { return d.handler.WriteAt(p, off) }
func (d device) Flush(context.Context) error                        { return d.handler.Flush() }

// readerOf returns the session of a reader's call.
func readerOf(ctx context.Context) (*session, error) {
	s := ctx.Value(sessionKey{}).(*session)
	if !s.req.reader {
		return nil, fmt.Errorf("%w: only readers have pins", errInvalid)
	}
	return s, nil
}

// Pin implements nodepb.NodeServer.
func (s *Server) Pin(ctx context.Context, req *nodepb.PinRequest) (*nodepb.PinResponse, error) {
	reader, err := readerOf(ctx)
	if err != nil {
		return nil, err
	}
	cp, err := s.pins.pin(ctx, reader, namespace.Ino(req.GetIno()))
	return &nodepb.PinResponse{Checkpoint: nodepb.NewCheckpoint(cp)}, err
}

// Unpin implements nodepb.NodeServer.
func (s *Server) Unpin(ctx context.Context, req *nodepb.UnpinRequest) (*nodepb.UnpinResponse, error) {
	reader, err := readerOf(ctx)
	if err != nil {
		return nil, err
	}
	s.pins.unpin(reader, namespace.Ino(req.GetIno()), epoch.ID(req.GetKeep()))
	return &nodepb.UnpinResponse{}, nil
}

// Pinned implements nodepb.NodeServer.
func (s *Server) Pinned(ctx context.Context, req *nodepb.PinnedRequest) (*nodepb.PinnedResponse, error) {
	holder := ctx.Value(sessionKey{}).(*session)
	w := holder.watch.take(req.GetId())
	if w == nil {
		return nil, fmt.Errorf("%w: nobody waits for this pin", namespace.ErrNotExist)
	}
	var failed error
	if text := req.GetError(); text != "" {
		failed = fmt.Errorf("node: the holder of the lease could not pin file %d: %s", w.ino, text)
	}
	err := s.pins.answer(ctx, holder, w, req.GetCheckpoint().Region(), failed)
	if failed != nil {
		err = nil // it told us
	}
	return &nodepb.PinnedResponse{}, err
}
