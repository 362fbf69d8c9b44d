package rdmacache

import (
	"cmp"
	"context"
	"slices"

	"github.com/rpmemfs/rpmemfs/region"
)

// A framed page is one to push.
type framed struct {
	no uint64
	d  *dirty
}

// spill pushes frames of the open epoch to their slots while too many are held.
// gate is held.
func (c *Cache) spill(ctx context.Context) error {
	c.mu.Lock()
	if c.frames <= c.limit {
		c.mu.Unlock()
		return nil
	}
	var out []framed
	for _, l := range []layer{c.written, c.mapped} {
		for no, d := range l {
			if d.frame != nil && d.slot != 0 && !d.pushing {
				d.pushing = true
				out = append(out, framed{no, d})
			}
		}
	}
	c.mu.Unlock()
	err := c.push(ctx, out)

	var freed []region.Slot
	c.mu.Lock()
	for _, f := range out {
		switch {
		case c.layerOf(f.d.source)[f.no] != f.d:
			freed = append(freed, c.drop(f.d)) // replaced meanwhile
		case err == nil:
			f.d.frame, f.d.pushing = nil, false
			c.frames--
		default:
			f.d.pushing = false
		}
	}
	c.mu.Unlock()
	c.image.Release(freed...)
	return err
}

// push writes frames to their slots, adjacent ones by one write, and sets their
// checksums. Nobody changes them meanwhile.
func (c *Cache) push(ctx context.Context, out []framed) error {
	slices.SortFunc(out, func(a, b framed) int { return cmp.Compare(a.d.slot, b.d.slot) })
	buf := make([]byte, 0, min(maxBatch, len(out))*PageSize)
	for i := 0; i < len(out); {
		n := 0
		buf = buf[:0]
		for i+n < len(out) && n < maxBatch && out[i+n].d.slot == out[i].d.slot+region.Slot(n) {
			buf = append(buf, out[i+n].d.frame...)
			n++
		}
		if err := c.conn.Write(ctx, buf, out[i].d.slot.Offset()); err != nil {
			return err
		}
		i += n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range out {
		f.d.crc = region.Checksum(f.d.frame)
	}
	return nil
}
