package tcp

import (
	"hash/crc32"
	"sync"
)

// eagerBytes is how much is gathered before it is sent without a flush or a read.
const eagerBytes = 64 << 10

// maxWrite is the most data of one WRITE: it is sent while the processor's cache has it
// from being copied.
const maxWrite = 512 << 10

// writeSizes are the sizes in bytes of the buffers that writes are kept in.
var writeSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, maxWrite}

// free writes, by the size of their buffer.
var freeWrites [len(writeSizes)]sync.Pool

// A write is one WRITE: room for its header, and its data.
type write struct {
	off   int64
	crc   uint32 // of the data
	class int    // of its buffer
	n     int    // bytes of data
	buf   []byte // headerSize + writeSizes[class]
}

// newWrite copies p, at most maxWrite bytes.
func newWrite(p []byte, off int64) *write {
	class := 0
	for writeSizes[class] < len(p) {
		class++
	}
	w, _ := freeWrites[class].Get().(*write)
	if w == nil {
		w = &write{class: class, buf: make([]byte, headerSize+writeSizes[class])}
	}
	w.off, w.n, w.crc = off, 0, 0
	for w.n < len(p) {
		into := w.buf[headerSize+w.n:]
		n := copy(into[:min(len(into), cached)], p[w.n:])
		w.crc = crc32.Update(w.crc, castagnoli, into[:n])
		w.n += n
	}
	return w
}

// free gives the write up. Nobody sends it any more.
func (w *write) free() { freeWrites[w.class].Put(w) }

// message is the WRITE with this sequence.
func (w *write) message(sequence uint64) []byte {
	h := header{kind: kindWrite, length: uint32(w.n), sequence: sequence, offset: w.off, sum: w.crc}
	h.encodeSum(w.buf)
	return w.buf[:headerSize+w.n]
}

func (w *write) size() int64 { return int64(len(w.buf)) }

// A writeQueue holds the writes that no FLUSH covers yet.
type writeQueue struct {
	list                []*write // from number acked on
	acked, sent, queued uint64
	bytes               int64    // of memory that list holds
	unsent              int64    // of these
	unposted            int64    // since a FLUSH was last asked for to make room
	spent               []*write // acked; a send may be just about to end that has them
}

// fits says whether w has room in a window of limit bytes. An empty one takes it
// in any case.
func (q *writeQueue) fits(w *write, limit int64) bool {
	return len(q.list) == 0 || q.bytes+w.size() <= limit
}

func (q *writeQueue) push(w *write) {
	q.list = append(q.list, w)
	q.queued++
	q.bytes += w.size()
	q.unsent += w.size()
	q.unposted += w.size()
}

// next returns the next write to send; there is one.
func (q *writeQueue) next() *write {
	w := q.list[q.sent-q.acked]
	q.sent++
	q.unsent -= w.size()
	return w
}

// ack forgets the writes before number upto, which were sent.
func (q *writeQueue) ack(upto uint64) {
	if upto <= q.acked {
		return
	}
	n := upto - q.acked
	for _, w := range q.list[:n] {
		q.bytes -= w.size()
	}
	q.spent = append(q.spent, q.list[:n]...)
	clear(q.list[:n])
	q.list = q.list[n:]
	q.acked = upto
	if len(q.list) == 0 {
		q.unposted = 0
	}
}

// recycle gives up the writes that were acked. No send is under way.
func (q *writeQueue) recycle() {
	for _, w := range q.spent {
		w.free()
	}
	clear(q.spent)
	q.spent = q.spent[:0]
}

// rewind makes every write one that is to be sent.
func (q *writeQueue) rewind() { q.sent, q.unsent = q.acked, q.bytes }

// drop forgets every write. Some may be on their way: they are not used again.
func (q *writeQueue) drop() {
	*q = writeQueue{acked: q.queued, sent: q.queued, queued: q.queued}
}
