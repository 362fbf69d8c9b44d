package memnode

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// Every encode returns a value's body, every decode takes one: what openValue
// returns, so without the checksum. A decode sets its receiver only on success
// and keeps no reference to b.

// checkBody checks the length of a body and that its reserved ranges are zero.
// reserved is pairs of start and end.
func checkBody(b []byte, size int, reserved ...int) error {
	if len(b) != size {
		return fmt.Errorf("value of %d bytes, want %d", len(b), size)
	}
	for i := 0; i < len(reserved); i += 2 {
		if !zero(b[reserved[i]:reserved[i+1]]) {
			return errors.New("reserved bytes are not zero")
		}
	}
	return nil
}

func newBody(size int) []byte {
	b := make([]byte, size, size+4) // room for the checksum
	b[0] = valueVersion
	return b
}

// A poolRecord never changes.
//
//	Offset Size Field
//	     0    1 version   1
//	     1    7 reserved  zero
//	     8   16 pool      UUID, as in the pool header
//	    24    8 slots     as in the pool header
//	    32    8 created   ns since 1970
type poolRecord header

const poolRecordSize = 40

func (r *poolRecord) encode() []byte {
	b := newBody(poolRecordSize)
	copy(b[8:], r.pool[:])
	binary.LittleEndian.PutUint64(b[24:], r.slots)
	binary.LittleEndian.PutUint64(b[32:], uint64(r.created))
	return b
}

func (r *poolRecord) decode(b []byte) error {
	if err := checkBody(b, poolRecordSize, 1, 8); err != nil {
		return err
	}
	slots := binary.LittleEndian.Uint64(b[24:])
	if !validSlots(slots) {
		return fmt.Errorf("%d slots", slots)
	}
	*r = poolRecord{pool: uuid(b[8:24]), slots: slots, created: int64(binary.LittleEndian.Uint64(b[32:]))}
	return nil
}

// A stateRecord is the pool's counters.
//
//	Offset Size Field
//	     0    1 version     1
//	     1    7 reserved    zero
//	     8    8 generation  of the last writer
//	    16    8 next_ino    no inode has this number or a larger one
//	    24    8 inodes      in the pool
type stateRecord struct {
	generation uint64
	nextIno    namespace.Ino
	inodes     uint64
}

const stateRecordSize = 32

func (r *stateRecord) encode() []byte {
	b := newBody(stateRecordSize)
	binary.LittleEndian.PutUint64(b[8:], r.generation)
	binary.LittleEndian.PutUint64(b[16:], uint64(r.nextIno))
	binary.LittleEndian.PutUint64(b[24:], r.inodes)
	return b
}

func (r *stateRecord) decode(b []byte) error {
	if err := checkBody(b, stateRecordSize, 1, 8); err != nil {
		return err
	}
	n := stateRecord{
		generation: binary.LittleEndian.Uint64(b[8:]),
		nextIno:    namespace.Ino(binary.LittleEndian.Uint64(b[16:])),
		inodes:     binary.LittleEndian.Uint64(b[24:]),
	}
	if n.nextIno <= namespace.Root || n.inodes >= uint64(n.nextIno) {
		return fmt.Errorf("%d inodes, next number %d", n.inodes, n.nextIno)
	}
	*r = n
	return nil
}

// encodeInode lays an inode out:
//
//	Offset Size Field
//	     0    1 version      1; 2 in a share
//	     1    1 on_close     namespace.OnClose
//	     2    2 reserved     zero
//	     4    4 mode         as st_mode
//	     8    4 uid
//	    12    4 gid
//	    16    4 nlink        0: an orphan
//	    20    4 rdev
//	    24    8 parent       of a directory, else 0
//	    32    8 atime        ns since 1970, as the next two
//	    40    8 mtime
//	    48    8 ctime
//	    56    8 mtime_epoch  the region's committed epoch when mtime was set
//	    64    2 target_len
//	    66    6 share        directory of the share it is in; 0: none
//	    72    - target       of a symbolic link
func encodeInode(n *namespace.Inode) []byte {
	b := newBody(inodeSize + len(n.Target))
	le := binary.LittleEndian
	if n.Share != 0 {
		b[0] = shareInodeVersion
	}
	b[1] = byte(n.OnClose)
	le.PutUint32(b[4:], n.Mode)
	le.PutUint32(b[8:], n.UID)
	le.PutUint32(b[12:], n.GID)
	le.PutUint32(b[16:], n.Nlink)
	le.PutUint32(b[20:], n.Rdev)
	le.PutUint64(b[24:], uint64(n.Parent))
	le.PutUint64(b[32:], uint64(n.Atime))
	le.PutUint64(b[40:], uint64(n.Mtime))
	le.PutUint64(b[48:], uint64(n.Ctime))
	le.PutUint64(b[56:], uint64(n.MtimeEpoch))
	le.PutUint16(b[64:], uint16(len(n.Target)))
	le.PutUint16(b[66:], uint16(n.Share))
	le.PutUint32(b[68:], uint32(n.Share>>16))
	copy(b[inodeSize:], n.Target)
	return b
}

const inodeSize = 72

// decodeInode decodes the inode with the number ino.
func decodeInode(ino namespace.Ino, b []byte) (namespace.Inode, error) {
	if len(b) < inodeSize {
		return namespace.Inode{}, fmt.Errorf("value of %d bytes, want at least %d", len(b), inodeSize)
	}
	le := binary.LittleEndian
	if err := checkBody(b, inodeSize+int(le.Uint16(b[64:])), 2, 4); err != nil {
		return namespace.Inode{}, err
	}
	n := namespace.Inode{
		Ino:        ino,
		OnClose:    namespace.OnClose(b[1]),
		Mode:       le.Uint32(b[4:]),
		UID:        le.Uint32(b[8:]),
		GID:        le.Uint32(b[12:]),
		Nlink:      le.Uint32(b[16:]),
		Rdev:       le.Uint32(b[20:]),
		Parent:     namespace.Ino(le.Uint64(b[24:])),
		Atime:      int64(le.Uint64(b[32:])),
		Mtime:      int64(le.Uint64(b[40:])),
		Ctime:      int64(le.Uint64(b[48:])),
		MtimeEpoch: epoch.ID(le.Uint64(b[56:])),
		Share:      namespace.Ino(le.Uint16(b[66:])) | namespace.Ino(le.Uint32(b[68:]))<<16,
		Target:     string(b[inodeSize:]),
	}
	switch {
	case !validType(n.Mode):
		return namespace.Inode{}, fmt.Errorf("mode %#o", n.Mode)
	case (n.Share != 0) != (b[0] == shareInodeVersion) || n.Share == namespace.Root || isShare(&n) && n.Parent != namespace.Root:
		return namespace.Inode{}, fmt.Errorf("version %d with share %d", b[0], n.Share)
	case n.OnClose > namespace.OnCloseCommit:
		return namespace.Inode{}, fmt.Errorf("on_close %d", n.OnClose)
	case isDir(n.Mode) != (n.Parent != 0):
		return namespace.Inode{}, fmt.Errorf("mode %#o with parent %d", n.Mode, n.Parent)
	case (n.Mode&unix.S_IFMT == unix.S_IFLNK) != (n.Target != "") || len(n.Target) > namespace.MaxSymlink:
		return namespace.Inode{}, fmt.Errorf("mode %#o with a target of %d bytes", n.Mode, len(n.Target))
	}
	return n, nil
}

// validType tells whether mode is that of something a directory can hold.
func validType(mode uint32) bool {
	if mode&^uint32(unix.S_IFMT|0o7777) != 0 {
		return false
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return true
	}
	return false
}

func isDir(mode uint32) bool     { return mode&unix.S_IFMT == unix.S_IFDIR }
func isRegular(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG }

// A dirent is what a name stands for.
//
//	Offset Size Field
//	     0    1 version   1
//	     1    3 reserved  zero
//	     4    4 type      type bits of st_mode
//	     8    8 ino
type dirent struct {
	ino  namespace.Ino
	mode uint32
}

const direntSize = 16

func (d *dirent) encode() []byte {
	b := newBody(direntSize)
	binary.LittleEndian.PutUint32(b[4:], d.mode)
	binary.LittleEndian.PutUint64(b[8:], uint64(d.ino))
	return b
}

func (d *dirent) decode(b []byte) error {
	if err := checkBody(b, direntSize, 1, 4); err != nil {
		return err
	}
	n := dirent{mode: binary.LittleEndian.Uint32(b[4:]), ino: namespace.Ino(binary.LittleEndian.Uint64(b[8:]))}
	if n.ino <= namespace.Root || !validType(n.mode) || n.mode&^uint32(unix.S_IFMT) != 0 {
		return fmt.Errorf("inode %d of type %#o", n.ino, n.mode)
	}
	*d = n
	return nil
}

// A regionRecord is missing until the region's first grant.
//
//	Offset Size Field
//	     0    1 version   1
//	     1    7 reserved  zero
//	     8    8 super     first of two adjacent superblocks
//	    16    8 family    0: shares slots with no other region
type regionRecord struct {
	super  region.Slot
	family uint64
}

const regionRecordSize = 24

func (r *regionRecord) encode() []byte {
	b := newBody(regionRecordSize)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.super))
	binary.LittleEndian.PutUint64(b[16:], r.family)
	return b
}

func (r *regionRecord) decode(b []byte) error {
	if err := checkBody(b, regionRecordSize, 1, 8); err != nil {
		return err
	}
	super := region.Slot(binary.LittleEndian.Uint64(b[8:]))
	if super == 0 || super >= region.MaxSlot {
		return fmt.Errorf("superblock in slot %d", super)
	}
	*r = regionRecord{super: super, family: binary.LittleEndian.Uint64(b[16:])}
	return nil
}

// encodeExtent lays out how many slots an extent has; its owner and start are
// in the key:
//
//	Offset Size Field
//	     0    1 version   1
//	     1    7 reserved  zero
//	     8    8 slots
func encodeExtent(n uint64) []byte {
	b := newBody(extentSize)
	binary.LittleEndian.PutUint64(b[8:], n)
	return b
}

const extentSize = 16

// decodeExtent decodes the extent that begins at start.
func decodeExtent(start region.Slot, b []byte) (region.Run, error) {
	if err := checkBody(b, extentSize, 1, 8); err != nil {
		return region.Run{}, err
	}
	n := binary.LittleEndian.Uint64(b[8:])
	r := region.Run{Start: start, N: n}
	if !validRun(r) {
		return region.Run{}, fmt.Errorf("%d slots from %d", n, start)
	}
	return r, nil
}

// validRun tells whether a pool can have such slots.
func validRun(r region.Run) bool {
	return r.Start > 0 && r.Start < region.MaxSlot && r.N > 0 && r.N <= uint64(region.MaxSlot-r.Start)
}

// encodeCheckpoint lays out a checkpoint; its region and name are in the key:
//
//	Offset Size Field
//	     0    1 version   1
//	     1    3 reserved  zero
//	     4    4 height    levels of the page table; 0: no pages
//	     8    8 epoch
//	    16    8 time      when it was made, ns since 1970
//	    24    8 size      of the file, in bytes
//	    32    8 mtime     of the file, ns since 1970
//	    40    8 pages     in the page table
//	    48    8 root      slot of the root node, 0 if height is 0
//	    56    4 root_crc  CRC-32C of the root node
//	    60    4 reserved  zero
func encodeCheckpoint(c *region.Checkpoint) []byte {
	b := newBody(checkpointSize)
	le := binary.LittleEndian
	le.PutUint32(b[4:], c.Tree.Height)
	le.PutUint64(b[8:], uint64(c.Epoch))
	le.PutUint64(b[16:], uint64(c.Time))
	le.PutUint64(b[24:], c.Size)
	le.PutUint64(b[32:], uint64(c.Mtime))
	le.PutUint64(b[40:], c.Pages)
	le.PutUint64(b[48:], uint64(c.Tree.Root))
	le.PutUint32(b[56:], c.Tree.CRC)
	return b
}

const checkpointSize = 64

// decodeCheckpoint decodes the checkpoint of the given name.
func decodeCheckpoint(name string, b []byte) (region.Checkpoint, error) {
	if err := checkBody(b, checkpointSize, 1, 4, 60, 64); err != nil {
		return region.Checkpoint{}, err
	}
	le := binary.LittleEndian
	c := region.Checkpoint{
		Name:  name,
		Epoch: epoch.ID(le.Uint64(b[8:])),
		Time:  int64(le.Uint64(b[16:])),
		Size:  le.Uint64(b[24:]),
		Mtime: int64(le.Uint64(b[32:])),
		Pages: le.Uint64(b[40:]),
		Tree:  region.Tree{Root: region.Slot(le.Uint64(b[48:])), CRC: le.Uint32(b[56:]), Height: le.Uint32(b[4:])},
	}
	if (c.Tree.Height == 0) != (c.Tree.Root == 0) || c.Tree.Root >= region.MaxSlot {
		return region.Checkpoint{}, fmt.Errorf("table of %d levels with root %d", c.Tree.Height, c.Tree.Root)
	}
	return c, nil
}

// encodeXattr lays out an extended attribute; its inode and name are in the key:
//
//	Offset Size Field
//	     0    1 version   1
//	     1    3 reserved  zero
//	     4    - value
func encodeXattr(value []byte) []byte {
	b := newBody(xattrSize + len(value))
	copy(b[xattrSize:], value)
	return b
}

const xattrSize = 4

// decodeXattr returns a copy of the value.
func decodeXattr(b []byte) ([]byte, error) {
	if len(b) < xattrSize || len(b) > xattrSize+namespace.MaxXattrValue {
		return nil, fmt.Errorf("value of %d bytes", len(b))
	}
	if !zero(b[1:xattrSize]) {
		return nil, errors.New("reserved bytes are not zero")
	}
	return append([]byte{}, b[xattrSize:]...), nil
}

// encodeMark lays out a value that says nothing but that its key is there:
//
//	Offset Size Field
//	     0    1 version   1
//	     1    3 reserved  zero
func encodeMark() []byte { return newBody(markSize) }

const markSize = 4

func decodeMark(b []byte) error { return checkBody(b, markSize, 1, 4) }
