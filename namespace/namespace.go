// Package namespace names the files of a pool: what a directory of regions must
// do, and the words it does it in. It has no behaviour of its own. Package
// memnode implements Directory over meta.db; package volume consumes it.
//
// Every change is atomic and durable when the call returns.
package namespace

import (
	"context"
	"errors"

	"github.com/rpmemfs/rpmemfs/epoch"
)

// An Ino numbers an inode. Numbers are never used twice in a pool. A regular
// file's number is also its region's ID.
type Ino uint64

// Root is the directory at the top of every pool.
const Root Ino = 1

// Limits of names and attributes, as on Linux.
const (
	MaxName       = 255
	MaxXattrName  = 255
	MaxXattrValue = 64 << 10
	MaxSymlink    = 4095
)

var (
	ErrNotExist     = errors.New("namespace: no such file or directory")
	ErrExist        = errors.New("namespace: file exists")
	ErrNotDir       = errors.New("namespace: not a directory")
	ErrIsDir        = errors.New("namespace: is a directory")
	ErrNotEmpty     = errors.New("namespace: directory not empty")
	ErrNameTooLong  = errors.New("namespace: name too long")
	ErrInvalid      = errors.New("namespace: invalid argument")
	ErrNoXattr      = errors.New("namespace: no such attribute")
	ErrTooBig       = errors.New("namespace: attribute too big")
	ErrTooManyLinks = errors.New("namespace: too many links")
	// ErrCrossShare reports a rename, link or clone into, out of or between shares.
	ErrCrossShare = errors.New("namespace: source and target are of different shares")
)

// OnClose says what happens to uncommitted stores through mappings when the last
// handle of a file is closed.
type OnClose uint8

const (
	OnCloseDefault  OnClose = iota // as the mount says
	OnCloseRollback                // they are rolled back
	OnCloseCommit                  // they commit
)

// An Inode is what the directory knows of a file. A regular file's size and the
// time of its last committed write live in its region, not here.
type Inode struct {
	Ino        Ino
	Mode       uint32 // type and permissions, as st_mode
	UID, GID   uint32
	Nlink      uint32
	Rdev       uint32
	Parent     Ino // directories: the directory above; 0 otherwise
	Share      Ino // the top-level directory that is leased as a whole; 0: none
	OnClose    OnClose
	Atime      int64 // times in ns since 1970
	Mtime      int64
	Ctime      int64
	MtimeEpoch epoch.ID // the region's committed epoch when Mtime was set; a later epoch's own time wins
	Target     string   // symbolic links
}

// An Entry is one name in a directory.
type Entry struct {
	Name string
	Ino  Ino
	Mode uint32 // type bits only
}

// RenameFlags are those of renameat2(2).
type RenameFlags uint32

const (
	RenameNoReplace RenameFlags = 1 << iota
	RenameExchange
)

// XattrFlags are those of setxattr(2).
type XattrFlags uint32

const (
	XattrCreate XattrFlags = 1 << iota
	XattrReplace
)

// Usage is the space of a pool.
type Usage struct {
	Slots     uint64 // in the pool
	FreeSlots uint64 // not granted to any region
	Inodes    uint64 // in use
}

// A Directory keeps the names and attributes of a pool.
//
// An inode whose last name is gone stays, with Nlink 0, until Reap; opening the
// pool reaps what a crash left, or, in a share, the next lease of it.
//
// What is below a share stays there: Link and Rename across its border are
// ErrCrossShare.
type Directory interface {
	Lookup(ctx context.Context, parent Ino, name string) (Inode, error)
	Inode(ctx context.Context, ino Ino) (Inode, error)
	// Create adds an inode of n's mode, owner, Rdev, times and target under a
	// new name, and returns it with its number. It updates parent's times.
	Create(ctx context.Context, parent Ino, name string, n Inode) (Inode, error)
	Link(ctx context.Context, ino Ino, parent Ino, name string) (Inode, error)
	// Unlink removes a name of anything but a directory and returns the inode
	// as it is afterwards.
	Unlink(ctx context.Context, parent Ino, name string) (Inode, error)
	Rmdir(ctx context.Context, parent Ino, name string) error
	// Rename moves a name. It returns the inode that lost its name to it, with
	// Nlink as it is afterwards, or nil. A directory never moves below itself
	// (ErrInvalid).
	Rename(ctx context.Context, oldParent Ino, oldName string, newParent Ino, newName string, flags RenameFlags) (*Inode, error)
	ReadDir(ctx context.Context, ino Ino) ([]Entry, error)
	// Update changes an inode's attributes in one transaction. change must not
	// touch Ino, Nlink, Parent, Share or the type bits of Mode.
	Update(ctx context.Context, ino Ino, change func(*Inode)) (Inode, error)
	// Reap frees an inode without names, and its region with all checkpoints.
	// It is ErrInvalid while names remain. Slots that clones still share pass to
	// one of them; heir is its number, else 0.
	Reap(ctx context.Context, ino Ino) (heir Ino, err error)

	Xattr(ctx context.Context, ino Ino, name string) ([]byte, error)
	Xattrs(ctx context.Context, ino Ino) ([]string, error)
	SetXattr(ctx context.Context, ino Ino, name string, value []byte, flags XattrFlags) error
	RemoveXattr(ctx context.Context, ino Ino, name string) error

	Usage(ctx context.Context) (Usage, error)
}
