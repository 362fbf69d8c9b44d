package lab

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// How a commit becomes persistent is chosen by what device and medium can, and said in
// the memory node's log. Whatever it is, what a program commits is there when the memory
// node's process was killed, or is not promised to be.
func TestMethods(t *testing.T) {
	s := newSite(t)
	fsdax := s.memoryNode()
	fsdax.Name, fsdax.NVDIMMMode = "mfs", "fsdax"
	nodes := map[string]machine.Config{"devdax": s.memoryNode(), "fsdax": fsdax}
	compute := s.boot(s.computeNode(2))
	for _, group := range []struct {
		node   string
		places []place
	}{
		{"devdax", []place{
			{name: "devdax", serve: []string{"--device", "/dev/dax0.0", "/pool/p"}, method: "flush", kernel: true},
			{name: "the operator trusts the processor only", serve: []string{"--persistence", "cpu", "/pool/p"},
				method: "cpu", because: "operator", node: true},
			{name: "a compute node without FLUSH", serve: []string{"/pool/p"}, program: "rpmemfs-noflush",
				method: "cpu", because: "FLUSH", node: true},
			{name: "tmpfs", serve: []string{"--size", "32MiB", "/dev/shm/p"}, method: "read", because: "volatile"},
		}},
		{"fsdax", []place{
			{name: "ext4-dax", serve: []string{"--size", "32MiB", "/pmem/p"}, method: "message", because: "does not register", node: true},
		}},
	} {
		m := s.boot(nodes[group.node])
		s.probeFlushes(m)
		switch group.node {
		case "devdax":
			s.formatDisk(m)
			s.mountDisk(m)
		case "fsdax":
			s.run(m, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "/dev/pmem0")
			s.run(m, "mkdir", "/pmem")
			s.run(m, "mount", "-t", "ext4", "-o", "dax=always", "/dev/pmem0", "/pmem")
		}
		for _, p := range group.places {
			t.Run(p.name, func(t *testing.T) {
				at := *s
				at.t = t
				at.method(m, compute, p)
			})
		}
		m.Kill()
	}
}

// A place is where a pool is, and how commits to it are expected to become persistent.
type place struct {
	name    string
	serve   []string // arguments
	program string   // that mounts; "": rpmemfs
	method  string
	because string // in the memory node's words, why it is no better one
	kernel  bool   // the kernel flushes for the device
	node    bool   // the memory node's process flushes
}

// method commits to a pool at p, and looks who made it persistent.
func (s *site) method(m, compute *machine.Machine, p place) {
	t := s.t
	serve := s.serving(m, append([]string{"--metrics", "127.0.0.1:9470"}, p.serve...)...)
	program := p.program
	if program == "" {
		program = "rpmemfs"
	}
	mount := s.mountedBy(compute, program, scheme)
	file := "/mnt/" + strings.ReplaceAll(p.name, " ", "_")
	s.run(compute, "bank", "create", file, accounts)

	const epochs = 10
	kernel, process := s.flushes(m), s.processFlushes(m)
	s.run(compute, "epochs", file+".epochs", "16", fmt.Sprint(epochs))
	kernel, process = s.flushes(m).since(kernel), s.processFlushes(m)-process
	line := s.match(serve, `(?m)^.*msg="RDMA connection".*$`)[0]
	t.Logf("%s\nthe kernel flushed %+v, the process %d times", line, kernel, process)
	if !strings.Contains(line, "method="+p.method) || !strings.Contains(line, p.because) {
		t.Errorf("got %s; want method %s, because %q", line, p.method, p.because)
	}
	if got := kernel.bytes >= epochs*16*4096; got != p.kernel {
		t.Errorf("the kernel flushed %+v, want %d epochs of 16 pages: %t", kernel, epochs, p.kernel)
	}
	if got := process >= epochs; got != p.node {
		t.Errorf("the memory node's process flushed %d times, want %d epochs: %t", process, epochs, p.node)
	}

	s.stop(mount, syscall.SIGTERM, 0)
	s.stop(serve, syscall.SIGKILL, 128+9)
	serve = s.serving(m, p.serve...)
	mount = s.mounted(compute)
	s.run(compute, "bank", "check", file)
	s.stop(mount, syscall.SIGTERM, 0)
	s.stop(serve, syscall.SIGTERM, 0)
}

// processFlushes is how often the memory node's process made its medium flush.
func (s *site) processFlushes(m *machine.Machine) int {
	s.t.Helper()
	return int(number(s.t, s.metrics(m), `(?m)^rpmemfs_flush_seconds_count (\S+)`))
}
