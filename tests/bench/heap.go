package main

import (
	"fmt"
	"path/filepath"
	"strconv"
)

// heap compares the allocator with glibc's, and libpmemobj's, and counts the pages
// that allocations dirty.
func (b *bench) heap() error {
	m, err := b.mount("pool", "--size", "2GiB")
	if err != nil {
		return err
	}
	file := filepath.Join(m.mnt, "file")
	for _, threads := range []int{1, workers} {
		target := 0.7
		if threads > 1 {
			target = 1
		}
		for _, pattern := range []struct{ name, what string }{
			{"pairs", "malloc and free of 64 bytes"},
			{"churn", "malloc and free of 16-256 bytes, 1,000 live blocks"},
		} {
			args := []string{pattern.name, strconv.Itoa(threads), "1"}
			sides := []side{{program: "alloc", args: args}, {program: "alloc", args: args, file: file}}
			if b.pmemobj {
				sides = append(sides, side{program: "alloc_pmemobj", args: args, file: filepath.Join(b.dir, "pmemobj")})
			}
			runs, err := b.race(b.times(5), sides...)
			if err != nil {
				return err
			}
			// By processor time: who else is scheduled does not matter.
			speed := func(i int) float64 {
				used := func(name string) float64 { return middle(runs[i], name) }
				return float64(threads) * used("operations") / (used("workers_user_seconds") + used("workers_system_seconds") + used("others_cpu_seconds"))
			}
			ratio := speed(1) / speed(0)
			b.add(fmt.Sprintf("%s, %d threads", pattern.what, threads), perSecond(speed(1)), perSecond(speed(0))+" (glibc)",
				fmt.Sprintf("%.2f", ratio), verdict(ratio >= target, fmt.Sprintf(">= %.2f", target)))
			if b.pmemobj {
				b.add("  libpmemobj", perSecond(speed(2)), "", fmt.Sprintf("%.3f", speed(2)/speed(0)), "")
			}
		}
	}
	if err := b.dirtied(file); err != nil {
		return err
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}

// dirtied counts the pages that 10,000 allocations dirty.
func (b *bench) dirtied(file string) error {
	const count = 10_000
	for _, size := range []int{32, 64, 128} {
		runs, err := b.race(1, side{program: "alloc", args: []string{"pages", strconv.Itoa(count), strconv.Itoa(size)}, file: file})
		if err != nil {
			return err
		}
		least := float64(count*size) / 4096
		for _, c := range []struct{ name, what, wish string }{
			{"new", "new heap", ""}, {"aged", "heap half emptied at random", "reported"},
		} {
			pages := middle(runs[0], c.name)
			wish := c.wish
			if wish == "" {
				wish = verdict(pages <= 1.3*least, "<= 1.30")
			}
			b.add(fmt.Sprintf("pages dirtied by %d blocks of %d bytes, %s", count, size, c.what), fmt.Sprintf("%.0f", pages),
				fmt.Sprintf("%.0f (their bytes)", least), fmt.Sprintf("%.2f", pages/least), wish)
		}
	}
	return nil
}
