package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/rpmemfs/rpmemfs/region"
)

// A history is what a file may hold: epochs, oldest first, by their stamps. The first
// is the newest that is known to be durable, because its commit was acknowledged or a reader saw
// it; the others were tried after it and may have become durable. 0 is the empty file.
//
// A stamp that leaves the history must never be seen again.
type history struct {
	epochs []uint64
	gone   map[uint64]string // stamps that left, and why
}

func newHistory() *history {
	return &history{epochs: []uint64{0}, gone: map[uint64]string{}}
}

// try adds an epoch that is about to commit.
func (h *history) try(stamp uint64) { h.epochs = append(h.epochs, stamp) }

// acknowledge says that the commit of an epoch has returned without an error, or that a
// reader saw the epoch: from then on it lasts.
func (h *history) acknowledge(stamp uint64, how string) error {
	i := slices.Index(h.epochs, stamp)
	if i < 0 {
		if h.gone[stamp] == replaced {
			return nil // the answer came late, or the reader keeps it
		}
		return fmt.Errorf("not durable: epoch %d was %s, but %s", stamp, how, h.why(stamp))
	}
	h.drop(h.epochs[:i], replaced)
	h.epochs = slices.Clone(h.epochs[i:])
	return nil
}

const replaced = "it was replaced by a later epoch"

// observe says that recovery found an epoch. Those after it are refused.
func (h *history) observe(stamp uint64) error {
	i := slices.Index(h.epochs, stamp)
	if i < 0 {
		return fmt.Errorf("recovery found epoch %d, want one of %v: %s", stamp, h.epochs, h.why(stamp))
	}
	h.drop(h.epochs[i+1:], "recovery refused it")
	h.epochs = h.epochs[:i+1]
	return nil
}

func (h *history) drop(stamps []uint64, why string) {
	for _, s := range stamps {
		h.gone[s] = why
	}
}

func (h *history) why(stamp uint64) string {
	if why, ok := h.gone[stamp]; ok {
		return why
	}
	return "it never began to commit, or its writer was fenced"
}

// A share is a share of the pool and what it must hold.
type share struct {
	name string

	mu         sync.Mutex
	generation uint64 // of the newest lease that is known
	files      map[string]*history
	made       map[string]bool // files whose creation was acknowledged
}

func newShare(name string) *share {
	return &share{name: name, files: make(map[string]*history), made: make(map[string]bool)}
}

// maxPages is the size of the largest file.
const maxPages = 48

// sizeOf is the size in bytes of a file in the epoch of a stamp.
func sizeOf(stamp uint64) int {
	if stamp == 0 {
		return 0
	}
	h := stamp * 0x9e3779b97f4a7c15
	pages := 1 + int(h>>32%maxPages)
	if h>>60 > 3 {
		pages = 1 + pages/8
	}
	return pages*region.PageSize - int(h>>20%4000) // at least a few words
}

// content is what a file holds in the epoch of a stamp: each word of each page tells
// the epoch and its place.
func content(stamp uint64) []byte {
	b := make([]byte, (sizeOf(stamp)+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], stamp<<32|uint64(i))
	}
	return b[:sizeOf(stamp)]
}

// stampOf returns the one epoch that b is of.
func stampOf(b []byte) (uint64, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if len(b) < 8 {
		return 0, fmt.Errorf("not atomic: found %d bytes", len(b))
	}
	stamp := binary.LittleEndian.Uint64(b) >> 32
	want := content(stamp)
	if len(want) != len(b) {
		return stamp, fmt.Errorf("not atomic: epoch %d has %d bytes, found %d", stamp, len(want), len(b))
	}
	for i := range want {
		if b[i] != want[i] {
			var other [8]byte
			copy(other[:], b[i/8*8:])
			return stamp, fmt.Errorf("not atomic: byte 0 is of epoch %d, byte %d of epoch %d", stamp, i, binary.LittleEndian.Uint64(other[:])>>32)
		}
	}
	return stamp, nil
}
