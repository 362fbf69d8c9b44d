package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// buildC compiles the C library, the programs of examples/respct and those in
// tests/bench/c. Those that compare with libpmemobj are left out where it is not
// installed.
func (b *bench) buildC(bin string) error {
	_, err := os.Stat("/usr/include/libpmemobj.h")
	b.pmemobj = err == nil
	lib := filepath.Join(bin, "librpmemfs")
	if out, err := exec.Command("make", "-s", "-C", "librpmemfs", "B="+lib, "all").CombinedOutput(); err != nil {
		return fmt.Errorf("make -C librpmemfs: %w\n%s", err, out)
	}
	cc := func(name, source string, libs ...string) error {
		args := append([]string{"-std=c11", "-O2", "-Ilibrpmemfs", "-Iexamples/respct", "-o", filepath.Join(bin, name), source}, libs...)
		if out, err := exec.Command("gcc", append(args, "-lpthread")...).CombinedOutput(); err != nil {
			return fmt.Errorf("gcc %s: %w\n%s", source, err, out)
		}
		return nil
	}
	for _, source := range []string{
		"examples/respct/hashmap.c", "examples/respct/queue.c",
		"tests/bench/c/restart.c", "tests/bench/c/pause.c", "tests/bench/c/alloc.c",
	} {
		if err := cc(strings.TrimSuffix(filepath.Base(source), ".c"), source, filepath.Join(lib, "librpmemfs.a")); err != nil {
			return err
		}
	}
	// As most programs use it.
	if err := cc("restart_shared", "tests/bench/c/restart.c", "-L"+lib, "-lrpmemfs", "-Wl,-rpath,"+lib); err != nil {
		return err
	}
	if !b.pmemobj {
		fmt.Fprintln(os.Stderr, "libpmemobj-dev is not installed: nothing is compared with it")
		return nil
	}
	for _, source := range []string{"examples/respct/hashmap_pmemobj.c", "tests/bench/c/alloc_pmemobj.c"} {
		if err := cc(strings.TrimSuffix(filepath.Base(source), ".c"), source, "-lpmemobj"); err != nil {
			return err
		}
	}
	return nil
}

// program prepares to run a program of buildC.
func (b *bench) program(name string, args ...string) (cmd *exec.Cmd, cancel func()) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	cmd = exec.CommandContext(ctx, filepath.Join(b.dir, "bin", name), args...)
	// tmpfs is memory to libpmemobj as well.
	cmd.Env = append(os.Environ(), "PMEM_IS_PMEM_FORCE=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cancel
}

// figures are the lines "name value" of a program.
type figures map[string]float64

// figures runs a program. If there is a daemon, the processor time that it used
// between the program's lines "measuring" and "measured" is a figure too.
func (b *bench) figures(daemon *server, name string, args ...string) (figures, error) {
	cmd, cancel := b.program(name, args...)
	defer cancel()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f := figures{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			f[name] = n
		}
		if daemon == nil || name != "measuring" && name != "measured" {
			continue
		}
		seconds, err := daemon.cpuSeconds()
		if err != nil {
			return nil, err
		}
		f["daemon_cpu_seconds"] = seconds - f["daemon_cpu_seconds"]
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return f, nil
}

// middle returns the median of one figure of several runs.
func middle(runs []figures, name string) float64 {
	var all []float64
	for _, f := range runs {
		all = append(all, f[name])
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// A side is one of the programs that are compared.
type side struct {
	program string
	args    []string
	file    string  // a new one for each run; none if empty
	daemon  *server // that serves the file, or nil
}

// race runs the sides in turn, rounds times, and returns the figures of each.
func (b *bench) race(rounds int, sides ...side) ([][]figures, error) {
	runs := make([][]figures, len(sides))
	for range rounds {
		for i, s := range sides {
			args := s.args
			if s.file != "" {
				args = append(slices.Clone(args), s.file)
			}
			f, err := b.figures(s.daemon, s.program, args...)
			if err != nil {
				return nil, err
			}
			if s.file != "" {
				if err := os.Remove(s.file); err != nil {
					return nil, err
				}
			}
			runs[i] = append(runs[i], f)
		}
	}
	return runs, nil
}
