package model

import (
	"slices"
	"time"

	"github.com/rpmemfs/rpmemfs/rdmacache/verbs"
)

// maxWritten bounds what is known of writes that are not persistent yet.
const maxWritten = 4096

// written is n bytes at byte at of an MR.
type written struct {
	mr *mr
	at int
	n  int
}

// land stores fl's bytes, or one piece of them. mu is held.
func (q *queue) land(from *queue, fl *flight) state {
	f, w := q.host.fabric, &fl.work
	m, at, err := q.reach(w.RKey, w.Remote, len(w.Local), verbs.RemoteWrite)
	if fl.err = err; err != nil {
		return finished
	}
	data, ok := from.outgoing(fl)
	if !ok {
		return finished
	}
	if len(data) == 0 {
		return finished
	}
	if fl.pieces == nil {
		fl.pieces = f.pieces(w.Remote, len(data))
		f.stats.Writes++
		if len(fl.pieces) > 1 {
			f.stats.Torn++
		}
	}
	p := fl.pieces[0]
	fl.pieces = fl.pieces[1:]
	if fl.err = m.store(data[p[0]:p[1]], at+p[0]); fl.err != nil {
		return finished
	}
	if fl.err = q.remember(m, at+p[0], p[1]-p[0]); fl.err != nil || len(fl.pieces) == 0 {
		return finished
	}
	fl.at = time.Now().Add(f.delay(w.Op, p[1]-p[0]))
	return unfinished
}

// pieces cuts n bytes at address, between words, and shuffles them. mu is held.
func (f *Fabric) pieces(address uint64, n int) [][2]int {
	const word = 8
	if n <= word || !f.hostile(3) {
		return [][2]int{{0, n}}
	}
	cuts := []int{0, n}
	for range 1 + f.cfg.Rand.IntN(4) {
		at := f.cfg.Rand.IntN(n)
		cuts = append(cuts, max(0, at-int((address+uint64(at))%word)))
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var pieces [][2]int
	for i := range cuts[1:] {
		pieces = append(pieces, [2]int{cuts[i], cuts[i+1]})
	}
	f.cfg.Rand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	return pieces
}

// remember notes what the peer wrote, if something but the processor can make it
// persistent.
func (q *queue) remember(m *mr, at, n int) error {
	if m.medium == nil || !q.cfg.Flush && !q.host.opts.ReadPersists {
		return nil
	}
	if i := len(q.written) - 1; i >= 0 && q.written[i].mr == m && q.written[i].at+q.written[i].n == at {
		q.written[i].n += n
		return nil
	}
	q.written = append(q.written, written{m, at, n})
	if len(q.written) <= maxWritten {
		return nil
	}
	// Writes may become persistent at any time.
	first := q.written[0]
	q.written = slices.Delete(q.written, 0, 1)
	return first.mr.medium.Persist(first.mr.off+int64(first.at), int64(first.n))
}

// pushOut is what a Read does to the writes before it.
func (q *queue) pushOut() error {
	if !q.host.opts.ReadPersists {
		return nil
	}
	for _, w := range q.written {
		if err := w.mr.medium.Persist(w.mr.off+int64(w.at), int64(w.n)); err != nil {
			return err
		}
	}
	q.written = nil
	return nil
}

// flush makes persistent what the peer wrote, through this queue, to n bytes at byte at of
// m, and only that.
func (q *queue) flush(m *mr, at, n int) error {
	var left []written
	for _, w := range q.written {
		// Places are compared in the medium: MRs may overlap.
		off, start, end := w.mr.off+int64(w.at), m.off+int64(at), m.off+int64(at+n)
		from, to := max(off, start), min(off+int64(w.n), end)
		if w.mr.medium != m.medium || from >= to {
			left = append(left, w)
			continue
		}
		if err := m.medium.Persist(from, to-from); err != nil {
			return err
		}
		if off < from {
			left = append(left, written{w.mr, w.at, int(from - off)})
		}
		if to < off+int64(w.n) {
			left = append(left, written{w.mr, w.at + int(to-off), int(off + int64(w.n) - to)})
		}
	}
	q.written = left
	return nil
}
