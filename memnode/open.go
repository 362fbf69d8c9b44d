package memnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

const (
	metaFile = "meta.db"
	dataFile = "data"
	lockFile = "lock"
	// endingWait bounds the wait for a memory node that was killed and is not gone yet.
	endingWait = time.Minute
	// newMetaFile is meta.db while a pool is being created.
	newMetaFile = "meta.db.new"
)

// Options says how Open opens a pool.
type Options struct {
	// ReadOnly opens for looking and checking: many may at a time, and none
	// while a writer has the pool.
	ReadOnly bool
	// KeepOrphans opens for a memory node, whose sessions of before may go on: leases
	// stay, and inodes without names that a holder may have open. Otherwise the one
	// who opens for writing is the only writer, and every lease ends.
	KeepOrphans bool
	// Media is used in place of the file data, and says alone whether the pool is
	// volatile. The pool owns it if Open succeeds.
	Media media.Media
	Log   *slog.Logger     // nil: discard
	Now   func() time.Time // nil: time.Now

	noSync bool // tests: transactions survive the process only
}

// Open opens the pool in dir. For writing, it raises the pool's generation, ends
// leases and reaps what a crash left without a name (but see Options.KeepOrphans).
//
// Errors match ErrNotPool, ErrLocked, ErrVersion, ErrForeign, ErrTruncated,
// ErrCorrupt or media.ErrReadOnly where one of them is the reason.
func Open(dir string, opts Options) (*Pool, error) {
	p, err := openDir(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	return p, nil
}

func openDir(dir string, opts Options) (_ *Pool, err error) {
	if err := findPool(dir); err != nil {
		return nil, err
	}
	var undo []io.Closer
	defer func() {
		if err != nil {
			for _, c := range undo {
				_ = c.Close() // nothing was changed through it
			}
		}
	}()
	lock, before, err := lockPool(filepath.Join(dir, lockFile), opts.ReadOnly)
	if err != nil {
		return nil, readOnlyError(err)
	}
	undo = append(undo, lock)
	if opts.KeepOrphans { // who had it was a memory node, too
		if err := before.await(endingWait); err != nil {
			return nil, err
		}
	}
	meta, err := openMeta(filepath.Join(dir, metaFile), opts.ReadOnly, opts.noSync)
	if err != nil {
		return nil, readOnlyError(err)
	}
	undo = append(undo, closer(meta.close))
	m := opts.Media
	if m == nil {
		m, err = media.Open(filepath.Join(dir, dataFile), media.Options{ReadOnly: opts.ReadOnly})
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: the file %s is missing: restore it", ErrTruncated, dataFile)
		}
		if err != nil {
			return nil, err
		}
		undo = append(undo, m)
	}
	p, err := assemble(meta, m, opts)
	if err != nil {
		return nil, err
	}
	p.lock = lock
	if opts.Media != nil {
		return p, nil
	}
	// Names and checkpoints are as durable as the directory's file system.
	if volatile, err := media.Volatile(dir); err != nil {
		return nil, err
	} else if volatile {
		p.medium.Volatile = true
	}
	return p, nil
}

// findPool tells a directory without a pool from one that has one.
func findPool(dir string) error {
	_, err := os.Stat(filepath.Join(dir, metaFile))
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, newMetaFile)); err == nil {
		return fmt.Errorf("%w: its creation was interrupted: create it again", ErrNotPool)
	}
	if _, err := os.Lstat(filepath.Join(dir, dataFile)); err == nil {
		return fmt.Errorf("%w: there is data, but meta.db is missing: restore meta.db", ErrNotPool)
	}
	return ErrNotPool
}

// readOnlyError says so where a pool cannot be written at all.
func readOnlyError(err error) error {
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: %w", media.ErrReadOnly, err)
	}
	return err
}

type closer func() error

func (c closer) Close() error { return c() }

// assemble makes a pool of its parts, which it owns if it succeeds.
func assemble(meta metaStore, m media.Media, opts Options) (*Pool, error) {
	p := &Pool{
		media:    m,
		meta:     meta,
		log:      opts.Log,
		now:      opts.Now,
		medium:   rdmacache.Medium{Kind: m.Kind(), Volatile: m.Volatile()},
		readOnly: opts.ReadOnly,
		serving:  opts.KeepOrphans,
		stored:   make(map[namespace.Ino]struct{}),
	}
	p.directory = directory{pool: p, share: namespace.Root}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.now == nil {
		p.now = time.Now
	}
	if err := meta.view(p.load); err != nil {
		return nil, err
	}
	if err := p.checkHeader(); err != nil {
		return nil, err
	}
	if p.readOnly {
		return p, nil
	}
	// A writer that was killed has stored what regions will take for committed,
	// but not all of it may have been flushed. They use the slots that it replaced.
	if err := p.Flush(); err != nil {
		return nil, err
	}
	if err := p.settleLeases(opts.KeepOrphans); err != nil {
		return nil, fmt.Errorf("persist what leased shares were stored: %w", err)
	}
	// Before anything is written by this opening: records of the one before
	// must not pass for its.
	leases := 0
	err := meta.update(func(t txn) (err error) {
		leases, err = p.begin(t, opts.KeepOrphans)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("raise the generation: %w", err)
	}
	if opts.KeepOrphans && leases > 0 {
		return p, nil // GrantLease will reap what their holders leave
	}
	if leases > 0 {
		p.log.Warn("ended leases of sessions with a memory node", "leases", leases)
	}
	if err := p.reapOrphans(context.Background(), namespace.Root); err != nil {
		return nil, err
	}
	return p, nil
}

// load takes from meta.db what the pool keeps in memory.
func (p *Pool) load(t txn) error {
	pool, err := t.pool()
	if err != nil {
		return err
	}
	state, err := t.state()
	if err != nil {
		return err
	}
	for _, name := range buckets {
		if _, err := t.bucket(name); err != nil {
			return err
		}
	}
	p.id, p.slots, p.sizeBytes = pool.pool, pool.slots, int64(pool.slots)*region.PageSize
	p.generation, p.nextIno = state.generation, state.nextIno
	var owned []region.Run
	err = t.eachExtent(nil, func(_ region.ID, r region.Run) error {
		owned = append(owned, r)
		return nil
	})
	if err != nil {
		return err
	}
	if p.free, err = newFreeList(p.slots, owned); err != nil {
		return &CorruptError{File: "meta.db", Name: bucketExtents, What: err.Error()}
	}
	if p.serving {
		p.unwiped = slices.Clone(p.free.runs)
	}
	return nil
}

// checkHeader makes sure that the data is that of this meta.db, and all of it.
func (p *Pool) checkHeader() error {
	if size := p.media.Size(); size < p.sizeBytes {
		return fmt.Errorf("%w: data has %d bytes of %d: restore it from a copy", ErrTruncated, size, p.sizeBytes)
	}
	b := make([]byte, headerSize)
	if err := p.media.ReadAt(b, 0); err != nil {
		return fmt.Errorf("read the pool header: %w", err)
	}
	var h header
	if err := h.decode(b); err != nil {
		return err
	}
	if h.pool != p.id || h.slots != p.slots {
		return fmt.Errorf("%w: data is of pool %v with %d slots, meta.db of pool %v with %d: put the files of one pool together",
			ErrForeign, h.pool, h.slots, p.id, p.slots)
	}
	return nil
}

// begin raises the generation, forgets the pins of readers, who are gone, and, unless
// they are to be kept, ends all leases, whose number it returns.
func (p *Pool) begin(t txn, keepLeases bool) (leases int, err error) {
	counted := t.tx.Bucket([]byte(bucketNames)) != nil
	for _, name := range lateBuckets {
		if _, err := t.tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return 0, err
		}
	}
	if !counted {
		if err := t.recount(); err != nil {
			return 0, fmt.Errorf("count what shares have: %w", err)
		}
	}
	state, err := t.state()
	if err != nil {
		return 0, err
	}
	state.generation++
	if err := t.putState(state); err != nil {
		return 0, err
	}
	p.generation = state.generation
	if err := t.dropPins(); err != nil {
		return 0, err
	}
	all, err := t.leases()
	if err == nil && !keepLeases {
		err = cmp.Or(t.deleteAll(bucketLeases, nil), t.deleteAll(bucketRequests, nil), t.deleteAll(bucketAnswers, nil))
	}
	return len(all), err
}

// reapBatch is how many orphans one transaction finds at most.
const reapBatch = 1024

// reapOrphans frees the inodes of a share that a crash left without a name. ErrLeased
// if somebody has the share, and may have them open.
func (p *Pool) reapOrphans(ctx context.Context, share namespace.Ino) error {
	total := 0
	last := namespace.Ino(0)
	for {
		var orphans []namespace.Ino
		err := p.view(ctx, func(t txn) (err error) {
			orphans, err = t.of(share).orphans(last, reapBatch)
			return err
		})
		if err != nil || len(orphans) == 0 {
			if total > 0 {
				p.log.Info("reaped inodes that a crash left without a name", "inodes", total)
			}
			return err
		}
		var freed []region.Run
		err = p.update(ctx, func(t txn) error {
			if err := t.checkUnleased(share); err != nil {
				return err
			}
			for _, ino := range orphans {
				_, runs, err := t.of(share).reap(ino)
				if errors.Is(err, region.ErrPinned) {
					continue // the next time
				}
				if err != nil {
					return fmt.Errorf("reap inode %d: %w", ino, err)
				}
				freed = append(freed, runs...)
			}
			return nil
		})
		if err != nil {
			return err
		}
		p.release(freed)
		total += len(orphans)
		last = orphans[len(orphans)-1]
	}
}
