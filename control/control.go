// Package control lets tools look after a pool that a daemon has mounted: commit,
// checkpoints, rollback, restore, clone, check, export. It is a thin gRPC service
// over a volume; controlpb/control.proto is its contract.
//
// The service is for unix sockets only. The kernel tells who is at the other end
// (SO_PEERCRED); root and the owner of the mount may call, nobody else. Requests
// name files by inode number, so the daemon never resolves a path and never
// touches its own mount.
//
// A tool works on an unmounted pool in the same way: it opens the volume itself
// and runs a Server over Pipe.
package control

//go:generate ./controlpb/generate.sh

import (
	"context"
	"time"

	"github.com/rpmemfs/rpmemfs/attach"
	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/region"
	"github.com/rpmemfs/rpmemfs/volume"
)

// A Volume is what the service needs of a pool; volume.Volume has it. Everything
// it returns is a copy.
type Volume interface {
	Stat(ctx context.Context, ino namespace.Ino) (volume.FileStat, error)
	Inode(ctx context.Context, ino namespace.Ino) (namespace.Inode, error)
	ReadDir(ctx context.Context, ino namespace.Ino) ([]namespace.Entry, error)
	Commit(ctx context.Context, ino namespace.Ino) (epoch.ID, error)
	CommitAll(ctx context.Context) (files int, err error)
	Checkpoint(ctx context.Context, ino namespace.Ino, name string) (region.Checkpoint, error)
	Checkpoints(ctx context.Context, ino namespace.Ino) ([]region.Checkpoint, error)
	DropCheckpoint(ctx context.Context, ino namespace.Ino, name string) error
	Rollback(ctx context.Context, ino namespace.Ino) (pages int, err error)
	Restore(ctx context.Context, ino namespace.Ino, name string, force bool) (epoch.ID, error)
	Clone(ctx context.Context, src namespace.Ino, checkpoint string, parent namespace.Ino, name string) (namespace.Inode, error)
	Check(ctx context.Context, ino namespace.Ino, progress func(done, total uint64)) (volume.CheckReport, error)
	Status(ctx context.Context) (volume.Status, error)
	Interval(ctx context.Context, ino namespace.Ino) time.Duration
	Open(ctx context.Context, ino namespace.Ino) (*volume.Handle, error)
	Remove(ctx context.Context, parent namespace.Ino, name string) error
}

// Info is what the volume does not know about itself.
type Info struct {
	Version    string // of the program
	Pool       string // directory, absolute
	Mountpoint string // absolute; empty when not mounted
	Pid        int
	OwnerUID   uint32    // who may call, beside root
	Started    time.Time // when the pool was opened
	// Attached tells of the files that programs are attached to; nil: none.
	Attached func() []attach.Status
	// Lease tells of the lease of a share; nil for a pool of its own.
	Lease func() Lease
	// Transport says how bytes reach the memory node now, for people; nil for a pool of its own.
	Transport func() string
}

// A Lease is the right of a mount to write a share of a memory node.
type Lease struct {
	Share string        // "/" for the whole pool
	Lasts time.Duration // after each sign of life
	Lost  error         // why it is over; nil while it is held
}

// Limits of what a caller may send and of what waits for it.
const (
	maxRequestBytes  = 64 << 10 // the largest request is two names
	maxResponseBytes = 4 << 20
	maxCalls         = 64 // at a time, on one connection
	handshakeTimeout = 10 * time.Second

	// pingEvery is how long a client waits for a silent server before it asks
	// whether it lives, and again for the answer.
	pingEvery = 20 * time.Second

	exportChunk = 1 << 20 // bytes of data in one message

	// stopGrace is how long calls may go on after Run's context is done, and
	// again how long cancelled calls may take to return.
	stopGrace = 5 * time.Second
)
