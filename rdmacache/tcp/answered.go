package tcp

import (
	"errors"
	"fmt"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache"
	"github.com/rpmemfs/rpmemfs/region"
)

// receive takes answers until the connection breaks, and returns why.
func (c *Conn) receive(k *clientLink) error {
	defer k.rx.release()
	for {
		h, data, err := k.rx.next()
		if err != nil {
			return err
		}
		switch h.kind {
		case kindAlive:
		case kindData:
			err = c.arrived(h, data)
		case kindDone:
			err = c.flushed(h.sequence, nil)
		case kindError:
			err = c.refused(h, &refusal{h.code, string(data)})
		default:
			err = fmt.Errorf("%w: an answer of kind %d", errProtocol, h.kind)
		}
		if err != nil {
			return err
		}
	}
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
		c.troubled = time.Time{}
	}
	return r
}

// arrived hands out the answer of a READ.
func (c *Conn) arrived(h header, data []byte) error {
	r := c.take(h.sequence)
	if r == nil {
		return fmt.Errorf("%w: data for request %d, which is none", errProtocol, h.sequence)
	}
	if r.n != len(data) {
		err := fmt.Errorf("%w: %d bytes for a read of %d", errProtocol, len(data), r.n)
		r.done <- err
		return err
	}
	r.finish(data)
	return nil
}

// refused takes an ERROR. What it returns ends the connection.
func (c *Conn) refused(h header, err *refusal) error {
	if h.sequence == 0 || errors.Is(err, rdmacache.ErrFenced) {
		return err
	}
	if r := c.take(h.sequence); r != nil {
		r.done <- err
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
	c.troubled = time.Time{}
	c.answerLocked(&c.flying, err)
	c.mu.Unlock()
	c.send() // the next FLUSH, if somebody waits for one
	return nil
}
