package lab

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// flushed counts what a machine's kernel writes back from the processor's caches to
// persistent memory for an RDMA FLUSH.
//
// In a guest persistent memory is a file of the host, in which every store arrives at
// once, so no crash shows a flush that is missing. A probe at the function in which the
// kernel does it shows whether it was called, and for how many bytes.
type flushed struct{ calls, bytes int }

const tracing = "/sys/kernel/tracing/"

// probeFlushes begins to count in m.
func (s *site) probeFlushes(m *machine.Machine) {
	s.t.Helper()
	s.run(m, "sh", "-ec", "echo 'p:lab/flush arch_wb_cache_pmem size=$arg2:u64' > "+tracing+"kprobe_events; "+
		"echo 'hist:keys=common_cpu:vals=size' > "+tracing+"events/lab/flush/trigger; "+
		"echo 1 > "+tracing+"events/lab/flush/enable")
}

var histogram = regexp.MustCompile(`hitcount: +(\d+) +size: +(\d+)`)

// flushes returns what was counted so far.
func (s *site) flushes(m *machine.Machine) flushed {
	s.t.Helper()
	var sum flushed
	text := s.run(m, "cat", tracing+"events/lab/flush/hist")
	if !strings.Contains(text, "Hits:") {
		s.t.Fatalf("no histogram:\n%s", text)
	}
	for _, match := range histogram.FindAllStringSubmatch(text, -1) {
		calls, err := strconv.Atoi(match[1])
		if err != nil {
			s.t.Fatal(err)
		}
		bytes, err := strconv.Atoi(match[2])
		if err != nil {
			s.t.Fatal(err)
		}
		sum.calls += calls
		sum.bytes += bytes
	}
	return sum
}

func (f flushed) since(before flushed) flushed {
	return flushed{f.calls - before.calls, f.bytes - before.bytes}
}

// An RDMA FLUSH reaches the medium, page by page, and a WRITE alone does not: the lab
// sees the difference, which the tests of rpmemfs rely on.
func TestFlushIsSeen(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	machines := s.bootAll(s.memoryNode(), s.computeNode(2))
	m, c := machines[0], machines[1]
	s.probeFlushes(m)
	server := s.start(m, "/lab/flush", "serve", "/dev/dax0.0", "0")
	s.match(server, "^serving")
	const pages = 50
	for _, run := range []struct {
		command string
		want    flushed
	}{
		{"write-only", flushed{}},
		{"write", flushed{pages, pages * 4096}},
	} {
		before := s.flushes(m)
		out := s.run(c, "/lab/flush", run.command, nodeHost, fmt.Sprint(pages))
		got := s.flushes(m).since(before)
		t.Logf("%s: %s; kernel flushed %+v", run.command, strings.TrimSpace(out), got)
		if got != run.want {
			t.Errorf("%s: got %+v, want %+v", run.command, got, run.want)
		}
	}
}
