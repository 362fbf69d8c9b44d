package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/memnode"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

const (
	// maxPins bounds the pins of one session.
	maxPins = 64 << 10
	// answerIn is how long a holder that keeps its lease alive may take for a pin,
	// beyond its lease.
	answerIn = 10 * time.Second
	// maxPinWait bounds the waiting for a pin in all.
	maxPinWait = MaxLease + time.Minute
)

// errOver asks to look again who holds the lease.
var errOver = errors.New("node: the session of the holder is over")

// errSilent reports a holder that is alive but does not answer.
var errSilent = errors.New("node: the holder of the lease does not answer")

// pins is which epochs readers have. A pin is one for all readers of its epoch.
//
// A file's turn is held while its pins are made or dropped, across calls of the pool
// and of the holder of the lease: so the holder hears of both in order. mu is a leaf,
// but for the locks of watches.
type pins struct {
	pool     *memnode.Pool
	sessions *manager
	log      *slog.Logger

	mu    sync.Mutex // guards the fields below, and those of every file
	files map[namespace.Ino]*pinnedFile
}

// A pinnedFile is a file that has pins, or is about to.
type pinnedFile struct {
	ino   namespace.Ino
	share namespace.Ino // namespace.Root: none
	turn  chan struct{} // full while somebody has it
	users int           // who have the turn, or wait for it
	pins  map[epoch.ID]*pin
}

type pin struct {
	cp      region.Checkpoint
	holders map[*session]struct{}
}

func newPins(pool *memnode.Pool, sessions *manager, log *slog.Logger) *pins {
	p := &pins{pool: pool, sessions: sessions, log: log, files: make(map[namespace.Ino]*pinnedFile)}
	sessions.readerGone = p.release
	return p
}

// enter waits for the turn of a file.
func (p *pins) enter(ctx context.Context, ino, share namespace.Ino) (*pinnedFile, error) {
	p.mu.Lock()
	f := p.files[ino]
	if f == nil {
		f = &pinnedFile{ino: ino, share: share, turn: make(chan struct{}, 1), pins: make(map[epoch.ID]*pin)}
		p.files[ino] = f
	}
	f.users++
	p.mu.Unlock()
	select {
	case f.turn <- struct{}{}:
		return f, nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		p.quit(f)
		return nil, ctx.Err()
	}
}

// quit gives up the use of a file. mu is held.
func (p *pins) quit(f *pinnedFile) {
	if f.users--; f.users == 0 && len(f.pins) == 0 {
		delete(p.files, f.ino)
	}
}

// leave passes the turn on, after the pins that nobody has any more were dropped.
func (p *pins) leave(f *pinnedFile) {
	for again := true; again; {
		p.dropUnheld(f)
		<-f.turn
		p.mu.Lock()
		again = false
		if len(f.unheld()) > 0 { // since then; who has the turn now sees to them
			select {
			case f.turn <- struct{}{}:
				again = true
			default:
			}
		}
		if !again {
			p.quit(f)
		}
		p.mu.Unlock()
	}
}

// unheld returns the epochs that nobody reads. mu is held.
func (f *pinnedFile) unheld() (epochs []epoch.ID) {
	for e, pin := range f.pins {
		if len(pin.holders) == 0 {
			epochs = append(epochs, e)
		}
	}
	return epochs
}

// dropUnheld drops the pins that nobody has. The caller has the turn.
func (p *pins) dropUnheld(f *pinnedFile) {
	p.mu.Lock()
	epochs := f.unheld()
	p.mu.Unlock()
	for _, e := range epochs {
		// The directory first: it must not name a tree whose slots are used again.
		if err := p.pool.DropPin(context.Background(), region.ID(f.ino), e); err != nil {
			p.log.Error("a pin that nobody needs stays until the next start", "ino", f.ino, "epoch", e, "error", err)
		}
		p.mu.Lock()
		delete(f.pins, e)
		p.mu.Unlock()
		if h := p.sessions.holding(f.share); h != nil {
			h.watch.gone(&nodepb.PinGone{Ino: uint64(f.ino), Epoch: uint64(e)})
		}
	}
}

// list returns the pins that concern the holder of a share.
func (p *pins) list(share namespace.Ino) *nodepb.Pins {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &nodepb.Pins{}
	for _, f := range p.files {
		if share != namespace.Root && share != f.share {
			continue
		}
		for e := range f.pins {
			m.Pins = append(m.Pins, &nodepb.PinGone{Ino: uint64(f.ino), Epoch: uint64(e)})
		}
	}
	return m
}

// pin pins the newest committed epoch of a file for a reader.
func (p *pins) pin(ctx context.Context, reader *session, ino namespace.Ino) (region.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, maxPinWait)
	defer cancel()
	loc, err := reader.view.Locate(ctx, region.ID(ino)) // of the reader's share?
	if err != nil || loc.Super == 0 {
		return region.Checkpoint{}, err // nothing was ever committed
	}
	n, err := p.pool.Inode(ctx, ino)
	if err != nil {
		return region.Checkpoint{}, err
	}
	share := n.Share
	if share == 0 {
		share = namespace.Root
	}
	f, err := p.enter(ctx, ino, share)
	if err != nil {
		return region.Checkpoint{}, err
	}
	defer p.leave(f)
	cp, err := p.newest(ctx, f)
	if err != nil || cp.Epoch == 0 {
		return region.Checkpoint{}, err
	}
	if err := p.hold(reader, f, cp.Epoch); err != nil {
		return region.Checkpoint{}, err
	}
	return cp, reader.view.Admit(ctx, region.ID(ino))
}

// hold makes a reader one of those who have a pin. The caller has the turn.
func (p *pins) hold(reader *session, f *pinnedFile, e epoch.ID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reader.life.Err() != nil { // release does not see this one
		return context.Cause(reader.life)
	}
	holders := f.pins[e].holders
	if _, ok := holders[reader]; ok {
		return nil
	}
	if reader.pins == maxPins {
		return fmt.Errorf("%w: %d pins", errBusy, maxPins)
	}
	holders[reader] = struct{}{}
	reader.pins++
	return nil
}

// unpin gives back what a reader has of a file, but for one epoch.
func (p *pins) unpin(reader *session, ino namespace.Ino, keep epoch.ID) {
	p.mu.Lock()
	f := p.files[ino]
	free := f != nil && f.giveBack(reader, keep)
	p.mu.Unlock()
	if free {
		p.leave(f)
	}
}

// release gives back all that a reader has, whose life is over.
func (p *pins) release(reader *session) {
	var free []*pinnedFile
	p.mu.Lock()
	for _, f := range p.files {
		if f.giveBack(reader, 0) {
			free = append(free, f)
		}
	}
	p.mu.Unlock()
	for _, f := range free {
		p.leave(f)
	}
}

// giveBack tells whether there is something to drop and nobody who will see to it:
// then the caller has the turn. mu is held.
func (f *pinnedFile) giveBack(reader *session, keep epoch.ID) bool {
	for e, pin := range f.pins {
		if _, ok := pin.holders[reader]; ok && e != keep {
			delete(pin.holders, reader)
			reader.pins--
		}
	}
	if len(f.unheld()) == 0 {
		return false
	}
	select {
	case f.turn <- struct{}{}:
		f.users++
		return true
	default:
		return false
	}
}

// newest pins the newest committed epoch of a file: by who holds the lease, or else
// by itself. The pin is in f.pins, unless the epoch is 0. The caller has the turn.
func (p *pins) newest(ctx context.Context, f *pinnedFile) (cp region.Checkpoint, err error) {
	for {
		h := p.sessions.holding(f.share)
		switch {
		case h == nil:
			cp, err = p.pinSelf(ctx, f)
			if errors.Is(err, memnode.ErrLeased) && p.sessions.holding(f.share) != nil {
				err = errOver // somebody came first
			}
		case h.req.own || !p.sessions.isLive(h):
			err = cmp.Or(p.sessions.settle(ctx, h), errOver)
		default:
			cp, err = p.ask(ctx, h, f)
		}
		if !errors.Is(err, errOver) {
			return cp, err
		}
		if err := ctx.Err(); err != nil {
			return region.Checkpoint{}, err
		}
	}
}

// ask has the holder of a lease pin the newest epoch. errOver if its session ends.
func (p *pins) ask(ctx context.Context, h *session, f *pinnedFile) (region.Checkpoint, error) {
	const reader = "a reader"
	p.sessions.giveWay(h, reader)
	w := h.watch.ask(f.ino)
	timer := time.NewTimer(h.lease.Timeout + answerIn)
	defer timer.Stop()
	var err error
	select {
	case <-w.done:
		return w.cp, w.err
	case <-h.life.Done():
		err = errOver
	case <-timer.C:
		err = fmt.Errorf("%w: %s", errSilent, h.lease.Holder)
		if p.sessions.giveWay(h, reader); !p.sessions.isLive(h) {
			err = errOver
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if h.watch.take(w.id) != nil {
		return region.Checkpoint{}, err
	}
	<-w.done // it is being answered
	return w.cp, w.err
}

// answer gives what was wanted: a pin, or why there is none.
func (p *pins) answer(ctx context.Context, h *session, w *want, cp region.Checkpoint, failed error) error {
	defer close(w.done)
	if failed == nil && cp.Epoch > 0 {
		cp, failed = p.save(ctx, h.view, w.ino, cp)
	}
	if errors.Is(failed, rdmacache.ErrFenced) {
		failed = errOver
	}
	w.cp, w.err = cp, failed
	return failed
}

// save records a pin, unless there is one of the epoch. The turn of the file is that
// of who waits for it. By a view that is fenced no pin is saved that the next holder
// of the lease does not hear of.
func (p *pins) save(ctx context.Context, v *memnode.View, ino namespace.Ino, cp region.Checkpoint) (region.Checkpoint, error) {
	p.mu.Lock()
	f := p.files[ino]
	old := f.pins[cp.Epoch]
	p.mu.Unlock()
	if old != nil {
		return old.cp, nil
	}
	cp.Name = region.PinName(cp.Epoch)
	if err := v.SavePin(context.WithoutCancel(ctx), region.ID(ino), cp); err != nil {
		return region.Checkpoint{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.pins[cp.Epoch] = &pin{cp: cp, holders: make(map[*session]struct{})}
	return cp, nil
}
