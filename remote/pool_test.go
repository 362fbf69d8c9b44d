package remote_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/remote"
	"github.com/rpmemfs/rpmemfs/volume"
)

var _ volume.Pool = (*remote.Pool)(nil)

func fileInode() namespace.Inode {
	return namespace.Inode{Mode: unix.S_IFREG | 0o640, UID: 7, GID: 8, Atime: 1, Mtime: 2, Ctime: 3}
}

func dirInode() namespace.Inode { return namespace.Inode{Mode: unix.S_IFDIR | 0o755} }

func mustCreate(t testing.TB, p volume.Pool, name string, n namespace.Inode) namespace.Inode {
	t.Helper()
	made, err := p.Create(ctx, namespace.Root, name, n)
	if err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	return made
}

// sentinels are the errors that a caller can act on.
var sentinels = []error{
	namespace.ErrNotExist, namespace.ErrExist, namespace.ErrNotDir, namespace.ErrIsDir, namespace.ErrNotEmpty,
	namespace.ErrNameTooLong, namespace.ErrInvalid, namespace.ErrNoXattr, namespace.ErrTooBig, namespace.ErrTooManyLinks,
	namespace.ErrCrossShare, region.ErrNoSpace, region.ErrCorrupt, region.ErrVersion, rdmacache.ErrFenced,
}

// kinds names the sentinels that err matches.
func kinds(err error) []error {
	if err == nil {
		return []error{nil}
	}
	return slices.DeleteFunc(slices.Clone(sentinels), func(s error) bool { return !errors.Is(err, s) })
}

// A remote pool does what the pool itself does: random calls on one and on its twin
// have the same results, and the same errors.
func TestPoolIsLikeALocalOne(t *testing.T) {
	n := newNode(t, long)
	twinDir := filepath.Join(t.TempDir(), "twin")
	if err := memnode.Create(twinDir, memnode.CreateOptions{SizeBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	twin, err := memnode.Open(twinDir, memnode.Options{KeepOrphans: true})
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	far := n.open(remote.Config{Share: nodepb.WholePool})
	rng := rand.New(rand.NewPCG(*remote.Seed, 1))
	w := walker{rng: rng, inos: []namespace.Ino{namespace.Root, 2, 99}}
	for step := range 1500 {
		name, do := w.step()
		got, gotErr := do(far)
		want, wantErr := do(twin)
		if got != want || !slices.Equal(kinds(gotErr), kinds(wantErr)) {
			t.Fatalf("step %d: %s: got %s, %v; want %s, %v (-seed %d)", step, name, got, gotErr, want, wantErr, *remote.Seed)
		}
		// What is remembered is what is there, to the nanosecond.
		ino := w.ino()
		known, knownErr := far.Inode(ctx, ino)
		stored, storedErr := n.pool.Inode(ctx, ino)
		if known != stored || !slices.Equal(kinds(knownErr), kinds(storedErr)) {
			t.Fatalf("step %d: after %s: inode %d: got %+v, %v; want %+v, %v (-seed %d)", step, name, ino, known, knownErr, stored, storedErr, *remote.Seed)
		}
	}
	var problems []string
	if err := far.Check(ctx, func(p string) { problems = append(problems, p) }); err != nil || problems != nil {
		t.Fatalf("check: %q, %v", problems, err)
	}
}

// A walker makes up calls.
type walker struct {
	rng  *rand.Rand
	inos []namespace.Ino
}

func (w *walker) ino() namespace.Ino { return w.inos[w.rng.IntN(len(w.inos))] }

func (w *walker) name() string {
	names := []string{"a", "b", "c", "d", "e", "\xff\xfe", strings.Repeat("x", 255), strings.Repeat("y", 256), ""}
	return names[min(w.rng.IntN(40), len(names)-1)%len(names)]
}

// A step is a call, and tells its result as text.
type step func(volume.Pool) (string, error)

func (w *walker) inode(n namespace.Inode, err error) (string, error) {
	if err == nil && !slices.Contains(w.inos, n.Ino) {
		w.inos = append(w.inos, n.Ino)
	}
	return fmt.Sprintf("%+v", n), err
}

func (w *walker) step() (string, step) {
	parent, name, ino := w.ino(), w.name(), w.ino()
	other, to := w.ino(), w.name()
	x := w.rng.IntN(100)
	stamp := w.rng.Int64()
	mode := []uint32{unix.S_IFREG, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO}[w.rng.IntN(5)] | uint32(w.rng.IntN(0o1000))
	what := fmt.Sprintf("x=%d parent=%d name=%.8q ino=%d other=%d to=%.8q", x, parent, name, ino, other, to)
	switch {
	case x < 20:
		made := namespace.Inode{Mode: mode, UID: 1, GID: 2, Atime: stamp, Mtime: stamp, Ctime: stamp}
		if mode&unix.S_IFMT == unix.S_IFLNK {
			made.Target = "target"
		}
		return "create " + what, func(p volume.Pool) (string, error) {
			return w.inode(settled(p.Create(ctx, parent, name, made)))
		}
	case x < 27:
		return "lookup " + what, func(p volume.Pool) (string, error) { return w.inode(settled(p.Lookup(ctx, parent, name))) }
	case x < 40:
		return "inode " + what, func(p volume.Pool) (string, error) { return w.inode(settled(p.Inode(ctx, ino))) }
	case x < 45:
		return "link " + what, func(p volume.Pool) (string, error) { return w.inode(settled(p.Link(ctx, ino, parent, name))) }
	case x < 52:
		return "unlink " + what, func(p volume.Pool) (string, error) { return w.inode(settled(p.Unlink(ctx, parent, name))) }
	case x < 56:
		return "rmdir " + what, func(p volume.Pool) (string, error) { return "", p.Rmdir(ctx, parent, name) }
	case x < 63:
		flags := namespace.RenameFlags(w.rng.IntN(4))
		return "rename " + what, func(p volume.Pool) (string, error) {
			lost, err := p.Rename(ctx, parent, name, other, to, flags)
			if lost == nil {
				return "nil", err
			}
			return w.inode(settled(*lost, err))
		}
	case x < 68:
		return "readdir " + what, func(p volume.Pool) (string, error) {
			entries, err := p.ReadDir(ctx, ino)
			return fmt.Sprintf("%+v", entries), err
		}
	case x < 74:
		return "update " + what, func(p volume.Pool) (string, error) {
			return w.inode(settled(p.Update(ctx, ino, func(n *namespace.Inode) { n.UID, n.Atime = uint32(stamp), stamp })))
		}
	case x < 77:
		return "reap " + what, func(p volume.Pool) (string, error) {
			heir, err := p.Reap(ctx, ino)
			return fmt.Sprint(heir), err
		}
	case x < 81:
		value := make([]byte, w.rng.IntN(20))
		if w.rng.IntN(20) == 0 {
			value = make([]byte, namespace.MaxXattrValue+w.rng.IntN(2))
		}
		flags := namespace.XattrFlags(w.rng.IntN(3))
		return "setxattr " + what, func(p volume.Pool) (string, error) {
			return "", p.SetXattr(ctx, ino, name, value, flags)
		}
	case x < 84:
		return "xattr " + what, func(p volume.Pool) (string, error) {
			value, err := p.Xattr(ctx, ino, name)
			return fmt.Sprintf("%x", value), err
		}
	case x < 86:
		return "xattrs " + what, func(p volume.Pool) (string, error) {
			names, err := p.Xattrs(ctx, ino)
			return fmt.Sprintf("%q", names), err
		}
	case x < 88:
		return "removexattr " + what, func(p volume.Pool) (string, error) { return "", p.RemoveXattr(ctx, ino, name) }
	case x < 89:
		return "usage", func(p volume.Pool) (string, error) {
			usage, err := p.Usage(ctx)
			return fmt.Sprintf("%+v", usage), err
		}
	case x < 92:
		need := uint64(w.rng.IntN(300))
		if w.rng.IntN(10) == 0 {
			need = 1 << 40
		}
		return "grant " + what, func(p volume.Pool) (string, error) {
			g, err := p.Grant(ctx, region.ID(ino), need, need+4)
			return fmt.Sprintf("%+v", g), err
		}
	case x < 94:
		return "return " + what, func(p volume.Pool) (string, error) {
			loc, err := p.Locate(ctx, region.ID(ino))
			if err != nil || len(loc.Extents) == 0 {
				return "", err
			}
			last := loc.Extents[len(loc.Extents)-1]
			err = p.Return(ctx, region.ID(ino), []region.Run{{Start: last.End() - 1, N: 1}})
			return fmt.Sprint(err != nil), nil // its sentinel is each package's own
		}
	case x < 96:
		return "locate " + what, func(p volume.Pool) (string, error) {
			loc, err := p.Locate(ctx, region.ID(ino))
			return fmt.Sprintf("%+v", loc), err
		}
	case x < 98:
		cp := region.Checkpoint{Name: name, Epoch: 3, Time: stamp, Size: 5, Mtime: 6}
		return "save checkpoint " + what, func(p volume.Pool) (string, error) {
			return "", p.SaveCheckpoint(ctx, region.ID(ino), cp)
		}
	case x < 99:
		return "drop checkpoint " + what, func(p volume.Pool) (string, error) {
			return "", p.DropCheckpoint(ctx, region.ID(ino), name)
		}
	}
	return "clone " + what, func(p volume.Pool) (string, error) {
		return w.inode(settled(p.Clone(ctx, region.ID(ino), parent, name, fileInode(), region.Seed{Epoch: 4, Size: 9})))
	}
}

// settled is n without what the clock of a pool sets.
func settled(n namespace.Inode, err error) (namespace.Inode, error) {
	n.Atime, n.Mtime, n.Ctime = 0, 0, 0
	return n, err
}

// The lease's number, what the medium is and what it did arrive.
func TestWhatASessionKnows(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{Lease: time.Minute})
	if p.Share() != nodepb.WholePool || p.ID() != n.pool.ID() || p.ReadOnly() || p.Lease() != time.Minute {
		t.Errorf("share %q, pool %s, read-only %t, lease %v", p.Share(), p.ID(), p.ReadOnly(), p.Lease())
	}
	if got, want := p.Conn().Medium(), n.pool.Medium(); got != want {
		t.Errorf("medium %+v, want %+v", got, want)
	}
	f := mustCreate(t, p, "f", fileInode())
	if _, err := p.Grant(ctx, region.ID(f.Ino), 100, 100); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Traffic(), n.pool.Traffic(); got != want || got.BytesWritten == 0 {
		t.Errorf("traffic %+v, want %+v", got, want)
	}
	first := p.Generation()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "after close", p.Err(), remote.ErrClosed)
	_, err := p.Lookup(ctx, namespace.Root, "f")
	wantErr(t, "lookup after close", err, remote.ErrClosed)
	wantErr(t, "second close", p.Close(), remote.ErrClosed)
	if got := n.open(remote.Config{}).Generation(); got <= first {
		t.Errorf("generation %d after %d", got, first)
	}
}

// A call that was cancelled before it began does nothing.
func TestCancelled(t *testing.T) {
	p := newNode(t, long).open(remote.Config{})
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, err := p.Create(done, namespace.Root, "f", fileInode())
	wantErr(t, "create", err, done.Err())
	_, err = p.Inode(done, namespace.Root)
	wantErr(t, "inode", err, done.Err())
	_, err = p.ReadDir(done, namespace.Root)
	wantErr(t, "readdir", err, done.Err())
	_, err = p.Lookup(ctx, namespace.Root, "f")
	wantErr(t, "lookup", err, namespace.ErrNotExist)
}

// An Update meets other changes of the inode, and repeats itself; a file that went
// meanwhile is an error.
func TestUpdateMeetsOthers(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{})
	f := mustCreate(t, p, "f", fileInode())
	looks := 0
	got, err := p.Update(ctx, f.Ino, func(x *namespace.Inode) {
		if looks++; looks == 1 {
			if _, err := n.pool.Update(ctx, f.Ino, func(x *namespace.Inode) { x.GID = 99 }); err != nil {
				t.Error(err)
			}
		}
		x.UID++
	})
	if err != nil || looks != 2 || got.UID != f.UID+1 || got.GID != 99 {
		t.Errorf("after %d looks got %+v, %v", looks, got, err)
	}
	looks = 0
	_, err = p.Update(ctx, f.Ino, func(x *namespace.Inode) {
		if looks++; looks == 1 {
			_, unlinkErr := n.pool.Unlink(ctx, namespace.Root, "f")
			_, reapErr := n.pool.Reap(ctx, f.Ino)
			if err := errors.Join(unlinkErr, reapErr); err != nil {
				t.Error(err)
			}
		}
		x.UID++
	})
	wantErr(t, "update of a file that went", err, namespace.ErrNotExist)

	var wg sync.WaitGroup
	g := mustCreate(t, p, "g", fileInode())
	for range 8 {
		wg.Go(func() {
			for range 25 {
				if _, err := p.Update(ctx, g.Ino, func(x *namespace.Inode) { x.UID++ }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := p.Inode(ctx, g.Ino); err != nil || got.UID != g.UID+200 {
		t.Errorf("after 200 updates of %d: got %d, %v", g.UID, got.UID, err)
	}
}

// A directory that takes several messages arrives whole, in order.
func TestLongDirectory(t *testing.T) {
	n := newNode(t, long)
	p := n.open(remote.Config{})
	for i := range 1500 {
		if _, err := n.pool.Create(ctx, namespace.Root, fmt.Sprintf("%0200d", i), fileInode()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := p.ReadDir(ctx, namespace.Root)
	if err != nil {
		t.Fatal(err)
	}
	want, err := n.pool.ReadDir(ctx, namespace.Root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// Two clients of two shares live side by side; a session that may not write does
// not.
func TestShares(t *testing.T) {
	n := newNode(t, long)
	a := n.open(remote.Config{Share: "a", Create: true})
	b := n.open(remote.Config{Share: "b", Create: true})
	f := mustCreate(t, a, "f", fileInode())
	_, err := b.Inode(ctx, f.Ino)
	wantErr(t, "an inode of another share", err, namespace.ErrNotExist)

	_, err = remote.Dial(ctx, remote.Config{Address: n.control, Share: "a"})
	wantErr(t, "a share that is leased", err, remote.ErrLeased)
	_, err = remote.Dial(ctx, remote.Config{Address: n.control, Share: "c"})
	wantErr(t, "a share that is not there", err, namespace.ErrNotExist)

	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	r := n.open(remote.Config{Share: "a", ReadOnly: true})
	if _, err := r.Inode(ctx, f.Ino); err != nil {
		t.Error(err)
	}
	_, err = r.Create(ctx, namespace.Root, "g", fileInode())
	wantErr(t, "a change in a session that is read-only", err, remote.ErrReadOnly)
}
