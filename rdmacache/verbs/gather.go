package verbs

import (
	"fmt"

	"github.com/rpmemfs/rpmemfs/region"
)

// askApart is how far apart the bytes are that are asked for at one time: what is nearer
// is likely to be in the same extent.
const askApart = 16 << 20

// manyExtents is how many a connection may have, as long as nothing else is known, before it
// asks for another only when nothing is under way: the memory node may end the connection for
// it, as it does at maxMappings, and the next one has to find more done than this one did.
const manyExtents = maxMappings / 2

// maxCramped is how many connections may be ended for want of memory, and nothing got done,
// before somebody is told that there is none.
const maxCramped = 8

// gather puts what is to be posted next into the outbox, and says whether there is
// something that can be. mu is held, and nobody posts.
func (l *lane) gather(k *link) bool {
	if len(k.outbox) == 0 && l.err == nil {
		if !l.held || !l.busy(k) {
			l.askHeld(k)
			l.gatherWrites(k)
			l.gatherReads(k)
		}
		l.gatherFlush(k)
	}
	return len(k.outbox) > 0 && k.room() > 0
}

// postUpto is the number of the entry before which all are to be posted now: those that
// somebody waits for, and the others once they are many. Where there was no space, they
// wait until somebody does.
func (l *lane) postUpto() uint64 {
	if l.ring.unposted >= eagerBytes && !l.full {
		return l.ring.queued
	}
	upto := uint64(0)
	for _, w := range l.waits {
		upto = max(upto, w.after)
	}
	if !l.full {
		for _, r := range l.reads {
			upto = max(upto, l.ring.overlap(r.place))
		}
	}
	return upto
}

// gatherWrites takes entries up to the first that is not within reach, and asks for what
// is missing.
func (l *lane) gatherWrites(k *link) {
	upto := l.postUpto()
	for l.ring.posted < upto && len(k.outbox) < queueSends {
		e := l.ring.next()
		if off, ok := k.extents.missing(e.place); ok {
			l.ask(k, off)
			l.askAhead(k, upto)
			return
		}
		mem := l.ring.bytes(e)
		k.each(e.place, func(p place, x *extent) {
			k.add(Work{Op: OpWrite, Local: mem[p.off-e.off:][:p.n], RKey: x.rkey, Remote: x.at(p.off)})
		})
		l.ring.posted++
		l.ring.unposted -= e.n
	}
}

// askAhead asks for what later entries miss.
func (l *lane) askAhead(k *link, upto uint64) {
	for _, e := range l.ring.list[l.ring.posted-l.ring.acked : upto-l.ring.acked] {
		if k.unanswered >= k.limit {
			return
		}
		if off, ok := k.extents.missing(e.place); ok {
			l.ask(k, off)
		}
	}
}

// ask asks where byte off is, unless something near it is being asked for. Where the
// connection has many extents it asks for one at a time, when nothing is under way.
func (l *lane) ask(k *link, off int64) {
	asking := 0
	for i := range k.asks {
		a := &k.asks[i]
		if a.kind != kindMap || a.answered {
			continue
		}
		if a.off/askApart == off/askApart {
			return
		}
		asking++
	}
	if len(k.extents)+asking >= l.many {
		switch {
		case asking > 0:
			return
		case l.busy(k):
			if !l.held {
				l.held, l.heldAt = true, off
			}
			return
		}
	}
	if a := k.say(l.arena, &message{kind: kindMap, off: off}); a != nil {
		a.off = off
		l.stats.RoundTrips++
	}
}

// askHeld asks for what had to wait, before something else is under way again.
func (l *lane) askHeld(k *link) {
	if !l.held {
		return
	}
	l.held = false
	if _, ok := k.extents.find(l.heldAt); !ok {
		l.ask(k, l.heldAt)
	}
}

// busy says that something is under way which would have to begin anew with another connection.
func (l *lane) busy(k *link) bool { return l.ring.posted > l.ring.acked || len(k.reads) > 0 }

// each calls fn for the part of p in each extent. There is one everywhere.
func (k *link) each(p place, fn func(p place, x *extent)) {
	for p.n > 0 {
		x, ok := k.extents.find(p.off)
		if !ok {
			panic(fmt.Sprintf("verbs: byte %d was within reach", p.off))
		}
		n := min(p.n, x.end-p.off)
		fn(place{p.off, n}, x)
		p = place{p.off + n, p.n - n}
	}
}

// gatherReads takes the reads that see all that they have to.
func (l *lane) gatherReads(k *link) {
	kept := l.reads[:0]
	for _, r := range l.reads {
		if l.ring.overlap(r.place) > 0 {
			if l.full {
				r.finish(fmt.Errorf("%w: for a write before it", region.ErrNoSpace))
				l.changed()
			} else {
				kept = append(kept, r)
			}
			continue
		}
		if off, ok := k.extents.missing(r.place); ok {
			l.ask(k, off)
			kept = append(kept, r)
			continue
		}
		l.postRead(k, r)
	}
	clear(l.reads[len(kept):])
	l.reads = kept
}

func (l *lane) postRead(k *link, r *readOp) {
	mem := l.arena.reads[r.first*readBlock:][:r.n]
	r.from = k.seq + 1
	k.each(r.place, func(p place, x *extent) {
		k.add(Work{Op: OpRead, Local: mem[p.off-r.off:][:p.n], RKey: x.rkey, Remote: x.at(p.off)})
	})
	k.signal()
	r.seq, r.after, r.since = k.seq, l.ring.posted, k.age()
	k.reads = append(k.reads, r)
	l.stats.RoundTrips++
}

// gatherFlush begins the next flush, if none is under way and somebody waits for what is
// posted, or for its end; or goes on with the one that is.
func (l *lane) gatherFlush(k *link) {
	f := &k.flight
	if !f.under {
		wanted := l.held
		for _, w := range l.waits {
			w.flying = w.after <= l.ring.posted
			wanted = wanted || w.flying
		}
		if !wanted || l.ring.posted == l.ring.acked {
			return
		}
		k.flights++
		*f = flight{under: true, number: k.flights, covers: l.ring.posted, since: k.age()}
		l.stats.RoundTrips++
		l.flush(k)
	}
	l.persistRest(k)
}

// flush makes the work requests after which the posted entries are persistent.
func (l *lane) flush(k *link) {
	if k.method == ByRead {
		last := l.ring.list[l.ring.posted-l.ring.acked-1]
		n := min(last.n, landingSize)
		k.each(place{last.end() - n, n}, func(p place, x *extent) {
			k.add(Work{Op: OpRead, Local: l.arena.landing[:p.n], RKey: x.rkey, Remote: x.at(p.off)})
		})
		k.signal()
		k.flight.seq = k.seq
		return
	}
	l.places = l.ring.dirty(l.places[:0], func(a, b place) bool {
		x, ok := k.extents.find(a.end() - 1)
		return ok && b.end() <= x.end && b.off-a.end() <= mergeGap
	})
	for _, r := range l.places {
		k.each(r, func(p place, x *extent) {
			if k.method == ByCPU {
				k.flight.rest = append(k.flight.rest, p)
			} else {
				k.add(Work{Op: OpFlush, Length: uint32(p.n), RKey: x.rkey, Remote: x.at(p.off)})
			}
		})
	}
	if k.method == ByFlush {
		k.signal()
		k.flight.seq = k.seq
	}
}

// persistRest asks the memory node's processor for ranges of the flush under way, as many
// as there are credits for.
func (l *lane) persistRest(k *link) {
	f := &k.flight
	for len(f.rest) > 0 {
		n := min(len(f.rest), maxRanges)
		a := k.say(l.arena, &message{kind: kindPersist, ranges: f.rest[:n]})
		if a == nil {
			return
		}
		a.flight, f.seq = f.number, k.seq
		f.asked++
		f.rest = f.rest[n:]
	}
}
