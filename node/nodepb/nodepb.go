// Package nodepb is the memory node's API on the wire: what protoc made of
// node.proto, and the translation of its messages that both ends need.
//
// Messages come from outside: the functions that read them accept nil and any
// numbers, and leave it to the pool, or the caller, to refuse what makes no sense.
package nodepb

//go:generate ./generate.sh

import (
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
)

// The metadata that every call of a session carries.
const (
	SessionKey = "rpmemfs-session-bin"
	TokenKey   = "rpmemfs-token-bin"
)

// Sizes in bytes of what a session is known by.
const (
	SessionSize = 16
	TokenSize   = 32
	NonceSize   = 16
)

// WholePool is the name of the share that is the pool itself.
const WholePool = "/"

// Limits of messages. A file of a terabyte in a million pieces is still located in
// one answer.
const (
	MaxRequestBytes  = 2 << 20
	MaxResponseBytes = 64 << 20
	MaxReturnRuns    = 64 << 10 // in one ReturnRequest
)

// Remembered is how many answers to requests with an id a node keeps per session: of
// each id mod Remembered that of the largest.
const Remembered = 1024

// NewInode is the message of n.
func NewInode(n namespace.Inode) *Inode {
	return &Inode{
		Ino:        uint64(n.Ino),
		Mode:       n.Mode,
		Uid:        n.UID,
		Gid:        n.GID,
		Nlink:      n.Nlink,
		Rdev:       n.Rdev,
		Parent:     uint64(n.Parent),
		OnClose:    uint32(n.OnClose),
		Atime:      n.Atime,
		Mtime:      n.Mtime,
		Ctime:      n.Ctime,
		MtimeEpoch: uint64(n.MtimeEpoch),
		Target:     []byte(n.Target),
	}
}

// Namespace is the inode of the message; its Share is 0. An OnClose that does not
// exist becomes one that the pool refuses.
func (x *Inode) Namespace() namespace.Inode {
	return namespace.Inode{
		Ino:        namespace.Ino(x.GetIno()),
		Mode:       x.GetMode(),
		UID:        x.GetUid(),
		GID:        x.GetGid(),
		Nlink:      x.GetNlink(),
		Rdev:       x.GetRdev(),
		Parent:     namespace.Ino(x.GetParent()),
		OnClose:    namespace.OnClose(min(x.GetOnClose(), 0xff)),
		Atime:      x.GetAtime(),
		Mtime:      x.GetMtime(),
		Ctime:      x.GetCtime(),
		MtimeEpoch: epoch.ID(x.GetMtimeEpoch()),
		Target:     string(x.GetTarget()),
	}
}

// NewRuns is the message of runs.
func NewRuns(runs []region.Run) []*Run {
	out := make([]*Run, len(runs))
	for i, r := range runs {
		out[i] = &Run{Start: uint64(r.Start), N: r.N}
	}
	return out
}

// Runs is the inverse of NewRuns.
func Runs(runs []*Run) []region.Run {
	out := make([]region.Run, len(runs))
	for i, r := range runs {
		out[i] = region.Run{Start: region.Slot(r.GetStart()), N: r.GetN()}
	}
	return out
}

// NewCheckpoint is the message of cp.
func NewCheckpoint(cp region.Checkpoint) *Checkpoint {
	return &Checkpoint{
		Name:  []byte(cp.Name),
		Epoch: uint64(cp.Epoch),
		Time:  cp.Time,
		Size:  cp.Size,
		Mtime: cp.Mtime,
		Pages: cp.Pages,
		Tree:  newTree(cp.Tree),
	}
}

// Region is the checkpoint of the message.
func (x *Checkpoint) Region() region.Checkpoint {
	return region.Checkpoint{
		Name:  string(x.GetName()),
		Epoch: epoch.ID(x.GetEpoch()),
		Time:  x.GetTime(),
		Size:  x.GetSize(),
		Mtime: x.GetMtime(),
		Pages: x.GetPages(),
		Tree:  x.GetTree().region(),
	}
}

// NewSeed is the message of s.
func NewSeed(s region.Seed) *Seed {
	return &Seed{
		Epoch:  uint64(s.Epoch),
		Series: s.Series,
		Size:   s.Size,
		Mtime:  s.Mtime,
		Pages:  s.Pages,
		Tree:   newTree(s.Tree),
	}
}

// Region is the seed of the message, without an ID.
func (x *Seed) Region() region.Seed {
	return region.Seed{
		Epoch:  epoch.ID(x.GetEpoch()),
		Series: x.GetSeries(),
		Size:   x.GetSize(),
		Mtime:  x.GetMtime(),
		Pages:  x.GetPages(),
		Tree:   x.GetTree().region(),
	}
}

// NewLocation is the message of loc, whose ID the caller knows.
func NewLocation(loc region.Location) *LocateResponse {
	m := &LocateResponse{Super: uint64(loc.Super), Extents: NewRuns(loc.Extents)}
	for _, cp := range loc.Checkpoints {
		m.Checkpoints = append(m.Checkpoints, NewCheckpoint(cp))
	}
	for _, id := range loc.Family {
		m.Family = append(m.Family, uint64(id))
	}
	return m
}

// Region is the location of the message.
func (x *LocateResponse) Region(id region.ID) region.Location {
	loc := region.Location{ID: id, Super: region.Slot(x.GetSuper()), Extents: Runs(x.GetExtents())}
	for _, cp := range x.GetCheckpoints() {
		loc.Checkpoints = append(loc.Checkpoints, cp.Region())
	}
	for _, relative := range x.GetFamily() {
		loc.Family = append(loc.Family, region.ID(relative))
	}
	return loc
}

func newTree(t region.Tree) *Tree {
	return &Tree{Root: uint64(t.Root), Crc: t.CRC, Height: t.Height}
}

func (x *Tree) region() region.Tree {
	return region.Tree{Root: region.Slot(x.GetRoot()), CRC: x.GetCrc(), Height: x.GetHeight()}
}
