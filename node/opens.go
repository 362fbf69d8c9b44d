package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Open implements nodepb.NodeServer.
func (s *Server) Open(ctx context.Context, req *nodepb.OpenRequest) (*nodepb.OpenResponse, error) {
	id, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	name := defaultShare(id, req.GetShare())
	// A reader may wait for its turn, but not end a writer's.
	readOnly := req.GetReadOnly() || req.GetReader()
	if err := mayOpen(id, name, readOnly && !req.GetSteal()); err != nil {
		return nil, err
	}
	open := openRequest{
		name:     name,
		identity: id.Name,
		holder:   req.GetHolder(),
		wait:     time.Duration(min(req.GetWait(), uint64(maxWait))),
		steal:    req.GetSteal(),
		readOnly: readOnly,
		reader:   req.GetReader(),
	}
	if open.holder == "" {
		open.holder = "somebody"
	}
	if err := s.checkOpen(req, &open); err != nil {
		return nil, err
	}
	if open.share, err = s.findShare(ctx, name, req.GetCreate() && !readOnly); err != nil {
		return nil, err
	}
	usage, err := s.cfg.Pool.Usage(ctx)
	if err != nil {
		return nil, err
	}
	opened, err := s.sessions.openAny(ctx, open)
	if err != nil {
		return nil, err
	}
	if err := s.stillNamed(ctx, name, opened); err != nil {
		return nil, err
	}
	medium := s.cfg.Pool.Medium()
	return &nodepb.OpenResponse{
		Session:    opened.lease.Session[:],
		Token:      opened.token[:],
		Share:      name,
		Generation: opened.lease.Generation,
		Lease:      uint64(opened.lease.Timeout),
		DataPort:   s.dataPort,
		RdmaPort:   s.rdmaPort(),
		SizeBytes:  (usage.Slots + 1) * region.PageSize, // and the header
		Medium:     &nodepb.Medium{Kind: medium.Kind, Volatile: medium.Volatile},
		Pool:       s.cfg.Pool.ID(),
		Version:    s.cfg.Version,
		ReadOnly:   opened.req.readOnly,
	}, nil
}

// stillNamed ends a session whose share has lost, while the caller waited, the name by
// which the caller may open it. From now on the lease keeps it as it is.
func (s *Server) stillNamed(ctx context.Context, name string, opened *session) error {
	share, err := s.findShare(ctx, name, false)
	if err == nil && share == opened.lease.Share {
		return nil
	}
	if cerr := s.sessions.close(context.WithoutCancel(ctx), opened.lease.Session, opened.token); cerr != nil {
		s.log.Warn("end a session that nobody wants", "share", name, "error", cerr)
	}
	return cmp.Or(err, fmt.Errorf("%w: share %q is another one by now", namespace.ErrNotExist, name))
}

// defaultShare is the share that a caller means.
func defaultShare(id pki.Identity, name string) string {
	switch {
	case name != "":
		return name
	case id.All:
		return nodepb.WholePool
	}
	return id.Name
}

// checkOpen takes from req what can be out of range.
func (s *Server) checkOpen(req *nodepb.OpenRequest, open *openRequest) error {
	if len(open.holder) > maxHolder || strings.ContainsFunc(open.holder, unicode.IsControl) {
		return fmt.Errorf("%w: holder of %d bytes: at most %d, no control characters", errInvalid, len(open.holder), maxHolder)
	}
	open.timeout = s.cfg.Lease
	if l := req.GetLease(); l != 0 {
		if l < uint64(MinLease) || l > uint64(MaxLease) {
			return fmt.Errorf("%w: a lease of %d ns: want %v to %v", errInvalid, l, MinLease, MaxLease)
		}
		open.timeout = time.Duration(l)
	}
	if p := req.GetPatience(); p > uint64(MaxPatience) {
		return fmt.Errorf("%w: a patience of %d ns: want at most %v", errInvalid, p, MaxPatience)
	}
	open.patience = time.Duration(req.GetPatience())
	switch n := req.GetNonce(); len(n) {
	case 0:
	case nodepb.NonceSize:
		open.nonce = nonce(n)
	default:
		return fmt.Errorf("%w: nonce of %d bytes: want %d", errInvalid, len(n), nodepb.NonceSize)
	}
	return nil
}

// findShare returns the number of a share, which it makes if it may.
func (s *Server) findShare(ctx context.Context, name string, create bool) (namespace.Ino, error) {
	if name == nodepb.WholePool {
		return namespace.Root, nil
	}
	share, err := s.cfg.Pool.Share(ctx, name)
	if errors.Is(err, namespace.ErrNotExist) && create {
		_, err = s.cfg.Pool.MakeShare(ctx, name, 0)
		if err == nil || errors.Is(err, namespace.ErrExist) { // by somebody else, or no share
			share, err = s.cfg.Pool.Share(ctx, name)
		}
	}
	return share.Ino, err
}

// KeepAlive implements nodepb.NodeServer.
func (s *Server) KeepAlive(_ context.Context, req *nodepb.KeepAliveRequest) (*nodepb.KeepAliveResponse, error) {
	id, t, err := credentialsOf(req.GetSession(), req.GetToken())
	if err != nil {
		return nil, err
	}
	return &nodepb.KeepAliveResponse{}, s.sessions.keepAlive(id, t)
}

// Close implements nodepb.NodeServer.
func (s *Server) Close(ctx context.Context, req *nodepb.CloseRequest) (*nodepb.CloseResponse, error) {
	id, t, err := credentialsOf(req.GetSession(), req.GetToken())
	if err != nil {
		return nil, err
	}
	return &nodepb.CloseResponse{}, s.sessions.close(ctx, id, t)
}
