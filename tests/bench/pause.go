package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// restart times a restart point when no checkpoint is due.
func (b *bench) restart() error {
	m, err := b.mount("pool", "--size", "64MiB")
	if err != nil {
		return err
	}
	time := func(program string) (float64, error) {
		cmd, cancel := b.program(program, filepath.Join(m.mnt, "file"))
		defer cancel()
		out, err := cmd.Output()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", program, err)
		}
		ps, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		return ps / 1000, err
	}
	shared, err := time("restart_shared")
	if err != nil {
		return err
	}
	static, err := time("restart")
	if err != nil {
		return err
	}
	b.add("restart point, no checkpoint due: shared, static library",
		fmt.Sprintf("%.2f ns", shared), fmt.Sprintf("%.2f ns (static)", static), "", verdict(shared <= 3, "<= 3 ns"))
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}

// pauses are what the program pause printed for each epoch.
type pauses struct {
	stood, pause, park, scan, copied []time.Duration // copied: time of copying
	pages, precopied, rounds         []time.Duration // numbers
	durable                          []time.Duration
}

const pauseFile = 1 << 10 // MiB

// epochs runs the program pause, and adds to p.
func (p *pauses) epochs(b *bench, m *server, how string, pages, epochs int) error {
	cmd, cancel := b.program("pause", how, filepath.Join(m.mnt, "file"), strconv.Itoa(pauseFile),
		strconv.Itoa(pages), "100", strconv.Itoa(epochs))
	defer cancel()
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("pause %s: %w", how, err)
	}
	all := []*[]time.Duration{&p.stood, &p.pause, &p.park, &p.scan, &p.copied, &p.pages, &p.precopied, &p.rounds, &p.durable}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != len(all) {
			return fmt.Errorf("pause %s: %q", how, line)
		}
		for i, word := range fields {
			n, err := strconv.ParseInt(word, 10, 64)
			if err != nil {
				return fmt.Errorf("pause %s: %w", how, err)
			}
			*all[i] = append(*all[i], time.Duration(n))
		}
	}
	return nil
}

// pause times how long a thread stands still for a checkpoint, as it sees it.
func (b *bench) pause() error {
	m, err := b.mount("pool", "--size", "3GiB")
	if err != nil {
		return err
	}
	for _, c := range []struct {
		pages      int
		ours, late time.Duration // targets
	}{{1000, 1200 * time.Microsecond, 0}, {10_000, 2 * time.Millisecond, 10 * time.Millisecond}} {
		var ours, late, theirs pauses
		for range b.times(3) {
			for _, side := range []struct {
				p   *pauses
				how string
			}{{&ours, "capture"}, {&late, "late"}, {&theirs, "fdatasync"}} {
				if err := side.p.epochs(b, m, side.how, c.pages, 20); err != nil {
					return err
				}
			}
		}
		sync := median(theirs.stood)
		row := func(what string, p *pauses, target time.Duration, times float64) {
			wish, stood := "", median(p.stood)
			if target > 0 {
				wish = verdict(stood <= target, "<= "+target.String())
			}
			ratio := float64(sync) / float64(stood)
			if times > 0 {
				wish += ", " + verdict(ratio >= times, fmt.Sprintf(">= %gx", times))
			}
			b.add(fmt.Sprintf("pause, %d random pages of 1 GiB in 100 ms%s", c.pages, what),
				round(stood), round(sync)+" (fdatasync in the pause)", fmt.Sprintf("%.1fx", ratio), wish)
			b.add(fmt.Sprintf("  of it: parking %s, scan %s, copying %d pages %s", round(median(p.park)),
				round(median(p.scan)), median(p.pages), round(median(p.copied))), "", "", "", "")
			b.add(fmt.Sprintf("  before it: %d pages in %d rounds; durable after %s",
				median(p.precopied), median(p.rounds), round(median(p.durable))), "", "", "", "")
		}
		row("", &ours, c.ours, 8)
		row(", no copying ahead", &late, c.late, 0)
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}
