// Package region keeps the durable image of one region: an array of pages of
// which recovery always finds the last committed epoch, whole.
//
// Pages live in slots of a pool and are never overwritten in place. A page table,
// a tree of 4 KiB nodes, maps page numbers to slots and checksums. A commit
// appends one record to the region's log; the record names every page of the
// epoch with its slot and CRC-32C and certifies itself, so pages and record can
// reach the medium in any order, and one flush commits. In the background the
// changed parts of the table are written to free slots and a superblock is
// replaced, which cuts the log short. docs/format.md has the bytes.
package region

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// PageSize is the size in bytes of a page and of a slot.
const PageSize = 4096

// An ID names a region in its pool: its inode number. It is never used twice.
type ID uint64

// A Slot is a page's place in the pool: the byte offset of its start divided by
// PageSize. Slot 0 holds the pool's own header, so 0 means no slot.
type Slot uint64

// Offset returns the slot's place in the pool in bytes.
func (s Slot) Offset() int64 { return int64(s) * PageSize }

// MaxSlot bounds the slots of a pool so that every offset fits an int64.
const MaxSlot Slot = 1 << 48

// A Run is a run of adjacent slots. An extent is a run granted to one region.
type Run struct {
	Start Slot
	N     uint64
}

// End returns the slot after the run.
func (r Run) End() Slot { return r.Start + Slot(r.N) }

// A Device is the pool as the writer of a region reaches it. Offsets and lengths
// are bytes in the pool. Write may return before the bytes are visible or
// persistent; Read sees earlier Writes of the same Device.
//
// When Flush returns nil all earlier Writes are in the persistence domain of the
// medium. A failed Flush is never repeated, but for one that found no space for some of
// them, ErrNoSpace: these are kept, in their order, and no later Flush succeeds without
// them.
type Device interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64) error
	Flush(ctx context.Context) error
}

// A Space grants slots to a region ahead of need; package memnode has one.
type Space interface {
	// Grant gives the region at least need and at best want more slots, in as
	// few runs as it can, durably. The first grant also formats the region.
	// ErrNoSpace if fewer than need are left.
	Grant(ctx context.Context, id ID, need, want uint64) (Grant, error)
	// Return gives back extents of which no slot is in use.
	Return(ctx context.Context, id ID, runs []Run) error
}

// A Grant is the answer to Space.Grant.
type Grant struct {
	Runs  []Run
	Super Slot // where the region's superblocks are
}

// MinFirstGrant is how many slots the first grant of a region has at least, in
// one run: Format needs FormatSlots of them.
const MinFirstGrant = 8

// A Tree names a page table on the device. The zero Tree has no pages.
type Tree struct {
	Root   Slot
	CRC    uint32 // CRC-32C of the root node
	Height uint32 // levels; 0 for the empty tree
}

// A Checkpoint is a committed epoch kept under a name.
type Checkpoint struct {
	Name  string
	Epoch epoch.ID
	Time  int64  // when it was made, ns since 1970
	Size  uint64 // of the file, in bytes
	Mtime int64  // of the file, ns since 1970
	Pages uint64 // in Tree
	Tree  Tree
}

// MaxCheckpointName is the longest checkpoint name in bytes.
const MaxCheckpointName = 255

// HiddenPrefix begins the names of checkpoints that people do not see.
const HiddenPrefix = "\x00"

// Hidden reports a checkpoint that no one asked for by name: it is not listed, and
// cannot be dropped or restored.
func (c *Checkpoint) Hidden() bool { return strings.HasPrefix(c.Name, HiddenPrefix) }

// PinName is the name of the hidden checkpoint that keeps an epoch for those who read
// it on other machines.
func PinName(e epoch.ID) string { return pinPrefix + strconv.FormatUint(uint64(e), 10) }

const pinPrefix = HiddenPrefix + "pin-"

// IsPin reports a name that PinName returns.
func IsPin(name string) bool { return strings.HasPrefix(name, pinPrefix) }

// A Location is what the pool's directory remembers of a region.
type Location struct {
	ID          ID
	Super       Slot // first of two adjacent superblocks; 0 until the first grant
	Extents     []Run
	Checkpoints []Checkpoint
	// Family holds the other regions that may share slots with this one.
	Family []ID
}

var (
	// ErrCorrupt reports bytes at rest that no version of this package wrote,
	// or a page whose checksum does not match.
	ErrCorrupt = errors.New("region: corrupt")
	// ErrVersion reports a format of another version of this package.
	ErrVersion = errors.New("region: unknown version")
	// ErrNoSpace reports that the pool has no slot left. The open epoch stays as
	// it is; it can commit when space was freed.
	ErrNoSpace = errors.New("region: no space left in the pool")
	// ErrPinned reports a region that cannot be freed yet: another machine reads it.
	ErrPinned = errors.New("region: another machine reads it")
)

// A CorruptError says where damage is. It matches ErrCorrupt.
type CorruptError struct {
	Region ID
	Off    int64  // bytes from the start of the pool
	Page   uint64 // NoPage unless a page of the region is hit
	What   string // as named in docs/format.md
}

// NoPage is no page's number.
const NoPage = math.MaxUint64

func (e *CorruptError) Error() string {
	if e.Page != NoPage {
		return fmt.Sprintf("region %d: page %d: slot at byte %d of the pool: %s does not match", e.Region, e.Page, e.Off, e.What)
	}
	return fmt.Sprintf("region %d: byte %d of the pool: bad %s", e.Region, e.Off, e.What)
}

func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
