package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

// A duel runs the same commands on both file systems, taking turns.
type duel struct {
	b            *bench
	ours, theirs *server
	a, z         *storer
}

func (b *bench) duel(size string, bytes int64) (d *duel, err error) {
	d = &duel{b: b}
	if d.ours, d.theirs, err = b.pair(size); err != nil {
		return nil, err
	}
	if d.a, err = b.storer(filepath.Join(d.ours.mnt, "file"), bytes); err != nil {
		return nil, err
	}
	d.z, err = b.storer(filepath.Join(d.theirs.mnt, "file"), bytes)
	return d, err
}

func (d *duel) end() error {
	return errors.Join(d.a.close(), d.z.close(), d.b.unpair(d.ours, d.theirs))
}

// A step is a command for the helper with its arguments.
type step []any

// median runs prepare (not timed) and measured (timed, in all) on each side in
// turn, and returns the medians of both.
func (d *duel) median(rounds int, prepare, measured []step) (ours, theirs time.Duration, err error) {
	var a, z []time.Duration
	for range rounds {
		for _, side := range []struct {
			s   *storer
			sum *[]time.Duration
		}{{d.a, &a}, {d.z, &z}} {
			var took time.Duration
			for _, c := range prepare {
				if _, err := side.s.do(c[0].(string), c[1:]...); err != nil {
					return 0, 0, err
				}
			}
			for _, c := range measured {
				t, err := side.s.do(c[0].(string), c[1:]...)
				if err != nil {
					return 0, 0, err
				}
				took += t
			}
			*side.sum = append(*side.sum, took)
		}
	}
	return median(a), median(z), nil
}

// onePage times the commit of one page and its parts: the round trip of a FUSE
// message that finds nothing to do, and the WRITE.
func (b *bench) onePage() error {
	d, err := b.duel("256MiB", 4<<20)
	if err != nil {
		return err
	}
	if _, _, err := d.median(1, []step{{"seq", 1024}, {"msync"}}, nil); err != nil {
		return err
	}
	// A series runs in the helper without a pause: who wakes whom on which
	// processor costs more than the work, and differs from one call to the next.
	series := func(word string, pages int) (ours, theirs time.Duration, err error) {
		return d.median(b.times(15), nil, []step{{"series", 400, word, pages, 1024}})
	}
	commit, theirCommit, err := series("msync", 1)
	if err != nil {
		return err
	}
	send, theirSend, err := series("writeback", 1)
	if err != nil {
		return err
	}
	idle, theirIdle, err := series("fsync", 0)
	if err != nil {
		return err
	}
	b.compare("commit of 1 page (msync)", commit, theirCommit, 1.5)
	b.compare("  of it: WRITE of the page", send, theirSend, 0)
	b.compare("  of it: FSYNC, nothing to commit", idle, theirIdle, 0)
	rest := max(commit-send-idle, 0)
	b.add("  the rest: checksum, slot, record, flush, wakeups", round(rest), round(max(theirCommit-theirSend-theirIdle, 0)), "", "")
	return d.end()
}

func (b *bench) sequential() error {
	const size = 256 << 20
	d, err := b.duel("2GiB", size)
	if err != nil {
		return err
	}
	if _, _, err := d.median(1, []step{{"seq", size / 4096}, {"fsync"}}, nil); err != nil {
		return err
	}
	ours, theirs, err := d.median(b.times(7), nil, []step{{"seq", size / 4096}, {"fsync"}})
	if err != nil {
		return err
	}
	speed := func(t time.Duration) string { return fmt.Sprintf("%.0f MiB/s", size/(1<<20)/t.Seconds()) }
	ratio := float64(theirs) / float64(ours)
	b.add("256 MiB stored in order, and fsync", speed(ours), speed(theirs), fmt.Sprintf("%.2f", ratio), verdict(ratio >= 0.6, ">= 0.60"))
	ours, theirs, err = d.median(b.times(7), nil, []step{{"write", size / 4096}, {"fsync"}})
	if err != nil {
		return err
	}
	b.add("256 MiB by write(2), and fsync", speed(ours), speed(theirs), fmt.Sprintf("%.2f", float64(theirs)/float64(ours)), "")
	return d.end()
}

func (b *bench) random() error {
	const pages = 1 << 18
	d, err := b.duel("3GiB", pages*4096)
	if err != nil {
		return err
	}
	if _, _, err := d.median(1, []step{{"seq", pages}, {"fsync"}}, nil); err != nil {
		return err
	}
	for _, c := range []struct {
		n      int
		target float64
	}{{1000, 0}, {10_000, 1.3}, {50_000, 0}} {
		ours, theirs, err := d.median(b.times(9), []step{{"rand", c.n, pages}}, []step{{"msync"}})
		if err != nil {
			return err
		}
		b.compare(fmt.Sprintf("msync of %d random pages of 1 GiB", c.n), ours, theirs, c.target)
	}
	return d.end()
}

// history times commits over 10,000 epochs of a region of 1 TiB, and how it
// opens afterwards.
func (b *bench) history() error {
	const written = 1 << 18 // pages: 1 GiB
	epochs := b.times(10_000)
	m, err := b.mount("pool", "--size", "3GiB")
	if err != nil {
		return err
	}
	file := filepath.Join(m.mnt, "tib")
	s, err := b.storer(file, 1<<40)
	if err != nil {
		return err
	}
	peak := m.peakBytes()
	if _, err := s.do("seq", written); err != nil {
		return err
	}
	if _, err := s.do("fsync"); err != nil {
		return err
	}
	most := peak() // later epochs are small, and should not be disturbed
	var took []time.Duration
	for range epochs {
		if _, err := s.do("rand", 4, written); err != nil {
			return err
		}
		t, err := s.do("fsync")
		if err != nil {
			return err
		}
		took = append(took, t)
	}
	part := len(took) / 10
	first, last := median(took[:part]), median(took[len(took)-part:])
	b.add(fmt.Sprintf("commit of 4 pages: first tenth of %d epochs, last tenth", epochs),
		round(first), round(last)+" (last)", fmt.Sprintf("%.2f", float64(last)/float64(first)), "does not grow")
	rss, err := m.rssBytes()
	if err != nil {
		return err
	}
	b.add("  memory of the daemon then, after an epoch of 1 GiB (peak)", mib(rss)+" ("+mib(max(most, rss))+")", "", "", "reported")
	m.kill()
	_ = s.close() // its mount is dead
	for _, after := range []string{"a kill", "a clean unmount"} {
		var reads, mounts []time.Duration
		for range b.times(5) {
			begin := time.Now()
			if m, err = b.mount("pool"); err != nil {
				return err
			}
			mounts = append(mounts, m.ready.Sub(begin))
			// The whole life of a process that reads one byte.
			out, err := exec.Command("dd", "if="+file, "of=/dev/null", "bs=1", "count=1", "skip=500000000", "iflag=skip_bytes", "status=none").CombinedOutput()
			if err != nil {
				return fmt.Errorf("dd: %w: %s", err, out)
			}
			reads = append(reads, time.Since(m.ready))
			if rss, err = m.rssBytes(); err != nil {
				return err
			}
			if after == "a kill" {
				m.kill()
			} else if _, err := m.stop(); err != nil {
				return err
			}
		}
		read := median(reads)
		b.add("1 TiB region after "+after+": first byte after mounted", round(read), "", "", verdict(read <= 50*time.Millisecond, "<= 50 ms"))
		b.add("  the mount itself", round(median(mounts)), "", "", "")
		b.add("  memory of the daemon then", mib(rss), "", "", verdict(rss < 100<<20, "< 100 MiB"))
	}
	return b.discard()
}

// amplification compares the bytes that reach the medium with those that were
// dirtied.
func (b *bench) amplification() error {
	const size = 256 << 20
	m, err := b.mount("pool", "--size", "2GiB")
	if err != nil {
		return err
	}
	s, err := b.storer(filepath.Join(m.mnt, "file"), size)
	if err != nil {
		return err
	}
	for _, c := range []step{{"seq", size / 4096}, {"fsync"}} { // nothing is read after this
		if _, err := s.do(c[0].(string), c[1:]...); err != nil {
			return err
		}
	}
	measure := func(what string, rounds, pages int, target float64, store step) error {
		before, err := b.written(m)
		if err != nil {
			return err
		}
		for range rounds {
			for _, c := range []step{store, {"fsync"}} {
				if _, err := s.do(c[0].(string), c[1:]...); err != nil {
					return err
				}
			}
		}
		after, err := b.written(m)
		if err != nil {
			return err
		}
		written, dirtied := after-before, int64(rounds)*int64(pages)*4096
		ratio := float64(written) / float64(dirtied)
		wish := "reported"
		if target > 0 {
			wish = verdict(ratio <= target, fmt.Sprintf("<= %.2f", target))
		}
		b.add("bytes written / dirtied: "+what, mib(written)+" / "+mib(dirtied), "", fmt.Sprintf("%.3f", ratio), wish)
		return nil
	}
	if err := errors.Join(
		measure("256 MiB in order", b.times(4), size/4096, 1.05, step{"seq", size / 4096}),
		measure("epochs of 1 page", b.times(2000), 1, 0, step{"rand", 1, size / 4096}),
		measure("epochs of 1,000 random pages", b.times(50), 1000, 0, step{"rand", 1000, size / 4096}),
	); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return err
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}

// overlay stores to every page of a file three times as large as the bound on
// memory for pages held back.
func (b *bench) overlay() error {
	const size = 192 << 20
	m, err := b.mount("pool", "--size", "2GiB", "--overlay", "64MiB")
	if err != nil {
		return err
	}
	s, err := b.storer(filepath.Join(m.mnt, "file"), size)
	if err != nil {
		return err
	}
	peak := m.peakBytes()
	var took []time.Duration
	for range b.times(5) {
		stores, err := s.do("rand", size/4096, size/4096)
		if err != nil {
			return err
		}
		commit, err := s.do("msync")
		if err != nil {
			return err
		}
		took = append(took, stores+commit)
	}
	t := median(took)
	b.add("192 MiB stored at random with --overlay 64MiB, and msync", fmt.Sprintf("%s, %.0f MiB/s", round(t), size/(1<<20)/t.Seconds()), "", "", "works")
	b.add("  peak memory of the daemon", mib(peak()), "", "", "")
	if err := s.close(); err != nil {
		return err
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}
