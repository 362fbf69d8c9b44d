package region

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// recover brings im to the last committed epoch. Nobody else uses im yet.
func (im *Image) recover(ctx context.Context) error {
	sb, err := readSuperblock(ctx, im.dev, im.id, im.super)
	if err != nil {
		return err
	}
	im.epoch, im.size, im.mtime, im.series = sb.epoch, sb.size, sb.mtime, sb.series
	im.sequence, im.marked = sb.sequence, sb.epoch
	im.table.height, im.table.pages = sb.tree.Height, sb.pages
	im.table.stored = Entry{Slot: sb.tree.Root, CRC: sb.tree.CRC}
	im.log = logState{runs: sb.log}

	scan, err := scanLog(ctx, im.dev, sb)
	if err != nil {
		return err
	}
	// The last epochs may not have been flushed when the crash came: the newest counts
	// of which every page is whole, whichever epoch it is from. A page that a later
	// epoch replaced may be gone: its slot is used again as soon as that one is
	// durable, and no record may say yet that this one is.
	kept := len(scan.records)
	var torn error
	for ; kept > 0 && scan.records[kept-1].epoch > scan.durable; kept-- {
		err := scan.verify(ctx, im.dev, im.id, kept)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrCorrupt) {
			return err
		}
		torn = err
	}
	last := sb.epoch
	if kept > 0 {
		end := scan.records[kept-1]
		last = end.epoch
		im.log.active, im.log.off, im.log.both = end.run, end.end, end.run == 1
	}
	if err := scan.missing(im.id, last); err != nil {
		return err
	}
	if kept < len(scan.records) {
		im.logger.Info("recovery: epoch was not committed", "region", im.id, "epoch", last+1, "why", torn)
	}

	im.mu.Lock()
	defer im.mu.Unlock()
	for i := range scan.records[:kept] {
		var replaced []Entry
		if err := im.apply(ctx, &scan.records[i].record, &replaced); err != nil {
			return fmt.Errorf("replay epoch %d: %w", scan.records[i].epoch, err)
		}
		im.retire(replaced)
	}
	im.marked = max(im.marked, min(scan.durable, im.epoch))
	for _, r := range scan.records[kept:] {
		for _, p := range r.pages {
			im.slots.pin(p.Slot)
			im.pinned = append(im.pinned, p.Slot)
		}
	}
	return nil
}

// readSuperblock returns the newer of the region's superblocks that is whole.
func readSuperblock(ctx context.Context, dev Device, id ID, at Slot) (superblock, error) {
	var found *superblock
	var firstErr error
	for i := range Slot(2) {
		b := make([]byte, superSize)
		if err := dev.Read(ctx, b, (at + i).Offset()); err != nil {
			return superblock{}, fmt.Errorf("read superblock: %w", err)
		}
		var sb superblock
		err := sb.decode(b, (at + i).Offset())
		if err == nil && (sb.id != id || sb.sequence%2 != uint64(i)) {
			err = &CorruptError{Region: id, Off: (at + i).Offset(), Page: NoPage, What: "superblock: it belongs to another region"}
		}
		switch {
		case errors.Is(err, ErrVersion):
			return superblock{}, err
		case err != nil:
			if firstErr == nil {
				firstErr = err
			}
		case found == nil || sb.sequence > found.sequence:
			found = &sb
		}
	}
	if found == nil {
		return superblock{}, firstErr
	}
	return *found, nil
}

// A placedRecord is a record with the log run it is in and the byte where it ends.
type placedRecord struct {
	record
	run, end int
}

// A logScan is what the log holds after a superblock.
type logScan struct {
	records []placedRecord // epochs sb.epoch+1, +2, ...
	durable epoch.ID       // highest epoch that any record of the log calls durable
	durAt   int64          // where in the pool it says so
}

// scanLog reads both log runs.
func scanLog(ctx context.Context, dev Device, sb superblock) (*logScan, error) {
	s := &logScan{durable: sb.epoch}
	next, gen := sb.epoch+1, sb.generation
	for run, place := range sb.log {
		b := make([]byte, place.N*PageSize)
		if err := dev.Read(ctx, b, place.Start.Offset()); err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
		at := 0
		for at+recordHeader <= len(b) {
			var r record
			n, err := r.decode(b[at:], place.Start.Offset()+int64(at))
			// A record of another region, of an epoch out of turn, or of a writer
			// before the one that wrote the record before: left from earlier.
			if err != nil || r.id != sb.id || r.kind != kindEpoch || r.epoch != next || r.generation < gen {
				break
			}
			at += n
			next, gen = next+1, r.generation
			s.records = append(s.records, placedRecord{r, run, at})
		}
		// Look at the rest too: what it says of durable epochs must have been found.
		for off := 0; off+recordHeader <= len(b); off += recordAlign {
			var r record
			if string(b[off:off+8]) != recordMagic {
				continue
			}
			if _, err := r.decode(b[off:], place.Start.Offset()+int64(off)); err != nil || r.id != sb.id {
				continue
			}
			if r.durable > s.durable {
				s.durable, s.durAt = r.durable, place.Start.Offset()+int64(off)
			}
		}
	}
	return s, nil
}

// missing returns an error if the log says that an epoch after last was durable:
// then its record or its pages are damaged, and going on would lose it silently.
func (s *logScan) missing(id ID, last epoch.ID) error {
	if s.durable <= last {
		return nil
	}
	return &CorruptError{Region: id, Off: s.durAt, Page: NoPage,
		What: fmt.Sprintf("log: epoch %d was durable, but only epoch %d is whole", s.durable, last)}
}

// verify reads the pages that the first n records leave in the table, but for epochs
// that were durable, and compares their checksums.
func (s *logScan) verify(ctx context.Context, dev Device, id ID, n int) error {
	newest := make(map[uint64]PageChange)
	for _, r := range s.records[:n] {
		if r.epoch <= s.durable {
			continue
		}
		maps.DeleteFunc(newest, func(page uint64, _ PageChange) bool { return page >= r.cut })
		for _, p := range r.pages {
			newest[p.Page] = p
		}
	}
	pages := slices.SortedFunc(maps.Values(newest), func(a, b PageChange) int { return cmpSlot(a.Slot, b.Slot) })
	return verifyPages(ctx, dev, id, pages)
}

// verifyPages reads pages and compares their checksums.
func verifyPages(ctx context.Context, dev Device, id ID, pages []PageChange) error {
	const batch = 256
	buf := make([]byte, batch*PageSize)
	for len(pages) > 0 {
		if pages[0].Slot == 0 {
			pages = pages[1:]
			continue
		}
		n := 1 // pages in adjacent slots
		for n < batch && n < len(pages) && pages[n].Slot == pages[0].Slot+Slot(n) {
			n++
		}
		if err := dev.Read(ctx, buf[:n*PageSize], pages[0].Slot.Offset()); err != nil {
			return err
		}
		for i, p := range pages[:n] {
			if Checksum(buf[i*PageSize:(i+1)*PageSize]) != p.CRC {
				return &CorruptError{Region: id, Off: p.Slot.Offset(), Page: p.Page, What: "checksum"}
			}
		}
		pages = pages[n:]
	}
	return nil
}
