package tcp

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batchBytes is how much is gathered into one send; what else waits has its
	// turn in the next.
	batchBytes = 1 << 20
	// batchParts bounds the messages of a send, by what writev takes.
	batchParts = 512
)

// A batch is what is sent at once. sendMu guards it.
type batch struct {
	parts [][]byte // what is left to send
	all   [][]byte // the memory of parts
	heads []byte   // of READs and the FLUSH
	whole []byte   // parts in one piece
}

func (b *batch) reset() {
	clear(b.all)
	b.all, b.heads = b.all[:0], b.heads[:0]
	b.parts = nil
}

// add adds a message without data.
func (b *batch) add(h header) {
	if cap(b.heads) == 0 {
		b.heads = make([]byte, 0, batchParts*headerSize)
	}
	at := len(b.heads)
	b.heads = b.heads[:at+headerSize]
	h.encode(b.heads[at:], nil)
	b.all = append(b.all, b.heads[at:])
}

// writeTo sends what is left. It may block.
func (b *batch) writeTo(k *clientLink) error {
	if k.raw != nil {
		for len(b.parts) > 0 {
			if err := b.send(k, 0); err != nil {
				return err
			}
		}
		return nil
	}
	// There is no writev: each part would be a record of TLS, and a packet.
	b.whole = b.whole[:0]
	for _, p := range b.parts {
		b.whole = append(b.whole, p...)
	}
	b.parts = nil
	_, err := k.nc.Write(b.whole)
	return err
}

// send sends some of what is left, in one call.
func (b *batch) send(k *clientLink, flags int) error {
	var n int
	var err error
	closed := k.raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgBuffers(int(fd), b.parts, nil, nil, flags)
	})
	if err = errors.Join(closed, err); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	for len(b.parts) > 0 && n >= len(b.parts[0]) {
		n -= len(b.parts[0])
		b.parts = b.parts[1:]
	}
	if n > 0 {
		b.parts[0] = b.parts[0][n:]
	}
	return nil
}

// gather puts the next messages for k into the batch. false: there are none. sendMu
// is held.
func (c *Conn) gather(k *clientLink) bool {
	if len(c.batch.parts) > 0 {
		return true // what a send left
	}
	c.batch.reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes.recycle()
	if c.link != k || c.err != nil {
		return false
	}
	upto := c.sendUpto()
	for bytes := 0; c.writes.sent < upto && bytes < batchBytes && len(c.batch.all) < batchParts/2; {
		w := c.writes.next()
		k.seq++
		m := w.message(k.seq)
		c.batch.all = append(c.batch.all, m)
		bytes += len(m)
	}
	c.gatherReads(k)
	c.gatherFlush(k)
	c.batch.parts = c.batch.all
	return len(c.batch.parts) > 0
}

// sendUpto is the number of the write before which all are to be sent now: those that
// somebody waits for, and the others once they are many. Where there was no space,
// they wait until somebody does. mu is held.
func (c *Conn) sendUpto() uint64 {
	if c.writes.unsent >= eagerBytes && !c.full {
		return c.writes.queued
	}
	upto := uint64(0)
	for _, w := range c.waiting {
		upto = max(upto, w.after)
	}
	for _, r := range c.reads {
		upto = max(upto, r.after)
	}
	return upto
}

// gatherReads takes the reads that see all that they have to. mu is held.
func (c *Conn) gatherReads(k *clientLink) {
	kept := c.reads[:0]
	for _, r := range c.reads {
		switch {
		case r.after > c.writes.sent || len(c.batch.all) >= batchParts-1:
			kept = append(kept, r)
		case r.abandoned():
		default:
			k.seq++
			c.asked[k.seq] = r
			c.batch.add(header{kind: kindRead, length: uint32(r.n), sequence: k.seq, offset: r.off})
		}
	}
	clear(c.reads[len(kept):])
	c.reads = kept
	if !c.outstandingLocked() {
		c.troubled = time.Time{} // who waited has left, and nobody will hear of it
	}
}

// gatherFlush sends a FLUSH if none is under way and it covers what somebody waits
// for. mu is held.
func (c *Conn) gatherFlush(k *clientLink) {
	if c.inFlight.sequence != 0 {
		return
	}
	n := 0
	for n < len(c.waiting) && c.waiting[n].after <= c.writes.sent {
		n++
	}
	if n == 0 {
		return
	}
	c.flying = append(c.flying[:0], c.waiting[:n]...)
	c.waiting = append(c.waiting[:0], c.waiting[n:]...)
	k.seq++
	c.inFlight = flight{sequence: k.seq, covers: c.writes.sent}
	c.batch.add(header{kind: kindFlush, sequence: k.seq})
}

// send sends what waits, as far as that does not block; the pump does the rest.
func (c *Conn) send() {
	if !c.sendMu.TryLock() {
		c.kick()
		return
	}
	defer c.sendMu.Unlock()
	c.mu.Lock()
	k := c.link
	c.mu.Unlock()
	if k == nil || k.raw == nil {
		c.kick()
		return
	}
	for c.gather(k) {
		err := c.batch.send(k, unix.MSG_DONTWAIT)
		if err != nil && !(errors.Is(err, unix.EAGAIN) && roomSoon(k.raw)) {
			c.kick() // the pump waits, or finds out
			return
		}
	}
}

// pump sends what waits whenever it is woken, until the connection breaks.
func (c *Conn) pump(ctx context.Context, k *clientLink) {
	for {
		c.sendMu.Lock()
		for c.gather(k) {
			if err := c.batch.writeTo(k); err != nil {
				k.fail(err)
				break
			}
		}
		c.sendMu.Unlock()
		if c.outstanding() {
			k.resume() // who asked may not receive the answer
		}
		select {
		case <-c.wake:
		case <-k.broken:
			return
		case <-ctx.Done():
			return
		}
	}
}
