package node

import (
	"context"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// entriesBytes is about how much of a directory one message carries.
const entriesBytes = 64 << 10

func inodeResponse(n namespace.Inode, err error) (*nodepb.InodeResponse, error) {
	if err != nil {
		return nil, err
	}
	return &nodepb.InodeResponse{Inode: nodepb.NewInode(n)}, nil
}

// Lookup implements nodepb.NodeServer.
func (s *Server) Lookup(ctx context.Context, req *nodepb.LookupRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Lookup(ctx, namespace.Ino(req.GetParent()), string(req.GetName())))
}

// Inode implements nodepb.NodeServer.
func (s *Server) Inode(ctx context.Context, req *nodepb.InodeRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Inode(ctx, namespace.Ino(req.GetIno())))
}

// Create implements nodepb.NodeServer.
func (s *Server) Create(ctx context.Context, req *nodepb.CreateRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Create(ctx, namespace.Ino(req.GetParent()), string(req.GetName()), req.GetInode().Namespace()))
}

// Link implements nodepb.NodeServer.
func (s *Server) Link(ctx context.Context, req *nodepb.LinkRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Link(ctx, namespace.Ino(req.GetIno()), namespace.Ino(req.GetParent()), string(req.GetName())))
}

// Unlink implements nodepb.NodeServer.
func (s *Server) Unlink(ctx context.Context, req *nodepb.UnlinkRequest) (*nodepb.InodeResponse, error) {
	return inodeResponse(viewOf(ctx).Unlink(ctx, namespace.Ino(req.GetParent()), string(req.GetName())))
}

// Rmdir implements nodepb.NodeServer.
func (s *Server) Rmdir(ctx context.Context, req *nodepb.RmdirRequest) (*nodepb.RmdirResponse, error) {
	return &nodepb.RmdirResponse{}, viewOf(ctx).Rmdir(ctx, namespace.Ino(req.GetParent()), string(req.GetName()))
}

// Rename implements nodepb.NodeServer.
func (s *Server) Rename(ctx context.Context, req *nodepb.RenameRequest) (*nodepb.RenameResponse, error) {
	lost, err := viewOf(ctx).Rename(ctx, namespace.Ino(req.GetOldParent()), string(req.GetOldName()),
		namespace.Ino(req.GetNewParent()), string(req.GetNewName()), namespace.RenameFlags(req.GetFlags()))
	if err != nil || lost == nil {
		return &nodepb.RenameResponse{}, err
	}
	return &nodepb.RenameResponse{Lost: nodepb.NewInode(*lost)}, nil
}

// ReadDir implements nodepb.NodeServer.
func (s *Server) ReadDir(req *nodepb.ReadDirRequest, stream grpc.ServerStreamingServer[nodepb.ReadDirResponse]) error {
	ctx := stream.Context()
	session := ctx.Value(sessionKey{}).(*session)
	select {
	case session.listing <- struct{}{}: // the caller may be slow
		defer func() { <-session.listing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	entries, err := session.view.ReadDir(ctx, namespace.Ino(req.GetIno()))
	if err != nil {
		return err
	}
	m, size := &nodepb.ReadDirResponse{}, 0
	for i, e := range entries {
		m.Entries = append(m.Entries, &nodepb.Entry{Name: []byte(e.Name), Ino: uint64(e.Ino), Mode: e.Mode})
		size += len(e.Name) + 16
		if size < entriesBytes && i < len(entries)-1 {
			continue
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		m, size = &nodepb.ReadDirResponse{}, 0
	}
	return nil
}

// SetInode implements nodepb.NodeServer.
func (s *Server) SetInode(ctx context.Context, req *nodepb.SetInodeRequest) (*nodepb.InodeResponse, error) {
	was, becomes := req.GetOld().Namespace(), req.GetNew().Namespace()
	changed := false
	n, err := viewOf(ctx).Update(ctx, was.Ino, func(n *namespace.Inode) {
		was.Share, becomes.Share = n.Share, n.Share // which clients do not see
		if changed = *n != was; !changed {
			*n = becomes
		}
	})
	if err == nil && changed {
		err = errChanged
	}
	return inodeResponse(n, err)
}

// Reap implements nodepb.NodeServer.
func (s *Server) Reap(ctx context.Context, req *nodepb.ReapRequest) (*nodepb.ReapResponse, error) {
	heir, err := viewOf(ctx).Reap(ctx, namespace.Ino(req.GetIno()))
	return &nodepb.ReapResponse{Heir: uint64(heir)}, err
}

// Xattr implements nodepb.NodeServer.
func (s *Server) Xattr(ctx context.Context, req *nodepb.XattrRequest) (*nodepb.XattrResponse, error) {
	value, err := viewOf(ctx).Xattr(ctx, namespace.Ino(req.GetIno()), string(req.GetName()))
	return &nodepb.XattrResponse{Value: value}, err
}

// Xattrs implements nodepb.NodeServer.
func (s *Server) Xattrs(ctx context.Context, req *nodepb.XattrsRequest) (*nodepb.XattrsResponse, error) {
	names, err := viewOf(ctx).Xattrs(ctx, namespace.Ino(req.GetIno()))
	m := &nodepb.XattrsResponse{}
	for _, name := range names {
		m.Names = append(m.Names, []byte(name))
	}
	return m, err
}

// SetXattr implements nodepb.NodeServer.
func (s *Server) SetXattr(ctx context.Context, req *nodepb.SetXattrRequest) (*nodepb.SetXattrResponse, error) {
	return &nodepb.SetXattrResponse{}, viewOf(ctx).SetXattr(ctx, namespace.Ino(req.GetIno()), string(req.GetName()), req.GetValue(), namespace.XattrFlags(req.GetFlags()))
}

// RemoveXattr implements nodepb.NodeServer.
func (s *Server) RemoveXattr(ctx context.Context, req *nodepb.RemoveXattrRequest) (*nodepb.RemoveXattrResponse, error) {
	return &nodepb.RemoveXattrResponse{}, viewOf(ctx).RemoveXattr(ctx, namespace.Ino(req.GetIno()), string(req.GetName()))
}
