package memnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// cutMeta is a directory that loses power together with a medium at its next update,
// when told to: after the commit or before it.
type cutMeta struct {
	*boltMeta
	power  *media.Crashable
	armed  bool
	commit bool
	watch  func(txn) // nil, or called at the beginning of each update
}

func (m *cutMeta) update(fn func(txn) error) error {
	if watch := m.watch; watch != nil {
		change := fn
		fn = func(t txn) error { watch(t); return change(t) }
	}
	if !m.armed {
		return m.boltMeta.update(fn)
	}
	m.armed = false
	if m.commit {
		if err := m.boltMeta.update(fn); err != nil {
			return err
		}
	}
	m.power.PowerOff()
	return media.ErrPowerLost
}

// A requester is a session that makes each kind of change once, as a request.
type requester struct {
	testing.TB
	pool  *Pool
	meta  *cutMeta
	lease Lease
	view  *View

	file, dir, clone, gone namespace.Inode
	grant                  region.Grant
}

// newRequester makes a pool, and a session that has a share of it, or all.
func newRequester(t testing.TB, path string, whole bool) *requester {
	t.Helper()
	h := header{slots: testSlots, created: 1}
	if err := createMeta(path, h, true); err != nil {
		t.Fatal(err)
	}
	m := media.NewCrashable(testSlots*region.PageSize, -1)
	if err := errors.Join(writeHeader(m, h), m.Flush()); err != nil {
		t.Fatal(err)
	}
	r := &requester{TB: t}
	r.boot(path, m)
	share := namespace.Ino(namespace.Root)
	if made := mustShare(t, r.pool, "s", 0); !whole {
		share = made
	}
	r.lease = mustLease(t, r.pool, share)
	r.attach()
	return r
}

// boot opens the pool as a memory node does.
func (r *requester) boot(path string, m *media.Crashable) {
	r.Helper()
	db, err := openMeta(path, false, true)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { db.close() })
	r.meta = &cutMeta{boltMeta: db, power: m}
	now := func() time.Time { return time.Unix(1, 0) }
	if r.pool, err = assemble(r.meta, m, Options{KeepOrphans: true, Now: now}); err != nil {
		r.Fatal(err)
	}
}

// attach gives the session its view.
func (r *requester) attach() {
	r.Helper()
	r.view = r.pool.View(r.lease.Share)
	if _, err := r.view.Fence(context.Background()); err != nil {
		r.Fatal(err)
	}
}

// request is the context of request id.
func (r *requester) request(id uint64) context.Context {
	return WithRequest(context.Background(), Request{ID: id, Generation: r.lease.Generation, Digest: [16]byte{byte(id), byte(id >> 8)}})
}

// A change makes one change, and returns what it was answered.
type change struct {
	name string
	do   func(ctx context.Context) (answer any, err error)
}

// changes are all that a session can ask for. They build on each other, and fail when
// they are made twice.
func (r *requester) changes() []change {
	const root = namespace.Root
	renamed := func(lost *namespace.Inode, err error) (any, error) {
		if lost == nil {
			return nil, err
		}
		return *lost, err
	}
	return []change{
		{"create", func(ctx context.Context) (_ any, err error) {
			r.file, err = r.view.Create(ctx, root, "f", fileInode())
			return r.file, err
		}},
		{"create a directory", func(ctx context.Context) (_ any, err error) {
			r.dir, err = r.view.Create(ctx, root, "d", dirInode())
			return r.dir, err
		}},
		{"create a link", func(ctx context.Context) (any, error) {
			return r.view.Create(ctx, r.dir.Ino, "l", namespace.Inode{Mode: 0o120777, Target: "somewhere"})
		}},
		{"link", func(ctx context.Context) (any, error) { return r.view.Link(ctx, r.file.Ino, r.dir.Ino, "g") }},
		{"rename", func(ctx context.Context) (any, error) { return renamed(r.view.Rename(ctx, root, "f", root, "h", 0)) }},
		{"rename over another name", func(ctx context.Context) (any, error) {
			return renamed(r.view.Rename(ctx, r.dir.Ino, "l", r.dir.Ino, "g", 0))
		}},
		{"exchange", func(ctx context.Context) (any, error) {
			return renamed(r.view.Rename(ctx, root, "h", r.dir.Ino, "g", namespace.RenameExchange))
		}},
		{"unlink", func(ctx context.Context) (_ any, err error) {
			r.gone, err = r.view.Unlink(ctx, root, "h")
			return r.gone, err
		}},
		{"reap", func(ctx context.Context) (any, error) { return r.view.Reap(ctx, r.gone.Ino) }},
		{"update", func(ctx context.Context) (any, error) {
			return r.view.Update(ctx, r.file.Ino, func(n *namespace.Inode) { n.UID++ })
		}},
		{"update the root", func(ctx context.Context) (any, error) {
			return r.view.Update(ctx, root, func(n *namespace.Inode) { n.GID++ })
		}},
		{"set an attribute", func(ctx context.Context) (any, error) {
			return nil, r.view.SetXattr(ctx, r.file.Ino, "user.x", []byte("1"), namespace.XattrCreate)
		}},
		{"remove an attribute", func(ctx context.Context) (any, error) {
			return nil, r.view.RemoveXattr(ctx, r.file.Ino, "user.x")
		}},
		{"first grant", func(ctx context.Context) (_ any, err error) {
			r.grant, err = r.view.Grant(ctx, region.ID(r.file.Ino), 40, 40)
			return r.grant, err
		}},
		{"grant", func(ctx context.Context) (any, error) { return r.view.Grant(ctx, region.ID(r.file.Ino), 20, 30) }},
		{"return", func(ctx context.Context) (any, error) {
			return nil, r.view.Return(ctx, region.ID(r.file.Ino), []region.Run{{Start: r.grant.Runs[0].End() - 5, N: 5}})
		}},
		{"save a checkpoint", func(ctx context.Context) (any, error) {
			return nil, r.view.SaveCheckpoint(ctx, region.ID(r.file.Ino), region.Checkpoint{Name: "c"})
		}},
		{"drop a checkpoint", func(ctx context.Context) (any, error) {
			return nil, r.view.DropCheckpoint(ctx, region.ID(r.file.Ino), "c")
		}},
		{"clone", func(ctx context.Context) (_ any, err error) {
			tree := region.Tree{Root: r.grant.Super + 10, Height: 1}
			r.clone, err = r.view.Clone(ctx, region.ID(r.file.Ino), root, "c", fileInode(), region.Seed{Tree: tree})
			return r.clone, err
		}},
		{"unlink the last name", func(ctx context.Context) (any, error) { return r.view.Unlink(ctx, r.dir.Ino, "g") }},
		{"reap with an heir", func(ctx context.Context) (any, error) {
			heir, err := r.view.Reap(ctx, r.file.Ino)
			if err == nil && heir == 0 {
				err = errors.New("no heir")
			}
			return heir, err
		}},
		{"rmdir", func(ctx context.Context) (any, error) { return nil, r.view.Rmdir(ctx, root, "d") }},
	}
}

// play makes all changes. Where it is told to, the power goes at the change number cut,
// after or before its transaction, and it is asked for again after a restart. It returns
// all answers, and what is in the pool then.
func (r *requester) play(path string, cut int, commit bool) (answers []string, end string) {
	r.Helper()
	for i, c := range r.changes() {
		ctx := r.request(uint64(i + 1))
		if i == cut {
			r.meta.armed, r.meta.commit = true, commit
			if _, err := c.do(ctx); !errors.Is(err, media.ErrPowerLost) {
				r.Fatalf("%s: %v, want %v", c.name, err, media.ErrPowerLost)
			}
			r.meta.close()
			r.boot(path, r.meta.power.Restart(rand.New(rand.NewPCG(*seed, uint64(cut))), -1))
			r.attach()
		}
		answer, err := c.do(ctx)
		if err != nil {
			r.Fatalf("%s, cut at %d, committed %v: %v", c.name, cut, commit, err)
		}
		answers = append(answers, fmt.Sprintf("%s: %+v", c.name, answer))
	}
	r.pool.mu.Lock()
	end = fmt.Sprintf("%d slots free\n", r.pool.free.slots)
	r.pool.mu.Unlock()
	for _, line := range strings.Split(dump(r.TB, r.pool), "\n") {
		if !strings.HasPrefix(line, bucketPool) { // the generation
			end += line + "\n"
		}
	}
	wantSound(r.TB, r.pool)
	return answers, end
}

// The power goes at each kind of change, after or before its transaction. The change is
// asked for again after the restart: it is made once, and the answer is the one that
// there would have been.
func TestRequestsPowerCuts(t *testing.T) {
	for _, whole := range []bool{false, true} {
		path := fmt.Sprintf("%s/%v.db", t.TempDir(), whole)
		r := newRequester(t, path, whole)
		answers, end := r.play(path, -1, false)
		for cut := range answers {
			for _, commit := range []bool{true, false} {
				path := fmt.Sprintf("%s/%v%d%v.db", t.TempDir(), whole, cut, commit)
				r := newRequester(t, path, whole)
				gotAnswers, gotEnd := r.play(path, cut, commit)
				if !slices.Equal(gotAnswers, answers) {
					t.Errorf("cut at %s, committed %v: got\n%s\nwant\n%s", answers[cut], commit, strings.Join(gotAnswers, "\n"), strings.Join(answers, "\n"))
				}
				if gotEnd != end {
					t.Errorf("cut at %s, committed %v: there is\n%s\nwant\n%s", answers[cut], commit, gotEnd, end)
				}
			}
		}
	}
}

// newSharer returns a session in a pool of its own.
func newSharer(t *testing.T) *requester {
	t.Helper()
	return newRequester(t, t.TempDir()+"/meta.db", false)
}

func (r *requester) recorded() (ids []uint64, bytes int) {
	r.Helper()
	err := r.pool.meta.view(func(t txn) error {
		long := t.each(bucketAnswers, nil, func(_, body []byte) error {
			bytes += len(body)
			return nil
		})
		return errors.Join(long, t.each(bucketRequests, nil, func(_, body []byte) error {
			rec, err := decodeRequest(body)
			ids, bytes = append(ids, rec.ID), bytes+len(body)
			return err
		}))
	})
	if err != nil {
		r.Fatal(err)
	}
	return ids, bytes
}

// A number stands for one request, of one session.
func TestRequestsAreToldApart(t *testing.T) {
	r := newSharer(t)
	made, err := r.view.Create(r.request(1), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	other := requestOf(r.request(1))
	other.Digest[15]++
	_, err = r.view.Create(WithRequest(t.Context(), other), namespace.Root, "g", fileInode())
	wantErr(t, "another request of the number", err, ErrRequest)
	other = requestOf(r.request(1))
	other.Generation--
	if _, err := r.view.Create(WithRequest(t.Context(), other), namespace.Root, "g", fileInode()); err != nil {
		t.Errorf("a request of another session: %v", err)
	}
	if _, err := r.view.Create(r.request(2), namespace.Root, "h", fileInode()); err != nil {
		t.Errorf("another number: %v", err)
	}
	_, err = r.view.Create(t.Context(), namespace.Root, "f", fileInode())
	wantErr(t, "no request", err, namespace.ErrExist)
	// The one of the other session took the place of ours.
	_, err = r.view.Create(r.request(1), namespace.Root, "f", fileInode())
	wantErr(t, "a request that was replaced", err, namespace.ErrExist)
	if n, err := r.view.Lookup(t.Context(), namespace.Root, "f"); err != nil || n != made {
		t.Errorf("got %+v, %v, want %+v", n, err, made)
	}
}

// What failed, or changed nothing, is made anew.
func TestRequestsThatFailed(t *testing.T) {
	r := newSharer(t)
	_, err := r.view.Unlink(r.request(1), namespace.Root, "f")
	wantErr(t, "unlink of nothing", err, namespace.ErrNotExist)
	made, err := r.view.Create(r.request(2), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.view.Update(r.request(3), made.Ino, func(*namespace.Inode) {}); err != nil {
		t.Fatal(err)
	}
	if ids, _ := r.recorded(); !slices.Equal(ids, []uint64{2}) {
		t.Errorf("recorded are %v, want 2", ids)
	}
	if _, err := r.view.Unlink(r.request(1), namespace.Root, "f"); err != nil {
		t.Errorf("unlink that failed before: %v", err)
	}
}

// Slots that a repeated Return gave back before are not taken from who has them by then.
func TestRequestsReturnOnce(t *testing.T) {
	r := newSharer(t)
	f, err := r.view.Create(t.Context(), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	id := region.ID(f.Ino)
	g, err := r.view.Grant(t.Context(), id, testSlots/2, testSlots/2)
	if err != nil {
		t.Fatal(err)
	}
	returned := []region.Run{{Start: g.Runs[0].End() - 4, N: 4}}
	if err := r.view.Return(r.request(1), id, returned); err != nil {
		t.Fatal(err)
	}
	if g, err = r.view.Grant(r.request(2), id, 4, 4); err != nil || !slices.Equal(g.Runs, returned) {
		t.Fatalf("got %+v, %v, want %v", g, err, returned)
	}
	if err := r.view.Return(r.request(1), id, returned); err != nil {
		t.Error(err)
	}
	loc, err := r.view.Locate(t.Context(), id)
	if err != nil || len(loc.Extents) != 1 || loc.Extents[0].N != testSlots/2 {
		t.Errorf("got %+v, %v", loc, err)
	}
}

// A request that was done by another call since it was looked for takes no slots.
func TestRequestsDoneMeanwhile(t *testing.T) {
	r := newSharer(t)
	f, err := r.view.Create(t.Context(), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	id := region.ID(f.Ino)
	want := region.Grant{Super: 7, Runs: []region.Run{{Start: 9, N: 4}}}
	for _, c := range []struct {
		name string
		was  result
		do   func(ctx context.Context) (any, error)
		want any
	}{
		{"grant", result{grant: &want}, func(ctx context.Context) (any, error) { return r.view.Grant(ctx, id, 4, 4) }, want},
		{"clone", result{inode: &f}, func(ctx context.Context) (any, error) {
			return r.view.Clone(ctx, id, namespace.Root, "c", fileInode(), region.Seed{})
		}, f},
	} {
		ctx, free := r.request(1), r.pool.free.slots
		r.meta.watch = func(tx txn) {
			if err := tx.of(r.lease.Share).remember(requestOf(ctx), c.was); err != nil {
				t.Error(err)
			}
		}
		got, err := c.do(ctx)
		r.meta.watch = nil
		if fmt.Sprint(got) != fmt.Sprint(c.want) || err != nil {
			t.Errorf("%s: got %v, %v, want %v", c.name, got, err, c.want)
		}
		if r.pool.free.slots != free {
			t.Errorf("%s: %d slots are free, want %d", c.name, r.pool.free.slots, free)
		}
	}
	wantSound(t, r.pool)
}

// Of a session Remembered requests are known; an older one is refused, not made again.
// None counts as a name of the share.
func TestRequestsAreBounded(t *testing.T) {
	r := newSharer(t)
	f, err := r.view.Create(r.request(1), namespace.Root, "f", fileInode())
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.pool.Share(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.pool.SetNamesQuota(t.Context(), "s", s.Names); err != nil {
		t.Fatal(err)
	}
	touch := func(id uint64) error {
		_, err := r.view.Update(r.request(id), f.Ino, func(n *namespace.Inode) { n.Atime++ })
		return err
	}
	for id := uint64(2); id <= 2*Remembered+1; id++ {
		if err := touch(id); err != nil {
			t.Fatalf("request %d: %v", id, err)
		}
	}
	ids, _ := r.recorded()
	if len(ids) != Remembered || slices.Min(ids) != Remembered+2 {
		t.Errorf("%d requests are recorded: %v", len(ids), ids)
	}
	wantErr(t, "a request that is forgotten", touch(Remembered+1), ErrRequest)
	if err := touch(Remembered + 2); err != nil {
		t.Errorf("the oldest that is known: %v", err)
	}
	if n, err := r.view.Inode(t.Context(), f.Ino); err != nil || n.Atime != 2*Remembered {
		t.Errorf("got %+v, %v, want %d changes", n, err, 2*Remembered)
	}
	wantSound(t, r.pool)
}

// The requests of a session are forgotten with its lease, however that ends.
func TestRequestsEndWithTheLease(t *testing.T) {
	r := newSharer(t)
	ctx := t.Context()
	other := mustShare(t, r.pool, "t", 0)
	lease := mustLease(t, r.pool, other)
	theirs := WithRequest(ctx, Request{ID: 7, Generation: lease.Generation})
	if _, err := r.pool.View(other).Create(theirs, namespace.Root, "f", fileInode()); err != nil {
		t.Fatal(err)
	}
	create := func(id uint64) {
		t.Helper()
		if _, err := r.view.Create(r.request(id), namespace.Root, fmt.Sprint(id), fileInode()); err != nil {
			t.Fatal(err)
		}
	}
	create(1)
	create(2)
	if err := r.pool.EndLease(ctx, r.lease.Share, [16]byte{99}); err != nil {
		t.Fatal(err)
	}
	if ids, _ := r.recorded(); len(ids) != 3 {
		t.Errorf("after the end of another session %v are recorded", ids)
	}
	if err := r.pool.EndLease(ctx, r.lease.Share, r.lease.Session); err != nil {
		t.Fatal(err)
	}
	if ids, _ := r.recorded(); !slices.Equal(ids, []uint64{7}) {
		t.Errorf("after the end of the lease %v are recorded, want 7", ids)
	}
	wantSound(t, r.pool)
	// Nobody wrote what is left by another program.
	create(3)
	if problems(t, r.pool) == nil {
		t.Error("a request of nobody is no problem")
	}
	mustLease(t, r.pool, r.lease.Share)
	if ids, _ := r.recorded(); !slices.Equal(ids, []uint64{7}) {
		t.Errorf("after a grant %v are recorded, want 7", ids)
	}
	wantSound(t, r.pool)
	r.remember(9, scattered(longRecord))
	p, err := assemble(r.meta.boltMeta, r.meta.power, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.pool = p; p.Generation() == 0 {
		t.Error("not opened")
	}
	if ids, bytes := r.recorded(); len(ids) != 0 || bytes != 0 {
		t.Errorf("without a memory node %v are recorded, in %d bytes", ids, bytes)
	}
}

// A pool of before requests were recorded gets their bucket, and can be looked at
// without it.
func TestRequestsInAnOldPool(t *testing.T) {
	dir := newPoolDir(t)
	p := openPool(t, dir)
	err := p.meta.(*boltMeta).db.Update(func(tx *bolt.Tx) error {
		return errors.Join(tx.DeleteBucket([]byte(bucketRequests)), tx.DeleteBucket([]byte(bucketAnswers)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p, err = Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	wantSound(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = openPool(t, dir)
	ctx := WithRequest(t.Context(), Request{ID: 1, Generation: 1})
	for range 2 {
		if _, err := p.View(namespace.Root).Create(ctx, namespace.Root, "f", fileInode()); err != nil {
			t.Error(err)
		}
	}
}
