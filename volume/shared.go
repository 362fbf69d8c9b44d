package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// A Shared is a Pool that somebody else may be writing. A file shows one epoch of it,
// which is pinned: nobody uses its slots again.
type Shared interface {
	// Pin pins the newest committed epoch of a region and returns it, as a
	// checkpoint without a name. It may wait until a writer that died has lost its
	// lease. Epoch 0 is that of a region that nothing was ever committed to.
	Pin(ctx context.Context, id region.ID) (region.Checkpoint, error)
	// Unpin gives back all pins of a region but that of the epoch keep; 0: all.
	Unpin(ctx context.Context, id region.ID, keep epoch.ID) error
}

// sharedState is what a file of a shared pool shows.
//
// A refresh may have to wait for a session that is being made again: its pins, its reads,
// and the kernel, which waits for reads. Who makes the session again waits for pinning in
// it, in Renew. So Renew waits for no refresh, but for two things that end without it.
//
// Lock order: refreshMu, then pinsMu, then shownMu. Renew does not take refreshMu.
type sharedState struct {
	refreshMu sync.Mutex // serialises refreshes; held across everything
	// pinsMu keeps a pin that is just being made from being given back as one of those
	// not shown. It is held across Pin by Renew, and across Unpin.
	pinsMu sync.Mutex

	shownMu  sync.Mutex        // guards the next two; held across no call that waits
	shown    region.Checkpoint // what is seen; the file's image turns over with it
	renewals uint64            // how often it was pinned anew for another session
}

// seen returns what is shown, and the session's number.
func (s *sharedState) seen() (shown region.Checkpoint, renewals uint64) {
	s.shownMu.Lock()
	defer s.shownMu.Unlock()
	return s.shown, s.renewals
}

// show turns the image over to next, which was pinned when was was seen; again if by
// Renew. It does nothing if something else is seen by now, or in another session.
func (f *file) show(next, was region.Checkpoint, renewals uint64, again bool) (done bool, err error) {
	s := &f.shared
	s.shownMu.Lock()
	defer s.shownMu.Unlock()
	if s.shown != was || s.renewals != renewals {
		return false, nil
	}
	if next.Epoch != was.Epoch || next.Tree != was.Tree {
		if err := f.image.View(next); err != nil {
			return false, err
		}
		s.shown = next
	}
	if again {
		s.renewals++
	}
	return true, nil
}

// shownFor is how long a file that nobody has open goes on showing its epoch. Its next
// user sees the newest.
const shownFor = 30 * time.Second

// openShared opens a region to show its newest epoch.
func (v *Volume) openShared(ctx context.Context, f *file) error {
	var err error
	f.image, err = region.Open(ctx, region.Config{
		Device:   v.cfg.Conn,
		Location: region.Location{ID: region.ID(f.ino)},
		// Its slots are somebody else's to know.
		Family: func(context.Context, func(region.Slot)) error { return nil },
		Log:    v.log,
	})
	if err != nil {
		return err
	}
	f.shared.shown, err = v.cfg.Shared.Pin(ctx, region.ID(f.ino)) // nobody else has the file yet
	if err != nil {
		return err
	}
	v.forgetPages()
	if err := f.image.View(f.shared.shown); err != nil {
		return errors.Join(err, v.cfg.Shared.Unpin(ctx, region.ID(f.ino), 0))
	}
	f.cache = rdmacache.New(rdmacache.Config{Conn: v.cfg.Conn, Image: f.image, Pages: v.cfg.Pages, Log: v.log, Now: v.now})
	f.manager = epoch.NewManager(f.cache)
	return nil
}

// closeShared lets go of the epoch that a file shows, and is leaving.
func (v *Volume) closeShared(ctx context.Context, f *file) error {
	// The kernel would go on showing its pages beside those of the next one.
	defer v.forgetPages()
	return errors.Join(v.invalidator().Content(f.ino), v.cfg.Shared.Unpin(ctx, region.ID(f.ino), 0))
}

// Refresh makes a file show its newest committed epoch, which it returns. When it
// returns, mappings and reads show that epoch and nothing of the one before; meanwhile
// either. In a volume that is not shared it changes nothing.
func (v *Volume) Refresh(ctx context.Context, ino namespace.Ino) (epoch.ID, error) {
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return 0, err
	}
	defer v.release(f)
	return v.refresh(ctx, f)
}

// RefreshAll is Refresh for all files in use. It goes on after errors and returns them
// joined.
func (v *Volume) RefreshAll(ctx context.Context) error {
	var errs []error
	for _, f := range v.inUse() {
		if _, err := v.refresh(ctx, f); err != nil {
			errs = append(errs, fmt.Errorf("refresh file %d: %w", f.ino, err))
		}
		v.release(f)
	}
	return errors.Join(errs...)
}

func (v *Volume) refresh(ctx context.Context, f *file) (epoch.ID, error) {
	if v.cfg.Shared == nil {
		return f.cache.Committed(), nil
	}
	f.shared.refreshMu.Lock()
	defer f.shared.refreshMu.Unlock()
	for {
		was, renewals := f.shared.seen()
		next, err := v.cfg.Shared.Pin(ctx, region.ID(f.ino))
		if err != nil {
			return 0, err
		}
		if next.Epoch == was.Epoch && next.Tree == was.Tree {
			return next.Epoch, nil
		}
		ctx := context.WithoutCancel(ctx) // the kernel must forget all that changed
		forget := v.changes(ctx, f, was, next)
		done, err := f.show(next, was, renewals, false)
		if err != nil {
			return 0, errors.Join(err, v.unpinOthers(ctx, f))
		}
		if !done {
			continue // Renew came: next may be pinned in a session that is lost
		}
		defer v.forgetPages() // after Unpin: until then the slots of the epoch before are as they were
		// It has nothing to discard, but takes over the new size. A read that began
		// before holds its pages in the kernel until it ends, and forgetting waits for it.
		_, err = f.cache.Discard(forget)
		if err := errors.Join(err, v.unpinOthers(ctx, f)); err != nil {
			return 0, err
		}
		return next.Epoch, nil
	}
}

// unpinOthers gives back the pins of a file but that of the epoch it shows.
func (v *Volume) unpinOthers(ctx context.Context, f *file) error {
	f.shared.pinsMu.Lock()
	defer f.shared.pinsMu.Unlock()
	shown, _ := f.shared.seen()
	return v.cfg.Shared.Unpin(ctx, region.ID(f.ino), shown.Epoch)
}

// forgetPages throws out pages in local memory: the writer may use the slots of an epoch
// that nobody shows any more.
func (v *Volume) forgetPages() {
	if v.cfg.Pages != nil {
		v.cfg.Pages.Clear()
	}
}

// Renew pins again what the files of a shared volume show, after the session that had
// pinned it was lost. A file whose epoch is not the newest any more shows that from now on: its
// slots may have been used again. Nothing may be read meanwhile. then, to be called when
// reads go on, makes the kernel forget what has changed.
func (v *Volume) Renew(ctx context.Context) (then func()) {
	ctx, cancel := context.WithTimeout(ctx, renewIn)
	defer cancel()
	v.forgetPages()
	var changed []*file
	for _, f := range v.heldFiles(ctx) {
		moved, err := v.pinAgain(ctx, f)
		if err != nil {
			v.log.Warn("a file cannot be read until it is refreshed", "ino", f.ino, "err", err)
		}
		if moved {
			changed = append(changed, f)
		} else {
			v.release(f)
		}
	}
	return func() {
		for _, f := range changed {
			if _, err := f.cache.Discard(func() error { return v.invalidator().Content(f.ino) }); err != nil {
				v.log.Warn("the kernel may show pages of an older epoch", "ino", f.ino, "err", err)
			}
			v.release(f)
		}
	}
}

// renewIn bounds Renew: the files of a writer that does not answer must not keep others
// waiting for ever.
const renewIn = 30 * time.Second

// heldFiles returns the files that are open, idle or about to be, with a ref each.
func (v *Volume) heldFiles(ctx context.Context) (files []*file) {
	v.mu.Lock()
	var all []*file
	for _, f := range v.files {
		if f.left == nil {
			f.refs++
			v.busy(f)
			all = append(all, f)
		}
	}
	v.mu.Unlock()
	for _, f := range all {
		if await(ctx, f.ready) != nil || f.err != nil {
			v.release(f)
			continue
		}
		files = append(files, f)
	}
	return files
}

// pinAgain pins the newest epoch of a file, and tells whether that is another one than
// it showed.
func (v *Volume) pinAgain(ctx context.Context, f *file) (moved bool, err error) {
	s := &f.shared
	s.pinsMu.Lock()
	defer s.pinsMu.Unlock()
	for {
		was, renewals := s.seen()
		next, err := v.cfg.Shared.Pin(ctx, region.ID(f.ino))
		if err != nil {
			return false, err
		}
		if done, err := f.show(next, was, renewals, true); done || err != nil {
			return done && next.Epoch != was.Epoch, err
		}
		// A refresh showed another epoch meanwhile. One: it unpins then, which waits.
	}
}

// maxRanges is how many runs of pages the kernel is told to forget one by one.
const maxRanges = 1024

// changesIn bounds the search for what changed.
const changesIn = 5 * time.Second

// changes returns what makes the kernel forget the pages by which next differs from
// what a file showed.
func (v *Volume) changes(ctx context.Context, f *file, was, next region.Checkpoint) func() error {
	kernel := v.invalidator()
	type run struct{ page, n uint64 }
	var runs []run
	// A session that is lost meanwhile does not have the old epoch pinned when it is made
	// again.
	ctx, cancel := context.WithTimeout(ctx, changesIn)
	defer cancel()
	err := region.Changed(ctx, v.cfg.Conn, region.ID(f.ino), was.Tree, next.Tree, func(page, n uint64) {
		if len(runs) <= maxRanges {
			runs = append(runs, run{page, n})
		}
	})
	if err != nil || len(runs) > maxRanges {
		v.log.Debug("all of a file is forgotten, not what changed", "ino", f.ino, "err", err)
		return func() error { return kernel.Content(f.ino) }
	}
	return func() error {
		err := kernel.Attr(f.ino)
		for _, r := range runs {
			err = errors.Join(err, kernel.Range(f.ino, int64(r.page)*region.PageSize, int64(r.n)*region.PageSize))
		}
		return err
	}
}

// follow refreshes everything, every so often, until ctx ends.
func (v *Volume) follow(ctx context.Context) {
	tick := time.NewTicker(v.cfg.Follow)
	defer tick.Stop()
	level := slog.LevelWarn
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := v.RefreshAll(ctx)
		if err == nil {
			level = slog.LevelWarn
		} else if ctx.Err() == nil {
			v.log.Log(ctx, level, "some files still show an older epoch", "err", err)
			level = slog.LevelDebug // until it has worked again
		}
	}
}

// PinCommitted keeps the committed epoch of a file for readers of other machines: no
// slot of it is used again until UnpinCommitted. Its open epoch stays open. The caller
// records the checkpoint.
func (v *Volume) PinCommitted(ctx context.Context, ino namespace.Ino) (region.Checkpoint, error) {
	f, err := v.acquireRegular(ctx, ino)
	if err != nil {
		return region.Checkpoint{}, err
	}
	defer v.release(f)
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	var cp region.Checkpoint
	err = v.withSpace(ctx, f, func() (err error) {
		cp, err = f.image.Pin(context.WithoutCancel(ctx), v.now().UnixNano())
		return err
	})
	return cp, err
}

// UnpinCommitted takes back PinCommitted, after the record is gone. A file that is not
// open has nothing to take back.
func (v *Volume) UnpinCommitted(ctx context.Context, ino namespace.Ino, e epoch.ID) {
	v.unpin(ctx, ino, func(cp *region.Checkpoint) bool { return cp.Name == region.PinName(e) })
}

// KeepPins takes back PinCommitted of all epochs that are not in pins.
func (v *Volume) KeepPins(ctx context.Context, pins map[namespace.Ino][]epoch.ID) {
	v.mu.Lock()
	var files []namespace.Ino
	for ino := range v.files {
		files = append(files, ino)
	}
	v.mu.Unlock()
	for _, ino := range files {
		kept := make(map[string]bool)
		for _, e := range pins[ino] {
			kept[region.PinName(e)] = true
		}
		v.unpin(ctx, ino, func(cp *region.Checkpoint) bool { return region.IsPin(cp.Name) && !kept[cp.Name] })
	}
}

// unpin drops pins of a file from its image, if it is open or being opened.
func (v *Volume) unpin(ctx context.Context, ino namespace.Ino, which func(*region.Checkpoint) bool) {
	v.mu.Lock()
	f := v.files[ino]
	if f == nil || f.left != nil {
		v.mu.Unlock()
		return
	}
	f.refs++
	v.busy(f)
	v.mu.Unlock()
	defer v.release(f)
	if await(ctx, f.ready) != nil || f.err != nil {
		return // who opens it next does not find the pin
	}
	f.treesMu.Lock()
	defer f.treesMu.Unlock()
	for _, cp := range f.image.Checkpoints() {
		if which(&cp) {
			v.dropFromImage(f, cp.Name)
		}
	}
}

// refreshText is what reading XattrRefresh does, and returns.
func (v *Volume) refreshText(ctx context.Context, ino namespace.Ino) (string, error) {
	n, err := v.cfg.Pool.Inode(ctx, ino)
	if err != nil {
		return "", err
	}
	if n.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return "", v.RefreshAll(ctx)
	}
	e, err := v.Refresh(ctx, ino)
	return strconv.FormatUint(uint64(e), 10), err
}
