package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rpmemfs/rpmemfs/attach/wire"
)

// Pre-copy by rounds, as in live migration of virtual machines: each round copies
// what was stored to since the scan of the one before, while the program runs.
// Rounds go on as long as they shrink.
const (
	fewPages   = 256 // not worth a round: copied at the barrier in 0.2 ms
	lastPages  = 64  // a round that found no more is the last
	shrinkage  = 0.7 // of the round before; more is a program that is as fast
	mostRounds = 5

	// ringLimit bounds the wait for room in the ring at the barrier.
	ringLimit = 10 * time.Second
	// aheadPages are copied before the next look at the clock. A page that memory has to
	// get first may take milliseconds.
	aheadPages = 256
	// copyBatch is how many pages a copying goroutine takes at a time.
	copyBatch = 64
	// copiers is how many goroutines copy at most.
	copiers = 4
)

// precopy copies pages until what is left is little, or no less than before, or
// the time until is over. What it scanned last stays for finish.
func (h *helper) precopy(ctx context.Context, until time.Time) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	h.scan()
	enough, last := fewPages, len(h.scanned)
	for n := 0; n < mostRounds && len(h.scanned) > enough && time.Now().Before(until); n++ {
		if n > 0 && float64(len(h.scanned)) > shrinkage*float64(last) {
			return
		}
		last, enough = len(h.scanned), lastPages
		if h.copyAhead(ctx) != nil {
			return // finish copies the rest
		}
		h.barrier.done.Rounds++
		h.scan()
	}
}

// copyAhead puts the scanned pages into the ring until ctx ends. What is left stays
// scanned.
func (h *helper) copyAhead(ctx context.Context) error {
	pages := h.scanned
	var err error
	for len(pages) > 0 && err == nil {
		n := min(len(pages), aheadPages)
		if err = h.copyPages(ctx, pages[:n]); err == nil {
			pages = pages[n:]
			h.barrier.done.Precopied += uint64(n)
			err = ctx.Err()
		}
	}
	h.scanned = append(h.scanned[:0], pages...)
	return err
}

// scan adds the pages that were stored to since the last scan to scanned.
func (h *helper) scan() {
	if h.track == nil {
		return
	}
	begun := time.Now()
	pages, err := h.track.scan(h.scanned)
	h.barrier.done.ScanNs += uint64(time.Since(begun))
	if err != nil {
		h.untracked()
	}
	slices.Sort(pages)
	h.scanned = slices.Compact(pages)
}

// untracked tells the daemon that stores may have escaped; the kernel knows them.
func (h *helper) untracked() {
	_ = h.r.session.send(&wire.Untracked{}) // a lost connection shows at the next receive
}

// forget drops what was stored to: memory is the last committed image again. All
// are parked. The kernel may have dropped protection together with the pages.
func (h *helper) forget() {
	h.scanned = nil
	if h.track != nil && h.track.protectAgain() != nil {
		h.untracked()
	}
}

// finish copies what the scan after the last one parked left, and the extra pages,
// while nobody stores.
func (h *helper) finish(ctx context.Context, extra []uint64) unix.Errno {
	ctx, cancel := context.WithTimeout(ctx, ringLimit)
	defer cancel()
	h.scanned = append(h.scanned, extra...)
	slices.Sort(h.scanned)
	h.scanned = slices.Compact(h.scanned)
	h.barrier.done.Copied += uint64(len(h.scanned))
	err := h.copyPages(ctx, h.scanned)
	if err == nil {
		h.scanned = h.scanned[:0]
	}
	return errnoOf(err)
}

// copyPages puts pages, in ascending order, into the ring. After an error all of them
// are still to be copied.
func (h *helper) copyPages(ctx context.Context, pages []uint64) error {
	begun := time.Now()
	defer func() { h.barrier.done.CopyNs += uint64(time.Since(begun)) }()
	end := uint64(roundUp(min(h.r.Size(), int64(len(h.r.mem))))) / pageSize
	for len(pages) > 0 && pages[len(pages)-1] >= end { // the file was truncated
		pages = pages[:len(pages)-1]
	}
	var next atomic.Int64
	var once sync.Once
	var wg sync.WaitGroup
	var failed error
	workers := min(copiers, runtime.GOMAXPROCS(0), (len(pages)+copyBatch-1)/copyBatch)
	for range workers {
		wg.Go(func() {
			for {
				from := int(next.Add(copyBatch)) - copyBatch
				if from >= len(pages) {
					return
				}
				if err := h.put(ctx, pages[from:min(from+copyBatch, len(pages))]); err != nil {
					once.Do(func() { failed = err })
					return
				}
			}
		})
	}
	wg.Wait()
	if errors.Is(failed, errFault) {
		// Positions of the ring are claimed and will never be full.
		h.r.fail(fmt.Errorf("%w: %w", ErrGone, failed))
	}
	return failed
}

var errFault = errors.New("a page of the mapping cannot be read")

// put is Producer.Put for memory that may be gone: the daemon may have died.
func (h *helper) put(ctx context.Context, pages []uint64) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%w: address %#x", errFault, fault.Addr())
		}
	}()
	return h.r.ring.Put(ctx, h.r.mem, pages, h.tag)
}
