package volume

import (
	"context"
	"fmt"
	"syscall"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A FileStat is what Stat tells of a regular file.
type FileStat struct {
	Ino          namespace.Ino `json:"ino"`
	Mode         uint32        `json:"mode"` // as st_mode
	UID          uint32        `json:"uid"`
	GID          uint32        `json:"gid"`
	Nlink        uint32        `json:"nlink"`
	Size         uint64        `json:"size"`  // bytes, of the open epoch
	Pages        uint64        `json:"pages"` // that exist; the rest are holes
	Epoch        epoch.ID      `json:"epoch"` // last committed
	DirtyMapped  int           `json:"dirty_mapped_pages"`
	DirtyWritten int           `json:"dirty_written_pages"`
	SizeChanged  bool          `json:"size_changed"` // in the open epoch
	Mtime        int64         `json:"mtime"`        // ns since 1970
	Checkpoints  int           `json:"checkpoints"`
	OnClose      string        `json:"on_close"` // "rollback" or "commit", as it applies
	Handles      int           `json:"handles"`
	Attached     int           `json:"attached"`           // programs that capture what they store
	Poisoned     string        `json:"poisoned,omitempty"` // the first cause
	GrantedSlots uint64        `json:"granted_slots"`
	FreeSlots    uint64        `json:"free_slots"` // of the granted ones
}

// Stat tells about a regular file.
func (v *Volume) Stat(ctx context.Context, ino namespace.Ino) (FileStat, error) {
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return FileStat{}, err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return FileStat{}, notRegular(n)
	}
	checkpoints, err := v.Checkpoints(ctx, ino)
	if err != nil {
		return FileStat{}, err
	}
	f, err := v.acquire(ctx, ino)
	if err != nil {
		return FileStat{}, err
	}
	defer v.release(f)
	a := f.attr(n)
	s := FileStat{
		Ino: ino, Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink,
		Size: a.Size, Pages: f.cache.Pages(), Epoch: f.cache.Committed(), Mtime: a.Mtime,
		SizeChanged: a.Size != f.image.State().Size,
		Checkpoints: len(checkpoints), OnClose: onCloseText(v.onClose(n)),
	}
	s.DirtyMapped, s.DirtyWritten = f.cache.Dirty()
	s.GrantedSlots, s.FreeSlots = f.image.Space()
	if err := f.cache.Err(); err != nil {
		s.Poisoned = err.Error()
	}
	v.mu.Lock()
	s.Handles, s.Attached = f.handles, f.attached
	v.mu.Unlock()
	return s, nil
}

// A Status is what is known of the volume as a whole.
type Status struct {
	Medium     rdmacache.Medium
	Generation uint64
	Usage      namespace.Usage
	OnClose    namespace.OnClose // of files that do not say themselves
	ReadOnly   bool

	OpenFiles     int // regions that are open, idle ones included
	OpenHandles   int
	DirtyPages    int
	InFlight      int // epochs that were sent, and are not known to be durable
	PoisonedFiles int
	Counters      Counters
	Traffic       rdmacache.Traffic
}

// Status tells about the volume. With an error all but Usage is known: the pool
// did not answer.
func (v *Volume) Status(ctx context.Context) (Status, error) {
	usage, err := v.cfg.Pool.Usage(ctx)
	s := Status{
		Medium: v.cfg.Conn.Medium(), Generation: v.cfg.Pool.Generation(),
		Usage: usage, OnClose: v.cfg.OnClose, ReadOnly: v.cfg.ReadOnly,
		Traffic: v.cfg.Pool.Traffic(),
	}
	for _, f := range v.inUse() {
		mapped, written := f.cache.Dirty()
		s.DirtyPages += mapped + written
		s.InFlight += f.manager.Stats().InFlight
		if f.cache.Err() != nil {
			s.PoisonedFiles++
		}
		s.OpenFiles++
		v.mu.Lock()
		s.OpenHandles += f.handles
		v.mu.Unlock()
		v.release(f)
	}
	s.Counters = v.count()
	return s, err
}

// count adds up the counters of the volume and of its files.
func (v *Volume) count() Counters {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.counters
	for _, f := range v.files {
		if f.loaded() {
			c.add(f)
		}
	}
	return c
}

// add counts what one file did.
func (c *Counters) add(f *file) {
	s := f.cache.Stats()
	c.SealsDelayed += f.manager.Stats().Full
	c.PagesCommitted += s.PagesCommitted
	c.PagesUnchanged += s.PagesUnchanged
}

// A Problem is one inconsistency that Check found.
type Problem struct {
	Ino  namespace.Ino // 0: of the pool
	Text string
}

// maxProblems bounds a CheckReport; the rest is only counted.
const maxProblems = 1000

// A CheckReport is what Check found.
type CheckReport struct {
	Files       int
	Pages       uint64 // read and verified, shared ones once a file
	Checkpoints int
	Problems    []Problem // the first maxProblems
	Found       uint64    // problems in all
}

func (r *CheckReport) add(ino namespace.Ino, text string) {
	r.Found++
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{ino, text})
	}
}

// Check reads everything a file reaches, or with ino 0 everything in the pool, and
// reports every inconsistency. Commits of a file wait while it is read. progress
// may be nil; it gets pages done and, as far as known, in total. An error means
// that the check could not be completed.
func (v *Volume) Check(ctx context.Context, ino namespace.Ino, progress func(done, total uint64)) (CheckReport, error) {
	var r CheckReport
	files := []namespace.Ino{ino}
	if ino == 0 {
		if err := v.cfg.Pool.Check(ctx, func(text string) { r.add(0, text) }); err != nil {
			return r, fmt.Errorf("check directory: %w", err)
		}
		files = v.regularFiles(ctx, r.add)
		if err := ctx.Err(); err != nil {
			return r, err
		}
	}
	var done, total uint64
	for _, ino := range files {
		f, err := v.acquireRegular(ctx, ino)
		if err != nil {
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			r.add(ino, err.Error())
			continue
		}
		total += f.image.State().Pages
		report, err := f.image.Check(ctx,
			func(err error) { r.add(ino, err.Error()) },
			func(pages uint64) {
				if progress != nil {
					progress(done+pages, max(total, done+pages))
				}
			})
		v.release(f)
		if err != nil {
			return r, fmt.Errorf("check file %d: %w", ino, err)
		}
		done += report.Pages
		r.Files++
		r.Pages += report.Pages
		if cps, err := v.Checkpoints(ctx, ino); err == nil {
			r.Checkpoints += len(cps)
		}
	}
	if progress != nil {
		progress(done, done)
	}
	return r, nil
}

// regularFiles walks the directory tree. What cannot be listed is a problem.
func (v *Volume) regularFiles(ctx context.Context, problem func(namespace.Ino, string)) []namespace.Ino {
	var files []namespace.Ino
	seen := make(map[namespace.Ino]bool)
	dirs := []namespace.Ino{namespace.Root}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		entries, err := v.cfg.Pool.ReadDir(ctx, dir)
		if err != nil {
			problem(dir, fmt.Sprintf("list directory: %v", err))
			continue
		}
		for _, e := range entries {
			if seen[e.Ino] {
				continue
			}
			seen[e.Ino] = true
			switch e.Mode & syscall.S_IFMT {
			case syscall.S_IFDIR:
				dirs = append(dirs, e.Ino)
			case syscall.S_IFREG:
				files = append(files, e.Ino)
			}
		}
	}
	return files
}
