package tcp

import (
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// soon is how long who waits for an answer sleeps in the kernel before he leaves it to
// the goroutine of receive. Meanwhile he keeps a processor of the runtime's from others,
// as the read of a file may, and cannot be called off.
const soon = time.Millisecond

// Who waits for an answer receives it himself where that may come soon. All other
// answers the goroutine of receive takes: those that take longer, those that several
// wait for, and what nobody waits for.

// lead receives answers until done has one, while they come soon and nobody else
// receives. What done waits for was queued.
func (c *Conn) lead(done <-chan error) {
	c.mu.Lock()
	k := c.link
	c.mu.Unlock()
	if k == nil || k.raw == nil || !k.turn.TryLock() {
		return
	}
	for len(done) == 0 && (k.rx.ready() || comesSoon(k.raw)) {
		if _, err := c.receiveOne(k); err != nil {
			k.fail(err)
			break
		}
	}
	k.turn.Unlock()
	// Only now: who found the turn taken relies on it.
	if c.outstanding() {
		k.resume()
	}
}

// receive takes answers until the connection breaks, and returns why. It leaves them to
// those who wait from when nobody does, until it is resumed.
func (c *Conn) receive(k *clientLink) error {
	for {
		k.turn.Lock()
		err := c.receiveAll(k)
		k.turn.Unlock()
		if err != nil {
			return err
		}
		if c.outstanding() { // somebody found the turn taken
			continue
		}
		select {
		case <-k.resumed:
		case <-k.broken:
			return k.err
		}
	}
}

// receiveAll takes answers until there was one and nobody waits for another. turn is
// held.
func (c *Conn) receiveAll(k *clientLink) error {
	for {
		kind, err := c.receiveOne(k)
		if err != nil {
			return err
		}
		if kind != kindAlive && k.raw != nil && !c.outstanding() {
			return nil
		}
	}
}

// receiveOne takes the next message. What it returns ends the connection. turn is
// held.
func (c *Conn) receiveOne(k *clientLink) (kind, error) {
	h, err := k.rx.header()
	if err != nil {
		return 0, err
	}
	switch h.kind {
	case kindData:
		err = c.arrived(k, h)
	case kindAlive:
		err = h.verify(nil)
	case kindDone:
		if err = h.verify(nil); err == nil {
			err = c.flushed(h.sequence, nil)
		}
	case kindError:
		var text []byte
		if text, err = k.rx.data(&h); err == nil {
			err = c.refused(h, &refusal{h.code, string(text)})
		}
	default:
		err = fmt.Errorf("%w: an answer of kind %d", errProtocol, h.kind)
	}
	return h.kind, err
}

// take removes the READ with this sequence from those that were sent, nil if there
// is none. After it nothing is in trouble that was.
func (c *Conn) take(sequence uint64) *readOp {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.asked[sequence]
	delete(c.asked, sequence)
	// Where somebody waits for a FLUSH, only its answer shows that the writes before
	// it get through.
	if r != nil && len(c.waiting)+len(c.flying) == 0 {
		c.troubled, c.pause = time.Time{}, 0
	}
	return r
}

// arrived receives the answer of a READ to the memory of who waits for it.
func (c *Conn) arrived(k *clientLink, h header) error {
	c.mu.Lock()
	r := c.asked[h.sequence] // and stays, in case the rest does not come
	c.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%w: data for request %d, which is none", errProtocol, h.sequence)
	}
	if r.n != int(h.length) {
		err := fmt.Errorf("%w: %d bytes for a read of %d", errProtocol, h.length, r.n)
		c.answerRead(h.sequence, err)
		return err
	}
	if err := r.receive(k.rx, &h); err != nil {
		return err
	}
	c.answerRead(h.sequence, nil)
	return nil
}

// answerRead ends the wait for the READ with this sequence. false: there is none; it
// may have failed meanwhile.
func (c *Conn) answerRead(sequence uint64, err error) bool {
	r := c.take(sequence)
	if r != nil {
		r.done <- err
	}
	return r != nil
}

// refused takes an ERROR. What it returns ends the connection.
func (c *Conn) refused(h header, err *refusal) error {
	if h.sequence == 0 || errors.Is(err, rdmacache.ErrFenced) {
		return err
	}
	if c.answerRead(h.sequence, err) {
		return nil
	}
	return c.flushed(h.sequence, err)
}

// flushed takes the answer of a FLUSH. What it returns ends the connection.
func (c *Conn) flushed(sequence uint64, err error) error {
	c.mu.Lock()
	if sequence == 0 || sequence != c.inFlight.sequence {
		c.mu.Unlock()
		return fmt.Errorf("%w: answer to flush %d, which is none", errProtocol, sequence)
	}
	covers := c.inFlight.covers
	switch {
	case err == nil:
		c.writes.ack(covers)
		c.full = false
	case errors.Is(err, region.ErrNoSpace):
		c.writes.rewind()
		c.full = true
	case errors.Is(err, ErrPoisoned):
		c.inFlight = flight{}
		c.failWritesLocked(err)
	default:
		c.mu.Unlock()
		return err
	}
	c.inFlight = flight{}
	c.troubled, c.pause = time.Time{}, 0
	c.answerLocked(&c.flying, err)
	c.mu.Unlock()
	c.send() // the next FLUSH, if somebody waits for one
	return nil
}
