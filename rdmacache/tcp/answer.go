package tcp

import (
	"net"
	"sync"
	"time"
)

// writeTimeout is how long a client may take to receive what was sent to it.
const writeTimeout = 30 * time.Second

// answersSize is how much of its answers a connection gathers before it sends.
const answersSize = 64 << 10

// large holds the buffers of answers that are longer, *[headerSize + maxData]byte.
var large = sync.Pool{New: func() any { return new([headerSize + maxData]byte) }}

// answers sends a connection's answers. It is safe for concurrent use.
type answers struct {
	nc net.Conn

	mu   sync.Mutex // held across writes to nc, at most writeTimeout
	buf  []byte     // not sent yet
	sent bool       // something, since the last alive
	err  error      // set once, by a write that failed
}

func newAnswers(nc net.Conn) *answers {
	return &answers{nc: nc, buf: make([]byte, 0, answersSize)}
}

// add queues an answer with what it says in b, at most maxText bytes.
func (a *answers) add(h header, b string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b = b[:min(len(b), maxText)]
	h.length = uint32(len(b))
	p := a.reserve(len(b))
	copy(p[headerSize:], b)
	h.encode(p, p[headerSize:])
}

// read queues the answer of a READ that fill has the bytes of at once.
func (a *answers) read(h header, fill func(p []byte, off int64) error) error {
	n := int(h.length)
	if headerSize+n > answersSize {
		big := large.Get().(*[headerSize + maxData]byte)
		defer large.Put(big)
		return a.readInto(big[:headerSize+n], h, fill)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.reserve(n)
	if err := fill(p[headerSize:], h.offset); err != nil {
		a.buf = a.buf[:len(a.buf)-len(p)]
		return err
	}
	h.answer().encode(p, p[headerSize:])
	return nil
}

// readInto sends the answer of a READ from p, which has room for it and its header.
// Others can send while fill gets the bytes.
func (a *answers) readInto(p []byte, h header, fill func(p []byte, off int64) error) error {
	if err := fill(p[headerSize:], h.offset); err != nil {
		return err
	}
	h.answer().encode(p, p[headerSize:])
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sendLocked()
	a.writeLocked(p)
	return nil
}

// answer is the header of a READ's DATA.
func (h *header) answer() *header {
	return &header{kind: kindData, length: h.length, sequence: h.sequence}
}

// reserve makes room for an answer of n bytes and its header. mu is held.
func (a *answers) reserve(n int) []byte {
	if len(a.buf)+headerSize+n > answersSize {
		a.sendLocked()
	}
	at := len(a.buf)
	a.buf = a.buf[:at+headerSize+n]
	return a.buf[at:]
}

// send sends what is queued.
func (a *answers) send() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sendLocked()
	return a.err
}

func (a *answers) sendLocked() {
	if len(a.buf) > 0 {
		a.writeLocked(a.buf)
		a.buf = a.buf[:0]
	}
}

func (a *answers) writeLocked(p []byte) {
	if a.err != nil {
		return
	}
	a.sent = true
	if a.err = a.nc.SetWriteDeadline(time.Now().Add(writeTimeout)); a.err == nil {
		_, a.err = a.nc.Write(p)
	}
	if a.err != nil {
		_ = a.nc.Close() // the client is to find out, and the loop to end
	}
}

// alive sends a sign of life if nothing was sent since the last call, unless an
// answer is on its way.
func (a *answers) alive() {
	if !a.mu.TryLock() {
		return
	}
	defer a.mu.Unlock()
	if !a.sent {
		h := header{kind: kindAlive}
		h.encode(a.reserve(0), nil)
		a.sendLocked()
	}
	a.sent = false
}
