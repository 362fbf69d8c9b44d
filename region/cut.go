package region

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// How a cut treats commits.
type cutMode int

const (
	cutBeside cutMode = iota // they go on in the other run
	cutHold                  // they wait
)

// cut writes the changed nodes of the table to free slots, flushes, and writes a
// superblock that names them: recovery starts from there, and the log before it
// is free. cutMu and commitMu are held; cutBeside lets commitMu go while it
// writes. Epochs in flight land first: their records would be in the wrong run.
//
// ErrNoSpace leaves everything as it was; any other error poisons the region.
func (im *Image) cut(ctx context.Context, mode cutMode) error {
	if err := im.drain(ctx); err != nil {
		return err
	}
	var nodes []*node
	for frozen := false; !frozen; { // others may take what was provided
		if err := im.provideCut(ctx); err != nil {
			return err
		}
		im.mu.Lock()
		if nodes, frozen = im.freeze(); !frozen {
			im.mu.Unlock()
		}
	}
	gone := len(im.dropped) // with those that are dropped from here on, the next cut deals
	root, height, stored := im.table.root, im.table.height, im.table.stored
	if im.log.both {
		mode = cutHold // both runs are needed until the superblock is there
	}
	sb := superblock{
		id: im.id, sequence: im.sequence + 1, generation: im.gen, epoch: im.epoch,
		size: im.size, mtime: im.mtime, series: im.series, pages: im.table.pages,
	}
	runs, fresh, old := im.nextRuns(mode)
	sb.log = runs
	if mode == cutBeside {
		im.log = logState{runs: im.log.runs, active: 1 - im.log.active, both: true}
		im.mu.Unlock()
		im.commitMu.Unlock()
	} else {
		im.mu.Unlock()
	}

	err := im.clearRuns(ctx, fresh)
	if err == nil {
		err = im.writeNodes(ctx, nodes)
	}
	if err == nil {
		im.mu.Lock()
		if root != nil {
			stored = root.stored
		}
		sb.tree = Tree{Root: stored.Slot, CRC: stored.CRC, Height: height}
		im.mu.Unlock()
		err = im.writeSuperblock(ctx, &sb)
	}

	if mode == cutBeside {
		im.commitMu.Lock()
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.still()
	if err != nil {
		return im.poison(fmt.Errorf("cut the log at epoch %d: %w", sb.epoch, err))
	}
	for _, n := range nodes {
		n.frozen = false
	}
	im.sequence = sb.sequence
	im.marked = max(im.marked, sb.epoch)
	off := 0
	if mode == cutBeside {
		off = im.log.off
	}
	im.log = logState{runs: runs, off: off}
	// Only now: until the superblock was flushed, recovery started from these.
	im.retire(im.dropped[:gone])
	im.dropped = append([]Entry(nil), im.dropped[gone:]...)
	for _, r := range old {
		for s := r.Start; s < r.End(); s++ {
			im.slots.release(s)
		}
	}
	return nil
}

// provideCut sees to slots for the nodes and, if they are to be had, for longer
// log runs. A large commit has reserved its own.
func (im *Image) provideCut(ctx context.Context) error {
	im.mu.Lock()
	n, longer, reserved := im.dirtyNodes(), im.runGoal(), im.reserved != nil
	im.mu.Unlock()
	if reserved {
		return nil
	}
	if longer > 0 && im.provide(ctx, n+longer) == nil {
		return nil
	}
	return im.provide(ctx, n)
}

// runGoal returns how many slots longer log runs would take, 0 if the present
// ones are long enough for the region. mu is held.
func (im *Image) runGoal() uint64 {
	if want := im.runSlots(); im.log.runs[0].N < want || im.log.runs[1].N < want {
		return 2 * want
	}
	return 0
}

// runSlots is the length that fits the region's size: up to 1/64 of its slots.
func (im *Image) runSlots() uint64 {
	want := uint64(firstRunSlots)
	for want < maxRunSlots && want*64 < im.slots.granted {
		want *= 2
	}
	return want
}

// nextRuns chooses the log runs of the next superblock, records first going to
// the first. A run that is short for the region is replaced by a longer one, if
// there are adjacent slots; fresh has the new ones, old the replaced. mu is held.
func (im *Image) nextRuns(mode cutMode) (runs [2]Run, fresh, old []Run) {
	runs = [2]Run{im.log.runs[1-im.log.active], im.log.runs[im.log.active]}
	want := im.runSlots()
	for i := range runs {
		if i == 0 && mode == cutBeside || runs[i].N >= want {
			continue // the first: commits go there already
		}
		if r, ok := im.slots.allocRun(want); ok {
			for s := r.Start; s < r.End(); s++ {
				im.slots.commit(s)
			}
			old = append(old, runs[i])
			fresh = append(fresh, r)
			runs[i] = r
		}
	}
	return runs, fresh, old
}

// clearRuns writes zeros over new log runs: what a program stored in a page must
// never be read as a record.
func (im *Image) clearRuns(ctx context.Context, runs []Run) error {
	for _, r := range runs {
		if err := im.dev.Write(ctx, make([]byte, r.N*PageSize), r.Start.Offset()); err != nil {
			return err
		}
	}
	return nil
}

// dirtyNodes counts the nodes that a cut would write. mu is held.
func (im *Image) dirtyNodes() (count uint64) {
	var below func(n *node)
	below = func(n *node) {
		if n == nil || !n.dirty {
			return
		}
		count++
		if n.kids != nil {
			for _, kid := range n.kids {
				below(kid)
			}
		}
	}
	below(im.table.root)
	return count
}

// freeze gives every dirty node its new slot and returns them, children first. From
// here on commits copy these nodes instead of changing them. It drops the nodes'
// old slots, which recovery needs until the superblock is there. It does nothing
// and returns false if there are too few free slots. mu is held.
func (im *Image) freeze() (nodes []*node, ok bool) {
	for _, r := range im.reserved {
		for s := r.Start; s < r.End(); s++ {
			im.slots.release(s)
		}
	}
	im.reserved = nil
	n := im.dirtyNodes()
	if n > im.slots.free {
		return nil, false
	}
	runs := im.allocLocked(n)
	take := func() Slot {
		s := runs[0].Start
		im.slots.commit(s)
		if runs[0].Start, runs[0].N = s+1, runs[0].N-1; runs[0].N == 0 {
			runs = runs[1:]
		}
		return s
	}
	var below func(n *node)
	below = func(n *node) {
		if n.kids != nil {
			for _, kid := range n.kids {
				if kid != nil && kid.dirty {
					below(kid)
				}
			}
		}
		if n.stored.Slot != 0 {
			im.dropped = append(im.dropped, n.stored)
		}
		n.stored = Entry{Slot: take(), Series: im.series}
		n.dirty, n.frozen = false, true
		nodes = append(nodes, n)
	}
	if n > 0 {
		below(im.table.root)
	}
	return nodes, true
}

// writeNodes writes frozen nodes to their slots and flushes.
func (im *Image) writeNodes(ctx context.Context, nodes []*node) error {
	// Nodes in one run of slots go out in one write.
	const batch = 256
	buf := make([]byte, 0, min(batch, len(nodes)+1)*PageSize)
	var start Slot
	send := func() error {
		if len(buf) == 0 {
			return nil
		}
		err := im.dev.Write(ctx, buf, start.Offset())
		buf = buf[:0]
		return err
	}
	for _, n := range nodes {
		if next := start + Slot(len(buf)/PageSize); len(buf) == batch*PageSize || n.stored.Slot != next {
			if err := send(); err != nil {
				return err
			}
		}
		if len(buf) == 0 {
			start = n.stored.Slot
		}
		buf = buf[:len(buf)+PageSize]
		b := buf[len(buf)-PageSize:]
		if n.kids == nil {
			n.encode(b) // frozen: nobody changes its entries
			crc := Checksum(b)
			im.mu.Lock()
			n.stored.CRC = crc
			im.mu.Unlock()
		} else {
			im.mu.Lock() // its children may come and go
			n.encode(b)
			n.stored.CRC = Checksum(b)
			im.mu.Unlock()
		}
	}
	if err := send(); err != nil {
		return err
	}
	// Nodes before superblock: one that survives power loss while its nodes do
	// not would recover to damage.
	return im.dev.Flush(ctx)
}

// writeSuperblock writes sb over the older of the two superblocks and flushes.
func (im *Image) writeSuperblock(ctx context.Context, sb *superblock) error {
	at := (im.super + Slot(sb.sequence%2)).Offset()
	if err := im.dev.Write(ctx, sb.encode(), at); err != nil {
		return err
	}
	return im.dev.Flush(ctx)
}

// tree returns where the table is stored. No node is dirty. mu is held.
func (im *Image) tree() Tree {
	e := im.table.stored
	if im.table.root != nil {
		e = im.table.root.stored
	}
	return Tree{Root: e.Slot, CRC: e.CRC, Height: im.table.height}
}

// Due says that Maintain has something to do that is worth doing soon.
func (im *Image) Due() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.err == nil && im.super != 0 && im.logFilling()
}

func (im *Image) logFilling() bool {
	return im.log.both || im.log.off > int(im.log.runs[im.log.active].N)*PageSize/2
}

// Maintain cuts the log if half of a run is used, sweeps if that is due, gives
// extents back that the region does not need, and marks the last epoch. It is
// called in the background some time after a commit, and soon whenever Due.
func (im *Image) Maintain(ctx context.Context) error {
	im.cutMu.Lock()
	defer im.cutMu.Unlock()
	im.mu.Lock()
	err, storage, filling := im.err, im.super != 0, im.logFilling()
	sweep := im.sweepDue || im.unfreed > max(4096, im.slots.granted/4)
	im.mu.Unlock()
	if err != nil || !storage {
		return err
	}
	var errs []error // damage that keeps a sweep from ending must not keep the rest
	if sweep {
		errs = append(errs, im.sweep(ctx))
	}
	if filling {
		im.commitMu.Lock()
		errs = append(errs, im.cut(ctx, cutBeside))
		im.commitMu.Unlock()
	}
	errs = append(errs, im.trim(ctx), im.Mark(ctx))
	return errors.Join(errs...)
}

// trim returns extents without a used slot if more than half of the region's
// slots are free.
func (im *Image) trim(ctx context.Context) error {
	im.mu.Lock()
	var idle []Run
	if used := im.slots.granted - im.slots.free; im.slots.free > used+maxGrant/4 {
		idle = im.slots.takeIdle(used/2 + maxGrant/8)
	}
	im.mu.Unlock()
	if len(idle) == 0 {
		return nil
	}
	return im.space.Return(ctx, im.id, idle)
}

// ErrCheckpointExists reports a checkpoint name that is in use.
var ErrCheckpointExists = errors.New("region: checkpoint exists")

// Freeze writes the committed epoch's table and keeps it under a name: from now
// on no slot it reaches is used again. The checkpoint is durable when the pool's
// directory has saved it; DropCheckpoint takes it back.
func (im *Image) Freeze(ctx context.Context, name string, now int64) (Checkpoint, error) {
	im.cutMu.Lock()
	defer im.cutMu.Unlock()
	im.commitMu.Lock()
	defer im.commitMu.Unlock()
	if err := im.drain(ctx); err != nil {
		return Checkpoint{}, err
	}
	return im.keep(ctx, name, now)
}

// Pin is Freeze under the name that the pin of the committed epoch has. If there is
// one, it is returned, and nothing is written. Epoch 0 needs none: nothing was ever
// committed.
func (im *Image) Pin(ctx context.Context, now int64) (Checkpoint, error) {
	im.cutMu.Lock()
	defer im.cutMu.Unlock()
	im.commitMu.Lock()
	defer im.commitMu.Unlock()
	if err := im.drain(ctx); err != nil {
		return Checkpoint{}, err
	}
	im.mu.Lock()
	if im.epoch == 0 {
		defer im.mu.Unlock()
		return Checkpoint{}, im.err
	}
	name := PinName(im.epoch)
	for _, cp := range im.checkpoints {
		if cp.Name == name {
			defer im.mu.Unlock()
			return cp, nil
		}
	}
	im.mu.Unlock()
	return im.keep(ctx, name, now)
}

// keep makes a checkpoint. cutMu and commitMu are held, and no epoch is in flight.
func (im *Image) keep(ctx context.Context, name string, now int64) (Checkpoint, error) {
	if err := im.freezable(name); err != nil {
		return Checkpoint{}, err
	}
	im.mu.Lock()
	if im.super == 0 { // nothing was ever committed
		defer im.mu.Unlock()
		cp := Checkpoint{Name: name, Time: now}
		im.checkpoints = append(im.checkpoints, cp)
		return cp, nil
	}
	im.mu.Unlock()
	// The nodes of this cut belong to the checkpoint: they are of the old series.
	// A second superblock starts the new one, before any commit can.
	if err := im.cut(ctx, cutHold); err != nil {
		return Checkpoint{}, err
	}
	im.mu.Lock()
	im.series++
	cp := Checkpoint{
		Name: name, Time: now, Epoch: im.epoch,
		Size: im.size, Mtime: im.mtime, Pages: im.table.pages, Tree: im.tree(),
	}
	im.checkpoints = append(im.checkpoints, cp)
	im.mu.Unlock()
	if err := im.cut(ctx, cutHold); err != nil {
		im.mu.Lock()
		defer im.mu.Unlock()
		return Checkpoint{}, im.poison(err)
	}
	return cp, nil
}

func (im *Image) freezable(name string) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.err != nil {
		return im.err
	}
	if im.view {
		return fmt.Errorf("region %d: %w", im.id, ErrView)
	}
	if im.series == math.MaxUint32 {
		return fmt.Errorf("region %d: 2^32 checkpoints and clones were taken, no more are possible", im.id)
	}
	for _, cp := range im.checkpoints {
		if cp.Name == name {
			return fmt.Errorf("%w: %q of epoch %d", ErrCheckpointExists, name, cp.Epoch)
		}
	}
	return nil
}

// Seed returns the first content of a clone of a checkpoint of this region.
func (im *Image) Seed(cp Checkpoint) Seed {
	im.mu.Lock()
	defer im.mu.Unlock()
	return Seed{Epoch: 1, Series: im.series, Size: cp.Size, Mtime: cp.Mtime, Pages: cp.Pages, Tree: cp.Tree}
}

// Restore makes the content of a checkpoint the next epoch, by a commit of its
// own. The caller has kept the present state as a checkpoint if it is wanted.
func (im *Image) Restore(ctx context.Context, cp Checkpoint, mtime int64) (epoch.ID, error) {
	im.cutMu.Lock()
	defer im.cutMu.Unlock()
	if err := im.prepare(ctx, Change{}); err != nil {
		return 0, err
	}
	im.commitMu.Lock()
	defer im.commitMu.Unlock()
	if err := im.drain(ctx); err != nil {
		return 0, err
	}
	im.mu.Lock()
	sb := superblock{
		id: im.id, sequence: im.sequence + 1, generation: im.gen, epoch: im.epoch + 1,
		size: cp.Size, mtime: mtime, tree: cp.Tree, series: im.series, pages: cp.Pages,
		log: [2]Run{im.log.runs[1-im.log.active], im.log.runs[im.log.active]},
	}
	im.mu.Unlock()
	err := im.writeSuperblock(ctx, &sb)
	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		return 0, im.poison(fmt.Errorf("restore checkpoint %q: %w", cp.Name, err))
	}
	im.table = table{
		height: cp.Tree.Height, pages: cp.Pages, limit: im.table.limit,
		stored: Entry{Slot: cp.Tree.Root, CRC: cp.Tree.CRC},
	}
	im.epoch, im.size, im.mtime = sb.epoch, sb.size, sb.mtime
	im.sequence, im.marked, im.log = sb.sequence, sb.epoch, logState{runs: sb.log}
	im.unpin()
	im.dropped, im.sweepDue = nil, true // a sweep finds what only the old table reached
	return sb.epoch, nil
}
