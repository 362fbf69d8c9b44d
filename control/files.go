package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Status implements controlpb.ControlServer.
func (s *Server) Status(ctx context.Context, _ *controlpb.StatusRequest) (*controlpb.StatusResponse, error) {
	lease := s.lease()
	st, err := s.volume.Status(ctx)
	if err != nil && lease.GetLost() == "" { // else what is known of the mount itself
		return nil, fmt.Errorf("status: %w", err)
	}
	return &controlpb.StatusResponse{
		Version:         s.info.Version,
		Pid:             int64(s.info.Pid),
		OwnerUid:        s.info.OwnerUID,
		Pool:            text(s.info.Pool),
		Mountpoint:      text(s.info.Mountpoint),
		Started:         s.info.Started.UnixNano(),
		Medium:          st.Medium.Kind,
		Volatile:        st.Medium.Volatile,
		Generation:      st.Generation,
		SizeBytes:       st.Usage.Slots * region.PageSize,
		FreeBytes:       st.Usage.FreeSlots * region.PageSize,
		Inodes:          st.Usage.Inodes,
		OpenFiles:       count(st.OpenFiles),
		OpenHandles:     count(st.OpenHandles),
		DirtyPages:      count(st.DirtyPages),
		PoisonedFiles:   count(st.PoisonedFiles),
		OnClose:         onCloseWord(st.OnClose),
		ReadOnly:        st.ReadOnly,
		Commits:         st.Counters.Commits,
		Rollbacks:       st.Counters.Rollbacks,
		RolledBackPages: st.Counters.RolledBackPages,
		FailedCloses:    st.Counters.FailedCloses,
		PagesCommitted:  st.Counters.PagesCommitted,
		PagesUnchanged:  st.Counters.PagesUnchanged,

		MediumBytesWritten: st.Traffic.BytesWritten,
		MediumFlushes:      st.Traffic.Flushes,

		Lease:     lease,
		Transport: s.transport(),
		Attached:  s.attached(ctx),
	}, nil
}

func (s *Server) transport() string {
	if s.info.Transport == nil {
		return ""
	}
	return text(s.info.Transport())
}

func (s *Server) lease() *controlpb.Lease {
	if s.info.Lease == nil {
		return nil
	}
	l := s.info.Lease()
	lease := &controlpb.Lease{Share: text(l.Share), Lasts: uint64(l.Lasts)}
	if l.Lost != nil {
		lease.Lost = text(l.Lost.Error())
	}
	return lease
}

// Stat implements controlpb.ControlServer.
func (s *Server) Stat(ctx context.Context, req *controlpb.StatRequest) (*controlpb.StatResponse, error) {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	file, err := s.file(ctx, ino)
	if err != nil {
		return nil, fmt.Errorf("stat: inode %d: %w", ino, err)
	}
	return &controlpb.StatResponse{File: file}, nil
}

// file gathers what is known of an inode. On an error it still returns what the
// directory knows, unless there is no such inode.
func (s *Server) file(ctx context.Context, ino namespace.Ino) (*controlpb.File, error) {
	inode, err := s.volume.Inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	f := &controlpb.File{
		Ino:   uint64(ino),
		Mode:  inode.Mode,
		Uid:   inode.UID,
		Gid:   inode.GID,
		Nlink: inode.Nlink,
		Mtime: inode.Mtime,
	}
	if inode.Mode&unix.S_IFMT != unix.S_IFREG {
		return f, nil
	}
	st, err := s.volume.Stat(ctx, ino)
	if err != nil {
		return f, err
	}
	f.Size = st.Size
	f.Pages = st.Pages
	f.Epoch = uint64(st.Epoch)
	f.DirtyMappedPages = count(st.DirtyMapped)
	f.DirtyWrittenPages = count(st.DirtyWritten)
	f.SizeChanged = st.SizeChanged
	f.Mtime = st.Mtime
	f.Checkpoints = uint32(count(st.Checkpoints))
	f.OnClose = st.OnClose
	f.Handles = uint32(count(st.Handles))
	f.Attached = uint32(count(st.Attached))
	f.Poisoned = text(st.Poisoned)
	f.GrantedBytes = st.GrantedSlots * region.PageSize
	f.SpareBytes = st.FreeSlots * region.PageSize
	return f, nil
}

// List implements controlpb.ControlServer.
func (s *Server) List(req *controlpb.ListRequest, stream grpc.ServerStreamingServer[controlpb.ListResponse]) error {
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	ctx := stream.Context()
	entries, err := s.volume.ReadDir(ctx, ino)
	if err != nil {
		return fmt.Errorf("list: inode %d: %w", ino, err)
	}
	slices.SortFunc(entries, func(a, b namespace.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		resp := &controlpb.ListResponse{Name: []byte(e.Name)}
		resp.File, err = s.file(ctx, e.Ino)
		switch {
		case errors.Is(err, namespace.ErrNotExist):
			continue // removed since ReadDir
		case err != nil:
			resp.Error = text(err.Error())
		}
		if resp.File == nil {
			resp.File = &controlpb.File{Ino: uint64(e.Ino), Mode: e.Mode}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

// Clone implements controlpb.ControlServer.
func (s *Server) Clone(ctx context.Context, req *controlpb.CloneRequest) (*controlpb.CloneResponse, error) {
	src, err := checkIno(req.GetIno())
	if err != nil {
		return nil, fmt.Errorf("clone: source: %w", err)
	}
	parent, err := checkIno(req.GetParent())
	if err != nil {
		return nil, fmt.Errorf("clone: directory: %w", err)
	}
	name, err := checkEntryName(req.GetName())
	if err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	if req.GetCheckpoint() != "" {
		if err := checkCheckpointRef(req.GetCheckpoint()); err != nil {
			return nil, fmt.Errorf("clone: %w", err)
		}
	}
	inode, err := s.volume.Clone(ctx, src, req.GetCheckpoint(), parent, name)
	if err != nil {
		return nil, fmt.Errorf("clone: inode %d as %q: %w", src, name, err)
	}
	return &controlpb.CloneResponse{Ino: uint64(inode.Ino)}, nil
}

func onCloseWord(o namespace.OnClose) string {
	if o == namespace.OnCloseCommit {
		return "commit"
	}
	return "rollback"
}

// text makes a string that protobuf takes.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// count makes a number that cannot be negative.
func count(n int) uint64 { return uint64(max(n, 0)) }
