package tcp

import (
	"hash/crc32"
	"io"
	"sync/atomic"
)

// receiveSize is what a connection reads ahead: that much data, and a header.
const receiveSize = headerSize + longData

// longData is the most data of a message that is used where it was received: as much as
// an answer to the largest READ that the kernel's read-ahead asks for by default. It
// stays in the processor's cache.
const longData = 128 << 10

// A receiver takes messages from a connection. One goroutine at a time uses it.
type receiver struct {
	nc   *direct
	buf  []byte
	r, w int // what was received and not taken yet: buf[r:w]
	// long says that the last message was one that buf does not hold. The next one
	// may be too: no more than its header is received ahead, since all that follows
	// has to be copied.
	long bool

	heard atomic.Int64 // bytes received; tells that the peer lives, publishes nothing
}

func newReceiver(nc *direct) *receiver {
	return &receiver{nc: nc, buf: make([]byte, receiveSize)}
}

// ready says that the next message is there.
func (r *receiver) ready() bool {
	var h header
	if r.w-r.r < headerSize {
		return false
	}
	return h.decode(r.buf[r.r:]) != nil || r.w-r.r >= headerSize+h.follows()
}

// header returns the header of the next message. io.EOF where the peer closed between
// two messages.
func (r *receiver) header() (h header, err error) {
	if err := r.fill(headerSize); err != nil {
		return h, err
	}
	if err := h.decode(r.buf[r.r:]); err != nil {
		return h, err
	}
	r.r += headerSize
	r.long = h.follows() > longData
	return h, nil
}

// data returns all that follows h, its checksum verified, at most longData bytes. They
// are valid until the next call.
func (r *receiver) data(h *header) ([]byte, error) {
	data, sum, err := r.some(h.follows(), 0)
	if err == nil && sum != h.sum {
		err = errCorrupt
	}
	return data, err
}

// some returns the next n bytes of a message, at most longData, and sum brought up to
// them. They are valid until the next call.
func (r *receiver) some(n int, sum uint32) ([]byte, uint32, error) {
	if err := r.fill(n); err != nil {
		return nil, 0, noEOF(err)
	}
	r.r += n
	p := r.buf[r.r-n : r.r]
	return p, crc32.Update(sum, castagnoli, p), nil
}

// skip drops the next n bytes of a message.
func (r *receiver) skip(n int) (err error) {
	for ; n > 0 && err == nil; n -= min(n, longData) {
		_, _, err = r.some(min(n, longData), 0)
	}
	return err
}

// cached is how much is copied before its checksum is taken: as much as the processor's
// cache still has.
const cached = 256 << 10

// into receives the next bytes of a message to p, and returns sum brought up to them.
func (r *receiver) into(p []byte, sum uint32) (uint32, error) {
	for len(p) > 0 {
		n, err := r.buffered(p), error(nil)
		if n == 0 {
			n, err = r.nc.ReadRest(p[:min(len(p), cached)])
			r.heard.Add(int64(n))
		}
		sum = crc32.Update(sum, castagnoli, p[:n])
		p = p[n:]
		if err != nil && len(p) > 0 {
			return 0, noEOF(err)
		}
	}
	return sum, nil
}

// buffered takes into p what was received ahead.
func (r *receiver) buffered(p []byte) int {
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n
}

// fill waits until n bytes are there, n <= len(buf).
func (r *receiver) fill(n int) error {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.r+n > len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w-r.r < n {
		read, ahead := r.nc.Read, len(r.buf)
		if r.long {
			read, ahead = r.nc.ReadRest, r.r+n
		}
		got, err := read(r.buf[r.w:ahead])
		r.heard.Add(int64(got))
		r.w += got
		if err != nil && r.w-r.r < n {
			if r.w > r.r {
				err = noEOF(err)
			}
			return err
		}
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
