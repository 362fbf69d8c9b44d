package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// String says what every queue waits for: a line for each, by the name of its host.
func (f *Fabric) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var queues []*queue
	for name, h := range f.hosts {
		if name == h.name { // else by its address
			queues = slices.AppendSeq(queues, maps.Keys(h.queues))
		}
	}
	slices.SortStableFunc(queues, func(a, b *queue) int { return cmp.Compare(a.host.name, b.host.name) })
	var b strings.Builder
	for _, q := range queues {
		fmt.Fprintf(&b, "%s: receives %d, completions %d, ", q.host.name, len(q.recvs), len(q.done))
		describe(&b, "posted", q.out)
		describe(&b, "to be acknowledged", q.acks)
		fmt.Fprintf(&b, "error: %v\n", q.err)
	}
	return b.String()
}

// describe says how many flights there are, and what becomes of the first.
func describe(b *strings.Builder, what string, flights []*flight) {
	fmt.Fprintf(b, "%s %d, ", what, len(flights))
	if len(flights) == 0 {
		return
	}
	first := flights[0]
	fmt.Fprintf(b, "first operation %d, %d bytes, ", first.work.Op, len(first.work.Local))
	if !first.at.IsZero() {
		fmt.Fprintf(b, "due in %v, ", time.Until(first.at))
	}
	if !first.stuck.IsZero() {
		fmt.Fprintf(b, "stuck for %v, ", time.Since(first.stuck))
	}
}
