package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/rpmemfs/rpmemfs/internal/media"
	"github.com/rpmemfs/rpmemfs/memnode"
)

// openPool opens the pool, and makes it first if there is none. Of errors that
// people can do something about it says what.
func (o *options) openPool(log *slog.Logger) (*memnode.Pool, error) {
	opts := memnode.Options{ReadOnly: o.readOnly, Log: log}
	var pool *memnode.Pool
	var created bool
	var err error
	if o.readOnly {
		pool, err = memnode.Open(o.pool, opts)
	} else {
		pool, created, err = memnode.OpenOrCreate(o.pool, memnode.CreateOptions{SizeBytes: int64(o.size), Device: o.device}, opts)
	}
	switch {
	case errors.Is(err, memnode.ErrLocked):
		return nil, fmt.Errorf("%w; unmount it there first, or mount tcp://HOST if a memory node serves it", err)
	case errors.Is(err, media.ErrReadOnly):
		return nil, fmt.Errorf("%w; to look at it, mount it with --read-only", err)
	case err != nil:
		return nil, err
	}
	if created {
		log.Info("made a new pool", "pool", o.pool)
	} else if o.size != 0 && !o.readOnly {
		log.Debug("the pool exists; its size stays", "pool", o.pool)
	}
	return pool, nil
}
