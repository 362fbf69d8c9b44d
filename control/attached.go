package control

import (
	"context"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/namespace"
)

// attached tells of the files that programs are attached to.
func (s *Server) attached(ctx context.Context) []*controlpb.AttachedFile {
	if s.info.Attached == nil {
		return nil
	}
	var files []*controlpb.AttachedFile
	unnamed := make(map[namespace.Ino]*controlpb.AttachedFile)
	for _, st := range s.info.Attached() {
		f := attachedFile(st)
		f.Interval = uint64(s.volume.Interval(ctx, namespace.Ino(st.Ino)))
		files = append(files, f)
		unnamed[namespace.Ino(st.Ino)] = f
	}
	if len(unnamed) == 0 {
		return nil
	}
	s.walk(ctx, func(path string, e namespace.Entry) bool {
		if f := unnamed[e.Ino]; f != nil {
			f.Path = []byte(path)
			delete(unnamed, e.Ino)
		}
		return len(unnamed) > 0 && ctx.Err() == nil
	})
	return files
}

func attachedFile(st attach.Status) *controlpb.AttachedFile {
	f := &controlpb.AttachedFile{
		Ino:      st.Ino,
		Barriers: st.Barriers, CalledOff: st.CalledOff, Rollbacks: st.Rollbacks, LateBarrier: st.LateN,
	}
	if st.LateN != 0 {
		f.Late = text(st.Late.Error())
	}
	for _, m := range st.Members {
		f.Programs = append(f.Programs, &controlpb.AttachedProgram{
			Pid: int64(m.PID), Uid: m.UID, Name: text(m.Name), RestartPoints: m.RestartPoints, Tracks: m.Tracks,
		})
	}
	if b := st.Last; b.N != 0 {
		f.Last = &controlpb.Barrier{
			Number: b.N, Epoch: b.Epoch, Drained: b.Drained,
			Park: uint64(b.Park), Pause: uint64(b.Pause), Scan: uint64(b.Scan), Copy: uint64(b.Copy),
			Rounds: b.Rounds, Precopied: b.Precopied, Copied: b.Copied,
		}
	}
	return f
}
