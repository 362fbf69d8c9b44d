package verbs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A stream's frames. The peer has streamCredits frames of room for data; what only gives
// credits back, or says that it is the end, needs none: at most two of the first are not
// taken at any time, because each gives back at least half of all credits, and one of the
// second.
const (
	frameHeader   = 8
	frameSize     = 32 << 10
	frameData     = frameSize - frameHeader
	streamCredits = 16
	streamRecvs   = streamCredits + 4
	streamSends   = streamCredits + 4
	streamSize    = streamRecvs*frameSize + streamCredits*frameSize + (streamSends-streamCredits)*frameHeader
	// lingerTime is how long what was written may take to arrive after Close.
	lingerTime = time.Second
)

// frameEnd is the flag of a frame after which none comes.
const frameEnd = 1

// A stream is a net.Conn over the SENDs of a queue pair. Each frame is
//
//	0  4  length in bytes of the data that follows the header
//	4  2  credits: frames with data that the peer may send, beyond those before
//	6  2  flags: 1 the end, without data
//	8  -  data
//
// One goroutine takes completions, from newStream until Close.
//
// Lock order: writeMu, postMu, mu. mu is never held across the Queue; postMu is, and
// writeMu also across waits for the peer.
type stream struct {
	q       Queue        // immutable, as all up to done
	end     func() error // destroys q
	mem     []byte
	lkey    uint32
	local   net.Addr
	remote  net.Addr
	release func() // gives mem back
	stop    context.CancelFunc
	done    chan struct{} // closed when the memory was given back

	writeMu sync.Mutex
	postMu  sync.Mutex

	mu      sync.Mutex
	change  chan struct{} // closed when something below changed
	credits int           // frames with data that may be sent
	owed    int           // that the peer is to be told of
	free    []int         // buffers for frames with data
	control []int         // and for others
	busy    int           // sends that are not done
	arrived []Completion  // frames with data, the first of them read up to at
	at      int
	spent   []Work // receives to be posted again
	ended   bool   // the peer sends no more
	closed  bool   // by Close
	err     error  // the queue pair is of no use any more
	reading time.Time
	writing time.Time // deadlines
}

var _ net.Conn = (*stream)(nil)

// newStream begins s, of which the caller made what is immutable; the receives of q are
// posted. The peer has posted receives for credits frames with data.
func newStream(ctx context.Context, s *stream, credits int) *stream {
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.done, s.credits = make(chan struct{}), credits
	for i := range streamCredits {
		s.free = append(s.free, i)
	}
	for i := streamCredits; i < streamSends; i++ {
		s.control = append(s.control, i)
	}
	go s.run(ctx)
	return s
}

// streamReceives are the receives of a stream over mem.
func streamReceives(mem []byte, lkey uint32) []Work {
	recvs := make([]Work, streamRecvs)
	for i := range recvs {
		recvs[i] = Work{Op: OpRecv, ID: uint64(i), Local: mem[i*frameSize : (i+1)*frameSize], LKey: lkey}
	}
	return recvs
}

// buffer is what send i is sent from.
func (s *stream) buffer(i int) []byte {
	b := s.mem[streamRecvs*frameSize:]
	if i < streamCredits {
		return b[i*frameSize : (i+1)*frameSize]
	}
	return b[streamCredits*frameSize+(i-streamCredits)*frameHeader:][:frameHeader]
}

// run takes completions until the queue pair breaks, or the stream was closed and what it
// wrote has arrived, or does not within lingerTime. It returns after Close.
func (s *stream) run(ctx context.Context) {
	defer close(s.done)
	defer s.stop()
	var done [streamRecvs + streamSends]Completion
	for !s.over(ctx) {
		n, err := s.q.Wait(ctx, done[:])
		s.take(done[:n], err)
	}
	err := s.end()
	s.mu.Lock()
	if s.err == nil {
		s.err = ErrBroken
	}
	s.changed()
	for !s.closed {
		_ = s.wait(new(time.Time)) // there is no deadline
	}
	s.mu.Unlock()
	s.postMu.Lock() // nobody is in the memory any more
	defer s.postMu.Unlock()
	if err == nil {
		s.release()
	}
}

func (s *stream) over(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil || s.closed && (s.busy == 0 || ctx.Err() != nil)
}

// take deals with completions.
func (s *stream) take(done []Completion, err error) {
	s.mu.Lock()
	for i := range done {
		if s.err == nil {
			s.err = s.complete(done[i])
		}
	}
	if s.err == nil {
		s.err = err
	}
	s.changed()
	s.mu.Unlock()
	s.giveBack()
}

// complete deals with one. mu is held.
func (s *stream) complete(c Completion) error {
	switch {
	case c.Err != nil:
		return c.Err
	case c.Op != OpRecv && c.ID < streamSends:
		s.busy--
		if i := int(c.ID); i < streamCredits {
			s.free = append(s.free, i)
		} else {
			s.control = append(s.control, i)
		}
		return nil
	case c.ID >= streamRecvs || c.Bytes < frameHeader || c.Bytes > frameSize:
		return fmt.Errorf("%w: frame of %d bytes", errProtocol, c.Bytes)
	}
	b := s.mem[int(c.ID)*frameSize:][:c.Bytes]
	n, credits, flags := decodeFrame(b)
	if s.credits += credits; n != len(b)-frameHeader || flags > frameEnd || flags == frameEnd && n > 0 || s.ended ||
		s.credits > maxCredits {
		return fmt.Errorf("%w: frame of %d bytes, %d credits, flags %#x", errProtocol, n, credits, flags)
	}
	s.ended = flags == frameEnd
	if n > 0 {
		s.arrived = append(s.arrived, c)
	} else {
		s.spend(c)
	}
	return nil
}

// spend makes the receive of a frame one to be posted again. mu is held.
func (s *stream) spend(c Completion) {
	i := int(c.ID)
	s.spent = append(s.spent, Work{Op: OpRecv, ID: c.ID, Local: s.mem[i*frameSize : (i+1)*frameSize], LKey: s.lkey})
}

// giveBack posts receives again, and tells the peer if that is worth it.
func (s *stream) giveBack() {
	s.postMu.Lock()
	defer s.postMu.Unlock()
	s.mu.Lock()
	var sends []Work
	if s.owed >= streamCredits/2 && len(s.control) > 1 { // one is for the end
		sends = append(sends, s.controlFrame(s.owed, 0))
		s.owed = 0
	}
	s.post(sends)
}

// controlFrame makes a frame without data. mu is held, and a buffer left.
func (s *stream) controlFrame(credits int, flags uint16) Work {
	i := s.control[len(s.control)-1]
	s.control = s.control[:len(s.control)-1]
	s.busy++
	b := s.buffer(i)
	encodeFrame(b, 0, credits, flags)
	return Work{Op: OpSend, Signaled: true, ID: uint64(i), Local: b, LKey: s.lkey}
}

// post posts receives again, and sends. mu and postMu are held; it gives mu up.
func (s *stream) post(sends []Work) {
	recvs := s.spent
	s.spent = nil
	err := s.err
	s.mu.Unlock()
	if err == nil && len(recvs) > 0 {
		err = s.q.PostRecv(recvs)
	}
	if err == nil && len(sends) > 0 {
		err = s.q.Post(sends)
	}
	if err != nil {
		s.mu.Lock()
		if s.err == nil {
			s.err = err
			s.stop() // run may be in Wait
		}
		s.changed()
		s.mu.Unlock()
	}
}

func encodeFrame(b []byte, n, credits int, flags uint16) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint16(b[4:], uint16(credits))
	binary.LittleEndian.PutUint16(b[6:], flags)
}

// decodeFrame reads a header; n is what it says, whatever b has.
func decodeFrame(b []byte) (n, credits int, flags uint16) {
	return int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint16(b[4:])), binary.LittleEndian.Uint16(b[6:])
}

// Read reads what has arrived, at least one byte. io.EOF when the peer closed.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for {
		var err error
		switch {
		case s.closed:
			err = net.ErrClosed
		case expired(s.reading):
			err = os.ErrDeadlineExceeded
		case len(p) > 0 && len(s.arrived) > 0:
			n := s.receive(p)
			back := s.owed >= streamCredits/2
			s.mu.Unlock()
			if back {
				s.giveBack()
			}
			return n, nil
		case len(p) == 0:
		case s.ended:
			err = io.EOF
		case s.err != nil:
			err = s.err
		default:
			err = s.wait(&s.reading)
			if err == nil {
				continue
			}
		}
		s.mu.Unlock()
		return 0, err
	}
}

// receive copies from the first frames. mu is held.
func (s *stream) receive(p []byte) int {
	n := 0
	for n < len(p) && len(s.arrived) > 0 {
		c := s.arrived[0]
		data := s.mem[int(c.ID)*frameSize:][frameHeader+s.at : c.Bytes]
		m := copy(p[n:], data)
		n += m
		if s.at += m; m < len(data) {
			break
		}
		s.arrived, s.at = s.arrived[1:], 0
		s.owed++
		s.spend(c)
	}
	return n
}

// Write sends p. It waits for room at the peer.
func (s *stream) Write(p []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	n := 0
	for n < len(p) {
		if err := s.waitToWrite(); err != nil {
			return n, err
		}
		n += s.send(p[n:])
	}
	return n, nil
}

// waitToWrite waits until a frame can be sent.
func (s *stream) waitToWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return net.ErrClosed
		case s.err != nil:
			return s.err
		case expired(s.writing):
			return os.ErrDeadlineExceeded
		case s.credits > 0 && len(s.free) > 0:
			return nil
		}
		if err := s.wait(&s.writing); err != nil {
			return err
		}
	}
}

// send sends the beginning of p, and returns how much.
func (s *stream) send(p []byte) int {
	s.postMu.Lock()
	defer s.postMu.Unlock()
	s.mu.Lock()
	if s.closed || s.err != nil {
		s.mu.Unlock()
		return 0 // waitToWrite says why
	}
	n := 0
	var sends []Work
	for s.credits > 0 && len(s.free) > 0 && n < len(p) {
		i := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		s.credits--
		s.busy++
		b := s.buffer(i)
		m := copy(b[frameHeader:], p[n:])
		encodeFrame(b, m, s.owed, 0)
		s.owed = 0
		n += m
		sends = append(sends, Work{Op: OpSend, Signaled: true, ID: uint64(i), Local: b[:frameHeader+m], LKey: s.lkey})
	}
	s.post(sends)
	return n
}

// Close ends the stream. What was written before arrives, if the peer takes it within a
// second; Close does not wait for that.
func (s *stream) Close() error {
	s.postMu.Lock()
	defer s.postMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	s.changed()
	if s.err != nil {
		s.mu.Unlock()
		return nil
	}
	time.AfterFunc(lingerTime, s.stop)
	s.post([]Work{s.controlFrame(0, frameEnd)})
	return nil
}

// address is the address of an end of a stream.
type address string

func (a address) Network() string { return "rdma" }
func (a address) String() string  { return string(a) }

// LocalAddr names this end.
func (s *stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr names the peer.
func (s *stream) RemoteAddr() net.Addr { return s.remote }

// changed wakes all who wait. mu is held.
func (s *stream) changed() {
	if s.change != nil {
		close(s.change)
		s.change = nil
	}
}

// wait waits for a change, or the deadline. mu is held, but for the wait.
func (s *stream) wait(deadline *time.Time) error {
	var late <-chan time.Time
	if d := *deadline; !d.IsZero() {
		left := time.Until(d)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		t := time.NewTimer(left)
		defer t.Stop()
		late = t.C
	}
	if s.change == nil {
		s.change = make(chan struct{})
	}
	change := s.change
	s.mu.Unlock()
	select {
	case <-change:
	case <-late:
	}
	s.mu.Lock()
	return nil
}

// expired says that a deadline has passed.
func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// SetDeadline sets both deadlines.
func (s *stream) SetDeadline(t time.Time) error { return s.deadline(t, &s.reading, &s.writing) }

// SetReadDeadline bounds Read, also one that waits.
func (s *stream) SetReadDeadline(t time.Time) error { return s.deadline(t, &s.reading) }

// SetWriteDeadline bounds Write, also one that waits.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.deadline(t, &s.writing) }

func (s *stream) deadline(t time.Time, which ...*time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range which {
		*d = t
	}
	s.changed()
	if s.closed {
		return net.ErrClosed
	}
	return nil
}
