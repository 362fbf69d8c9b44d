package rdmacache

import (
	"context"
	"errors"

	"github.com/rpmemfs/rpmemfs/region"
)

// A place is where the bytes of a page are.
type place struct {
	entry region.Entry // Slot 0: a hole, or frame
	frame []byte       // a copy
}

// A view is the image of the file from some layer down.
type view int

const (
	viewBelow   view = iota // what the newest sealed epoch began with, truncated as it was since
	viewSealed              // what the open epoch began with, truncated as it was since
	viewWritten             // and what write(2) changed since
	viewNewest              // and what mappings did
)

// overlaid returns where the layers of v above the committed image keep page.
// found is false if the committed image has it; d is nil for a hole. mu is held.
func (c *Cache) overlaid(page uint64, v view) (d *dirty, found bool) {
	if d := c.mapped[page]; d != nil && v == viewNewest {
		return d, true
	}
	if d := c.written[page]; d != nil && v >= viewWritten {
		return d, true
	}
	if page >= c.cut && v > viewBelow {
		return nil, true
	}
	for i := len(c.sealed) - 1; i >= 0; i-- {
		s := c.sealed[i]
		if d := s.pages[page]; d != nil && (v > viewBelow || i < len(c.sealed)-1) {
			return d, true
		}
		if page >= s.cut {
			return nil, true
		}
	}
	return nil, false
}

// find returns where page is in v. A frame is copied.
func (c *Cache) find(ctx context.Context, page uint64, v view) (place, error) {
	c.mu.Lock()
	d, found := c.overlaid(page, v)
	var p place
	switch {
	case d == nil || d.hole:
	case d.frame != nil:
		p.frame = append([]byte(nil), d.frame...)
	default:
		p.entry = region.Entry{Slot: d.slot, CRC: d.crc}
	}
	c.mu.Unlock()
	if found {
		return p, nil
	}
	e, err := c.image.Lookup(ctx, page)
	return place{entry: e}, err
}

// maxReadTries bounds how often a read follows a page that moves.
const maxReadTries = 1000

// readPage reads page of v into p, PageSize bytes.
func (c *Cache) readPage(ctx context.Context, page uint64, v view, p []byte) error {
	var last region.Entry
	var failed error // of a read of last
	for try := 0; ; try++ {
		at, err := c.find(ctx, page, v)
		if err != nil {
			return err
		}
		if at.frame != nil {
			copy(p, at.frame)
			return nil
		}
		if at.entry.Slot == 0 {
			clear(p)
			return nil
		}
		moved := try == 0 || !samePlace(at.entry, last)
		if failed != nil && !moved {
			return failed
		}
		// After find the page may have left its slot. If that was used again, a
		// checksum differs; if the pool has it back, it is out of reach. Where the
		// page still is in the same place, it is damaged.
		failed = nil
		err = c.readSlot(ctx, page, at.entry, p)
		switch {
		case err == nil:
			return nil
		case try > maxReadTries, errors.Is(err, region.ErrCorrupt) && !moved:
			return err
		case !errors.Is(err, region.ErrCorrupt):
			failed = err
		}
		last = at.entry
	}
}

// samePlace says whether two entries name the same bytes.
func samePlace(a, b region.Entry) bool { return a.Slot == b.Slot && a.CRC == b.CRC }

// ReadAt reads the newest bytes, open epoch included. It returns less than len(p)
// only at the end of the file. Every page is verified: damage is an error that
// matches region.ErrCorrupt, and no byte of that page is returned as good.
func (c *Cache) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	size := c.Size()
	if off >= size || off < 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		if at%PageSize == 0 && len(p)-done >= PageSize {
			read := c.readRun
			if c.pages != nil {
				read = c.readRuns
			}
			n, err := read(ctx, p[done:len(p)-(len(p)-done)%PageSize], uint64(at/PageSize))
			done += n
			if err != nil {
				return done, err
			}
			continue
		}
		var buf [PageSize]byte
		if err := c.readPage(ctx, uint64(at/PageSize), viewNewest, buf[:]); err != nil {
			return done, err
		}
		done += copy(p[done:], buf[at%PageSize:])
	}
	return len(p), nil
}

// readRun reads whole pages from page on, at least one: those that lie in adjacent
// slots by one read. It returns the bytes read.
func (c *Cache) readRun(ctx context.Context, p []byte, page uint64) (int, error) {
	first, err := c.find(ctx, page, viewNewest)
	if err != nil {
		return 0, err
	}
	if first.frame != nil || first.entry.Slot == 0 {
		copy(p[:PageSize], first.frame)
		if first.frame == nil {
			clear(p[:PageSize])
		}
		return PageSize, nil
	}
	run := []region.Entry{first.entry}
	for n := 1; n < len(p)/PageSize; n++ {
		next, err := c.find(ctx, page+uint64(n), viewNewest)
		if err != nil || next.frame != nil || next.entry.Slot != first.entry.Slot+region.Slot(n) {
			break // an error comes up again when its turn is
		}
		run = append(run, next.entry)
	}
	p = p[:len(run)*PageSize]
	if err := c.conn.Read(ctx, p, first.entry.Slot.Offset()); err != nil {
		if c.stay(ctx, page, run) {
			return 0, err
		}
		if err := c.readPage(ctx, page, viewNewest, p[:PageSize]); err != nil {
			return 0, err
		}
		return PageSize, nil
	}
	for i, e := range run {
		b := p[i*PageSize : (i+1)*PageSize]
		if region.Checksum(b) != e.CRC {
			if err := c.readPage(ctx, page+uint64(i), viewNewest, b); err != nil {
				return i * PageSize, err
			}
		}
	}
	return len(p), nil
}

// readRuns reads whole pages from page on, at least one, out of local memory or over
// the wire: those that lie in adjacent slots by one read, and the reads beside each
// other. It returns the bytes read.
func (c *Cache) readRuns(ctx context.Context, p []byte, page uint64) (int, error) {
	entries := make([]region.Entry, 0, len(p)/PageSize)
	for i := range cap(entries) {
		at, err := c.find(ctx, page+uint64(i), viewNewest)
		if err != nil {
			if i == 0 {
				return 0, err
			}
			break // it comes up again when its turn is
		}
		b := p[i*PageSize : (i+1)*PageSize]
		switch {
		case at.frame != nil:
			copy(b, at.frame)
			at.entry = region.Entry{}
		case at.entry.Slot == 0:
			clear(b)
		}
		entries = append(entries, at.entry)
	}
	for _, i := range c.pages.read(ctx, c.conn, entries, p) {
		if err := c.readPage(ctx, page+uint64(i), viewNewest, p[i*PageSize:(i+1)*PageSize]); err != nil {
			return i * PageSize, err
		}
	}
	return len(entries) * PageSize, nil
}

// readSlot reads and verifies the page that e places.
func (c *Cache) readSlot(ctx context.Context, page uint64, e region.Entry, p []byte) error {
	if c.pages != nil && len(c.pages.read(ctx, c.conn, []region.Entry{e}, p)) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err // of who waited for somebody else's read
	}
	return region.ReadPage(ctx, c.conn, c.image.ID(), page, e, p)
}

// stay says whether the pages from page on are where run says.
func (c *Cache) stay(ctx context.Context, page uint64, run []region.Entry) bool {
	for i, e := range run {
		at, err := c.find(ctx, page+uint64(i), viewNewest)
		if err == nil && (at.frame != nil || !samePlace(at.entry, e)) {
			return false
		}
	}
	return true
}
