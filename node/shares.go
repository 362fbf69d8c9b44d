package node

import (
	"context"
	"fmt"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Shares implements nodepb.NodeServer.
func (s *Server) Shares(ctx context.Context, _ *nodepb.SharesRequest) (*nodepb.SharesResponse, error) {
	if err := s.operator(ctx); err != nil {
		return nil, err
	}
	shares, err := s.cfg.Pool.Shares(ctx)
	if err != nil {
		return nil, err
	}
	usage, err := s.cfg.Pool.Usage(ctx)
	if err != nil {
		return nil, err
	}
	held := s.sessions.holdings()
	m := &nodepb.SharesResponse{Shares: []*nodepb.Share{{
		Name:      nodepb.WholePool,
		Ino:       uint64(namespace.Root),
		UsedBytes: (usage.Slots - usage.FreeSlots) * region.PageSize,
		Lease:     leaseMessage(held, namespace.Root),
	}}}
	for _, share := range shares {
		m.Shares = append(m.Shares, &nodepb.Share{
			Name:       share.Name,
			Ino:        uint64(share.Ino),
			QuotaBytes: share.Quota,
			UsedBytes:  share.UsedBytes,
			Lease:      leaseMessage(held, share.Ino),

			NamesBytes:      share.Names,
			NamesQuotaBytes: share.NamesMax,
		})
	}
	return m, nil
}

func leaseMessage(held map[namespace.Ino]holding, share namespace.Ino) *nodepb.Lease {
	h, ok := held[share]
	if !ok {
		return nil
	}
	return &nodepb.Lease{
		Session:      h.lease.Session[:],
		Holder:       h.lease.Holder,
		Identity:     h.identity,
		Generation:   h.lease.Generation,
		Granted:      h.lease.Granted,
		Lease:        uint64(h.lease.Timeout),
		KeepAliveAge: uint64(max(h.kept, 0)),
	}
}

// MakeShare implements nodepb.NodeServer.
func (s *Server) MakeShare(ctx context.Context, req *nodepb.MakeShareRequest) (*nodepb.MakeShareResponse, error) {
	if err := s.operator(ctx); err != nil {
		return nil, err
	}
	n, err := s.cfg.Pool.MakeShare(ctx, req.GetName(), req.GetQuotaBytes())
	if err == nil {
		err = s.setNamesQuota(ctx, req.GetName(), req.GetNamesQuotaBytes())
	}
	return &nodepb.MakeShareResponse{Ino: uint64(n.Ino)}, err
}

// SetQuota implements nodepb.NodeServer.
func (s *Server) SetQuota(ctx context.Context, req *nodepb.SetQuotaRequest) (*nodepb.SetQuotaResponse, error) {
	if err := s.operator(ctx); err != nil {
		return nil, err
	}
	err := s.cfg.Pool.SetQuota(ctx, req.GetName(), req.GetQuotaBytes())
	if err == nil {
		err = s.setNamesQuota(ctx, req.GetName(), req.GetNamesQuotaBytes())
	}
	return &nodepb.SetQuotaResponse{}, err
}

// setNamesQuota changes it unless quota is 0.
func (s *Server) setNamesQuota(ctx context.Context, share string, quota uint64) error {
	if quota == 0 {
		return nil
	}
	return s.cfg.Pool.SetNamesQuota(ctx, share, quota)
}

// EndSession implements nodepb.NodeServer.
func (s *Server) EndSession(ctx context.Context, req *nodepb.EndSessionRequest) (*nodepb.EndSessionResponse, error) {
	if err := s.operator(ctx); err != nil {
		return nil, err
	}
	var only *sessionID
	if b := req.GetSession(); len(b) == nodepb.SessionSize {
		id := sessionID(b)
		only = &id
	} else if len(b) != 0 {
		return nil, fmt.Errorf("%w: session of %d bytes", errInvalid, len(b))
	}
	share, err := s.findShare(ctx, req.GetShare(), false)
	if err != nil {
		return nil, err
	}
	return &nodepb.EndSessionResponse{}, s.sessions.endShare(ctx, share, only)
}
