package control

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// seed is the same in every package, so that all take it at once.
var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 is a fixed one")

// fakeVolume is a directory of files in memory. A file's content is a list of
// epochs; clones copy it.
type fakeVolume struct {
	mu    sync.Mutex
	next  namespace.Ino
	files map[namespace.Ino]*fakeFile
	names map[string]namespace.Ino // of the root directory
	err   error                    // what every call returns, if set
	block chan struct{}            // CommitAll waits for it, or for its context
	enter chan struct{}            // CommitAll says that it waits
	check volume.CheckReport
}

type fakeFile struct {
	mode        uint32
	data        []byte
	epoch       epoch.ID
	dirty       int
	handles     int
	checkpoints []region.Checkpoint
	poisoned    string
}

func newFake() *fakeVolume {
	return &fakeVolume{
		next:  10,
		files: map[namespace.Ino]*fakeFile{namespace.Root: {mode: unix.S_IFDIR | 0o755}},
		names: make(map[string]namespace.Ino),
	}
}

// add makes a file in the root directory.
func (v *fakeVolume) add(name string, data []byte) namespace.Ino {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.next++
	v.files[v.next] = &fakeFile{mode: unix.S_IFREG | 0o644, data: data, epoch: 1}
	v.names[name] = v.next
	return v.next
}

// file returns a file with mu held, which the caller lets go in any case.
func (v *fakeVolume) file(ino namespace.Ino) (*fakeFile, error) {
	if v.err != nil {
		return nil, v.err
	}
	f := v.files[ino]
	if f == nil {
		return nil, namespace.ErrNotExist
	}
	return f, nil
}

func (v *fakeVolume) Stat(_ context.Context, ino namespace.Ino) (volume.FileStat, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return volume.FileStat{}, err
	}
	size := uint64(len(f.data))
	return volume.FileStat{
		Ino: ino, Mode: f.mode, Nlink: 1, Size: size, Pages: (size + 4095) / 4096, Epoch: f.epoch,
		DirtyMapped: f.dirty, Mtime: 1e18, Checkpoints: len(f.checkpoints), OnClose: "rollback",
		Handles: f.handles, Poisoned: f.poisoned, GrantedSlots: 16, FreeSlots: 3,
	}, nil
}

func (v *fakeVolume) Inode(_ context.Context, ino namespace.Ino) (namespace.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.files[ino]
	if f == nil {
		return namespace.Inode{}, namespace.ErrNotExist
	}
	return namespace.Inode{Ino: ino, Mode: f.mode, UID: 7, GID: 8, Nlink: 1, Mtime: 1e18}, nil
}

func (v *fakeVolume) ReadDir(_ context.Context, ino namespace.Ino) ([]namespace.Entry, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.files[ino]
	if f == nil {
		return nil, namespace.ErrNotExist
	}
	if f.mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, namespace.ErrNotDir
	}
	var entries []namespace.Entry
	for name, child := range v.names {
		e := namespace.Entry{Name: name, Ino: child, Mode: unix.S_IFREG}
		if v.files[child] != nil {
			e.Mode = v.files[child].mode & unix.S_IFMT
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (v *fakeVolume) Commit(_ context.Context, ino namespace.Ino) (epoch.ID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return 0, err
	}
	if f.dirty > 0 {
		f.dirty = 0
		f.epoch++
	}
	return f.epoch, nil
}

func (v *fakeVolume) CommitAll(ctx context.Context) (int, error) {
	if v.block != nil {
		v.enter <- struct{}{}
		select {
		case <-v.block:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, f := range v.files {
		if f.dirty > 0 {
			f.dirty = 0
			n++
		}
	}
	return n, v.err
}

func (v *fakeVolume) Checkpoint(ctx context.Context, ino namespace.Ino, name string) (region.Checkpoint, error) {
	if _, err := v.Commit(ctx, ino); err != nil {
		return region.Checkpoint{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.files[ino]
	if f.find(name) >= 0 {
		return region.Checkpoint{}, fmt.Errorf("checkpoint %q: %w", name, namespace.ErrExist)
	}
	cp := region.Checkpoint{Name: name, Epoch: f.epoch, Time: 5, Size: uint64(len(f.data)), Mtime: 6}
	f.checkpoints = append(f.checkpoints, cp)
	return cp, nil
}

func (f *fakeFile) find(name string) int {
	return slices.IndexFunc(f.checkpoints, func(cp region.Checkpoint) bool {
		return cp.Name == name || strconv.FormatUint(uint64(cp.Epoch), 10) == name
	})
}

func (v *fakeVolume) Checkpoints(_ context.Context, ino namespace.Ino) ([]region.Checkpoint, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return nil, err
	}
	return slices.Clone(f.checkpoints), nil
}

func (v *fakeVolume) DropCheckpoint(_ context.Context, ino namespace.Ino, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return err
	}
	i := f.find(name)
	if i < 0 {
		return namespace.ErrNotExist
	}
	f.checkpoints = slices.Delete(f.checkpoints, i, i+1)
	return nil
}

func (v *fakeVolume) Rollback(_ context.Context, ino namespace.Ino) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return 0, err
	}
	pages := f.dirty
	f.dirty = 0
	return pages, nil
}

func (v *fakeVolume) Restore(_ context.Context, ino namespace.Ino, name string, force bool) (epoch.ID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, err := v.file(ino)
	if err != nil {
		return 0, err
	}
	if f.find(name) < 0 {
		return 0, namespace.ErrNotExist
	}
	if f.handles > 0 && !force {
		return 0, volume.ErrBusy
	}
	f.epoch++
	return f.epoch, nil
}

func (v *fakeVolume) Clone(_ context.Context, src namespace.Ino, checkpoint string, parent namespace.Ino, name string) (namespace.Inode, error) {
	v.mu.Lock()
	f, err := v.file(src)
	if err == nil && checkpoint != "" && f.find(checkpoint) < 0 {
		err = namespace.ErrNotExist
	}
	if err == nil && v.names[name] != 0 {
		err = namespace.ErrExist
	}
	if err == nil && v.files[parent] == nil {
		err = namespace.ErrNotExist
	}
	v.mu.Unlock()
	if err != nil {
		return namespace.Inode{}, err
	}
	return namespace.Inode{Ino: v.add(name, f.data)}, nil
}

func (v *fakeVolume) Check(ctx context.Context, ino namespace.Ino, progress func(done, total uint64)) (volume.CheckReport, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return volume.CheckReport{}, v.err
	}
	if ino != 0 && v.files[ino] == nil {
		return volume.CheckReport{}, namespace.ErrNotExist
	}
	for i := range uint64(1000) {
		progress(i, 1000)
	}
	return v.check, ctx.Err()
}

func (v *fakeVolume) Interval(context.Context, namespace.Ino) time.Duration { return time.Second }

func (v *fakeVolume) Status(context.Context) (volume.Status, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return volume.Status{
		Medium: rdmacache.Medium{Kind: "tmpfs", Volatile: true}, Generation: 3,
		Usage:   namespace.Usage{Slots: 100, FreeSlots: 40, Inodes: uint64(len(v.files))},
		OnClose: namespace.OnCloseCommit, OpenFiles: 2, OpenHandles: 1, DirtyPages: 9,
		Counters: volume.Counters{Commits: 11, Rollbacks: 2, RolledBackPages: 4, FailedCloses: 1, PagesCommitted: 21, PagesUnchanged: 5},
		Traffic:  rdmacache.Traffic{BytesWritten: 7 << 12, Flushes: 13},
	}, v.err
}

func (v *fakeVolume) Open(context.Context, namespace.Ino) (*volume.Handle, error) {
	return nil, volume.ErrNotSupported // a Server under test has its open replaced
}

func (v *fakeVolume) Remove(_ context.Context, _ namespace.Ino, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.names[name] == 0 {
		return namespace.ErrNotExist
	}
	delete(v.names, name)
	return nil
}

// fakeImage reads a file of a fakeVolume. Pages of zeros are holes.
type fakeImage struct {
	data     []byte
	released *int
}

func (v *fakeVolume) open(released *int) func(context.Context, namespace.Ino) (image, error) {
	return func(_ context.Context, ino namespace.Ino) (image, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		f, err := v.file(ino)
		if err != nil {
			return nil, err
		}
		return &fakeImage{f.data, released}, nil
	}
}

func (i *fakeImage) Read(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, i.data[off:]), nil
}

func (i *fakeImage) Seek(_ context.Context, off int64, hole bool) (int64, error) {
	for ; off < int64(len(i.data)); off = off/4096*4096 + 4096 {
		page := i.data[off/4096*4096 : min(int64(len(i.data)), off/4096*4096+4096)]
		isHole := !slices.ContainsFunc(page, func(b byte) bool { return b != 0 })
		if isHole == hole {
			return off, nil
		}
	}
	if hole {
		return int64(len(i.data)), nil
	}
	return 0, rdmacache.ErrNoData
}

func (i *fakeImage) Release(context.Context) { *i.released++ }

// serve runs a server of vol until the test ends and returns a client.
func serve(t testing.TB, s *Server) *Client {
	t.Helper()
	l, dial, err := Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(dial)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func newTestServer(v *fakeVolume) *Server {
	return NewServer(v, Info{
		Version: "v1", Pool: "/pool", Mountpoint: "/mnt", Pid: 42,
		OwnerUID: uint32(unix.Getuid()), Started: time.Unix(1, 0),
	}, nil)
}
