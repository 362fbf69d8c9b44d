package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
)

const (
	workers    = 2   // threads of a program
	runSeconds = "2" // of a measurement
)

// hashmap compares ResPCT's hash map in ordinary memory, in a heap on a mount with
// epochs of 64 ms, and on libpmemobj: throughput, and where the time goes.
func (b *bench) hashmap() error {
	m, err := b.mount("pool", "--size", "2GiB")
	if err != nil {
		return err
	}
	for _, reads := range []int{90, 50} {
		for _, keys := range []int{50_000, 200_000, 800_000, 2 << 20} {
			target := 0.0
			if reads == 90 && keys == 50_000 {
				target = 0.95
			}
			what := fmt.Sprintf("hash map %d/%d, %dk keys", reads, 100-reads, keys/1000)
			args := []string{"-s", runSeconds, "-t", strconv.Itoa(workers), "-r", strconv.Itoa(reads), "-k", strconv.Itoa(keys)}
			if err := b.structure(m, what, "hashmap", args, keys == 2<<20, target); err != nil {
				return err
			}
		}
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}

// queue does the same with the queue.
func (b *bench) queue() error {
	m, err := b.mount("pool", "--size", "2GiB")
	if err != nil {
		return err
	}
	for _, threads := range []int{1, workers} {
		args := []string{"-s", runSeconds, "-t", strconv.Itoa(threads), "-k", "1000"}
		if err := b.structure(m, fmt.Sprintf("queue, %d threads", threads), "queue", args, false, 0); err != nil {
			return err
		}
	}
	if _, err := m.stop(); err != nil {
		return err
	}
	return b.discard()
}

// structure compares one program of examples/respct with itself. With all set the
// mount without epochs, and the program on libpmemobj, are compared too.
func (b *bench) structure(m *server, what, program string, args []string, all bool, target float64) error {
	file := filepath.Join(m.mnt, "file")
	sides := []side{
		{program: program, args: args},
		{program: program, args: args, file: file, daemon: m},
	}
	if all {
		sides = append(sides, side{program: program, args: append(args, "-e", "0"), file: file, daemon: m})
		if b.pmemobj {
			sides = append(sides, side{program: program + "_pmemobj", args: args, file: filepath.Join(b.dir, "pmemobj")})
		}
	}
	runs, err := b.race(b.times(3), sides...)
	if err != nil {
		return err
	}
	speed := func(i int) float64 { return middle(runs[i], "operations_per_second") }
	row := func(what string, i int, wish string) {
		b.add(what, perSecond(speed(i)), perSecond(speed(0))+" (DRAM)", fmt.Sprintf("%.3f", speed(i)/speed(0)), wish)
	}
	wish := "reported"
	if target > 0 {
		wish = verdict(speed(1)/speed(0) >= target, fmt.Sprintf(">= %.2f", target))
	}
	row(what, 1, wish)
	for _, line := range shares(runs[1]) {
		b.add("  "+line, "", "", "", "")
	}
	for i := 2; i < len(sides); i++ {
		name := "  without epochs"
		if sides[i].daemon == nil {
			name = "  libpmemobj, each update durable"
		}
		row(name, i, "")
	}
	return nil
}

// shares tells where the time of the machine went that the program did not have.
// The system's part of the workers' time is page faults, and waking each other.
func shares(runs []figures) []string {
	machine := middle(runs, "seconds") * float64(runtime.NumCPU())
	share := func(name string) float64 { return 100 * middle(runs, name) / machine }
	ms := func(name string) float64 { return middle(runs, name) / 1e6 }
	epochs := max(middle(runs, "epochs"), 1)
	return []string{
		fmt.Sprintf("an epoch: %.0f pages; pause %.2f ms (scan %.2f, copy %.2f); %.0f epochs",
			middle(runs, "pages_captured")/epochs, ms("pause_ns"), ms("scan_ns"), ms("copy_ns"), epochs),
		fmt.Sprintf("of the machine: faults %.1f %%, scan and copy %.1f %%, push %.1f %%",
			share("workers_system_seconds"), share("others_cpu_seconds"), share("daemon_cpu_seconds")),
	}
}

func perSecond(n float64) string { return fmt.Sprintf("%.2f M/s", n/1e6) }
