package tcp

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// receiveSize is what a connection reads ahead. A message up to this size is used
// where it was received: an answer to the largest READ that the kernel's read-ahead
// asks for by default is one.
const receiveSize = headerSize + 128<<10

// large holds the buffers of messages that are longer, *[headerSize + maxData]byte.
var large = sync.Pool{New: func() any { return new([headerSize + maxData]byte) }}

// A receiver takes messages from a connection. One goroutine uses it.
type receiver struct {
	nc   net.Conn
	buf  []byte
	r, w int // what was received and not taken yet: buf[r:w]
	big  *[headerSize + maxData]byte

	heard atomic.Int64 // bytes received; tells that the peer lives, publishes nothing
}

func newReceiver(nc net.Conn) *receiver {
	return &receiver{nc: nc, buf: make([]byte, receiveSize)}
}

// ready says that next will not wait.
func (r *receiver) ready() bool {
	var h header
	if r.w-r.r < headerSize {
		return false
	}
	return h.decode(r.buf[r.r:]) != nil || r.w-r.r >= headerSize+h.follows()
}

// next returns the next message, its checksum verified. data is valid until the
// next call. io.EOF where the peer closed between two messages.
func (r *receiver) next() (h header, data []byte, err error) {
	r.release()
	if err := r.fill(headerSize); err != nil {
		return h, nil, err
	}
	if err := h.decode(r.buf[r.r:]); err != nil {
		return h, nil, err
	}
	size := headerSize + h.follows()
	var b []byte
	if size <= len(r.buf) {
		if err := r.fill(size); err != nil {
			return h, nil, noEOF(err)
		}
		b = r.buf[r.r : r.r+size]
		r.r += size
	} else {
		r.big = large.Get().(*[headerSize + maxData]byte)
		b = r.big[:size]
		have := copy(b, r.buf[r.r:r.w])
		r.r, r.w = 0, 0
		for have < size {
			n, err := r.nc.Read(b[have:])
			r.heard.Add(int64(n))
			have += n
			if err != nil && have < size {
				return h, nil, noEOF(err)
			}
		}
	}
	return h, b[headerSize:], h.verify(b[headerSize:])
}

// release gives up what next returned last.
func (r *receiver) release() {
	if r.big != nil {
		large.Put(r.big)
		r.big = nil
	}
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
		got, err := r.nc.Read(r.buf[r.w:])
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
