package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// The life of a file's epochs, through the socket.
func TestEpochs(t *testing.T) {
	v := newFake()
	ino := uint64(v.add("heap", make([]byte, 8192)))
	c := serve(t, newTestServer(v))
	ctx := t.Context()

	v.files[namespace.Ino(ino)].dirty = 5
	stat, err := c.Stat(ctx, &controlpb.StatRequest{Ino: ino})
	if err != nil {
		t.Fatal(err)
	}
	want := &controlpb.File{
		Ino: ino, Mode: 0o100644, Uid: 7, Gid: 8, Nlink: 1, Size: 8192, Pages: 2, Epoch: 1,
		DirtyMappedPages: 5, Mtime: 1e18, OnClose: "rollback", GrantedBytes: 16 << 12, SpareBytes: 3 << 12,
	}
	if !proto.Equal(stat.GetFile(), want) {
		t.Errorf("Stat: got %v, want %v", stat.GetFile(), want)
	}
	saved, err := c.SaveCheckpoint(ctx, &controlpb.SaveCheckpointRequest{Ino: ino, Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := saved.GetCheckpoint().GetEpoch(), uint64(2); got != want {
		t.Errorf("SaveCheckpoint: got epoch %d, want %d", got, want)
	}
	list, err := c.Checkpoints(ctx, &controlpb.CheckpointsRequest{Ino: ino})
	if err != nil || len(list.GetCheckpoints()) != 1 || !proto.Equal(list.GetCheckpoints()[0], saved.GetCheckpoint()) {
		t.Errorf("Checkpoints: got %v, %v; want %v", list, err, saved.GetCheckpoint())
	}
	v.files[namespace.Ino(ino)].dirty = 3
	back, err := c.Rollback(ctx, &controlpb.RollbackRequest{Ino: ino})
	if err != nil || back.GetPages() != 3 || back.GetEpoch() != 2 {
		t.Errorf("Rollback: got %v, %v; want 3 pages, epoch 2", back, err)
	}
	v.files[namespace.Ino(ino)].handles = 1
	if _, err := c.Restore(ctx, &controlpb.RestoreRequest{Ino: ino, Name: "one"}); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Restore of an open file: got %v, want ErrBusy", err)
	}
	restored, err := c.Restore(ctx, &controlpb.RestoreRequest{Ino: ino, Name: "one", Force: true})
	if err != nil || restored.GetEpoch() != 3 {
		t.Errorf("Restore: got %v, %v; want epoch 3", restored, err)
	}
	if _, err := c.DropCheckpoint(ctx, &controlpb.DropCheckpointRequest{Ino: ino, Name: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := c.DropCheckpoint(ctx, &controlpb.DropCheckpointRequest{Ino: ino, Name: "one"}); !errors.Is(err, namespace.ErrNotExist) {
		t.Errorf("DropCheckpoint twice: got %v, want ErrNotExist", err)
	}
	v.files[namespace.Ino(ino)].dirty = 1
	all, err := c.CommitAll(ctx, &controlpb.CommitAllRequest{})
	if err != nil || all.GetFiles() != 1 {
		t.Errorf("CommitAll: got %v, %v; want 1 file", all, err)
	}
}

func TestStatus(t *testing.T) {
	v := newFake()
	s := newTestServer(v)
	asked := 0
	s.info.Transport = func() string { asked++; return fmt.Sprintf("way %d", asked) }
	c := serve(t, s)
	if _, err := c.Status(t.Context(), &controlpb.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Status(t.Context(), &controlpb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &controlpb.StatusResponse{
		Transport: "way 2", // bytes may take another one than before

		Version: "v1", Pid: 42, OwnerUid: got.GetOwnerUid(), Pool: "/pool", Mountpoint: "/mnt", Started: 1e9,
		Medium: "tmpfs", Volatile: true, Generation: 3, SizeBytes: 100 << 12, FreeBytes: 40 << 12, Inodes: 1,
		OpenFiles: 2, OpenHandles: 1, DirtyPages: 9, OnClose: "commit",
		Commits: 11, Rollbacks: 2, RolledBackPages: 4, FailedCloses: 1,
		PagesCommitted: 21, PagesUnchanged: 5, MediumBytesWritten: 7 << 12, MediumFlushes: 13,
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// A mount that has lost its lease tells why, and what it knows itself.
func TestStatusOfALostLease(t *testing.T) {
	v := newFake()
	s := newTestServer(v)
	lease := Lease{Share: "web", Lasts: time.Second}
	s.info.Lease = func() Lease { return lease }
	c := serve(t, s)
	v.err = rdmacache.ErrFenced
	if st, err := c.Status(t.Context(), &controlpb.StatusRequest{}); err == nil {
		t.Errorf("a pool that does not answer: got %v", st)
	}
	lease.Lost = rdmacache.ErrFenced
	st, err := c.Status(t.Context(), &controlpb.StatusRequest{})
	if err != nil || st.GetLease().GetLost() != rdmacache.ErrFenced.Error() || st.GetMedium() != "tmpfs" || !st.GetVolatile() || st.GetDirtyPages() != 9 {
		t.Errorf("got %v, %v; want why, and what the mount knows", st, err)
	}
}

// A directory is listed in order, with files that cannot be read among the rest.
func TestList(t *testing.T) {
	v := newFake()
	v.add("b\xff", []byte("x"))
	v.add("a", []byte("x"))
	v.files[v.add("bad", nil)].poisoned = "disk on fire"
	c := serve(t, newTestServer(v))
	stream, err := c.List(t.Context(), &controlpb.ListRequest{Ino: uint64(namespace.Root)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.GetName())+" "+e.GetFile().GetPoisoned())
	}
	want := []string{"a ", "bad disk on fire", "b\xff "}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q, want %q", got, want)
	}
	v.err = region.ErrCorrupt
	stream, err = c.List(t.Context(), &controlpb.ListRequest{Ino: uint64(namespace.Root)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := stream.Recv()
	if err != nil || e.GetError() == "" || e.GetFile().GetIno() == 0 {
		t.Errorf("a damaged file: got %v, %v; want an entry with its number and an error", e, err)
	}
}

// Every sentinel that a caller can act on comes back as itself.
func TestErrorsTravel(t *testing.T) {
	v := newFake()
	ino := uint64(v.add("f", nil))
	c := serve(t, newTestServer(v))
	for _, want := range []error{
		epoch.ErrPoisoned, region.ErrCorrupt, region.ErrNoSpace, region.ErrVersion, volume.ErrBusy, volume.ErrClosed,
		volume.ErrReadOnly, volume.ErrNotRegular, namespace.ErrExist, namespace.ErrNotExist, namespace.ErrIsDir,
		context.Canceled, context.DeadlineExceeded,
	} {
		v.err = fmt.Errorf("deep inside, \xff: %w", want)
		_, err := c.Commit(t.Context(), &controlpb.CommitRequest{Ino: ino})
		if !errors.Is(err, want) {
			t.Errorf("got %v, want one that matches %v", err, want)
		}
		if err == nil || !strings.Contains(err.Error(), "deep inside") {
			t.Errorf("got %v, want the server's text", err)
		}
		if other := errors.New("another"); errors.Is(err, other) {
			t.Errorf("%v matches an error that it is not", err)
		}
	}
	v.err = &region.CorruptError{Region: 3, Page: 5, What: "checksum"}
	if _, err := c.Commit(t.Context(), &controlpb.CommitRequest{Ino: ino}); !errors.Is(err, region.ErrCorrupt) || !strings.Contains(err.Error(), "page 5") {
		t.Errorf("got %v, want ErrCorrupt with its place", err)
	}
}

// Names that no pool has are refused before the volume sees them.
func TestRefused(t *testing.T) {
	v := newFake()
	ino := uint64(v.add("f", nil))
	c := serve(t, newTestServer(v))
	ctx := t.Context()
	root := uint64(namespace.Root)
	for _, name := range []string{"", "a\nb", "a/b", strings.Repeat("n", region.MaxCheckpointName+1)} {
		if _, err := c.SaveCheckpoint(ctx, &controlpb.SaveCheckpointRequest{Ino: ino, Name: name}); !errors.Is(err, ErrInvalid) {
			t.Errorf("checkpoint %.20q: got %v, want ErrInvalid", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		if _, err := c.Clone(ctx, &controlpb.CloneRequest{Ino: ino, Parent: root, Name: []byte(name)}); !errors.Is(err, ErrInvalid) {
			t.Errorf("clone as %q: got %v, want ErrInvalid", name, err)
		}
	}
	long := bytes.Repeat([]byte("n"), namespace.MaxName+1)
	if _, err := c.Clone(ctx, &controlpb.CloneRequest{Ino: ino, Parent: root, Name: long}); !errors.Is(err, namespace.ErrNameTooLong) {
		t.Errorf("clone under a long name: got %v, want ErrNameTooLong", err)
	}
	if _, err := c.Stat(ctx, &controlpb.StatRequest{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("stat of nothing: got %v, want ErrInvalid", err)
	}
	huge := &controlpb.SaveCheckpointRequest{Ino: ino, Name: strings.Repeat("n", maxRequestBytes)}
	if _, err := c.SaveCheckpoint(ctx, huge); err == nil {
		t.Error("a request beyond the limit was taken")
	}
	if _, err := c.Stat(ctx, &controlpb.StatRequest{Ino: ino}); err != nil {
		t.Errorf("after the oversized request: %v", err)
	}
}

// An export is the file's bytes without its holes, and leaves no name behind.
func TestExport(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 1))
	for _, size := range []int{0, 1, 4096, 5000, 3<<20 + 77} {
		v := newFake()
		data := make([]byte, size)
		for at := 0; at < size; at += 4096 {
			if rng.IntN(2) == 0 {
				data[min(at+rng.IntN(4096), size-1)] = byte(rng.IntN(255) + 1)
			}
		}
		ino := uint64(v.add("f", data))
		s := newTestServer(v)
		released := 0
		s.open = v.open(&released)
		got, sent := receiveExport(t, serve(t, s), &controlpb.ExportRequest{Ino: ino})
		if !bytes.Equal(got, data) {
			t.Errorf("size %d: the image differs (-seed %d)", size, *seed)
		}
		if sent > size {
			t.Errorf("size %d: %d bytes sent", size, sent)
		}
		if len(v.names) != 1 || released != 1 {
			t.Errorf("size %d: names %v, %d images released; want one of each", size, v.names, released)
		}
	}
}

func receiveExport(t *testing.T, c *Client, req *controlpb.ExportRequest) (image []byte, sent int) {
	t.Helper()
	stream, err := c.Export(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for ended := false; ; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && ended {
			return image, sent
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := m.GetEvent().(type) {
		case *controlpb.ExportResponse_Header:
			image = make([]byte, e.Header.GetSize())
		case *controlpb.ExportResponse_Data:
			sent += copy(image[e.Data.GetOffset():], e.Data.GetData())
		case *controlpb.ExportResponse_End:
			ended = true
		}
	}
}

// Only files that programs have open are listed, with a path.
func TestOpenFiles(t *testing.T) {
	v := newFake()
	v.add("closed", nil)
	ino := v.add("open", nil)
	v.files[ino].handles = 1
	c := serve(t, newTestServer(v))
	stream, err := c.OpenFiles(t.Context(), &controlpb.OpenFilesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := stream.Recv()
	if err != nil || f.GetIno() != uint64(ino) || string(f.GetPath()) != "/open" || f.GetEpoch() != 1 {
		t.Errorf("got %v, %v; want inode %d, /open, epoch 1", f, err, ino)
	}
	if f, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, %v; want the end", f, err)
	}
}

// A check names the path of what is damaged.
func TestCheck(t *testing.T) {
	v := newFake()
	ino := v.add("hurt", nil)
	v.check = volume.CheckReport{
		Files: 1, Pages: 9, Checkpoints: 2, Found: 5,
		Problems: []volume.Problem{{Ino: ino, Text: "page 3\xff"}, {Text: "free list"}},
	}
	c := serve(t, newTestServer(v))
	stream, err := c.Check(t.Context(), &controlpb.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p := m.GetProblem(); p != nil {
			got = append(got, fmt.Sprintf("%s: %s", p.GetPath(), p.GetText()))
		}
		if s := m.GetSummary(); s != nil {
			got = append(got, fmt.Sprint(s.GetFiles(), s.GetPages(), s.GetCheckpoints(), s.GetProblems()))
		}
	}
	want := []string{"/hurt: page 3\uFFFD", ": free list", "1 9 2 5"}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
