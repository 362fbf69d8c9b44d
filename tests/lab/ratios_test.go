package lab

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// What a commit costs beside what RDMA costs by itself, on the same machines in the same
// run. Times mean nothing here and are only told. What is asserted is that the memory
// node's process does not take part: its processor time for pages that are streamed over
// RDMA is a small part of what it needs for them over TCP.
func TestRatios(t *testing.T) {
	s := newSite(t)
	machines := s.bootAll(s.memoryNode(), s.computeNode(2))
	m, c := machines[0], machines[1]
	const poolSize = 128 << 20 // of an NVDIMM twice as large
	const streamed = 8         // epochs
	s.formatDisk(m)
	s.mountDisk(m)
	serve := s.serving(m, "--device", "/dev/dax0.0", "--size", fmt.Sprint(poolSize), "/pool/p")
	baseline := s.start(m, "flush", "serve", "/dev/dax0.0", fmt.Sprint(poolSize))
	s.match(baseline, "^serving")

	const page, large, epochs, pages = 1, 256, 50, 150
	spent := map[string]float64{} // microseconds of the memory node's process for a page
	for _, by := range []string{"tcp", scheme} {
		mount := s.mountedBy(c, "rpmemfs", by, "--metrics", "127.0.0.1:9470")
		s.epoch(c, large, 2) // warm
		begin := s.processorTime(m)
		s.epoch(c, large, streamed)
		spent[by] = (s.processorTime(m) - begin) / (streamed * large) * 1e6
		if by != scheme {
			s.stop(mount, syscall.SIGTERM, 0)
		}
	}

	counted := s.rdmaCounts(c)
	s.epoch(c, page, epochs)
	counted = s.rdmaCounts(c).since(counted)

	// What a mount takes without a network.
	s.run(c, "mkdir", "/own")
	own := s.start(c, "rpmemfs", "mount", "--pool", "/dev/shm/own", "--size", "32MiB", "/own")
	s.match(own, `(?m)^mounted`)

	best := times{}
	for range 3 { // by turns: the host is noisy
		best.take("ib_write_bw", 1e9/s.writeBandwidth(m, c))
		best.take("1 MiB, mount", s.epoch(c, large, 8))
		best.take("1 MiB, mount of its own pool", s.epochOn(c, "/own", large, 8))
		for _, how := range []string{"write", "write-sleep", "commit", "swing"} {
			best.take("C, "+how, number(t, s.run(c, "flush", how, nodeHost, fmt.Sprint(pages)), `(\d+) ns per page`))
		}
		best.take("page, mount", s.epoch(c, page, epochs))
		best.take("page, mount of its own pool", s.epochOn(c, "/own", page, epochs))
		out := s.run(c, "commit", nodeHost+":7470", "bare", "/pki/c", fmt.Sprint(pages))
		for _, name := range []string{"page, small file", "page, large file", "1 MiB, 4096 at a time", "1 MiB, 1048576 at a time"} {
			best.take(name, number(t, out, `(?m)^`+name+`: (\d+) ns`))
		}
	}
	best.report(t)
	t.Logf("processor time of the memory node's process for a page: %.1f us over %s, %.1f us over tcp", spent[scheme], scheme, spent["tcp"])
	t.Logf("for a commit of one page: %.2f round trips, %.2f calls into rdma-core", counted.roundTrips/counted.commits, counted.calls/counted.commits)
	if spent[scheme] > spent["tcp"]/10 {
		t.Errorf("the memory node's process works for pages over %s", scheme)
	}
	if counted.commits < epochs || counted.roundTrips > 1.2*counted.commits {
		t.Errorf("got %+v for %d epochs, want one round trip a commit", counted, epochs)
	}
	s.stop(own, syscall.SIGTERM, 0)
	s.stop(serve, syscall.SIGTERM, 0)
}

// times are the shortest, in nanoseconds, by what took them.
type times map[string]float64

func (t times) take(what string, ns float64) {
	if old, ok := t[what]; !ok || ns < old {
		t[what] = ns
	}
}

func (best times) report(t *testing.T) {
	for _, name := range []string{"1 MiB, mount", "1 MiB, 4096 at a time", "1 MiB, 1048576 at a time"} {
		t.Logf("push of %s: %.1f MiB/s; ib_write_bw of 64 KiB: %.1f MiB/s; ratio %.2f", name, 1e9/best[name], 1e9/best["ib_write_bw"], best["ib_write_bw"]/best[name])
	}
	for _, name := range []string{"page, mount", "page, small file", "page, large file"} {
		t.Logf("commit of a %s: %.0f us", name, best[name]/1e3)
		for _, how := range []string{"write", "write-sleep", "commit", "swing"} {
			t.Logf("... by hand, flush %s: %.0f us; ratio %.2f", how, best["C, "+how]/1e3, best[name]/best["C, "+how])
		}
	}
	t.Logf("without a network a mount takes %.0f us for a page and %.0f us for 1 MiB, over RDMA %.0f us and %.0f us",
		best["page, mount of its own pool"]/1e3, best["1 MiB, mount of its own pool"]/1e3, best["page, mount"]/1e3, best["1 MiB, mount"]/1e3)
}

// rdmaCounts are what a mount over RDMA counts.
type rdmaCounts struct{ commits, roundTrips, calls float64 }

func (c rdmaCounts) since(before rdmaCounts) rdmaCounts {
	return rdmaCounts{c.commits - before.commits, c.roundTrips - before.roundTrips, c.calls - before.calls}
}

func (s *site) rdmaCounts(c *machine.Machine) rdmaCounts {
	s.t.Helper()
	metrics := s.metrics(c)
	return rdmaCounts{
		commits:    number(s.t, metrics, `(?m)^rpmemfs_rdma_commits_total (\S+)`),
		roundTrips: number(s.t, metrics, `(?m)^rpmemfs_rdma_round_trips_total (\S+)`),
		calls:      number(s.t, metrics, `(?m)^rpmemfs_rdma_calls_total (\S+)`),
	}
}

// metrics are those of the process of m that tells them.
func (s *site) metrics(m *machine.Machine) string {
	s.t.Helper()
	return s.run(m, "wget", "-q", "-O", "-", "http://127.0.0.1:9470/metrics")
}

// epoch makes epochs of so many pages and returns the nanoseconds of one.
func (s *site) epoch(c *machine.Machine, pages, count int) float64 {
	s.t.Helper()
	return s.epochOn(c, "/mnt", pages, count)
}

// epochOn is epoch for another mount.
func (s *site) epochOn(c *machine.Machine, mountpoint string, pages, count int) float64 {
	s.t.Helper()
	out := s.run(c, "epochs", fmt.Sprintf("%s/pages%d", mountpoint, pages), fmt.Sprint(pages), fmt.Sprint(count))
	return number(s.t, out, `(\d+) ns per epoch`)
}

// processorTime is what the serving process of m has used, in seconds.
func (s *site) processorTime(m *machine.Machine) float64 {
	s.t.Helper()
	out := s.run(m, "sh", "-c", "cat /proc/$(pidof rpmemfs)/stat")
	// Behind the name, which is in brackets: the state is field 3, user and system time
	// are 14 and 15, in hundredths (proc_pid_stat(5)).
	fields := strings.Fields(out[strings.LastIndex(out, ")")+1:])
	const user, system = 14 - 3, 15 - 3
	return (number(s.t, fields[user], `(\d+)`) + number(s.t, fields[system], `(\d+)`)) / 100
}

// writeBandwidth is what ib_write_bw makes of writes of 64 KiB, in MiB/s, with as much
// under way as an epoch of 1 MiB has. On a busy host packets are sent again, which rxe
// now and then takes for an invalid request; then it is tried once more.
func (s *site) writeBandwidth(m, c *machine.Machine) float64 {
	s.t.Helper()
	args := []string{"ib_write_bw", "-s", "65536", "-n", "100", "-t", "16", "-F", "-R"}
	for attempt := 1; ; attempt++ {
		server := s.start(m, args...)
		// What it says of that stays in its buffer.
		s.run(m, "sh", "-c", "until rdma resource show cm_id | grep -q :18515; do sleep 0.1; done")
		out, err := c.Run(s.ctx(), append(args, nodeHost)...)
		if err == nil {
			if status, err := server.Wait(s.ctx()); err != nil || status != 0 {
				s.t.Fatalf("%s: status %d, %v", server, status, err)
			}
			return number(s.t, out, `(?m)^ *65536 +\d+ +[\d.]+ +([\d.]+)`)
		}
		if attempt == 5 {
			s.t.Fatal(err)
		}
		s.t.Log(err)
		s.stop(server, syscall.SIGKILL, 128+9)
	}
}

// number returns the number in the first group of a pattern.
func number(t *testing.T, text, pattern string) float64 {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("no %s in %q", pattern, text)
	}
	n, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
