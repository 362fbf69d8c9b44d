package lab

import (
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rpmemfs/rpmemfs/tests/lab/machine"
)

// A bank is a program that moves coins in a mapped file, on a compute node that mounts a
// share of a memory node. Whoever crashes, no coin is lost and no acknowledged commit.
type bank struct {
	*site
	nodeConfig, computeConfig machine.Config
	node, compute             *machine.Machine
	serve, mount, program     *machine.Process
	acked                     int // commit that the program was told of last
}

const (
	bankFile = "/mnt/bank"
	accounts = "4096"
	each     = "500" // transfers in an epoch
)

func newBank(s *site) *bank {
	b := &bank{site: s, nodeConfig: s.memoryNode(), computeConfig: s.computeNode(2)}
	machines := s.bootAll(b.nodeConfig, b.computeConfig)
	b.node, b.compute = machines[0], machines[1]
	s.formatDisk(b.node)
	b.startNode()
	b.startMount()
	s.run(b.compute, "bank", "create", bankFile, accounts)
	return b
}

// startNode serves the pool on the memory node, which has just booted.
func (b *bank) startNode() {
	b.t.Helper()
	b.mountDisk(b.node)
	b.serve = b.serving(b.node, "--device", "/dev/dax0.0", "/pool/p")
}

// The disk of a memory node has the directory of its pool, which has to be as durable as
// the data.
func (s *site) formatDisk(m *machine.Machine) {
	s.t.Helper()
	s.run(m, "mke2fs", "-q", "-t", "ext4", "/dev/vda")
}

// mountDisk mounts the disk at /pool.
func (s *site) mountDisk(m *machine.Machine) {
	s.t.Helper()
	s.run(m, "mkdir", "-p", "/pool")
	s.run(m, "mount", "-t", "ext4", "/dev/vda", "/pool")
}

// startMount mounts the share on the compute node, which has just booted.
func (b *bank) startMount() {
	b.t.Helper()
	b.mount = b.mounted(b.compute)
}

// serving starts a memory node.
func (s *site) serving(m *machine.Machine, args ...string) *machine.Process {
	s.t.Helper()
	// A lease is longer than a machine takes to come back.
	p := s.start(m, append([]string{"rpmemfs", "serve", "--lease", "10m", "--pki", "/pki/node",
		"--listen", nodeHost + ":7470", "--data", nodeHost + ":7471", "--rdma", nodeHost + ":7472"}, args...)...)
	s.match(p, `(?m)^serving `)
	return p
}

// mounted mounts the share at /mnt, whoever has it now.
func (s *site) mounted(m *machine.Machine) *machine.Process {
	s.t.Helper()
	return s.mountedBy(m, "rpmemfs", scheme)
}

// mountedBy is mounted by another program, or over another transport. A mount gives up
// soon when the memory node does not answer, which on a busy host it may not.
func (s *site) mountedBy(m *machine.Machine, program, scheme string, args ...string) *machine.Process {
	s.t.Helper()
	argv := append([]string{program, "mount", "--steal", "--pki", "/pki/c", scheme + "://" + nodeHost + "/bank", "/mnt"}, args...)
	for ctx := s.ctx(); ; {
		p := s.start(m, argv...)
		_, err := p.Match(ctx, regexp.MustCompile(`(?m)^mounted`))
		if err == nil {
			return p
		}
		if ctx.Err() != nil || !strings.Contains(p.Stderr(), "does not answer") {
			s.t.Fatal(err)
		}
		s.t.Log(err)
	}
}

// scheme is how mounts reach the memory node.
const scheme = "rdma"

func (s *site) match(p *machine.Process, pattern string) []string {
	s.t.Helper()
	match, err := p.Match(s.ctx(), regexp.MustCompile(pattern))
	if err != nil {
		s.t.Fatal(err)
	}
	return match
}

// runProgram starts the program and lets it commit a few times.
func (b *bank) runProgram() {
	b.t.Helper()
	b.program = b.start(b.compute, "bank", "run", bankFile, each)
	b.commits(5)
}

// commits waits for more commits of the program.
func (b *bank) commits(n int) {
	b.t.Helper()
	already, err := b.program.Lines(b.ctx(), 0)
	if err == nil {
		_, err = b.program.Lines(b.ctx(), already+n)
	}
	if err != nil {
		b.t.Fatalf("%v; the mount says:\n%s\nthe memory node says:\n%s", err, b.mount.Stderr(), b.serve.Stderr())
	}
}

// stopped takes note of what the program was told before it was stopped.
func (b *bank) stopped() {
	b.t.Helper()
	out := b.program.Stdout()
	lines := strings.Fields(out[:strings.LastIndex(out, "\n")+1])
	last, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil || last < b.acked {
		b.t.Fatalf("program printed %q, %v, after commit %d", lines[len(lines)-1], err, b.acked)
	}
	b.acked = last
}

var report = regexp.MustCompile(`^commit (\d+): `)

// check counts the coins, and looks for the last commit that was acknowledged.
func (b *bank) check() {
	b.t.Helper()
	out := b.run(b.compute, "bank", "check", bankFile) // status 1 if a coin is missing
	match := report.FindStringSubmatch(out)
	if match == nil {
		b.t.Fatalf("bank check: got %q", out)
	}
	found, err := strconv.Atoi(match[1])
	if err != nil {
		b.t.Fatal(err)
	}
	if found != b.acked && found != b.acked+1 {
		b.t.Fatalf("acknowledged commit %d, found %d; want it, or the one under way", b.acked, found)
	}
	b.t.Logf("acknowledged commit %d, found %s", b.acked, strings.TrimSpace(out))
	b.acked = found
}

const crashes = 3 // of each machine

// A memory node loses power and comes back with what is on its NVDIMM and its disk; to
// the program that is a commit which takes longer. A compute node loses power, and the
// program goes on at the last commit when it has been started again.
func TestCrash(t *testing.T) {
	t.Parallel()
	b := newBank(newSite(t))
	b.runProgram()
	for range crashes {
		b.node.Kill()
		b.node = b.boot(b.nodeConfig)
		b.startNode()
		b.commits(5)
	}
	for range crashes {
		b.compute.Kill()
		b.stopped()
		b.compute = b.boot(b.computeConfig)
		b.startMount()
		b.check()
		b.runProgram()
	}
	b.end()
}

// end stops everything in order, and checks the pool.
func (b *bank) end() {
	b.t.Helper()
	b.stop(b.program, syscall.SIGKILL, 128+9)
	b.stopped()
	b.stop(b.mount, syscall.SIGTERM, 0)
	b.stop(b.serve, syscall.SIGTERM, 0)
	b.t.Log(b.run(b.node, "rpmemctl", "check", "--pool", "/pool/p"))
}

// stop sends a signal to a process, which has to end as expected.
func (s *site) stop(p *machine.Process, with syscall.Signal, want int) {
	s.t.Helper()
	if err := p.Signal(with); err != nil {
		s.t.Fatal(err)
	}
	if status, err := p.Wait(s.ctx()); err != nil || status != want {
		s.t.Errorf("%s: exit status %d, %v, want %d; it said:\n%s", p, status, err, want, p.Stderr())
	}
}
