package control

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
)

// A discard is the server's end of a stream that nobody reads.
type discard[T any] struct {
	ctx  context.Context
	sent int
}

func (d *discard[T]) Send(*T) error                { d.sent++; return nil }
func (d *discard[T]) Context() context.Context     { return d.ctx }
func (d *discard[T]) SetHeader(metadata.MD) error  { return nil }
func (d *discard[T]) SendHeader(metadata.MD) error { return nil }
func (d *discard[T]) SetTrailer(metadata.MD)       {}
func (d *discard[T]) SendMsg(any) error            { return nil }
func (d *discard[T]) RecvMsg(any) error            { return nil }

var _ grpc.ServerStreamingServer[controlpb.CheckResponse] = (*discard[controlpb.CheckResponse])(nil)

// Whatever bytes arrive as a request, no handler panics, and every error has a
// form that travels.
func FuzzRequestDecode(f *testing.F) {
	v := newFake()
	ino := uint64(v.add("f", make([]byte, 10000)))
	for method, req := range []proto.Message{
		&controlpb.StatRequest{Ino: ino},
		&controlpb.ListRequest{Ino: 1},
		&controlpb.SaveCheckpointRequest{Ino: ino, Name: "one"},
		&controlpb.RestoreRequest{Ino: ino, Name: "1", Force: true},
		&controlpb.CloneRequest{Ino: ino, Parent: 1, Name: []byte("new"), Checkpoint: "one"},
		&controlpb.CheckRequest{Ino: ino},
		&controlpb.ExportRequest{Ino: ino, Checkpoint: "one"},
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(method), b)
	}
	f.Fuzz(func(t *testing.T, method uint8, b []byte) {
		v := newFake()
		v.add("f", make([]byte, 10000))
		s := newTestServer(v)
		released := 0
		s.open = v.open(&released)
		ctx := t.Context()
		for _, err := range dispatch(ctx, s, method, b) {
			st, ok := status.FromError(wire.Encode(err))
			if !ok || st.Code() == codes.OK {
				t.Errorf("error %v has no status", err)
			}
			if _, err := proto.Marshal(st.Proto()); err != nil {
				t.Errorf("status of %v: %v", st, err)
			}
		}
		for name := range v.names {
			if len(name) > 255 || name == "" {
				t.Errorf("a file is called %q", name)
			}
		}
	})
}

// dispatch gives b to a handler as its request, and again to the next, whose
// message it may be as well. It returns the errors and checks the answers.
func dispatch(ctx context.Context, s *Server, method uint8, b []byte) []error {
	var errs []error
	call := func(req proto.Message, handle func() (proto.Message, error)) {
		if proto.Unmarshal(b, req) != nil {
			return
		}
		resp, err := handle()
		if err == nil && resp != nil {
			_, err = proto.Marshal(resp) // strings must be UTF-8
			if err != nil {
				panic(err)
			}
			return
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	for range 2 {
		switch method % 12 {
		case 0:
			r := new(controlpb.StatRequest)
			call(r, func() (proto.Message, error) { return s.Stat(ctx, r) })
		case 1:
			r := new(controlpb.ListRequest)
			call(r, func() (proto.Message, error) { return nil, s.List(r, &discard[controlpb.ListResponse]{ctx: ctx}) })
		case 2:
			r := new(controlpb.SaveCheckpointRequest)
			call(r, func() (proto.Message, error) { return s.SaveCheckpoint(ctx, r) })
		case 3:
			r := new(controlpb.RestoreRequest)
			call(r, func() (proto.Message, error) { return s.Restore(ctx, r) })
		case 4:
			r := new(controlpb.CloneRequest)
			call(r, func() (proto.Message, error) { return s.Clone(ctx, r) })
		case 5:
			r := new(controlpb.CheckRequest)
			call(r, func() (proto.Message, error) { return nil, s.Check(r, &discard[controlpb.CheckResponse]{ctx: ctx}) })
		case 6:
			r := new(controlpb.ExportRequest)
			call(r, func() (proto.Message, error) { return nil, s.Export(r, &discard[controlpb.ExportResponse]{ctx: ctx}) })
		case 7:
			r := new(controlpb.CheckpointsRequest)
			call(r, func() (proto.Message, error) { return s.Checkpoints(ctx, r) })
		case 8:
			r := new(controlpb.DropCheckpointRequest)
			call(r, func() (proto.Message, error) { return s.DropCheckpoint(ctx, r) })
		case 9:
			r := new(controlpb.RollbackRequest)
			call(r, func() (proto.Message, error) { return s.Rollback(ctx, r) })
		case 10:
			r := new(controlpb.CommitRequest)
			call(r, func() (proto.Message, error) { return s.Commit(ctx, r) })
		case 11:
			r := new(controlpb.StatusRequest)
			call(r, func() (proto.Message, error) { return s.Status(ctx, r) })
		}
		method++
	}
	return errs
}
