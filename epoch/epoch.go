// Package epoch decides when memory becomes durable.
//
// A region's life is a sequence of epochs. Exactly one is open: it holds
// everything stored since the last seal. Sealing ends it at a barrier; from then
// on its content cannot change. Committing writes the sealed epoch to the memory
// node and flushes it; the commit is the moment from which recovery finds the
// epoch, and until it recovery finds an epoch before:
//
//	open → sealed → in flight → committed
//
// Several epochs can be in flight: sent, but not known to be durable. They become so
// in their order. If one fails, all that were sealed after it fail with it.
//
// The model, and restart points later, follow Khorguani, Ropars and De Palma,
// "ResPCT: Fast Checkpointing in Non-volatile Memory for Multi-threaded
// Applications", EuroSys 2022, doi:10.1145/3492321.3519590. Unlike there, an
// epoch is whole pages on another machine, so nothing is logged in place.
package epoch

import (
	"context"
	"errors"
)

// An ID numbers the epochs of one region. It counts from 1; 0 is the empty
// region before its first commit.
type ID uint64

// ErrPoisoned reports a region whose commit failed after parts of it may have
// reached the medium. Nothing is retried: what a failed flush covered may be
// gone. Every later commit returns this error with its first cause until the
// region is opened again by a new mount. What was acknowledged is not affected.
var ErrPoisoned = errors.New("epoch: region poisoned by a failed commit; mount it again")

// A Scope says how much of the open epoch a commit takes.
type Scope int

const (
	// All is every store that reached the daemon: what msync and fsync ask for.
	All Scope = iota
	// Written is only what write(2), truncate and fallocate did. Stores through
	// a mapping stay in the open epoch. It is what a close asks for.
	Written
)

// A Store keeps one region's pages; rdmacache.Cache is one. At most one epoch is sealed
// and not in flight yet; none is sealed on top of it.
type Store interface {
	// Seal ends the open epoch, as far as scope reaches, and returns the ID it
	// will commit as. dirty is false if there was nothing to seal; then id is
	// the last one that was sealed.
	Seal(ctx context.Context, scope Scope) (id ID, dirty bool, err error)
	// Freeze seals the whole open epoch at a barrier, also if nothing was stored:
	// programs have been told its number. Pages that were captured at the barrier
	// may still join it until Post.
	Freeze(ctx context.Context) (ID, error)
	// Thaw puts a frozen epoch back into the open one.
	Thaw(ctx context.Context, id ID)
	// Post sends the sealed epoch to the memory node. An error that matches
	// ErrPoisoned is final; after any other (no space) the pages are in the open
	// epoch again. Else the caller calls wait, once and without delay. Where Post finds
	// too little space it may call landed, which returns when no epoch is in flight.
	//
	// wait returns when the epoch and all before it are durable. It can be called
	// beside everything else; its errors are as those of Post. One that puts the
	// epoch back does so with all that were sealed later, the last one first.
	Post(ctx context.Context, id ID, landed func()) (wait func(context.Context) error, err error)
}
