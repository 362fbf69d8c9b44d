package verbs

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
)

// A stubborn object cannot be closed a few times.
type stubborn struct {
	fail int
	log  *[]string
	name string
}

func (s *stubborn) close() error {
	if s.fail > 0 {
		s.fail--
		return errors.New("busy")
	}
	*s.log = append(*s.log, s.name)
	return nil
}

type stubbornMR struct {
	MR
	stubborn
}

func (m *stubbornMR) Close() error { return m.close() }

type stubbornQueue struct {
	Queue
	stubborn
}

func (q *stubbornQueue) Close() error { return q.close() }

// What cannot be deregistered is out of reach when Revoke returns all the same: without
// its queue pair, or when one of both gave in.
func TestRevokeIsStubborn(t *testing.T) {
	for name, x := range map[string]struct {
		mr, queue int
		want      []string
	}{
		"both at once":      {0, 0, []string{"mr"}},
		"the queue goes":    {1 << 30, 0, []string{"queue"}},
		"the queue is next": {1 << 30, 3, []string{"queue"}},
		"the MR gives in":   {2, 1 << 30, []string{"mr"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var done []string
				w := &window{
					log:      slog.New(slog.DiscardHandler),
					queue:    &stubbornQueue{stubborn: stubborn{x.queue, &done, "queue"}},
					mappings: []mapping{{0, 4096, &stubbornMR{stubborn: stubborn{x.mr, &done, "mr"}}}},
				}
				w.Revoke(0, 10)
				if len(done) != 1 || done[0] != x.want[0] {
					t.Errorf("closed %v, want %v", done, x.want)
				}
				if w.ended != (x.mr > 0) {
					t.Errorf("ended: %v", w.ended)
				}
			})
		})
	}
}
