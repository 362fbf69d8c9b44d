package media

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
)

// ErrPowerLost is what a Crashable returns once its power is gone.
var ErrPowerLost = errors.New("media: power lost")

// crashPage is the granularity at which a Crashable keeps its content.
const crashPage = 4096

// crashUnit is how much memory stores at once: what a power loss cannot tear.
const crashUnit = 8

// Crashable is a medium in memory that loses power at a chosen flush. It is for
// tests of recovery; nothing of it outlives the process.
//
// Writes since the last flush are pending. A restart keeps everything flushed
// and any subset of the aligned 8-byte words of each pending write; of several
// writes to one word the last that survives wins, so a word can come back with
// the value of any of them, as it can from a cache.
//
// It can be memory, too: what Store stored, as one-sided access does, is pending until a
// Persist of its place. A Flush does not know of it, as that of a Pmem does not.
type Crashable struct {
	size int64 // immutable
	cut  int   // immutable

	mu sync.Mutex
	// base is the flushed content, dirty what pending changed; pages that are
	// in neither are zero. A page in base is never changed, and may be shared
	// with other Crashables.
	base    map[int64]*[crashPage]byte
	dirty   map[int64]*[crashPage]byte
	mem     []byte // what Bytes returned, until Close: the visible content, dirty is in it
	pending []crashWrite
	flushes int
	lost    bool
	written uint64
}

var (
	_ Media  = (*Crashable)(nil)
	_ Mapped = (*Crashable)(nil)
)

type crashWrite struct {
	off    int64
	data   []byte
	around bool // by Store
}

// NewCrashable returns a zeroed medium of size bytes. Its power goes during
// flush number cut, counted from 0: that flush persists some of what it was
// called for, and returns ErrPowerLost, as does every call after it. A negative
// cut never comes.
func NewCrashable(size int64, cut int) *Crashable {
	return &Crashable{
		size:  size,
		cut:   cut,
		base:  map[int64]*[crashPage]byte{},
		dirty: map[int64]*[crashPage]byte{},
	}
}

// PowerOff cuts the power between two flushes.
func (m *Crashable) PowerOff() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = true
}

// Lost tells whether the power is gone.
func (m *Crashable) Lost() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost
}

// Flushes counts the flushes that were called while there was power, the one
// that lost it included.
func (m *Crashable) Flushes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushes
}

// Restart cuts the power if it is still there and returns the medium as the next
// boot finds it, which will lose power at its own flush number cut. Which
// pending words survive is drawn from rng.
func (m *Crashable) Restart(rng *rand.Rand, cut int) *Crashable {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = true
	next := NewCrashable(m.size, cut)
	for no, page := range m.base {
		next.base[no] = page
	}
	survive(rng, m.pending, next)
	next.settle()
	return next
}

// survive applies what is left of writes to m. Some restarts keep all, some
// nothing, some whole writes, and some tear every one: uniform choice by word
// alone would hardly ever leave a record whole.
func survive(rng *rand.Rand, writes []crashWrite, m *Crashable) {
	whole := func(w crashWrite) { m.store(w.data, w.off) }
	torn := func(w crashWrite) {
		for start := 0; start < len(w.data); {
			end := min(len(w.data), start+crashUnit-int((w.off+int64(start))%crashUnit))
			if rng.IntN(2) == 0 {
				m.store(w.data[start:end], w.off+int64(start))
			}
			start = end
		}
	}
	// cache lines or sectors of a write go, the rest survives
	mostly := func(w crashWrite) {
		whole(w)
		if len(w.data) == 0 {
			return
		}
		at := rng.IntN(len(w.data)) / crashUnit * crashUnit
		m.restore(w, at, min(at+crashUnit<<rng.IntN(8), len(w.data)))
	}
	switch mode := rng.IntN(6); mode {
	case 0: // nothing survives
	case 1:
		for _, w := range writes {
			whole(w)
		}
	case 2:
		for _, w := range writes {
			torn(w)
		}
	case 3:
		for _, w := range writes {
			if rng.IntN(2) == 0 {
				whole(w)
			}
		}
	case 4: // a prefix in order, the write at its end torn
		n := rng.IntN(len(writes) + 1)
		for i, w := range writes[:n] {
			if i == n-1 {
				torn(w)
			} else {
				whole(w)
			}
		}
	case 5: // each in its own way
		for _, w := range writes {
			switch rng.IntN(4) {
			case 0:
			case 1:
				torn(w)
			case 2:
				mostly(w)
			default:
				whole(w)
			}
		}
	}
}

// restore puts bytes start up to end of w's place back to the flushed content.
func (m *Crashable) restore(w crashWrite, start, end int) {
	// Whole words only: the word around an unaligned edge survived as one.
	for start < end && (w.off+int64(start))%crashUnit != 0 {
		start++
	}
	for start < end && (w.off+int64(end))%crashUnit != 0 {
		end--
	}
	for off := w.off + int64(start); off < w.off+int64(end); off += crashUnit {
		var old [crashUnit]byte
		if page := m.base[off/crashPage]; page != nil {
			copy(old[:], page[off%crashPage:])
		}
		m.store(old[:min(crashUnit, m.size-off)], off)
	}
}

// ReadAt fills p from off with the newest content.
func (m *Crashable) ReadAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("read", len(p), off); err != nil {
		return err
	}
	for len(p) > 0 {
		no, in := off/crashPage, off%crashPage
		page := m.dirty[no]
		if page == nil {
			page = m.base[no]
		}
		n := min(len(p), int(crashPage-in))
		if page == nil {
			clear(p[:n])
		} else {
			copy(p[:n], page[in:])
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt stores p at off; it is pending until a flush.
func (m *Crashable) WriteAt(p []byte, off int64) error { return m.write(p, off, false) }

// write is a store by the processor, which a Flush covers, or by a device around it.
func (m *Crashable) write(p []byte, off int64, around bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("write", len(p), off); err != nil {
		return err
	}
	m.store(p, off)
	m.pending = append(m.pending, crashWrite{off, append([]byte(nil), p...), around})
	m.written += uint64(len(p))
	return nil
}

// store changes the visible content. mu is held, or m is not shared yet.
func (m *Crashable) store(p []byte, off int64) {
	for len(p) > 0 {
		no, in := off/crashPage, off%crashPage
		page := m.dirty[no]
		if page == nil {
			page = m.visible(no)
			m.dirty[no] = page
		}
		n := copy(page[in:], p)
		p, off = p[n:], off+int64(n)
	}
}

// visible is a page that can be changed, with the flushed content.
func (m *Crashable) visible(no int64) *[crashPage]byte {
	if m.mem != nil {
		return (*[crashPage]byte)(m.mem[no*crashPage:])
	}
	page := new([crashPage]byte)
	if old := m.base[no]; old != nil {
		*page = *old
	}
	return page
}

// Flush makes all earlier writes survive a restart, unless the power goes.
func (m *Crashable) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.countFlush(); err != nil {
		return err
	}
	var spans []span
	for _, w := range m.pending {
		if !w.around {
			spans = append(spans, span{w.off, w.off + int64(len(w.data))})
		}
	}
	if len(spans) == len(m.pending) {
		m.settle()
		return nil
	}
	for _, s := range coalesce(spans) {
		m.persist(s)
	}
	return nil
}

// countFlush counts a flush, during which the power may go.
func (m *Crashable) countFlush() error {
	if m.lost {
		return ErrPowerLost
	}
	m.flushes++
	if m.flushes == m.cut+1 {
		m.lost = true
		return fmt.Errorf("flush %d: %w", m.cut, ErrPowerLost)
	}
	return nil
}

// settle makes the visible content the flushed one.
func (m *Crashable) settle() {
	for no, page := range m.dirty {
		m.base[no] = m.still(page)
	}
	clear(m.dirty)
	m.pending = m.pending[:0]
}

func (m *Crashable) check(op string, n int, off int64) error {
	if m.lost {
		return ErrPowerLost
	}
	return checkRange(op, n, off, m.size)
}

// Size is the size in bytes.
func (m *Crashable) Size() int64 { return m.size }

// Kind is "crashable".
func (m *Crashable) Kind() string { return "crashable" }

// Volatile is false: it stands for a medium that keeps what was flushed.
func (m *Crashable) Volatile() bool { return false }

// Stats counts since the medium was made.
func (m *Crashable) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{BytesWritten: m.written, Flushes: uint64(m.flushes)}
}

// Close unmaps what Bytes returned. The content can still be used, and restarted from.
func (m *Crashable) Close() error { return m.unmap() }
