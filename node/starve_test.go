package node

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/region"
)

// A lease whose end finds no space in the pool's directory ends when there is some.
// Until then nobody gets the share, and after it the next one does.
func TestNoSpaceToEndALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		defer m.stop()
		a := mustOpen(t, m, request(2, "a"))
		st.mu.Lock()
		st.failEnd = fmt.Errorf("meta.db: %w", region.ErrNoSpace)
		st.mu.Unlock()
		ended := make(chan error, 1)
		go func() { ended <- m.close(t.Context(), a.id(), a.token) }()
		time.Sleep(5 * time.Second)
		wantFenced(t, m, a)
		if _, err := m.open(t.Context(), request(2, "b")); !errors.Is(err, memnode.ErrLeased) {
			t.Errorf("open while the old lease is recorded: got %v, want ErrLeased", err)
		}
		st.mu.Lock()
		st.failEnd = nil
		st.mu.Unlock()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		mustOpen(t, m, request(2, "b"))
	})
}

// A node that stops does not wait for space.
func TestStopWithoutSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newFakeStore(t)
		m := start(t, st)
		a := mustOpen(t, m, request(2, "a"))
		st.failEnd = region.ErrNoSpace
		go func() { _ = m.close(t.Context(), a.id(), a.token) }()
		synctest.Wait()
		began := time.Now()
		m.stop()
		if d := time.Since(began); d > 0 {
			t.Errorf("stop took %v", d)
		}
	})
}

// One identity cannot fill the queue, nor the readers: others come in.
func TestIdentitiesLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		mustOpen(t, m, request(2, "a"))
		busy := make(chan error, maxWaiters)
		for range maxWaiters {
			go func() {
				req := request(2, "greedy")
				req.identity, req.wait = "greedy", time.Minute
				if _, err := m.open(t.Context(), req); errors.Is(err, errBusy) {
					busy <- err
				}
			}()
		}
		synctest.Wait()
		if n := maxWaiters - len(busy); n != maxWaiters/maxShareOf {
			t.Errorf("%d requests of one identity wait, want %d", n, maxWaiters/maxShareOf)
		}
		req := request(3, "b")
		req.identity = "modest"
		mustOpen(t, m, req)

		reader := func(identity string) error {
			req := request(3, identity)
			req.identity, req.reader = identity, true
			_, err := m.openReader(t.Context(), req)
			return err
		}
		var err error
		for i := 0; err == nil; i++ {
			if err = reader("greedy"); err == nil && i >= maxReaders/maxShareOf {
				t.Fatal("one identity has too many readers")
			}
		}
		if !errors.Is(err, errBusy) {
			t.Errorf("got %v, want errBusy", err)
		}
		if err := reader("modest"); err != nil {
			t.Error(err)
		}
		m.stop()
	})
}
