package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	"github.com/rpmemfs/rpmemfs/control/controlpb"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// A change that is repeated is not done again, and its answer, good or bad, is the
// first one; after a restart, too, if it was done.
func TestRepeatedChanges(t *testing.T) {
	n := newNode(t, Config{})
	s := n.open(&nodepb.OpenRequest{Share: "a", Create: true})
	c, ctx := s.node, s.ctx
	id := uint64(0)
	ino := n.file(s, "f")
	// twice makes a call twice under one number.
	twice := func(what string, call func(id uint64) (proto.Message, error)) {
		t.Helper()
		id++
		first, err := call(id)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if again, err := call(id); err != nil || !proto.Equal(first, again) {
			t.Errorf("%s again: got %v, %v, want %v", what, again, err, first)
		}
	}
	create := func(id uint64) (proto.Message, error) {
		return c.Create(ctx, &nodepb.CreateRequest{RequestId: id, Parent: 1, Name: []byte("made"), Inode: &nodepb.Inode{Mode: 0o100644}})
	}
	twice("create", create)
	created := id
	twice("grant", func(id uint64) (proto.Message, error) {
		return c.Grant(ctx, &nodepb.GrantRequest{RequestId: id, Ino: ino, Need: 8, Want: 8})
	})
	loc, err := c.Locate(ctx, &nodepb.LocateRequest{Ino: ino})
	if err != nil || len(loc.GetExtents()) != 1 || loc.GetExtents()[0].GetN() != 8 {
		t.Errorf("granted: %v, %v", loc, err)
	}
	twice("clone", func(id uint64) (proto.Message, error) {
		return c.Clone(ctx, &nodepb.CloneRequest{RequestId: id, Source: ino, Parent: 1, Name: []byte("clone"), Inode: &nodepb.Inode{Mode: 0o100644}, Seed: &nodepb.Seed{}})
	})
	twice("rename", func(id uint64) (proto.Message, error) {
		return c.Rename(ctx, &nodepb.RenameRequest{RequestId: id, OldParent: 1, OldName: []byte("made"), NewParent: 1, NewName: []byte("clone")})
	})
	twice("unlink", func(id uint64) (proto.Message, error) {
		return c.Unlink(ctx, &nodepb.UnlinkRequest{RequestId: id, Parent: 1, Name: []byte("clone")})
	})

	id++
	refused := &nodepb.RmdirRequest{RequestId: id, Parent: 1, Name: []byte("late")}
	_, err = c.Rmdir(ctx, refused)
	wantReason(t, "rmdir of nothing", err, controlpb.Reason_REASON_NOT_EXIST)
	if _, err := c.Create(ctx, &nodepb.CreateRequest{Parent: 1, Name: []byte("late"), Inode: &nodepb.Inode{Mode: 0o40755}}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Rmdir(ctx, refused)
	wantReason(t, "the same rmdir later", err, controlpb.Reason_REASON_NOT_EXIST)
	refused.RequestId = created
	_, err = c.Rmdir(ctx, refused)
	wantReason(t, "another method's number", err, controlpb.Reason_REASON_INVALID)
	_, err = c.Create(ctx, &nodepb.CreateRequest{RequestId: created, Parent: 1, Name: []byte("other"), Inode: &nodepb.Inode{Mode: 0o100644}})
	wantReason(t, "another request's number", err, controlpb.Reason_REASON_INVALID)

	id++
	keep := &nodepb.UnlinkRequest{RequestId: id, Parent: 1, Name: []byte("f")}
	first, err := c.Unlink(ctx, keep)
	if err != nil {
		t.Fatal(err)
	}
	likely := &nodepb.RmdirRequest{RequestId: id, Parent: 1, Name: []byte("f")}
	_, err = c.Rmdir(ctx, likely)
	wantReason(t, "the same of another method", err, controlpb.Reason_REASON_INVALID)
	n.stop()
	n.start()
	if again, err := c.Unlink(ctx, keep); err != nil || !proto.Equal(first, again) {
		t.Errorf("unlink again after a restart: got %v, %v, want %v", again, err, first)
	}
	n.stop()
	n.start()
	_, err = c.Rmdir(ctx, likely)
	wantReason(t, "the same of another method after a restart", err, controlpb.Reason_REASON_INVALID)
	keep.Name = []byte("late")
	_, err = c.Unlink(ctx, keep)
	wantReason(t, "another request's number after a restart", err, controlpb.Reason_REASON_INVALID)
	keep.RequestId = created
	_, err = c.Unlink(ctx, keep)
	wantReason(t, "another method's number after a restart", err, controlpb.Reason_REASON_INVALID)
	keep.RequestId = id + nodepb.Remembered
	if _, err := c.SetXattr(ctx, &nodepb.SetXattrRequest{RequestId: keep.RequestId, Ino: 1, Name: []byte("user.x")}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	_, err = c.Unlink(ctx, &nodepb.UnlinkRequest{RequestId: id, Parent: 1, Name: []byte("f")})
	wantReason(t, "a forgotten number after a restart", err, controlpb.Reason_REASON_INVALID)
}

// A repetition that comes while the first is under way waits for its answer, also
// when the first caller has gone.
func TestRepeatedWhileUnderWay(t *testing.T) {
	var a answers
	began, finish := make(chan struct{}), make(chan struct{})
	times := 0
	slow := func() (proto.Message, error) {
		times++
		close(began)
		<-finish
		return &nodepb.ReapResponse{Heir: 7}, nil
	}
	go func() { _, _ = a.do(t.Context(), 1, digest{}, slow) }()
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.do(ctx, 1, digest{}, slow); !errors.Is(err, context.Canceled) {
		t.Errorf("an impatient caller: got %v", err)
	}
	got := make(chan proto.Message)
	go func() {
		m, _ := a.do(t.Context(), 1, digest{}, slow)
		got <- m
	}()
	close(finish)
	if m := <-got; m.(*nodepb.ReapResponse).GetHeir() != 7 || times != 1 {
		t.Errorf("got %v after doing it %d times", m, times)
	}
}

// An answer is remembered until a larger number takes its place. What was forgotten is
// refused, not done again.
func TestAnswersAreBounded(t *testing.T) {
	var a answers
	reply := func() (proto.Message, error) { return &nodepb.ReapResponse{Heir: 7}, nil }
	again := func() (proto.Message, error) { return nil, errors.New("done again") }
	for id := uint64(1); id <= 3*nodepb.Remembered; id++ {
		if _, err := a.do(t.Context(), id, digest{}, reply); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.places) != nodepb.Remembered {
		t.Errorf("%d answers are kept", len(a.places))
	}
	if _, err := a.do(t.Context(), 2*nodepb.Remembered+1, digest{}, again); err != nil {
		t.Errorf("the oldest that is kept: %v", err)
	}
	if _, err := a.do(t.Context(), 2*nodepb.Remembered, digest{}, again); !errors.Is(err, errInvalid) {
		t.Errorf("the newest that is forgotten: %v", err)
	}
	if _, err := a.do(t.Context(), 3*nodepb.Remembered, digest{1}, again); !errors.Is(err, errInvalid) {
		t.Errorf("another request of a number: %v", err)
	}
}

// A long answer is not kept: who repeats the request finds it in the pool.
func TestLongAnswers(t *testing.T) {
	var a answers
	times := 0
	long := func() (proto.Message, error) {
		times++
		return &nodepb.XattrResponse{Value: make([]byte, maxKeptAnswer)}, nil
	}
	for range 2 {
		m, err := a.do(t.Context(), 1, digest{}, long)
		if err != nil || len(m.(*nodepb.XattrResponse).GetValue()) != maxKeptAnswer {
			t.Errorf("got %v, %v", m, err)
		}
	}
	if times != 2 || a.places[1].reply != nil {
		t.Errorf("asked %d times, kept %v", times, a.places[1].reply)
	}
}

// A request waits for the one before it in its place, of which nobody wants to hear any
// more.
func TestAnswersUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a answers
		finish := make(chan struct{})
		go func() {
			_, _ = a.do(t.Context(), 1, digest{}, func() (proto.Message, error) { <-finish; return nil, nil })
		}()
		synctest.Wait()
		began := false
		done := make(chan error)
		go func() {
			_, err := a.do(t.Context(), 1+nodepb.Remembered, digest{}, func() (proto.Message, error) { began = true; return nil, nil })
			done <- err
		}()
		synctest.Wait()
		if began {
			t.Error("it did not wait")
		}
		close(finish)
		if err := <-done; err != nil || !began {
			t.Errorf("began %v, %v", began, err)
		}
	})
}
