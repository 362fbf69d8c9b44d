package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A mounted volume over a session; only the kernel is missing.
type mounted struct {
	*volume.Volume
	pool *remote.Pool
	stop func()
}

func mountOver(t testing.TB, p *remote.Pool) *mounted {
	t.Helper()
	return mountWith(t, p, volume.Config{Pool: p, Conn: p.Conn()})
}

func mountWith(t testing.TB, p *remote.Pool, cfg volume.Config) *mounted {
	t.Helper()
	v := volume.New(cfg)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	stopped := false
	m := &mounted{Volume: v, pool: p, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}}
	t.Cleanup(m.stop)
	return m
}

func (m *mounted) create(t *testing.T, name string) (namespace.Ino, *volume.Handle) {
	t.Helper()
	a, err := m.Create(ctx, namespace.Root, name, fileInode())
	if err != nil {
		t.Fatal(err)
	}
	h, err := m.Open(ctx, a.Ino)
	if err != nil {
		t.Fatal(err)
	}
	return a.Ino, h
}

func mustWrite(t *testing.T, h *volume.Handle, b []byte, off int64) {
	t.Helper()
	if _, err := h.Write(ctx, b, off, rdmacache.FromWrite); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, v *volume.Volume, ino namespace.Ino, want []byte) {
	t.Helper()
	h, err := v.Open(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release(ctx)
	got := make([]byte, len(want)+1)
	n, err := h.Read(ctx, got, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Errorf("file %d holds %d bytes that begin with %.20q, want %d that begin with %.20q", ino, n, got[:n], len(want), want)
	}
}

// A second client takes the share over. It finds every epoch that was committed,
// and nothing of the one that was open; the first can do no more harm.
func TestTakeover(t *testing.T) {
	n := newNode(t, long)
	first := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	ino, h := first.create(t, "f")
	committed := bytes.Repeat([]byte("committed"), 10_000)
	mustWrite(t, h, committed, 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, h, []byte("open"), 0)
	mustWrite(t, h, bytes.Repeat([]byte("open"), 50_000), 4096)

	second := mountOver(t, n.open(remote.Config{Share: "s", Steal: true}))
	wantContent(t, second.Volume, ino, committed)
	wantErr(t, "a commit of the first client", h.Sync(ctx), rdmacache.ErrFenced)
	over(t, first.pool)
	_, err := first.Lookup(ctx, namespace.Root, "f")
	wantErr(t, "a lookup of the first client", err, rdmacache.ErrFenced)
	wantContent(t, second.Volume, ino, committed)
	h2, err := second.Open(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, h2, []byte("second"), 0)
	if err := h2.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	h2.Release(ctx)
	copy(committed, "second")
	wantContent(t, second.Volume, ino, committed)
	wantSound(t, second)
}

// wantSound closes a volume and has the memory node check the pool.
func wantSound(t *testing.T, m *mounted) {
	t.Helper()
	m.stop()
	if err := m.Close(ctx); err != nil {
		t.Errorf("close the volume: %v", err)
	}
	if err := m.pool.Check(ctx, func(problem string) { t.Error("check: " + problem) }); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := m.pool.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// What a volume does with regions (checkpoint, clone, remove, restore) works from
// afar, and the next session finds it.
func TestVolume(t *testing.T) {
	n := newNode(t, long)
	m := mountOver(t, n.open(remote.Config{Share: "s", Create: true}))
	ino, h := m.create(t, "f")
	one, two := bytes.Repeat([]byte("1"), 300_000), bytes.Repeat([]byte("2"), 300_000)
	mustWrite(t, h, one, 0)
	if _, err := m.Checkpoint(ctx, ino, "one"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, h, two, 0)
	if err := h.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	clone, err := m.Clone(ctx, ino, "one", namespace.Root, "clone")
	if err != nil {
		t.Fatal(err)
	}
	h.Release(ctx)
	var removed []namespace.Ino
	for i := range 20 {
		ino, h := m.create(t, fmt.Sprint(i))
		mustWrite(t, h, one, 0)
		h.Release(ctx)
		if err := m.Remove(ctx, namespace.Root, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		removed = append(removed, ino)
	}
	wantContent(t, m.Volume, ino, two)
	wantContent(t, m.Volume, clone.Ino, one)
	if _, err := m.Restore(ctx, ino, "one", false); err != nil {
		t.Fatal(err)
	}
	wantContent(t, m.Volume, ino, one)
	wantSound(t, m)

	again := mountOver(t, n.open(remote.Config{Share: "s"}))
	wantContent(t, again.Volume, ino, one)
	wantContent(t, again.Volume, clone.Ino, one)
	for _, ino := range removed {
		if _, err := again.pool.Inode(ctx, ino); !errors.Is(err, namespace.ErrNotExist) {
			t.Errorf("removed file %d: %v", ino, err)
		}
	}
	wantSound(t, again)
}

// A volume goes through restarts of its memory node, and through a broken
// connection in every commit.
func TestVolumeThroughRestarts(t *testing.T) {
	n := newNode(t, long)
	way := n.path()
	m := mountOver(t, n.open(remote.Config{Address: way.address()}))
	ino, h := m.create(t, "f")
	content := make([]byte, 200_000)
	for i := range 30 {
		for j := range content {
			content[j] = byte(i + j/1000)
		}
		mustWrite(t, h, content, 0)
		broken := make(chan struct{})
		go func() {
			defer close(broken)
			if i%10 == 5 {
				n.restart()
			} else {
				way.cut()
			}
		}()
		if err := h.Sync(ctx); err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
		<-broken
		wantContent(t, m.Volume, ino, content)
	}
	h.Release(ctx)
	wantSound(t, m)

	again := mountOver(t, n.open(remote.Config{}))
	wantContent(t, again.Volume, ino, content)
	wantSound(t, again)
}
