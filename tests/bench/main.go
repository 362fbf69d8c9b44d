// Bench measures rpmemfs against go-fuse's own loopback file system without
// passthrough, on the same tmpfs, in one run: medians and their ratios. The
// machine's noise hits both sides alike, because rounds alternate. Programs with
// restart points are measured against the same programs in ordinary memory, and a
// memory node against bare TCP; their rows name what is in the second column.
//
//	go run ./tests/bench [-rounds PERCENT] [-only NAME]
//
// Stores and system calls are timed in a C helper (tests/c/store.c). The
// comparison needs root, to give both mounts the same write-back limits.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 100, "percent of the normal number of rounds")
	only := flag.String("only", "", "run only the benches whose name contains this")
	flag.Parse()
	if err := run(*rounds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A row is one line of the table.
type row struct {
	what   string
	ours   string
	theirs string
	ratio  string
	target string
}

// A bench holds what the measurements share.
type bench struct {
	dir      string // on tmpfs
	rpmemfs  string // built programs
	rpmemctl string
	loopback string
	peer     string
	store    string
	pmemobj  bool // there are programs on libpmemobj
	percent  int
	rows     []row
}

func run(percent int, only string) (err error) {
	b := &bench{percent: percent}
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	if b.dir, err = os.MkdirTemp(parent, "rpmemfs-bench-"); err != nil {
		return err
	}
	defer func() {
		b.abandon()
		err = errors.Join(err, os.RemoveAll(b.dir))
	}()
	if err := b.build(); err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		run  func() error
	}{
		{"commit", b.onePage},
		{"sequential", b.sequential},
		{"random", b.random},
		{"history", b.history},
		{"amplification", b.amplification},
		{"overlay", b.overlay},
		{"restart", b.restart},
		{"pause", b.pause},
		{"hashmap", b.hashmap},
		{"queue", b.queue},
		{"heap", b.heap},
		{"node: commit", b.nodeCommit},
		{"node: push", b.nodePush},
		{"node: scale", b.nodeScale},
		{"node: beside", b.nodeBeside},
		{"node: failover", b.nodeFailover},
		{"node: read", b.nodeRead},
		{"rdma: processor time", b.rdma},
	} {
		if !strings.Contains(m.name, only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s...\n", m.name)
		if err := m.run(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	b.print()
	return nil
}

// build compiles the programs into the bench's directory.
func (b *bench) build() error {
	bin := filepath.Join(b.dir, "bin")
	b.rpmemfs, b.rpmemctl = filepath.Join(bin, "rpmemfs"), filepath.Join(bin, "rpmemctl")
	b.loopback, b.store = filepath.Join(bin, "loopback"), filepath.Join(bin, "store")
	b.peer = filepath.Join(bin, "peer")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"go", "build", "-o", bin + "/", "./cmd/...", "./tests/bench/loopback", "./tests/bench/peer"},
		{"gcc", "-std=c11", "-O2", "-o", b.store, "tests/c/store.c"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s (run it at the top of the tree): %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return b.buildC(bin)
}

// times scales a number of rounds by the -rounds flag.
func (b *bench) times(normal int) int { return max(3, normal*b.percent/100) }

func (b *bench) add(what, ours, theirs, ratio, target string) {
	b.rows = append(b.rows, row{what, ours, theirs, ratio, target})
}

// compare adds a row of two durations; the ratio has to be at most target.
func (b *bench) compare(what string, ours, theirs time.Duration, target float64) {
	ratio := float64(ours) / float64(theirs)
	wish := ""
	if target > 0 {
		wish = verdict(ratio <= target, fmt.Sprintf("<= %.2f", target))
	}
	b.add(what, round(ours), round(theirs), fmt.Sprintf("%.2f", ratio), wish)
}

func verdict(ok bool, target string) string {
	if ok {
		return target + " ok"
	}
	return target + " MISSED"
}

func (b *bench) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\trpmemfs\tloopback\tratio\ttarget")
	for _, r := range b.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.theirs, r.ratio, r.target)
	}
	_ = w.Flush() // standard output is gone; nobody reads this
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// round shortens a duration to three digits.
func round(d time.Duration) string {
	unit := time.Nanosecond
	for unit*1000 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
