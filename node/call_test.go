package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/metadata"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// called is a server with one session, and the context of a call that names it.
func called(t *testing.T) (*Server, *session, context.Context) {
	srv := NewServer(Config{})
	srv.sessions = start(t, newFakeStore(t))
	s := mustOpen(t, srv.sessions, request(2, "a"))
	id, secret := s.id(), s.token
	return srv, s, metadata.NewIncomingContext(t.Context(), metadata.Pairs(nodepb.SessionKey, string(id[:]), nodepb.TokenKey, string(secret[:])))
}

// A change outlives its caller's connection, so that the repetition finds it done;
// nothing outlives the session.
func TestCallsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, s, incoming := called(t)
		defer srv.sessions.stop()

		finish := make(chan struct{})
		handle := func(ctx context.Context, _ any) (any, error) {
			select {
			case <-finish:
				return &nodepb.ReapResponse{Heir: 7}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		call := func(ctx context.Context, req any, method string) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := srv.call(ctx, req, method, handle)
				done <- err
			}()
			synctest.Wait()
			return done
		}
		change := &nodepb.ReapRequest{RequestId: 1}
		ctx, disconnect := context.WithCancel(incoming)
		first := call(ctx, change, nodepb.Node_Reap_FullMethodName)
		look := call(ctx, &nodepb.UsageRequest{}, nodepb.Node_Usage_FullMethodName)
		disconnect()
		if err := <-look; !errors.Is(err, context.Canceled) {
			t.Errorf("a look whose caller has gone: got %v", err)
		}
		again := call(incoming, change, nodepb.Node_Reap_FullMethodName)
		close(finish)
		if err := errors.Join(<-first, <-again); err != nil {
			t.Errorf("a change whose caller has gone: %v", err)
		}

		finish = make(chan struct{})
		change = &nodepb.ReapRequest{RequestId: 2}
		first = call(incoming, change, nodepb.Node_Reap_FullMethodName)
		look = call(incoming, &nodepb.UsageRequest{}, nodepb.Node_Usage_FullMethodName)
		if err := srv.sessions.close(t.Context(), s.id(), s.token); err != nil {
			t.Fatal(err)
		}
		for what, done := range map[string]<-chan error{"change": first, "look": look} {
			if err := <-done; !errors.Is(err, rdmacache.ErrFenced) {
				t.Errorf("%s when the session ends: got %v", what, err)
			}
		}
	})
}

// Who waits for the answer to a request that is under way, or for the place of one,
// leaves with its connection and with the session; the request goes on.
func TestWaitersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, s, incoming := called(t)
		defer srv.sessions.stop()

		// A medium that answers in its own time, whatever becomes of the session.
		finish := make(chan struct{})
		slow := func(context.Context, any) (any, error) {
			<-finish
			return &nodepb.ReapResponse{Heir: 7}, nil
		}
		call := func(ctx context.Context, id uint64) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := srv.call(ctx, &nodepb.ReapRequest{RequestId: id}, nodepb.Node_Reap_FullMethodName, slow)
				done <- err
			}()
			synctest.Wait()
			return done
		}
		waiters := func(ctx context.Context) map[string]<-chan error {
			return map[string]<-chan error{"the same": call(ctx, 1), "the next of its place": call(ctx, 1+nodepb.Remembered)}
		}
		// ended takes the errors of calls that are over by now.
		ended := func(when string, calls map[string]<-chan error, want error) {
			t.Helper()
			synctest.Wait()
			for what, done := range calls {
				select {
				case err := <-done:
					if !errors.Is(err, want) {
						t.Errorf("%s, %s: got %v, want %v", when, what, err, want)
					}
				default:
					t.Errorf("%s, %s: still waiting", when, what)
				}
			}
		}
		first := call(incoming, 1)
		ctx, disconnect := context.WithCancel(incoming)
		gone := waiters(ctx)
		disconnect()
		ended("the caller has gone", gone, context.Canceled)
		late := waiters(incoming)
		if err := srv.sessions.close(t.Context(), s.id(), s.token); err != nil {
			t.Fatal(err)
		}
		ended("the session is over", late, rdmacache.ErrFenced)
		select {
		case err := <-first:
			t.Errorf("the first call did not wait: %v", err)
		default:
		}
		close(finish)
		if err := <-first; err != nil {
			t.Errorf("the first call: %v", err)
		}
	})
}
