package control

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// walk calls fn with every name in the pool until it returns false, the root
// first. Directories that cannot be read are left out.
func (s *Server) walk(ctx context.Context, fn func(path string, e namespace.Entry) bool) {
	type dir struct {
		ino  namespace.Ino
		path string
	}
	if !fn("/", namespace.Entry{Ino: namespace.Root, Mode: unix.S_IFDIR}) {
		return
	}
	seen := map[namespace.Ino]bool{namespace.Root: true}
	for dirs := []dir{{namespace.Root, "/"}}; len(dirs) > 0; {
		d := dirs[0]
		dirs = dirs[1:]
		entries, err := s.volume.ReadDir(ctx, d.ino)
		if err != nil {
			continue
		}
		for _, e := range entries {
			p := path.Join(d.path, e.Name)
			if !fn(p, e) {
				return
			}
			if e.Mode&unix.S_IFMT == unix.S_IFDIR && !seen[e.Ino] {
				seen[e.Ino] = true
				dirs = append(dirs, dir{e.Ino, p})
			}
		}
	}
}

// OpenFiles implements controlpb.ControlServer.
func (s *Server) OpenFiles(_ *controlpb.OpenFilesRequest, stream grpc.ServerStreamingServer[controlpb.OpenFilesResponse]) error {
	ctx := stream.Context()
	status, err := s.volume.Status(ctx)
	if err != nil {
		return fmt.Errorf("open files: %w", err)
	}
	// The walk ends as soon as every handle has been met. Those of files without
	// names never are.
	left := status.OpenHandles
	if left <= 0 {
		return nil
	}
	seen := make(map[namespace.Ino]bool)
	var failed error
	s.walk(ctx, func(p string, e namespace.Entry) bool {
		if e.Mode&unix.S_IFMT != unix.S_IFREG || seen[e.Ino] {
			return ctx.Err() == nil
		}
		seen[e.Ino] = true
		st, err := s.volume.Stat(ctx, e.Ino)
		if err != nil || st.Handles == 0 {
			// Gone since ReadDir, or too damaged for anybody to have it open.
			return ctx.Err() == nil
		}
		left -= st.Handles
		failed = stream.Send(&controlpb.OpenFilesResponse{Ino: uint64(e.Ino), Path: []byte(p), Epoch: uint64(st.Epoch)})
		return failed == nil && left > 0
	})
	return errors.Join(failed, ctx.Err())
}
