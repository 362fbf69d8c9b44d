package conntest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/rpmemfs/rpmemfs/rdmacache"
)

// A Script is a short workload whose end is known. Each round writes the same places, so
// that a write of an earlier one that comes late, or again, shows.
type Script struct {
	model [scriptSize]byte
	round byte
}

// scriptSize is what a Store for a Script has, in bytes.
const scriptSize = 160 << 10

// scriptRounds are the rounds of Run.
const scriptRounds = 3

// ScriptStore returns a Store for a Script.
func ScriptStore(m rdmacache.Medium) *Store { return NewStore(scriptSize, m) }

// Run does the workload.
func (k *Script) Run(ctx context.Context, c rdmacache.Conn, s *Store) error {
	for range scriptRounds {
		if err := k.Round(ctx, c, s); err != nil {
			return fmt.Errorf("round %d: %w", k.round, err)
		}
	}
	return nil
}

// Round writes, some of it over another write, reads that back, and flushes.
func (k *Script) Round(ctx context.Context, c rdmacache.Conn, s *Store) error {
	k.round++
	long := 2 * pageSize
	if k.round == 2 {
		long = scriptSize - pageSize // does not fit into a buffer of the peer's
	}
	for i, n := range []int{long, pageSize / 2} {
		at := i * (pageSize + 100)
		p := k.model[at : at+n]
		fill(p, 2*k.round+byte(i))
		if err := c.Write(ctx, p, int64(at)); err != nil {
			return err
		}
	}
	got := make([]byte, 3*pageSize)
	if err := c.Read(ctx, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, k.model[:len(got)]) {
		return errors.New("read: not what was written")
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	return k.Check(s)
}

// Check says what the store has that the rounds did not write, or has not that they did.
func (k *Script) Check(s *Store) error {
	if !s.DurableIs(0, k.model[:]) {
		return errors.New("durable is not what was flushed")
	}
	if !bytes.Equal(s.Visible(0, scriptSize), k.model[:]) {
		return errors.New("visible is not what was written")
	}
	return nil
}
