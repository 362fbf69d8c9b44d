package verbs

import (
	"context"
	"errors"
	"testing"
	"time"
)

// newCopying is a lane without a connection, with a long copy to its ring under way.
func newCopying(t *testing.T) *lane {
	t.Helper()
	a, err := newArena(minWindow)
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{arena: a, many: manyExtents, stop: func() {}, done: make(chan struct{}), copying: 1, filling: true}
	close(l.done)
	l.ring.mem = a.ring
	return l
}

// asleep waits until somebody sleeps for a change of l. Whoever ends first says so in ended.
func asleep(t *testing.T, l *lane, ended <-chan error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		l.mu.Lock()
		sleeps := l.change != nil
		l.mu.Unlock()
		if sleeps {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("it did not wait for the copy: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	t.Fatal("nobody waits")
}

// A write waits while another one copies to the memory that the ring would give it, and goes on
// when that is done.
func TestWriteWaitsForCopy(t *testing.T) {
	l := newCopying(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.write(ctx, []byte("behind"), 0) }()
	asleep(t, l, ended)
	l.mu.Lock()
	l.copying = 0
	err := l.copyApart(l.ring.mem[:5], []byte("first")) // the end of it
	l.mu.Unlock()
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
}

// What was copied while the ring was dropped is not written.
func TestCopyToDroppedRing(t *testing.T) {
	l := newCopying(t)
	l.mu.Lock()
	l.failWritesLocked(ErrPoisoned)
	l.copying = 0
	if err := l.copyApart(l.ring.mem[:5], []byte("first")); !errors.Is(err, ErrPoisoned) {
		t.Errorf("copy to a ring that was dropped = %v, want ErrPoisoned", err)
	}
	l.mu.Unlock()
	if err := l.close(); err != nil {
		t.Error(err)
	}
}

// Close gives memory back when nobody copies to it any more.
func TestCloseWaitsForCopy(t *testing.T) {
	l := newCopying(t)
	ended := make(chan error, 1)
	go func() { ended <- l.close() }()
	asleep(t, l, ended)
	l.mu.Lock()
	l.copying = 0
	err := l.copyApart(l.ring.mem[:5], []byte("first"))
	l.mu.Unlock()
	if !errors.Is(err, ErrClosed) {
		t.Errorf("copy beside Close = %v, want ErrClosed", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
