package verbs_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/rdmacache/conntest"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
	"github.com/rpmemfs/rpmemfs/rdmacache/verbs/model"
)

// calls is what the device of a compute node is asked for, whatever Stats says.
type calls struct {
	posts, recvPosts, polls, spins, waits int // spins are polls that look for a while
	writes, signaled                      int // work requests
}

func (c calls) since(before calls) calls {
	return calls{
		c.posts - before.posts, c.recvPosts - before.recvPosts, c.polls - before.polls, c.spins - before.spins,
		c.waits - before.waits, c.writes - before.writes, c.signaled - before.signaled,
	}
}

func (c calls) crossings() int { return c.posts + c.recvPosts + c.polls + c.waits }

// A watched is a NIC whose queues count.
type watched struct {
	verbs.NIC

	mu     sync.Mutex // guards what follows
	queues []*watchedQueue
}

func (w *watched) Resolve(ctx context.Context, address string) (verbs.Route, error) {
	r, err := w.NIC.Resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	return watchedRoute{r, w}, nil
}

// calls are those of each queue.
func (w *watched) calls() []calls {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []calls
	for _, q := range w.queues {
		q.mu.Lock()
		list = append(list, q.calls)
		q.mu.Unlock()
	}
	return list
}

type watchedRoute struct {
	verbs.Route
	nic *watched
}

func (r watchedRoute) Connect(ctx context.Context, d verbs.Domain, cfg verbs.QueueConfig, private []byte) (verbs.Queue, []byte, error) {
	q, welcome, err := r.Route.Connect(ctx, d, cfg, private)
	if err != nil {
		return nil, nil, err
	}
	watch := &watchedQueue{Queue: q, inline: cfg.Inline}
	r.nic.mu.Lock()
	defer r.nic.mu.Unlock()
	r.nic.queues = append(r.nic.queues, watch)
	return watch, welcome, nil
}

type watchedQueue struct {
	verbs.Queue
	inline int // bytes that a write may take along

	mu    sync.Mutex // guards what follows
	calls calls
}

func (q *watchedQueue) count(fn func(*calls)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fn(&q.calls)
}

func (q *watchedQueue) Post(work []verbs.Work) error {
	q.count(func(c *calls) {
		c.posts++
		for _, w := range work {
			if w.Op == verbs.OpWrite {
				c.writes++
			}
			if w.Signaled {
				c.signaled++
			}
		}
	})
	return q.Queue.Post(work)
}

func (q *watchedQueue) PostRecv(recvs []verbs.Work) error {
	q.count(func(c *calls) { c.recvPosts++ })
	return q.Queue.PostRecv(recvs)
}

func (q *watchedQueue) Poll(done []verbs.Completion, spin time.Duration) (int, error) {
	q.count(func(c *calls) {
		c.polls++
		if spin > 0 {
			c.spins++
		}
	})
	return q.Queue.Poll(done, spin)
}

func (q *watchedQueue) Wait(ctx context.Context, done []verbs.Completion) (int, error) {
	q.count(func(c *calls) { c.waits++ })
	return q.Queue.Wait(ctx, done)
}

// watch connects by a device that counts.
func watch(t *testing.T, cfg model.Config, w way, change func(*verbs.Config)) (*watched, *verbs.Conn) {
	t.Helper()
	nic := new(watched)
	_, c := connect(t, cfg, conntest.NewStore(8<<20, rdmacache.Medium{Kind: "dax"}), w, func(cfg *verbs.Config) {
		nic.NIC, cfg.NIC = cfg.NIC, nic
		if change != nil {
			change(cfg)
		}
	})
	return nic, c
}

// commitPages commits pages that are apart.
func commitPages(t *testing.T, c *verbs.Conn, pages int) {
	t.Helper()
	for i := range int64(pages) {
		if err := c.Write(t.Context(), make([]byte, rdmacache.PageSize), i*3*rdmacache.PageSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A commit of one page or of many is one doorbell, one completion, one wait and one round
// trip: two calls into C; one more where the memory node's processor answers, which may come
// after the completion. A wait that spins in vain before it sleeps is another, but not here,
// where nothing takes time.
func TestCommitIsOneRoundTrip(t *testing.T) {
	for _, w := range ways(false) {
		t.Run(w.method.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { oneRoundTrip(t, w) })
		})
	}
}

func oneRoundTrip(t *testing.T, w way) {
	nic, c := watch(t, friendly(), w, nil)
	commitPages(t, c, 60) // asks where the memory is
	crossings := 2
	if w.method == verbs.ByCPU {
		crossings = 3
	}
	for _, pages := range []int{1, 60} {
		before, stats := nic.calls()[0], c.Stats()
		commitPages(t, c, pages)
		got, after := nic.calls()[0].since(before), c.Stats()
		if got.posts != 1 || got.signaled != 1 || got.writes != pages {
			t.Errorf("%d pages: %+v; want one doorbell, one completion", pages, got)
		}
		if n := got.crossings(); n > crossings || n != int(after.Crossings()-stats.Crossings()) {
			t.Errorf("%d pages: %d calls into C, counted as %d; want at most %d", pages, n, after.Crossings()-stats.Crossings(), crossings)
		}
		if n := after.RoundTrips - stats.RoundTrips; n != 1 || after.Commits-stats.Commits != 1 {
			t.Errorf("%d pages: %d round trips, %d commits", pages, n, after.Commits-stats.Commits)
		}
	}
}

// Each queue pair has its part of the pool, and a device may take small writes along.
func TestQueuePairsShareThePool(t *testing.T) {
	const queues = 3
	nic, c := watch(t, friendly(), ways(false)[0], func(cfg *verbs.Config) { cfg.Queues = queues })
	if err := c.Write(t.Context(), make([]byte, 6<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := nic.calls()
	if len(got) != queues {
		t.Fatalf("%d queue pairs, want %d", len(got), queues)
	}
	for i, q := range got {
		if q.writes == 0 {
			t.Errorf("queue pair %d: %+v, want writes", i, q)
		}
		if n := nic.queues[i].inline; n < 64 {
			t.Errorf("queue pair %d takes %d bytes along, want a record of an epoch", i, n)
		}
	}
}

// Where answers use to come fast their end is looked for, without the system; where they do not
// it is slept for.
func TestWaitsAdapt(t *testing.T) {
	for name, c := range map[string]struct {
		delay  time.Duration
		sleeps bool
	}{"fast": {10 * time.Microsecond, false}, "slow": {5 * time.Millisecond, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := model.Config{Delay: func(verbs.Op, int) time.Duration { return c.delay }}
				nic, conn := watch(t, cfg, ways(false)[0], nil)
				for range 20 { // finds out
					commitPages(t, conn, 1)
				}
				before := nic.calls()[0]
				commitPages(t, conn, 1)
				if got := nic.calls()[0].since(before); (got.waits > 0) != c.sleeps || (got.spins > 0) == c.sleeps {
					t.Errorf("answers that take %v: %+v; want that it sleeps: %v", c.delay, got, c.sleeps)
				}
			})
		})
	}
}
