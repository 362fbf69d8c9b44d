package memnode

import (
	"slices"
	"testing"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// scattered returns n runs of a slot each.
func scattered(n int) []region.Run {
	runs := make([]region.Run, n)
	for i := range runs {
		runs[i] = region.Run{Start: region.Slot(2*i + 1), N: 1}
	}
	return runs
}

// remember records a request as if it had been granted runs.
func (r *requester) remember(id uint64, runs []region.Run) {
	r.Helper()
	g := region.Grant{Super: 1, Runs: runs}
	err := r.meta.update(func(t txn) error {
		return t.of(r.lease.Share).remember(requestOf(r.request(id)), result{grant: &g})
	})
	if err != nil {
		r.Fatal(err)
	}
}

// repeat asks again for what a request was granted.
func (r *requester) repeat(id uint64) (g region.Grant, done bool, err error) {
	err = r.meta.view(func(t txn) error {
		done, err = t.of(r.lease.Share).repeated(requestOf(r.request(id)), result{grant: &g})
		return err
	})
	return g, done, err
}

// longBytes is what the long answers take.
func (r *requester) longBytes() (bytes int) {
	r.Helper()
	err := r.meta.view(func(t txn) error {
		return t.each(bucketAnswers, nil, func(_, body []byte) error {
			bytes += len(body)
			return nil
		})
	})
	if err != nil {
		r.Fatal(err)
	}
	return bytes
}

// Long answers take a bounded space. The newest are known, the oldest refused.
func TestLongRequestsAreBounded(t *testing.T) {
	r := newSharer(t)
	runs := scattered(maxLongSize / 16 / 4)
	r.remember(1, runs[:1])
	for id := uint64(2); id < 20; id++ {
		r.remember(id, runs)
	}
	if ids, _ := r.recorded(); len(ids) != 19 || r.longBytes() > maxLongSize || r.longBytes() < maxLongSize/2 {
		t.Errorf("%d requests are recorded, with long answers of %d bytes", len(ids), r.longBytes())
	}
	for _, id := range []uint64{1, 18, 19} {
		want := runs
		if id == 1 {
			want = runs[:1]
		}
		if g, done, err := r.repeat(id); !done || err != nil || !slices.Equal(g.Runs, want) {
			t.Errorf("request %d: %v, %v, %d runs", id, done, err, len(g.Runs))
		}
	}
	_, _, err := r.repeat(2)
	wantErr(t, "a long one that is forgotten", err, ErrRequest)
	r.remember(20, slices.Concat(runs, runs, runs, runs))
	_, _, err = r.repeat(20)
	wantErr(t, "one that is too long", err, ErrRequest)
	wantSound(t, r.pool)
}

// A long answer goes with its request, and leaves the others alone.
func TestLongRequestsMakeRoom(t *testing.T) {
	r := newSharer(t)
	runs := scattered(maxLongSize / 16 / 3)
	r.remember(5, runs)
	for id := uint64(Remembered + 6); id < 9*Remembered; id += Remembered {
		r.remember(id, runs)
	}
	if g, done, err := r.repeat(5); !done || err != nil || !slices.Equal(g.Runs, runs) {
		t.Errorf("got %v, %v, %d runs", done, err, len(g.Runs))
	}
	r.remember(Remembered+5, runs[:1])
	r.remember(9*Remembered+6, runs[:1])
	if n := r.longBytes(); n != 0 {
		t.Errorf("long answers of %d bytes are kept to nothing", n)
	}
	wantSound(t, r.pool)
	r.remember(7, runs)
	if err := r.pool.EndLease(t.Context(), r.lease.Share, r.lease.Session); err != nil {
		t.Fatal(err)
	}
	if n := r.longBytes(); n != 0 {
		t.Errorf("long answers of %d bytes outlast the lease", n)
	}
	wantSound(t, r.pool)
}

// written returns how many bytes of meta.db a change takes.
func (r *requester) written(change func()) (bytes int64) {
	r.meta.watch = func(t txn) {
		t.tx.OnCommit(func() {
			stats := t.tx.Stats()
			bytes += stats.GetPageAlloc()
		})
	}
	defer func() { r.meta.watch = nil }()
	change()
	return bytes
}

// A long answer, which may stay as long as its session, is not written again with each
// request of the places beside its own.
func TestLongRequestsAreWrittenOnce(t *testing.T) {
	r := newSharer(t)
	f, err := r.view.Create(t.Context(), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	touch := func(id uint64) func() {
		return func() {
			if _, err := r.view.Update(r.request(id), f.Ino, func(n *namespace.Inode) { n.Atime++ }); err != nil {
				t.Error(err)
			}
		}
	}
	r.written(touch(Remembered))
	before := r.written(touch(2 * Remembered))
	const size = 16 * boltPageSize
	for id := uint64(2*Remembered + 1); id < 2*Remembered+4; id++ {
		if n := r.written(func() { r.remember(id, scattered(size/16)) }); n < size {
			t.Errorf("an answer of %d bytes took %d", size, n)
		}
	}
	if after := r.written(touch(3 * Remembered)); after > before+2*boltPageSize {
		t.Errorf("a request beside long answers took %d bytes, %d without them", after, before)
	}
}

// A record that is damaged, or says of a request what cannot be, is told of, and goes with
// the lease.
func TestRequestsDamaged(t *testing.T) {
	r := newSharer(t)
	share := r.lease.Share
	for _, c := range []struct {
		name string
		long bool // of request 2
		rec  requestRecord
	}{
		{"nothing granted", false, requestRecord{}},
		{"an inode", false, requestRecord{kind: answerInode, inode: namespace.Inode{Ino: 9, Mode: 0o100644}}},
		{"no runs", false, requestRecord{kind: answerGrant, grant: region.Grant{Super: 1}}},
		{"slots that no pool has", false, requestRecord{kind: answerGrant, grant: region.Grant{Super: 1, Runs: []region.Run{{Start: 1, N: 1 << 63}}}}},
		{"a long answer to another", true, requestRecord{kind: answerGrant, grant: region.Grant{Super: 1, Runs: scattered(1)}}},
		{"a long answer that is elsewhere", true, requestRecord{kind: answerLong}},
	} {
		asked := requestOf(r.request(1))
		bucket, key := bucketRequests, asked.key(share)
		if c.rec.Request = asked; c.long {
			asked = requestOf(r.request(2))
			bucket, key = bucketAnswers, asked.longKey(share)
			if c.rec.kind == answerLong {
				c.rec.Request = asked
			}
		}
		r.remember(2, scattered(longRecord))
		if err := r.meta.update(func(t txn) error { return t.put(bucket, key, c.rec.encode()) }); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.repeat(asked.ID)
		wantErr(t, c.name, err, ErrCorrupt)
		if err := r.pool.EndLease(t.Context(), share, r.lease.Session); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		wantSound(t, r.pool)
		if r.lease, err = r.pool.GrantLease(t.Context(), r.lease); err != nil {
			t.Fatal(err)
		}
	}
}
