package media

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Bytes is the content as memory, outside of the Go heap, until Close; nil if there is no
// memory for it. It is to be read only: who stores to it uses Store.
func (m *Crashable) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mem == nil {
		size := (m.size + crashPage - 1) / crashPage * crashPage
		mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil
		}
		for no, page := range m.base {
			copy(mem[no*crashPage:], page[:])
		}
		for no, page := range m.dirty {
			copy(mem[no*crashPage:], page[:])
			m.dirty[no] = (*[crashPage]byte)(mem[no*crashPage:])
		}
		m.mem = mem
	}
	return m.mem[:m.size]
}

// unmap ends what Bytes began.
func (m *Crashable) unmap() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mem == nil {
		return nil
	}
	for no, page := range m.dirty {
		m.dirty[no] = m.still(page)
	}
	mem := m.mem
	m.mem = nil
	return unix.Munmap(mem)
}

// still is a page with the content of page that does not change any more.
func (m *Crashable) still(page *[crashPage]byte) *[crashPage]byte {
	if m.mem == nil {
		return page
	}
	still := *page
	return &still
}

// Store stores p at off as a device does to memory: visible at once, and persistent after
// a Persist of the place.
func (m *Crashable) Store(p []byte, off int64) error { return m.write(p, off, true) }

// Persist makes n bytes from off survive a restart, whoever wrote them, unless the power
// goes: it counts as a flush.
func (m *Crashable) Persist(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n < 0 || int64(int(n)) != n {
		return fmt.Errorf("persist %d bytes at %d: %w", n, off, ErrRange)
	}
	if err := m.check("persist", int(n), off); err != nil {
		return err
	}
	if err := m.countFlush(); err != nil {
		return err
	}
	m.persist(span{off, off + n})
	return nil
}

// persist makes the visible content of all words that s touches the flushed one.
func (m *Crashable) persist(s span) {
	s.start -= s.start % crashUnit
	s.end = min(m.size, (s.end+crashUnit-1)/crashUnit*crashUnit)
	for no := s.start / crashPage; no*crashPage < s.end; no++ {
		page := m.dirty[no]
		if page == nil {
			continue // equals the flushed content
		}
		base := new([crashPage]byte)
		if old := m.base[no]; old != nil {
			*base = *old
		}
		start, end := max(0, s.start-no*crashPage), min(crashPage, s.end-no*crashPage)
		copy(base[start:end], page[start:end])
		m.base[no] = base
	}
	// What is left of earlier writes is what is not in s: in it they do not come back.
	var left []crashWrite
	for _, w := range m.pending {
		end := w.off + int64(len(w.data))
		if w.off >= s.end || end <= s.start {
			left = append(left, w)
			continue
		}
		if w.off < s.start {
			left = append(left, crashWrite{w.off, w.data[:s.start-w.off], w.around})
		}
		if end > s.end {
			left = append(left, crashWrite{s.end, w.data[s.end-w.off:], w.around})
		}
	}
	m.pending = left
}
