package region_test

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/rpmemfs/rpmemfs/region"
)

// A forged table of six slots claims 2^40 pages: each entry of a node leads to the
// same node below. Check ends.
func TestCheckEndsOnForgedTable(t *testing.T) {
	m := newMemory(20)
	slot, crc := region.Slot(1), region.Checksum(m.bytes[region.PageSize:2*region.PageSize])
	for range 5 {
		node := m.bytes[(slot + 1).Offset():][:region.PageSize]
		for i := 0; i < len(node); i += 16 {
			binary.LittleEndian.PutUint64(node[i:], uint64(slot))
			binary.LittleEndian.PutUint32(node[i+8:], crc)
		}
		slot, crc = slot+1, region.Checksum(node)
	}
	im, err := region.Open(t.Context(), region.Config{Device: m, Location: region.Location{ID: 7, Extents: []region.Run{{Start: 1, N: 10}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.View(region.Checkpoint{Tree: region.Tree{Root: slot, CRC: crc, Height: 5}, Pages: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	problems := 0
	if _, err := im.Check(ctx, func(error) { problems++ }, nil); err != nil {
		t.Fatal(err)
	}
	if problems == 0 {
		t.Error("no problem was found")
	}
}
