package node

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Usage implements nodepb.NodeServer.
func (s *Server) Usage(ctx context.Context, _ *nodepb.UsageRequest) (*nodepb.UsageResponse, error) {
	u, err := viewOf(ctx).Usage(ctx)
	return &nodepb.UsageResponse{Slots: u.Slots, FreeSlots: u.FreeSlots, Inodes: u.Inodes}, err
}

// Grant implements nodepb.NodeServer.
func (s *Server) Grant(ctx context.Context, req *nodepb.GrantRequest) (*nodepb.GrantResponse, error) {
	g, err := viewOf(ctx).Grant(ctx, region.ID(req.GetIno()), req.GetNeed(), req.GetWant())
	return &nodepb.GrantResponse{Runs: nodepb.NewRuns(g.Runs), Super: uint64(g.Super)}, err
}

// Return implements nodepb.NodeServer.
func (s *Server) Return(ctx context.Context, req *nodepb.ReturnRequest) (*nodepb.ReturnResponse, error) {
	if n := len(req.GetRuns()); n > nodepb.MaxReturnRuns {
		return nil, fmt.Errorf("%w: %d runs, at most %d", errInvalid, n, nodepb.MaxReturnRuns)
	}
	return &nodepb.ReturnResponse{}, viewOf(ctx).Return(ctx, region.ID(req.GetIno()), nodepb.Runs(req.GetRuns()))
}

// Locate implements nodepb.NodeServer.
func (s *Server) Locate(ctx context.Context, req *nodepb.LocateRequest) (*nodepb.LocateResponse, error) {
	loc, err := viewOf(ctx).Locate(ctx, region.ID(req.GetIno()))
	return nodepb.NewLocation(loc), err
}

// SaveCheckpoint implements nodepb.NodeServer.
func (s *Server) SaveCheckpoint(ctx context.Context, req *nodepb.SaveCheckpointRequest) (*nodepb.SaveCheckpointResponse, error) {
	return &nodepb.SaveCheckpointResponse{}, viewOf(ctx).SaveCheckpoint(ctx, region.ID(req.GetIno()), req.GetCheckpoint().Region())
}

// DropCheckpoint implements nodepb.NodeServer.
func (s *Server) DropCheckpoint(ctx context.Context, req *nodepb.DropCheckpointRequest) (*nodepb.DropCheckpointResponse, error) {
	return &nodepb.DropCheckpointResponse{}, viewOf(ctx).DropCheckpoint(ctx, region.ID(req.GetIno()), string(req.GetName()))
}

// Clone implements nodepb.NodeServer.
func (s *Server) Clone(ctx context.Context, req *nodepb.CloneRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Clone(ctx, region.ID(req.GetSource()), namespace.Ino(req.GetParent()), string(req.GetName()),
		req.GetInode().Namespace(), req.GetSeed().Region()))
}

// maxProblems bounds what Check tells of.
const maxProblems = 4096

// Check implements nodepb.NodeServer. Who has but a share is told how many problems
// the pool has, not of whom, and keeps nobody from changing it meanwhile.
func (s *Server) Check(_ *nodepb.CheckRequest, stream grpc.ServerStreamingServer[nodepb.CheckResponse]) error {
	session := stream.Context().Value(sessionKey{}).(*session)
	whole := session.lease.Share == namespace.Root && !session.req.reader
	problems, found, err := s.check(stream.Context(), whole)
	if err != nil {
		return err
	}
	switch {
	case found > 0 && session.lease.Share != namespace.Root:
		problems = []string{fmt.Sprintf("the pool has %d problems: its operator can look at them", found)}
	case found > len(problems):
		problems = append(problems, fmt.Sprintf("and %d more", found-len(problems)))
	}
	for _, problem := range problems {
		if err := stream.Send(&nodepb.CheckResponse{Problem: strings.ToValidUTF8(problem, "\uFFFD")}); err != nil {
			return err
		}
	}
	return nil
}

// check returns the pool's first problems, and how many there are; alone: the pool may
// stand still meanwhile. Nothing is sent before it is done: the caller may be slow.
func (s *Server) check(ctx context.Context, alone bool) (problems []string, found int, err error) {
	select {
	case s.checking <- struct{}{}: // one at a time: it reads everything
		defer func() { <-s.checking }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	check := s.cfg.Pool.CheckBeside
	if alone {
		check = s.cfg.Pool.Check
	}
	err = check(ctx, func(problem string) {
		if found++; found <= maxProblems {
			problems = append(problems, problem)
		}
	})
	return problems, found, err
}

// Traffic implements nodepb.NodeServer.
func (s *Server) Traffic(context.Context, *nodepb.TrafficRequest) (*nodepb.TrafficResponse, error) {
	t := s.cfg.Pool.Traffic()
	return &nodepb.TrafficResponse{BytesWritten: t.BytesWritten, Flushes: t.Flushes}, nil
}
