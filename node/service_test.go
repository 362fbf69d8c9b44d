package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
	reflectpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/tcp"
)

// A session does all that a file system needs, and finds it again in another.
func TestEveryCall(t *testing.T) {
	n := newNode(t, Config{Version: "v1"})
	s := n.open(&nodepb.OpenRequest{Share: "alpha", Create: true, Holder: "here"})
	if s.GetShare() != "alpha" || len(s.GetToken()) != 32 || s.GetGeneration() == 0 || s.GetLease() != uint64(DefaultLease) ||
		s.GetSizeBytes() != 16<<20 || s.GetPool() != n.pool.ID() || s.GetVersion() != "v1" || s.GetMedium().GetKind() == "" {
		t.Errorf("open: got %v", s.OpenResponse)
	}
	ctx, c := s.ctx, s.node
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ino := n.file(s, "f")
	got, err := c.Lookup(ctx, &nodepb.LookupRequest{Parent: 1, Name: []byte("f")})
	must("lookup", err)
	if got.GetInode().GetIno() != ino || got.GetInode().GetMode() != 0o100644 || got.GetInode().GetNlink() != 1 {
		t.Errorf("lookup: got %v", got)
	}
	_, err = c.Link(ctx, &nodepb.LinkRequest{Ino: ino, Parent: 1, Name: []byte("g")})
	must("link", err)
	dir, err := c.Create(ctx, &nodepb.CreateRequest{Parent: 1, Name: []byte("d"), Inode: &nodepb.Inode{Mode: 0o40755}})
	must("mkdir", err)
	lost, err := c.Rename(ctx, &nodepb.RenameRequest{OldParent: 1, OldName: []byte("g"), NewParent: dir.GetInode().GetIno(), NewName: []byte("h")})
	must("rename", err)
	if lost.GetLost() != nil {
		t.Errorf("rename lost %v", lost)
	}

	old, err := c.Inode(ctx, &nodepb.InodeRequest{Ino: ino})
	must("inode", err)
	changed := old.GetInode().Namespace()
	changed.Mode, changed.UID = 0o100600, 7
	set := &nodepb.SetInodeRequest{Old: old.GetInode(), New: nodepb.NewInode(changed)}
	got, err = c.SetInode(ctx, set)
	must("set inode", err)
	if got.GetInode().GetUid() != 7 || got.GetInode().GetMode() != 0o100600 {
		t.Errorf("set inode: got %v", got)
	}
	_, err = c.SetInode(ctx, set)
	wantReason(t, "set inode from what it was", err, controlpb.Reason_REASON_CHANGED)

	_, err = c.SetXattr(ctx, &nodepb.SetXattrRequest{Ino: ino, Name: []byte("user.a"), Value: []byte("\xff\x00")})
	must("set xattr", err)
	value, err := c.Xattr(ctx, &nodepb.XattrRequest{Ino: ino, Name: []byte("user.a")})
	must("xattr", err)
	names, err := c.Xattrs(ctx, &nodepb.XattrsRequest{Ino: ino})
	must("xattrs", err)
	if string(value.GetValue()) != "\xff\x00" || len(names.GetNames()) != 1 {
		t.Errorf("xattrs: got %v, %v", value, names)
	}
	_, err = c.RemoveXattr(ctx, &nodepb.RemoveXattrRequest{Ino: ino, Name: []byte("user.a")})
	must("remove xattr", err)
	_, err = c.Xattr(ctx, &nodepb.XattrRequest{Ino: ino, Name: []byte("user.a")})
	wantReason(t, "no xattr", err, controlpb.Reason_REASON_NO_XATTR)

	off := n.grant(s, ino)
	loc, err := c.Locate(ctx, &nodepb.LocateRequest{Ino: ino})
	must("locate", err)
	if loc.GetSuper() == 0 || len(loc.GetExtents()) == 0 {
		t.Errorf("locate: got %v", loc)
	}
	conn := n.dial(s)
	page := bytes.Repeat([]byte("page"), 1024)
	must("write", conn.Write(ctx, page, off))
	must("flush", conn.Flush(ctx))
	_, err = c.SaveCheckpoint(ctx, &nodepb.SaveCheckpointRequest{Ino: ino, Checkpoint: &nodepb.Checkpoint{Name: []byte("monday"), Epoch: 1, Tree: &nodepb.Tree{}}})
	must("save checkpoint", err)
	clone, err := c.Clone(ctx, &nodepb.CloneRequest{Source: ino, Parent: 1, Name: []byte("clone"), Inode: &nodepb.Inode{Mode: 0o100644}, Seed: &nodepb.Seed{Epoch: 1, Series: 1}})
	must("clone", err)
	_, err = c.DropCheckpoint(ctx, &nodepb.DropCheckpointRequest{Ino: ino, Name: []byte("monday")})
	must("drop checkpoint", err)
	_, err = c.Return(ctx, &nodepb.ReturnRequest{Ino: ino, Runs: []*nodepb.Run{{Start: uint64(off/4096) - 1, N: 1}}})
	must("return", err)
	_, err = c.Unlink(ctx, &nodepb.UnlinkRequest{Parent: 1, Name: []byte("clone")})
	must("unlink", err)
	_, err = c.Reap(ctx, &nodepb.ReapRequest{Ino: clone.GetInode().GetIno()})
	must("reap", err)
	usage, err := c.Usage(ctx, &nodepb.UsageRequest{})
	must("usage", err)
	traffic, err := c.Traffic(ctx, &nodepb.TrafficRequest{})
	must("traffic", err)
	if usage.GetSlots() == 0 || traffic.GetFlushes() == 0 {
		t.Errorf("usage %v, traffic %v", usage, traffic)
	}
	check, err := c.Check(ctx, &nodepb.CheckRequest{})
	must("check", err)
	if problem, err := check.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("check: got %v, %v", problem, err)
	}
	_, err = c.Rmdir(ctx, &nodepb.RmdirRequest{Parent: 1, Name: []byte("d")})
	wantReason(t, "rmdir", err, controlpb.Reason_REASON_NOT_EMPTY)

	_, err = c.KeepAlive(ctx, &nodepb.KeepAliveRequest{Session: s.GetSession(), Token: s.GetToken()})
	must("keep alive", err)
	_, err = c.Close(ctx, &nodepb.CloseRequest{Session: s.GetSession(), Token: s.GetToken()})
	must("close", err)
	_, err = c.Usage(ctx, &nodepb.UsageRequest{})
	wantReason(t, "a call after close", err, controlpb.Reason_REASON_FENCED)
	if err := errors.Join(conn.Write(ctx, page, off), conn.Flush(ctx)); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("data after close: got %v", err)
	}

	// The whole pool shows the share as a directory, and what was written.
	whole := n.open(&nodepb.OpenRequest{})
	if whole.GetShare() != nodepb.WholePool || whole.GetGeneration() <= s.GetGeneration() {
		t.Errorf("open: got %v", whole.OpenResponse)
	}
	alpha, err := c.Lookup(whole.ctx, &nodepb.LookupRequest{Parent: 1, Name: []byte("alpha")})
	must("lookup in the pool", err)
	list, err := c.ReadDir(whole.ctx, &nodepb.ReadDirRequest{Ino: alpha.GetInode().GetIno()})
	must("read dir", err)
	var seen []string
	for {
		m, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must("read dir", err)
		for _, e := range m.GetEntries() {
			seen = append(seen, string(e.GetName()))
		}
	}
	if got := strings.Join(seen, " "); got != "d f" {
		t.Errorf("read dir: got %q", got)
	}
	back := make([]byte, len(page))
	must("read", n.dial(whole).Read(whole.ctx, back, off))
	if !bytes.Equal(back, page) {
		t.Error("read: other bytes")
	}
}

// A directory larger than a message arrives whole and in order.
func TestLargeDirectory(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{})
	const files = 300
	for i := range files {
		name := strings.Repeat(string(rune('a'+i%26)), 240) + string(rune('A'+i/26))
		if _, err := s.node.Create(s.ctx, &nodepb.CreateRequest{Parent: 1, Name: []byte(name), Inode: &nodepb.Inode{Mode: 0o100644}}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.node.ReadDir(s.ctx, &nodepb.ReadDirRequest{Ino: 1})
	if err != nil {
		t.Fatal(err)
	}
	messages, found, last := 0, 0, ""
	for {
		m, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		messages++
		for _, e := range m.GetEntries() {
			if string(e.GetName()) <= last {
				t.Fatalf("%q after %q", e.GetName(), last)
			}
			last = string(e.GetName())
			found++
		}
	}
	if found != files || messages < 2 {
		t.Errorf("got %d entries in %d messages", found, messages)
	}
}

// A session knows nothing of other shares, by names, numbers or offsets.
func TestIsolation(t *testing.T) {
	n := newNode(t, Config{})
	a := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	b := n.open(&nodepb.OpenRequest{Share: "b", Create: true})
	ino := n.file(a, "secret")
	off := n.grant(a, ino)
	conn := n.dial(a)
	page := bytes.Repeat([]byte{1}, 4096)
	if err := errors.Join(conn.Write(a.ctx, page, off), conn.Flush(a.ctx)); err != nil {
		t.Fatal(err)
	}
	_, err := b.node.Inode(b.ctx, &nodepb.InodeRequest{Ino: ino})
	wantReason(t, "inode", err, controlpb.Reason_REASON_NOT_EXIST)
	_, err = b.node.Grant(b.ctx, &nodepb.GrantRequest{Ino: ino, Need: 1, Want: 1})
	wantReason(t, "grant", err, controlpb.Reason_REASON_NOT_EXIST)
	_, err = b.node.Link(b.ctx, &nodepb.LinkRequest{Ino: ino, Parent: 1, Name: []byte("mine")})
	wantReason(t, "link", err, controlpb.Reason_REASON_NOT_EXIST)
	spy := n.dial(b)
	back := make([]byte, 4096)
	if err := spy.Read(b.ctx, back, off); err == nil || bytes.Equal(back, page) {
		t.Errorf("read of another's slot: got %v", err)
	}
	if err := errors.Join(spy.Write(b.ctx, back, off), spy.Flush(b.ctx)); err == nil {
		t.Error("write to another's slot: no error")
	}
	if err := conn.Read(a.ctx, back, off); err != nil || !bytes.Equal(back, page) {
		t.Errorf("its owner: %v, other bytes: %v", err, !bytes.Equal(back, page))
	}
	// With the session of one and the token of the other there is none.
	_, err = b.node.Usage(sessionContext(t.Context(), a.GetSession(), b.GetToken()), &nodepb.UsageRequest{})
	wantReason(t, "mixed credentials", err, controlpb.Reason_REASON_FENCED)
}

// After a lease was stolen nothing of its holder arrives, by either path, and the
// thief sees what the holder had flushed.
func TestStolen(t *testing.T) {
	n := newNode(t, Config{})
	a := n.open(&nodepb.OpenRequest{Share: "a", Create: true, Holder: "victim"})
	ino := n.file(a, "f")
	off := n.grant(a, ino)
	conn := n.dial(a)
	flushed := bytes.Repeat([]byte{1}, 4096)
	if err := errors.Join(conn.Write(a.ctx, flushed, off), conn.Flush(a.ctx)); err != nil {
		t.Fatal(err)
	}
	_, err := n.tryOpen(a.node, &nodepb.OpenRequest{Share: "a", Holder: "b"})
	wantReason(t, "open", err, controlpb.Reason_REASON_LEASED)
	_, err = n.tryOpen(a.node, &nodepb.OpenRequest{Holder: "b"})
	wantReason(t, "open of the whole pool", err, controlpb.Reason_REASON_LEASED)

	thief := n.open(&nodepb.OpenRequest{Share: "a", Steal: true, Holder: "thief"})
	if err := errors.Join(conn.Write(a.ctx, bytes.Repeat([]byte{2}, 4096), off), conn.Flush(a.ctx)); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("late write: got %v", err)
	}
	_, err = a.node.Unlink(a.ctx, &nodepb.UnlinkRequest{Parent: 1, Name: []byte("f")})
	wantReason(t, "late unlink", err, controlpb.Reason_REASON_FENCED)
	if !strings.Contains(err.Error(), "thief took the lease") {
		t.Errorf("the victim is not told why: %v", err)
	}
	back := make([]byte, 4096)
	if err := n.dial(thief).Read(thief.ctx, back, off); err != nil || !bytes.Equal(back, flushed) {
		t.Errorf("the thief reads %d..., %v", back[0], err)
	}
}

// A lease that is not kept alive ends by itself, and who waits gets it.
func TestLeaseEnds(t *testing.T) {
	n := newNode(t, Config{})
	n.open(&nodepb.OpenRequest{Share: "a", Create: true, Lease: uint64(MinLease)})
	began := time.Now()
	n.open(&nodepb.OpenRequest{Share: "a", Wait: uint64(30 * time.Second)})
	if waited := time.Since(began); waited < MinLease/2 || waited > 20*time.Second {
		t.Errorf("waited %v for a lease of %v", waited, MinLease)
	}
}

// A brokenFence fails its reads.
type brokenFence struct{ fence }

func (brokenFence) ReadAt([]byte, int64) error { return errors.New("bad line") }

// What is asked of the data path in vain is counted: what a session has no right to, and
// what fails.
func TestDataErrors(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	off := n.grant(s, n.file(s, "f"))
	reader := n.open(&nodepb.OpenRequest{Share: "a", Reader: true})
	work := func(s *testSession) tcp.Session {
		t.Helper()
		d, err := n.server.data().Session([32]byte(s.GetToken()))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	mine, theirs, page := work(s), work(reader), make([]byte, 4096)
	if err := errors.Join(mine.WriteAt(page, off), mine.Flush(), mine.ReadAt(page, off)); err != nil {
		t.Fatal(err)
	}
	counted := func(what string, refused, failed uint64) {
		t.Helper()
		if st := n.server.Stats(); st.Refused != refused || st.Failed != failed {
			t.Errorf("%s: got %d refused, %d failed, want %d and %d", what, st.Refused, st.Failed, refused, failed)
		}
	}
	counted("sound work", 0, 0)
	_ = theirs.WriteAt(page, off)     // it only reads
	_ = mine.WriteAt(page, off+1<<30) // nobody's slot
	_ = mine.ReadAt(page, off+1<<30)
	counted("no right", 3, 0)
	broken := mine.(dataSession)
	broken.fence = brokenFence{broken.fence}
	_ = broken.ReadAt(page, off)
	counted("a broken medium", 3, 1)
	if _, err := s.node.Close(s.ctx, &nodepb.CloseRequest{Session: s.GetSession(), Token: s.GetToken()}); err != nil {
		t.Fatal(err)
	}
	if err := mine.Flush(); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("flush after the session: got %v", err)
	}
	counted("a session that is over", 4, 1)
}

// A tool without the definition finds it by asking.
func TestReflection(t *testing.T) {
	n := newNode(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := reflectpb.NewServerReflectionClient(n.conn()).ServerReflectionInfo(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Send(&reflectpb.ServerReflectionRequest{MessageRequest: &reflectpb.ServerReflectionRequest_ListServices{}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range r.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	for _, want := range []string{nodepb.Node_ServiceDesc.ServiceName, "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("services: got %q, want %s among them", names, want)
		}
	}
}

// A restarted node goes on with its sessions: names, bytes and the lease.
func TestNodeRestarts(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	ino := n.file(s, "f")
	off := n.grant(s, ino)
	conn := n.dial(s)
	page := bytes.Repeat([]byte{1}, 4096)
	if err := conn.Write(s.ctx, page, off); err != nil {
		t.Fatal(err)
	}
	// A file without a name that the session has open.
	if _, err := s.node.Unlink(s.ctx, &nodepb.UnlinkRequest{Parent: 1, Name: []byte("f")}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	if err := conn.Flush(s.ctx); err != nil {
		t.Fatalf("flush of a write before the restart: %v", err)
	}
	back := make([]byte, 4096)
	if err := conn.Read(s.ctx, back, off); err != nil || !bytes.Equal(back, page) {
		t.Errorf("read: %v", err)
	}
	if _, err := s.node.KeepAlive(s.ctx, &nodepb.KeepAliveRequest{Session: s.GetSession(), Token: s.GetToken()}); err != nil {
		t.Error(err)
	}
	if _, err := s.node.Inode(s.ctx, &nodepb.InodeRequest{Ino: ino}); err != nil {
		t.Errorf("the open file: %v", err)
	}
	_, err := n.tryOpen(s.node, &nodepb.OpenRequest{Share: "a"})
	wantReason(t, "open by another", err, controlpb.Reason_REASON_LEASED)
}

// A node that stops answers the flush that it has under way, though it serves no more.
func TestStopAnswersFlush(t *testing.T) {
	inside, gate := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	n := newNode(t, Config{Flushed: func(time.Duration) { close(inside); <-gate }})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	off := n.grant(s, n.file(s, "f"))
	conn := n.dial(s)
	if err := conn.Write(s.ctx, bytes.Repeat([]byte{1}, 4096), off); err != nil {
		t.Fatal(err)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- conn.Flush(s.ctx) }()
	<-inside
	// A connection that says nothing ends when the node begins to stop.
	stranger, err := net.Dial("tcp", n.data)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.stop()
	}()
	_, _ = stranger.Read(make([]byte, 1))
	open()
	<-stopped
	// Only an answer over the first connection can come now.
	if err := <-flushed; err != nil {
		t.Errorf("flush while the node stopped: %v", err)
	}
}

// Who has the whole pool is told what is wrong with it; who has a share, that
// something is.
func TestCheckFindsDamage(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	ino := n.file(s, "secret")
	n.stop()
	db, err := bbolt.Open(filepath.Join(n.dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("inodes")).Delete(binary.BigEndian.AppendUint64(nil, ino))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	n.start()
	problems := func(s *testSession) (all []string) {
		t.Helper()
		check, err := s.node.Check(s.ctx, &nodepb.CheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := check.Recv()
			if errors.Is(err, io.EOF) {
				return all
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m.GetProblem())
		}
	}
	if got := problems(s); len(got) != 1 || !strings.Contains(got[0], "operator") {
		t.Errorf("of a share: %q", got)
	}
	if _, err := s.node.Close(s.ctx, &nodepb.CloseRequest{Session: s.GetSession(), Token: s.GetToken()}); err != nil {
		t.Fatal(err)
	}
	if got := problems(n.open(&nodepb.OpenRequest{})); len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), fmt.Sprint(ino)) {
		t.Errorf("of the pool: %q", got)
	}
}

// A node that stops lets nobody wait for it.
func TestStopWithWaiters(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	waiting := make(chan error, 1)
	go func() {
		_, err := s.node.Open(ctx, &nodepb.OpenRequest{Share: "a", Wait: uint64(time.Hour)})
		waiting <- err
	}()
	for m := n.server.sessions; ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		queued := len(m.queue)
		m.mu.Unlock()
		if queued == 1 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("nobody waits")
		}
	}
	began := time.Now()
	n.stop()
	if took := time.Since(began); took > stopGrace {
		t.Errorf("the stop took %v", took)
	}
	if err := <-waiting; err == nil {
		t.Error("who waited got a session")
	}
	n.start()
	if leases, err := n.pool.Leases(ctx); err != nil || len(leases) != 1 {
		t.Errorf("recorded: %v, %v", leases, err)
	}
}

// Who waits for a share gets the one that has the name, or none: the name is what its
// certificate allows.
func TestRenamedWhileWaiting(t *testing.T) {
	n := newNode(t, Config{})
	first := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	if _, err := first.node.Close(first.ctx, &nodepb.CloseRequest{Session: first.GetSession(), Token: first.GetToken()}); err != nil {
		t.Fatal(err)
	}
	whole := n.open(&nodepb.OpenRequest{})
	got := make(chan error, 1)
	waiter := n.client(nil)
	go func() {
		_, err := n.tryOpen(waiter, &nodepb.OpenRequest{Share: "a", Wait: uint64(30 * time.Second)})
		got <- err
	}()
	for deadline := time.Now().Add(30 * time.Second); n.server.Stats().Waiting == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
	if _, err := whole.node.Rename(whole.ctx, &nodepb.RenameRequest{OldParent: 1, OldName: []byte("a"), NewParent: 1, NewName: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.node.Close(whole.ctx, &nodepb.CloseRequest{Session: whole.GetSession(), Token: whole.GetToken()}); err != nil {
		t.Fatal(err)
	}
	wantReason(t, "a share that was renamed", <-got, controlpb.Reason_REASON_NOT_EXIST)
	n.open(&nodepb.OpenRequest{Share: "b"}) // nobody has it
}
