package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/rpmemfs/rpmemfs/epoch"
	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
	"github.com/rpmemfs/rpmemfs/region"
)

// Pin pins the newest committed epoch of a region: none of its slots is used again
// until Unpin, or until the session is over. Epoch 0 is that of a region that nothing
// was ever committed to. The session must be a reader's. If the holder of the lease
// does not answer, Pin waits until its lease is over.
func (p *Pool) Pin(ctx context.Context, id region.ID) (region.Checkpoint, error) {
	resp, err := ask(ctx, p, p.node.Pin, &nodepb.PinRequest{Ino: uint64(id)})
	if err != nil {
		return region.Checkpoint{}, err
	}
	cp := resp.GetCheckpoint().Region()
	cp.Name = ""
	return cp, nil
}

// Unpin gives back all pins of a region but that of the epoch keep; 0: all.
func (p *Pool) Unpin(ctx context.Context, id region.ID, keep epoch.ID) error {
	_, err := ask(ctx, p, p.node.Unpin, &nodepb.UnpinRequest{Ino: uint64(id), Keep: uint64(keep)})
	return err
}

// A Pinner has the regions of a session with a lease, and keeps epochs of them for
// readers; volume.Volume is one.
type Pinner interface {
	// PinCommitted keeps the committed epoch of a file.
	PinCommitted(ctx context.Context, ino namespace.Ino) (region.Checkpoint, error)
	// UnpinCommitted lets go of an epoch.
	UnpinCommitted(ctx context.Context, ino namespace.Ino, e epoch.ID)
	// KeepPins lets go of all epochs but these.
	KeepPins(ctx context.Context, pins map[namespace.Ino][]epoch.ID)
}

// Watch does for readers of the share what only the holder of its lease can, until
// ctx ends or the session is over. Without it readers of this session's files wait in
// vain.
func (p *Pool) Watch(ctx context.Context, pinner Pinner) error {
	for {
		err := p.repeat(ctx, func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := p.node.Watch(ctx, &nodepb.WatchRequest{}, grpc.WaitForReady(true))
			if err != nil {
				return err
			}
			return receive(stream, func(m *nodepb.WatchResponse) error { return p.serve(ctx, pinner, m) })
		})
		if ctx.Err() != nil || p.Err() != nil {
			return nil
		}
		if !errors.Is(err, errStalePin) {
			p.log.Warn("readers of this share may have to wait", "node", p.address, "err", err)
		}
		select {
		case <-time.After(pauseMax):
		case <-ctx.Done():
		case <-p.done:
		}
	}
}

// errStalePin ends a stream to begin a new one, which lists the pins that there are.
var errStalePin = errors.New("remote: nobody wants the pin any more")

// serve does what one message asks for.
func (p *Pool) serve(ctx context.Context, pinner Pinner, m *nodepb.WatchResponse) error {
	if list := m.GetPins(); list != nil {
		pins := make(map[namespace.Ino][]epoch.ID)
		for _, pin := range list.GetPins() {
			ino := namespace.Ino(pin.GetIno())
			pins[ino] = append(pins[ino], epoch.ID(pin.GetEpoch()))
		}
		pinner.KeepPins(ctx, pins)
	}
	if gone := m.GetGone(); gone != nil {
		pinner.UnpinCommitted(ctx, namespace.Ino(gone.GetIno()), epoch.ID(gone.GetEpoch()))
	}
	wanted := m.GetWanted()
	if wanted == nil {
		return nil
	}
	answer := &nodepb.PinnedRequest{Id: wanted.GetId()}
	cp, err := pinner.PinCommitted(ctx, namespace.Ino(wanted.GetIno()))
	if err != nil {
		answer.Error = strings.ToValidUTF8(err.Error(), "\uFFFD")
	} else {
		answer.Checkpoint = nodepb.NewCheckpoint(cp)
	}
	_, err = change(ctx, p, p.node.Pinned, func(id uint64) *nodepb.PinnedRequest {
		answer.RequestId = id
		return answer
	})
	if errors.Is(err, namespace.ErrNotExist) {
		// Or the answer to the answer was lost in a restart. Which pins there are is
		// in the list that the next stream begins with.
		return errStalePin
	}
	if err != nil {
		return fmt.Errorf("answer for a reader of file %d: %w", wanted.GetIno(), err)
	}
	return nil
}
