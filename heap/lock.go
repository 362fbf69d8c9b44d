package heap

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	lockWaiters = 1 << 31 // others may wait for the word
	lockID      = maxID   // mask of the holder's id

	deadWait  = 10 * time.Second      // for the rollback of a dead holder's epoch
	aliveWait = time.Minute           // for a holder that lives
	lockNap   = 20 * time.Millisecond // until the next look whether the holder lives
	lockSpins = 100
)

// A central is a heap while its lock is held. Its methods check what they read
// before they change anything, as far as they can.
type central struct {
	h *Heap
	m memory
	s state
}

// enter takes the heap's lock. Unless there is an error, exit has to follow.
func (h *Heap) enter() (*central, error) {
	h.mu.Lock()
	c, err := h.enterLocked()
	if err != nil {
		h.mu.Unlock()
		return nil, err
	}
	return c, nil
}

func (h *Heap) enterLocked() (*central, error) {
	if h.closed {
		return nil, ErrClosed
	}
	if broken := h.broken.Load(); broken != nil {
		return nil, fmt.Errorf("damage was found before: %w", broken)
	}
	word := h.view().word32(lockAt)
	if !atomic.CompareAndSwapUint32(word, 0, h.id) {
		if err := h.lockSlowly(word); err != nil {
			return nil, err
		}
	}
	c := &h.central
	c.h, c.m = h, h.view()
	err := c.s.decode(c.m)
	if err == nil && c.s.size > uint64(len(c.m)) {
		// Another process made the region larger, or somebody cut it off.
		if h.grow == nil {
			err = corruptf(sizeAt, "header size: %d, of a region of %d bytes", c.s.size, len(c.m))
		} else if err = h.extend(c.s.size); err == nil {
			c.m = h.view()
		}
	}
	if err != nil {
		unlockWord(word)
		return nil, h.failed(err)
	}
	return c, nil
}

// exit gives the lock back. err is what the caller returns.
func (c *central) exit(err error) error {
	h := c.h
	c.s.encode(c.m)
	unlockWord(c.m.word32(lockAt))
	h.mu.Unlock()
	return h.failed(err)
}

// failed remembers damage: from then on nobody enters.
func (h *Heap) failed(err error) error {
	var damage *CorruptError
	if errors.As(err, &damage) {
		h.broken.CompareAndSwap(nil, damage)
	}
	return err
}

// lockSlowly waits for the word. It is called with h.mu held, so a holder with
// our own id is a remnant of an epoch that was committed in the middle of a call.
func (h *Heap) lockSlowly(word *uint32) error {
	var began, died time.Time
	for turn := 0; ; turn++ {
		seen := atomic.LoadUint32(word)
		holder := seen & lockID
		if holder == 0 || holder == h.id {
			// Others may wait as well: let exit wake them.
			if atomic.CompareAndSwapUint32(word, seen, h.id|lockWaiters) {
				return nil
			}
			continue
		}
		if turn < lockSpins {
			continue
		}
		if seen&lockWaiters == 0 && !atomic.CompareAndSwapUint32(word, seen, seen|lockWaiters) {
			continue
		}
		futexWait(word, seen|lockWaiters, lockNap)

		now := time.Now()
		if began.IsZero() {
			began = now
		}
		lives, err := h.owners.Locked(idByte+int64(holder), 1)
		if err != nil {
			return err
		}
		switch {
		case lives:
			died = time.Time{}
		case died.IsZero():
			died = now
		case now.Sub(died) > deadWait:
			return ErrOwnerDead
		}
		if now.Sub(began) > aliveWait {
			return fmt.Errorf("%w: another process has held the lock for %v", ErrBusy, aliveWait)
		}
	}
}

func unlockWord(word *uint32) {
	if atomic.SwapUint32(word, 0)&lockWaiters != 0 {
		futexWake(word)
	}
}
