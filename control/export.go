package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// An image is an open file that nobody writes to; volume.Handle is one.
type image interface {
	Read(ctx context.Context, p []byte, off int64) (int, error)
	Seek(ctx context.Context, off int64, hole bool) (int64, error)
	Release(ctx context.Context)
}

// Export implements controlpb.ControlServer.
func (s *Server) Export(req *controlpb.ExportRequest, stream grpc.ServerStreamingServer[controlpb.ExportResponse]) error {
	ctx := stream.Context()
	ino, err := checkIno(req.GetIno())
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if req.GetCheckpoint() != "" {
		if err := checkCheckpointRef(req.GetCheckpoint()); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	img, st, err := s.freeze(ctx, ino, req.GetCheckpoint())
	if err != nil {
		return fmt.Errorf("export: inode %d: %w", ino, err)
	}
	defer img.Release(context.WithoutCancel(ctx))
	err = stream.Send(&controlpb.ExportResponse{Event: &controlpb.ExportResponse_Header{
		Header: &controlpb.ExportHeader{
			Size:      st.Size,
			DataBytes: min(st.Pages*region.PageSize, st.Size),
		},
	}})
	if err != nil {
		return err
	}
	if err := sendData(ctx, stream, img, int64(st.Size)); err != nil {
		return fmt.Errorf("export: inode %d: %w", ino, err)
	}
	return stream.Send(&controlpb.ExportResponse{Event: &controlpb.ExportResponse_End{End: &controlpb.ExportEnd{}}})
}

// freeze opens one epoch of a file, which stays as it is until Release: a clone
// that has lost its name again. A crash in between leaves the name, and no harm.
func (s *Server) freeze(ctx context.Context, ino namespace.Ino, checkpoint string) (image, volume.FileStat, error) {
	name := fmt.Sprintf(".rpmemfs-export-%d-%08x", ino, rand.Uint32())
	clone, err := s.volume.Clone(ctx, ino, checkpoint, namespace.Root, name)
	if errors.Is(err, volume.ErrReadOnly) && checkpoint == "" {
		return s.openImage(ctx, ino) // nobody else writes to it either
	}
	if err != nil {
		return nil, volume.FileStat{}, err
	}
	img, st, err := s.openImage(ctx, clone.Ino)
	if removeErr := s.volume.Remove(context.WithoutCancel(ctx), namespace.Root, name); removeErr != nil && err == nil {
		img.Release(context.WithoutCancel(ctx))
		err = fmt.Errorf("remove %s: %w", name, removeErr)
	}
	return img, st, err
}

func (s *Server) openImage(ctx context.Context, ino namespace.Ino) (image, volume.FileStat, error) {
	img, err := s.open(ctx, ino)
	if err != nil {
		return nil, volume.FileStat{}, err
	}
	st, err := s.volume.Stat(ctx, ino)
	if err != nil {
		img.Release(context.WithoutCancel(ctx))
		return nil, volume.FileStat{}, err
	}
	return img, st, nil
}

// sendData sends what lies between the holes of the first size bytes.
func sendData(ctx context.Context, stream grpc.ServerStreamingServer[controlpb.ExportResponse], img image, size int64) error {
	buf := make([]byte, exportChunk)
	for off := int64(0); off < size; {
		start, err := img.Seek(ctx, off, false)
		if errors.Is(err, volume.ErrNoData) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("seek data at byte %d: %w", off, err)
		}
		end, err := img.Seek(ctx, start, true)
		if err != nil {
			return fmt.Errorf("seek hole at byte %d: %w", start, err)
		}
		end = min(end, size)
		if start < off || end <= start && start < size {
			return fmt.Errorf("seek at byte %d went to %d and %d", off, start, end)
		}
		for off = start; off < end; {
			n, err := img.Read(ctx, buf[:min(exportChunk, end-off)], off)
			if err != nil {
				return fmt.Errorf("read at byte %d: %w", off, err)
			}
			if n == 0 {
				return fmt.Errorf("read at byte %d: %w", off, io.ErrUnexpectedEOF)
			}
			err = stream.Send(&controlpb.ExportResponse{Event: &controlpb.ExportResponse_Data{
				Data: &controlpb.ExportData{Offset: uint64(off), Data: buf[:n]},
			}})
			if err != nil {
				return err
			}
			off += int64(n)
		}
		off = max(off, end)
	}
	return nil
}
