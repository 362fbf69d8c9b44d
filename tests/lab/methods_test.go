package lab

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/debian"
	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// How a commit becomes persistent is chosen by what device and medium can, and said in
// the memory node's log. Whatever it is, what a program commits is there when the memory
// node's process was killed, or is not promised to be.
func TestMethods(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// It is fetched meanwhile, and has come to an end when the test has.
	go func() { _, _ = s.l.old() }()
	t.Cleanup(func() { _, _ = s.l.old() })
	node := s.memoryNode()
	machines := s.bootAll(s.computeNode(2), node)
	compute := machines[0]

	m := machines[1]
	s.probeFlushes(m)
	s.formatDisk(m)
	s.mountDisk(m)
	s.methods(m, compute, []place{
		{name: "devdax", serve: []string{"--device", "/dev/dax0.0", "/pool/p"}, method: "flush", kernel: true, pairs: 3},
		{name: "the operator trusts the processor only", serve: []string{"--persistence", "cpu", "/pool/p"},
			method: "cpu", because: "operator", node: true},
		{name: "a compute node without FLUSH", serve: []string{"/pool/p"}, program: "rpmemfs-noflush",
			method: "cpu", because: "the client's device has no FLUSH", node: true},
		{name: "tmpfs", serve: []string{"--size", "32MiB", "/dev/shm/p"}, method: "read", because: "volatile"},
	})
	s.doctor(m, "rxe0 (eth0) has RDMA FLUSH", "become persistent by RDMA FLUSH, without this machine's processor")
	s.run(m, "/init", "nvdimm", "fsdax")
	s.run(m, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "/dev/pmem0")
	s.run(m, "mkdir", "/pmem")
	s.run(m, "mount", "-t", "ext4", "-o", "dax=always", "/dev/pmem0", "/pmem")
	s.methods(m, compute, []place{
		{name: "ext4-dax", serve: []string{"--size", "32MiB", "/pmem/p"}, method: "message", because: "does not register", node: true},
	})
	m.Kill()

	// A device that is too old: the Soft-RoCE of a kernel before FLUSH and ATOMIC WRITE.
	system, err := s.l.old()
	if errors.Is(err, debian.ErrUnavailable) {
		t.Skipf("no older kernel: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	node.Name, node.Kernel, node.Initrd = "mold", system.kernel, system.initrd
	m = s.boot(node)
	s.probeFlushes(m)
	s.formatDisk(m)
	s.mountDisk(m)
	s.doctor(m, "rxe0 (eth0) has no RDMA FLUSH", "become persistent by this machine's processor", "--persistence adr-no-ddio")
	s.methods(m, compute, []place{
		{name: "too old a device", serve: []string{"--device", "/dev/dax0.0", "/pool/p"},
			method: "cpu", because: "device rxe0 has no FLUSH", node: true},
		{name: "too old a device, and what arrives is persistent", serve: []string{"--persistence", "adr-no-ddio", "/pool/p"},
			method: "read", because: "device rxe0 has no FLUSH"},
	})
}

func (s *site) methods(m, compute *machine.Machine, places []place) {
	for _, p := range places {
		s.t.Run(p.name, func(t *testing.T) {
			at := *s
			at.t = t
			at.method(m, compute, p)
		})
	}
}

// doctor looks for what rpmemctl doctor says in a machine, which has faults of its own.
func (s *site) doctor(m *machine.Machine, want ...string) {
	s.t.Helper()
	p := s.start(m, "rpmemctl", "doctor")
	if _, err := p.Wait(s.ctx()); err != nil {
		s.t.Fatal(err)
	}
	for _, text := range want {
		if !strings.Contains(p.Stdout(), text) {
			s.t.Errorf("rpmemctl doctor: want %q in\n%s%s", text, p.Stdout(), p.Stderr())
		}
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
	pairs   int    // queue pairs of the mount; 0: one
}

// method commits to a pool at p, and looks who made it persistent.
func (s *site) method(m, compute *machine.Machine, p place) {
	t := s.t
	serve := s.serving(m, append([]string{"--metrics", "127.0.0.1:9470"}, p.serve...)...)
	program := p.program
	if program == "" {
		program = "rpmemfs"
	}
	pairs := max(1, p.pairs)
	mount := s.mountedBy(compute, program, scheme, fmt.Sprintf("--queue-pairs=%d", pairs))
	file := "/mnt/" + strings.ReplaceAll(p.name, " ", "_")
	s.run(compute, "bank", "create", file, accounts)

	const epochs = 10
	kernel, process := s.flushes(m), s.processFlushes(m)
	s.run(compute, "epochs", file+".epochs", "16", fmt.Sprint(epochs))
	kernel, process = s.flushes(m).since(kernel), s.processFlushes(m)-process
	line := s.match(serve, `(?m)^.*msg="RDMA connection".*$`)[0]
	if got := strings.Count(serve.Stderr(), `msg="RDMA connection"`); got < pairs {
		t.Errorf("%d RDMA connections, want %d", got, pairs)
	}
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
