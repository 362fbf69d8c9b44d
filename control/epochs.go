package control

import (
	"context"
	"fmt"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Commit implements controlpb.ControlServer.
func (s *Server) Commit(ctx context.Context, req *controlpb.CommitRequest) (*controlpb.CommitResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	id, err := s.volume.Commit(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("commit: inode %d: %w", ino, err)
	}
	return &controlpb.CommitResponse{Epoch: uint64(id)}, nil
}

// CommitAll implements controlpb.ControlServer.
func (s *Server) CommitAll(ctx context.Context, _ *controlpb.CommitAllRequest) (*controlpb.CommitAllResponse, error) {
	files, err := s.volume.CommitAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit all: %w", err)
	}
	return &controlpb.CommitAllResponse{Files: count(files)}, nil
}

// SaveCheckpoint implements controlpb.ControlServer.
func (s *Server) SaveCheckpoint(ctx context.Context, req *controlpb.SaveCheckpointRequest) (*controlpb.SaveCheckpointResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if err := checkNewCheckpoint(req.GetName()); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	cp, err := s.volume.Checkpoint(ctx, ino, req.GetName())
	if err != nil {
		return nil, fmt.Errorf("checkpoint: inode %d as %q: %w", ino, req.GetName(), err)
	}
	return &controlpb.SaveCheckpointResponse{Checkpoint: checkpointMessage(cp)}, nil
}

// Checkpoints implements controlpb.ControlServer.
func (s *Server) Checkpoints(ctx context.Context, req *controlpb.CheckpointsRequest) (*controlpb.CheckpointsResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("checkpoints: %w", err)
	}
	cps, err := s.volume.Checkpoints(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("checkpoints: inode %d: %w", ino, err)
	}
	resp := &controlpb.CheckpointsResponse{}
	for _, cp := range cps {
		resp.Checkpoints = append(resp.Checkpoints, checkpointMessage(cp))
	}
	return resp, nil
}

// DropCheckpoint implements controlpb.ControlServer.
func (s *Server) DropCheckpoint(ctx context.Context, req *controlpb.DropCheckpointRequest) (*controlpb.DropCheckpointResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("drop checkpoint: %w", err)
	}
	if err := checkCheckpointRef(req.GetName()); err != nil {
		return nil, fmt.Errorf("drop checkpoint: %w", err)
	}
	if err := s.volume.DropCheckpoint(ctx, ino, req.GetName()); err != nil {
		return nil, fmt.Errorf("drop checkpoint: %q of inode %d: %w", req.GetName(), ino, err)
	}
	return &controlpb.DropCheckpointResponse{}, nil
}

// Rollback implements controlpb.ControlServer.
func (s *Server) Rollback(ctx context.Context, req *controlpb.RollbackRequest) (*controlpb.RollbackResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("rollback: %w", err)
	}
	pages, err := s.volume.Rollback(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("rollback: inode %d: %w", ino, err)
	}
	st, err := s.volume.Stat(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("rollback: inode %d is rolled back, but: %w", ino, err)
	}
	return &controlpb.RollbackResponse{Pages: count(pages), Epoch: uint64(st.Epoch)}, nil
}

// Restore implements controlpb.ControlServer.
func (s *Server) Restore(ctx context.Context, req *controlpb.RestoreRequest) (*controlpb.RestoreResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if err := checkCheckpointRef(req.GetName()); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	id, err := s.volume.Restore(ctx, ino, req.GetName(), req.GetForce())
	if err != nil {
		return nil, fmt.Errorf("restore: inode %d to %q: %w", ino, req.GetName(), err)
	}
	return &controlpb.RestoreResponse{Epoch: uint64(id)}, nil
}

func checkpointMessage(cp region.Checkpoint) *controlpb.Checkpoint {
	return &controlpb.Checkpoint{
		Name:  text(cp.Name),
		Epoch: uint64(cp.Epoch),
		Time:  cp.Time,
		Size:  cp.Size,
		Mtime: cp.Mtime,
	}
}
