package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// What the commit of one page sends: WRITE of the page, WRITE of its record, FLUSH, as
// docs/protocol.md and docs/format.md have them; and what comes back.
const (
	commitHeader = 32
	commitRecord = 128
	commitSent   = commitHeader + 4096 + commitHeader + commitRecord + commitHeader
)

// nodeCommit times the commit of one page at a memory node against what it cannot do
// without: the round trip of its bytes, and the same commit to a pool of its own.
func (b *bench) nodeCommit() error {
	n, err := b.memoryNode("", "--size=256MiB")
	if err != nil {
		return err
	}
	far, err := n.mount("mnt", "app")
	if err != nil {
		return err
	}
	near, err := b.own("256MiB")
	if err != nil {
		return err
	}
	path, err := n.session("path", 1<<20)
	if err != nil {
		return err
	}
	echo, err := b.bare("", commitSent, commitHeader, "")
	if err != nil {
		return err
	}
	var stores []*storer
	for _, m := range []*server{far, near} {
		s, err := b.storer(filepath.Join(m.mnt, "file"), 4<<20)
		if err != nil {
			return err
		}
		for _, c := range []step{{"seq", 1024}, {"msync"}} {
			if _, err := s.do(c[0].(string), c[1:]...); err != nil {
				return err
			}
		}
		stores = append(stores, s)
	}
	const series = 400
	commit := func(s *storer) (time.Duration, error) { return s.do("series", series, "msync", 1, 1024) }
	took := make([][]time.Duration, 4)
	for range b.times(15) {
		for i, once := range []func() (time.Duration, error){
			func() (time.Duration, error) { return commit(stores[0]) },
			func() (time.Duration, error) { return commit(stores[1]) },
			func() (time.Duration, error) { return repeat(series, echo.trip()) },
			func() (time.Duration, error) { return repeat(series, path.commit()) },
		} {
			t, err := once()
			if err != nil {
				return err
			}
			took[i] = append(took[i], t)
		}
	}
	ours, local, trip, data := median(took[0]), median(took[1]), median(took[2]), median(took[3])
	ratio := float64(ours) / float64(trip+local)
	b.add("node: commit of 1 page (msync)", round(ours), fmt.Sprintf("%s (TCP echo) + %s (own pool)", round(trip), round(local)),
		fmt.Sprintf("%.2f", ratio), verdict(ratio <= 1.5, "<= 1.50"))
	b.add("  the data path alone: two writes and a flush", round(data), round(trip)+" (TCP echo)", fmt.Sprintf("%.2f", float64(data)/float64(trip)), "")
	echo.close()
	return errors.Join(stores[0].close(), stores[1].close(), path.close(), stop(far, near), n.end())
}

// repeat returns the median of n times.
func repeat(n int, do func() error) (time.Duration, error) {
	took := make([]time.Duration, n)
	for i := range took {
		begin := time.Now()
		if err := do(); err != nil {
			return 0, err
		}
		took[i] = time.Since(begin)
	}
	return median(took), nil
}

// trip returns what sends all bytes in one piece and waits for the answer.
func (c *bare) trip() func() error {
	p, answer := make([]byte, c.size), make([]byte, c.answer)
	return func() error {
		if _, err := c.Write(p); err != nil {
			return err
		}
		_, err := io.ReadFull(c, answer)
		return err
	}
}

// commit returns what writes a page and a record and flushes them.
func (s *session) commit() func() error {
	p := make([]byte, 4096)
	return func() error {
		ctx := context.Background() // the session's lease bounds it
		return errors.Join(
			s.conn.Write(ctx, p, s.start),
			s.conn.Write(ctx, p[:commitRecord], s.start+4096),
			s.conn.Flush(ctx))
	}
}
