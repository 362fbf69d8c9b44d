package node

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// identify returns who calls: what the certificate says, or, without TLS, somebody
// without a name who may do everything.
func (s *Server) identify(ctx context.Context) (pki.Identity, error) {
	if s.cfg.TLS == nil {
		return pki.Identity{All: true}, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Identity{}, fmt.Errorf("%w: the caller is unknown", errPermission)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.PeerCertificates) == 0 {
		return pki.Identity{}, fmt.Errorf("%w: the caller shows no certificate", errPermission)
	}
	id, err := pki.IdentityOf(info.State.PeerCertificates[0])
	if err != nil {
		return pki.Identity{}, fmt.Errorf("%w: %w", errPermission, err)
	}
	return id, nil
}

// operator admits who may use every share.
func (s *Server) operator(ctx context.Context) error {
	id, err := s.identify(ctx)
	if err == nil && !id.All {
		err = fmt.Errorf("%w: %s asks; only operators (rpmemfs:share/*) may", errPermission, id.Name)
	}
	return err
}

// mayOpen tells whether id may open a share, to read or also to write.
func mayOpen(id pki.Identity, share string, readOnly bool) error {
	if id.All || share == id.Name {
		return nil
	}
	i := slices.IndexFunc(id.Shares, func(g pki.Grant) bool {
		return g.Share == share && (readOnly || !g.ReadOnly)
	})
	switch {
	case share == nodepb.WholePool:
		return fmt.Errorf("%w: %s asks for the whole pool; name one of its shares", errPermission, id.Name)
	case i >= 0:
		return nil
	case slices.Contains(id.Shares, pki.Grant{Share: share, ReadOnly: true}):
		return fmt.Errorf("%w: %s may only read share %q", errPermission, id.Name, share)
	}
	return fmt.Errorf("%w: %s may not use share %q", errPermission, id.Name, share)
}
