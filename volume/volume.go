// Package volume is a mounted pool: the directory, the regions that are open, and
// the contract that programs get at close, commit, rollback and unmount. Packages
// fs (the FUSE mount) and control (the tool's socket) are thin over it.
//
// A regular file is a region. It is opened at its first use (asking for its size
// is one) and stays open for a while after the last, so that listing a directory
// twice costs one round of reads.
//
// What programs stored since the last commit is the file's open epoch. It commits
// as a whole at Handle.Sync. When the last handle is released, what write(2),
// truncate and fallocate did commits, and stores through a mapping that nobody
// committed are rolled back, or commit too where the file or the mount says so.
// A crash loses open epochs and nothing else. Changes of names and attributes are
// atomic and durable when the call returns.
package volume

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

var (
	// ErrBusy reports a file that programs have open.
	ErrBusy = errors.New("volume: file is open")
	// ErrReadOnly reports a change to a volume that is mounted read-only.
	ErrReadOnly = errors.New("volume: mounted read-only")
	// ErrClosed reports the use of a volume after Close.
	ErrClosed = errors.New("volume: closed")
	// ErrNotRegular reports an operation that only regular files have.
	ErrNotRegular = errors.New("volume: not a regular file")
	// ErrNoData is what Handle.Seek returns past the last data.
	ErrNoData = rdmacache.ErrNoData
	// ErrNotSupported reports what this file system does not offer.
	ErrNotSupported = errors.New("volume: not supported")
)

// A Pool is the memory node's directory, and its space.
type Pool interface {
	namespace.Directory
	region.Space
	// Generation is raised durably each time the pool is opened for writing.
	Generation() uint64
	// Traffic counts what the medium did since the pool was opened.
	Traffic() rdmacache.Traffic
	// Locate returns what the pool knows of a region.
	Locate(ctx context.Context, id region.ID) (region.Location, error)
	// SaveCheckpoint keeps cp durably; namespace.ErrExist if its name is taken.
	SaveCheckpoint(ctx context.Context, id region.ID, cp region.Checkpoint) error
	// DropCheckpoint forgets a checkpoint; namespace.ErrNotExist.
	DropCheckpoint(ctx context.Context, id region.ID, name string) error
	// Clone adds a file of n's attributes whose region starts as seed, which
	// gets its ID here, in src's family.
	Clone(ctx context.Context, src region.ID, parent namespace.Ino, name string, n namespace.Inode, seed region.Seed) (namespace.Inode, error)
	// Check reports every inconsistency of the directory and of the extents. It
	// returns an error only if it could not go on.
	Check(ctx context.Context, report func(problem string)) error
}

// An Invalidator makes the kernel forget what it caches of a mount. Its methods
// may block until the kernel has written dirty pages back, so they are called
// without locks. A file that the kernel does not know is no error.
type Invalidator interface {
	// Content drops the pages and attributes of a file.
	Content(ino namespace.Ino) error
	// Range drops the pages of a file in n bytes at off, and its attributes.
	Range(ino namespace.Ino, off, n int64) error
	// Attr drops the attributes of a file.
	Attr(ino namespace.Ino) error
	// Entry drops a name.
	Entry(parent namespace.Ino, name string) error
}

// A Config says what a Volume serves. The zero value of an optional field is
// documented with it.
type Config struct {
	Pool Pool
	// Conn is the way to the pool's bytes for all regions. The owner closes it,
	// after the Volume.
	Conn rdmacache.Conn
	// Pages keeps clean pages of Conn's regions; nil where reading them again costs
	// no more than memory does. Nobody else uses it.
	Pages *rdmacache.Pages
	// FrameBytes bounds the memory in bytes that one region's open epoch takes
	// before it moves to free slots; 0 is the default of package rdmacache.
	FrameBytes int64
	// OnClose is what happens to uncommitted stores through mappings at the last
	// close of a file that does not say itself; OnCloseDefault is
	// OnCloseRollback.
	OnClose namespace.OnClose
	// ReadOnly refuses every change with ErrReadOnly.
	ReadOnly bool
	// Shared is the Pool, if somebody else may be writing it: then each file shows
	// one epoch, and ReadOnly is set. Nil: nobody else does.
	Shared Shared
	// Follow is how often all files of a shared pool are refreshed; 0: when asked.
	Follow time.Duration
	// MaxIdle is how many regions stay open without a handle; 0 means 256.
	MaxIdle int
	// Interval is the time between the epochs of programs attached to a file that
	// does not say itself; 0 is none.
	Interval time.Duration
	// Committed is told of each epoch that made something durable how long that took, from
	// when it was asked for; nil: nobody is.
	Committed func(time.Duration)
	// Mountpoint, Socket and AttachSocket are what the virtual attributes of those
	// names tell.
	Mountpoint, Socket, AttachSocket string
	Log                              *slog.Logger     // nil discards
	Now                              func() time.Time // nil is time.Now
}

// A Volume serves one pool. It is safe for concurrent use.
//
// A file is absent, loading, in use (refs > 0), idle, or leaving; one that is
// leaving or settling (its last close is under way) makes new opens wait.
//
// Lock order: a file's treesMu, then what packages epoch, rdmacache and region hold
// across I/O, then familyMu, then mu, then their leaves. mu is never held across
// the pool, the Conn or the kernel. familyMu is held across the pool and the Conn:
// that is what it is for. What shared pools add is at sharedState.
type Volume struct {
	cfg  Config
	log  *slog.Logger
	now  func() time.Time
	work chan struct{} // wakes Run; has room for one

	members Members // set before the first request

	// familyMu keeps what relatives reach in place while one of them looks for
	// slots that nothing reaches: held for reading by that walk, for writing while
	// a checkpoint is dropped or a region is freed.
	familyMu sync.RWMutex

	mu       sync.Mutex // guards the fields below and the counts of every file
	kernel   Invalidator
	files    map[namespace.Ino]*file
	idle     *list.List // of *file without refs, least recently used first
	known    map[namespace.Ino]uint64
	orphans  map[namespace.Ino]struct{} // inodes without names that wait for Forget
	pinned   map[namespace.Ino]struct{} // and those to try again: another machine reads them, say
	counters Counters                   // its pages: of files that left the table
	closed   bool
}

// Counters count since the volume was made.
type Counters struct {
	Commits         uint64 // that made something durable
	Rollbacks       uint64 // open epochs thrown away
	RolledBackPages uint64
	FailedCloses    uint64 // last closes whose commit failed
	SealsDelayed    uint64 // seals of epochs that waited for others in flight
	PagesCommitted  uint64
	PagesUnchanged  uint64 // that arrived but equal what was there
}

// defaultMaxIdle keeps a directory's worth of regions open: an idle region is a
// few KiB and its table's nodes.
const defaultMaxIdle = 256

// New returns a Volume over a pool. It starts nothing; Run does the background
// work, and Close ends it.
func New(cfg Config) *Volume {
	if cfg.OnClose == namespace.OnCloseDefault {
		cfg.OnClose = namespace.OnCloseRollback
	}
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = defaultMaxIdle
	}
	if cfg.Pages != nil {
		cfg.Conn = cfg.Pages.Watch(cfg.Conn)
	}
	v := &Volume{
		cfg:     cfg,
		log:     cfg.Log,
		now:     cfg.Now,
		work:    make(chan struct{}, 1),
		kernel:  noKernel{},
		members: noMembers{},
		files:   make(map[namespace.Ino]*file),
		idle:    list.New(),
		known:   make(map[namespace.Ino]uint64),
		orphans: make(map[namespace.Ino]struct{}),
		pinned:  make(map[namespace.Ino]struct{}),
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.now == nil {
		v.now = time.Now
	}
	return v
}

// noKernel is the Invalidator of a volume that is not mounted.
type noKernel struct{}

func (noKernel) Content(namespace.Ino) error             { return nil }
func (noKernel) Range(namespace.Ino, int64, int64) error { return nil }
func (noKernel) Attr(namespace.Ino) error                { return nil }
func (noKernel) Entry(namespace.Ino, string) error       { return nil }

// SetInvalidator tells the volume which kernel caches it. It is called once,
// before the first request.
func (v *Volume) SetInvalidator(kernel Invalidator) {
	v.mu.Lock()
	v.kernel = kernel
	v.mu.Unlock()
}

func (v *Volume) invalidator() Invalidator {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.kernel
}

// maintainEvery is how often a file whose last close could not commit is tried
// again, and regions that changed look after themselves.
const maintainEvery = 2 * time.Second

// Run does the background work until ctx ends: it lets regions cut their logs,
// frees files without names, retries closes that found the pool full, and closes
// idle regions. It returns after its goroutines have ended.
func (v *Volume) Run(ctx context.Context) error {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	maintain := make(chan bool, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for all := range maintain {
			v.maintain(ctx, all)
		}
	})
	defer wg.Wait()
	defer close(maintain)
	if v.cfg.Follow > 0 {
		wg.Go(func() { v.follow(ctx) })
	}
	for {
		retry := false
		select {
		case <-ctx.Done():
			return nil
		case <-v.work:
		case <-tick.C:
			retry = true
		}
		// Cutting a log can take long; freeing space must not wait for it.
		select {
		case maintain <- retry:
		default:
		}
		if v.hasOrphans() {
			v.reclaim(ctx)
		}
		if retry {
			v.resettle(ctx)
			v.retryPinned()
		}
		v.evict(ctx)
	}
}

// wake makes Run look for work.
func (v *Volume) wake() {
	select {
	case v.work <- struct{}{}:
	default:
	}
}

// maintain lets every region that changed since the last time cut its log, sweep
// and mark its last epoch; unless all, only those that should not wait.
func (v *Volume) maintain(ctx context.Context, all bool) {
	v.mu.Lock()
	var due []*file
	for _, f := range v.files {
		if f.maintain && f.loaded() && f.left == nil && (all || f.image.Due()) {
			f.maintain = false
			f.refs++
			v.busy(f)
			due = append(due, f)
		}
	}
	v.mu.Unlock()
	for _, f := range due {
		// Once begun, a cut must not be broken off: it poisons the region.
		if err := ctx.Err(); err == nil {
			err = f.image.Maintain(context.WithoutCancel(ctx))
			if err != nil && !noSpace(err) {
				v.log.Error("maintain region", "ino", f.ino, "err", err)
			}
		}
		v.release(f)
	}
}

// Close applies the contract of the last close to every file that is still open,
// frees files without names, closes the regions and flushes once. The kernel must
// be gone, and Run must have returned. It goes on after errors and returns them
// joined.
func (v *Volume) Close(ctx context.Context) error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	v.kernel = noKernel{}
	clear(v.known)
	files := make([]*file, 0, len(v.files))
	for _, f := range v.files {
		files = append(files, f)
	}
	v.mu.Unlock()

	var errs []error
	for _, f := range files {
		select {
		case <-f.ready:
		case <-ctx.Done():
			return errors.Join(append(errs, ctx.Err())...)
		}
		if !f.loaded() {
			continue
		}
		if err := v.settle(ctx, f); err != nil {
			errs = append(errs, fmt.Errorf("close file %d: %w", f.ino, err))
		}
	}
	for _, f := range files {
		v.mu.Lock()
		f.refs, f.handles = 0, 0
		_, orphan := v.orphans[f.ino]
		v.mu.Unlock()
		if orphan || !f.loaded() || v.cfg.Shared != nil { // the pool's end unpins all
			continue
		}
		if err := v.closeImage(ctx, f); err != nil {
			errs = append(errs, fmt.Errorf("close file %d: %w", f.ino, err))
		}
	}
	v.reclaim(ctx)
	if len(errs) == 0 && !v.cfg.ReadOnly {
		if err := v.cfg.Conn.Flush(ctx); err != nil {
			errs = append(errs, fmt.Errorf("last flush: %w", err))
		}
	}
	return errors.Join(errs...)
}

// writable is the guard of every change.
func (v *Volume) writable() error {
	if v.cfg.ReadOnly {
		return ErrReadOnly
	}
	return nil
}
