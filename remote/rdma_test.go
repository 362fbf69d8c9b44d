package remote_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
)

// newRDMANode starts a memory node with a model of RDMA, its pool in memory, and returns a
// compute node's device.
func newRDMANode(t *testing.T) (*memoryNode, verbs.NIC) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rpmemfs-test-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := model.New(model.Config{})
	n := &memoryNode{TB: t, lease: long, dir: dir, nic: f.Host(host, model.HostOptions{})}
	n.create()
	return n, f.Host("compute", model.HostOptions{})
}

// slots gets a file with some slots, and returns where they are.
func slots(t *testing.T, p *remote.Pool, name string) int64 {
	t.Helper()
	file, err := p.Create(ctx, namespace.Root, name, namespace.Inode{Mode: 0o100600})
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Grant(ctx, region.ID(file.Ino), 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return g.Runs[0].Start.Offset()
}

func commit(c rdmacache.Conn, b []byte, off int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return errors.Join(c.Write(ctx, b, off), c.Flush(ctx))
}

func wantBytes(t *testing.T, c rdmacache.Conn, off int64, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got := make([]byte, len(want))
	if err := c.Read(ctx, got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v, equal %v", err, bytes.Equal(got, want))
	}
}

// The memory node's processor does not see the bytes of an RDMA session. They survive its
// restart, and a session that lost its lease changes none.
func TestRDMA(t *testing.T) {
	n, nic := newRDMANode(t)
	p := n.open(remote.Config{Share: "a", Create: true, NIC: nic})
	if got := p.Transport(); got != "rdma, persistent by read" {
		t.Errorf("transport %q", got)
	}
	off, one, two := slots(t, p, "f"), bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	if err := commit(p.Conn(), one, off); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, p.Conn(), off, one)
	if got := n.pool.Traffic().BytesWritten; got > 1<<16 { // superblocks of the share's file
		t.Errorf("the memory node wrote %d bytes itself", got)
	}

	n.persistence = verbs.CPUOnly
	n.restart()
	if err := commit(p.Conn(), two, off+4096); err != nil {
		t.Fatalf("after a restart of the memory node: %v", err)
	}
	if got := p.Transport(); got != "rdma, persistent by cpu" {
		t.Errorf("transport %q after the operator has changed what he declares", got)
	}
	wantBytes(t, p.Conn(), off, append(one, two...))

	thief := n.open(remote.Config{Share: "a", NIC: nic, Steal: true})
	if err := commit(p.Conn(), make([]byte, 4096), off); !errors.Is(err, rdmacache.ErrFenced) {
		t.Errorf("commit without the lease: %v", err)
	}
	over(t, p)
	wantBytes(t, thief.Conn(), off, append(one, two...))

	other := n.open(remote.Config{Share: "b", Create: true, NIC: nic})
	mine := slots(t, other, "g")
	if err := commit(other.Conn(), two, mine); err != nil {
		t.Fatal(err)
	}
	if err := commit(other.Conn(), make([]byte, 4096), off); err == nil {
		t.Error("a session writes into another share")
	}
	wantBytes(t, thief.Conn(), off, append(one, two...))
}

// Slots that a file gave back are out of reach, and the session goes on.
func TestRDMAReturn(t *testing.T) {
	n, nic := newRDMANode(t)
	p := n.open(remote.Config{Share: "a", Create: true, NIC: nic})
	file, err := p.Create(ctx, namespace.Root, "f", namespace.Inode{Mode: 0o100600})
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Grant(ctx, region.ID(file.Ino), 64, 64)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{3}, 4096)
	last := g.Runs[0].End() - 1
	if err := errors.Join(commit(p.Conn(), b, g.Runs[0].Start.Offset()), commit(p.Conn(), b, last.Offset())); err != nil {
		t.Fatal(err)
	}
	if err := p.Return(ctx, region.ID(file.Ino), []region.Run{{Start: last, N: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := p.Conn().Read(ctx, make([]byte, 10), last.Offset()); err == nil {
		t.Error("a slot that was given back can be read")
	}
	wantBytes(t, p.Conn(), g.Runs[0].Start.Offset(), b)
	if err := commit(p.Conn(), b, g.Runs[0].Start.Offset()+4096); err != nil {
		t.Error(err)
	}
}

// A pool that no device reaches is served in messages, in TLS like the API.
func TestRDMAMessages(t *testing.T) {
	dir := certificates(t, pki.Request{Name: "alice"})
	files, err := pki.Find(dir+"/node", pki.Server)
	if err != nil {
		t.Fatal(err)
	}
	f := model.New(model.Config{})
	n := &memoryNode{TB: t, lease: long, nic: f.Host(host, model.HostOptions{Flush: true})}
	if n.tls, err = pki.ServerConfig(files); err != nil {
		t.Fatal(err)
	}
	n.create()
	if n.pool.Bytes() != nil {
		t.Skip("temporary files are in memory here")
	}
	p := n.open(remote.Config{Create: true, TLS: clientTLS(t, dir, "alice"), NIC: f.Host("compute", model.HostOptions{Flush: true})})
	if got := p.Transport(); !strings.Contains(got, "messages") || !strings.HasSuffix(got, "TLS") {
		t.Errorf("transport %q", got)
	}
	off, b := slots(t, p, "f"), bytes.Repeat([]byte{7}, 40960)
	if err := commit(p.Conn(), b, off); err != nil {
		t.Fatal(err)
	}
	n.restart()
	wantBytes(t, p.Conn(), off, b)
}

// A memory node without RDMA says what to do.
func TestNoRDMA(t *testing.T) {
	n := newNode(t, long)
	nic := model.New(model.Config{}).Host("compute", model.HostOptions{})
	if _, err := remote.Dial(ctx, remote.Config{Address: n.control, Share: "a", Create: true, NIC: nic}); !errors.Is(err, remote.ErrNoRDMA) {
		t.Errorf("Dial = %v, want ErrNoRDMA", err)
	}
	n.open(remote.Config{Share: "a"}) // the lease is free again
}
