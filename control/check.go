package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/volume"
)

// progressEvery bounds how often a stream tells how far it is.
const progressEvery = 100 * time.Millisecond

// Check implements controlpb.ControlServer.
func (s *Server) Check(req *controlpb.CheckRequest, stream grpc.ServerStreamingServer[controlpb.CheckResponse]) error {
	ctx := stream.Context()
	ino := namespace.Ino(req.GetIno())
	report, err := s.volume.Check(ctx, ino, sendProgress(stream))
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	paths := s.paths(ctx, report.Problems)
	for _, p := range report.Problems {
		err := stream.Send(&controlpb.CheckResponse{Event: &controlpb.CheckResponse_Problem{
			Problem: &controlpb.CheckProblem{Ino: uint64(p.Ino), Path: []byte(paths[p.Ino]), Text: text(p.Text)},
		}})
		if err != nil {
			return err
		}
	}
	return stream.Send(&controlpb.CheckResponse{Event: &controlpb.CheckResponse_Summary{
		Summary: &controlpb.CheckSummary{
			Files:       count(report.Files),
			Pages:       report.Pages,
			Checkpoints: count(report.Checkpoints),
			Problems:    report.Found,
		},
	}})
}

// sendProgress returns a progress function that any goroutine may call. It keeps
// quiet between intervals, and after the stream has failed: the stream's context
// tells the volume.
func sendProgress(stream grpc.ServerStreamingServer[controlpb.CheckResponse]) func(done, total uint64) {
	var mu sync.Mutex
	var last time.Time
	return func(done, total uint64) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) < progressEvery {
			return
		} else {
			last = now
		}
		_ = stream.Send(&controlpb.CheckResponse{Event: &controlpb.CheckResponse_Progress{
			Progress: &controlpb.CheckProgress{Done: done, Total: total},
		}})
	}
}

// paths finds a path in the pool for every inode with a problem. It walks the
// directories; what cannot be read stays without a path.
func (s *Server) paths(ctx context.Context, problems []volume.Problem) map[namespace.Ino]string {
	want := make(map[namespace.Ino]bool)
	for _, p := range problems {
		if p.Ino != 0 {
			want[p.Ino] = true
		}
	}
	found := make(map[namespace.Ino]string)
	s.walk(ctx, func(p string, e namespace.Entry) bool {
		if want[e.Ino] && found[e.Ino] == "" {
			found[e.Ino] = p
		}
		return len(found) < len(want)
	})
	return found
}
