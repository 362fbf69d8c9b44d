package node

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
)

func patient(share namespace.Ino, holder string) openRequest {
	req := request(share, holder)
	req.patience = time.Hour
	return req
}

// A holder with patience finds his session as it was when he is heard again, though his
// lease had run out: if nobody else wanted the share.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		s := mustOpen(t, m, patient(2, "a"))
		for range 3 {
			time.Sleep(50 * time.Minute)
			mustOpen(t, m, request(3, "another share's")) // and ends in time
			if err := m.keepAlive(s.id(), s.token); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if _, err := m.session(s.id(), s.token); err != nil {
			t.Fatalf("just before the end of the patience: %v", err)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		wantFenced(t, m, s)
		if st := m.stats(); st.Expired != 4 || st.Sessions != 0 {
			t.Errorf("stats: got %+v", st)
		}
	})
}

// Who wants the share of a holder with patience waits for the lease, and no longer: whether
// he came before it ran out or after.
func TestPatienceGivesWay(t *testing.T) {
	for name, c := range map[string]struct {
		silent, waits time.Duration
		why           string
	}{
		"comes within the lease": {time.Second, 9 * time.Second, "not kept alive for 10s)"},
		"comes after it":         {30 * time.Minute, 0, "not kept alive for 30m0s, and b wants the share)"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := start(t, newFakeStore(t))
				defer m.stop()
				a := mustOpen(t, m, patient(2, "a"))
				time.Sleep(c.silent)
				began := time.Now()
				req := request(2, "b")
				req.wait = time.Minute
				mustOpen(t, m, req)
				if got := time.Since(began); got != c.waits {
					t.Errorf("waited for %v, want %v", got, c.waits)
				}
				wantFenced(t, m, a)
				if err := m.keepAlive(a.id(), a.token); !strings.Contains(fmt.Sprint(err), c.why) {
					t.Errorf("the holder is told %v, want %s", err, c.why)
				}
			})
		})
	}
}

// Where a holder's lease has run out nobody waits for his answer: a reader's pin ends his
// session, and a session whose lease has not run out goes on.
func TestPatienceGivesWayToReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, newFakeStore(t))
		defer m.stop()
		a := mustOpen(t, m, patient(2, "a"))
		time.Sleep(9 * time.Second)
		m.giveWay(a, "a reader")
		if !m.isLive(a) {
			t.Error("ended within its lease")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !m.isLive(a) {
			t.Error("nobody wants the share, and it ended")
		}
		m.giveWay(a, "a reader")
		wantFenced(t, m, a)
	})
}
