package volume_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/volume"
)

// members is a volume.Members whose answers a test chooses.
type members struct {
	pid         int
	commitOnly  bool
	checkpoints int
	settled     chan struct{} // Settle waits for it, if not nil
}

func (m *members) Checkpoint(context.Context, uint64) (epoch.ID, bool, error) {
	if m.commitOnly {
		return 0, false, nil
	}
	m.checkpoints++
	return 77, true, nil
}

func (m *members) HasRestartPoints(_ uint64, pid int) bool { return pid == m.pid && !m.commitOnly }

func (m *members) Settle(ctx context.Context, _ uint64) error {
	if m.settled == nil {
		return nil
	}
	select {
	case <-m.settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func page(text string) []byte {
	return append([]byte(text), make([]byte, rdmacache.PageSize-len(text))...)
}

// quiesceWith seals, and hands in one page of the sealed epoch.
func quiesceWith(a *volume.Attachment, text string) func(context.Context, func() ([]uint64, epoch.ID, error)) error {
	return func(ctx context.Context, seal func() ([]uint64, epoch.ID, error)) error {
		if _, _, err := seal(); err != nil {
			return err
		}
		return a.Capture(ctx, true, 0, rdmacache.Monotonic(), page(text))
	}
}

func TestAttachment(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	m := &members{pid: 10}
	f.SetMembers(m)
	ino := f.saved("file", string(bytes.Repeat([]byte("."), rdmacache.PageSize)))

	_, err := f.Attach(ctx, uint64(ino), 12345, 12345)
	wantError(t, "attach as a stranger", err, volume.ErrPermission)
	_, err = f.Attach(ctx, uint64(namespace.Root), 0, 0)
	wantError(t, "attach to a directory", err, namespace.ErrIsDir)
	_, err = f.Attach(ctx, 999, 0, 0)
	wantError(t, "attach to nothing", err, namespace.ErrNotExist)

	member, err := f.OpenBy(ctx, ino, 10, true)
	f.must(err)
	a, err := f.Attach(ctx, uint64(ino), 0, 0)
	f.must(err)

	if !a.Untracked([]int{10}) {
		t.Error("not Untracked although stores from before may be in the kernel")
	}
	// A barrier commits what is captured at it.
	before := a.Committed()
	id, err := a.Barrier(ctx, quiesceWith(a, "one"))
	if err != nil || id != before+1 || a.Committed() != id {
		t.Fatalf("Barrier = %d, %v; want epoch %d", id, err, before+1)
	}
	// So does one that changes nothing: programs were told its number.
	if id, err = a.Barrier(ctx, quiesceWith(a, "one")); err != nil || id != before+2 {
		t.Fatalf("Barrier without a change = %d, %v; want %d", id, err, before+2)
	}
	// One that fails leaves the epoch open.
	errStop := errors.New("stop")
	_, err = a.Barrier(ctx, func(ctx context.Context, seal func() ([]uint64, epoch.ID, error)) error {
		f.must(quiesceWith(a, "two")(ctx, seal))
		return errStop
	})
	wantError(t, "Barrier", err, errStop)
	if got := f.content(ino, 3); got != "two" || a.Committed() != id {
		t.Errorf("after a failed barrier: content %q, epoch %d; want two, %d", got, a.Committed(), id)
	}

	// Who else may store, and where copies lose against write(2).
	if a.Untracked([]int{10}) {
		t.Error("Untracked although only a member has the file open")
	}
	if !a.Untracked([]int{11}) {
		t.Error("not Untracked although a stranger has the file open for writing")
	}
	f.write(member, "x", 5, byWrite)
	a.Untracked([]int{10})
	_, err = a.Barrier(ctx, func(_ context.Context, seal func() ([]uint64, epoch.ID, error)) error {
		extra, _, err := seal()
		if len(extra) != 1 || extra[0] != 0 {
			t.Errorf("extra pages %v, want page 0, which write(2) changed", extra)
		}
		return err
	})
	f.must(err)

	// fsync by a stranger, and checkpoint, go by the barrier; by a member not.
	wantError(t, "fsync by a member with restart points", member.Sync(ctx), volume.ErrDeadlock)
	m.commitOnly = true
	f.must(member.Sync(ctx))
	m.commitOnly = false
	stranger, err := f.OpenBy(ctx, ino, 11, false)
	f.must(err)
	f.must(stranger.Sync(ctx))
	if id, err := f.Commit(ctx, ino); id != 77 || err != nil || m.checkpoints != 2 {
		t.Errorf("Commit = %d, %v after %d barriers; want 77 after 2", id, err, m.checkpoints)
	}
	stranger.Release(ctx)
	_, err = f.Rollback(ctx, ino)
	wantError(t, "rollback under attached programs", err, volume.ErrBusy)
	_, err = f.Checkpoint(ctx, ino, "cp")
	f.must(err)
	_, err = f.Restore(ctx, ino, "cp", true)
	wantError(t, "restore under attached programs", err, volume.ErrBusy)

	a.Close()
	member.Release(ctx)
}

// When an attached program dies nothing of its open epoch commits, and who opens the
// file waits until it is rolled back.
func TestAttachedDeath(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{})
	m := &members{pid: 10, commitOnly: true}
	f.SetMembers(m)
	ino := f.saved("file", "0123456789")
	a, err := f.Attach(ctx, uint64(ino), 0, 0)
	f.must(err)
	h, err := f.OpenBy(ctx, ino, 10, true)
	f.must(err)
	f.write(h, "WR", 0, byWrite)
	f.write(h, "MAP", 4, byMapping)

	m.settled = make(chan struct{})
	opened := make(chan *volume.Handle)
	go func() {
		h, err := f.Open(context.Background(), ino)
		if err != nil {
			t.Error(err)
		}
		opened <- h
	}()
	a.Condemn()
	close(m.settled)
	wantError(t, "fsync", h.Sync(ctx), volume.ErrLost)
	_, err = a.Barrier(ctx, quiesceWith(a, "one"))
	wantError(t, "barrier", err, volume.ErrLost)
	h.Release(ctx)
	select {
	case <-opened:
		t.Fatal("an open did not wait for the rollback")
	case <-time.After(20 * time.Millisecond):
	}
	f.must(a.Rollback(ctx))
	second := <-opened
	f.want(ino, "0123456789")
	second.Release(ctx)
	a.Close()
	f.crash()
	f.open()
	f.want(ino, "0123456789")
}

func TestIntervalAttribute(t *testing.T) {
	f := newFixture(t, 16<<20, volume.Config{Interval: time.Second})
	ino := f.saved("file", "x")
	f.must(f.SetXattr(ctx, ino, volume.XattrInterval, []byte("64ms"), 0))
	for _, bad := range []string{"", "64", "1us", "-1s"} {
		wantError(t, bad, f.SetXattr(ctx, ino, volume.XattrInterval, []byte(bad), 0), namespace.ErrInvalid)
	}
	if got := f.Interval(ctx, ino); got != 64*time.Millisecond {
		t.Errorf("Interval = %v, want 64ms", got)
	}
	if names, err := f.Xattrs(ctx, ino); err != nil || len(names) != 0 {
		t.Errorf("Xattrs = %v, %v; want none: copies of the file are not meant to have it", names, err)
	}
	f.must(f.RemoveXattr(ctx, ino, volume.XattrInterval))
	if got := f.Interval(ctx, ino); got != time.Second {
		t.Errorf("Interval = %v, want that of the mount", got)
	}
}
